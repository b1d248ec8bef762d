"""The fixed point of GRPO on tasks whose responses can all be listed.

`GRPO` with its KL in the loss does not maximize `E[score] - b KL`, so `optimum.regret` does not
apply to it. It follows a mean gradient, which can be computed: with q the policy, p the reference,
and y a response,

    E_q[ 1 / |y| * sum_t (A(y) - b (1 - p(y_t | y_<t) / q(y_t | y_<t))) grad log q(y_t | y_<t) ]

A(y) is the mean advantage of y among `group_size - 1` other responses of q, and the rest of the
bracket is the gradient of the k3 estimate of the KL. The *resting point* is the policy for which
this gradient is zero, if the probability of every token after every prefix is a free parameter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kerasrlhf.evaluation import optimum
from kerasrlhf.functional.baselines import EPSILON
from kerasrlhf.types import require_int, require_number

# Number of groups, and of scores at which mean advantages are computed.
_GROUPS = 1024
_POINTS = 33
# Step size and number of steps.
_RATE = 0.5
_STEPS = 4000
# Largest gradient at which the iteration stops, and at which it may end.
_FORCE, _ACCEPTED = 1e-6, 1e-3


def resting_logprobs(
    ref_logprobs: npt.ArrayLike,
    scores: npt.ArrayLike,
    responses: optimum.ResponseSet,
    kl_coef: float,
    group_size: int,
) -> np.ndarray:
    """Computes the log-probabilities of the policy for which the mean gradient of `GRPO` is zero.

    Starts at the reference and takes steps along the bracket above, per token and prefix, minus its
    mean over the tokens. Means over groups use 1,024 groups with scores spread evenly over their
    distribution.

    Args:
        ref_logprobs: array, `(prompts, responses)`, in nats. Log-probabilities under the reference.
        scores: array, `(prompts, responses)`, or `(responses,)` if they do not depend on the
            prompt.
        responses: `optimum.ResponseSet`, from `optimum.enumerate_responses`. The columns of both.
        kl_coef: float, above 0. Weight of the KL in the loss, per standard deviation of a group.
        group_size: int, at least 2. Responses per prompt.

    Returns:
        Array, `(prompts, responses)`, float64, in nats.

    Raises:
        ValueError: If an argument is not as in `optimum.optimal_logprobs`, a number is not finite,
            or `group_size` is below 2.
        RuntimeError: If no resting point is found.

    Example:
        One of two answers has a higher score. A group of two contains both with probability
        2 q (1 - q), and the better one has an advantage of 1 regardless of the scores.

        >>> responses = rlhf.evaluation.optimum.enumerate_responses(vocab=2, length=1)
        >>> logprobs = rlhf.evaluation.grpo_optimum.resting_logprobs(
        ...     np.log([[0.5, 0.5]]), [[7.0, 0.0]], responses, kl_coef=1.0, group_size=2)
        >>> np.exp(logprobs).round(3).tolist()
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
    # An infinite log-probability would turn the iteration into NaN.
    if not (np.isfinite(ref_logprobs).all() and np.isfinite(scores).all()):
        raise ValueError(
            "Log-probabilities and scores must be finite. List only responses that the reference "
            "can produce."
        )
    # Each prompt has its own resting point; prefixes and quantiles are shared.
    tree = _Tree(responses)
    quantiles = _quantiles(group_size)
    rows = zip(ref_logprobs, scores, strict=True)
    return np.array([_rest(tree, *row, kl_coef, quantiles) for row in rows])


def relative_divergence(
    logprobs: npt.ArrayLike, ref_logprobs: npt.ArrayLike, target_logprobs: npt.ArrayLike
) -> float:
    """Computes the divergence of a policy from a target, relative to that of the reference.

    `sum KL(q || target) / sum KL(p || target)`, both sums over the prompts: 0 is the target, 1 the
    reference. With `optimum.optimal_logprobs` as the target it is `optimum.regret`, because
    `b log Z - J(q) = b KL(q || p*)`.

    Args:
        logprobs: array, `(prompts, responses)`, in nats. Log-probabilities under the policy.
        ref_logprobs: array, `(prompts, responses)`, in nats. The same under the reference.
        target_logprobs: array, `(prompts, responses)`, in nats. The same under the target.

    Returns:
        float, at least 0 up to rounding.

    Raises:
        ValueError: If the shapes differ, or the target is the reference.

    Example:
        >>> reference, target = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])
        >>> rlhf.evaluation.grpo_optimum.relative_divergence(reference, reference, target)
        1.0
    """
    arrays = [np.asarray(x, "float64") for x in (logprobs, ref_logprobs, target_logprobs)]
    if arrays[0].ndim != 2 or len({array.shape for array in arrays}) > 1:
        raise ValueError(
            "Expected three arrays of one shape (prompts, responses). "
            f"Received: {', '.join(str(array.shape) for array in arrays)}."
        )
    logprobs, ref_logprobs, target_logprobs = arrays
    # KL(p || target), the divergence that training starts from.
    start = np.sum(np.exp(ref_logprobs) * (ref_logprobs - target_logprobs))
    if start <= 1e-9:
        raise ValueError("The target is the reference: there is no distance to measure by.")
    return float(np.sum(np.exp(logprobs) * (logprobs - target_logprobs)) / start)


