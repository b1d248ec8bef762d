"""Metrics of compared responses: `y_pred` holds scores, candidate 0 is the preferred one."""

from typing import Any

import keras
from keras import ops

from kerasrlhf.functional import preferences
from kerasrlhf.types import Tensor


@keras.saving.register_keras_serializable("kerasrlhf")
class PreferenceAccuracy(keras.metrics.Mean):
    """Fraction of the rows in which the preferred candidate has the highest score.

    A strict winner counts 1. A tie at the top counts 1 / number of tied candidates, one half for a
    tie of two, so constant scores have the accuracy of guessing. A single candidate, as in
    `rlhf.data.unpaired_preferences`, counts if its score has the sign of its label: above 0 for 1,
    below 0 for 0.

    Args:
        name: str. Name in the logs. Defaults to `"accuracy"`.
        dtype: str or dtype policy. Data type of the result. Defaults to None: that of Keras.

    Example:
        >>> metric = rlhf.metrics.PreferenceAccuracy()
        >>> metric.update_state([0, 0], [[2.0, 1.0], [1.0, 1.0]])
        >>> float(metric.result())
        0.75

    Reference:
        Stiennon et al. 2020, arXiv 2009.01325, section 4.3; Huang et al. 2024, arXiv 2403.17031
        (P16).
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self._direction = "up"  # `mode="auto"` of the Keras callbacks uses it.

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Adds a batch of labels `(batch,)` and scores `(batch, candidates)`."""
        y_pred = ops.convert_to_tensor(y_pred)
        # A single response is compared with its label, several with each other.
        if y_pred.shape[-1] == 1:
            right = preferences.agreement(y_true, y_pred)
        else:
            right = preferences.accuracy(y_pred)
        super().update_state(right, sample_weight)


@keras.saving.register_keras_serializable("kerasrlhf")
class PreferenceMargin(keras.metrics.Mean):
    """Mean lead of the preferred candidate over the best of the others, in units of score.

    Args:
        name: str. Name in the logs. Defaults to `"margin"`.
        dtype: str or dtype policy. Data type of the result. Defaults to None: that of Keras.

    Example:
        >>> metric = rlhf.metrics.PreferenceMargin()
        >>> metric.update_state([0, 0], [[5.0, 1.0, 3.0], [1.0, 2.0, 0.0]])
        >>> float(metric.result())
        0.5

    Reference:
        Huang et al. 2024, arXiv 2403.17031 (P18).
    """

    def __init__(self, name: str = "margin", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self._direction = "up"  # `mode="auto"` of the Keras callbacks uses it.

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Adds a batch of scores `(batch, candidates)`; labels are ignored."""
        super().update_state(preferences.lead(y_pred), sample_weight)
