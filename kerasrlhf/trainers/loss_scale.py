"""The factor of a loss whose gradients would vanish in float16."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("kerasrlhf")
class LossScale(keras.layers.Layer):
    """A dynamic loss scale: as large as the range of float16 allows.

    The loss is multiplied by `scale`, and its gradients are divided by it, in float32. An update
    whose gradients are not finite is skipped and halves the scale; after `interval` updates in a
    row that were made, it is doubled. Powers of two change no digit.

    Both variables are saved with the trainer.

    Args:
        initial: float, at least 1. Defaults to 32768.
        interval: int, at least 1. Updates until the scale is doubled. Defaults to 2000.

    Example:
        >>> scale = LossScale(initial=8.0, interval=2)
        >>> scale.update(is_sound=False), float(scale.scale.numpy())
        (True, 4.0)
        >>> for _ in range(2):
        ...     _ = scale.update(is_sound=True)
        >>> float(scale.scale.numpy())
        8.0

    Reference:
        Micikevicius et al. 2018, "Mixed Precision Training" (arXiv 1710.03740), section 3.2.
    """

    LARGEST = 2.0**24

    def __init__(self, initial: float = 2.0**15, interval: int = 2000, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.initial, self.interval = initial, interval
        self.scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(initial),
            trainable=False,
            name="scale",
        )
        self.made = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="made"
        )
        self.built = True

    def update(self, is_sound: bool) -> bool:
        """Adjusts the scale after an update.

        Args:
            is_sound: bool. Whether gradients and losses were finite.

        Returns:
            Whether the scale was lowered: the update failed because of it, as far as is known.
        """
        scale, made = float(self.scale.numpy()), int(self.made.numpy()) + 1
        if not is_sound:
            self.made.assign(0)
            self.scale.assign(max(1.0, scale / 2))
            return scale > 1.0
        if made >= self.interval:
            self.scale.assign(min(self.LARGEST, 2 * scale))
            made = 0
        self.made.assign(made)
        return False

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"initial": self.initial, "interval": self.interval, "name": self.name}
