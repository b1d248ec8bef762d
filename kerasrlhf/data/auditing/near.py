"""Near duplicates: texts most of whose words and pairs of words are the same.

MinHash proposes pairs of texts, whose similarity (the Jaccard index of their sets of words and of
pairs of words) is then computed exactly: what is missed is a matter of chance, what is found is
not.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from kerasrlhf.data.auditing.corpus import Corpus, Words
from kerasrlhf.data.auditing.duplicates import COLUMNS, LEAST_WORDS, repeated
from kerasrlhf.data.auditing.findings import Finding, finding
from kerasrlhf.data.auditing.options import Options

MISSING = (
    "Near duplicates need the package `rensa`, or `datasketch` where it has no wheel: "
    "`pip install kerasrlhf[audit]`."
)
# A pair of similarity s shares a band with the probability 1 - (1 - s ** _ROWS) ** _BANDS: 0.9998
# for 0.8, and 0.6 for 0.5.
_BANDS, _ROWS = 16, 4
_SIZE = _BANDS * _ROWS
_CHUNK = 10_000
# How many earlier texts of the same band each text is compared with, in addition to the first.
_EARLIER = 5
# An estimate from 64 hashes is off by more than this with a probability of about 1e-4.
_SLACK = 0.2


def minhash() -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """Returns the function that computes MinHash, of the package that is installed.

    Raises:
        ImportError: If there is none.
    """
    if importlib.util.find_spec("rensa") is not None:
        return _rensa
    if importlib.util.find_spec("datasketch") is not None:
        return _datasketch
    raise ImportError(MISSING)


def is_available() -> bool:
    """Returns whether near duplicates can be looked for."""
    try:
        minhash()
    except ImportError:
        return False
    return True


def find_records(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows all of whose texts are nearly those of an earlier row."""
    if options.near is None:
        return []
    columns = [corpus.words[name] for name in corpus.columns]
    keys = corpus.record_keys
    same_label = corpus.labels if corpus.labels is not None else np.zeros(len(corpus))
    pairs = (
        (i, j)
        for i, j in _similar(columns, keys, options.near, options.seed)
        if same_label[i] == same_label[j]
    )
    return finding("near_duplicate_records", corpus, *_repeats(pairs))


