"""From scores per response or per token to rewards, advantages and returns per token.

Every function raises a `ValueError` if the ranks or static shapes of its tensors do not match or a
number is outside its range.
"""

from collections.abc import Callable

from keras import ops

from kerasrlhf.functional._inputs import (
    Tensor,
    boolean,
    check_rank,
    check_same_shape,
    check_unit_interval,
    float32,
)
from kerasrlhf.functional.logprobs import k1
from kerasrlhf.functional.masking import last_true_mask, zero_outside


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    kl_coef: float | Tensor,
    estimator: Callable[[Tensor, Tensor], Tensor] = k1,
) -> Tensor:
    """Computes the reward per token: a KL penalty everywhere, plus the scores.

    `reward[t] = -kl_coef (logprobs[t] - ref_logprobs[t]) + (score if t is the last true position)`.
    The score is never placed on padding (M1), and integers become float32 before any sum (M5).
    Scores per token, as from a process reward model, are added at their own positions instead.

    Args:
        scores: Tensor, `(batch,)`, one number per response, or `(batch, length)`, one per token;
            integer or float.
        logprobs: Tensor, `(batch, length)`, in nats. Log-probabilities under the policy that
            sampled.
        ref_logprobs: Tensor, `(batch, length)`, in nats. The same under the reference.
        mask: Tensor, `(batch, length)`, bool. True on response tokens, the end token included.
        kl_coef: float or scalar Tensor, in units of score per nat. Weight of the KL penalty.
        estimator: Function of `rlhf.functional.kl`. Only k1 in the reward has the gradient of the
            KL (M6); the others are for comparison. Defaults to k1.

    Returns:
        Tensor, `(batch, length)`, float32, zero outside the mask; a row without a true position
        is all zeros and loses its score.

    Example:
        >>> rewards = rlhf.functional.token_rewards(
        ...     scores=[5.0], logprobs=[[-1.0, -2.0, 0.0]], ref_logprobs=[[-3.0, -1.0, 0.0]],
        ...     mask=[[True, True, False]], kl_coef=0.5)
        >>> rewards.numpy().tolist()
        [[-1.0, 5.5, 0.0]]

    Reference:
        Ziegler et al. 2019, arXiv 1909.08593, eq. 2; Huang et al. 2023, "The N Implementation
        Details of RLHF with PPO" (N18).
    """
    mask = boolean(mask)
    check_rank("mask", mask, ("batch", "length"))
    # Zero the padding first: it may hold anything, and k3 could overflow there.
    penalty = estimator(zero_outside(logprobs, mask), zero_outside(ref_logprobs, mask))
    # A coefficient of 0 means no penalty, even if the estimator overflows: 0 * inf is NaN.
    penalty = ops.where(float32(kl_coef) == 0.0, 0.0, float32(kl_coef) * penalty)
    # Cast before the sum: integer scores and fractional penalties mix (M5).
    return _placed(float32(scores), mask) - penalty


def _placed(scores: Tensor, mask: Tensor) -> Tensor:
    """Returns scores as `(batch, length)`; a score per response is placed on the last token."""
    if len(scores.shape) == 2:
        check_same_shape(scores=scores, mask=mask)
        return zero_outside(scores, mask)
    check_rank("scores", scores, ("batch",))
    check_same_shape(scores=scores, rows_of_mask=mask[:, 0])
    # On the last response token, not on the padding after it (M1).
    return ops.where(last_true_mask(mask), scores[:, None], 0.0)


