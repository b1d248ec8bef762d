"""Direct preference optimization on the policy's own responses."""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.trainers import checks
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import Experience, Rollout, TokenStats


class OnlineDPO(OnPolicyTrainer):
    """Iterated DPO: sample, let the reward say which response is better, learn from the pair.

    Of the responses to a prompt the one with the highest and the one with the lowest score make a
    pair with logits `h = beta * (d[best] - d[worst])`, `d` the log ratio of policy and reference
    summed over a response. With `labels="soft"` the reward prefers the better one with probability
    `q = sigmoid(score difference)`, and the loss `-q log sigmoid(h) - (1 - q) log sigmoid(-h)` is
    smallest at the policy that is best for score less `beta` KL; responses that are equally good
    say, with `q = 1/2`, that they deserve the same log ratio. `labels="hard"` takes `q = 1`, and
    equally good responses make no pair. The coefficient of `kl` is `beta`.

    Args:
        actor, reward, reference, sampler, kl: as in `OnPolicyTrainer`; the actor has no critic of
            its own.
        group_size: int, at least 2.
        update_epochs: int.
        labels: `"soft"` or `"hard"`.
        **kwargs: those of `OnPolicyTrainer`, but `kl_in`, `kl_estimator`, `loss_reduction` and
            `importance_cap`: the loss has the KL in it, counts pairs, and holds for any samples.

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.

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
        *args: Any,
        group_size: int = 2,
        update_epochs: int = 1,
        labels: str = "soft",
        **kwargs: Any,
    ):
        unused = {"kl_in", "kl_estimator", "loss_reduction", "importance_cap"} & {*kwargs}
        if unused:
            raise ValueError(
                "The loss of OnlineDPO has the KL in it, counts pairs of responses, and needs no "
                f"importance weights. Leave out {sorted(unused)}."
            )
        if labels not in ("soft", "hard"):
            raise ValueError(f'`labels` must be "soft" or "hard". Received: {labels!r}.')
        checks.check_group(group_size)
        if isinstance(kwargs.get("kl"), FixedKL) and float(kwargs["kl"].coef.numpy()) == 0:
            raise ValueError(
                "The coefficient of `kl` is the loss's beta, and with 0 nothing is learned. Use "
                "one above 0, such as `FixedKL(0.1)`."
            )
        # A response counts once, however long it is: its loss stands on each of its tokens.
        super().__init__(
            *args,
            group_size=group_size,
            update_epochs=update_epochs,
            loss_reduction="sequence",
            **kwargs,
        )
        self.labels = labels

    def estimate(self, rollout: Rollout) -> Experience:
        size = self.group_size
        rows = rollout.response_mask.shape[0]
        totals = ops.sum(ops.reshape(rollout.scores, (rows, -1)), axis=1)
        scores = ops.reshape(totals, (-1, size))
        best, worst = ops.argmax(scores, axis=1), ops.argmin(scores, axis=1)
        difference = ops.max(scores, axis=1) - ops.min(scores, axis=1)
        if self.labels == "soft":
            preferred = ops.sigmoid(difference)
            worst = ops.where(difference == 0, 1, worst)  # and the best is the first
        else:
            # All responses equally good: both marks fall on one, and there is no pair.
            preferred = ops.ones_like(difference)
        sides = ops.reshape(ops.one_hot(best, size) - ops.one_hot(worst, size), (-1,))
        return self.experience(
            rollout,
            sides,
            side=sides,
            preferred=ops.repeat(preferred, size),
            beta=ops.full(sides.shape, rollout.kl_coef),
        )

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        extras, mask = minibatch.extras, minibatch.response_mask
        ratios = masking.masked_sum(stats.logprobs - minibatch.ref_logprobs, mask, axis=-1)
        signed = ops.reshape(extras["side"] * ratios, (-1, self.group_size))
        logits = extras["beta"] * ops.repeat(ops.sum(signed, axis=1), self.group_size)
        q = extras["preferred"]
        losses = q * ops.softplus(-logits) + (1.0 - q) * ops.softplus(logits)
        # Two of a group are in the loss: their mean, and not that over the group, is a prompt's.
        losses = 0.5 * self.group_size * self._paired(minibatch) * losses
        loss = ops.broadcast_to(losses[:, None], mask.shape)
        # Half, where there is no better one or the policy prefers neither.
        right = 0.5 + 0.5 * ops.sign(logits) * ops.sign(q - 0.5)
        agrees = ops.broadcast_to(right[:, None], mask.shape)
        return loss, {"loss/policy": loss, "policy/accuracy": agrees}

    def _paired(self, minibatch):
        """1 for responses in a pair; one that `mask_overlong` leaves out takes both with it."""
        marked = minibatch.extras["side"] != 0
        missing = ops.logical_and(
            marked, ops.logical_not(ops.any(minibatch.response_mask, axis=-1))
        )
        broken = ops.any(ops.reshape(missing, (-1, self.group_size)), axis=1)
        whole = ops.logical_not(ops.repeat(broken, self.group_size))
        return ops.cast(ops.logical_and(marked, whole), "float32")
