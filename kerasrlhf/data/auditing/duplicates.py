"""Rows that repeat earlier or held-out ones: the same texts, but for case and white space."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kerasrlhf.data.auditing.corpus import Corpus
from kerasrlhf.data.auditing.findings import Finding, finding, number_of
from kerasrlhf.data.auditing.options import Options

# The column of each kind of repetition.
COLUMNS = {
    "prompts": "prompt",
    "chosen": "chosen",
    "rejected": "rejected",
    "responses": "response",
}
# Shorter responses, such as "Yes.", are the same by chance.
LEAST_WORDS = 5


def find_records(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows all of whose texts are those of an earlier row."""
    return finding("duplicate_records", corpus, *repeated(corpus.record_keys))


def find_texts(texts: str, corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows one text of which is that of an earlier row."""
    column = COLUMNS[texts]
    if column not in corpus.columns or len(corpus.columns) == 1:
        return []  # Where there is one column, to repeat its text is to repeat the record.
    keys = corpus.keys[column]
    rows, firsts = repeated(keys)
    if column != "prompt":
        kept = corpus.words[column].counts[rows] >= LEAST_WORDS
        rows, firsts = rows[kept], firsts[kept]
    distinct = len(np.unique(keys[rows]))
    detail = f"{number_of(distinct, 'text')} of {len(rows) + distinct} rows" if len(rows) else ""
    return finding(f"duplicate_{texts}", corpus, rows, firsts, detail)


def find_leaked_prompts(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows whose prompt is a held-out one."""
    held_out = options.held_out
    if held_out is None or not all("prompt" in x.columns for x in (corpus, held_out)):
        return []
    places = _places(corpus.keys["prompt"], [held_out.keys["prompt"]])
    rows = np.flatnonzero(places >= 0)
    return finding("leaked_prompts", corpus, rows, places[rows], _of_held_out(places[rows]))


def find_leaked_responses(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows with a held-out response of some words."""
    if options.held_out is None:
        return []
    theirs = [options.held_out.keys[name] for name in options.held_out.responses]
    found = np.full(len(corpus), -1)
    for name in corpus.responses:
        places = _places(corpus.keys[name], theirs)
        places[corpus.words[name].counts < LEAST_WORDS] = -1
        found = np.where(found < 0, places, found)
    rows = np.flatnonzero(found >= 0)
    return finding("leaked_responses", corpus, rows, found[rows], _of_held_out(found[rows]))


def _of_held_out(rows: np.ndarray) -> str:
    return number_of(len(np.unique(rows)), "held-out row")


def repeated(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places whose key is that of an earlier one, and the first place of the key.

    Example:
        >>> import numpy as np
        >>> [x.tolist() for x in repeated(np.array([7, 5, 7, 7]))]
        [[2, 3], [0, 0]]
    """
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first = firsts[inverse.reshape(-1)]
    rows = np.flatnonzero(first != np.arange(len(keys)))
    return rows, first[rows]


def _places(keys: np.ndarray, columns: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the first row of other columns that has each key, -1 where none has."""
    first: dict[int, int] = {}
    for column in columns:
        for row, key in enumerate(column.tolist()):
            first.setdefault(key, row)
    return np.array([first.get(key, -1) for key in keys.tolist()], "int64")
