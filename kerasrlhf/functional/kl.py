"""Three per-token estimators of KL(policy || reference).

All take tokens sampled from the policy and use `d = logprobs - ref_logprobs`. `k1` belongs in the
reward; `k2` and `k3` are for losses and for logging. Each takes two tensors `(batch, length)` in
nats and raises a `ValueError` if their static shapes differ.
"""

from keras import ops

from kerasrlhf.functional._inputs import Tensor, check_same_shape, float32


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes the log-ratio `d`: unbiased, of either sign.

    Its sum over a response is the KL term of the reward, in nats per sequence.

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy.
        ref_logprobs: Tensor, `(batch, length)`, in nats. The same under the reference.

    Returns:
        Tensor, `(batch, length)`, float32, in nats.

    Example:
        >>> rlhf.functional.k1([[-1.0]], [[-3.0]]).numpy().tolist()
        [[2.0]]

    Reference:
        Schulman 2020, "Approximating KL Divergence" (k1); Ziegler et al. 2019, arXiv 1909.08593,
        eq. 2.
    """
    logprobs, ref_logprobs = float32(logprobs), float32(ref_logprobs)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    # Of either sign per token; its expectation is never negative.
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes half the squared log-ratio, `d^2 / 2`: biased, never negative, of low variance.

    Between the new and the old policy, its masked mean is `approxkl` (S1).

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy.
        ref_logprobs: Tensor, `(batch, length)`, in nats. The same under the reference.

    Returns:
        Tensor, `(batch, length)`, float32, at least 0.

    Example:
        >>> rlhf.functional.k2([[-1.0]], [[-4.0]]).numpy().tolist()
        [[4.5]]

    Reference:
        Schulman 2020, "Approximating KL Divergence" (k2).
    """
    # Gradient: `d` times that of `logprobs`, on average the gradient of the token's KL.
    return 0.5 * ops.square(k1(logprobs, ref_logprobs))


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Computes `exp(-d) - 1 + d`: unbiased and never negative.

    Its gradient is not that of the reverse KL, so it stays out of the reward (M6).

    Args:
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy.
        ref_logprobs: Tensor, `(batch, length)`, in nats. The same under the reference.

    Returns:
        Tensor, `(batch, length)`, float32, in nats, at least 0.

    Example:
        >>> round(float(rlhf.functional.k3([[-1.0]], [[-2.0]])[0, 0]), 4)  # 1 / e
        0.3679

    Reference:
        Schulman 2020, "Approximating KL Divergence" (k3); Shao et al. 2024, arXiv 2402.03300,
        eq. 4.
    """
    d = k1(logprobs, ref_logprobs)
    # `expm1` keeps the digits that `exp(-d) - 1` loses while the policies are close.
    return ops.expm1(-d) + d


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
