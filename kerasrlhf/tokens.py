"""Between texts and token ids, the same for every keras-hub tokenizer.

This is the only place that decides which ids open and end a row, which id is written into padding,
and where padding is: after the tokens. keras-hub tokenizers return ragged tensors, arrays or
lists, depending on their kind and workflow; here ids are lists of int.

A text that continues another one is not tokenized or detokenized by itself: SentencePiece puts a
blank before the first word of every text, and drops it from the first word of every row of ids.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kerasrlhf import special_tokens

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor, Tokenizer

_T = TypeVar("_T")

_CHUNK = 1024
# Texts to tokenize a continuation after; some of them merge with what follows.
_ANCHORS = ("\n", ".", "0", "\u2603")
_adds_blank: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class SampledText(str):
    """The text of a sampled response, which remembers the sampled tokens.

    Other tokens may make the same text, so that a text that is tokenized again need not be what
    the model wrote. The tokenizer of a `SampledText` returns the sampled tokens themselves.

    Args:
        text: str.
        token_ids: list of int, without the token that ended the response.
        tokenizer: The keras-hub tokenizer that the ids belong to, or None.

    Example:
        >>> text = SampledText("ab", [1, 2], tokenizer=None)
        >>> text, text == "ab", text.token_ids
        ('ab', True, [1, 2])
    """

    token_ids: list[int]
    tokenizer: Tokenizer | None

    def __new__(cls, text: str, token_ids: list[int], tokenizer: Tokenizer | None) -> SampledText:
        """Creates the str and attaches its tokens."""
        made = super().__new__(cls, text)
        made.token_ids, made.tokenizer = token_ids, tokenizer
        return made


def tokenize(
    texts: Iterable[str],
    preprocessor: CausalLMPreprocessor | Tokenizer,
    *,
    parse_special: bool = False,
) -> list[list[int]]:
    """Tokenizes texts, adding nothing.

    Args:
        texts: list of str.
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.
        parse_special: bool. Whether a special token that is written in a text, such as `</s>`,
            becomes that token. Defaults to False: it is text like any other.

    Returns:
        list of lists of int, one per text.

    Raises:
        ValueError: If the tokenizer pads, adds tokens, or returns strings.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
        >>> rlhf.data.tokenize(["ab", "ba", ""], tokenizer)
        [[3], [2, 1], []]
        >>> rlhf.data.tokenize(["ab<|endoftext|>"], tokenizer, parse_special=True)
        [[3, 0]]
    """
    tokenizer = tokenizer_of(preprocessor)
    if not parse_special:
        texts = [guarded(text, tokenizer) for text in texts]
    return _encode(list(texts), tokenizer)


def guarded(text: str, tokenizer: Tokenizer) -> str:
    """Returns a text whose typed special tokens are text, see `special_tokens.guarded`.

    A `SampledText` of this tokenizer is returned as it is, because its tokens are known.
    """
    if isinstance(text, SampledText) and text.tokenizer is tokenizer:
        return text
    return special_tokens.guarded(text, tokenizer)


def continuations(
    prompts: Sequence[str],
    prompt_ids: Sequence[list[int]],
    responses: Sequence[str],
    preprocessor: CausalLMPreprocessor | Tokenizer,
) -> list[list[int]]:
    """Tokenizes responses as what follows their prompts.

    Prompt and response are tokenized as one text. Where that leaves the tokens of the prompt as
    they are, the rest of them is the response; where a token would reach across the boundary, the
    response is tokenized by itself, without the blank that SentencePiece puts before a text. The
    prompt keeps its tokens either way, because they are what the model sees when it responds.

    Args:
        prompts: list of str. Special tokens are parsed: `special_tokens.guarded` keeps typed ones
            text.
        prompt_ids: list of lists of int: `prompts` tokenized, with special tokens parsed.
        responses: list of str, one per prompt. A `SampledText` of this tokenizer keeps the
            tokens that were sampled.
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.

    Returns:
        list of lists of int, one per response.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
        >>> continuations(["b", "a"], [[2], [1]], ["ab", "b"], tokenizer)
        [[3], [2]]
    """
    tokenizer = tokenizer_of(preprocessor)
    # What follows the prompt's tokens is the response, unless a token crosses the boundary.
    wholes = _encode([p + r for p, r in zip(prompts, responses, strict=True)], tokenizer)
    rows: list[list[int] | None] = [
        whole[len(ids) :] if whole[: len(ids)] == ids else None
        for whole, ids in zip(wholes, prompt_ids, strict=True)
    ]
    # The sampled tokens themselves: other tokens may have the same text (M8).
    for index, response in enumerate(responses):
        if isinstance(response, SampledText) and response.tokenizer is tokenizer:
            rows[index] = [*response.token_ids]
    # A token crosses the boundary: tokenize the response by itself.
    merged = [index for index, row in enumerate(rows) if row is None]
    encoded = _encode([responses[index] for index in merged], tokenizer, continues=True)
    alone = dict(zip(merged, encoded, strict=True))
    return [alone[index] if row is None else row for index, row in enumerate(rows)]


def following(
    texts: Sequence[str], preprocessor: CausalLMPreprocessor | Tokenizer
) -> list[list[int]]:
    """Tokenizes texts that something precedes, by themselves; special tokens are parsed.

    Args:
        texts: list of str.
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.

    Returns:
        list of lists of int, without the blank that SentencePiece puts before a text.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
        >>> following(["<|endoftext|>ab"], tokenizer)
        [[0, 3]]
    """
    return _encode(list(texts), tokenizer_of(preprocessor), continues=True)


def _encode(texts: list[str], tokenizer: Tokenizer, continues: bool = False) -> list[list[int]]:
    """Returns the token ids of texts with special tokens parsed.

    `continues` says whether something precedes the texts.
    """
    rows = [special_tokens.split(text, tokenizer) for text in texts]
    start = getattr(tokenizer, "start_token_id", None)
    # Pieces of text by row and place: those that open a text, and those that something precedes.
    opening: dict[tuple[int, int], str] = {}
    inner: dict[tuple[int, int], str] = {}
    for index, pieces in enumerate(rows):
        for place, piece in enumerate(pieces):
            if isinstance(piece, str):
                opens = not continues and pieces[:place] in ([], [start])
                (opening if opens else inner)[index, place] = piece
    # One call of the tokenizer for each kind, then the ids return to their places.
    ids = dict(zip(opening, _encode_plain([*opening.values()], tokenizer), strict=True))
    ids |= dict(zip(inner, _encode_inner([*inner.values()], tokenizer), strict=True))
    return [
        [
            token
            for place, piece in enumerate(row)
            for token in ([piece] if isinstance(piece, int) else ids[index, place])
        ]
        for index, row in enumerate(rows)
    ]


def _encode_plain(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the token ids of texts without special tokens."""
    rows: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        rows += _to_lists(tokenizer(texts[start : start + _CHUNK]))
    return rows


