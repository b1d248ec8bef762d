"""REINFORCE with the clipping and KL penalty of PPO, without a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import keras
from keras import ops

from kerasrlhf.functional import baselines, masking, on_policy_losses, returns
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
    require_bool,
    require_number,
    require_optional,
)


@keras.saving.register_keras_serializable("kerasrlhf")
class REINFORCEPlusPlus(OnPolicyTrainer):
    """REINFORCE++: rewards to go, whitened over the whole batch, and PPO's clipping.

    The reward of a token is the KL penalty, plus the score at the last token, as in PPO. The
    advantage of a token is the sum of the rewards from that token on, whitened over all tokens of
    the batch instead of compared with a critic or a group.

    Args:
        actor: `ActorCritic` without a separate critic.
        reward, reference, sampler, kl: as in `OnPolicyTrainer`. By default the KL is in
            the reward, by k1; with `group_baseline` in the loss, by k2, as in the paper.
        gamma: float in [0, 1]. Discount per token. Defaults to 1.
        cliprange: float, above 0. The ratio is clipped to 1 - cliprange and 1 + cliprange.
            Defaults to 0.2.
        cliprange_high: float, above 0, or None. Clips the ratio at 1 + cliprange_high instead.
            Defaults to None: `cliprange`.
        group_baseline: bool. Whether to first subtract the mean of the group from the scores, which
            needs a `group_size` of at least 2 (the paper's form for several responses to a
            prompt). Defaults to False.
        group_size: int, at least 1. Responses to every prompt. Defaults to 1.
        update_epochs: int, at least 1. Defaults to 4.
        loss_reduction: `"token"`, `"sequence"` or `"fixed"`. Defaults to `"token"`.
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
        >>> trainer = rlhf.REINFORCEPlusPlus(
        ...     actor, lambda prompts, responses: [len(r) for r in responses],
        ...     sampler=rlhf.Sampler(length=8), kl=rlhf.FixedKL(0.1))
        >>> trainer.group_size
        1

    Reference:
        Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global
        Advantage Normalization" (arXiv 2501.03262).
    """

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict | Environment,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: KLController,
        gamma: float = 1.0,
        cliprange: float = 0.2,
        cliprange_high: float | None = None,
        group_baseline: bool = False,
        group_size: int = 1,
        update_epochs: int = 4,
        loss_reduction: str = "token",
        importance_cap: float | None = None,
        **options: Unpack[OnPolicyOptions],
    ) -> None:
        self.gamma = require_number("gamma", gamma, minimum=0.0, maximum=1.0)
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_high = require_optional("cliprange_high", cliprange_high)
        self.group_baseline = require_bool("group_baseline", group_baseline)
        super().__init__(
            actor,
            reward,
            reference,
            sampler=sampler,
            kl=kl,
            group_size=require_group(group_size) if group_baseline else group_size,
            update_epochs=update_epochs,
            loss_reduction=loss_reduction,
            importance_cap=importance_cap,
            kl_place="loss" if group_baseline else "reward",
            **options,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        """Computes whitened rewards to go."""
        mask = rollout.response_mask
        if self.group_baseline:
            # Scores without the KL: here the KL is in the loss by default.
            scores = baselines.group_mean(rollout.total_scores, self.group_size)
            rollout = rollout._replace(scores=scores)
        # `(batch, length)`: sum of the rewards from each token on.
        to_come = returns.discounted_sums(self.rewards(rollout), self.gamma, mask)
        # Whiten over all tokens of the batch: the only baseline without groups.
        return self.experience(rollout, masking.whiten(to_come, mask))

    def objective(
        self, stats: TokenStats, minibatch: Experience
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the clipped policy loss."""
        loss, clipped = on_policy_losses.clipped_policy_loss(
            stats.logprobs,
            minibatch.logprobs,
            minibatch.advantages,
            self.cliprange,
            self.cliprange_high,
        )
        return loss, {"loss/policy": loss, "policy/clipfrac": ops.cast(clipped, "float32")}
