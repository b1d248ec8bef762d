"""`keras.losses.Loss` of compared responses, to compile reward models and DPO with."""

import keras

from kerasrlhf.functional import preferences


@keras.saving.register_keras_serializable("kerasrlhf")
class BradleyTerry(keras.losses.Loss):
    """Pairwise preference loss of score rows whose candidate 0 is the preferred one.

    `mean over j > 0 of -log sigmoid(y_pred[0] - y_pred[j] - margin)` per row; Keras reduces the
    rows. `y_true` is the index of the preferred candidate, always 0, and is not read.

    Args:
        margin: Number by which the preferred score shall lead, or None for 0.
        name: Name of the loss.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Example:
        >>> round(float(BradleyTerry()([0, 0], [[1.0, 1.0], [3.0, 3.0]])), 4)  # log 2
        0.6931

    Reference:
        Stiennon et al. 2020, arXiv 2009.01325, section 3.4; Huang et al. 2024, arXiv 2403.17031
        (P11).
    """

    def __init__(self, margin: float | None = None, name: str = "bradley_terry", **kwargs):
        super().__init__(name=name, **kwargs)
        self.margin = margin

    def call(self, y_true, y_pred):
        return preferences.bradley_terry(y_pred, self.margin)

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}


@keras.saving.register_keras_serializable("kerasrlhf")
class BestOfK(keras.losses.Loss):
    """Cross entropy of picking candidate 0 among all candidates.

    `-log softmax(y_pred)[0]` per row; Keras reduces the rows. `y_true` is the index of the
    preferred candidate, always 0, and is not read.

    Args:
        name: Name of the loss.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Example:
        >>> round(float(BestOfK()([0], [[2.0, 2.0, 2.0, 2.0]])), 4)  # log 4
        1.3863

    Reference:
        Ziegler et al. 2019, arXiv 1909.08593, eq. 1.
    """

    def __init__(self, name: str = "best_of_k", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        return preferences.best_of_k(y_pred)
