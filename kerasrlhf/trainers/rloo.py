"""REINFORCE with the other responses to a prompt as the baseline."""

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
from kerasrlhf.types import Experience, Rollout, Sampler, Tensor, TokenStats, require_optional


@keras.saving.register_keras_serializable("kerasrlhf")
class RLOO(OnPolicyTrainer):
    """REINFORCE leave-one-out: compares a response with the others to the same prompt.

    The whole response is one action, whose return is its score with the KL penalty. The advantage
    of each token is this return minus the mean return of the other responses to the prompt. There
    is no critic, and the gradient is unbiased.

    Args:
        actor: `ActorCritic` without a separate critic.
        reward, reference, sampler, kl: as in `OnPolicyTrainer`. By default the KL is in
            the reward, by k1.
        group_size: int, at least 2. Responses to every prompt. Defaults to 4.
        update_epochs: int, at least 1. 1 stays on policy. Defaults to 1.
        cliprange: float, above 0, or None. The ratio is clipped as in PPO, for more than one
            update on a rollout. Defaults to None: the plain policy gradient.
        loss_reduction: `"token"`, `"sequence"` or `"fixed"`. `"fixed"` divides by a constant;
            `"token"` divides by the number of sampled tokens, which depends on the samples and so
            is biased. Defaults to `"fixed"`.
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
        >>> rloo = rlhf.RLOO(actor, lambda prompts, responses: [len(r) for r in responses],
        ...                  group_size=4, sampler=rlhf.Sampler(length=8), kl=rlhf.FixedKL(0.1))
        >>> rloo.updates_per_iteration
        1

    Reference:
        Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning
        from Human Feedback in LLMs" (arXiv 2402.14740).
    """

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict | Environment,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: KLController,
        group_size: int = 4,
        update_epochs: int = 1,
        cliprange: float | None = None,
        loss_reduction: str = "fixed",
        importance_cap: float | None = None,
        **options: Unpack[OnPolicyOptions],
    ) -> None:
        # All checks come before the base class copies the reference.
        self.cliprange = require_optional("cliprange", cliprange)
        super().__init__(
            actor,
            reward,
            reference,
            sampler=sampler,
            kl=kl,
            group_size=require_group(group_size),
            update_epochs=update_epochs,
            loss_reduction=loss_reduction,
            importance_cap=importance_cap,
            **options,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        """Computes each return minus the mean return of the other responses."""
        # Return of the whole response, KL included, `(batch,)`.
        worth = ops.sum(self.rewards(rollout), axis=-1)
        return self.experience(rollout, baselines.leave_one_out(worth, self.group_size))

    def objective(
        self, stats: TokenStats, minibatch: Experience
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the policy gradient loss, clipped if `cliprange` is set."""
        given = stats.logprobs, minibatch.logprobs, minibatch.advantages
        # With one update per rollout the ratio is 1, and clipping has no effect.
        if self.cliprange is None:
            loss = on_policy_losses.policy_gradient_loss(*given)
            return loss, {"loss/policy": loss}
        loss, clipped = on_policy_losses.clipped_policy_loss(*given, self.cliprange)
        return loss, {"loss/policy": loss, "policy/clipfrac": ops.cast(clipped, "float32")}
