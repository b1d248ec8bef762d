"""Losses of the policy and its critic, per token and unreduced, and importance weights.

Every function raises a `ValueError` if the static shapes of its tensors differ or a number is
outside its range. Padding must hold finite numbers in the losses (`masking.zero_outside`).
"""

from keras import ops

from kerasrlhf.functional._inputs import Tensor, check_positive, check_same_shape, float32
from kerasrlhf.functional.logprobs import k1, k2
from kerasrlhf.functional.masking import masked_mean, masked_sum, masked_variance, zero_outside

# Relative to the mean square: a variance below this is only float32 rounding of a constant.
ROUNDING = 1e-12


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cliprange: float | Tensor,
    cliprange_high: float | Tensor | None = None,
    dual_clip: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the clipped surrogate objective of PPO, as a loss to minimize.

    `max(-A ratio, -A clip(ratio, 1 - cliprange, 1 + cliprange))`, `ratio = exp(logprobs - old)`:
    leaving the range gains nothing, and the gradient back into the range is not clipped.

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy being
            updated.
        old_logprobs: Tensor, `(batch, length)`, in nats. The same under the policy that sampled.
        advantages: Tensor, `(batch, length)`, in units of the rewards, or whitened.
        cliprange: float, above 0. How far the ratio may move from 1.
        cliprange_high: float, above 0. How far it may move upward (DAPO's clip-higher leaves
            unlikely tokens room to grow). Defaults to None: `cliprange`.
        dual_clip: float, above 1. Bounds the loss by `-dual_clip A` where the advantage is
            negative, so one token with a huge ratio cannot dominate the update. Defaults to None:
            no bound.

    Returns:
        Tuple `(loss, clipped)`, each `(batch, length)`: float32, and bool where a clipped term
        decides.

    Example:
        >>> import math
        >>> loss, clipped = rlhf.functional.clipped_policy_loss(
        ...     logprobs=[[math.log(1.5), 0.0]], old_logprobs=[[0.0, 0.0]],
        ...     advantages=[[2.0, 2.0]], cliprange=0.25)
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
    # The larger loss is the pessimistic one (eq. 7, N20).
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * ops.clip(ratio, 1 - cliprange, 1 + high)
    # Strictly larger: at ratio 1 both are equal and `clipfrac` is 0.
    loss, clipped = ops.maximum(unclipped_loss, clipped_loss), clipped_loss > unclipped_loss
    if dual_clip is None:
        return loss, clipped
    if isinstance(dual_clip, int | float) and not dual_clip > 1:
        raise ValueError(f"`dual_clip` is {dual_clip}, expected a number above 1, or None.")
    # Only negative advantages: there the loss grows with the ratio without bound.
    bound = -dual_clip * advantages
    bounded = ops.logical_and(advantages < 0, loss > bound)
    return ops.where(bounded, bound, loss), ops.logical_or(clipped, bounded)


def policy_gradient_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Computes the surrogate loss of the plain policy gradient, without clipping.

    `-A ratio`, `ratio = exp(logprobs - old_logprobs)`. Where the ratio is 1 its gradient is that
    of REINFORCE, `-A` times the gradient of `logprobs`.

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy being
            updated.
        old_logprobs: Tensor, `(batch, length)`, in nats. The same under the policy that sampled.
        advantages: Tensor, `(batch, length)`, in units of the rewards, or whitened.

    Returns:
        Tensor, `(batch, length)`, float32.

    Example:
        >>> rlhf.functional.policy_gradient_loss([[0.0]], [[0.0]], [[2.0]]).numpy().tolist()
        [[-2.0]]

    Reference:
        Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
        Reinforcement Learning" (REINFORCE); Schulman et al. 2017, arXiv 1707.06347, eq. 6.
    """
    # The ratio is 1 in the first update; later it corrects for the policy's change.
    ratio = ops.exp(k1(logprobs, old_logprobs))
    advantages = float32(advantages)
    check_same_shape(logprobs=ratio, advantages=advantages)
    return -advantages * ratio


def importance_weights(
    logprobs: Tensor, behavior_logprobs: Tensor, cap: float | Tensor | None = None
) -> Tensor:
    """Computes per-token importance weights of the policy over the behavior distribution.

    `exp(logprobs - behavior_logprobs)`, at most `cap`. The weight corrects the distribution of
    each token given its prefix; prefixes keep the behavior distribution. The exact weight of a
    response is the product over its tokens, whose variance grows with length. `cap` trades bias
    for variance.

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy at the
            start of the updates.
        behavior_logprobs: Tensor, `(batch, length)`, in nats. The same under the distribution that
            the tokens were sampled from.
        cap: float, above 0. Largest weight. Defaults to None: unbounded.

    Returns:
        Tensor, `(batch, length)`, float32, at least 0.

    Example:
        >>> import math
        >>> weights = rlhf.functional.importance_weights(
        ...     [[math.log(0.75), 0.0]], [[math.log(0.25), 0.0]], cap=2.0)
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


