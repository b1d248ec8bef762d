"""Tasks whose optimal policy can be computed: all responses are listed, nothing is sampled.

With reference p, scores r and KL coefficient b, a policy q has the value

    J(q) = E_q[r] - b KL(q || p)

The optimal policy is `p*(y) = p(y) exp(r(y) / b) / Z` with `Z = E_p[exp(r / b)]`, and its value is
`b log Z`. The *regret* of a policy, `(b log Z - J(q)) / (b log Z - J(p))`, is 0 for the optimal
policy and 1 for the reference. It is exact up to rounding, so it shows whether a trainer is
correct, unlike learning curves.

Arrays are float64 `(prompts, responses)`: one row per prompt, one column per response.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from keras import ops

from kerasrlhf import replica
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.types import Tensor, require_int, require_number

# Tolerance of the sum of all probabilities, for float32 log-probabilities.
_MISSING = 1e-3


class ResponseSet(NamedTuple):
    """All responses that a model can produce.

    Attributes:
        token_ids: int32 array, `(responses, length)`. Zero after the end.
        mask: bool array, `(responses, length)`. True on response tokens, the stop token included.
    """

    token_ids: np.ndarray
    mask: np.ndarray

    def tuples(self) -> list[tuple[int, ...]]:
        """Returns the responses as tuples of token ids, without padding."""
        rows = zip(self.token_ids.tolist(), self.mask.sum(axis=1).tolist(), strict=True)
        return [tuple(ids[:count]) for ids, count in rows]


def enumerate_responses(
    vocab: int, length: int, stop_token_ids: Sequence[int] = (), min_length: int = 1
) -> ResponseSet:
    """Returns every response of at most `length` tokens: those that end early, then the others.

    Args:
        vocab: int, at least 1. Tokens are 0 to `vocab - 1`.
        length: int, at least 1, in tokens. `Sampler.length`.
        stop_token_ids: sequence of ints. Tokens that end a response. Defaults to none.
        min_length: int, at least 1, in tokens. A stop token ends a response only as its
            `min_length`-th token or later. Defaults to 1.

    Returns:
        `ResponseSet`.

    Raises:
        ValueError: If a number is outside its range, or a stop token is outside the vocabulary.

    Example:
        >>> optimum = rlhf.evaluation.optimum
        >>> optimum.enumerate_responses(vocab=2, length=2, stop_token_ids=[0]).tuples()
        [(0,), (1, 0), (1, 1)]
    """
    require_int("vocab", vocab, minimum=1)
    require_int("length", length, minimum=1)
    require_int("min_length", min_length, minimum=1)
    stops = {require_int("stop_token_ids", token, minimum=0) for token in stop_token_ids}
    if stops and max(stops) >= vocab:
        raise ValueError(f"`stop_token_ids` must be below vocab={vocab}. Received: {stops}.")
    # Grow all open responses by one token at a time; a stop token closes them (N14).
    ended: list[tuple[int, ...]] = []
    open_rows: list[tuple[int, ...]] = [()]
    for count in range(1, length + 1):
        grown = [(*row, token) for row in open_rows for token in range(vocab)]
        ends = [count >= min_length and row[-1] in stops for row in grown]
        ended += itertools.compress(grown, ends)
        open_rows = [row for row, end in zip(grown, ends, strict=True) if not end]
    # Responses that reach the full length end without a stop token.
    rows = ended + open_rows
    token_ids = np.zeros((len(rows), length), "int32")
    for ids, row in zip(token_ids, rows, strict=True):
        ids[: len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return ResponseSet(token_ids, np.arange(length)[None] < lengths[:, None])


class ResponseLogprobs:
    """Computes the log-probability of every response under the current weights of a model.

    The model evaluates prompt and response with the same functions that training uses. The compiled
    function is kept: call the instance again after every update.

    Args:
        model: `ActorCritic`, or the `reference` of a trainer.
        prompts: sequences of token ids, of equal or different lengths.
        responses: `ResponseSet`, from `enumerate_responses`.
        temperature: float, above 0. The sampler's temperature. Defaults to 1.0.
        batch_size: int, at least 1. Rows per forward pass. Defaults to 4096.
        jit_compile: bool. Whether to compile with XLA. Defaults to True.

    Raises:
        ValueError: If an argument is outside its range, or a prompt is empty.

    Example:
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> tokens = actor.causal_lm.backbone.vocabulary_size
        >>> optimum = rlhf.evaluation.optimum
        >>> responses = optimum.enumerate_responses(tokens, length=1)
        >>> logprobs = optimum.ResponseLogprobs(actor, [[5, 9]], responses)()
        >>> logprobs.shape == (1, tokens), round(float(np.exp(logprobs).sum()), 3)
        (True, 1.0)
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        responses: ResponseSet,
        temperature: float = 1.0,
        batch_size: int = 4096,
        jit_compile: bool = True,
    ) -> None:
        self.shape = len(prompts), len(responses.token_ids)
        temperature = require_number("temperature", temperature, above=0.0)
        require_int("batch_size", batch_size, minimum=1)
        # Every prompt with every response, `(prompts * responses, columns)`.
        self._rows = _rows(prompts, responses)
        self._batch_size = min(batch_size, len(self._rows[0]))
        width = responses.token_ids.shape[1]
        read = model.token_stats if isinstance(model, ActorCritic) else model.logprobs

        def summed(ids: Tensor, mask: Tensor, prompt_lengths: Tensor, inside: Tensor) -> Tensor:
            logprobs = read(ids, mask, prompt_lengths, width, temperature)
            # An `ActorCritic` returns `TokenStats`, a reference only log-probabilities.
            logprobs = getattr(logprobs, "logprobs", logprobs)
            return ops.sum(ops.where(inside, logprobs, 0.0), axis=-1)

        self._read = replica.compiled(summed, jit_compile)

    def __call__(self) -> np.ndarray:
        """Computes the log-probabilities, float64 `(prompts, responses)`, in nats."""
        sums = replica.in_batches(self._read, self._rows, self._batch_size)
        return sums.reshape(self.shape).astype("float64")


