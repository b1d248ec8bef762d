"""`keras.losses.Loss` of compared responses, to compile reward models and DPO with."""

import keras
from keras import ops

from kerasrlhf.functional import direct_losses, preferences
from kerasrlhf.types import require_number


class PreferenceLoss(keras.losses.Loss):
    """Loss of score rows `(batch, candidates)` whose candidate 0 is the preferred one.

    Final classes define `rows(y_true, y_pred)`, one number per row; Keras reduces the rows. On top
    comes `center_coef * (sum of the row's scores)^2`: preferences leave a constant in all scores
    open, and this keeps their mean near 0.

    Args:
        center_coef: Number, at least 0; 0.01 is usual where it is used.
        name: Name of the loss.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Raises:
        ValueError: `center_coef` is negative or no number.

    Reference:
        Eisenstein et al. 2023, arXiv 2312.09244: centring.
    """

    def __init__(self, center_coef: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.center_coef = require_number("center_coef", center_coef, minimum=0.0)

    def rows(self, y_true, y_pred):
        """The loss of each row, float32 `(batch,)`."""
        raise NotImplementedError

    def call(self, y_true, y_pred):
        losses = self.rows(y_true, y_pred)
        if not self.center_coef:
            return losses
        return losses + self.center_coef * preferences.squared_sum(y_pred)

    def get_config(self):
        return {**super().get_config(), "center_coef": self.center_coef}


@keras.saving.register_keras_serializable("kerasrlhf")
class BradleyTerry(PreferenceLoss):
    """Pairwise preference loss of score rows whose candidate 0 is the preferred one.

    `mean over j > 0 of -log sigmoid(y_pred[0] - y_pred[j] - margin)` per row; Keras reduces the
    rows.

    Args:
        margin: By how much the preferred score shall lead. `"labels"` takes `y_true`, `(batch,)`,
            as `rlhf.data.preferences` gives it: the record's margin, 0 without one. A number is
            the margin of every row, and `y_true` is not read.
        label_smoothing: Number in [0, 1]: how probable it is that a label is the wrong way round;
            with it DPO is conservative DPO.
        name: Name of the loss.
        **kwargs: `center_coef` of `PreferenceLoss`; `reduction` and `dtype` of
            `keras.losses.Loss`.

    Raises:
        ValueError: A margin that is neither a number nor "labels", or a negative `center_coef`.

    Example:
        >>> round(float(BradleyTerry()([0, 0], [[1.0, 1.0], [3.0, 3.0]])), 4)  # log 2
        0.6931
        >>> round(float(BradleyTerry()([2.0], [[5.0, 3.0]])), 4)  # a lead of 2, as demanded
        0.6931

    Reference:
        Stiennon et al. 2020, arXiv 2009.01325, section 3.4; Huang et al. 2024, arXiv 2403.17031
        (P11); margins per pair: Touvron et al. 2023, arXiv 2307.09288, eq. 2.
    """

    def __init__(
        self,
        margin: float | str | None = "labels",
        label_smoothing: float = 0.0,
        name: str = "bradley_terry",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if isinstance(margin, str) and margin != "labels":
            raise ValueError(f'`margin` must be a number or "labels". Received: {margin!r}.')
        if margin is not None and not isinstance(margin, str):
            require_number("margin", margin)
        require_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
        self.margin = margin
        self.label_smoothing = label_smoothing

    def rows(self, y_true, y_pred):
        margin = y_true if isinstance(self.margin, str) else self.margin
        return preferences.bradley_terry(y_pred, margin, self.label_smoothing)

    def get_config(self):
        own = {"margin": self.margin, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasrlhf")
class BestOfK(PreferenceLoss):
    """Cross entropy of picking candidate 0 among all candidates.

    `-log softmax(y_pred)[0]` per row; Keras reduces the rows. `y_true` is not read.

    Args:
        name: Name of the loss.
        **kwargs: `center_coef` of `PreferenceLoss`; `reduction` and `dtype` of
            `keras.losses.Loss`.

    Example:
        >>> round(float(BestOfK()([0], [[2.0, 2.0, 2.0, 2.0]])), 4)  # log 4
        1.3863

    Reference:
        Ziegler et al. 2019, arXiv 1909.08593, eq. 1.
    """

    def __init__(self, name: str = "best_of_k", **kwargs):
        super().__init__(name=name, **kwargs)

    def rows(self, y_true, y_pred):
        return preferences.best_of_k(y_pred)


@keras.saving.register_keras_serializable("kerasrlhf")
class PlackettLuce(PreferenceLoss):
    """Likelihood of the whole order of candidates that stand best first.

    `-sum over k of log softmax(y_pred[k:])[0]` per row; Keras reduces the rows. `y_true` is not
    read. With two candidates it is `BradleyTerry`.

    Args:
        name: Name of the loss.
        **kwargs: `center_coef` of `PreferenceLoss`; `reduction` and `dtype` of
            `keras.losses.Loss`.

    Example:
        >>> round(float(PlackettLuce()([0], [[2.0, 2.0, 2.0]])), 4)  # log 3 + log 2
        1.7918

    Reference:
        Rafailov et al. 2023, arXiv 2305.18290, appendix A.3; Xia et al. 2008, "Listwise Approach
        to Learning to Rank".
    """

    def __init__(self, name: str = "plackett_luce", **kwargs):
        super().__init__(name=name, **kwargs)

    def rows(self, y_true, y_pred):
        return preferences.plackett_luce(y_pred)


@keras.saving.register_keras_serializable("kerasrlhf")
class StepCrossEntropy(keras.losses.Loss):
    """Binary cross entropy of each step of a response being right, for process reward models.

    `-y log sigmoid(s) - (1 - y) log sigmoid(-s)` per position; Keras weighs the positions with the
    sample weight of `rlhf.data.stepwise`, 1 where a step ends, and divides by its sum: nats per
    step.

    Args:
        name: Name of the loss.
        reduction: Of `keras.losses.Loss`.
        **kwargs: `dtype` of `keras.losses.Loss`.

    Example:
        >>> loss = StepCrossEntropy()
        >>> weight = [[0.0, 1.0, 1.0]]
        >>> round(float(loss([[0, 1, 0]], [[9.0, 0.0, 0.0]], sample_weight=weight)), 4)  # log 2
        0.6931

    Reference:
        Lightman et al. 2023, arXiv 2305.20050; Wang et al. 2023, "Math-Shepherd", arXiv 2312.08935,
        eq. 2.
    """

    def __init__(
        self, name: str = "step_cross_entropy", reduction: str = "mean_with_sample_weight", **kwargs
    ):
        super().__init__(name=name, reduction=reduction, **kwargs)

    def call(self, y_true, y_pred):
        return ops.binary_crossentropy(y_true, y_pred, from_logits=True)


@keras.saving.register_keras_serializable("kerasrlhf")
class IPO(keras.losses.Loss):
    """Squared distance of the preferred candidate's lead from `1 / (2 beta)`, in log-ratios.

    `mean over j > 0 of (y_pred[0] - y_pred[j] - 1 / (2 beta))^2` per row; Keras reduces the rows.
    `y_true` is not read.

    Args:
        beta: Number above 0: the paper's tau.
        name: Name of the loss.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Example:
        >>> float(IPO(beta=0.5)([0], [[3.0, 1.0]]))  # a lead of 2 against 1
        1.0

    Reference:
        Azar et al. 2023, arXiv 2310.12036, eq. 17.
    """

    def __init__(self, beta: float = 0.1, name: str = "ipo", **kwargs):
        super().__init__(name=name, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)

    def call(self, y_true, y_pred):
        return direct_losses.ipo(y_pred, self.beta)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable("kerasrlhf")
class KTO(keras.losses.Loss):
    """What each response lacks to be surely desirable or undesirable.

    `lambda_D sigmoid(-y_pred)` of desirable ones and `lambda_U sigmoid(y_pred)` of the others,
    meaned over the candidates of a row; Keras reduces the rows. Of several candidates the first is
    the desirable one, and `y_true` is not read; a single one is desirable where `y_true` is 1.

    Args:
        desirable_weight: Number, at least 0: `lambda_D`.
        undesirable_weight: Number, at least 0: `lambda_U`.
        name: Name of the loss.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Example:
        >>> float(KTO()([0], [[0.0, 0.0]]))
        0.5
        >>> round(float(KTO()([0.0, 1.0], [[-9.0], [9.0]])), 3)  # judged one by one
        0.0

    Reference:
        Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
    """

    def __init__(
        self,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        name: str = "kto",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.desirable_weight = require_number("desirable_weight", desirable_weight, minimum=0.0)
        self.undesirable_weight = require_number(
            "undesirable_weight", undesirable_weight, minimum=0.0
        )

    def call(self, y_true, y_pred):
        desirable, y_pred = None, ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] == 1:
            desirable = ops.reshape(y_true, ops.shape(y_pred)) > 0
        return direct_losses.kto(y_pred, self.desirable_weight, self.undesirable_weight, desirable)

    def get_config(self):
        own = {
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasrlhf")
class ORPO(keras.losses.Loss):
    """Likelihood of the preferred candidate, and its odds against the others.

    `-y_pred[0] + coef * mean over j > 0 of -log sigmoid(log_odds(y_pred[0]) - log_odds(y_pred[j]))`
    per row, with `y_pred` in nats per token; Keras reduces the rows. `y_true` is not read.

    Args:
        coef: Number, at least 0: the paper's lambda.
        name: Name of the loss.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Example:
        >>> round(float(ORPO(coef=1.0)([0], [[-1.0, -1.0]])), 4)  # 1 + log 2
        1.6931

    Reference:
        Hong et al. 2024, arXiv 2403.07691, eq. 6.
    """

    def __init__(self, coef: float = 0.1, name: str = "orpo", **kwargs):
        super().__init__(name=name, **kwargs)
        self.coef = require_number("coef", coef, minimum=0.0)

    def call(self, y_true, y_pred):
        return direct_losses.orpo(y_pred, self.coef)

    def get_config(self):
        return {**super().get_config(), "coef": self.coef}
