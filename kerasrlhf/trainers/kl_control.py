"""The coefficient of the KL to the reference, and where the KL is applied."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.functional.logprobs import ESTIMATORS
from kerasrlhf.types import require_number

_USUAL = {"reward": "k1", "loss": "k2"}
_OF_LAYERS = ("name", "trainable", "dtype")


class KLController(keras.layers.Layer):
    """The KL coefficient, its place and its estimator; abstract.

    A final class defines `update`. `coef` is a saved variable: a checkpoint of the trainer keeps
    it (M11).

    Args:
        coef: float, at least 0. Score units per nat.
        place: `"reward"`: the KL to the reference is subtracted from the rewards. `"loss"`: the KL
            is a term of the loss. Defaults to None, the algorithm's own choice.
        estimator: `"k1"`, `"k2"` or `"k3"` (`functional.kl`). Defaults to None, the algorithm's own
            choice: in general k1 in the reward, whose gradient is that of the KL of whole
            responses, and k2 in the loss, whose gradient is that of the KL of every token given
            its prefix. The gradient of k3 in the loss is that of `D(reference, policy)`, which
            has a different optimum.

    Raises:
        ValueError: If a value is outside its range, or for k1 in the loss.
    """

    def __init__(
        self,
        coef: float,
        place: str | None = None,
        estimator: str | None = None,
        **kwargs: Any,
    ) -> None:
        # float32 under any global policy: small steps would vanish in bfloat16.
        super().__init__(dtype="float32", **kwargs)
        coef = self._initial_coef = require_number("coef", coef, minimum=0.0)
        if place not in (None, "reward", "loss"):
            raise ValueError(f'`place` must be "reward" or "loss". Received: {place!r}.')
        if estimator is not None and estimator not in ESTIMATORS:
            raise ValueError(
                f"`estimator` must be one of {sorted(ESTIMATORS)}. Received: {estimator!r}."
            )
        self.place, self.estimator, self._initial = place, estimator, coef
        # Reject k1 in the loss here, as far as the place is known.
        if place is not None:
            self.resolve(place)
        # A weight, so that a checkpoint of the trainer saves it (M11).
        self.coef = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(coef), trainable=False, name="coef"
        )
        self.built = True

    def update(self, kl: float, episodes: int) -> None:
        """Adjusts the coefficient after an iteration.

        Args:
            kl: float, nats per sequence over the whole batch of all replicas.
            episodes: int, responses in that batch.
        """
        raise NotImplementedError

    def resolve(self, place: str, estimators: dict[str, str] | None = None) -> tuple[str, str]:
        """Returns place and estimator, with those of the algorithm as defaults.

        Args:
            place: str, the algorithm's own.
            estimators: dict from place to the algorithm's own estimator. Defaults to k1 in the
                reward and k2 in the loss.

        Raises:
            ValueError: For k1 in the loss.

        Example:
            >>> import kerasrlhf as rlhf
            >>> rlhf.FixedKL(0.1, place="loss").resolve("reward")
            ('loss', 'k2')
        """
        place = self.place or place
        estimator = self.estimator or (estimators or _USUAL)[place]
        if place == "loss" and estimator == "k1":
            raise ValueError(
                "k1 in the loss does nothing: its gradient is 0 on average. Use "
                '`estimator="k2"` or `"k3"`, or `place="reward"`.'
            )
        return place, estimator

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments; `coef` is the initial coefficient."""
        config = {"coef": self._initial_coef, "place": self.place}
        return {**super().get_config(), **config, "estimator": self.estimator}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KLController:
        """Returns a controller with the arguments of `get_config`."""
        # `dtype` and `trainable` are fixed by the class.
        return cls(**{name: x for name, x in config.items() if name not in ("dtype", "trainable")})

    def __repr__(self) -> str:
        config = {name: x for name, x in self.get_config().items() if x is not None}
        shown = (f"{name}={config[name]!r}" for name in config if name not in _OF_LAYERS)
        return f"{type(self).__name__}({', '.join(shown)})"


@keras.saving.register_keras_serializable("kerasrlhf")
class FixedKL(KLController):
    """A KL coefficient that does not change.

    Args:
        coef: float, at least 0. Score units per nat.
        place, estimator: as in `KLController`. Default to None, the algorithm's own choice.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> import kerasrlhf as rlhf
        >>> kl = rlhf.FixedKL(0.05)
        >>> kl.update(kl=100.0, episodes=512)
        >>> round(float(kl.coef), 4)
        0.05
    """

    def update(self, kl: float, episodes: int) -> None:
        """Leaves the coefficient as it is."""


@keras.saving.register_keras_serializable("kerasrlhf")
class AdaptiveKL(KLController):
    """A KL coefficient that steers the KL toward a target (details N21, M11).

        error = clip(kl / target - 1, -0.2, 0.2)
        coef <- coef * (1 + error * episodes / horizon)

    Args:
        coef: float, above 0: the initial value. Score units per nat.
        target: float, above 0. Nats per sequence: mean over sequences of the sum over tokens.
        horizon: int or float, above 0. Episodes; a smaller horizon steers faster.
        place, estimator: as in `KLController`. Default to None, the algorithm's own choice.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        With the error at its limit, 512 episodes of 10,000 multiply the coefficient by 1.01024.

        >>> import kerasrlhf as rlhf
        >>> kl = rlhf.AdaptiveKL(0.15, target=6.0, horizon=10_000)
        >>> kl.update(kl=60.0, episodes=512)
        >>> round(float(kl.coef) / 0.15, 5)
        1.01024

    Reference:
        Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.
    """

    def __init__(
        self,
        coef: float,
        target: float,
        horizon: float,
        place: str | None = None,
        estimator: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(require_number("coef", coef, above=0.0), place, estimator, **kwargs)
        self.target = require_number("target", target, above=0.0)
        self.horizon = require_number("horizon", horizon, above=0.0)

    def update(self, kl: float, episodes: int) -> None:
        """Adjusts the coefficient after an iteration.

        Args:
            kl: float, nats per sequence over the whole batch of all replicas.
            episodes: int, responses in that batch.

        Raises:
            ValueError: If `kl` is not finite; the coefficient does not change.
        """
        kl = require_number("kl", kl)
        # N21: the error is clipped, so that one iteration changes the coefficient little.
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        # With more episodes than the horizon the factor could turn negative; 0.1 bounds it.
        self.coef.assign(self.coef.numpy() * max(1.0 + error * episodes / self.horizon, 0.1))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments; `coef` is the initial coefficient."""
        return {**super().get_config(), "target": self.target, "horizon": self.horizon}
