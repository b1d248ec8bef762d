"""Proximal policy optimization for language models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import keras
from keras import ops

from kerasrlhf.functional import masking, on_policy_losses, returns
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.rollouts.environments import Environment
from kerasrlhf.trainers.kl_control import KLController
from kerasrlhf.trainers.on_policy import OnPolicyOptions, OnPolicyTrainer
from kerasrlhf.trainers.options import CriticWarmup
from kerasrlhf.types import (
    Experience,
    Rollout,
    Sampler,
    Tensor,
    TokenStats,
    require_bool,
    require_instance_or_none,
    require_number,
    require_optional,
)


@keras.saving.register_keras_serializable("kerasrlhf")
class PPO(OnPolicyTrainer):
    """PPO-RLHF: clipped policy and value losses on rewards that carry a KL penalty.

    Every response is an episode and every token an action. The reward of a token is
    `-kl_coef * (logprob - ref_logprob)`, plus the score at the last token (N18).

    Args:
        actor: `ActorCritic`. Its trunk, value head and separate critic are trained.
        reward: `RewardModel`, a function of prompts and responses, or a list or dict of these with
            weights (`OnPolicyTrainer`). Or an environment, with its own prompts.
        reference: CausalLM of the same vocabulary. Defaults to None: the actor at
            construction, frozen.
        sampler: `Sampler`. Its temperature divides the logits everywhere (N10).
        kl: `FixedKL` or `AdaptiveKL` (N21). By default in the reward, by k1.
        gamma: float in [0, 1]. Discount; 1 in the original (N16). Defaults to 1.
        lam: float in [0, 1]. Decay of the advantage estimator (N16). Defaults to 0.95.
        cliprange: float, above 0. The ratio is clipped to 1 - cliprange and 1 + cliprange (N20).
            Defaults to 0.2.
        cliprange_high: float, above 0, or None. Clips the ratio at 1 + cliprange_high instead
            (clip-higher). Defaults to None: `cliprange`.
        dual_clip: float, above 1, or None. Bounds the loss of tokens with negative advantages.
            Defaults to None.
        cliprange_value: float, above 0. New values are clipped to the old ones plus or minus this
            (N20). Defaults to 0.2.
        vf_coef: float, at least 0. Weight of the value loss (N20). Defaults to 0.1.
        whiten_rewards: bool. Whether rewards get variance 1 and keep their mean (N19, P24).
            Defaults to False.
        whiten_advantages: bool. Whether advantages get mean 0 and variance 1 (N19, P25). Defaults
            to True.
        warmup: `CriticWarmup`, iterations that only fit the critic. Defaults to None.
        group_size: int, at least 1. Responses to every prompt. Defaults to 1.
        update_epochs: int, at least 1. Passes over a rollout. Defaults to 4.
        loss_reduction: `"token"`, `"sequence"` or `"fixed"`. Defaults to `"token"`.
        importance_cap: float, above 0, or None. Truncated importance sampling. Defaults to None.
        **options: `num_minibatches`, `micro_batches`, `entropy_coef`, `target_kl`,
            `mask_overlong`, `shaping`, `texts`, `prompt_prediction`, `memory`, `reward_timeout`
            and `seed`, as `OnPolicyTrainer` describes them. Every one has an effect (M13).

    Raises:
        ValueError: If an argument is outside its range, or parts do not fit together.
        TypeError: If an argument is unknown.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> ppo = rlhf.PPO(actor, lambda prompts, responses: [len(r) for r in responses],
        ...                sampler=rlhf.Sampler(length=8), kl=rlhf.FixedKL(0.1))
        >>> ppo.updates_per_iteration
        4

    Reference:
        Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347);
        Ziegler et al. 2019 (arXiv 1909.08593); Huang et al. 2024, "The N+ Implementation Details
        of RLHF with PPO" (arXiv 2403.17031). Numbers such as N18 count the published details: N
        those of Huang et al. 2023, "The N Implementation Details of RLHF with PPO", P those of
        2024, S statistics, M mistakes of other systems; CONFORMANCE.md lists them all.
    """

    learns_values = True

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict | Environment,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: KLController,
        gamma: float = 1.0,
        lam: float = 0.95,
        cliprange: float = 0.2,
        cliprange_high: float | None = None,
        dual_clip: float | None = None,
        cliprange_value: float = 0.2,
        vf_coef: float = 0.1,
        whiten_rewards: bool = False,
        whiten_advantages: bool = True,
        warmup: CriticWarmup | None = None,
        group_size: int = 1,
        update_epochs: int = 4,
        loss_reduction: str = "token",
        importance_cap: float | None = None,
        **options: Unpack[OnPolicyOptions],
    ) -> None:
        # All checks come before the base class copies the reference.
        self.gamma = require_number("gamma", gamma, minimum=0.0, maximum=1.0)
        self.lam = require_number("lam", lam, minimum=0.0, maximum=1.0)
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_high = require_optional("cliprange_high", cliprange_high)
        self.dual_clip = require_optional("dual_clip", dual_clip, above=1.0)
        self.cliprange_value = require_number("cliprange_value", cliprange_value, above=0.0)
        self.vf_coef = require_number("vf_coef", vf_coef, minimum=0.0)
        self.whiten_rewards = require_bool("whiten_rewards", whiten_rewards)
        self.whiten_advantages = require_bool("whiten_advantages", whiten_advantages)
        self.warmup = require_instance_or_none("warmup", warmup, CriticWarmup)
        super().__init__(
            actor,
            reward,
            reference,
            sampler=sampler,
            kl=kl,
            group_size=group_size,
            update_epochs=update_epochs,
            loss_reduction=loss_reduction,
            importance_cap=importance_cap,
            **options,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        """Whitens rewards, estimates advantages by GAE, and whitens them."""
        mask = rollout.response_mask
        rewards = self.rewards(rollout)  # N18
        if self.whiten_rewards:
            rewards = masking.whiten(rewards, mask, center=False)  # N19, P24
        advantages, targets = returns.gae(
            rewards, rollout.values, mask, self.gamma, self.lam
        )  # N16
        if self.whiten_advantages:
            advantages = masking.whiten(advantages, mask)  # N19, P25
        # A tensor, not a Python bool: one compiled program serves warmup and training.
        if self.warmup is None:
            return self.experience(rollout, advantages, targets)
        warm = ops.full((mask.shape[0],), rollout.iteration < self.warmup.iterations)
        return self.experience(rollout, advantages, targets, is_warmup=warm)

    def objective(
        self, stats: TokenStats, minibatch: Experience
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes clipped policy and value losses; during the warmup, the loss of the critic."""
        policy_loss, policy_clipped = on_policy_losses.clipped_policy_loss(  # N20
            stats.logprobs,
            minibatch.logprobs,
            minibatch.advantages,
            self.cliprange,
            self.cliprange_high,
            self.dual_clip,
        )
        value_loss, value_clipped = on_policy_losses.clipped_value_loss(  # N20
            stats.values, minibatch.values, minibatch.returns, self.cliprange_value
        )
        loss = policy_loss + self.vf_coef * value_loss
        # The flag is `(batch,)`, the losses are `(batch, length)`.
        if self.warmup is not None:
            warmup_loss = on_policy_losses.critic_warmup_loss(
                stats.values,
                minibatch.returns,
                stats.logprobs,
                minibatch.ref_logprobs,
                self.warmup.kl_coef,
            )
            loss = ops.where(minibatch.extras["is_warmup"][:, None], warmup_loss, loss)
        return loss, {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "policy/clipfrac": ops.cast(policy_clipped, "float32"),
            "value/clipfrac": ops.cast(value_clipped, "float32"),
            "value/mean": stats.values,
            "value/returns": minibatch.returns,
        }
