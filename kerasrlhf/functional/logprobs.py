"""Log-probabilities of chosen tokens, the entropy of the choice, and its KL to another policy.

The three estimators of KL(policy || reference) take tokens sampled from the policy and use
`d = logprobs - ref_logprobs`, per token. `k1` belongs in the reward; `k2` and `k3` are for losses
and for logging. Every function raises a `ValueError` if `temperature` is not above 0 or static
shapes do not match.
"""

from typing import Any

from keras import ops

from kerasrlhf.functional._inputs import Tensor, check_positive, check_same_shape, float32


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Computes the log-probability of each token under the logits at the same position.

    `logits[t, id] / temperature - logsumexp(logits[t] / temperature)`. Nothing is shifted:
    `logits[:, t]` chose `token_ids[:, t]`. Apart from the logits, no tensor of the vocabulary's
    size is kept.

    Args:
        logits: Tensor, `(..., vocab)`. Unnormalized log-probabilities.
        token_ids: Tensor, `(...)`, integers in [0, vocab). The chosen tokens.
        temperature: float or scalar Tensor, above 0. Divides the logits, as in sampling. Defaults
            to 1.0.

    Returns:
        Tensor, `(...)`, float32, in nats, at most 0.

    Example:
        >>> import math
        >>> chosen = rlhf.functional.token_logprobs([[math.log(3.0), 0.0]], [0])
        >>> round(math.exp(float(chosen[0])), 4)
        0.75

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": the temperature divides
        sampled, new and reference logits alike (N10).
    """
    check_positive("temperature", temperature)
    logits, token_ids = ops.convert_to_tensor(logits), ops.convert_to_tensor(token_ids)
    indices = ops.cast(token_ids, "int32")[..., None]
    # The leading axes must agree; the vocabulary axis is gathered.
    check_same_shape(logits=logits[..., :1], token_ids=indices)
    return _chosen_logprobs(logits, indices, temperature)


def _chosen_logprobs(logits: Tensor, indices: Tensor, temperature: float | Tensor) -> Tensor:
    """Computes log-probabilities with the explicit gradient `(onehot - softmax) / temperature`.

    Automatic differentiation would keep a second tensor of the vocabulary's size and scatter into
    a third, which XLA does one element at a time.
    """

    @ops.custom_gradient
    def chosen_logprobs(logits: Tensor) -> tuple[Tensor, Any]:
        scaled = float32(logits) / temperature
        # Subtract the peak first: with logits near -100 (GPT-2) rounding would cost two digits.
        peak = ops.max(scaled, axis=-1, keepdims=True)
        normalizer = ops.log(ops.sum(ops.exp(scaled - peak), axis=-1, keepdims=True))
        chosen = float32(ops.take_along_axis(logits, indices, axis=-1)) / temperature - peak

        def gradient(*args: Tensor, upstream: Tensor = None) -> Tensor:
            # Backends pass the upstream gradient by position or by name.
            upstream = args[0] if upstream is None else upstream
            # One-hot by comparison: XLA fuses it and never stores the tensor.
            hit = ops.equal(ops.arange(logits.shape[-1], dtype="int32"), indices)
            probabilities = ops.exp(float32(logits) / temperature - peak - normalizer)
            slope = (ops.cast(hit, "float32") - probabilities) / temperature
            return ops.cast(slope * upstream[..., None], logits.dtype)

        return (chosen - normalizer)[..., 0], gradient

    return chosen_logprobs(logits)


def token_entropy(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Computes the exact entropy of the distribution at each position.

    `-sum_id p[id] log p[id]` with `p = softmax(logits / temperature)`. A token with a logit of
    `-inf` (forbidden) adds nothing.

    Args:
        logits: Tensor, `(..., vocab)`. Unnormalized log-probabilities.
        temperature: float or scalar Tensor, above 0. Divides the logits. Defaults to 1.0.

    Returns:
        Tensor, `(...)`, float32, in nats, from 0 to log(vocab).

    Example:
        >>> round(float(rlhf.functional.token_entropy([0.0, 0.0, 0.0, 0.0])), 4)  # log 4
        1.3863

    Reference:
        Schulman et al. 2017, arXiv 1707.06347, section 5 (the entropy bonus S).
    """
    check_positive("temperature", temperature)
    scaled = float32(logits) / temperature
    # Two sums over the vocabulary: log Z - E[logit]. No tensor of its size is kept.
    scaled = scaled - ops.max(scaled, axis=-1, keepdims=True)
    weights = ops.exp(scaled)
    total = ops.sum(weights, axis=-1)
    # A forbidden token has the weight 0, and 0 * -inf would be NaN.
    mean = ops.sum(weights * ops.where(weights > 0, scaled, 0.0), axis=-1) / total
    return ops.log(total) - mean


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
