"""How long texts are, in characters, words and tokens, and what limits would cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data.auditing.corpus import Corpus
from kerasrlhf.data.auditing.findings import Finding, finding
from kerasrlhf.data.auditing.options import Options

_QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "99%": 0.99, "max": 1.0}
_BINS = 30


def token_ids(corpus: Corpus, options: Options) -> dict[str, list[list[int]]]:
    """Returns the token ids of each text by column, each text by itself; none without tokenizer.

    They are computed once and kept with the corpus.
    """
    if options.tokenizer is None:
        return {}
    if corpus.tokens is None:
        corpus.tokens = {
            name: tokens.tokenize(map(_encodable, texts), options.tokenizer)
            for name, texts in corpus.columns.items()
        }
    return corpus.tokens


def _encodable(text: str) -> str:
    """Returns a text without halves of characters, which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def find_cut_prompts(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows whose prompt has more tokens than fit."""
    columns = [name for name in corpus.columns if name == "prompt"]
    return _find_cut("cut_prompts", columns, options.prompt_length, corpus, options)


def find_cut_responses(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows with a response of more tokens than fit."""
    return _find_cut("cut_responses", corpus.responses, options.response_length, corpus, options)


def _find_cut(
    name: str, columns: list[str], limit: int | None, corpus: Corpus, options: Options
) -> list[Finding]:
    if limit is None or not columns:
        return []
    ids = token_ids(corpus, options)
    rows = zip(*(ids[column] for column in columns), strict=True)
    longest = np.array([max(map(len, row)) for row in rows])
    detail = f"more than {limit} tokens; the longest has {longest.max()}"
    return finding(name, corpus, np.flatnonzero(longest > limit), detail=detail)


def find_identical_after_truncation(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows whose responses differ, but not in the tokens that fit."""
    if options.response_length is None or len(corpus.responses) < 2:
        return []
    ids = token_ids(corpus, options)
    rows = zip(*(ids[name] for name in corpus.responses), strict=True)
    limit = options.response_length
    found = [
        number
        for number, row in enumerate(rows)
        if len({tuple(r[:limit]) for r in row}) < len(row) == len({*map(tuple, row)})
    ]
    detail = f"equal in the first {limit} tokens"
    return finding("identical_after_truncation", corpus, found, detail=detail)


def statistics(corpus: Corpus, options: Options) -> dict[str, Any]:
    """Returns quantiles and a histogram of the lengths of each column, by unit.

    Returns:
        dict such as `{"chosen": {"characters": {"mean": ..., "median": ..., "histogram": {"edges":
        [...], "counts": [...]}}, "words": ...}}`.
    """
    ids = token_ids(corpus, options)
    found: dict[str, Any] = {}
    for name, texts in corpus.columns.items():
        units = {
            "characters": np.fromiter(map(len, texts), "int64", len(texts)),
            "words": corpus.words[name].counts,
        }
        if name in ids:
            units["tokens"] = np.fromiter(map(len, ids[name]), "int64", len(texts))
        found[name] = {unit: _summary(lengths) for unit, lengths in units.items()}
    return found


def _summary(lengths: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(lengths, [*_QUANTILES.values()])
    edges = np.linspace(0, max(1, np.quantile(lengths, 0.99)), _BINS + 1)
    # What is longer than nearly all is in the last bin.
    counts = np.histogram(np.minimum(lengths, edges[-1]), edges)[0]
    return {
        "mean": round(float(lengths.mean()), 2),
        **{name: round(float(x), 1) for name, x in zip(_QUANTILES, quantiles, strict=True)},
        "histogram": {"edges": np.round(edges, 2).tolist(), "counts": counts.tolist()},
    }
