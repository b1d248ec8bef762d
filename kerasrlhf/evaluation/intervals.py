"""Means with confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: float. The mean.
        low: float. Lower end of the interval.
        high: float. Upper end of the interval.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def overlaps(self, other: Interval) -> bool:
        """Returns whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def mean_interval(values: npt.ArrayLike) -> Interval:
    """Computes the mean and its normal 95 % interval, mean ± 1.96 s / sqrt(n).

    Args:
        values: array of numbers, `(n,)`, n at least 2. Independent observations.

    Returns:
        `Interval`, in units of the values.

    Raises:
        ValueError: If there are fewer than two values, or a value is not finite.

    Example:
        >>> str(rlhf.evaluation.mean_interval([1.0, 3.0]))
        '2.000 [0.040, 3.960]'
    """
    values = np.asarray(values, "float64").ravel()
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"An interval needs at least two finite values. Received {len(values)} values, "
            f"{int((~np.isfinite(values)).sum())} of them not finite."
        )
    # Sample standard deviation: the mean is estimated from the same values.
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)
