"""Direct preference optimization, and its form with a squared loss."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.functional import direct_losses
from kerasrlhf.losses import BradleyTerry, IPOLoss
from kerasrlhf.models.windows import Reference
from kerasrlhf.trainers.direct import DirectTrainer
from kerasrlhf.types import Tensor, require_number


class DPO(DirectTrainer):
    """Trains a policy on preferences, with its log-ratio to a reference as the score.

    This is direct preference optimization. The score of a response is `beta (log pi - log ref)`,
    the reward for which the policy is optimal. It has the loss of a reward model, `-log
    sigmoid(score[0] - score[1])`. If preferences follow a score `r`, the optimum is `ref
    exp(r / beta) / Z`, the same as PPO's with the KL coefficient `beta`. For labels that may be
    wrong, use `compile(loss=losses.BradleyTerry(label_smoothing=0.1))`. A `margin` of the pairs is
    the lead, in units of score, that the chosen response should have (DPO with an offset, Amini et
    al. 2024, arXiv 2402.10571); `losses.BradleyTerry(margin=None)` ignores it.

    Args:
        causal_lm: keras-hub `CausalLM` of a text family, usually fine-tuned on the task.
        reference: CausalLM of the same vocabulary, or None for the model at construction: a frozen
            copy or, if it has LoRA adapters, the same weights with the adapters switched off.
            Never part of a checkpoint. Defaults to None.
        beta: float, above 0, units of score per nat. A smaller value lets the policy move further
            from the reference. Defaults to 0.1.
        **kwargs: `response_length` of `DirectTrainer`, and arguments of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are implicit rewards.

    Raises:
        ValueError: If `beta` is not above 0, the reference has another vocabulary, or batches
            have no `response_mask`.

    Example:
        >>> import kerasrlhf as rlhf
        >>> lm = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES).causal_lm
        >>> pair = {"prompt": "Tom was", "chosen": " glad.", "rejected": " sad."}
        >>> pairs = rlhf.data.preferences([pair] * 2, lm.preprocessor, batch_size=2)
        >>> dpo = rlhf.DPO(lm)
        >>> dpo.compile("adam", jit_compile=False)
        >>> round(dpo.evaluate(pairs, verbose=0)[0], 4)  # the policy is the reference: log 2
        0.6931

    Reference:
        Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, eq. 7.
    """

    def __init__(
        self, causal_lm: keras.Model, reference: Any = None, beta: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(causal_lm, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)
        # A frozen copy of these weights, unless a model is passed.
        self.reference = Reference.of(causal_lm, reference)

    def scores(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes `beta (log pi - log ref)`."""
        return direct_losses.implicit_reward(
            self.logprobs(inputs), self.ref_logprobs(inputs), self.beta
        )

    def default_loss(self) -> keras.losses.Loss:
        """Returns the Bradley-Terry loss."""
        return BradleyTerry()


class IPO(DirectTrainer):
    """Trains a policy on preferences until the lead of log-ratios is `1 / (2 beta)`.

    This is identity preference optimization. The score of a response is `log pi - log ref`, in
    nats; the loss is `(score[0] - score[1] - 1 / (2 beta))^2`. For pairs that always have the same
    label, DPO increases the lead without bound; IPO stops. With labels of preferences `p(y > y')`
    over pairs from one list the optimum is `ref exp(q / beta) / Z` with `q(y) = mean over y' of
    p(y > y')`.

    Args:
        causal_lm: as in `DPO`.
        reference: as in `DPO`. Defaults to None.
        beta: float, above 0, preference probability per nat. The paper's tau. Defaults to 0.1.
        average: bool. Whether to average log-probabilities over tokens instead of summing, so that
            long responses do not reach the lead sooner. The equation of the paper has sums; common
            implementations average. `beta` is then per nat per token. Defaults to False.
        **kwargs: `response_length` of `DirectTrainer`, and arguments of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are log-ratios.

    Raises:
        ValueError: As in `DPO`.

    Example:
        >>> import kerasrlhf as rlhf
        >>> lm = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES).causal_lm
        >>> pair = {"prompt": "Tom was", "chosen": " glad.", "rejected": " sad."}
        >>> pairs = rlhf.data.preferences([pair] * 2, lm.preprocessor, batch_size=2)
        >>> ipo = rlhf.IPO(lm, beta=0.5)
        >>> ipo.compile("adam", jit_compile=False)
        >>> round(ipo.evaluate(pairs, verbose=0)[0], 4)  # (0 - 1 / (2 * 0.5))^2
        1.0

    Reference:
        Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
        Preferences", arXiv 2310.12036, eq. 17.
    """

    def __init__(
        self,
        causal_lm: keras.Model,
        reference: Any = None,
        beta: float = 0.1,
        average: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(causal_lm, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)
        self.average = average
        self.reference = Reference.of(causal_lm, reference)

    def scores(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes `log pi - log ref`."""
        logprobs = self.logprobs(inputs, self.average)
        # Log-ratio in nats, without beta: beta is in the target of the loss (eq. 17).
        return direct_losses.implicit_reward(logprobs, self.ref_logprobs(inputs, self.average))

    def default_loss(self) -> keras.losses.Loss:
        """Returns the squared distance from the target lead."""
        return IPOLoss(self.beta)
