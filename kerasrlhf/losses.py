"""Keras losses for reward models and direct preference training.

The losses of score rows take `y_pred` as `(batch, candidates)` with the preferred candidate first
and return one number per row, which Keras reduces. Each class accepts the keyword arguments of
`keras.losses.Loss` (`reduction`, `dtype`).
"""

from typing import Any

import keras
from keras import ops

from kerasrlhf.functional import direct_losses, preferences
from kerasrlhf.types import Tensor, require_number


class PreferenceLoss(keras.losses.Loss):
    """Abstract base class of losses of score rows whose candidate 0 is the preferred one.

    Subclasses define `rows(y_true, y_pred)`, one number per row; Keras reduces the rows. The base
    class adds `center_coef * (sum of the row's scores)^2`: preferences do not determine a constant
    added to all scores, and this term keeps their mean near 0.

    Args:
        center_coef: float, at least 0. Weight of the centering term; 0.01 is a usual value.
            Defaults to 0.0.
        **kwargs: `name`, `reduction` and `dtype` of `keras.losses.Loss`.

    Raises:
        ValueError: If `center_coef` is negative or not a number.

    Reference:
        Eisenstein et al. 2023, arXiv 2312.09244 (centering).
    """

    def __init__(self, center_coef: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center_coef = require_number("center_coef", center_coef, minimum=0.0)

    def rows(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes `rows` plus the centering term, float32 `(batch,)`."""
        # One loss per row; Keras applies sample weights and the reduction.
        losses = self.rows(y_true, y_pred)
        # Preferences do not determine a constant added to all scores; this term does.
        if not self.center_coef:
            return losses
        return losses + self.center_coef * preferences.squared_sum(y_pred)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "center_coef": self.center_coef}


@keras.saving.register_keras_serializable("kerasrlhf")
class BradleyTerry(PreferenceLoss):
    """Pairwise preference loss of score rows whose candidate 0 is the preferred one.

    `mean over j > 0 of -log sigmoid(y_pred[0] - y_pred[j] - margin)` per row; Keras reduces the
    rows.

    Args:
        margin: float or `"labels"`, in units of score. By how much the preferred score should
            lead. `"labels"` takes `y_true`, `(batch,)`, as returned by `rlhf.data.preferences`:
            the record's margin, or 0 if it has none. A float is the margin of every row, and
            `y_true` is ignored. None is 0. Defaults to `"labels"`.
        label_smoothing: float, in [0, 1]. Probability that a label is reversed; with it DPO
            becomes conservative DPO. Defaults to 0.0.
        name: str. Name of the loss. Defaults to `"bradley_terry"`.
        **kwargs: `center_coef` of `PreferenceLoss`; `reduction` and `dtype` of
            `keras.losses.Loss`.

    Raises:
        ValueError: If `margin` is neither a number nor `"labels"`, `label_smoothing` is outside
            [0, 1], or `center_coef` is negative.

    Example:
        >>> loss = rlhf.losses.BradleyTerry()
        >>> round(float(loss([0, 0], [[1.0, 1.0], [3.0, 3.0]])), 4)  # log 2
        0.6931
        >>> round(float(loss([2.0], [[5.0, 3.0]])), 4)  # a lead of 2, equal to the margin
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
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if isinstance(margin, str) and margin != "labels":
            raise ValueError(f'`margin` must be a number or "labels". Received: {margin!r}.')
        # Check here: a wrong margin would fail only in the first batch.
        if margin is not None and not isinstance(margin, str):
            require_number("margin", margin)
        require_number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
        self.margin = margin
        self.label_smoothing = label_smoothing

    def rows(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        # The labels of `data.preferences` are the margins of the records.
        margin = y_true if isinstance(self.margin, str) else self.margin
        return preferences.bradley_terry(y_pred, margin, self.label_smoothing)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = {"margin": self.margin, "label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasrlhf")
class BestOfK(PreferenceLoss):
    """Cross entropy of picking candidate 0 among all candidates.

    `-log softmax(y_pred)[0]` per row; Keras reduces the rows. `y_true` is ignored.

    Args:
        name: str. Name of the loss. Defaults to `"best_of_k"`.
        **kwargs: `center_coef` of `PreferenceLoss`; `reduction` and `dtype` of
            `keras.losses.Loss`.

    Example:
        >>> loss = rlhf.losses.BestOfK()
        >>> round(float(loss([0], [[2.0, 2.0, 2.0, 2.0]])), 4)  # log 4
        1.3863

    Reference:
        Ziegler et al. 2019, arXiv 1909.08593, eq. 1.
    """

    def __init__(self, name: str = "best_of_k", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def rows(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        return preferences.best_of_k(y_pred)


@keras.saving.register_keras_serializable("kerasrlhf")
class PlackettLuce(PreferenceLoss):
    """Negative log-likelihood of the whole order of candidates sorted from best to worst.

    `-sum over k of log softmax(y_pred[k:])[0]` per row; Keras reduces the rows. `y_true` is
    ignored. With two candidates it is `BradleyTerry`.

    Args:
        name: str. Name of the loss. Defaults to `"plackett_luce"`.
        **kwargs: `center_coef` of `PreferenceLoss`; `reduction` and `dtype` of
            `keras.losses.Loss`.

    Example:
        >>> loss = rlhf.losses.PlackettLuce()
        >>> round(float(loss([0], [[2.0, 2.0, 2.0]])), 4)  # log 3 + log 2
        1.7918

    Reference:
        Rafailov et al. 2023, arXiv 2305.18290, appendix A.3; Xia et al. 2008, "Listwise Approach
        to Learning to Rank".
    """

    def __init__(self, name: str = "plackett_luce", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def rows(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        return preferences.plackett_luce(y_pred)


@keras.saving.register_keras_serializable("kerasrlhf")
class StepCrossEntropy(keras.losses.Loss):
    """Binary cross entropy of each step of a response being correct, for process reward models.

    `-y log sigmoid(s) - (1 - y) log sigmoid(-s)` per position. Keras multiplies it by the sample
    weight of `rlhf.data.stepwise`, 1 where a step ends, and divides by the sum of the weights: the
    result is in nats per step.

    Args:
        name: str. Name of the loss. Defaults to `"step_cross_entropy"`.
        reduction: str. As in `keras.losses.Loss`. Defaults to `"mean_with_sample_weight"`.
        **kwargs: `dtype` of `keras.losses.Loss`.

    Example:
        >>> loss = rlhf.losses.StepCrossEntropy()
        >>> weight = [[0.0, 1.0, 1.0]]
        >>> round(float(loss([[0, 1, 0]], [[9.0, 0.0, 0.0]], sample_weight=weight)), 4)  # log 2
        0.6931

    Reference:
        Lightman et al. 2023, arXiv 2305.20050; Wang et al. 2023, "Math-Shepherd", arXiv 2312.08935,
        eq. 2.
    """

    def __init__(
        self,
        name: str = "step_cross_entropy",
        reduction: str = "mean_with_sample_weight",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the cross entropy of each position, float32 `(batch, length)`."""
        # Keras multiplies by the sample weight, which is 0 between the ends of steps.
        return ops.binary_crossentropy(y_true, y_pred, from_logits=True)


@keras.saving.register_keras_serializable("kerasrlhf")
class IPOLoss(keras.losses.Loss):
    """Squared distance of the preferred candidate's lead from `1 / (2 beta)`, in log-ratios.

    `mean over j > 0 of (y_pred[0] - y_pred[j] - 1 / (2 beta))^2` per row; Keras reduces the rows.
    `y_true` is ignored.

    Args:
        beta: float, above 0. The paper's tau. Defaults to 0.1.
        name: str. Name of the loss. Defaults to `"ipo"`.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Raises:
        ValueError: If `beta` is not a number above 0.

    Example:
        >>> loss = rlhf.losses.IPOLoss(beta=0.5)
        >>> float(loss([0], [[3.0, 1.0]]))  # a lead of 2; the target is 1
        1.0

    Reference:
        Azar et al. 2023, arXiv 2310.12036, eq. 17.
    """

    def __init__(self, beta: float = 0.1, name: str = "ipo", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        return direct_losses.ipo(y_pred, self.beta)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable("kerasrlhf")
class KTOLoss(keras.losses.Loss):
    """Kahneman-Tversky loss of desirable and undesirable responses.

    `lambda_D sigmoid(-y_pred)` for desirable responses and `lambda_U sigmoid(y_pred)` for the
    others, averaged over the candidates of a row; Keras reduces the rows. With several candidates
    the first is the desirable one, and `y_true` is ignored; a single candidate is desirable where
    `y_true` is 1.

    Args:
        desirable_weight: float, at least 0. `lambda_D`. Defaults to 1.0.
        undesirable_weight: float, at least 0. `lambda_U`. Defaults to 1.0.
        name: str. Name of the loss. Defaults to `"kto"`.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Raises:
        ValueError: If a weight is negative or not a number.

    Example:
        >>> loss = rlhf.losses.KTOLoss()
        >>> float(loss([0], [[0.0, 0.0]]))
        0.5
        >>> round(float(loss([0.0, 1.0], [[-9.0], [9.0]])), 3)  # one candidate per row
        0.0

    Reference:
        Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
    """

    def __init__(
        self,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        name: str = "kto",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.desirable_weight = require_number("desirable_weight", desirable_weight, minimum=0.0)
        self.undesirable_weight = require_number(
            "undesirable_weight", undesirable_weight, minimum=0.0
        )

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        desirable, y_pred = None, ops.convert_to_tensor(y_pred)
        # Single responses have labels; with several, candidate 0 is desirable.
        if y_pred.shape[-1] == 1:
            desirable = ops.reshape(y_true, ops.shape(y_pred)) > 0
        return direct_losses.kto(y_pred, self.desirable_weight, self.undesirable_weight, desirable)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = {
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasrlhf")
class ORPOLoss(keras.losses.Loss):
    """Negative log-likelihood of the preferred candidate plus an odds-ratio penalty.

    `-y_pred[0] + coef * mean over j > 0 of -log sigmoid(log_odds(y_pred[0]) - log_odds(y_pred[j]))`
    per row, with `y_pred` in nats per token; Keras reduces the rows. `y_true` is ignored.

    Args:
        coef: float, at least 0. Weight of the odds ratio; the paper's lambda. Defaults to 0.1.
        name: str. Name of the loss. Defaults to `"orpo"`.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Raises:
        ValueError: If `coef` is negative or not a number.

    Example:
        >>> loss = rlhf.losses.ORPOLoss(coef=1.0)
        >>> round(float(loss([0], [[-1.0, -1.0]])), 4)  # 1 + log 2
        1.6931

    Reference:
        Hong et al. 2024, arXiv 2403.07691, eq. 6.
    """

    def __init__(self, coef: float = 0.1, name: str = "orpo", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.coef = require_number("coef", coef, minimum=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Computes the loss of each row, float32 `(batch,)`."""
        return direct_losses.orpo(y_pred, self.coef)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "coef": self.coef}
