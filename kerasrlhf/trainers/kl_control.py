"""How strongly a policy is held to its reference."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.types import require_number


class FixedKL(keras.layers.Layer):
    """A KL coefficient that stays as it is.

    Args:
        coef: float, at least 0. Score units per nat.

    Example:
        >>> kl = FixedKL(0.05)
        >>> kl.update(kl=100.0, episodes=512)
        >>> round(float(kl.coef), 4)
        0.05
    """

    def __init__(self, coef: float, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        coef = require_number("coef", coef, minimum=0.0)
        self.coef = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(coef), trainable=False, name="coef"
        )
        self.built = True

    def update(self, kl: float, episodes: int) -> None:
        """Takes note of an iteration's KL; a fixed coefficient does not change."""


class AdaptiveKL(FixedKL):
    """A KL coefficient that steers the KL toward a target (detail N21).

        error = clip(kl / target - 1, -0.2, 0.2)
        coef <- coef * (1 + error * episodes / horizon)

    `coef` is a saved variable: a checkpoint of the trainer keeps it (M11).

    Args:
        coef: float, above 0: where it starts. Score units per nat.
        target: float, above 0. Nats a sequence: mean over sequences of the sum over tokens.
        horizon: int or float, above 0. Episodes; smaller steers faster.

    Raises:
        ValueError: a value outside its range.

    Example:
        With the error at its limit, 512 episodes of 10,000 multiply the coefficient by 1.01024.

        >>> kl = AdaptiveKL(0.15, target=6.0, horizon=10_000)
        >>> kl.update(kl=60.0, episodes=512)
        >>> round(float(kl.coef) / 0.15, 5)
        1.01024

    Reference:
        Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """

    def __init__(self, coef: float, target: float, horizon: float, **kwargs: Any):
        super().__init__(require_number("coef", coef, above=0.0), **kwargs)
        self.target = require_number("target", target, above=0.0)
        self.horizon = require_number("horizon", horizon, above=0.0)

    def update(self, kl: float, episodes: int) -> None:
        """Moves the coefficient after an iteration.

        Args:
            kl: float, nats a sequence over the whole batch of all replicas.
            episodes: int, responses in that batch.

        Raises:
            ValueError: If `kl` is not finite; the coefficient stays as it is.
        """
        kl = require_number("kl", kl)
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        # However long the iteration, the coefficient stays positive.
        self.coef.assign(self.coef.numpy() * max(1.0 + error * episodes / self.horizon, 0.1))
