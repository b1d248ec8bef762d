"""Means and fractions with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_NORMAL = 1.96


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
    half = _NORMAL * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def fraction_interval(fraction: float, count: int) -> Interval:
    """Computes Wilson's 95 % interval of a fraction.

    Args:
        fraction: float, in [0, 1].
        count: int, at least 1. Independent observations that it is a fraction of.

    Returns:
        `Interval`, within [0, 1].

    Example:
        >>> str(rlhf.evaluation.fraction_interval(0.5, 100))
        '0.500 [0.404, 0.596]'

    Reference:
        Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    n, z = count, _NORMAL
    middle = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (fraction * (1 - fraction) / n + z * z / (4 * n * n)) ** 0.5
    # Rounding can put the limits of a fraction of 0 or 1 slightly outside [0, 1].
    return Interval(fraction, max(middle - half, 0.0), min(middle + half, 1.0))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], rows: int, resamples: int = 200, seed: int = 0
) -> Interval:
    """Computes a number of a whole set of rows and its 95 % interval, by the percentile bootstrap.

    For numbers that are not means, such as an F1 score.

    Args:
        statistic: callable from row numbers, int `(rows,)`, some of them repeated, to a float.
        rows: int, at least 2. Independent observations.
        resamples: int, at least 2. How many sets of rows are sampled with replacement. Defaults to
            200.
        seed: int. Defaults to 0.

    Raises:
        ValueError: If there are fewer than two rows.

    Example:
        >>> values = np.array([0.0, 1.0] * 50)
        >>> interval = rlhf.evaluation.bootstrap_interval(lambda rows: values[rows].mean(), 100)
        >>> interval.mean, bool(0.35 < interval.low < 0.45), bool(0.55 < interval.high < 0.65)
        (0.5, True, True)

    Reference:
        Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    if rows < 2:
        raise ValueError(f"An interval needs at least two rows. Received {rows}.")
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, rows, rows)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(statistic(np.arange(rows))), float(low), float(high))
