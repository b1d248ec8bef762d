"""Losses of the critic, per token and unreduced, and its explained variance.

Every function raises a `ValueError` if the static shapes of its tensors differ or a number is
outside its range.
"""

from keras import ops

from kerasrlhf.functional._inputs import Tensor, check_positive, check_same_shape, float32
from kerasrlhf.functional.kl import k2
from kerasrlhf.functional.masking import masked_mean, masked_variance, zero_outside

# Relative to the mean square: a variance below this is only float32 rounding of a constant.
ROUNDING = 1e-12


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
