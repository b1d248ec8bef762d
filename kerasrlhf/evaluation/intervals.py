"""Means with their uncertainty."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and the 95 % confidence interval around it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


def mean_interval(values: Any) -> Interval:
    """Mean and normal 95 % interval, mean ± 1.96 s / sqrt(n).

    Args:
        values: numbers `(n,)`, n at least 2, independent of each other.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    Example:
        >>> str(mean_interval([1.0, 3.0]))
        '2.000 [0.040, 3.960]'
    """
    values = np.asarray(values, "float64").ravel()
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"An interval needs at least two finite values. Received {len(values)} values, "
            f"{int((~np.isfinite(values)).sum())} of them not finite."
        )
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)
