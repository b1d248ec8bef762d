"""Losses of the critic, per token and unreduced, and how much of the returns it explains."""

from keras import ops

from kerasrlhf.functional._inputs import check_positive, check_same_shape, float32
from kerasrlhf.functional.kl import k2
from kerasrlhf.functional.masking import masked_mean, masked_variance, zero_outside

# Of the mean square: below this share a variance is what float32 rounding leaves of a constant.
ROUNDING = 1e-12


def clipped_value_loss(values, old_values, returns, cliprange_value):
    """Squared error of the critic, pessimistic about large steps from the old values.

    `0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)` with `c = cliprange_value`.

    Args:
        values: Tensor `(batch, length)`, of the critic being updated.
        old_values: Tensor `(batch, length)`, of the critic at sampling.
        returns: Tensor `(batch, length)`, the targets.
        cliprange_value: Number above 0, of the unit of the values.

    Returns:
        `(loss, clipped)`, each `(batch, length)`: float32 with the factor 0.5 inside, and bool
        where the clipped term is strictly the larger.

    Raises:
        ValueError: When `cliprange_value` is not above 0 or the static shapes differ.

    Example:
        >>> loss, clipped = clipped_value_loss([[2.0]], [[0.0]], [[3.0]], cliprange_value=1.0)
        >>> loss.numpy().tolist(), clipped.numpy().tolist()
        ([[2.0]], [[True]])

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO", value clipping (N20).
    """
    check_positive("cliprange_value", cliprange_value)
    values, old_values, returns = float32(values), float32(old_values), float32(returns)
    check_same_shape(values=values, old_values=old_values, returns=returns)
    near = ops.clip(values, old_values - cliprange_value, old_values + cliprange_value)
    error, clipped_error = ops.square(values - returns), ops.square(near - returns)
    return 0.5 * ops.maximum(error, clipped_error), clipped_error > error


def critic_warmup_loss(values, returns, logprobs, ref_logprobs, kl_coef):
    """Fits the critic while the policy is held to its start: `(R - V)^2 + alpha D(pi, pi0)`.

    `D` is estimated per token by `d^2 / 2` with `d = logprobs - ref_logprobs`, whose gradient is
    that of the KL divergence where the policy sampled. With a critic of its own the first term
    does not touch the policy; on a shared trunk the second keeps the policy where it is while the
    first moves the trunk.

    Args:
        values: Tensor `(batch, length)`, of the critic being updated.
        returns: Tensor `(batch, length)`, the targets.
        logprobs: Tensor `(batch, length)`, in nats, of the policy being updated.
        ref_logprobs: Tensor `(batch, length)`, in nats, of the reference.
        kl_coef: Number `alpha`, at least 0, in squared units of score per nat.

    Returns:
        Tensor `(batch, length)`, float32.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> critic_warmup_loss([[1.0]], [[3.0]], [[-1.0]], [[-3.0]], kl_coef=0.5).numpy().tolist()
        [[5.0]]

    Reference:
        The objective `E[(r - v)^2] + alpha D(pi, pi0)`; the estimator: Schulman 2020,
        "Approximating KL Divergence" (k2).
    """
    values, returns = float32(values), float32(returns)
    check_same_shape(values=values, returns=returns)
    return ops.square(returns - values) + float32(kl_coef) * k2(logprobs, ref_logprobs)


def explained_variance(values, returns, mask):
    """Share of the variance of the returns that the critic explains.

    `1 - mean((R - V)^2) / var(R)`, over all true positions. The error is the mean *square*, not
    the variance of the residual, so a constant offset counts against the critic.

    Args:
        values: Tensor `(batch, length)`.
        returns: Tensor `(batch, length)`.
        mask: Tensor `(batch, length)`, bool.

    Returns:
        Scalar, float32, at most 1: 0 is no better than the mean of the returns. 0, too, when the
        returns have no variance.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> mask = [[True, True]]
        >>> float(explained_variance([[1.0, 3.0]], [[1.0, 5.0]], mask))  # 1 - 2 / 4
        0.5

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": `1 - error / variance`
        (S3).
    """
    values, returns = zero_outside(values, mask), zero_outside(returns, mask)
    error = masked_mean(ops.square(returns - values), mask)
    variance = masked_variance(returns, mask)
    varies = variance > ROUNDING * masked_mean(ops.square(returns), mask)
    return ops.where(varies, 1.0 - error / ops.where(varies, variance, 1.0), 0.0)
