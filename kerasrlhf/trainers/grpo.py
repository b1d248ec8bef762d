"""Advantages relative to a group of responses, with the KL in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import keras
from keras import ops

from kerasrlhf.functional import baselines, on_policy_losses
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.rollouts.environments import Environment
from kerasrlhf.trainers.kl_control import KLController
from kerasrlhf.trainers.on_policy import OnPolicyOptions, OnPolicyTrainer
from kerasrlhf.trainers.options import require_group
from kerasrlhf.types import (
    Experience,
    Rollout,
    Sampler,
    Tensor,
    TokenStats,
    require_choice,
    require_number,
    require_optional,
)


@keras.saving.register_keras_serializable("kerasrlhf")
class GRPO(OnPolicyTrainer):
    """Group relative policy optimization, and its form without biases, Dr. GRPO.

    The advantage of every token of a response is its score minus the mean of its group, divided by
    the group's standard deviation. The KL to the reference is a term of the loss (k3), and the loss
    is a mean over each response, so that tokens of short responses count more.

    This does not maximize `E[score] - coef * KL`. The division gives groups of nearly equal scores
    the same weight as others: in groups of two the advantage is only a sign, so the objective is
    the probability of scoring higher than another response. Without the division, advantages are
    still `(group_size - 1) / group_size` of those in `RLOO`, while a KL in the loss is not reduced
    by this factor, and k3 minimizes `D(reference, policy)`. `variant="dr_grpo"` divides by neither
    standard deviation nor length and has the KL in the reward: its gradient is that of
    `E[score] - coef * KL`, like RLOO's. With `FixedKL(..., place="reward")` plain GRPO converges to
    the same policy: there, score minus KL is the same for all responses, and all advantages are 0.

    Args:
        actor: `ActorCritic` without a separate critic.
        reward, reference, sampler, kl: as in `OnPolicyTrainer`. By default the KL is in
            the loss, by k3, as in the paper; for `variant="dr_grpo"` in the reward, by k1. Its
            paper has no KL at all: use a coefficient of 0 for that.
        group_size: int, at least 2. Responses to every prompt. Defaults to 8.
        update_epochs: int, at least 1. Defaults to 1.
        cliprange: float, above 0. The ratio is clipped to 1 - cliprange and 1 + cliprange.
            Defaults to 0.2.
        cliprange_high: float, above 0, or None. Clips the ratio at 1 + cliprange_high instead.
            Defaults to None: `cliprange`.
        variant: `"grpo"`, or `"dr_grpo"`: advantages are not divided by the standard deviation.
            Defaults to `"grpo"`.
        loss_reduction: `"token"`, `"sequence"` or `"fixed"`. Defaults to None: `"sequence"` as in
            the paper; for `variant="dr_grpo"` `"fixed"`.
        importance_cap: float, above 0, or None. Truncated importance sampling. Defaults to None.
        **options: `num_minibatches`, `micro_batches`, `entropy_coef`, `target_kl`,
            `mask_overlong`, `shaping`, `texts`, `prompt_prediction`, `memory`, `reward_timeout`
            and `seed`, as `OnPolicyTrainer` describes them.

    Raises:
        ValueError: If an argument is outside its range, or parts do not fit together.
        TypeError: If an argument is unknown.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> grpo = rlhf.GRPO(actor, lambda prompts, responses: [len(r) for r in responses],
        ...                  group_size=8, sampler=rlhf.Sampler(length=8), kl=rlhf.FixedKL(0.04))
        >>> grpo.kl_place, grpo.kl_estimator, grpo.loss_reduction
        ('loss', 'k3', 'sequence')

    Reference:
        Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), eq. 3; Liu et al. 2025, "Understanding
        R1-Zero-Like Training" (arXiv 2503.20783); clip-higher: Yu et al. 2025 (arXiv 2503.14476).
    """

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict | Environment,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: KLController,
        group_size: int = 8,
        update_epochs: int = 1,
        cliprange: float = 0.2,
        cliprange_high: float | None = None,
        variant: str = "grpo",
        loss_reduction: str | None = None,
        importance_cap: float | None = None,
        **options: Unpack[OnPolicyOptions],
    ) -> None:
        self.variant = require_choice("variant", variant, ("grpo", "dr_grpo"))
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_high = require_optional("cliprange_high", cliprange_high)
        # Defaults of each paper: GRPO has k3 in the loss and a mean over each response.
        is_plain = variant == "grpo"
        super().__init__(
            actor,
            reward,
            reference,
            sampler=sampler,
            kl=kl,
            group_size=require_group(group_size),
            update_epochs=update_epochs,
            loss_reduction=loss_reduction or ("sequence" if is_plain else "fixed"),
            importance_cap=importance_cap,
            kl_place="loss" if is_plain else "reward",
            kl_estimators={"reward": "k1", "loss": "k3"},
            **options,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        """Computes scores relative to their group."""
        # Return of the whole response, `(batch,)`; score alone if the KL is in the loss.
        worth = ops.sum(self.rewards(rollout), axis=-1)
        relative = baselines.group_normalized if self.variant == "grpo" else baselines.group_mean
        return self.experience(rollout, relative(worth, self.group_size))

    def objective(
        self, stats: TokenStats, minibatch: Experience
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the clipped policy loss."""
        # DeepSeekMath, eq. 3, without the KL, which the trainer adds.
        loss, clipped = on_policy_losses.clipped_policy_loss(
            stats.logprobs,
            minibatch.logprobs,
            minibatch.advantages,
            self.cliprange,
            self.cliprange_high,
        )
        return loss, {"loss/policy": loss, "policy/clipfrac": ops.cast(clipped, "float32")}
