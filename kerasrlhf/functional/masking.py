"""Sums, means and whitening over the true positions of a mask.

Values outside the mask, `inf` and `nan` included, are replaced *before* any arithmetic: they
change no result and, because `0 * inf` never arises, no gradient either. Every function raises a
`ValueError` if the static shapes of its tensors differ or a rank is not the documented one.
"""

from collections.abc import Sequence

from keras import ops

from kerasrlhf.functional._inputs import Tensor, boolean, check_rank, check_same_shape, float32

EPSILON = 1e-8
REDUCTIONS = ("token", "sequence", "fixed")


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """Keeps `x` where the mask is true and puts zeros elsewhere.

    `result[t] = x[t] if mask[t] else 0`. If a per-token formula takes no mask and its padding may
    hold anything, apply this function to the formula's *inputs*: then its gradient stays finite.

    Args:
        x: Tensor, any shape. Values to keep or replace.
        mask: Tensor, the shape of `x`, bool. True where `x` is kept.

    Returns:
        Tensor, the shape of `x`, float32.

    Example:
        >>> rlhf.functional.zero_outside([3.0, float("nan")], [True, False]).numpy().tolist()
        [3.0, 0.0]
    """
    x, mask = float32(x), boolean(mask)
    check_same_shape(x=x, mask=mask)
    # `where`, not a product: 0 * inf is NaN.
    return ops.where(mask, x, 0.0)


