"""Metrics of compared responses: `y_pred` is scores, candidate 0 is the preferred one."""

import keras
from keras import ops

from kerasrlhf.functional import preferences


@keras.saving.register_keras_serializable("kerasrlhf")
class PreferenceAccuracy(keras.metrics.Mean):
    """Share of the rows in which the preferred candidate has the highest score.

    A strict winner counts 1. A tie at the top counts 1 / number of candidates in it, one half for
    a tie of two, so that constant scores reach the accuracy of guessing. A candidate alone, as in
    `data.unpaired_preferences`, counts where its score has the sign that its label says: above 0
    for 1, below it for 0.

    Args:
        name: Name in the logs.
        dtype: Data type of the result.

    Example:
        >>> metric = PreferenceAccuracy()
        >>> metric.update_state([0, 0], [[2.0, 1.0], [1.0, 1.0]])
        >>> float(metric.result())
        0.75

    Reference:
        Stiennon et al. 2020, arXiv 2009.01325, section 4.3; Huang et al. 2024, arXiv 2403.17031
        (P16).
    """

    def __init__(self, name: str = "accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self._direction = "up"  # what `mode="auto"` of the Keras callbacks reads

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_pred = ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] == 1:
            right = preferences.agreement(y_true, y_pred)
        else:
            right = preferences.accuracy(y_pred)
        super().update_state(right, sample_weight)


@keras.saving.register_keras_serializable("kerasrlhf")
class PreferenceMargin(keras.metrics.Mean):
    """Mean lead of the preferred candidate over the best of the others, in units of score.

    Args:
        name: Name in the logs.
        dtype: Data type of the result.

    Example:
        >>> metric = PreferenceMargin()
        >>> metric.update_state([0, 0], [[5.0, 1.0, 3.0], [1.0, 2.0, 0.0]])
        >>> float(metric.result())
        0.5

    Reference:
        Huang et al. 2024, arXiv 2403.17031 (P18).
    """

    def __init__(self, name: str = "margin", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self._direction = "up"

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(preferences.lead(y_pred), sample_weight)
