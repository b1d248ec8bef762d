"""Preference losses on a policy's own log-probabilities, without a reward model.

A response has one number: the sum of its tokens' log-probabilities, or their mean. Candidate 0 is
the preferred one, as in `preferences`.
"""

from keras import ops

from kerasrlhf.functional._inputs import (
    boolean,
    check_candidates,
    check_positive,
    check_rank,
    check_same_shape,
    float32,
)
from kerasrlhf.functional.masking import masked_sum
from kerasrlhf.functional.preferences import bradley_terry

_CERTAIN = -1e-6  # log-probabilities above it count as this one


def response_logprobs(logprobs, mask, average=False):
    """Log-probability of each response: the sum over its tokens, or their mean.

    `sum_t mask[t] logprobs[t]`, with `average` divided by `sum_t mask[t]`; 0 without a token.

    Args:
        logprobs: Tensor `(..., length)`, in nats.
        mask: Tensor of that shape, bool, true on response tokens.
        average: Whether to divide by the number of response tokens.

    Returns:
        Tensor `(...)`, float32, in nats, or nats per token with `average`.

    Raises:
        ValueError: When the static shapes differ.

    Example:
        >>> logprobs, mask = [[-9.0, -1.0, -2.0]], [[False, True, True]]
        >>> response_logprobs(logprobs, mask).numpy().tolist()
        [-3.0]
        >>> response_logprobs(logprobs, mask, average=True).numpy().tolist()
        [-1.5]

    Reference:
        Rafailov et al. 2023, arXiv 2305.18290, eq. 7 (the sum); Hong et al. 2024, arXiv
        2403.07691, eq. 3 (the mean).
    """
    total = masked_sum(logprobs, mask, axis=-1)
    if not average:
        return total
    return total / ops.maximum(ops.sum(float32(boolean(mask)), axis=-1), 1.0)


def implicit_reward(logprobs, ref_logprobs, beta=1.0, reference_point=0.0):
    """The score for which a policy is the best one, up to a constant of the prompt.

    `beta (log pi(y|x) - log ref(y|x) - reference_point)`: with that score `r` the best policy under
    `E[r] - beta KL` is `pi` itself. With `beta` 1 it is the log-ratio.

    Args:
        logprobs: Tensor of any shape, in nats, of responses under the policy.
        ref_logprobs: Tensor of that shape, under the reference.
        beta: Number above 0, units of score per nat.
        reference_point: Number or tensor that can be subtracted, in nats; KTO's `z0`.

    Returns:
        Tensor of the shape of `logprobs`, float32, in units of score.

    Raises:
        ValueError: When the static shapes differ or `beta` is not above 0.

    Example:
        >>> implicit_reward([[-1.0, -4.0]], [[-2.0, -2.0]], beta=0.5).numpy().tolist()
        [[0.5, -1.0]]

    Reference:
        Rafailov et al. 2023, arXiv 2305.18290, eq. 5; Ethayarajh et al. 2024, arXiv 2402.01306,
        eq. 8 (the reference point).
    """
    check_positive("beta", beta)
    logprobs, ref_logprobs = float32(logprobs), float32(ref_logprobs)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs - reference_point)


def ipo(log_ratios, beta):
    """Squared distance of the lead of candidate 0 from a fixed one.

    `mean over j > 0 of (h[0] - h[j] - 1 / (2 beta))^2` with `h = log pi - log ref`. With labels of
    a preference `p(y > y')` over pairs drawn from one list the best log-ratio is `E_y'[p(y > y')] /
    beta` and a constant: finite also where one response always wins.

    Args:
        log_ratios: Tensor `(batch, candidates)`, in nats, the preferred one first.
        beta: Number above 0: the paper's tau.

    Returns:
        Tensor `(batch,)`, float32, at least 0, in squared nats.

    Raises:
        ValueError: When `log_ratios` is not `(batch, candidates)` with two candidates or more, or
            `beta` is not above 0.

    Example:
        >>> ipo([[3.0, 1.0], [0.0, 0.0]], beta=0.5).numpy().tolist()  # leads of 2 and 0 against 1
        [1.0, 1.0]

    Reference:
        Azar et al. 2023, arXiv 2310.12036, eq. 17.
    """
    check_positive("beta", beta)
    log_ratios = float32(log_ratios)
    check_candidates("log_ratios", log_ratios)
    leads = log_ratios[:, :1] - log_ratios[:, 1:]
    return ops.mean(ops.square(leads - 1.0 / (2.0 * beta)), axis=1)