def masked_sum(x: Tensor, mask: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """Computes the sum over the true positions.

    `sum_t mask[t] x[t]`; 0 if no position is true.

    Args:
        x: Tensor, any shape. Values to add up.
        mask: Tensor, the shape of `x`, bool. True where a value counts.
        axis: int or sequence of ints. Axes to sum over. Defaults to None: all of them.

    Returns:
        Tensor, float32, with the axes that are left: a scalar if `axis` is None.

    Example:
        >>> x, mask = [[1.0, 2.0], [4.0, 8.0]], [[True, True], [True, False]]
        >>> rlhf.functional.masked_sum(x, mask, axis=1).numpy().tolist()
        [3.0, 4.0]
    """
    return ops.sum(zero_outside(x, mask), axis=axis)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Computes the mean over all true positions of the whole tensor.

    `sum mask x / sum mask`, not a mean of row means; 0 if no position is true.

    Args:
        x: Tensor, any shape. Values to average.
        mask: Tensor, the shape of `x`, bool. True where a value counts.

    Returns:
        Tensor, scalar, float32.

    Example:
        >>> x, mask = [[1.0, 2.0], [6.0, 9.0]], [[True, True], [True, False]]
        >>> float(rlhf.functional.masked_mean(x, mask))
        3.0

    Reference:
        Huang et al. 2024, arXiv 2403.17031, details 24 and 25: padding enters no statistic (S4,
        M9).
    """
    # Divide by the count of true positions; 0 / 1 for an empty mask.
    count = ops.sum(float32(boolean(mask)))
    return masked_sum(x, mask) / ops.maximum(count, 1.0)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Computes the population variance over all true positions of the whole tensor.

    `sum mask (x - mean)^2 / sum mask`: divided by the count, not by the count minus one.

    Args:
        x: Tensor, any shape. Values whose variance is computed.
        mask: Tensor, the shape of `x`, bool. True where a value counts.

    Returns:
        Tensor, scalar, float32; 0 if at most one position is true.

    Example:
        >>> float(rlhf.functional.masked_variance([1.0, 3.0, 100.0], [True, True, False]))
        1.0

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": whitening with the
        population variance of `tf.nn.moments` (N19).
    """
    x = zero_outside(x, mask)
    # Population variance, as `tf.nn.moments` computes it (N19).
    return masked_mean(ops.square(x - masked_mean(x, mask)), mask)


def whiten(x: Tensor, mask: Tensor, center: bool = True) -> Tensor:
    """Scales the true positions to variance 1 and, with `center`, shifts them to mean 0.

    `(x - mean) / sqrt(variance + 1e-8)`, plus the mean again if `center` is False.

    Args:
        x: Tensor, any shape. Values to whiten.
        mask: Tensor, the shape of `x`, bool. True where a value counts.
        center: bool. True moves the mean to 0 (advantages); False keeps it (rewards). A flag with
            the opposite meaning is a known mistake (M4). Defaults to True.

    Returns:
        Tensor, the shape of `x`, float32, zero outside the mask.

    Example:
        >>> x, mask = [1.0, 5.0, 7.0], [True, True, False]
        >>> [round(v, 3) for v in rlhf.functional.whiten(x, mask).numpy().tolist()]
        [-1.0, 1.0, 0.0]
        >>> kept = rlhf.functional.whiten(x, mask, center=False)
        >>> [round(v, 3) for v in kept.numpy().tolist()]
        [2.0, 4.0, 0.0]

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO", reward and advantage
        whitening (N19).
    """
    x = zero_outside(x, mask)
    mean = masked_mean(x, mask)
    # Epsilon inside the root, so that a constant becomes 0 (N19).
    whitened = (x - mean) * ops.rsqrt(masked_variance(x, mask) + EPSILON)
    # Without `center` the mean is added back (P24); never with it (M4).
    return zero_outside(whitened if center else whitened + mean, mask)


def response_mask(prompt_lengths: Tensor, response_lengths: Tensor, length: int) -> Tensor:
    """Returns the response positions of rows that hold prompt, response and right padding.

    `mask[b, t] = prompt_lengths[b] <= t < prompt_lengths[b] + response_lengths[b]`.

    Args:
        prompt_lengths: Tensor, `(batch,)`, integers, in tokens. Where each response starts.
        response_lengths: Tensor, `(batch,)`, integers, in tokens. The end token counts.
        length: int. Number of columns.

    Returns:
        Tensor, `(batch, length)`, bool.

    Example:
        >>> mask = rlhf.functional.response_mask([1, 2], [2, 1], length=4)
        >>> mask.numpy().astype(int).tolist()
        [[0, 1, 1, 0], [0, 0, 1, 0]]
    """
    start = ops.cast(ops.convert_to_tensor(prompt_lengths), "int32")
    size = ops.cast(ops.convert_to_tensor(response_lengths), "int32")
    check_rank("prompt_lengths", start, ("batch",))
    check_same_shape(prompt_lengths=start, response_lengths=size)
    positions = ops.arange(length, dtype="int32")[None, :]
    # `(1, length)` against `(batch, 1)`.
    begun = positions >= start[:, None]
    return ops.logical_and(begun, positions < (start + size)[:, None])


def last_true_mask(mask: Tensor) -> Tensor:
    """Returns a mask of the last true position of each row.

    Args:
        mask: Tensor, `(batch, length)`, bool. Any mask.

    Returns:
        Tensor, `(batch, length)`, bool; a row without a true position stays all false.

    Example:
        >>> rlhf.functional.last_true_mask([[True, True, False]]).numpy().tolist()
        [[False, True, False]]
    """
    mask = boolean(mask)
    check_rank("mask", mask, ("batch", "length"))
    # The static length where it is known, as XLA needs it.
    positions = ops.arange(mask.shape[1] or ops.shape(mask)[1], dtype="int32")[None, :]
    # Largest true position; -1, which equals no position, for an empty row.
    last = ops.max(ops.where(mask, positions, -1), axis=1, keepdims=True)
    return ops.equal(positions, last)


def last_true(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the value at the last true position of each row, such as the score of a response.

    Args:
        x: Tensor, `(batch, length)`. Values per token.
        mask: Tensor, `(batch, length)`, bool. True on real tokens.

    Returns:
        Tensor, `(batch,)`, float32; 0 for a row without a true position.

    Example:
        >>> rlhf.functional.last_true([[5.0, 7.0, 9.0]], [[True, True, False]]).numpy().tolist()
        [7.0]

    Reference:
        Huang et al. 2023, "The N Implementation Details of RLHF with PPO": the reward is the
        head's output at the last token (N7).
    """
    return masked_sum(x, last_true_mask(mask), axis=1)


def loss_weights(mask: Tensor, reduction: str = "token", length: int | None = None) -> Tensor:
    """Computes the weight of every token in a loss, so that the weighted sum is a mean.

    `"token"`: `1 / all true positions`; long responses count more. `"sequence"`:
    `1 / (rows * true positions of the row)`; every response counts the same, and the tokens of
    short ones more. `"fixed"`: `1 / (rows * length)`; every token counts the same, regardless of
    their number, which keeps the gradient of a sum over tokens.

    Args:
        mask: Tensor, `(batch, length)`, bool. True on response tokens.
        reduction: `"token"`, `"sequence"` or `"fixed"`. Defaults to `"token"`.
        length: int, in tokens. The constant of `"fixed"`. Defaults to None: the columns of the
            mask.

    Returns:
        Tensor, `(batch, length)`, float32, zero outside the mask.

    Raises:
        ValueError: If `reduction` is not one of the three.

    Example:
        >>> mask = [[True, True, True, True], [True, False, False, False]]
        >>> for reduction in ("token", "sequence", "fixed"):
        ...     print(rlhf.functional.loss_weights(mask, reduction)[:, 0].numpy())
        [0.2 0.2]
        [0.125 0.5  ]
        [0.125 0.125]

    Reference:
        Yu et al. 2025, arXiv 2503.14476, section 3.3 (token); Shao et al. 2024, arXiv 2402.03300,
        eq. 3 (sequence); Liu et al. 2025, arXiv 2503.20783 (fixed).
    """
    mask = boolean(mask)
    check_rank("mask", mask, ("batch", "length"))
    inside = float32(mask)
    rows, columns = ops.shape(mask)
    # A row or a batch without true positions is divided by 1 and weighs 0.
    if reduction == "token":
        return inside / ops.maximum(ops.sum(inside), 1.0)
    if reduction == "sequence":
        return inside / (rows * ops.maximum(ops.sum(inside, axis=1, keepdims=True), 1.0))
    if reduction == "fixed":
        return inside / (rows * (length or columns))
    raise ValueError(f"`reduction` must be one of {REDUCTIONS}. Received: {reduction!r}.")
