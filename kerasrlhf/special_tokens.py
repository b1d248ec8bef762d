"""Special tokens in texts: which a tokenizer has, and how typed ones remain text.

A chat template writes special tokens such as `<|im_end|>` into a text, and so may the person whose
words it wraps. Only the template's are tokens. Typed ones are guarded: a noncharacter of Unicode
after their first character keeps them from being found, and is dropped when the text is tokenized.
Whatever looks like a marker is guarded, so that a guarded text is right for every tokenizer.
"""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_hub.models import Tokenizer

GUARD = "\ufdd0"

TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|return|>",
    "<|endofturn|>",
    "<|end_of_turn|>",
)
"""The tokens that published chat models end a turn with."""

# Markers of published models, to find special tokens that a tokenizer does not declare.
_SHAPE = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|</?s>|<(?:bos|eos|pad|unk|mask)>"
    r"|<(?:start|end)_of_\w+>|<turn\|>"
)
# In typed text also markers in brackets, such as those of Mistral and Llama 2.
_SHAPES = re.compile(rf"{_SHAPE.pattern}|\[/?[A-Z_]+\]")
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the special tokens of a tokenizer.

    These are the tokens that the tokenizer declares, those that it never splits, the control
    symbols of a SentencePiece model, and entries of the vocabulary that look like a marker, such
    as `<|im_start|>`.

    Args:
        tokenizer: A keras-hub tokenizer.

    Returns:
        dict from str to int.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "<|im_end|>": 2, "aa": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
        >>> special_token_ids(tokenizer)
        {'<|endoftext|>': 0, '<|im_end|>': 2}
    """
    return _known_of(tokenizer)[0]


def _known_of(tokenizer: Tokenizer) -> tuple[dict[str, int], re.Pattern[str], re.Pattern[str]]:
    if tokenizer not in _known:
        ids = _find(tokenizer)
        # Of tokens with a common prefix, the pattern must find the longest.
        longest_first = sorted(ids, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        typed = re.compile(f"{pattern}|{_SHAPES.pattern}")
        _known[tokenizer] = ids, re.compile(pattern), typed
    return _known[tokenizer]


def _find(tokenizer: Tokenizer) -> dict[str, int]:
    declared = {*tokenizer.special_tokens, *(getattr(tokenizer, "unsplittable_tokens", None) or ())}
    processor = getattr(tokenizer, "_sentence_piece_spm", None)
    ids = {}
    for index, token in enumerate(tokenizer.get_vocabulary()):
        token = token.decode("utf-8", "replace") if isinstance(token, bytes) else token
        # SentencePiece knows control symbols by id; others are declared or look like a marker.
        is_control = processor is not None and processor.IsControl(index)
        if token in declared or is_control or _SHAPE.fullmatch(token):
            ids[token] = int(tokenizer.token_to_id(token))
    return ids


def guarded(text: str, tokenizer: Tokenizer) -> str:
    r"""Marks the special tokens that somebody typed, so that they are tokenized as text.

    What looks like a special token of some other tokenizer is marked too.

    Args:
        text: str.
        tokenizer: A keras-hub tokenizer.

    Returns:
        A str that shows the same characters. A `GUARD` that was in it already is dropped.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "aa": 2}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
        >>> guarded("a <|endoftext|>", tokenizer)
        'a <\ufdd0|endoftext|>'
    """
    return _known_of(tokenizer)[2].sub(lambda m: m[0][0] + GUARD + m[0][1:], unguarded(text))


def unguarded(text: str) -> str:
    r"""Returns a text without its guards, as people see it.

    Example:
        >>> unguarded("a <\ufdd0|endoftext|>")
        'a <|endoftext|>'
    """
    return text.replace(GUARD, "")


def split(text: str, tokenizer: Tokenizer) -> list[str | int]:
    r"""Splits a text at its special tokens, and inside those that are guarded.

    A guard inside anything but a special token of this tokenizer has no effect.

    Args:
        text: str.
        tokenizer: A keras-hub tokenizer.

    Returns:
        list of str, plain text, and int, special tokens, in their order.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "aa": 2}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
        >>> split("a<|endoftext|>b <\ufdd0|endoftext|>", tokenizer)
        ['a', 0, 'b <', '|endoftext|>']
    """
    ids, pattern, _ = _known_of(tokenizer)
    # Places of guards in the plain text: each guard before moves them by one.
    guards = [match.start() - before for before, match in enumerate(re.finditer(GUARD, text))]
    plain = unguarded(text)
    pieces: list[str | int] = []
    start = 0
    for match in pattern.finditer(plain):
        if any(match.start() < place < match.end() for place in guards):
            # A guard inside the token keeps it text: split after its first character.
            pieces.append(plain[start : match.start() + 1])
            start = match.start() + 1
        else:
            pieces += [plain[start : match.start()], ids[match[0]]]
            start = match.end()
    pieces.append(plain[start:])
    return [piece for piece in pieces if piece != ""]
