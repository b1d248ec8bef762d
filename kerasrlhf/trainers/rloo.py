"""REINFORCE with the other responses to a prompt as the baseline."""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import baselines, policy_losses
from kerasrlhf.trainers import checks
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import Experience, Rollout, TokenStats


class RLOO(OnPolicyTrainer):
    """REINFORCE leave-one-out: a response is as good as it beats the others to its prompt.

    The whole response is one action. Its return, score and KL penalty together, less the mean
    return of the other responses to the prompt, is the advantage of each of its tokens. There is
    no critic, and the gradient is unbiased.

    Args:
        actor, reward, reference, sampler, kl: as in `OnPolicyTrainer`; the actor has no critic of
            its own.
        group_size: int, at least 2.
        update_epochs: int. 1 stays on policy.
        cliprange: float, above 0: the ratio is clipped as in PPO, for more than one update of a
            rollout. None: the plain policy gradient.
        loss_reduction: as in `OnPolicyTrainer`. `"fixed"` divides by a constant; `"token"` divides
            by the number of sampled tokens, which depends on the samples and so is biased.
        **kwargs: those of `OnPolicyTrainer`.

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.

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
        *args: Any,
        group_size: int = 4,
        update_epochs: int = 1,
        cliprange: float | None = None,
        loss_reduction: str = "fixed",
        **kwargs: Any,
    ):
        checks.check_group(group_size)
        self.cliprange = checks.optional("cliprange", cliprange)
        super().__init__(
            *args,
            group_size=group_size,
            update_epochs=update_epochs,
            loss_reduction=loss_reduction,
            **kwargs,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        worth = ops.sum(self.rewards(rollout), axis=-1)
        return self.experience(rollout, baselines.leave_one_out(worth, self.group_size))

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        given = stats.logprobs, minibatch.logprobs, minibatch.advantages
        if self.cliprange is None:
            loss = policy_losses.policy_gradient_loss(*given)
            return loss, {"loss/policy": loss}
        loss, clipped = policy_losses.clipped_policy_loss(*given, self.cliprange)
        return loss, {"loss/policy": loss, "policy/clipfrac": ops.cast(clipped, "float32")}
