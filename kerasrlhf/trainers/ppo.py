"""Proximal policy optimisation for language models."""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import kl as kl_estimators
from kerasrlhf.functional import masking, policy_losses, returns, value_losses
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats, require_number


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
        cliprange_value: float, above 0. Values count within this of the old ones (N20).
        vf_coef: float. Weight of the value loss (N20).
        whiten_rewards: bool. Rewards get variance 1, and keep their mean (N19, P24).
        whiten_advantages: bool. Advantages get mean 0 and variance 1 (N19, P25).
        **kwargs: those of `OnPolicyTrainer`: `update_epochs=4`, `num_minibatches=1`,
            `micro_batches=1`, `ptx_coef=0.0`, `ptx_data`, `score_scale`, `score_clip`,
            `missing_end_score`, `missing_end_penalty`, `seed`. None is without effect (M13).

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
        **kwargs: Any,
    ):
        super().__init__(actor, reward, reference, sampler=sampler, kl=kl, **kwargs)
        self.gamma = require_number("gamma", gamma, minimum=0.0)
        self.lam = require_number("lam", lam, minimum=0.0)
        for name, value in (("gamma", gamma), ("lam", lam)):
            if value > 1:
                raise ValueError(f"`{name}` must be at most 1. Received: {value}.")
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_value = require_number("cliprange_value", cliprange_value, above=0.0)
        self.vf_coef = require_number("vf_coef", vf_coef, minimum=0.0)
        self.whiten_rewards, self.whiten_advantages = whiten_rewards, whiten_advantages

    def estimate(self, rollout: Rollout) -> Experience:
        mask = rollout.response_mask
        rewards = returns.token_rewards(  # N18
            rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, rollout.kl_coef
        )
        if self.whiten_rewards:
            rewards = masking.whiten(rewards, mask, center=False)  # N19, P24
        advantages, targets = returns.gae(
            rewards, rollout.values, mask, self.gamma, self.lam
        )  # N16
        if self.whiten_advantages:
            advantages = masking.whiten(advantages, mask)  # N19, P25
        return Experience(
            token_ids=rollout.token_ids,
            padding_mask=rollout.padding_mask,
            response_mask=mask,
            prompt_lengths=rollout.prompt_lengths,
            logprobs=rollout.logprobs,
            ref_logprobs=rollout.ref_logprobs,
            values=rollout.values,
            advantages=advantages,
            returns=targets,
        )

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        policy_loss, policy_clipped = policy_losses.clipped_policy_loss(  # N20
            stats.logprobs, minibatch.logprobs, minibatch.advantages, self.cliprange
        )
        value_loss, value_clipped = value_losses.clipped_value_loss(  # N20
            stats.values, minibatch.values, minibatch.returns, self.cliprange_value
        )
        ratio = ops.exp(stats.logprobs - minibatch.logprobs)
        logs = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "policy/clipfrac": ops.cast(policy_clipped, "float32"),
            "policy/approxkl": kl_estimators.k2(stats.logprobs, minibatch.logprobs),
            "policy/ratio": ratio,
            "policy/ratio_error": ops.abs(ratio - 1.0),
            "value/clipfrac": ops.cast(value_clipped, "float32"),
            "value/mean": stats.values,
            "value/returns": minibatch.returns,
        }
        return policy_loss + self.vf_coef * value_loss, logs
