"""What a response is worth beside others to the same prompt: advantages without a critic.

Scores are `(groups * group_size,)`: the responses to one prompt stand next to each other.
"""

from keras import ops

from kerasrlhf.functional._inputs import check_rank, float32

EPSILON = 1e-4


def leave_one_out(scores, group_size):
    """Each score less the mean of the other scores of its group.

    `advantage[i] = score[i] - sum over j != i of score[j] / (group_size - 1)`. The baseline does
    not depend on the response itself, so the gradient stays unbiased.

    Args:
        scores: Tensor `(batch,)`, `batch` a multiple of `group_size`.
        group_size: int, at least 2.

    Returns:
        Tensor `(batch,)`, float32, of the unit of the scores.

    Raises:
        ValueError: When the group is smaller than 2 or does not divide the rows.

    Example:
        >>> leave_one_out([1.0, 4.0, 7.0], group_size=3).numpy().tolist()
        [-4.5, 0.0, 4.5]

    Reference:
        Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al. 2024,
        arXiv 2402.14740, eq. 7 (RLOO).
    """
    grouped = _grouped(scores, group_size)
    others = (ops.sum(grouped, axis=1, keepdims=True) - grouped) / (group_size - 1)
    return ops.reshape(grouped - others, (-1,))


def group_mean(scores, group_size):
    """Each score less the mean of its whole group.

    `advantage[i] = score[i] - mean(score)`. It is `leave_one_out` times
    `(group_size - 1) / group_size`.

    Args:
        scores: Tensor `(batch,)`, `batch` a multiple of `group_size`.
        group_size: int, at least 2.

    Returns:
        Tensor `(batch,)`, float32, of the unit of the scores.

    Raises:
        ValueError: When the group is smaller than 2 or does not divide the rows.

    Example:
        >>> group_mean([1.0, 4.0, 7.0], group_size=3).numpy().tolist()
        [-3.0, 0.0, 3.0]

    Reference:
        Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO).
    """
    grouped = _grouped(scores, group_size)
    return ops.reshape(grouped - ops.mean(grouped, axis=1, keepdims=True), (-1,))


def group_normalized(scores, group_size, epsilon=EPSILON):
    """Each score less the mean of its group, divided by the group's standard deviation.

    `(score[i] - mean(score)) / (std(score) + epsilon)`, with the population deviation. A group of
    equal scores gets zeros.

    Args:
        scores: Tensor `(batch,)`, `batch` a multiple of `group_size`.
        group_size: int, at least 2.
        epsilon: Number added to the deviation.

    Returns:
        Tensor `(batch,)`, float32, without unit.

    Raises:
        ValueError: When the group is smaller than 2 or does not divide the rows.

    Example:
        >>> [round(x, 2) for x in group_normalized([1.0, 3.0], group_size=2).numpy().tolist()]
        [-1.0, 1.0]

    Reference:
        Shao et al. 2024, arXiv 2402.03300, section 4.1.2 (GRPO with outcome supervision).
    """
    centered = _grouped(group_mean(scores, group_size), group_size)
    deviation = ops.sqrt(ops.mean(ops.square(centered), axis=1, keepdims=True))
    return ops.reshape(centered / (deviation + epsilon), (-1,))


def _grouped(scores, group_size):
    scores = float32(scores)
    check_rank("scores", scores, ("batch",))
    if group_size < 2:
        raise ValueError(
            f"`group_size` is {group_size}, expected at least 2: a response is compared with the "
            "others to its prompt. Raise `group_size`."
        )
    rows = scores.shape[0]
    if rows is not None and rows % group_size:
        raise ValueError(
            f"{rows} scores cannot be divided into groups of {group_size}. The rows of a group "
            "stand next to each other, and all groups are of one size."
        )
    return ops.reshape(scores, (-1, group_size))
