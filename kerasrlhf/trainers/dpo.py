"""Direct preference optimization, and its form with a squared loss."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.functional import direct_losses
from kerasrlhf.losses import IPO as IPOLoss
from kerasrlhf.losses import BradleyTerry
from kerasrlhf.models.reference import Reference
from kerasrlhf.trainers.direct import DirectTrainer
from kerasrlhf.types import require_number


class DPO(DirectTrainer):
    """Direct preference optimization: the policy's own log-ratio as the score of a reward model.

    The score of a response is `beta (log pi - log ref)`, the reward for which the policy is the
    best one, and it is trained as a reward model is: `-log sigmoid(score[0] - score[1])`. Where
    preferences follow a score `r`, the optimum is `ref exp(r / beta) / Z`, the same as PPO's with
    the KL coefficient `beta`. Labels that may be wrong: `compile(loss=
    losses.BradleyTerry(label_smoothing=0.1))`. Where the pairs have a `margin` it is the lead, in
    units of score, that the chosen response shall have (DPO with an offset, Amini et al. 2024,
    arXiv 2402.10571); `losses.BradleyTerry(margin=None)` does not read it.

    Args:
        causal_lm: keras-hub `CausalLM` of a text family, usually fine-tuned on the task.
        reference: None: the model as it is now, a frozen copy or, where it carries LoRA adapters,
            the same weights with the adapters switched off. Otherwise a CausalLM of the same
            vocabulary. Never part of a checkpoint.
        beta: units of score per nat; the smaller, the further the policy may go.
        **kwargs: `response_length` of `DirectTrainer`, and those of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are implicit rewards.

    Raises:
        ValueError: `beta` not above 0, a reference of another vocabulary, LoRA adapters that have
            been trained already, or batches without `response_mask`.

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
    ):
        super().__init__(causal_lm, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)
        self.reference = Reference.of(causal_lm, reference)

    def scores(self, inputs):
        return direct_losses.implicit_reward(
            self.logprobs(inputs), self.ref_logprobs(inputs), self.beta
        )

    def default_loss(self):
        return BradleyTerry()


class IPO(DirectTrainer):
    """Identity preference optimization: a lead of log-ratios drawn to `1 / (2 beta)`, not beyond.

    The score of a response is `log pi - log ref`, in nats; the loss is `(score[0] - score[1] -
    1 / (2 beta))^2`. DPO goes on to push pairs apart that are always labeled alike; this stops.
    With labels of preferences `p(y > y')` over pairs from one list the optimum is `ref exp(q /
    beta) / Z` with `q(y) = mean over y' of p(y > y')`.

    Args:
        causal_lm: as in `DPO`.
        reference: as in `DPO`.
        beta: the paper's tau; preference probability per nat.
        average: log-probabilities per token instead of summed, so that long responses do not
            reach the lead sooner. The equation of the paper has sums; common implementations
            average. `beta` then is per nat of a token.
        **kwargs: `response_length` of `DirectTrainer`, and those of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are log-ratios.

    Raises:
        ValueError: as `DPO`.

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
    ):
        super().__init__(causal_lm, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)
        self.average = average
        self.reference = Reference.of(causal_lm, reference)

    def scores(self, inputs):
        logprobs = self.logprobs(inputs, self.average)
        return direct_losses.implicit_reward(logprobs, self.ref_logprobs(inputs, self.average))

    def default_loss(self):
        return IPOLoss(self.beta)
