"""Sums, means and whitening over the true positions of a mask.

Whatever stands outside the mask, `inf` and `nan` included, is replaced *before* any arithmetic:
it changes no result and, because `0 * inf` never arises, no gradient either.
"""

from keras import ops

from kerasrlhf.functional._inputs import boolean, check_rank, check_same_shape, float32

EPSILON = 1e-8
REDUCTIONS = ("token", "sequence", "fixed")


def zero_outside(x, mask):
    """Keep `x` where the mask is true and put zeros elsewhere.

    `result[t] = x[t] if mask[t] else 0`. Apply it to the *inputs* of a per-token formula that takes
    no mask when their padding may hold anything: the gradient stays finite then.

    Args:
        x: Tensor of any shape.
        mask: Tensor of the shape of `x`, bool.

    Returns:
        Tensor of the shape of `x`, float32.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> zero_outside([3.0, float("nan")], [True, False]).numpy().tolist()
        [3.0, 0.0]
    """
    x, mask = float32(x), boolean(mask)
    check_same_shape(x=x, mask=mask)
    return ops.where(mask, x, 0.0)


def masked_sum(x, mask, axis=None):
    """Sum over the true positions.

    `sum_t mask[t] x[t]`; 0 when no position is true.

    Args:
        x: Tensor of any shape.
        mask: Tensor of the shape of `x`, bool.
        axis: Axis or axes to sum over; None sums over all.

    Returns:
        Tensor, float32: a scalar, or the axes that are left.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> sums = masked_sum([[1.0, 2.0], [4.0, 8.0]], [[True, True], [True, False]], axis=1)
        >>> sums.numpy().tolist()
        [3.0, 4.0]
    """
    return ops.sum(zero_outside(x, mask), axis=axis)


def masked_mean(x, mask):
    """Mean over all true positions of the whole tensor, not a mean of the means of the rows.

    `sum mask x / sum mask`; 0 when no position is true.

    Args:
        x: Tensor of any shape.
        mask: Tensor of the shape of `x`, bool.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> float(masked_mean([[1.0, 2.0], [6.0, 9.0]], [[True, True], [True, False]]))
        3.0

    Reference:
        Huang et al. 2024, arXiv 2403.17031, details 24 and 25: padding enters no statistic (S4,
        M9).
    """
    count = ops.sum(float32(boolean(mask)))
    return masked_sum(x, mask) / ops.maximum(count, 1.0)


def masked_variance(x, mask):
    """Population variance over all true positions of the whole tensor.

    `sum mask (x - mean)^2 / sum mask`: divided by the count, not by the count less one.

    Args:
        x: Tensor of any shape.
        mask: Tensor of the shape of `x`, bool.

    Returns:
        Scalar, float32; 0 when at most one position is true.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> float(masked_variance([1.0, 3.0, 100.0], [True, True, False]))
        1.0

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": whitening with the
        population variance of `tf.nn.moments` (N19).
    """
    x = zero_outside(x, mask)
    return masked_mean(ops.square(x - masked_mean(x, mask)), mask)


def whiten(x, mask, center=True):
    """Scale the true positions to variance 1 and, with `center`, to mean 0.

    `(x - mean) / sqrt(variance + 1e-8)`, plus the mean again when `center` is False.

    Args:
        x: Tensor of any shape.
        mask: Tensor of the shape of `x`, bool.
        center: True moves the mean to 0 (advantages); False leaves it where it is (rewards). A
            flag that does the opposite is a known mistake (M4).

    Returns:
        Tensor of the shape of `x`, float32, zero outside the mask.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> [round(v, 3) for v in whiten([1.0, 5.0, 7.0], [True, True, False]).numpy().tolist()]
        [-1.0, 1.0, 0.0]
        >>> kept = whiten([1.0, 5.0, 7.0], [True, True, False], center=False)
        >>> [round(v, 3) for v in kept.numpy().tolist()]
        [2.0, 4.0, 0.0]

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO", reward and advantage
        whitening (N19).
    """
    x = zero_outside(x, mask)
    mean = masked_mean(x, mask)
    whitened = (x - mean) * ops.rsqrt(masked_variance(x, mask) + EPSILON)
    return zero_outside(whitened if center else whitened + mean, mask)