def response_weights(logprobs: Tensor, sampled_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Computes truncated importance weights of whole responses of an earlier policy.

    `min(1, prod_t exp(logprobs[t] - sampled_logprobs[t]))`, one number for all tokens of a
    response. It equals `min(p, q)(y) / q(y)` with `p` the policy and `q` the earlier one, so the
    weighted sample represents the overlap of the two: neither the prefix of a token nor its
    continuation comes from the earlier policy alone. Per-token weights would leave both
    uncorrected, and without a cap one token that has become much likelier counts thousands of
    times.

    With the KL in the reward (k1), all responses to a prompt have the same return under the
    optimal policy, so advantages vanish there whatever the weights are. Elsewhere the policy
    gradient of responses with weight `w`, `w (return - value)` on all of their tokens, is the
    gradient of the weighted mean of `(return - value)^2 / (2 kl_coef)`, whose minimum is the
    optimal policy. That requires one weight for all tokens of a response.

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy at the
            start of the updates.
        sampled_logprobs: Tensor, `(batch, length)`, in nats. The same under the policy that
            sampled.
        mask: Tensor, `(batch, length)`, bool. True on response tokens.

    Returns:
        Tensor, `(batch,)`, float32, from 0 to 1.

    Example:
        >>> import math
        >>> new = [[math.log(0.8), math.log(0.25)], [math.log(0.5), math.log(0.9)]]
        >>> old = [[math.log(0.2), math.log(0.5)], [math.log(0.25), math.log(0.3)]]
        >>> mask = [[True, True], [True, False]]
        >>> rlhf.functional.response_weights(new, old, mask).numpy().tolist()  # 4 * 1/2; 2
        [1.0, 1.0]
        >>> rlhf.functional.response_weights(old, new, mask).numpy().round(4).tolist()
        [0.5, 0.5]

    Reference:
        Espeholt et al. 2018, arXiv 1802.01561, section 4.1 (truncation at 1); Nachum et al. 2017,
        "Bridging the Gap Between Value and Policy Based Reinforcement Learning", arXiv 1702.08892
        (the loss that the gradient belongs to).
    """
    # Truncate the sum of logarithms, before `exp` can overflow.
    return ops.exp(ops.minimum(masked_sum(k1(logprobs, sampled_logprobs), mask, axis=-1), 0.0))


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Computes the squared error of the critic, pessimistic about large steps from old values.

    `0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)` with `c = cliprange_value`.

    Args:
        values: Tensor, `(batch, length)`, in units of score. Of the critic being updated.
        old_values: Tensor, `(batch, length)`, in units of score. Of the critic at sampling.
        returns: Tensor, `(batch, length)`, in units of score. The targets.
        cliprange_value: float, above 0, in units of score. How far a value may move from its old
            one.

    Returns:
        Tuple `(loss, clipped)`, each `(batch, length)`: float32 with the factor 0.5 included, and
        bool where the clipped term is strictly larger.

    Example:
        >>> loss, clipped = rlhf.functional.clipped_value_loss(
        ...     values=[[2.0]], old_values=[[0.0]], returns=[[3.0]], cliprange_value=1.0)
        >>> loss.numpy().tolist(), clipped.numpy().tolist()
        ([[2.0]], [[True]])

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO", value clipping (N20).
    """
    check_positive("cliprange_value", cliprange_value)
    values, old_values, returns = float32(values), float32(old_values), float32(returns)
    check_same_shape(values=values, old_values=old_values, returns=returns)
    # The larger error counts, so a step beyond the range gains nothing (N20).
    near = ops.clip(values, old_values - cliprange_value, old_values + cliprange_value)
    error, clipped_error = ops.square(values - returns), ops.square(near - returns)
    return 0.5 * ops.maximum(error, clipped_error), clipped_error > error


def critic_warmup_loss(
    values: Tensor,
    returns: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    kl_coef: float | Tensor,
) -> Tensor:
    """Computes the loss that fits the critic while it keeps the policy at its start.

    `(R - V)^2 + alpha D(pi, pi0)`. `D` is estimated per token by `d^2 / 2` with
    `d = logprobs - ref_logprobs`, whose gradient is that of the KL divergence where the policy
    sampled. With a separate critic the first term does not affect the policy; with a shared trunk
    the second keeps the policy in place while the first changes the trunk.

    Args:
        values: Tensor, `(batch, length)`, in units of score. Of the critic being updated.
        returns: Tensor, `(batch, length)`, in units of score. The targets.
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy being
            updated.
        ref_logprobs: Tensor, `(batch, length)`, in nats. The same under the reference.
        kl_coef: float or scalar Tensor, at least 0, in squared units of score per nat. `alpha`.

    Returns:
        Tensor, `(batch, length)`, float32.

    Example:
        >>> loss = rlhf.functional.critic_warmup_loss(
        ...     values=[[1.0]], returns=[[3.0]], logprobs=[[-1.0]], ref_logprobs=[[-3.0]],
        ...     kl_coef=0.5)
        >>> loss.numpy().tolist()
        [[5.0]]

    Reference:
        The objective `E[(r - v)^2] + alpha D(pi, pi0)`; the estimator: Schulman 2020,
        "Approximating KL Divergence" (k2).
    """
    values, returns = float32(values), float32(returns)
    check_same_shape(values=values, returns=returns)
    # Neither clipped nor halved: nothing limits how fast the critic is fitted.
    return ops.square(returns - values) + float32(kl_coef) * k2(logprobs, ref_logprobs)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Computes the fraction of the variance of the returns that the critic explains.

    `1 - mean((R - V)^2) / var(R)`, over all true positions. The error is the mean *square*, not
    the variance of the residual, so a constant offset counts against the critic.

    Args:
        values: Tensor, `(batch, length)`, in units of score. Predictions of the critic.
        returns: Tensor, `(batch, length)`, in units of score. The targets.
        mask: Tensor, `(batch, length)`, bool. True on response tokens.

    Returns:
        Tensor, scalar, float32, at most 1: 0 is no better than predicting the mean of the returns.
        Also 0 if the returns have no variance.

    Example:
        >>> mask = [[True, True]]
        >>> explained = rlhf.functional.explained_variance([[1.0, 3.0]], [[1.0, 5.0]], mask)
        >>> float(explained)  # 1 - 2 / 4
        0.5

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": `1 - error / variance`
        (S3).
    """
    values, returns = zero_outside(values, mask), zero_outside(returns, mask)
    error = masked_mean(ops.square(returns - values), mask)
    variance = masked_variance(returns, mask)
    # Constant returns: 0 instead of a ratio of rounding errors.
    varies = variance > ROUNDING * masked_mean(ops.square(returns), mask)
    # The inner `where` keeps the division finite on the side that is not taken.
    return ops.where(varies, 1.0 - error / ops.where(varies, variance, 1.0), 0.0)