def discounted_sums(x: Tensor, discount: float, mask: Tensor | None = None) -> Tensor:
    """Computes the discounted sum from each position to the end of its row.

    `y[t] = x[t] + discount y[next(t)]`, from the right, with 0 after the last position; `next(t)`
    is the next true position of the mask. It compiles under XLA but its gradient does not: keep it
    out of a gradient tape there.

    Args:
        x: Tensor, `(batch, length)`. Values to add up.
        discount: float, in [0, 1]. Factor per position.
        mask: Tensor, `(batch, length)`, bool. Other positions, such as the user's turns in a
            dialogue, are skipped: they add nothing and discount nothing. Defaults to None: all
            positions count.

    Returns:
        Tensor, `(batch, length)`, float32, zero outside the mask.

    Example:
        >>> rlhf.functional.discounted_sums([[1.0, 1.0, 1.0]], 0.5).numpy().tolist()
        [[1.75, 1.5, 1.0]]
        >>> mask = [[True, False, True]]
        >>> rlhf.functional.discounted_sums([[1.0, 9.0, 1.0]], 0.5, mask).numpy().tolist()
        [[1.5, 0.0, 1.0]]
    """
    check_unit_interval("discount", discount)
    x = float32(x)
    check_rank("x", x, ("batch", "length"))
    mask = ops.ones_like(x, "bool") if mask is None else boolean(mask)
    x = zero_outside(x, mask)

    def step(following: Tensor, value: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        total = value + discount * following
        # A position outside the mask passes on what follows it.
        return ops.where(counts, total, following), total

    return zero_outside(_scan_back(step, x, mask), mask)


def _next_true(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the value of `x` at the next true position, 0 after the last one."""

    def step(following: Tensor, value: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        return ops.where(counts, value, following), following

    return _scan_back(step, x, mask)


def _scan_back(
    step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, mask: Tensor
) -> Tensor:
    """Returns what `step` makes of each column, from the last to the first.

    `step` maps what follows, a column of `x` and one of the mask, all `(batch,)`, to what precedes
    and the result.
    """
    # `associative_scan` would take fewer steps, but fails under XLA at most lengths (Keras 3.15).
    # Scan over time: columns first, `(length, 2, batch)`, in one tensor (Keras takes no two of an
    # unknown length).
    columns = ops.transpose(ops.stack([x, float32(mask)]), (2, 0, 1))
    _, found = ops.scan(
        lambda following, column: step(following, column[0], column[1] > 0),
        ops.zeros_like(x[:, 0]),
        columns,
        reverse=True,
    )
    return ops.transpose(found)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Computes generalized advantage estimates and the returns that the critic is trained on.

    `delta[t] = rewards[t] + gamma values[next(t)] - values[t]`,
    `advantages[t] = delta[t] + gamma lam advantages[next(t)]`, `returns = advantages + values`;
    `next(t)` is the next true position of the mask, and both the value and the advantage after the
    last one are 0. Both results are targets: compute them before the gradient tape opens.

    Args:
        rewards: Tensor, `(batch, length)`, in units of score. From `token_rewards`.
        values: Tensor, `(batch, length)`, in units of score. `values[:, t]` belongs to the state
            before token t.
        mask: Tensor, `(batch, length)`, bool. True on the policy's own tokens. Gaps between them,
            the user's turns in a dialogue, are skipped as if they were not there: the last token
            before a gap bootstraps from the value of the first one after it.
        gamma: float, in [0, 1]. Discount per token. Defaults to 1.0.
        lam: float, in [0, 1]. Weight of longer estimates: 0 is one step, 1 is Monte Carlo.
            Defaults to 0.95.

    Returns:
        Tuple `(advantages, returns)`, each `(batch, length)`, float32, zero outside the mask.

    Example:
        >>> advantages, returns = rlhf.functional.gae(
        ...     rewards=[[0.0, 4.0, 9.0]], values=[[1.0, 2.0, 9.0]],
        ...     mask=[[True, True, False]], gamma=1.0, lam=0.5)
        >>> advantages.numpy().tolist(), returns.numpy().tolist()
        ([[2.0, 2.0, 0.0]], [[3.0, 4.0, 0.0]])
        >>> advantages, _ = rlhf.functional.gae(
        ...     rewards=[[0.0, 7.0, 4.0]], values=[[1.0, 9.0, 2.0]],
        ...     mask=[[True, False, True]], gamma=1.0, lam=0.5)
        >>> advantages.numpy().tolist()
        [[2.0, 0.0, 2.0]]

    Reference:
        Schulman et al. 2015, arXiv 1506.02438, eq. 16; Huang et al. 2023, "The N Implementation
        Details of RLHF with PPO" (N16, N19).
    """
    check_unit_interval("gamma", gamma)
    check_unit_interval("lam", lam)
    mask = boolean(mask)
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)
    check_same_shape(rewards=rewards, values=values)
    check_rank("values", values, ("batch", "length"))
    # The value of the next true position, and 0 after the last one (N16).
    deltas = rewards + gamma * _next_true(values, mask) - values
    # Eq. 16: discounted sum of the temporal differences.
    advantages = discounted_sums(deltas, gamma * lam, mask)
    # Returns from advantages before any whitening (N19).
    return advantages, advantages + values