def response_mask(prompt_lengths, response_lengths, length: int):
    """Where the response stands in rows that hold prompt, response and right padding.

    `mask[b, t] = prompt_lengths[b] <= t < prompt_lengths[b] + response_lengths[b]`.

    Args:
        prompt_lengths: Tensor `(batch,)`, integers, in tokens.
        response_lengths: Tensor `(batch,)`, integers, in tokens, the end token counted.
        length: Number of columns.

    Returns:
        Tensor `(batch, length)`, bool.

    Raises:
        ValueError: When a length tensor is not of rank 1 or the two differ in size.

    Example:
        >>> response_mask([1, 2], [2, 1], length=4).numpy().astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 1, 0]]
    """
    start = ops.cast(ops.convert_to_tensor(prompt_lengths), "int32")
    size = ops.cast(ops.convert_to_tensor(response_lengths), "int32")
    check_rank("prompt_lengths", start, ("batch",))
    check_same_shape(prompt_lengths=start, response_lengths=size)
    positions = ops.arange(length, dtype="int32")[None, :]
    begun = positions >= start[:, None]
    return ops.logical_and(begun, positions < (start + size)[:, None])


def last_true_mask(mask):
    """True at the last true position of each row and nowhere else.

    Args:
        mask: Tensor `(batch, length)`, bool.

    Returns:
        Tensor `(batch, length)`, bool; a row without a true position stays all false.

    Raises:
        ValueError: When the mask is not of rank 2.

    Example:
        >>> last_true_mask([[True, True, False]]).numpy().tolist()
        [[False, True, False]]
    """
    mask = boolean(mask)
    check_rank("mask", mask, ("batch", "length"))
    positions = ops.arange(mask.shape[1] or ops.shape(mask)[1], dtype="int32")[None, :]
    last = ops.max(ops.where(mask, positions, -1), axis=1, keepdims=True)
    return ops.equal(positions, last)


def last_true(x, mask):
    """The value at the last true position of each row: the score at the last real token.

    Args:
        x: Tensor `(batch, length)`.
        mask: Tensor `(batch, length)`, bool.

    Returns:
        Tensor `(batch,)`, float32; 0 for a row without a true position.

    Raises:
        ValueError: When the mask is not of rank 2 or the static shapes differ.

    Example:
        >>> last_true([[5.0, 7.0, 9.0]], [[True, True, False]]).numpy().tolist()
        [7.0]

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": the reward is the
        head's output at the last token (N7).
    """
    return masked_sum(x, last_true_mask(mask), axis=1)


def loss_weights(mask, reduction="token", length=None):
    """The weight of every token in a loss: a sum with these weights is the mean asked for.

    `"token"`: `1 / all true positions`; long responses count more. `"sequence"`:
    `1 / (rows * true positions of the row)`; every response counts the same, and the tokens of
    short ones more. `"fixed"`: `1 / (rows * length)`; every token counts the same however many
    there are, which keeps the gradient of a sum over tokens.

    Args:
        mask: Tensor `(batch, length)`, bool.
        reduction: `"token"`, `"sequence"` or `"fixed"`.
        length: int, the constant of `"fixed"`. None: the columns of the mask.

    Returns:
        Tensor `(batch, length)`, float32, zero outside the mask.

    Raises:
        ValueError: When the mask is not of rank 2 or the reduction is another.

    Example:
        >>> mask = [[True, True, True, True], [True, False, False, False]]
        >>> [loss_weights(mask, name)[:, 0].numpy().tolist() for name in REDUCTIONS]
        ... # doctest: +ELLIPSIS
        [[0.200..., 0.200...], [0.125, 0.5], [0.125, 0.125]]

    Reference:
        Yu et al. 2025, arXiv 2503.14476, section 3.3 (token); Shao et al. 2024, arXiv 2402.03300,
        eq. 3 (sequence); Liu et al. 2025, arXiv 2503.20783 (fixed).
    """
    mask = boolean(mask)
    check_rank("mask", mask, ("batch", "length"))
    inside = float32(mask)
    rows, columns = ops.shape(mask)
    if reduction == "token":
        return inside / ops.maximum(ops.sum(inside), 1.0)
    if reduction == "sequence":
        return inside / (rows * ops.maximum(ops.sum(inside, axis=1, keepdims=True), 1.0))
    if reduction == "fixed":
        return inside / (rows * (length or columns))
    raise ValueError(f"`reduction` must be one of {REDUCTIONS}. Received: {reduction!r}.")
