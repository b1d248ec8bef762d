"""Preference losses on a policy's own log-probabilities, without a reward model.

Each response is reduced to one number: the sum of its tokens' log-probabilities, or their mean.
Candidate 0 is the preferred one, as in `preferences`. Every function raises a `ValueError` if the
static shapes are not the documented ones or a number is outside its range.
"""

from keras import ops

from kerasrlhf.functional._inputs import (
    Tensor,
    boolean,
    check_candidates,
    check_positive,
    check_rank,
    check_same_shape,
    float32,
)
from kerasrlhf.functional.masking import masked_sum
from kerasrlhf.functional.preferences import bradley_terry

_CERTAIN = -1e-6  # Log-probabilities above this are clipped to it.


def response_logprobs(logprobs: Tensor, mask: Tensor, average: bool = False) -> Tensor:
    """Computes the log-probability of each response: the sum over its tokens, or their mean.

    `sum_t mask[t] logprobs[t]`, divided by `sum_t mask[t]` with `average`; 0 for a response
    without tokens.

    Args:
        logprobs: Tensor, `(..., length)`, in nats. Log-probabilities of the tokens.
        mask: Tensor, `(..., length)`, bool. True on response tokens.
        average: bool. Whether to divide by the number of response tokens. Defaults to False.

    Returns:
        Tensor, `(...)`, float32, in nats, or in nats per token with `average`.

    Example:
        >>> logprobs, mask = [[-9.0, -1.0, -2.0]], [[False, True, True]]
        >>> rlhf.functional.response_logprobs(logprobs, mask).numpy().tolist()
        [-3.0]
        >>> rlhf.functional.response_logprobs(logprobs, mask, average=True).numpy().tolist()
        [-1.5]

    Reference:
        Rafailov et al. 2023, arXiv 2305.18290, eq. 7 (the sum); Hong et al. 2024, arXiv
        2403.07691, eq. 3 (the mean).
    """
    total = masked_sum(logprobs, mask, axis=-1)
    if not average:
        return total
    # A response without tokens has the mean 0.
    return total / ops.maximum(ops.sum(float32(boolean(mask)), axis=-1), 1.0)


def implicit_reward(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    beta: float | Tensor = 1.0,
    reference_point: float | Tensor = 0.0,
) -> Tensor:
    """Computes the score that makes a policy optimal, up to a constant per prompt.

    `beta (log pi(y|x) - log ref(y|x) - reference_point)`: with that score `r`, the policy that
    maximizes `E[r] - beta KL` is `pi` itself. With `beta` 1 it is the log-ratio.

    Args:
        logprobs: Tensor, any shape, in nats. Log-probabilities of responses under the policy.
        ref_logprobs: Tensor, the shape of `logprobs`, in nats. The same under the reference.
        beta: float, above 0, in units of score per nat. Defaults to 1.0.
        reference_point: float or Tensor that broadcasts to `logprobs`, in nats. Subtracted from
            the log-ratio; KTO's `z0`. Defaults to 0.0.

    Returns:
        Tensor, the shape of `logprobs`, float32, in units of score.

    Example:
        >>> logprobs, ref_logprobs = [[-1.0, -4.0]], [[-2.0, -2.0]]
        >>> rlhf.functional.implicit_reward(logprobs, ref_logprobs, beta=0.5).numpy().tolist()
        [[0.5, -1.0]]

    Reference:
        Rafailov et al. 2023, arXiv 2305.18290, eq. 5; Ethayarajh et al. 2024, arXiv 2402.01306,
        eq. 8 (the reference point).
    """
    check_positive("beta", beta)
    logprobs, ref_logprobs = float32(logprobs), float32(ref_logprobs)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs - reference_point)


def ipo(log_ratios: Tensor, beta: float | Tensor) -> Tensor:
    """Computes the squared distance of candidate 0's lead from `1 / (2 beta)`.

    `mean over j > 0 of (h[0] - h[j] - 1 / (2 beta))^2` with `h = log pi - log ref`. If labels
    follow a preference `p(y > y')` over pairs sampled from one list, the optimal log-ratio is
    `E_y'[p(y > y')] / beta` plus a constant, which is finite even if one response always wins.

    Args:
        log_ratios: Tensor, `(batch, candidates)`, in nats, at least two candidates. Log-ratios of
            policy and reference, the preferred candidate first.
        beta: float, above 0. The paper's tau.

    Returns:
        Tensor, `(batch,)`, float32, in squared nats, at least 0.

    Example:
        >>> log_ratios = [[3.0, 1.0], [0.0, 0.0]]  # leads of 2 and 0; the target is 1
        >>> rlhf.functional.ipo(log_ratios, beta=0.5).numpy().tolist()
        [1.0, 1.0]

    Reference:
        Azar et al. 2023, arXiv 2310.12036, eq. 17.
    """
    check_positive("beta", beta)
    log_ratios = float32(log_ratios)
    check_candidates("log_ratios", log_ratios)
    # Leads over every other candidate, `(batch, candidates - 1)`; eq. 17.
    leads = log_ratios[:, :1] - log_ratios[:, 1:]
    return ops.mean(ops.square(leads - 1.0 / (2.0 * beta)), axis=1)


