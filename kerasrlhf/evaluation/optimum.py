"""Tasks whose best policy can be computed: every response is listed, nothing is sampled.

With reference p, scores r and KL coefficient b a policy q has the value

    J(q) = E_q[r] - b KL(q || p)

The best policy is `p*(y) = p(y) exp(r(y) / b) / Z` with `Z = E_p[exp(r / b)]`, and its value is
`b log Z`. The *regret* of a policy, `(b log Z - J(q)) / (b log Z - J(p))`, is 0 for the best and 1
for the reference. It is exact up to rounding, so it tells whether a trainer is right whatever its
curves look like.

Arrays are float64 `(prompts, responses)`: a row for each prompt, a column for each response.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from kerasrlhf import replica
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.types import require_int, require_number

# Of the sum of all probabilities: what float32 log-probabilities of a whole list may miss.
_MISSING = 1e-3


class Responses(NamedTuple):
    """All responses that a model can give.

    token_ids: int32 `(responses, length)`, zero behind the end.
    mask: bool `(responses, length)`, true on response tokens, the stop token included.
    """

    token_ids: np.ndarray
    mask: np.ndarray

    def tuples(self) -> list[tuple[int, ...]]:
        """The responses as tuples of ids, without padding."""
        rows = zip(self.token_ids.tolist(), self.mask.sum(axis=1).tolist(), strict=True)
        return [tuple(ids[:count]) for ids, count in rows]


def enumerate_responses(
    vocab: int, length: int, stop_token_ids: Sequence[int] = (), min_length: int = 1
) -> Responses:
    """Every response of at most `length` tokens: those that end early, then those that do not.

    Args:
        vocab: int, at least 1. Tokens are 0 to `vocab - 1`.
        length: int, at least 1: `Sampler.length`.
        stop_token_ids: ids that end a response.
        min_length: int: a stop token ends a response as its `min_length`-th token or later.

    Raises:
        ValueError: a number outside its range, or a stop token outside the vocabulary.

    Example:
        >>> enumerate_responses(vocab=2, length=2, stop_token_ids=[0]).tuples()
        [(0,), (1, 0), (1, 1)]
    """
    require_int("vocab", vocab, minimum=1)
    require_int("length", length, minimum=1)
    require_int("min_length", min_length, minimum=1)
    stops = {require_int("stop_token_ids", token, minimum=0) for token in stop_token_ids}
    if stops and max(stops) >= vocab:
        raise ValueError(f"`stop_token_ids` must be below vocab={vocab}. Received: {stops}.")
    ended, open_rows = [], [()]
    for count in range(1, length + 1):
        grown = [(*row, token) for row in open_rows for token in range(vocab)]
        ends = [count >= min_length and row[-1] in stops for row in grown]
        ended += itertools.compress(grown, ends)
        open_rows = [row for row, end in zip(grown, ends, strict=True) if not end]
    rows = ended + open_rows
    token_ids = np.zeros((len(rows), length), "int32")
    for ids, row in zip(token_ids, rows, strict=True):
        ids[: len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return Responses(token_ids, np.arange(length)[None] < lengths[:, None])


class ResponseLogprobs:
    """Reads the log-probability of every response under a model as it is now.

    The model reads prompt and response by the same functions that training uses. What is
    compiled is kept: call the reader again after every update.

    Args:
        model: `ActorCritic`, or the `reference` of a trainer.
        prompts: sequences of token ids, of equal or different lengths.
        responses: from `enumerate_responses`.
        temperature: float, that of the sampler.
        batch_size: int. Rows that are read at once.
        jit_compile: compile with XLA.

    Raises:
        ValueError: an argument outside its range, or an empty prompt.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> tokens = actor.causal_lm.backbone.vocabulary_size
        >>> read = ResponseLogprobs(actor, [[5, 9]], enumerate_responses(tokens, length=1))
        >>> read().shape == (1, tokens), round(float(np.exp(read()).sum()), 3)
        (True, 1.0)
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        responses: Responses,
        temperature: float = 1.0,
        batch_size: int = 4096,
        jit_compile: bool = True,
    ):
        self.shape = len(prompts), len(responses.token_ids)
        temperature = require_number("temperature", temperature, above=0.0)
        require_int("batch_size", batch_size, minimum=1)
        self._inputs = _batches(_rows(prompts, responses), batch_size)
        width = responses.token_ids.shape[1]
        read = model.token_stats if isinstance(model, ActorCritic) else model.logprobs

        def summed(ids, mask, starts, inside):
            logprobs = read(ids, mask, starts, width, temperature)
            logprobs = getattr(logprobs, "logprobs", logprobs)
            return ops.sum(ops.where(inside, logprobs, 0.0), axis=-1)

        self._read = replica.compiled(summed, jit_compile)

    def __call__(self) -> np.ndarray:
        """Nats, float64 `(prompts, responses)`."""
        sums = np.concatenate([np.asarray(self._read(*batch)) for batch in self._inputs])
        return sums[: self.shape[0] * self.shape[1]].reshape(self.shape).astype("float64")