def mean_advantages(
    scores: np.ndarray, probabilities: np.ndarray, quantiles: np.ndarray
) -> np.ndarray:
    """Computes the mean of `functional.group_normalized` for each response in groups of a policy.

    Args:
        scores: float64 array, `(responses,)`. Score of each response.
        probabilities: float64 array, `(responses,)`. Probability of each response under the policy.
        quantiles: float64 array, `(groups, others)`, in [0, 1]. Quantiles of the distribution of
            scores at which the other responses of each group are placed.

    Returns:
        Array, `(responses,)`, float64. If there are more than 33 distinct scores, it is computed at
        33 of them, spaced evenly by rank, and interpolated.
    """
    # Scores of the other responses in each group, `(groups, others)`, by quantile.
    levels, which = np.unique(scores, return_inverse=True)
    reached = np.cumsum(np.bincount(which, probabilities))
    places = np.searchsorted(reached / reached[-1], quantiles)
    others = levels[np.minimum(places, len(levels) - 1)]
    # Own scores, `(points, 1)`, and statistics of the whole group, `(points, groups)`.
    ranks = np.unique(np.linspace(0, len(levels) - 1, _POINTS).round().astype(int))
    own = levels[ranks][:, None]
    size = quantiles.shape[1] + 1
    mean = (others.sum(axis=1) + own) / size
    square = (np.square(others).sum(axis=1) + np.square(own)) / size
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0.0))
    # Mean over the groups, then interpolated to every response.
    advantages = np.mean((own - mean) / (deviation + EPSILON), axis=1)
    return np.interp(levels, levels[ranks], advantages)[which]


def _quantiles(group_size: int) -> np.ndarray:
    """Returns stratified quantiles `(groups, others)`: a column has one in each equal part."""
    generator = np.random.default_rng(0)
    # A permutation per column: every part of [0, 1] occurs once, in random order.
    parts = np.stack([generator.permutation(_GROUPS) for _ in range(group_size - 1)], axis=1)
    return (parts + generator.random(parts.shape)) / _GROUPS


class _Tree:
    """Prefixes of responses, numbered, and the prefix of each token of each response."""

    def __init__(self, responses: optimum.ResponseSet) -> None:
        ids, self.inside = responses
        # Number prefixes in the order in which they first occur.
        numbers: dict[tuple[int, ...], int] = {}
        rows = [
            [numbers.setdefault(response[:t], len(numbers)) for t in range(len(response))]
            for response in responses.tuples()
        ]
        before = np.zeros(ids.shape, "int64")
        before[self.inside] = np.concatenate(rows)
        self.shape = len(numbers), int(ids.max()) + 1
        self.lengths = self.inside.sum(axis=1)
        # Prefix of each counted token, and its cell in a `(prefixes, tokens)` table.
        self._before = before[self.inside]
        self._places = self._before * self.shape[1] + ids[self.inside]

    def per_token(self, values: np.ndarray) -> np.ndarray:
        """Repeats `(responses,)` once for each token that counts."""
        return np.repeat(values, self.lengths)

    def by_token(self, values: np.ndarray) -> np.ndarray:
        """Sums values per token into `(prefixes, tokens)`."""
        size = self.shape[0] * self.shape[1]
        return np.bincount(self._places, values, size).reshape(self.shape)

    def by_prefix(self, values: np.ndarray) -> np.ndarray:
        """Sums values per token into `(prefixes, 1)`."""
        return np.bincount(self._before, values, self.shape[0])[:, None]

    def logprobs(self, table: np.ndarray) -> np.ndarray:
        """Returns the log-probability of each token that counts, from `(prefixes, tokens)`."""
        return np.log(table.reshape(-1)[self._places])

    def summed(self, values: np.ndarray) -> np.ndarray:
        """Sums values per token into `(responses,)`."""
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
    """Computes the resting point of one prompt."""
    # Conditional probabilities of the reference, `(prefixes, tokens)`.
    start = tree.by_token(tree.per_token(np.exp(ref_logprobs)))
    start /= start.sum(axis=1, keepdims=True)
    table, ref_tokens = start, tree.logprobs(start)
    for _ in range(_STEPS):
        tokens = tree.logprobs(table)
        logprobs = tree.summed(tokens)
        probabilities = np.exp(logprobs)
        # The mean gradient of the module's docstring, per counted token.
        weight = tree.per_token(probabilities / tree.lengths)
        advantages = tree.per_token(mean_advantages(scores, probabilities, quantiles))
        pulls = weight * (advantages - kl_coef * (1.0 - np.exp(ref_tokens - tokens)))
        # Divide by how often a prefix occurs, so that rare prefixes converge too.
        reached = tree.by_prefix(weight)
        # A token may be in no response: divide by 1 there.
        used = np.where(table > 0, table, 1.0)
        force = (tree.by_token(pulls) / used - tree.by_prefix(pulls)) / reached
        strongest = np.abs(force).max()
        if strongest < _FORCE:
            break
        # Damp the step where the k3 term is steep, or the iteration oscillates.
        step = force / (1.0 + kl_coef * start / used)
        # Step in logits, clipped, and normalize.
        table = table * np.exp(_RATE * np.clip(step, -1.0, 1.0))
        table /= table.sum(axis=1, keepdims=True)
    if not strongest < _ACCEPTED:
        raise RuntimeError(
            f"No resting point after {_STEPS} steps: a force of {strongest:.2g} is left. "
            "A larger `kl_coef` moves it closer to the reference, where it is found sooner."
        )
    return logprobs
