"""How well single features of responses tell which one was chosen."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kerasrlhf.data.auditing.corpus import Corpus
from kerasrlhf.data.auditing.findings import Finding, finding
from kerasrlhf.data.auditing.options import Options
from kerasrlhf.intervals import Interval, fraction_interval

# Fewer pairs say little, and accuracies closer to 1/2 do little harm.
LEAST_PAIRS = 50
_NEAR_HALF = 0.05
_POSITIONS = ("position", "order", "chosen_position", "chosen_index")

_LIST = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} \S", re.MULTILINE)
_BOLD = re.compile(r"\*\*\S[^*\n]*\*\*|__\S[^_\n]*__")
_CODE = re.compile(r"```|`[^`\n]+`")
_MARKS: dict[str, Callable[[str], int]] = {
    "list": lambda text: len(_LIST.findall(text)),
    "heading": lambda text: len(_HEADING.findall(text)) if "#" in text else 0,
    "bold": lambda text: len(_BOLD.findall(text)) if "**" in text or "__" in text else 0,
    "code": lambda text: len(_CODE.findall(text)) if "`" in text else 0,
    "exclamation": lambda text: text.count("!"),
    "question": lambda text: text.count("?"),
}
FEATURES = ("length", "overlap", *_MARKS)


class Bias(NamedTuple):
    """How well "the response with more of it is chosen" predicts the choice.

    Attributes:
        pairs: int. Pairs whose responses differ in the feature.
        accuracy: `Interval`, 95 %. The fraction of them whose chosen response has more of it.
        all_pairs: float. The accuracy over all pairs; where there is no difference one half counts.
    """

    pairs: int
    accuracy: Interval
    all_pairs: float

    @property
    def is_notable(self) -> bool:
        """Whether the interval is clearly away from one half."""
        low, high = 0.5 - _NEAR_HALF, 0.5 + _NEAR_HALF
        return self.pairs >= LEAST_PAIRS and (self.accuracy.low > high or self.accuracy.high < low)


def values(feature: str, corpus: Corpus, column: str) -> np.ndarray:
    """Returns the feature of each text of a column, float64 `(rows,)`."""
    texts = corpus.columns[column]
    if feature == "overlap":
        return _overlap(corpus, column)
    count = len if feature == "length" else _MARKS[feature]
    return np.fromiter(map(count, texts), "float64", len(texts))


def _overlap(corpus: Corpus, column: str) -> np.ndarray:
    """Returns the fraction of the distinct words of a text that are in its prompt."""
    prompts, texts = corpus.words["prompt"], corpus.words[column]
    found = np.zeros(len(texts))
    for row in range(len(texts)):
        own = {*texts[row].tolist()}
        found[row] = len(own.intersection(prompts[row].tolist())) / max(len(own), 1)
    return found


def leads(feature: str, corpus: Corpus) -> np.ndarray | None:
    """Returns by how much of a feature chosen responses have more, or None if there is no such."""
    if corpus.kind != "preferences" or (feature == "overlap" and "prompt" not in corpus.columns):
        return None
    if feature not in corpus.leads:
        chosen, rejected = (values(feature, corpus, name) for name in ("chosen", "rejected"))
        corpus.leads[feature] = chosen - rejected
    return corpus.leads[feature]


def bias_of(lead: np.ndarray) -> Bias | None:
    """Returns the `Bias` of a feature, or None if no pair differs in it.

    Example:
        >>> import numpy as np
        >>> bias = bias_of(np.array([2.0, 1.0, -1.0, 0.0]))
        >>> bias.pairs, round(bias.accuracy.mean, 3), bias.all_pairs
        (3, 0.667, 0.625)
    """
    pairs = int((lead != 0).sum())
    if not pairs:
        return None
    wins = int((lead > 0).sum())
    all_pairs = (wins + 0.5 * (len(lead) - pairs)) / len(lead)
    return Bias(pairs, fraction_interval(wins / pairs, pairs), all_pairs)


def find_bias(feature: str, corpus: Corpus, options: Options) -> list[Finding]:
    """Finds whether a feature tells which response is chosen, and the pairs in which it does."""
    lead = leads(feature, corpus)
    bias = None if lead is None else bias_of(lead)
    if lead is None or bias is None or not bias.is_notable:
        return []
    prefers_more = bias.accuracy.mean > 0.5
    rows = np.flatnonzero(lead > 0 if prefers_more else lead < 0)
    detail = (
        f"the response with {'more' if prefers_more else 'less'} of it is chosen in "
        f"{_percent(fraction_interval(len(rows) / bias.pairs, bias.pairs))} of {bias.pairs} pairs "
        "that differ"
    )
    return finding(f"{feature}_bias", corpus, rows, detail=detail)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def find_position_bias(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds whether the response shown in one of two places is chosen more often."""
    column, counts = positions(corpus, options)
    if len(counts) != 2:
        return []
    (name, count), (_, other) = counts.most_common()
    bias = bias_of(np.repeat([1.0, -1.0], [count, other]))
    if bias is None or not bias.is_notable:
        return []
    rows = [i for i, row in enumerate(corpus.records) if _value(row.get(column)) == name]
    detail = f"{column}={name} is chosen in {_percent(bias.accuracy)} of {bias.pairs} pairs"
    return finding("position_bias", corpus, rows, detail=detail)


def positions(corpus: Corpus, options: Options) -> tuple[str, collections.Counter[str]]:
    """Returns the column that says where the chosen response was shown, and counts its values.

    Raises:
        ValueError: If the named column is missing.
    """
    if corpus.kind != "preferences" or options.position is None:
        return "", collections.Counter()
    names = _POSITIONS if options.position == "auto" else (options.position,)
    column = next((name for name in names if any(name in row for row in corpus.records)), None)
    if column is None:
        if options.position == "auto":
            return "", collections.Counter()
        raise ValueError(f"No record has the column `position={options.position!r}`.")
    found = (_value(row[column]) for row in corpus.records if row.get(column) is not None)
    return column, collections.Counter(found)


def _value(value: object) -> str:
    return str(value).strip().lower()


def statistics(corpus: Corpus) -> dict[str, Any]:
    """Returns the pairs and accuracy of each feature that some pair differs in."""
    found = {}
    for feature in FEATURES:
        lead = leads(feature, corpus)
        bias = None if lead is None else bias_of(lead)
        if bias is not None:
            found[feature] = {
                "pairs": bias.pairs,
                "accuracy": round(bias.accuracy.mean, 4),
                "low": round(bias.accuracy.low, 4),
                "high": round(bias.accuracy.high, 4),
                "accuracy_all_pairs": round(bias.all_pairs, 4),
            }
    return found
