"""Losses of the policy, per token and unreduced."""

from keras import ops

from kerasrlhf.functional._inputs import check_positive, check_same_shape, float32
from kerasrlhf.functional.kl import k1
from kerasrlhf.functional.masking import masked_sum


def clipped_policy_loss(
    logprobs, old_logprobs, advantages, cliprange, cliprange_high=None, dual_clip=None
):
    """Clipped surrogate objective of PPO, as a loss to be made small.

    `max(-A ratio, -A clip(ratio, 1 - cliprange, 1 + cliprange))`, `ratio = exp(logprobs - old)`:
    no gain from leaving the range, and a full gradient back into it.

    Args:
        logprobs: Tensor `(batch, length)`, in nats, of the policy being updated.
        old_logprobs: Tensor `(batch, length)`, in nats, of the policy that sampled.
        advantages: Tensor `(batch, length)`, of the unit of the rewards, or whitened.
        cliprange: Number above 0: how far the ratio may move from 1.
        cliprange_high: Number above 0: how far it may move upward, when that differs (DAPO's
            clip-higher leaves unlikely tokens room to grow). None: `cliprange`.
        dual_clip: Number above 1, or None. Where the advantage is negative the loss is at most
            `-dual_clip A`, so that one token of a huge ratio cannot rule the update.

    Returns:
        `(loss, clipped)`, each `(batch, length)`: float32, and bool where a clipped term decides.
        Give finite numbers at padding, too (`masking.zero_outside`).

    Raises:
        ValueError: When a range is not above 0, `dual_clip` not above 1, or the static shapes
            differ.

    Example:
        >>> import math
        >>> loss, clipped = clipped_policy_loss([[math.log(1.5), 0.0]], [[0.0, 0.0]],
        ...                                     [[2.0, 2.0]], cliprange=0.25)
        >>> loss.numpy().tolist(), clipped.numpy().tolist()
        ([[-2.5, -2.0]], [[True, False]])

    Reference:
        Schulman et al. 2017, arXiv 1707.06347, eq. 7; Huang et al. 2023, "The N Implementation
        Details of RLHF with PPO" (N20); clip-higher: Yu et al. 2025, arXiv 2503.14476, eq. 10;
        dual clip: Ye et al. 2019, arXiv 1912.09729, eq. 5.
    """
    check_positive("cliprange", cliprange)
    high = cliprange if cliprange_high is None else cliprange_high
    check_positive("cliprange_high", high)
    ratio = ops.exp(k1(logprobs, old_logprobs))
    advantages = float32(advantages)
    check_same_shape(logprobs=ratio, advantages=advantages)
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * ops.clip(ratio, 1 - cliprange, 1 + high)
    loss, clipped = ops.maximum(unclipped_loss, clipped_loss), clipped_loss > unclipped_loss
    if dual_clip is None:
        return loss, clipped
    if isinstance(dual_clip, int | float) and not dual_clip > 1:
        raise ValueError(f"`dual_clip` is {dual_clip}, expected a number above 1, or None.")
    bound = -dual_clip * advantages
    bounded = ops.logical_and(advantages < 0, loss > bound)
    return ops.where(bounded, bound, loss), ops.logical_or(clipped, bounded)


def policy_gradient_loss(logprobs, old_logprobs, advantages):
    """The surrogate of the plain policy gradient, without clipping.

    `-A ratio`, `ratio = exp(logprobs - old_logprobs)`. Where the ratio is 1 its gradient is that
    of REINFORCE, `-A` times the gradient of `logprobs`.

    Args:
        logprobs: Tensor `(batch, length)`, in nats, of the policy being updated.
        old_logprobs: Tensor `(batch, length)`, in nats, of the policy that sampled.
        advantages: Tensor `(batch, length)`.

    Returns:
        Tensor `(batch, length)`, float32.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> policy_gradient_loss([[0.0]], [[0.0]], [[2.0]]).numpy().tolist()
        [[-2.0]]

    Reference:
        Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
        Reinforcement Learning" (REINFORCE); Schulman et al. 2017, arXiv 1707.06347, eq. 6.
    """
    ratio = ops.exp(k1(logprobs, old_logprobs))
    advantages = float32(advantages)
    check_same_shape(logprobs=ratio, advantages=advantages)
    return -advantages * ratio


