"""Errors and warnings for runs with wrong or infinite numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

_REMEDIES = (
    "Lower the learning rate or `update_epochs`, or set `global_clipnorm` of the optimizer. "
    "`callbacks.Resume` and checkpoints have the states before."
)
# Mean |ratio - 1| that rounding alone may cause in a first update.
_RATIO_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}


class SkippedUpdates:
    """Counts updates in a row that were skipped because a gradient or a loss was not finite.

    Args:
        limit: int. This many in a row end the run.

    Example:
        >>> skipped = SkippedUpdates(limit=2)
        >>> skipped.after({"policy/skipped": 1.0}, iteration=0)
        >>> skipped.after({"policy/skipped": 0.0}, iteration=0)
        >>> skipped.in_a_row
        0
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.in_a_row = limit, 0

    def after(self, logs: dict[str, Any], iteration: int) -> None:
        """Counts an update.

        Args:
            logs: dict of its statistics; `policy/skipped` is 1 where it was skipped.
            iteration: int, for the message.

        Raises:
            FloatingPointError: If it is the `limit`-th skipped update in a row.
        """
        self.in_a_row = self.in_a_row + 1 if logs["policy/skipped"] else 0
        if self.in_a_row >= self.limit:
            # Start from 0 if the user continues after the error.
            self.in_a_row = 0
            name = first_not_finite(logs)
            what = f"`{name}` is {logs[name]}" if name else "the gradient is not finite"
            raise FloatingPointError(
                f"{self.limit} updates in a row were skipped, the last one in iteration "
                f"{iteration}, because {what}. {_REMEDIES}"
            )


def first_not_finite(statistics: dict[str, float]) -> str | None:
    """Returns the name of the first statistic that is not finite, or None.

    Example:
        >>> first_not_finite({"objective/score": 1.0, "objective/kl": float("nan")})
        'objective/kl'
    """
    return next((name for name, x in statistics.items() if not math.isfinite(float(x))), None)


def check_rollout(statistics: dict[str, float], iteration: int) -> None:
    """Raises a `FloatingPointError` for a rollout with statistics that are not finite.

    Args:
        statistics: dict from `rollout_statistics`.
        iteration: int, for the message.
    """
    # Not what reward functions log: they may log any number.
    own = {name: x for name, x in statistics.items() if name.startswith("objective/")}
    name = first_not_finite(own)
    if name is not None:
        raise FloatingPointError(
            f"`{name}` of the sampled responses is {statistics[name]} in iteration {iteration}: "
            f"the policy's numbers are no longer finite. {_REMEDIES}"
        )


def check_weights(are_finite: bool, iteration: int) -> None:
    """Raises a `FloatingPointError` for weights that are not finite after an iteration."""
    if not are_finite:
        raise FloatingPointError(
            f"Weights of the actor are not finite after iteration {iteration}. {_REMEDIES}"
        )


def check_first_ratio(logs: dict[str, Any], dtype: str, iteration: int) -> None:
    """Warns if the ratio of the first update of a rollout is not 1 (S5).

    Args:
        logs: dict of the statistics of that update; `policy/ratio_error` is its mean |ratio - 1|.
        dtype: str, the compute dtype of the actor.
        iteration: int, for the message.
    """
    if logs["policy/skipped"]:
        return
    error = float(logs["policy/ratio_error"])
    # `not <=` instead of `>`, to catch NaN too.
    if not error <= _RATIO_TOLERANCE.get(dtype, 0.1):
        warnings.warn(
            "The first update of an iteration must see the policy that sampled: ratio 1. Its mean "
            f"|ratio - 1| is {error:.3g} in iteration {iteration}. Sampling and training disagree "
            "on log-probabilities; the updates do not follow the gradient of the objective.",
            RuntimeWarning,
            stacklevel=2,
        )