def kto(
    rewards: Tensor,
    desirable_weight: float | Tensor = 1.0,
    undesirable_weight: float | Tensor = 1.0,
    desirable: Tensor | None = None,
) -> Tensor:
    """Computes the Kahneman-Tversky loss of desirable and undesirable responses.

    `lambda_D (1 - sigmoid(r))` for desirable responses and `lambda_U (1 - sigmoid(-r))` for the
    others, averaged over the candidates. Each response is judged by itself, relative to the
    reference point that `r` is measured from.

    Args:
        rewards: Tensor, `(batch, candidates)`. Implicit rewards `beta (log pi - log ref - z0)`.
        desirable_weight: float, at least 0. `lambda_D`. Defaults to 1.0.
        undesirable_weight: float, at least 0. `lambda_U`. Defaults to 1.0.
        desirable: Tensor, `(batch, candidates)`, bool. Which responses are desirable. Defaults to
            None: the first of two or more candidates only.

    Returns:
        Tensor, `(batch,)`, float32, from 0 to the larger weight.

    Example:
        >>> rlhf.functional.kto([[0.0, 0.0], [99.0, 0.0], [99.0, -99.0]]).numpy().tolist()
        [0.5, 0.25, 0.0]
        >>> rlhf.functional.kto([[99.0], [99.0]], desirable=[[True], [False]]).numpy().tolist()
        [0.0, 1.0]

    Reference:
        Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
    """
    rewards = float32(rewards)
    if desirable is None:
        check_candidates("rewards", rewards)
        # Candidate 0 is the preferred one.
        desirable = ops.broadcast_to(ops.arange(rewards.shape[1]) == 0, ops.shape(rewards))
    desirable = boolean(desirable)
    check_rank("rewards", rewards, ("batch", "candidates"))
    check_same_shape(rewards=rewards, desirable=desirable)
    # Eq. 8, with `1 - sigmoid(r) = sigmoid(-r)`.
    losses = ops.where(
        desirable,
        desirable_weight * ops.sigmoid(-rewards),
        undesirable_weight * ops.sigmoid(rewards),
    )
    return ops.mean(losses, axis=1)


def log_odds(logprobs: Tensor) -> Tensor:
    """Computes the logarithm of the odds of events with these log-probabilities.

    `log(p / (1 - p)) = logprobs - log(1 - exp(logprobs))`. Probabilities are clipped at 0.999999,
    so the odds stay finite.

    Args:
        logprobs: Tensor, any shape, in nats, at most 0. ORPO passes means per token.

    Returns:
        Tensor, the shape of `logprobs`, float32, in nats.

    Example:
        >>> import math
        >>> odds = rlhf.functional.log_odds([math.log(0.75), math.log(0.5)])  # log 3 and log 1
        >>> [round(x, 4) + 0.0 for x in odds.numpy().tolist()]
        [1.0986, 0.0]

    Reference:
        Hong et al. 2024, arXiv 2403.07691, eq. 4.
    """
    logprobs = ops.minimum(float32(logprobs), _CERTAIN)
    # `expm1` keeps the digits of `1 - p` when `p` is close to 1.
    return logprobs - ops.log(-ops.expm1(logprobs))


def orpo(mean_logprobs: Tensor, coef: float | Tensor = 0.1) -> Tensor:
    """Computes the negative log-likelihood of candidate 0 plus an odds-ratio penalty.

    `-m[0] + coef * mean over j > 0 of -log sigmoid(log_odds(m[0]) - log_odds(m[j]))`, where `m` is
    the mean log-probability of a response's tokens.

    Args:
        mean_logprobs: Tensor, `(batch, candidates)`, in nats per token, at least two candidates.
            Mean log-probabilities of the responses, the preferred one first.
        coef: float, at least 0. Weight of the odds ratio; the paper's lambda. Defaults to 0.1.

    Returns:
        Tensor, `(batch,)`, float32, in nats, at least 0.

    Example:
        >>> import math
        >>> half, quarter = math.log(0.5), math.log(0.25)  # odds of 1 and 1/3
        >>> loss = rlhf.functional.orpo([[half, quarter]], coef=1.0)
        >>> round(float(loss[0]), 4)  # log 2 + log 4/3
        0.9808

    Reference:
        Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7.
    """
    mean_logprobs = float32(mean_logprobs)
    # Eq. 6: likelihood of candidate 0, and `-log sigmoid` of the log odds ratio.
    odds = bradley_terry(log_odds(mean_logprobs))
    return coef * odds - mean_logprobs[:, 0]