def _rows(prompts: Sequence[Sequence[int]], responses: ResponseSet) -> tuple[np.ndarray, ...]:
    """Returns ids, padding mask, prompt lengths and response mask of every prompt and response."""
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) < 1:
        raise ValueError(f"Every prompt needs at least one token id. Received: {prompts!r}.")
    count, width = responses.token_ids.shape
    shape = (len(prompts), count, max(lengths) + width)
    ids, inside = np.zeros(shape, "int32"), np.zeros(shape, bool)
    # Place each response directly after its prompt, as sampling does.
    for row, prompt in enumerate(prompts):
        window = slice(len(prompt), len(prompt) + width)
        ids[row, :, : len(prompt)] = prompt
        ids[row, :, window] = responses.token_ids
        inside[row, :, window] = responses.mask
    prompt_lengths = np.repeat(np.array(lengths, "int32"), count)
    # Fold prompts and responses into rows.
    ids, inside = ids.reshape(-1, shape[-1]), inside.reshape(-1, shape[-1])
    before = np.arange(shape[-1])[None] < prompt_lengths[:, None]
    return ids, inside | before, prompt_lengths, inside


def optimal_logprobs(
    ref_logprobs: npt.ArrayLike, scores: npt.ArrayLike, kl_coef: float
) -> np.ndarray:
    """Computes the log-probabilities of the optimal policy: `log p(y) + r(y) / b - log Z`.

    Args:
        ref_logprobs: array, `(prompts, responses)`, in nats. Log-probabilities under the reference.
        scores: array, `(prompts, responses)`, or `(responses,)` if they do not depend on the
            prompt.
        kl_coef: float, above 0, in units of score per nat. `b`.

    Returns:
        Array, `(prompts, responses)`, float64, in nats.

    Raises:
        ValueError: If the shapes do not match, the probabilities of a row do not sum to 1, or
            `kl_coef` is not above 0.

    Example:
        Exponents of ln 3 and 0 make one of two equally likely responses three times as likely.

        >>> optimum = rlhf.evaluation.optimum
        >>> best = optimum.optimal_logprobs(np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]], kl_coef=1.0)
        >>> np.exp(best).round(4).tolist()
        [[0.75, 0.25]]
    """
    ref_logprobs, scores = checked(ref_logprobs, scores)
    # Tilt the reference by the scores, and normalize by `log Z`.
    tilted = ref_logprobs + scores / require_number("kl_coef", kl_coef, above=0.0)
    return tilted - _log_sum(tilted)[:, None]


def best_value(ref_logprobs: npt.ArrayLike, scores: npt.ArrayLike, kl_coef: float) -> np.ndarray:
    """Computes the value of the optimal policy, `b log Z`.

    Args:
        ref_logprobs: array, `(prompts, responses)`, in nats. Log-probabilities under the reference.
        scores: array, `(prompts, responses)`, or `(responses,)` if they do not depend on the
            prompt.
        kl_coef: float, above 0, in units of score per nat. `b`.

    Returns:
        Array, `(prompts,)`, float64, in units of score.

    Raises:
        ValueError: If an argument is not as in `optimal_logprobs`.

    Example:
        >>> optimum = rlhf.evaluation.optimum
        >>> reference, scores = np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]]
        >>> optimum.best_value(reference, scores, kl_coef=1.0).round(4).tolist()
        [0.6931]
    """
    ref_logprobs, scores = checked(ref_logprobs, scores)
    return kl_coef * _log_sum(ref_logprobs + scores / require_number("kl_coef", kl_coef, above=0.0))


