"""Proximal policy optimization for language models."""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import masking, policy_losses, returns, value_losses
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers import checks
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import (
    Experience,
    Rollout,
    Sampler,
    TokenStats,
    require_bool,
    require_int,
    require_number,
)


class PPO(OnPolicyTrainer):
    """PPO-RLHF: clipped policy and value losses on rewards that carry a KL penalty.

    Every response is an episode and every token an action. The reward of a token is
    `-kl_coef * (logprob - ref_logprob)`, and the score comes on top at the last token (N18).

    Args:
        actor: `ActorCritic`; its trunk, value head and separate critic are trained.
        reward: `RewardModel`, or a function of prompts and responses.
        reference: None (the actor as it is now, frozen), or a CausalLM of the same vocabulary.
        sampler: `Sampler`; the temperature divides the logits everywhere (N10).
        kl: `FixedKL` or `AdaptiveKL` (N21).
        gamma: float in [0, 1]. Discount; 1 in the original (N16).
        lam: float in [0, 1]. Decay of the advantage estimator (N16).
        cliprange: float, above 0. The ratio counts between 1 - cliprange and 1 + cliprange (N20).
        cliprange_high: float, above 0. How far the ratio counts upward, when that differs from
            `cliprange` (clip-higher).
        dual_clip: float, above 1, or None. Bounds the loss of tokens with negative advantages.
        cliprange_value: float, above 0. Values count within this of the old ones (N20).
        vf_coef: float. Weight of the value loss (N20).
        whiten_rewards: bool. Rewards get variance 1, and keep their mean (N19, P24).
        whiten_advantages: bool. Advantages get mean 0 and variance 1 (N19, P25).
        critic_warmup: int. Iterations at the start that fit the critic and hold the policy: their
            loss is `(R - V)^2 + critic_warmup_kl * D(policy, reference)`, and what `entropy_coef`,
            `kl_in="loss"`, `ptx_coef` and `reverse_coef` add where they are set.
        critic_warmup_kl: float. Squared score units per nat.
        **kwargs: those of `OnPolicyTrainer`, such as `update_epochs=4`, `num_minibatches=1`,
            `group_size=1`, `ptx_coef=0.0`, `entropy_coef=0.0`, `target_kl=None`, `seed=0`. None is
            without effect (M13).

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.

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
        reward: Any,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: FixedKL,
        gamma: float = 1.0,
        lam: float = 0.95,
        cliprange: float = 0.2,
        cliprange_value: float = 0.2,
        vf_coef: float = 0.1,
        whiten_rewards: bool = False,
        whiten_advantages: bool = True,
        cliprange_high: float | None = None,
        dual_clip: float | None = None,
        critic_warmup: int = 0,
        critic_warmup_kl: float = 1.0,
        **kwargs: Any,
    ):
        # All checks come before the base class copies the reference.
        self.gamma = checks.unit_interval("gamma", gamma)
        self.lam = checks.unit_interval("lam", lam)
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_value = require_number("cliprange_value", cliprange_value, above=0.0)
        self.vf_coef = require_number("vf_coef", vf_coef, minimum=0.0)
        self.whiten_rewards = require_bool("whiten_rewards", whiten_rewards)
        self.whiten_advantages = require_bool("whiten_advantages", whiten_advantages)
        self.cliprange_high = checks.optional("cliprange_high", cliprange_high)
        self.dual_clip = checks.optional("dual_clip", dual_clip, above=1.0)
        self.critic_warmup = require_int("critic_warmup", critic_warmup, minimum=0)
        self.critic_warmup_kl = require_number("critic_warmup_kl", critic_warmup_kl, minimum=0.0)
        super().__init__(actor, reward, reference, sampler=sampler, kl=kl, **kwargs)

    def estimate(self, rollout: Rollout) -> Experience:
        mask = rollout.response_mask
        rewards = self.rewards(rollout)  # N18
        if self.whiten_rewards:
            rewards = masking.whiten(rewards, mask, center=False)  # N19, P24
        advantages, targets = returns.gae(
            rewards, rollout.values, mask, self.gamma, self.lam
        )  # N16
        if self.whiten_advantages:
            advantages = masking.whiten(advantages, mask)  # N19, P25
        if not self.critic_warmup:
            return self.experience(rollout, advantages, targets)
        warm = ops.full((mask.shape[0],), rollout.iteration < self.critic_warmup)
        return self.experience(rollout, advantages, targets, is_warmup=warm)

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        policy_loss, policy_clipped = policy_losses.clipped_policy_loss(  # N20
            stats.logprobs,
            minibatch.logprobs,
            minibatch.advantages,
            self.cliprange,
            self.cliprange_high,
            self.dual_clip,
        )
        value_loss, value_clipped = value_losses.clipped_value_loss(  # N20
            stats.values, minibatch.values, minibatch.returns, self.cliprange_value
        )
        loss = policy_loss + self.vf_coef * value_loss
        if self.critic_warmup:
            warmup_loss = value_losses.critic_warmup_loss(
                stats.values,
                minibatch.returns,
                stats.logprobs,
                minibatch.ref_logprobs,
                self.critic_warmup_kl,
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
