"""Accuracy of a reward model on preference pairs, and calibration of its scores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerasrlhf import intervals
from kerasrlhf.types import require_int


class PairAccuracy(NamedTuple):
    """Fraction of the pairs whose chosen response leads, with its 95 % Wilson interval.

    Attributes:
        pairs: int. Number of pairs.
        accuracy: float, in [0, 1]. Fraction of the pairs; a tie counts one half.
        low: float. Lower end of the interval.
        high: float. Upper end of the interval.
    """

    pairs: int
    accuracy: float
    low: float
    high: float


class CalibrationBin(NamedTuple):
    """Pairs with a similar score difference.

    Attributes:
        difference: float, in units of score. Mean absolute difference.
        promised: float. Mean of sigmoid(difference), the accuracy under the Bradley-Terry model.
        pairs: int. Number of pairs.
        accuracy: float, in [0, 1]. Fraction of the pairs whose chosen response leads.
        low: float. Lower end of the 95 % interval of `accuracy`.
        high: float. Upper end of the interval.
    """

    difference: float
    promised: float
    pairs: int
    accuracy: float
    low: float
    high: float


def preference_accuracy(
    scores_chosen: npt.ArrayLike, scores_rejected: npt.ArrayLike
) -> PairAccuracy:
    """Computes the accuracy over all pairs; a tie counts one half.

    Args:
        scores_chosen: array of numbers, `(pairs,)`, in units of score. Scores of the chosen
            responses.
        scores_rejected: array of numbers, `(pairs,)`, in units of score. Scores of the rejected
            ones.

    Returns:
        `PairAccuracy`.

    Raises:
        ValueError: If there are no pairs, the lengths differ, or a score is not finite.

    Example:
        >>> chosen, rejected = [2.0, 1.0, 0.0, 3.0], [1.0, 1.0, 5.0, 1.0]
        >>> found = rlhf.evaluation.preference_accuracy(chosen, rejected)
        >>> found.pairs, found.accuracy
        (4, 0.625)
    """
    return _accuracy(_leads(scores_chosen, scores_rejected))


def accuracy_by_group(
    scores_chosen: npt.ArrayLike, scores_rejected: npt.ArrayLike, groups: Iterable[Hashable]
) -> dict[Hashable, PairAccuracy]:
    """Computes the accuracy of each group of pairs, such as each source or length (detail P16).

    Args:
        scores_chosen: array of numbers, `(pairs,)`, in units of score. Scores of the chosen
            responses.
        scores_rejected: array of numbers, `(pairs,)`, in units of score. Scores of the rejected
            ones.
        groups: iterable of hashable names, `(pairs,)`. The group of each pair.

    Returns:
        Dict from each name, sorted by its text, to its `PairAccuracy`.

    Raises:
        ValueError: If the scores are not as in `preference_accuracy`, or the numbers of groups and
            pairs differ.

    Example:
        >>> groups = rlhf.evaluation.accuracy_by_group(
        ...     [2.0, 1.0, 4.0], [1.0, 3.0, 0.0], ["news", "mail", "news"])
        >>> [(name, group.pairs, group.accuracy) for name, group in groups.items()]
        [('mail', 1, 0.0), ('news', 2, 1.0)]

    Reference:
        Huang et al. 2024, arXiv 2403.17031: accuracy by batch, split and confidence of the labels.
    """
    lead, names = _leads(scores_chosen, scores_rejected), list(groups)
    if len(names) != len(lead):
        raise ValueError(
            f"Expected one group per pair. Received {len(lead)} pairs and {len(names)} groups."
        )
    return {
        name: _accuracy(lead[[group == name for group in names]])
        for name in sorted(dict.fromkeys(names), key=str)
    }


def calibration(
    scores_chosen: npt.ArrayLike, scores_rejected: npt.ArrayLike, bins: int = 5
) -> list[CalibrationBin]:
    """Computes the accuracy as a function of the score difference (detail P18).

    A calibrated reward model orders a fraction `sigmoid(d)` of the pairs whose scores differ by `d`
    as people do. Pass scores on the scale of the Bradley-Terry loss: a gain set after training
    changes the differences.

    Args:
        scores_chosen: array of numbers, `(pairs,)`, in units of score. Scores of the chosen
            responses.
        scores_rejected: array of numbers, `(pairs,)`, in units of score. Scores of the rejected
            ones.
        bins: int, at least 1. Number of bins, of nearly equal numbers of pairs. Defaults to 5.

    Returns:
        List of `CalibrationBin`, from small differences to large ones.

    Raises:
        ValueError: If the scores are not as in `preference_accuracy`, or `bins` is below 1.

    Example:
        >>> bins = rlhf.evaluation.calibration([0.5, 3.0, 0.0, 4.0], [0.0, 0.0, 0.5, 0.0], bins=2)
        >>> [(row.difference, round(row.promised, 2), row.accuracy) for row in bins]
        [(0.5, 0.62, 0.5), (3.5, 0.97, 1.0)]

    Reference:
        Huang et al. 2024, arXiv 2403.17031 (the calibration plot); Stiennon et al. 2020, arXiv
        2009.01325.
    """
    lead = _leads(scores_chosen, scores_rejected)
    size = np.abs(lead)
    # Sort pairs by the size of the difference, and split them into equal bins.
    parts = np.array_split(
        np.argsort(size, kind="stable"), min(require_int("bins", bins, minimum=1), len(lead))
    )
    return [
        CalibrationBin(
            float(size[part].mean()),
            # The Bradley-Terry model promises `sigmoid(difference)`.
            float((1.0 / (1.0 + np.exp(-size[part]))).mean()),
            *_accuracy(lead[part]),
        )
        for part in parts
    ]


def _leads(scores_chosen: npt.ArrayLike, scores_rejected: npt.ArrayLike) -> np.ndarray:
    chosen, rejected = (np.asarray(x, "float64").ravel() for x in (scores_chosen, scores_rejected))
    if len(chosen) != len(rejected) or not len(chosen):
        raise ValueError(
            "Expected as many scores of chosen as of rejected responses, and at least one. "
            f"Received {len(chosen)} and {len(rejected)}."
        )
    # The difference of two infinite scores is NaN.
    if not np.isfinite(chosen - rejected).all():
        bad = np.flatnonzero(~np.isfinite(chosen - rejected))
        raise ValueError(
            f"Scores must be finite. {len(bad)} of {len(chosen)} pairs are not; first: {bad[0]}."
        )
    return chosen - rejected


def _accuracy(lead: np.ndarray) -> PairAccuracy:
    # A tie counts one half.
    fraction = float(np.mean((lead > 0) + 0.5 * (lead == 0)))
    return PairAccuracy(len(lead), *intervals.fraction_interval(fraction, len(lead)))
