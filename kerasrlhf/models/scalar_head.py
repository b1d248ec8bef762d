"""One number per hidden state: the value head and the score head."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasrlhf.types import Tensor


@keras.saving.register_keras_serializable("kerasrlhf")
class ScalarHead(keras.layers.Layer):
    """Maps hidden states linearly to one number each (detail N1).

    Args:
        stddev: float, at least 0, or `"score"`. Standard deviation of the initial kernel; 0 starts
            at zero, as a value head does (N11), and `"score"` is 1 / sqrt(width + 1), as for a
            reward head (N8). Defaults to 0.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        hidden: `(..., width)`, any float dtype.

    Returns:
        Float32 `(...)`.

    Example:
        >>> import numpy as np
        >>> head = ScalarHead()
        >>> head(np.ones((2, 3, 8), "float32")).shape
        TensorShape([2, 3])
    """

    def __init__(self, stddev: float | str = 0.0, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.stddev = stddev

    def build(self, input_shape: tuple) -> None:
        """Creates kernel and bias."""
        width = int(input_shape[-1])
        stddev = (width + 1) ** -0.5 if self.stddev == "score" else self.stddev
        initializer = keras.initializers.RandomNormal(stddev=stddev) if stddev else "zeros"
        self.kernel = self.add_weight(shape=(width,), initializer=initializer, name="kernel")
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias")

    def call(self, hidden: Tensor) -> Tensor:
        """Computes one number per hidden state."""
        # In float32 whatever the trunk computes in: bfloat16 has too few digits for scores.
        hidden = ops.cast(hidden, "float32")
        return ops.matmul(hidden, self.kernel) + self.bias

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the hidden states without their last axis."""
        return input_shape[:-1]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "stddev": self.stddev}
