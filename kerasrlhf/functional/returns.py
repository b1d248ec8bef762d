"""From scores per response or per token to rewards, advantages and returns per token."""

from keras import ops

from kerasrlhf.functional._inputs import (
    boolean,
    check_rank,
    check_same_shape,
    check_unit_interval,
    float32,
)
from kerasrlhf.functional.kl import k1
from kerasrlhf.functional.masking import last_true_mask, zero_outside


def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef, estimator=k1):
    """Reward per token: the KL penalty everywhere, and scores where they belong.

    `reward[t] = -kl_coef (logprobs[t] - ref_logprobs[t]) + (score if t is the last true position)`.
    The score never stands on padding (M1), and integers become float32 before any sum (M5). Scores
    per token, as of a process reward model, are added each at its own position instead.

    Args:
        scores: Tensor `(batch,)`, one number per response, or `(batch, length)`, one per token;
            integer or float.
        logprobs: Tensor `(batch, length)`, in nats, of the policy that sampled.
        ref_logprobs: Tensor `(batch, length)`, in nats, of the reference.
        mask: Tensor `(batch, length)`, bool, true on response tokens, the end token included.
        kl_coef: Number or scalar tensor, in units of score per nat.
        estimator: Function of `functional.kl`. Only k1 in the reward has the gradient of the KL
            (M6); the others are there to be compared with it.

    Returns:
        Tensor `(batch, length)`, float32, zero outside the mask; a row without a true position
        gets zeros and loses its score.

    Raises:
        ValueError: When the ranks or the static shapes do not match.

    Example:
        >>> rewards = token_rewards(
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
    penalty = estimator(zero_outside(logprobs, mask), zero_outside(ref_logprobs, mask))
    # Without a coefficient there is no penalty, also where the estimator overflows.
    penalty = ops.where(float32(kl_coef) == 0.0, 0.0, float32(kl_coef) * penalty)
    return _placed(float32(scores), mask) - penalty


def _placed(scores, mask):
    """Scores `(batch, length)`: per token as they are, per response on the last token."""
    if len(scores.shape) == 2:
        check_same_shape(scores=scores, mask=mask)
        return zero_outside(scores, mask)
    check_rank("scores", scores, ("batch",))
    check_same_shape(scores=scores, rows_of_mask=mask[:, 0])
    return ops.where(last_true_mask(mask), scores[:, None], 0.0)


def discounted_sums(x, discount):
    """Sum of what comes from each position on, discounted by the distance.

    `y[t] = x[t] + discount y[t + 1]`, from the right, with 0 after the last column. It compiles
    under XLA, its gradient does not: keep it out of a gradient tape there.

    Args:
        x: Tensor `(batch, length)`.
        discount: Number in [0, 1].

    Returns:
        Tensor `(batch, length)`, float32.

    Raises:
        ValueError: When `x` is not of rank 2 or `discount` lies outside [0, 1].

    Example:
        >>> discounted_sums([[1.0, 1.0, 1.0]], 0.5).numpy().tolist()
        [[1.75, 1.5, 1.0]]
    """
    check_unit_interval("discount", discount)
    x = float32(x)
    check_rank("x", x, ("batch", "length"))

    def step(following, column):
        total = column + discount * following
        return total, total

    # `associative_scan` would take fewer steps, but fails under XLA at most lengths (Keras 3.15).
    columns = ops.transpose(x)
    _, sums = ops.scan(step, ops.zeros_like(x[:, 0]), columns, reverse=True)
    return ops.transpose(sums)


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalized advantage estimates, and the returns that the critic is to learn.

    `delta[t] = rewards[t] + gamma values[t + 1] - values[t]`,
    `advantages[t] = delta[t] + gamma lam advantages[t + 1]`, `returns = advantages + values`; both
    the value and the advantage after the last true position are 0. Both results are targets:
    compute them before the gradient tape opens.

    Args:
        rewards: Tensor `(batch, length)`, from `token_rewards`.
        values: Tensor `(batch, length)`; `values[:, t]` is of the state before token t.
        mask: Tensor `(batch, length)`, bool, true on one contiguous run per row.
        gamma: Discount per token, in [0, 1].
        lam: Weight of longer estimates, in [0, 1]: 0 is one step, 1 is Monte Carlo.

    Returns:
        `(advantages, returns)`, each `(batch, length)`, float32, zero outside the mask.

    Raises:
        ValueError: When `gamma` or `lam` lies outside [0, 1] or the static shapes differ.

    Example:
        >>> advantages, returns = gae(
        ...     rewards=[[0.0, 4.0, 9.0]], values=[[1.0, 2.0, 9.0]],
        ...     mask=[[True, True, False]], gamma=1.0, lam=0.5)
        >>> advantages.numpy().tolist(), returns.numpy().tolist()
        ([[2.0, 2.0, 0.0]], [[3.0, 4.0, 0.0]])

    Reference:
        Schulman et al. 2015, arXiv 1506.02438, eq. 16; Huang et al. 2023, "The N Implementation
        Details of RLHF with PPO" (N16, N19).
    """
    check_unit_interval("gamma", gamma)
    check_unit_interval("lam", lam)
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)
    check_same_shape(rewards=rewards, values=values)
    next_values = ops.pad(values[:, 1:], [[0, 0], [0, 1]])
    deltas = rewards + gamma * next_values - values
    advantages = zero_outside(discounted_sums(deltas, gamma * lam), mask)
    return advantages, advantages + values
