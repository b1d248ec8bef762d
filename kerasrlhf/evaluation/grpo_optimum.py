"""Where GRPO comes to rest on tasks of which every response is listed.

`GRPO` with its KL in the loss does not make `E[score] - b KL` large, so that `optimum.regret` does
not judge it. What it follows is the mean of its gradient, which can be computed: with q the policy,
p the reference, and y a response,

    E_q[ 1 / |y| * sum_t (A(y) - b (1 - p(y_t | y_<t) / q(y_t | y_<t))) grad log q(y_t | y_<t) ]

A(y) is the mean advantage of y among `group_size - 1` other responses of q, and the rest of the
bracket is the gradient of the k3 estimate of the KL. The policy where this is zero, if every token
after every beginning can have any probability, is the *resting point*.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasrlhf.evaluation import optimum
from kerasrlhf.functional.baselines import EPSILON
from kerasrlhf.types import require_int, require_number

_DRAWS = 1024
_POINTS = 33
_RATE = 0.5
_STEPS = 4000
_FORCE, _ACCEPTED = 1e-6, 1e-3


def resting_logprobs(
    ref_logprobs: Any,
    scores: Any,
    responses: optimum.Responses,
    kl_coef: float,
    group_size: int,
) -> np.ndarray:
    """Log-probabilities of the policy at which the mean gradient of `GRPO` is zero.

    Found from the reference on, by steps along what the bracket above leaves for each token after
    each beginning, less its mean there. Means over groups are taken over 1,024 groups whose scores
    are spread evenly over their distribution.

    Args:
        ref_logprobs: `(prompts, responses)`, in nats, of the reference.
        scores: `(prompts, responses)`, or `(responses,)` where the prompt does not matter.
        responses: from `optimum.enumerate_responses`; the columns of both.
        kl_coef: float, above 0: weight of the KL in the loss, per standard deviation of a group.
        group_size: int, at least 2.

    Returns:
        Float64 `(prompts, responses)`, in nats.

    Raises:
        ValueError: as `optimum.optimal_logprobs`, numbers that are not finite, or a group size
            below 2.
        RuntimeError: no resting point was found.

    Example:
        Of two answers one scores more. A group of two holds both with chance 2 q (1 - q), and the
        better one wins by 1 whatever the scores are.

        >>> responses = optimum.enumerate_responses(vocab=2, length=1)
        >>> found = resting_logprobs(np.log([[0.5, 0.5]]), [[7.0, 0.0]], responses, 1.0, 2)
        >>> np.exp(found).round(3).tolist()
        [[0.707, 0.293]]

    Reference:
        Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), eq. 3 and 4.
    """
    ref_logprobs, scores = optimum.checked(ref_logprobs, scores)
    kl_coef = require_number("kl_coef", kl_coef, above=0.0)
    require_int("group_size", group_size, minimum=2)
    if len(responses.token_ids) != scores.shape[1]:
        raise ValueError(
            f"Received {len(responses.token_ids)} responses and {scores.shape[1]} columns of "
            "log-probabilities. Both must come from the same `enumerate_responses`."
        )
    if not (np.isfinite(ref_logprobs).all() and np.isfinite(scores).all()):
        raise ValueError(
            "Log-probabilities and scores must be finite. List only responses that the reference "
            "can give."
        )
    tree = _Tree(responses)
    quantiles = _quantiles(group_size)
    rows = zip(ref_logprobs, scores, strict=True)
    return np.array([_rest(tree, *row, kl_coef, quantiles) for row in rows])


def relative_divergence(logprobs: Any, ref_logprobs: Any, target_logprobs: Any) -> float:
    """How far a policy is from a target, in units of how far the reference is.

    `sum KL(q || target) / sum KL(p || target)`, both sums over the prompts: 0 is the target, 1 the
    reference. With `optimum.optimal_logprobs` as the target it is `optimum.regret`, because
    `b log Z - J(q) = b KL(q || p*)`.

    Args:
        logprobs: `(prompts, responses)`, in nats, of the policy.
        ref_logprobs: the same of the reference.
        target_logprobs: the same of the target.

    Returns:
        Float, at least 0 up to rounding.

    Raises:
        ValueError: shapes that do not fit, or a target that is the reference.

    Example:
        >>> reference, target = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])
        >>> relative_divergence(reference, reference, target)
        1.0
    """
    arrays = [np.asarray(x, "float64") for x in (logprobs, ref_logprobs, target_logprobs)]
    if arrays[0].ndim != 2 or len({array.shape for array in arrays}) > 1:
        raise ValueError(
            "Expected three arrays of one shape (prompts, responses). "
            f"Received: {', '.join(str(array.shape) for array in arrays)}."
        )
    logprobs, ref_logprobs, target_logprobs = arrays
    start = np.sum(np.exp(ref_logprobs) * (ref_logprobs - target_logprobs))
    if start <= 1e-9:
        raise ValueError("The target is the reference: there is no distance to measure by.")
    return float(np.sum(np.exp(logprobs) * (logprobs - target_logprobs)) / start)


def mean_advantages(
    scores: np.ndarray, probabilities: np.ndarray, quantiles: np.ndarray
) -> np.ndarray:
    """The mean of `functional.group_normalized` for a response among others of a policy.

    Args:
        scores: float64 `(responses,)`.
        probabilities: float64 `(responses,)`, that the others have.
        quantiles: `(groups, others)`, from 0 to 1: where in the distribution of scores the others
            of each group stand.

    Returns:
        Float64 `(responses,)`. Of more than 33 different scores it is computed at 33, evenly by
        rank, and interpolated.
    """
    levels, which = np.unique(scores, return_inverse=True)
    reached = np.cumsum(np.bincount(which, probabilities))
    places = np.searchsorted(reached / reached[-1], quantiles)
    others = levels[np.minimum(places, len(levels) - 1)]
    ranks = np.unique(np.linspace(0, len(levels) - 1, _POINTS).round().astype(int))
    own = levels[ranks][:, None]
    size = quantiles.shape[1] + 1
    mean = (others.sum(axis=1) + own) / size
    square = (np.square(others).sum(axis=1) + np.square(own)) / size
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0.0))
    advantages = np.mean((own - mean) / (deviation + EPSILON), axis=1)
    return np.interp(levels, levels[ranks], advantages)[which]


def _quantiles(group_size: int) -> np.ndarray:
    """`(groups, others)`: every column has one number in each of as many equal parts of (0, 1)."""
    generator = np.random.default_rng(0)
    parts = np.stack([generator.permutation(_DRAWS) for _ in range(group_size - 1)], axis=1)
    return (parts + generator.random(parts.shape)) / _DRAWS


class _Tree:
    """Beginnings of responses, numbered, and where each token of each response stands."""

    def __init__(self, responses: optimum.Responses):
        ids, self.inside = responses
        numbers: dict[tuple[int, ...], int] = {}
        rows = [
            [numbers.setdefault(response[:t], len(numbers)) for t in range(len(response))]
            for response in responses.tuples()
        ]
        before = np.zeros(ids.shape, "int64")
        before[self.inside] = np.concatenate(rows)
        self.shape = len(numbers), int(ids.max()) + 1
        self.lengths = self.inside.sum(axis=1)
        self._before = before[self.inside]
        self._places = self._before * self.shape[1] + ids[self.inside]

    def per_token(self, values: np.ndarray) -> np.ndarray:
        """`(responses,)` repeated for each token that counts."""
        return np.repeat(values, self.lengths)

    def by_token(self, values: np.ndarray) -> np.ndarray:
        """Sums of what is given per token, `(beginnings, tokens)`."""
        size = self.shape[0] * self.shape[1]
        return np.bincount(self._places, values, size).reshape(self.shape)

    def by_beginning(self, values: np.ndarray) -> np.ndarray:
        """Sums of what is given per token, `(beginnings, 1)`."""
        return np.bincount(self._before, values, self.shape[0])[:, None]

    def logprobs(self, table: np.ndarray) -> np.ndarray:
        """Of each token that counts, from `(beginnings, tokens)`."""
        return np.log(table.reshape(-1)[self._places])

    def summed(self, values: np.ndarray) -> np.ndarray:
        """Per token to per response."""
        rows = np.zeros(self.inside.shape)
        rows[self.inside] = values
        return rows.sum(axis=1)


def _rest(
    tree: _Tree,
    ref_logprobs: np.ndarray,
    scores: np.ndarray,
    kl_coef: float,
    quantiles: np.ndarray,
) -> np.ndarray:
    """The resting point of one prompt."""
    start = tree.by_token(tree.per_token(np.exp(ref_logprobs)))
    start /= start.sum(axis=1, keepdims=True)
    table, given = start, tree.logprobs(start)
    for _ in range(_STEPS):
        tokens = tree.logprobs(table)
        logprobs = tree.summed(tokens)
        probabilities = np.exp(logprobs)
        weight = tree.per_token(probabilities / tree.lengths)
        advantages = tree.per_token(mean_advantages(scores, probabilities, quantiles))
        pulls = weight * (advantages - kl_coef * (1.0 - np.exp(given - tokens)))
        reached = tree.by_beginning(weight)
        used = np.where(table > 0, table, 1.0)  # a token may stand in no response
        force = (tree.by_token(pulls) / used - tree.by_beginning(pulls)) / reached
        strongest = np.abs(force).max()
        if strongest < _FORCE:
            break
        # Where k3 pulls hard, a token's force changes fast with its probability.
        step = force / (1.0 + kl_coef * start / used)
        table = table * np.exp(_RATE * np.clip(step, -1.0, 1.0))
        table /= table.sum(axis=1, keepdims=True)
    if not strongest < _ACCEPTED:
        raise RuntimeError(
            f"No resting point after {_STEPS} steps: a force of {strongest:.2g} is left. "
            "With a larger `kl_coef` it is nearer to the reference and found sooner."
        )
    return logprobs
