"""REINFORCE with what PPO adds to it, and no critic."""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import baselines, masking, policy_losses, returns
from kerasrlhf.trainers import checks
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import Experience, Rollout, TokenStats, require_bool, require_number


class REINFORCEPlusPlus(OnPolicyTrainer):
    """REINFORCE++: returns to come, whitened over the whole batch, and PPO's clipping.

    The reward of a token is the KL penalty, and the score at the end, as in PPO. The advantage of
    a token is the sum of the rewards from it on, whitened over all tokens of the batch instead of
    compared with a critic or a group.

    Args:
        actor, reward, reference, sampler, kl: as in `OnPolicyTrainer`; the actor has no critic of
            its own.
        gamma: float in [0, 1]. Discount per token.
        cliprange: float, above 0. The ratio counts between 1 - cliprange and 1 + cliprange.
        cliprange_high: float, above 0. How far the ratio counts upward, when that differs.
        group_baseline: bool. Scores are first reduced by the mean of their group, which takes a
            `group_size` of at least 2 (the paper's form for several responses to a prompt).
        kl_in: `"reward"` or `"loss"`. None: the paper's, `"loss"` (with k2) for `group_baseline`
            and `"reward"` (with k1) otherwise.
        **kwargs: those of `OnPolicyTrainer`.

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.

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
        *args: Any,
        gamma: float = 1.0,
        cliprange: float = 0.2,
        cliprange_high: float | None = None,
        group_baseline: bool = False,
        kl_in: str | None = None,
        **kwargs: Any,
    ):
        self.gamma = checks.unit_interval("gamma", gamma)
        self.cliprange = require_number("cliprange", cliprange, above=0.0)
        self.cliprange_high = checks.optional("cliprange_high", cliprange_high)
        self.group_baseline = require_bool("group_baseline", group_baseline)
        if group_baseline:
            checks.check_group(kwargs.get("group_size", 1))
        kl_in = kl_in or ("loss" if group_baseline else "reward")
        super().__init__(*args, kl_in=kl_in, **kwargs)

    def estimate(self, rollout: Rollout) -> Experience:
        mask = rollout.response_mask
        if self.group_baseline:
            rows = mask.shape[0]
            totals = ops.sum(ops.reshape(rollout.scores, (rows, -1)), axis=1)
            rollout = rollout._replace(scores=baselines.group_mean(totals, self.group_size))
        to_come = returns.discounted_sums(self.rewards(rollout), self.gamma)
        return self.experience(rollout, masking.whiten(to_come, mask))

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        loss, clipped = policy_losses.clipped_policy_loss(
            stats.logprobs,
            minibatch.logprobs,
            minibatch.advantages,
            self.cliprange,
            self.cliprange_high,
        )
        return loss, {"loss/policy": loss, "policy/clipfrac": ops.cast(clipped, "float32")}