def _rows(prompts: Sequence[Sequence[int]], responses: Responses) -> list[np.ndarray]:
    """Ids, padding mask, starts and response mask of every prompt with every response."""
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) < 1:
        raise ValueError(f"Every prompt needs at least one token id. Received: {prompts!r}.")
    count, width = responses.token_ids.shape
    shape = (len(prompts), count, max(lengths) + width)
    ids, inside = np.zeros(shape, "int32"), np.zeros(shape, bool)
    for row, prompt in enumerate(prompts):
        window = slice(len(prompt), len(prompt) + width)
        ids[row, :, : len(prompt)] = prompt
        ids[row, :, window] = responses.token_ids
        inside[row, :, window] = responses.mask
    starts = np.repeat(np.array(lengths, "int32"), count)
    ids, inside = ids.reshape(-1, shape[-1]), inside.reshape(-1, shape[-1])
    before = np.arange(shape[-1])[None] < starts[:, None]
    return [ids, inside | before, starts, inside]


def _batches(rows: list[np.ndarray], size: int) -> list[list[Any]]:
    """Equal batches of tensors; the last is filled up with rows from the beginning."""
    size = min(size, len(rows[0]))
    filled = np.arange(-(-len(rows[0]) // size) * size) % len(rows[0])
    return [
        [ops.convert_to_tensor(array[part]) for array in rows] for part in filled.reshape(-1, size)
    ]


def optimal_logprobs(ref_logprobs: Any, scores: Any, kl_coef: float) -> np.ndarray:
    """Log-probabilities of the best policy: `log p(y) + r(y) / b - log Z`.

    Args:
        ref_logprobs: `(prompts, responses)`, in nats, of the reference.
        scores: `(prompts, responses)`, or `(responses,)` where the prompt does not matter.
        kl_coef: float, above 0. In units of score per nat.

    Returns:
        Float64 `(prompts, responses)`, in nats.

    Raises:
        ValueError: shapes that do not fit, probabilities that do not sum to 1, `kl_coef` not
            above 0.

    Example:
        Exponents of ln 3 and 0 make one of two equally likely responses three times likelier.

        >>> best = optimal_logprobs(np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]], kl_coef=1.0)
        >>> np.exp(best).round(4).tolist()
        [[0.75, 0.25]]
    """
    ref_logprobs, scores = checked(ref_logprobs, scores)
    tilted = ref_logprobs + scores / require_number("kl_coef", kl_coef, above=0.0)
    return tilted - _log_sum(tilted)[:, None]


def best_value(ref_logprobs: Any, scores: Any, kl_coef: float) -> np.ndarray:
    """The value of the best policy, `b log Z`; arguments and errors as for `optimal_logprobs`.

    Returns:
        Float64 `(prompts,)`, in units of score.

    Example:
        >>> best_value(np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]], kl_coef=1.0).round(4).tolist()
        [0.6931]
    """
    ref_logprobs, scores = checked(ref_logprobs, scores)
    return kl_coef * _log_sum(ref_logprobs + scores / require_number("kl_coef", kl_coef, above=0.0))


def value(logprobs: Any, ref_logprobs: Any, scores: Any, kl_coef: float) -> np.ndarray:
    """`E_q[r] - b KL(q || p)` of a policy q, a sum over all responses.

    Args:
        logprobs: `(prompts, responses)`, in nats, of the policy.
        ref_logprobs: as in `optimal_logprobs`.
        scores: as in `optimal_logprobs`.
        kl_coef: float, at least 0.

    Returns:
        Float64 `(prompts,)`, in units of score.

    Raises:
        ValueError: as `optimal_logprobs`.

    Example:
        The best policy of the example above reaches ln 2.

        >>> reference, scores = np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]]
        >>> float(value(np.log([[0.75, 0.25]]), reference, scores, kl_coef=1.0)[0].round(4))
        0.6931
    """
    ref_logprobs, scores = checked(ref_logprobs, scores)
    logprobs, _ = checked(logprobs, scores)
    kl_coef = require_number("kl_coef", kl_coef, minimum=0.0)
    return np.sum(np.exp(logprobs) * (scores - kl_coef * (logprobs - ref_logprobs)), axis=1)


def regret(logprobs: Any, ref_logprobs: Any, scores: Any, kl_coef: float) -> float:
    """How much of what could be gained over the reference a policy misses.

    `sum(b log Z - J(q)) / sum(b log Z - J(p))`, both sums over the prompts: 0 is the best policy,
    1 the reference, and a policy worse than the reference is above 1.

    Args:
        logprobs: `(prompts, responses)`, in nats, of the policy.
        ref_logprobs: as in `optimal_logprobs`.
        scores: as in `optimal_logprobs`.
        kl_coef: float, above 0.

    Returns:
        Float, at least 0 up to rounding.

    Raises:
        ValueError: as `optimal_logprobs`, or scores that leave nothing to gain.

    Example:
        >>> reference, scores = np.log([[0.5, 0.5]]), [[np.log(3.0), 0.0]]
        >>> regret(reference, reference, scores, kl_coef=1.0)
        1.0
        >>> round(regret(np.log([[0.75, 0.25]]), reference, scores, kl_coef=1.0), 6)
        0.0
    """
    best = best_value(ref_logprobs, scores, kl_coef)
    gain = np.sum(best - value(ref_logprobs, ref_logprobs, scores, kl_coef))
    if gain <= 1e-9:
        raise ValueError(
            "The reference is the best policy already: the scores of all responses to a prompt "
            f"are equal. Received scores between {np.min(scores)} and {np.max(scores)}."
        )
    return float(np.sum(best - value(logprobs, ref_logprobs, scores, kl_coef)) / gain)


def _log_sum(x: np.ndarray) -> np.ndarray:
    highest = x.max(axis=1)
    return highest + np.log(np.sum(np.exp(x - highest[:, None]), axis=1))


def checked(logprobs: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 `(prompts, responses)`, the first a whole distribution in every row."""
    logprobs, scores = np.asarray(logprobs, "float64"), np.asarray(scores, "float64")
    if logprobs.ndim != 2 or scores.shape not in (logprobs.shape, logprobs.shape[1:]):
        raise ValueError(
            "Expected log-probabilities (prompts, responses) and scores of that shape or "
            f"(responses,). Received: {logprobs.shape} and {scores.shape}."
        )
    total = np.exp(_log_sum(logprobs))
    if not np.all(np.abs(total - 1.0) <= _MISSING):
        raise ValueError(
            "The probabilities of all responses must sum to 1. Received sums between "
            f"{total.min():.4g} and {total.max():.4g}. List the responses with the length, stop "
            "tokens and `min_length` of the sampler, and read them at its temperature."
        )
    return logprobs, np.broadcast_to(scores, logprobs.shape)
