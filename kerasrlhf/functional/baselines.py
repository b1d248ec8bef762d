"""Group baselines: advantages from several responses to one prompt, without a critic.

Scores are `(groups * group_size,)`, with the responses to one prompt in consecutive rows. Every
function raises a `ValueError` if `scores` is not of rank 1, `group_size` is below 2, or the number
of rows is not a multiple of `group_size`.
"""

from keras import ops

from kerasrlhf.functional._inputs import Tensor, check_rank, float32

EPSILON = 1e-4


def leave_one_out(scores: Tensor, group_size: int) -> Tensor:
    """Subtracts from each score the mean of the other scores of its group.

    `advantage[i] = score[i] - sum over j != i of score[j] / (group_size - 1)`. The baseline does
    not depend on the response itself, so the policy gradient stays unbiased.

    Args:
        scores: Tensor, `(batch,)`. Scores of the responses, grouped by prompt.
        group_size: int, at least 2. Responses per prompt.

    Returns:
        Tensor, `(batch,)`, float32, in units of the scores.

    Example:
        >>> rlhf.functional.leave_one_out([1.0, 4.0, 7.0], group_size=3).numpy().tolist()
        [-4.5, 0.0, 4.5]

    Reference:
        Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian et al. 2024,
        arXiv 2402.14740, eq. 7 (RLOO).
    """
    grouped = _grouped(scores, group_size)
    # Mean of the others: the sum of the group without the response itself.
    others = (ops.sum(grouped, axis=1, keepdims=True) - grouped) / (group_size - 1)
    return ops.reshape(grouped - others, (-1,))


def group_mean(scores: Tensor, group_size: int) -> Tensor:
    """Subtracts from each score the mean of its whole group.

    `advantage[i] = score[i] - mean(score)`, which is `leave_one_out` times
    `(group_size - 1) / group_size`.

    Args:
        scores: Tensor, `(batch,)`. Scores of the responses, grouped by prompt.
        group_size: int, at least 2. Responses per prompt.

    Returns:
        Tensor, `(batch,)`, float32, in units of the scores.

    Example:
        >>> rlhf.functional.group_mean([1.0, 4.0, 7.0], group_size=3).numpy().tolist()
        [-3.0, 0.0, 3.0]

    Reference:
        Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO).
    """
    grouped = _grouped(scores, group_size)
    return ops.reshape(grouped - ops.mean(grouped, axis=1, keepdims=True), (-1,))


def group_normalized(scores: Tensor, group_size: int, epsilon: float = EPSILON) -> Tensor:
    """Normalizes each score by the mean and standard deviation of its group.

    `(score[i] - mean(score)) / (std(score) + epsilon)`, with the population standard deviation. A
    group of equal scores becomes zeros.

    Args:
        scores: Tensor, `(batch,)`. Scores of the responses, grouped by prompt.
        group_size: int, at least 2. Responses per prompt.
        epsilon: float, in units of the scores. Added to the standard deviation. Defaults to 1e-4.

    Returns:
        Tensor, `(batch,)`, float32, without unit.

    Example:
        >>> advantages = rlhf.functional.group_normalized([1.0, 3.0], group_size=2)
        >>> [round(x, 2) for x in advantages.numpy().tolist()]
        [-1.0, 1.0]

    Reference:
        Shao et al. 2024, arXiv 2402.03300, section 4.1.2 (GRPO with outcome supervision).
    """
    # Center first: the mean square is then the population variance.
    centered = _grouped(group_mean(scores, group_size), group_size)
    deviation = ops.sqrt(ops.mean(ops.square(centered), axis=1, keepdims=True))
    # Add epsilon to the standard deviation, so that equal scores divide 0 by it.
    return ops.reshape(centered / (deviation + epsilon), (-1,))


def _grouped(scores: Tensor, group_size: int) -> Tensor:
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
            "must be consecutive, and all groups must have the same size."
        )
    # One row per prompt, `(groups, group_size)`.
    return ops.reshape(scores, (-1, group_size))