def _encode_inner(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Returns the token ids of texts without special tokens that something precedes."""
    if not texts or not _puts_blank_first(tokenizer):
        return _encode_plain(texts, tokenizer)
    # Tokenize after an anchor, and remove the anchor's tokens.
    rows: list[list[int] | None] = [None] * len(texts)
    for anchor in _ANCHORS:
        missing = [index for index, row in enumerate(rows) if row is None]
        (head,) = _encode_plain([anchor], tokenizer)
        wholes = _encode_plain([anchor + texts[index] for index in missing], tokenizer)
        decoded = _decode([head + whole[len(head) :] for whole in wholes], tokenizer)
        for index, whole, text in zip(missing, wholes, decoded, strict=True):
            # The anchor must have kept its tokens, and the rest its text.
            if whole[: len(head)] == head and text == anchor + texts[index]:
                rows[index] = whole[len(head) :]
    # What merges with every anchor is tokenized by itself.
    lost = [index for index, row in enumerate(rows) if row is None]
    alone = dict(zip(lost, _encode_plain([texts[i] for i in lost], tokenizer), strict=True))
    return [alone[index] if row is None else row for index, row in enumerate(rows)]


def _puts_blank_first(tokenizer: Tokenizer) -> bool:
    """Returns whether the first word of a text is tokenized as if a blank preceded it."""
    if tokenizer not in _adds_blank:
        (ids,) = _encode_plain(["a"], tokenizer)
        # Twice the ids of a word: SentencePiece decodes the second one with its blank.
        _adds_blank[tokenizer] = _decode([ids + ids], tokenizer) == ["a a"]
    return _adds_blank[tokenizer]


def detokenize(
    rows: Iterable[Iterable[int]],
    preprocessor: CausalLMPreprocessor | Tokenizer,
    *,
    after: Iterable[Sequence[int]] | None = None,
) -> list[str]:
    """Turns token ids into texts, leaving out start, end and padding tokens.

    Only ids that the tokenizer declares as special tokens are left out. A padding id that is an
    ordinary token (0 is "!" in GPT-2) is kept: pass the real tokens of a row, without padding.

    Args:
        rows: list of lists of int, or of 1D integer arrays.
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.
        after: list of lists of int, or None. The ids that precede each row: the text of a row is
            then what it adds to theirs, a blank before its first word included, and a
            `SampledText`. Defaults to None.

    Returns:
        list of str.

    Raises:
        ValueError: If the tokenizer pads or adds tokens.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
        >>> rlhf.data.detokenize([[0, 3, 2, 0], [0]], tokenizer)
        ['abb', '']
    """
    tokenizer = tokenizer_of(preprocessor)
    hidden = _hidden_ids(tokenizer)
    whole = [[int(i) for i in row] for row in rows]
    visible = [[i for i in row if i not in hidden] for row in whole]
    # By itself, a row has the text of its visible tokens.
    if after is None:
        return _decode(visible, tokenizer)
    # One visible token is context enough: only the first blank of a text depends on what precedes.
    heads = [next(([int(i)] for i in row[::-1] if int(i) not in hidden), []) for row in after]
    before = _decode(heads, tokenizer)
    wholes = _decode([head + row for head, row in zip(heads, visible, strict=True)], tokenizer)
    # The text of a row is what it adds to the text of its context.
    added = [
        whole[len(head) :] if whole.startswith(head) else None
        for whole, head in zip(wholes, before, strict=True)
    ]
    # A character that begins in the context and ends in the row has no text on either side.
    split = [row if text is None else [] for row, text in zip(visible, added, strict=True)]
    alone = _decode(split, tokenizer)
    texts = [a if text is None else text for text, a in zip(added, alone, strict=True)]
    ends = stop_ids(preprocessor)
    # A `SampledText` has the sampled ids without the one that ended them.
    sampled = [row[:-1] if row and row[-1] in ends else row for row in whole]
    return [SampledText(text, row, tokenizer) for text, row in zip(texts, sampled, strict=True)]


def _decode(rows: list[list[int]], tokenizer: Tokenizer) -> list[str]:
    """Returns the texts of rows of ids; empty rows are left out, as some tokenizers drop them."""
    texts = [""] * len(rows)
    filled = [index for index, row in enumerate(rows) if row]
    for chunk in (filled[i : i + _CHUNK] for i in range(0, len(filled), _CHUNK)):
        decoded = tokenizer.detokenize([rows[index] for index in chunk])
        for index, text in zip(chunk, _to_texts(decoded), strict=True):
            texts[index] = text
    return texts


def pieces(preprocessor: CausalLMPreprocessor | Tokenizer) -> list[str]:
    """Returns the text that each token adds to a text, by its id.

    Args:
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.

    Returns:
        list of str. Empty for start, end and padding tokens. A token that is a part of a character
        has the replacement character instead.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, ".": 4}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
        >>> pieces(tokenizer)
        ['', 'a', 'b', 'ab', '.']
    """
    tokenizer = tokenizer_of(preprocessor)
    hidden = _hidden_ids(tokenizer)
    visible = [i for i in range(tokenizer.vocabulary_size()) if i not in hidden]
    # After another token, because a token at the start of a text may lose its blank.
    anchor = next(row[-1:] for row in tokenize([*_ANCHORS, "a"], tokenizer) if row)
    (before,) = _decode([anchor], tokenizer)
    texts = _decode([[*anchor, i] for i in visible], tokenizer)
    found = dict(zip(visible, (text[len(before) :] for text in texts), strict=True))
    return [found.get(i, "") for i in range(tokenizer.vocabulary_size())]


def start_ids(preprocessor: CausalLMPreprocessor) -> list[int]:
    """Returns the ids that open every row: the start token, if the preprocessor adds one.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`.

    Returns:
        list of one int, or an empty list.

    Example:
        >>> import types
        >>> tokenizer = types.SimpleNamespace(start_token_id=1)
        >>> start_ids(types.SimpleNamespace(tokenizer=tokenizer, add_start_token=True))
        [1]
    """
    start = getattr(tokenizer_of(preprocessor), "start_token_id", None)
    return (
        [int(start)] if getattr(preprocessor, "add_start_token", True) and start is not None else []
    )


def opened(rows: list[list[int]], preprocessor: CausalLMPreprocessor) -> list[list[int]]:
    """Returns rows with the start token in front, which a chat template may have written already.

    Args:
        rows: list of lists of int.
        preprocessor: A keras-hub `CausalLMPreprocessor`.

    Returns:
        list of lists of int.

    Example:
        >>> import types
        >>> tokenizer = types.SimpleNamespace(start_token_id=1)
        >>> opened([[5], [1, 5]], types.SimpleNamespace(tokenizer=tokenizer, add_start_token=True))
        [[1, 5], [1, 5]]
    """
    start = start_ids(preprocessor)
    return [row if start and row[:1] == start else start + row for row in rows]


def end_ids(
    preprocessor: CausalLMPreprocessor,
    end_token_id: int | str | None = "auto",
    turn_end: str | None = None,
) -> list[int]:
    """Returns the ids that end every response in training data.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        end_token_id: int, `"auto"` or None. An int names a token, and None means no token.
            `"auto"` takes `turn_end` if the vocabulary has it, otherwise the tokenizer's end token
            if the preprocessor adds it. Defaults to `"auto"`.
        turn_end: str or None. The token that a chat template ends a turn with. Defaults to None.

    Returns:
        list of one int, or an empty list.

    Raises:
        ValueError: If the id is outside the vocabulary.

    Example:
        >>> import types
        >>> tokenizer = types.SimpleNamespace(end_token_id=2, vocabulary_size=lambda: 9)
        >>> preprocessor = types.SimpleNamespace(tokenizer=tokenizer, add_end_token=True)
        >>> end_ids(preprocessor), end_ids(preprocessor, 5), end_ids(preprocessor, None)
        ([2], [5], [])
    """
    tokenizer = tokenizer_of(preprocessor)
    if end_token_id == "auto":
        # The template's end of turn comes before the tokenizer's end token.
        if turn_end is not None and turn_end in special_tokens.special_token_ids(tokenizer):
            return [special_tokens.special_token_ids(tokenizer)[turn_end]]
        add = getattr(preprocessor, "add_end_token", True)
        end_token_id = getattr(tokenizer, "end_token_id", None) if add else None
    if end_token_id is None:
        return []
    if isinstance(end_token_id, str) or not 0 <= end_token_id < tokenizer.vocabulary_size():
        raise ValueError(
            "`end_token_id` must be 'auto', None, or an id below the vocabulary size "
            f"{tokenizer.vocabulary_size()}. Received: {end_token_id!r}"
        )
    return [int(end_token_id)]


def stop_ids(preprocessor: CausalLMPreprocessor | None) -> tuple[int, ...]:
    """Returns the ids at which a model ends a response: its end tokens and its ends of turns.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`, or None.

    Returns:
        tuple of int, the tokenizer's end token first; empty without a tokenizer.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "<|im_end|>": 2, "aa": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
        >>> stop_ids(keras_hub.models.GPT2CausalLMPreprocessor(tokenizer))
        (0, 2)
    """
    tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
    if tokenizer is None:
        return ()
    ids = [getattr(tokenizer, name, None) for name in ("end_token_id", "end_token2_id")]
    known = special_tokens.special_token_ids(tokenizer)
    # Chat models end a turn with another token than a text.
    ids += [known.get(token) for token in special_tokens.TURN_ENDS]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def pad_id(preprocessor: CausalLMPreprocessor | None) -> int:
    """Returns the id that is written into padding.

    It has no meaning: masks, and not ids, say what is padding (detail N2).

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`, or None.

    Returns:
        int, 0 if there is no tokenizer or it has no padding token.

    Example:
        >>> import types
        >>> pad_id(types.SimpleNamespace(tokenizer=types.SimpleNamespace(pad_token_id=3)))
        3
        >>> pad_id(None)
        0
    """
    tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
    return int(getattr(tokenizer, "pad_token_id", None) or 0)


def encode(
    texts: Iterable[str], preprocessor: CausalLMPreprocessor | None, *, parse_special: bool = False
) -> list[list[int]]:
    """Tokenizes texts as prefixes of rows: with the start token, if the model has one.

    Args:
        texts: list of str.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        parse_special: bool. As in `tokenize`. Defaults to False.

    Returns:
        list of lists of int, one per text.

    Raises:
        ValueError: If there are no texts, one string in place of a list, an entry that is not a
            str, a row without a token, or no preprocessor.
    """
    texts = text_list(texts, "texts")
    if preprocessor is None:
        raise ValueError(
            "Texts need a tokenizer, and the model has no preprocessor. Attach one, or pass "
            "`token_ids` and `padding_mask`."
        )
    bad = [index for index, text in enumerate(texts) if not isinstance(text, str)]
    if bad:
        raise ValueError(
            f"Expected a list of strings. Received {texts[bad[0]]!r} of type "
            f"{type(texts[bad[0]]).__name__} at row {bad[0]}."
        )
    rows = opened(tokenize(texts, preprocessor, parse_special=parse_special), preprocessor)
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(
            f"The texts of rows {empty[:5]} are empty; a row needs one token at least."
        )
    return rows


def text_list(texts: Iterable[_T], name: str) -> list[_T]:
    """Returns texts or conversations as a list, read once.

    Args:
        texts: An iterable.
        name: str. The caller's name for it.

    Returns:
        list.

    Raises:
        ValueError: If it is one string or dictionary, no iterable, or empty.

    Example:
        >>> text_list((text for text in ["a", "b"]), "prompts")
        ['a', 'b']
    """
    if isinstance(texts, str | bytes | dict) or not hasattr(texts, "__iter__"):
        raise ValueError(
            f"`{name}` must be a list with at least one entry. Received: {texts!r} of type "
            f"{type(texts).__name__}. For one text pass `[text]`."
        )
    texts = list(texts)
    if not texts:
        raise ValueError(f"`{name}` must be a list with at least one entry. Received an empty one.")
    return texts


def padded_length(length: int, limit: int | None = None) -> int:
    """Rounds a length up to one of a few sizes: 16, 24, 32, 48, 64, 96, 128 and so on.

    XLA compiles a program for every shape, which takes seconds and memory.

    Args:
        length: int, in tokens.
        limit: int or None. The most tokens that a row may have. Defaults to None.

    Returns:
        int.

    Example:
        >>> [padded_length(n) for n in (3, 17, 33, 100)], padded_length(33, limit=40)
        ([16, 24, 48, 128], 40)
    """
    size = 16
    while size < length:
        # Alternate the factors 3/2 and 4/3: few shapes, and little padding.
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size if limit is None else max(length, min(size, limit))


def padded(
    rows: Sequence[Sequence[int]], length: int | None = None, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of ids as one array, padded on the right.

    Args:
        rows: list of lists of int.
        length: int or None. Tokens of a padded row. Defaults to those of the longest row.
        pad_id: int. Written where no token is. Defaults to 0.

    Returns:
        `token_ids`, an int32 array `(rows, length)`, and `padding_mask`, a bool array of the same
        shape, true at real tokens.

    Example:
        >>> ids, mask = padded([[5, 6, 7], [8]])
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [8, 0, 0]], [[True, True, True], [True, False, False]])
    """
    length = max(map(len, rows)) if length is None else length
    token_ids = np.full((len(rows), length), pad_id, "int32")
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return token_ids, np.arange(length) < lengths[:, None]


def tokenizer_of(preprocessor: CausalLMPreprocessor | Tokenizer | None) -> Tokenizer:
    """Returns the tokenizer of a preprocessor, or the tokenizer that was passed.

    Raises:
        ValueError: If there is none, or it adds tokens.
    """
    tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
    if tokenizer is None:
        raise ValueError(
            "A tokenizer is needed. Received a preprocessor without one (or None): pass "
            "`causal_lm.preprocessor` of a model that was made with its preprocessor."
        )
    # Start, end and padding are added here, once, and not by the tokenizer.
    for option in ("sequence_length", "add_bos", "add_eos"):
        if getattr(tokenizer, option, None):
            raise ValueError(
                f"{type(tokenizer).__name__} was made with {option}="
                f"{getattr(tokenizer, option)!r}, which adds tokens to every text. Leave it out."
            )
    return tokenizer


def _hidden_ids(tokenizer: Tokenizer) -> set[int]:
    """Returns the ids of the start, end and padding tokens that are special tokens."""
    names = ("start_token_id", "end_token_id", "pad_token_id")
    # A padding id that is an ordinary token stays visible.
    ids = {getattr(tokenizer, name, None) for name in names} & {*tokenizer.special_token_ids}
    return {i for i in ids if i is not None}


def _to_lists(ids: Iterable) -> list[list[int]]:
    if hasattr(ids, "to_list"):
        ids = ids.to_list()
    rows = [np.asarray(row).tolist() for row in ids]
    if any(isinstance(token, str | bytes) for row in rows for token in row[:1]):
        raise ValueError("The tokenizer returns strings. Make it with dtype='int32'.")
    return rows


def _to_texts(texts: Iterable[str | bytes]) -> list[str]:
    plain = texts.numpy() if hasattr(texts, "numpy") else texts
    return [
        text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)
        for text in plain
    ]
