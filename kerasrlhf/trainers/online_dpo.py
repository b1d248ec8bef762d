"""Direct preference optimization on the policy's own responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import keras
from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.rollouts.environments import Environment
from kerasrlhf.trainers.kl_control import KLController
from kerasrlhf.trainers.on_policy import OnPolicyOptions, OnPolicyTrainer
from kerasrlhf.trainers.options import require_group
from kerasrlhf.types import Experience, Rollout, Sampler, Tensor, TokenStats, require_choice


@keras.saving.register_keras_serializable("kerasrlhf")
class OnlineDPO(OnPolicyTrainer):
    """Iterated DPO: samples responses, ranks them by the reward, and trains on the pair.

    The responses to a prompt with the highest and the lowest score form a pair with logits
    `h = beta * (d[best] - d[worst])`, where `d` is the log ratio of policy and reference, summed
    over a response. With `labels="soft"` the reward prefers the better one with probability
    `q = sigmoid(score difference)`, and the loss `-q log sigmoid(h) - (1 - q) log sigmoid(-h)` has
    its minimum at the policy that maximizes score minus `beta` KL. Responses with equal scores have
    `q = 1/2`, so they are trained toward the same log ratio. With `labels="hard"`, `q = 1`, and
    equal scores form no pair. The coefficient of `kl` is `beta`.

    Args:
        actor: `ActorCritic` without a separate critic.
        reward, reference, sampler: as in `OnPolicyTrainer`.
        kl: `FixedKL` or `AdaptiveKL` with a coefficient above 0, and without place and estimator:
            the loss already contains the KL term.
        group_size: int, at least 2. Responses to every prompt. Defaults to 2.
        update_epochs: int, at least 1. Defaults to 1.
        labels: `"soft"` or `"hard"`. Defaults to `"soft"`.
        **options: `num_minibatches`, `micro_batches`, `entropy_coef`, `target_kl`,
            `mask_overlong`, `shaping`, `texts`, `prompt_prediction`, `memory`, `reward_timeout`
            and `seed`, as `OnPolicyTrainer` describes them.

    Raises:
        ValueError: If an argument is outside its range, or parts do not fit together.
        TypeError: If an argument is unknown.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> trainer = rlhf.OnlineDPO(actor, lambda prompts, responses: [len(r) for r in responses],
        ...                          sampler=rlhf.Sampler(length=8), kl=rlhf.FixedKL(0.1))
        >>> trainer.group_size
        2

    Reference:
        Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback"
        (arXiv 2402.04792); Rafailov et al. 2023 (arXiv 2305.18290).
    """

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict | Environment,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: KLController,
        group_size: int = 2,
        update_epochs: int = 1,
        labels: str = "soft",
        **options: Unpack[OnPolicyOptions],
    ) -> None:
        self.labels = require_choice("labels", labels, ("soft", "hard"))
        if isinstance(kl, KLController):
            _check_controller(kl)
        # Each token carries its response's loss: a mean over tokens counts a response once.
        super().__init__(
            actor,
            reward,
            reference,
            sampler=sampler,
            kl=kl,
            group_size=require_group(group_size),
            update_epochs=update_epochs,
            loss_reduction="sequence",
            **options,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        """Pairs the best and the worst response to each prompt."""
        size = self.group_size
        scores = ops.reshape(rollout.total_scores, (-1, size))
        # Index of the best and the worst response in each group, `(prompts,)`.
        best, worst = ops.argmax(scores, axis=1), ops.argmin(scores, axis=1)
        difference = ops.max(scores, axis=1) - ops.min(scores, axis=1)
        if self.labels == "soft":
            preferred = ops.sigmoid(difference)
            # All scores equal: `argmax` and `argmin` are both 0, pair 0 with 1.
            worst = ops.where(difference == 0, 1, worst)
        else:
            # All scores equal: best and worst are the same response, its side is 0, no pair.
            preferred = ops.ones_like(difference)
        # +1 for the best, -1 for the worst, else 0, `(batch,)`.
        sides = ops.reshape(ops.one_hot(best, size) - ops.one_hot(worst, size), (-1,))
        return self.experience(
            rollout,
            sides,
            side=sides,
            preferred=ops.repeat(preferred, size),
            beta=ops.full(sides.shape, rollout.kl_coef),
        )

    def objective(
        self, stats: TokenStats, minibatch: Experience
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of each pair, on the tokens of both responses."""
        extras, mask = minibatch.extras, minibatch.response_mask
        # Log ratio of each response, `(batch,)`.
        ratios = masking.masked_sum(stats.logprobs - minibatch.ref_logprobs, mask, axis=-1)
        # Logits of each pair, copied to all rows of its group.
        signed = ops.reshape(extras["side"] * ratios, (-1, self.group_size))
        logits = extras["beta"] * ops.repeat(ops.sum(signed, axis=1), self.group_size)
        # Cross-entropy with label `q`; `softplus(-h)` is `-log sigmoid(h)`.
        q = extras["preferred"]
        losses = q * ops.softplus(-logits) + (1.0 - q) * ops.softplus(logits)
        # Two rows of a group are in the loss: scale the mean over the group to one over the pair.
        losses = 0.5 * self.group_size * self._paired(minibatch) * losses
        loss = ops.broadcast_to(losses[:, None], mask.shape)
        # 0.5 where the scores are equal or the policy prefers neither.
        right = 0.5 + 0.5 * ops.sign(logits) * ops.sign(q - 0.5)
        agrees = ops.broadcast_to(right[:, None], mask.shape)
        return loss, {"loss/policy": loss, "policy/accuracy": agrees}

    def _paired(self, minibatch: Experience) -> Tensor:
        """Returns 1 for responses in a pair, 0 for both if `mask_overlong` leaves out one."""
        marked = minibatch.extras["side"] != 0
        missing = ops.logical_and(
            marked, ops.logical_not(ops.any(minibatch.response_mask, axis=-1))
        )
        # A pair needs both responses, `(prompts,)`.
        broken = ops.any(ops.reshape(missing, (-1, self.group_size)), axis=1)
        whole = ops.logical_not(ops.repeat(broken, self.group_size))
        return ops.cast(ops.logical_and(marked, whole), "float32")


def _check_controller(kl: KLController) -> None:
    if kl.place is not None or kl.estimator is not None:
        raise ValueError(
            "The loss of OnlineDPO contains the KL. Leave out `place` and `estimator`. Received: "
            f"{kl!r}."
        )
    if float(kl.coef.numpy()) == 0:
        raise ValueError(
            "The coefficient of `kl` is the loss's beta, and with 0 nothing is learned. Use a "
            "coefficient above 0, such as `FixedKL(0.1)`."
        )