def find_texts(texts: str, corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows one text of which is nearly that of an earlier row."""
    column = COLUMNS[texts]
    if options.near is None or column not in corpus.columns or len(corpus.columns) == 1:
        return []
    pairs = _similar([corpus.words[column]], corpus.keys[column], options.near, options.seed)
    return finding(f"near_duplicate_{texts}", corpus, *_repeats(pairs))


def find_leaked_prompts(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows whose prompt has nearly the words of a held-out one."""
    return _find_leaked("prompts", ["prompt"], ["prompt"], corpus, options)


def find_leaked_responses(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows with a response that has nearly the words of a held-out one."""
    theirs = [] if options.held_out is None else options.held_out.responses
    return _find_leaked("responses", corpus.responses, theirs, corpus, options)


def _find_leaked(
    texts: str, ours: list[str], theirs: list[str], corpus: Corpus, options: Options
) -> list[Finding]:
    held_out = options.held_out
    ours = [name for name in ours if name in corpus.columns]
    if options.near is None or held_out is None or not ours:
        return []
    theirs = [name for name in theirs if name in held_out.columns]
    # Held-out texts come first: what repeats them is later.
    parts = [(held_out, name) for name in theirs] + [(corpus, name) for name in ours]
    count = len(held_out) * len(theirs)
    if not count:
        return []
    words = parts[0][0].words[parts[0][1]]
    for part, name in parts[1:]:
        words = words.followed_by(part.words[name])
    keys = np.concatenate([part.keys[name] for part, name in parts])
    # Each text is compared once: its number tells which rows have it.
    exact = {*keys[:count].tolist()}
    near: dict[int, int] = {}
    for i, j in _similar([words], keys, options.near, options.seed, count):
        if int(keys[j]) not in exact:
            near.setdefault(int(keys[j]), i % len(held_out))
    found: dict[int, int] = {}
    for name in ours:
        for row, key in enumerate(corpus.keys[name].tolist()):
            if key in near:
                found.setdefault(row, near[key])
    rows = sorted(found)
    return finding(f"near_leaked_{texts}", corpus, rows, [found[row] for row in rows])


def _repeats(pairs: Iterator[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Returns the texts that are similar to an earlier one, which is not itself such a text."""
    earlier: dict[int, list[int]] = {}
    for i, j in pairs:
        earlier.setdefault(j, []).append(i)
    found: dict[int, int] = {}
    for j in sorted(earlier):
        kept = [i for i in sorted(earlier[j]) if i not in found]
        if kept:
            found[j] = kept[0]
    return [*found], [*found.values()]


def _similar(
    columns: list[Words], keys: np.ndarray, threshold: float, seed: int, split: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yields pairs `i < j` of different rows whose texts are similar in every column.

    Args:
        columns: list of `Words`.
        keys: int64 array `(rows,)`. Of rows with the same key only the first is looked at.
        threshold: float. The least similarity.
        seed: int. Of the hashes.
        split: int or None. Pairs have `i` before this row and `j` behind it. Defaults to None.

    Yields:
        Pairs of int.
    """
    counts = sum(words.counts for words in columns)
    is_first = np.ones(len(keys), bool)
    if split is None:
        is_first[repeated(keys)[0]] = False
    else:
        is_first[:split][repeated(keys[:split])[0]] = False
        is_first[split:][repeated(keys[split:])[0]] = False
    rows = np.flatnonzero(is_first & (counts >= LEAST_WORDS))
    if len(rows) < 2:
        return
    signatures = _signatures([words.take(rows) for words in columns], seed)
    left, right = _candidates(signatures)
    if split is not None:
        crossing = (rows[left] < split) & (rows[right] >= split)
        left, right = left[crossing], right[crossing]
    likely = _agreement(signatures, left, right) >= threshold - _SLACK
    sets: dict[tuple[int, int], set] = {}

    def features(column: int, row: int) -> set:
        if (column, row) not in sets:
            if len(sets) > _CHUNK:
                sets.clear()  # Sets are large, and pairs come in the order of their rows.
            ids = columns[column][row].tolist()
            sets[column, row] = {*ids, *itertools.pairwise(ids)}
        return sets[column, row]

    pairs = zip(rows[left[likely]].tolist(), rows[right[likely]].tolist(), strict=True)
    for i, j in sorted(pairs):
        if all(
            _jaccard(features(column, i), features(column, j)) >= threshold
            for column in range(len(columns))
        ):
            yield i, j


def _jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other) if one or other else 1.0


def _agreement(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the fraction of equal hashes of each pair, which estimates the similarity."""
    parts = range(0, len(left), 1_000_000)
    return np.concatenate(
        [np.zeros(0)]
        + [
            (signatures[left[i : i + 1_000_000]] == signatures[right[i : i + 1_000_000]]).mean(1)
            for i in parts
        ]
    )


def _candidates(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of rows, the earlier one first, that agree in all hashes of some band."""
    found = []
    count = len(signatures)
    for band in range(_BANDS):
        keys = np.zeros(count, "uint64")
        for hashes in signatures[:, band * _ROWS : (band + 1) * _ROWS].T:
            keys = _mixed(keys + hashes)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        is_start = np.concatenate([[True], keys[1:] != keys[:-1]])
        start = np.maximum.accumulate(np.where(is_start, np.arange(count), 0))
        later = np.flatnonzero(~is_start)
        found.append(order[start[later]] * count + order[later])
        for lag in range(1, _EARLIER + 1):
            places = later[later - lag > start[later]]
            found.append(order[places - lag] * count + order[places])
    codes = np.unique(np.concatenate(found))
    return codes // count, codes % count


def _signatures(columns: list[Words], seed: int) -> np.ndarray:
    """Returns the MinHash of each row, uint32 `(rows, 64)`."""
    compute, parts = minhash(), []
    for start in range(0, len(columns[0]), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(columns[0])))
        hashes, owners = [], []
        for number, words in enumerate(columns):
            chunk = words.take(rows)
            ids = chunk.ids.astype("uint64") + np.uint64(1) + (np.uint64(number) << np.uint64(56))
            hashes.append(_mixed(ids))
            owners.append(chunk.rows)
            same = owners[-1][1:] == owners[-1][:-1]
            bigrams = _mixed(_mixed(ids[:-1]) + ids[1:] * np.uint64(0x9E3779B97F4A7C15))
            hashes.append(bigrams[same])
            owners.append(owners[-1][1:][same])
        flat, owner = np.concatenate(hashes), np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(rows)))])
        parts.append(compute(flat[order], offsets.astype("uint64"), seed))
    return np.concatenate(parts)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Returns the 64-bit hashes of numbers (the last steps of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _rensa(hashes: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
    import rensa

    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, _SIZE, seed)
    return np.array(matrix.to_rows(), "uint32")


def _datasketch(hashes: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
    import datasketch

    rows = [hashes[a:b] >> np.uint64(32) for a, b in itertools.pairwise(offsets)]
    sketches = datasketch.MinHash.bulk(rows, num_perm=_SIZE, seed=seed + 1, hashfunc=int)
    return np.array([sketch.hashvalues for sketch in sketches], "uint32")
