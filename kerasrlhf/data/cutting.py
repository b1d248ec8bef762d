"""Shortening a prompt at its front, at a sensible place of the text (detail P2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kerasrlhf import tokens

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor, Tokenizer

_TURN = re.compile(r"(?=\bHuman:|\bAssistant:|<\|im_start\|>)")
_LINE = re.compile(r"(?<=\n)(?=[^\n])")
_WORD = re.compile(r"(?<=\s)(?=\S)")


def cut_front(
    texts: list[str], budgets: list[int], preprocessor: CausalLMPreprocessor | Tokenizer
) -> tuple[list[str], list[list[int]]]:
    """Drops the first words of each text until the rest has at most `budget` tokens (P2).

    The rest begins at a word. Where the first half of what fits has a turn of the dialogue or,
    failing that, a line that begins in it, the rest begins there. One word that is longer than
    the budget is cut between tokens.

    Args:
        texts: list of str. Special tokens in them are parsed; a turn that somebody typed does not
            count as a turn (see `kerasrlhf.special_tokens.guarded`).
        budgets: list of int. The tokens that each text may have.
        preprocessor: A keras-hub preprocessor or tokenizer.

    Returns:
        Two lists: the texts that are left, and their token ids (lists of int).

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "Ġ": 2, "ĠĠ": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["Ġ Ġ"])
        >>> cut_front(["aaaa aa a", "aaaa", "a"], [5, 2, 0], tokenizer)
        (['aa a', 'aa', ''], [[1, 1, 2, 1], [1, 1], []])
    """
    # The rest starts at the first word that makes it fit, or at a turn or line soon after.
    words = [[match.start() for match in _WORD.finditer(text)] for text in texts]
    first = _first_fitting(texts, words, budgets, preprocessor)
    kept = [
        text[_sensible(text, starts[index]) :] if index < len(starts) else ""
        for text, starts, index in zip(texts, words, first, strict=True)
    ]
    ids = tokens.tokenize(kept, preprocessor, parse_special=True)
    # No word fits, or the shorter text has more tokens: keep the last tokens of the whole.
    for row, (text, budget) in enumerate(zip(texts, budgets, strict=True)):
        if budget > 0 and (not ids[row] or len(ids[row]) > budget):
            (whole,) = tokens.tokenize([text], preprocessor, parse_special=True)
            ids[row] = whole[-budget:]
            (kept[row],) = tokens.detokenize([ids[row]], preprocessor)
    return kept, ids


def _first_fitting(
    texts: list[str],
    words: list[list[int]],
    budgets: list[int],
    preprocessor: CausalLMPreprocessor | Tokenizer,
) -> list[int]:
    """Returns the first word from which on each text fits, by bisection of all at once."""
    low, high = [0] * len(texts), [len(starts) for starts in words]
    # Without a budget, nothing fits: skip the search, and keep no word.
    for row, budget in enumerate(budgets):
        low[row] = high[row] if budget < 1 else 0
    while open_rows := [row for row in range(len(texts)) if low[row] < high[row]]:
        # One call of the tokenizer for each step of all searches.
        middle = {row: (low[row] + high[row]) // 2 for row in open_rows}
        rests = [texts[row][words[row][middle[row]] :] for row in open_rows]
        ids_of_rests = tokens.tokenize(rests, preprocessor, parse_special=True)
        for row, ids in zip(open_rows, ids_of_rests, strict=True):
            if len(ids) <= budgets[row]:
                high[row] = middle[row]
            else:
                low[row] = middle[row] + 1
    return low


def _sensible(text: str, start: int) -> int:
    """Returns the first turn, or else line, in the first half of `text[start:]`, else `start`."""
    # A boundary in the second half would waste more than half of what fits.
    limit = start + (len(text) - start) // 2
    for boundary in (_TURN, _LINE):
        match = boundary.search(text, start)
        if match and match.start() <= limit:
            return match.start()
    return start