def importance_weights(logprobs, behavior_logprobs, cap=None):
    """How much more likely a token was under the policy than under what drew it.

    `exp(logprobs - behavior_logprobs)`, at most `cap`. With these weights a token counts, among
    those that could stand in its place, as often as the policy would draw it. The tokens before
    and after it stay as often as they were drawn: exact for a response is the product of its
    weights, whose variance grows with its length. The cap trades more of exactness for less
    variance.

    Args:
        logprobs: Tensor `(batch, length)`, in nats, of the policy at the start of the updates.
        behavior_logprobs: Tensor `(batch, length)`, in nats, of the distribution that was drawn
            from.
        cap: Number above 0, or None.

    Returns:
        Tensor `(batch, length)`, float32, not negative.

    Raises:
        ValueError: When `cap` is not above 0 or the static shapes differ.

    Example:
        >>> import math
        >>> weights = importance_weights([[math.log(0.75), 0.0]], [[math.log(0.25), 0.0]], cap=2.0)
        >>> weights.numpy().tolist()
        [[2.0, 1.0]]

    Reference:
        Espeholt et al. 2018, arXiv 1802.01561, section 4.1 (truncated importance weights).
    """
    weights = ops.exp(k1(logprobs, behavior_logprobs))
    if cap is None:
        return weights
    check_positive("cap", cap)
    return ops.minimum(weights, cap)


def response_weights(logprobs, sampled_logprobs, mask):
    """How much a response of an earlier policy counts: truncated weights of whole responses.

    `min(1, prod_t exp(logprobs[t] - sampled_logprobs[t]))`, one number for all tokens of a
    response. It is `min(p, q)(y) / q(y)` with `p` the policy and `q` the earlier one, so the
    weighted sample is one of the part that both have in common: neither the prefix of a token nor
    what follows it comes from a policy that is gone. Weights of single tokens leave both as they
    were sampled, and without a cap one token that was rare then and is likely now counts thousands
    of times.

    With the KL in the reward (k1) all responses to a prompt return the same at the best policy, so
    advantages vanish there whatever the weights are. Elsewhere the policy gradient of responses
    that count `w` times, `w (return - value)` on all of their tokens, is that of the weighted mean
    of `(return - value)^2 / (2 kl_coef)`, whose minimum is the best policy. That takes one weight
    for all tokens of a response.

    Args:
        logprobs: Tensor `(batch, length)`, in nats, of the policy at the start of the updates.
        sampled_logprobs: Tensor `(batch, length)`, in nats, of the policy that sampled.
        mask: Tensor `(batch, length)`, bool, true on response tokens.

    Returns:
        Tensor `(batch,)`, float32, between 0 and 1.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> import math
        >>> now = [[math.log(0.8), math.log(0.25)], [math.log(0.5), math.log(0.9)]]
        >>> then = [[math.log(0.2), math.log(0.5)], [math.log(0.25), math.log(0.3)]]
        >>> mask = [[True, True], [True, False]]
        >>> response_weights(now, then, mask).numpy().tolist()  # 4 * 1/2; 2
        [1.0, 1.0]
        >>> response_weights(then, now, mask).numpy().round(4).tolist()
        [0.5, 0.5]

    Reference:
        Espeholt et al. 2018, arXiv 1802.01561, section 4.1 (truncation at 1); Nachum et al. 2017,
        "Bridging the Gap Between Value and Policy Based Reinforcement Learning", arXiv 1702.08892
        (the loss that the gradient belongs to).
    """
    return ops.exp(ops.minimum(masked_sum(k1(logprobs, sampled_logprobs), mask, axis=-1), 0.0))