def kto(rewards, desirable_weight=1.0, undesirable_weight=1.0, desirable=None):
    """How far each response is from being surely what it is said to be, desirable or undesirable.

    `lambda_D (1 - sigmoid(r))` of desirable ones and `lambda_U (1 - sigmoid(-r))` of the others,
    meaned over the candidates: each is judged by itself, against the reference point that `r` is
    measured from.

    Args:
        rewards: Tensor `(batch, candidates)`, `beta (log pi - log ref - z0)`.
        desirable_weight: Number, at least 0: `lambda_D`.
        undesirable_weight: Number, at least 0: `lambda_U`.
        desirable: Tensor of that shape, bool. None: the first of two candidates or more is
            desirable, and the others are not.

    Returns:
        Tensor `(batch,)`, float32, from 0 to the larger weight.

    Raises:
        ValueError: When `rewards` is not `(batch, candidates)`, has one candidate and no
            `desirable`, or the shapes differ.

    Example:
        >>> kto([[0.0, 0.0], [99.0, 0.0], [99.0, -99.0]]).numpy().tolist()
        [0.5, 0.25, 0.0]
        >>> kto([[99.0], [99.0]], desirable=[[True], [False]]).numpy().tolist()
        [0.0, 1.0]

    Reference:
        Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
    """
    rewards = float32(rewards)
    if desirable is None:
        check_candidates("rewards", rewards)
        desirable = ops.broadcast_to(ops.arange(rewards.shape[1]) == 0, ops.shape(rewards))
    desirable = boolean(desirable)
    check_rank("rewards", rewards, ("batch", "candidates"))
    check_same_shape(rewards=rewards, desirable=desirable)
    losses = ops.where(
        desirable,
        desirable_weight * ops.sigmoid(-rewards),
        undesirable_weight * ops.sigmoid(rewards),
    )
    return ops.mean(losses, axis=1)


def log_odds(logprobs):
    """Logarithm of the odds of an event with these log-probabilities.

    `log(p / (1 - p)) = logprobs - log(1 - exp(logprobs))`. Probabilities above 0.999999 count as
    that one, so that the odds stay finite.

    Args:
        logprobs: Tensor of any shape, in nats, at most 0; ORPO takes means per token.

    Returns:
        Tensor of that shape, float32, in nats.

    Raises:
        ValueError: When `logprobs` is no number.

    Example:
        >>> import math
        >>> odds = log_odds([math.log(0.75), math.log(0.5)])  # log 3 and log 1
        >>> [round(x, 4) + 0.0 for x in odds.numpy().tolist()]
        [1.0986, 0.0]

    Reference:
        Hong et al. 2024, arXiv 2403.07691, eq. 4.
    """
    logprobs = ops.minimum(float32(logprobs), _CERTAIN)
    return logprobs - ops.log(-ops.expm1(logprobs))


def orpo(mean_logprobs, coef=0.1):
    """Likelihood of candidate 0 and the odds of it against the others, in one loss.

    `-m[0] + coef * mean over j > 0 of -log sigmoid(log_odds(m[0]) - log_odds(m[j]))` with `m` the
    mean log-probability of a response's tokens.

    Args:
        mean_logprobs: Tensor `(batch, candidates)`, in nats per token, the preferred one first.
        coef: Number, at least 0: the paper's lambda.

    Returns:
        Tensor `(batch,)`, float32, in nats, at least 0.

    Raises:
        ValueError: When `mean_logprobs` is not `(batch, candidates)` with two candidates or more.

    Example:
        >>> import math
        >>> half, quarter = math.log(0.5), math.log(0.25)  # odds of 1 and 1/3
        >>> round(float(orpo([[half, quarter]], coef=1.0)[0]), 4)  # log 2 + log 4/3
        0.9808

    Reference:
        Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7.
    """
    mean_logprobs = float32(mean_logprobs)
    odds = bradley_terry(log_odds(mean_logprobs))
    return coef * odds - mean_logprobs[:, 0]