def value(
    logprobs: npt.ArrayLike, ref_logprobs: npt.ArrayLike, scores: npt.ArrayLike, kl_coef: float
) -> np.ndarray:
    """Computes the value `E_q[r] - b KL(q || p)` of a policy q, a sum over all responses.

    Args:
        logprobs: array, `(prompts, responses)`, in nats. Log-probabilities under the policy.
        ref_logprobs: array, `(prompts, responses)`, in nats. The same under the reference.
        scores: array, `(prompts, responses)`, or `(responses,)` if they do not depend on the
            prompt.
        kl_coef: float, at least 0, in units of score per nat. `b`.

    Returns:
        Array, `(prompts,)`, float64, in units of score.

    Raises:
        ValueError: If an argument is not as in `optimal_logprobs`.

    Example:
        The optimal policy of the example above reaches ln 2.

        >>> optimum = rlhf.evaluation.optimum
        >>> reference, scores = np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]]
        >>> best = np.log([[0.75, 0.25]])
        >>> optimum.value(best, reference, scores, kl_coef=1.0).round(4).tolist()
        [0.6931]
    """
    ref_logprobs, scores = checked(ref_logprobs, scores)
    logprobs, _ = checked(logprobs, scores)
    kl_coef = require_number("kl_coef", kl_coef, minimum=0.0)
    return np.sum(np.exp(logprobs) * (scores - kl_coef * (logprobs - ref_logprobs)), axis=1)


def regret(
    logprobs: npt.ArrayLike, ref_logprobs: npt.ArrayLike, scores: npt.ArrayLike, kl_coef: float
) -> float:
    """Computes the fraction of the possible gain over the reference that a policy misses.

    `sum(b log Z - J(q)) / sum(b log Z - J(p))`, both sums over the prompts: 0 is the optimal
    policy, 1 the reference, and a policy worse than the reference is above 1.

    Args:
        logprobs: array, `(prompts, responses)`, in nats. Log-probabilities under the policy.
        ref_logprobs: array, `(prompts, responses)`, in nats. The same under the reference.
        scores: array, `(prompts, responses)`, or `(responses,)` if they do not depend on the
            prompt.
        kl_coef: float, above 0, in units of score per nat. `b`.

    Returns:
        float, at least 0 up to rounding.

    Raises:
        ValueError: If an argument is not as in `optimal_logprobs`, or no gain over the reference is
            possible.

    Example:
        >>> optimum = rlhf.evaluation.optimum
        >>> reference, scores = np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]]
        >>> optimum.regret(reference, reference, scores, kl_coef=1.0)
        1.0
        >>> round(optimum.regret(np.log([[0.75, 0.25]]), reference, scores, kl_coef=1.0), 6)
        0.0
    """
    best = best_value(ref_logprobs, scores, kl_coef)
    # Possible gain over the reference, the denominator of the regret.
    gain = np.sum(best - value(ref_logprobs, ref_logprobs, scores, kl_coef))
    if gain <= 1e-9:
        raise ValueError(
            "The reference is already optimal: the scores of all responses to a prompt "
            f"are equal. Received scores between {np.min(scores)} and {np.max(scores)}."
        )
    return float(np.sum(best - value(logprobs, ref_logprobs, scores, kl_coef)) / gain)


def _log_sum(x: np.ndarray) -> np.ndarray:
    # Subtract the maximum, so that `exp` does not overflow.
    highest = x.max(axis=1)
    return highest + np.log(np.sum(np.exp(x - highest[:, None]), axis=1))


def checked(logprobs: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns log-probabilities and scores as float64 `(prompts, responses)`.

    Raises:
        ValueError: If the shapes do not match, or the probabilities of a row do not sum to 1.
    """
    logprobs, scores = np.asarray(logprobs, "float64"), np.asarray(scores, "float64")
    if logprobs.ndim != 2 or scores.shape not in (logprobs.shape, logprobs.shape[1:]):
        raise ValueError(
            "Expected log-probabilities (prompts, responses) and scores of that shape or "
            f"(responses,). Received: {logprobs.shape} and {scores.shape}."
        )
    # A missing response, or another temperature, shows in the total probability.
    total = np.exp(_log_sum(logprobs))
    if not np.all(np.abs(total - 1.0) <= _MISSING):
        raise ValueError(
            "The probabilities of all responses must sum to 1. Received sums between "
            f"{total.min():.4g} and {total.max():.4g}. List the responses with the length, stop "
            "tokens, `min_length` and temperature of the sampler."
        )
    return logprobs, np.broadcast_to(scores, logprobs.shape)
