"""Responses that no reward applies to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from kerasrlhf.rollouts import calling


def warn(unscored: np.ndarray, functions: Sequence[Callable]) -> None:
    """Warns about the first responses without a score.

    Args:
        unscored: bool `(batch,)`.
        functions: list of callables that returned None for them.
    """
    names = ", ".join(f"`{calling.name_of(function)}`" for function in functions)
    warnings.warn(
        f"{unscored.sum()} of {len(unscored)} responses have no score: {names} returned None for "
        "them. They get the mean score of their group, or of the batch, so that they count as "
        "neither good nor bad. The statistic `objective/unscored` is their fraction; this warning "
        "appears once.",
        UserWarning,
        stacklevel=3,
    )


def filled(scores: np.ndarray, applies: np.ndarray, group_size: int = 1) -> np.ndarray:
    """Returns scores in which responses without a score get the mean of the others.

    The mean is that of the group, or of the batch if the group has no score, or 0.

    Args:
        scores: float32 `(batch,)`.
        applies: bool `(batch,)`. True where there is a score.
        group_size: int, at least 1. Consecutive rows of a group. Defaults to 1.

    Example:
        >>> scores, applies = np.array([1.0, 0.0, 0.0, 0.0]), np.array([True, False, False, False])
        >>> filled(scores, applies, group_size=2).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    # One row per group, `(groups, group_size)`.
    groups, known = (x.reshape(-1, group_size) for x in (scores, applies))
    batch_mean = scores[applies].mean() if applies.any() else 0.0
    counts = known.sum(axis=1)
    sums = np.where(known, groups, 0.0).sum(axis=1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), batch_mean)
    return np.where(known, groups, means[:, None]).reshape(-1).astype("float32")
