"""How often, and how surely, a reward model prefers the response that people chose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kerasrlhf.types import require_int

_NORMAL = 1.96


class PairAccuracy(NamedTuple):
    """Share of the pairs whose chosen response leads, with its 95 % interval (Wilson's)."""

    pairs: int
    accuracy: float
    low: float
    high: float


class CalibrationBin(NamedTuple):
    """Pairs of similar score difference.

    difference: mean size of the difference, in units of score.
    promised: mean of sigmoid(difference), the accuracy that a Bradley-Terry model stands for.
    pairs, accuracy, low, high: as in `PairAccuracy`.
    """

    difference: float
    promised: float
    pairs: int
    accuracy: float
    low: float
    high: float


def preference_accuracy(scores_chosen: Any, scores_rejected: Any) -> PairAccuracy:
    """Accuracy over all pairs; a tie counts one half.

    Args:
        scores_chosen: numbers `(pairs,)`.
        scores_rejected: numbers `(pairs,)`.

    Raises:
        ValueError: no pairs, lengths that differ, or scores that are not finite.

    Example:
        >>> preference_accuracy([2.0, 1.0, 0.0, 3.0], [1.0, 1.0, 5.0, 1.0])[:2]
        (4, 0.625)
    """
    return _accuracy(_leads(scores_chosen, scores_rejected))


def accuracy_by_group(
    scores_chosen: Any, scores_rejected: Any, groups: Iterable
) -> dict[Any, PairAccuracy]:
    """Accuracy of each group of pairs, such as each source or each length (detail P16).

    Args:
        scores_chosen: numbers `(pairs,)`.
        scores_rejected: numbers `(pairs,)`.
        groups: names `(pairs,)`, anything that can be a key of a dict.

    Returns:
        Dict from each name, in the order of the names' texts, to its `PairAccuracy`.

    Raises:
        ValueError: as `preference_accuracy`, or another number of names than of pairs.

    Example:
        >>> groups = accuracy_by_group([2.0, 1.0, 4.0], [1.0, 3.0, 0.0], ["news", "mail", "news"])
        >>> [(name, group.pairs, group.accuracy) for name, group in groups.items()]
        [('mail', 1, 0.0), ('news', 2, 1.0)]

    Reference:
        Huang et al. 2024, arXiv 2403.17031: accuracy by batch, split and confidence of the labels.
    """
    lead, groups = _leads(scores_chosen, scores_rejected), list(groups)
    if len(groups) != len(lead):
        raise ValueError(
            f"Expected one group a pair. Received {len(lead)} pairs and {len(groups)} groups."
        )
    return {
        name: _accuracy(lead[[group == name for group in groups]])
        for name in sorted(dict.fromkeys(groups), key=str)
    }


def calibration(scores_chosen: Any, scores_rejected: Any, bins: int = 5) -> list[CalibrationBin]:
    """Accuracy against the size of the score difference (detail P18).

    Of a calibrated reward model, pairs whose scores differ by `d` are ordered as people order them
    in a share of `sigmoid(d)`. Pass scores on the scale that the Bradley-Terry loss was minimized
    at: a gain that was set afterward changes the differences.

    Args:
        scores_chosen: numbers `(pairs,)`.
        scores_rejected: numbers `(pairs,)`.
        bins: int, at least 1. Bins of equal numbers of pairs, as far as that is possible.

    Returns:
        List of `CalibrationBin`, from small differences to large ones.

    Raises:
        ValueError: as `preference_accuracy`, or `bins` below 1.

    Example:
        >>> table = calibration([0.5, 3.0, 0.0, 4.0], [0.0, 0.0, 0.5, 0.0], bins=2)
        >>> [(row.difference, round(row.promised, 2), row.accuracy) for row in table]
        [(0.5, 0.62, 0.5), (3.5, 0.97, 1.0)]

    Reference:
        Huang et al. 2024, arXiv 2403.17031 (the calibration plot); Stiennon et al. 2020, arXiv
        2009.01325.
    """
    lead = _leads(scores_chosen, scores_rejected)
    size = np.abs(lead)
    parts = np.array_split(
        np.argsort(size, kind="stable"), min(require_int("bins", bins, minimum=1), len(lead))
    )
    return [
        CalibrationBin(
            float(size[part].mean()),
            float((1.0 / (1.0 + np.exp(-size[part]))).mean()),
            *_accuracy(lead[part]),
        )
        for part in parts
    ]


def _leads(scores_chosen, scores_rejected):
    chosen, rejected = (np.asarray(x, "float64").ravel() for x in (scores_chosen, scores_rejected))
    if len(chosen) != len(rejected) or not len(chosen):
        raise ValueError(
            "Expected as many scores of chosen as of rejected responses, and at least one. "
            f"Received {len(chosen)} and {len(rejected)}."
        )
    if not np.isfinite(chosen - rejected).all():
        bad = np.flatnonzero(~np.isfinite(chosen - rejected))
        raise ValueError(
            f"Scores must be finite. {len(bad)} of {len(chosen)} pairs are not; first: {bad[0]}."
        )
    return chosen - rejected


def _accuracy(lead):
    n, z = len(lead), _NORMAL
    share = float(np.mean((lead > 0) + 0.5 * (lead == 0)))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # Rounding can put the limits of an accuracy of 0 or 1 a hair outside.
    return PairAccuracy(n, share, max(middle - half, 0.0), min(middle + half, 1.0))
