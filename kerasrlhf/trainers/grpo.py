"""Advantages relative to a group of responses, with the KL in the loss."""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import baselines, policy_losses
from kerasrlhf.trainers import checks
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import Experience, Rollout, TokenStats, require_number


class GRPO(OnPolicyTrainer):
    """Group relative policy optimization, and its form without biases, Dr. GRPO.

    The advantage of every token of a response is its score less the mean of its group, divided by
    the group's standard deviation. The KL to the reference is a term of the loss (k3), and the loss
    a mean over each response, so that tokens of short ones count more.

    What is made large is then not `E[score] - coef * KL`. Because of the division groups of nearly
    equal scores count as much as others: in groups of two the advantage is a sign, and what counts
    is the chance to beat another response. Without the division, advantages are still
    `(group_size - 1) / group_size` of what they are in `RLOO`, which a KL in the loss does not
    shrink with, and k3 pulls by `D(reference, policy)`. `variant="dr_grpo"` divides by neither
    deviation nor length and has the KL in the reward: its gradient is that of
    `E[score] - coef * KL`, as RLOO's is. With `kl_in="reward"` plain GRPO comes to rest there too:
    at the best policy score less KL is the same for all responses, and all advantages are 0.

    Args:
        actor, reward, reference, sampler, kl: as in `OnPolicyTrainer`; the actor has no critic of
            its own.
        group_size: int, at least 2.
        update_epochs: int.
        cliprange: float, above 0. The ratio counts between 1 - cliprange and 1 + cliprange.
        cliprange_high: float, above 0. How far the ratio counts upward, when that differs.
        variant: `"grpo"`, or `"dr_grpo"`: advantages are not divided by the deviation.
        kl_in, kl_estimator, loss_reduction: as in `OnPolicyTrainer`. None: `"loss"`, k3 and
            `"sequence"` as in the paper; for `"dr_grpo"` `"reward"`, k1 and `"fixed"`. Its paper
            has no KL at all: give a coefficient of 0 for that.
        **kwargs: those of `OnPolicyTrainer`.

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> grpo = rlhf.GRPO(actor, lambda prompts, responses: [len(r) for r in responses],
        ...                  group_size=8, sampler=rlhf.Sampler(length=8), kl=rlhf.FixedKL(0.04))
        >>> grpo.kl_in, grpo.kl_estimator, grpo.loss_reduction
        ('loss', 'k3', 'sequence')

    Reference:
        Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), eq. 3; Liu et al. 2025, "Understanding
        R1-Zero-Like Training" (arXiv 2503.20783); clip-higher: Yu et al. 2025 (arXiv 2503.14476).
    """

    def __init__(
        self,
        *args: Any,
        group_size: int = 8,
        update_epochs: int = 1,
        cliprange: float = 0.2,
        cliprange_high: float | None = None,
        variant: str = "grpo",
        kl_in: str | None = None,
        kl_estimator: str | None = None,
        loss_reduction: str | None = None,
        **kwargs: Any,
    ):
        if variant not in ("grpo", "dr_grpo"):
            raise ValueError(f'`variant` must be "grpo" or "dr_grpo". Received: {variant!r}.')
        checks.check_group(group_size)
        self.variant = variant
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_high = checks.optional("cliprange_high", cliprange_high)
        kl_in = kl_in or ("loss" if variant == "grpo" else "reward")
        super().__init__(
            *args,
            group_size=group_size,
            update_epochs=update_epochs,
            kl_in=kl_in,
            kl_estimator=kl_estimator or ("k3" if kl_in == "loss" else None),
            loss_reduction=loss_reduction or ("sequence" if variant == "grpo" else "fixed"),
            **kwargs,
        )

    def estimate(self, rollout: Rollout) -> Experience:
        worth = ops.sum(self.rewards(rollout), axis=-1)
        relative = baselines.group_normalized if self.variant == "grpo" else baselines.group_mean
        return self.experience(rollout, relative(worth, self.group_size))

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        loss, clipped = policy_losses.clipped_policy_loss(
            stats.logprobs,
            minibatch.logprobs,
            minibatch.advantages,
            self.cliprange,
            self.cliprange_high,
        )
        return loss, {"loss/policy": loss, "policy/clipfrac": ops.cast(clipped, "float32")}
