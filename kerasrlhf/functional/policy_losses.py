"""Losses of the policy, per token and unreduced."""

from keras import ops

from kerasrlhf.functional._inputs import check_positive, check_same_shape, float32
from kerasrlhf.functional.kl import k1


def clipped_policy_loss(logprobs, old_logprobs, advantages, cliprange):
    """Clipped surrogate objective of PPO, as a loss to be made small.

    `max(-A ratio, -A clip(ratio, 1 - cliprange, 1 + cliprange))`, `ratio = exp(logprobs - old)`:
    no gain from leaving the range, and a full gradient back into it.

    Args:
        logprobs: Tensor `(batch, length)`, in nats, of the policy being updated.
        old_logprobs: Tensor `(batch, length)`, in nats, of the policy that sampled.
        advantages: Tensor `(batch, length)`, of the unit of the rewards, or whitened.
        cliprange: Number above 0: how far the ratio may move from 1.

    Returns:
        `(loss, clipped)`, each `(batch, length)`: float32, and bool where the clipped term is
        strictly the larger. Give finite numbers at padding, too (`masking.zero_outside`).

    Raises:
        ValueError: When `cliprange` is not above 0 or the static shapes differ.

    Example:
        >>> import math
        >>> loss, clipped = clipped_policy_loss([[math.log(1.5), 0.0]], [[0.0, 0.0]],
        ...                                     [[2.0, 2.0]], cliprange=0.25)
        >>> loss.numpy().tolist(), clipped.numpy().tolist()
        ([[-2.5, -2.0]], [[True, False]])

    Reference:
        Schulman et al. 2017, arXiv 1707.06347, eq. 7; Huang et al. 2023, "The N Implementation
        Details of RLHF with PPO" (N20).
    """
    check_positive("cliprange", cliprange)
    ratio = ops.exp(k1(logprobs, old_logprobs))
    advantages = float32(advantages)
    check_same_shape(logprobs=ratio, advantages=advantages)
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * ops.clip(ratio, 1 - cliprange, 1 + cliprange)
    return ops.maximum(unclipped_loss, clipped_loss), clipped_loss > unclipped_loss
