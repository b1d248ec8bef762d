"""Log probabilities of chosen tokens, and the entropy of the choice."""

from keras import ops

from kerasrlhf.functional._inputs import check_positive, check_same_shape, float32


def token_logprobs(logits, token_ids, temperature=1.0):
    """Log probability of each token under the logits that stand at the same position.

    `logits[t, id] / temperature - logsumexp(logits[t] / temperature)`. Nothing is shifted:
    `logits[:, t]` chose `token_ids[:, t]`. No tensor of the vocabulary's size is kept besides the
    logits.

    Args:
        logits: Tensor `(..., vocab)`.
        token_ids: Tensor `(...)`, integers in [0, vocab).
        temperature: Number above 0 by which the logits are divided, as in sampling.

    Returns:
        Tensor `(...)`, float32, in nats, at most 0.

    Raises:
        ValueError: When `temperature` is not above 0 or the static shapes do not match.

    Example:
        >>> import math
        >>> chosen = token_logprobs([[math.log(3.0), 0.0]], [0])
        >>> round(math.exp(float(chosen[0])), 4)
        0.75

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": the temperature divides
        sampled, new and reference logits alike (N10).
    """
    check_positive("temperature", temperature)
    logits, token_ids = ops.convert_to_tensor(logits), ops.convert_to_tensor(token_ids)
    indices = ops.cast(token_ids, "int32")[..., None]
    check_same_shape(logits=logits[..., :1], token_ids=indices)
    return _chosen_logprobs(logits, indices, temperature)


def _chosen_logprobs(logits, indices, temperature):
    """The log-probabilities, with the gradient `(onehot - softmax) / temperature` written down.

    Derived automatically it would keep a second tensor of the vocabulary's size and scatter into a
    third, which XLA does one element at a time.
    """

    @ops.custom_gradient
    def chosen_logprobs(logits):
        scaled = float32(logits) / temperature
        # The peak leaves before the rounding: logits near -100 (GPT-2) would cost two digits.
        peak = ops.max(scaled, axis=-1, keepdims=True)
        normalizer = ops.log(ops.sum(ops.exp(scaled - peak), axis=-1, keepdims=True))
        chosen = float32(ops.take_along_axis(logits, indices, axis=-1)) / temperature - peak

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            hit = ops.equal(ops.arange(logits.shape[-1], dtype="int32"), indices)
            probabilities = ops.exp(float32(logits) / temperature - peak - normalizer)
            slope = (ops.cast(hit, "float32") - probabilities) / temperature
            return ops.cast(slope * upstream[..., None], logits.dtype)

        return (chosen - normalizer)[..., 0], gradient

    return chosen_logprobs(logits)


def token_entropy(logits, temperature=1.0):
    """Exact entropy of the distribution at each position.

    `-sum_id p[id] log p[id]` with `p = softmax(logits / temperature)`. A token with a logit of
    `-inf` (forbidden) adds nothing.

    Args:
        logits: Tensor `(..., vocab)`.
        temperature: Number above 0 by which the logits are divided.

    Returns:
        Tensor `(...)`, float32, in nats, from 0 to log(vocab).

    Raises:
        ValueError: When `temperature` is not above 0.

    Example:
        >>> round(float(token_entropy([0.0, 0.0, 0.0, 0.0])), 4)  # log 4
        1.3863

    Reference:
        Schulman et al. 2017, arXiv 1707.06347, section 5 (the entropy bonus S).
    """
    check_positive("temperature", temperature)
    scaled = float32(logits) / temperature
    # Two sums over the vocabulary and nothing of its size kept: log Z - E[logit].
    scaled = scaled - ops.max(scaled, axis=-1, keepdims=True)
    weights = ops.exp(scaled)
    total = ops.sum(weights, axis=-1)
    mean = ops.sum(weights * ops.where(weights > 0, scaled, 0.0), axis=-1) / total
    return ops.log(total) - mean
