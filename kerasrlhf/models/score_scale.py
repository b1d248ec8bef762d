"""The gain and bias that bring scores to a known scale."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasrlhf.types import Tensor


@keras.saving.register_keras_serializable("kerasrlhf")
class ScoreScale(keras.layers.Layer):
    """Multiplies scores by a gain and adds a bias; neither is trained (detail N9).

    The gain starts at 1 and the bias at 0.

    Call arguments:
        scores: float32, any shape. Raw scores.

    Returns:
        Float32 of the same shape: `gain * scores + bias`.

    Example:
        >>> scale = ScoreScale()
        >>> scale.rescale(np.array([1.0, 3.0]), mean=0.0, std=1.0)
        (1.0, -2.0)
        >>> scale(np.array([1.0, 3.0], "float32")).numpy().tolist()
        [-1.0, 1.0]
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.gain = self.add_weight(shape=(), initializer="ones", trainable=False, name="gain")
        self.bias = self.add_weight(shape=(), initializer="zeros", trainable=False, name="bias")
        self.built = True

    def call(self, scores: Tensor) -> Tensor:
        """Computes `gain * scores + bias`."""
        return self.gain * scores + self.bias

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the scores."""
        return input_shape

    def rescale(self, scores: np.ndarray, mean: float, std: float | None) -> tuple[float, float]:
        """Sets gain and bias so that scores get a mean and a standard deviation.

        Args:
            scores: float32, `(rows,)`. Scores that were computed with the present gain and bias.
            mean: float. Mean of these scores under the new gain and bias.
            std: float, above 0, or None. Their standard deviation; None keeps the gain.

        Returns:
            The new gain and bias.

        Raises:
            ValueError: If all scores are equal and `std` is not None.
        """
        gain, bias = float(self.gain.numpy()), float(self.bias.numpy())
        # Undo the present scale, so that calling twice has the same result as once (N9).
        raw = (scores - bias) / gain
        if std is not None:
            if not raw.std() > 0:
                raise ValueError(
                    f"All {len(raw)} scores are equal, so no gain brings them to a standard "
                    f"deviation of {std}. Pass more prompts, or `std=None` to move the mean alone."
                )
            gain = std / float(raw.std())
        self.gain.assign(gain)
        self.bias.assign(mean - gain * float(raw.mean()))
        return float(self.gain.numpy()), float(self.bias.numpy())
