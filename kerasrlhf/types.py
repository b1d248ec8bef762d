"""The records that travel between the stages of an iteration, and their shapes.

Letters in shapes: `batch` rows, `length` padded tokens (prompt columns plus response length),
`vocab` entries of the vocabulary, `candidates` responses to one prompt, `width` hidden units.

Layout, the same everywhere: a row holds its prompt, its response directly behind it, then
padding. Every per-token tensor is `(batch, length)`. `logprobs[:, t]` and `values[:, t]` belong
to the choice of token `t`, made in the state before it, so position 0 is never a response.
Masks are true where something counts. Statistics are float32, log-probabilities are in nats.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

LARGEST_SCORE = 1e15
_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How responses are drawn from the model.

    A trainer takes only samplers that draw from the model's own distribution at the given
    temperature: with `top_k`, `top_p` or temperature 0 the log-probabilities that are trained on
    would not be those of the samples (details N4, N10, M7), so these are for `generate`
    alone.

    Args:
        length: int, at least 1. New tokens of a row at most; the end token counts as one.
        temperature: float, at least 0. Logits are divided by it; 0 takes the likeliest token.
        top_k: int or None. Draw among the `top_k` likeliest tokens.
        top_p: float in (0, 1] or None. Draw among the likeliest tokens that together have this
            much probability.
        stop_token_ids: `"auto"` (the end tokens of the model's tokenizer), None (always the full
            length) or a sequence of ints.
        min_length: int. A stop token ends the response only as its `min_length`-th token or
            later (detail N14).
        epsilon: float in [0, 1). Share of tokens that are drawn from all entries alike instead of
            from the model, to explore. `behavior_logprobs` of the samples are those of the
            mixture `(1 - epsilon) p + epsilon / vocab`, so that the importance ratio of every
            token is exact.

    Raises:
        ValueError: a value of another type or outside its range.

    Example:
        >>> Sampler(length=16, temperature=0.7).matches_policy
        True
        >>> Sampler(length=16, top_k=50).matches_policy
        False
    """

    length: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_token_ids: Any = "auto"
    min_length: int = 1
    epsilon: float = 0.0

    def __post_init__(self):
        checked = {
            "length": require_int("length", self.length, minimum=1),
            "min_length": require_int("min_length", self.min_length, minimum=1),
            "temperature": require_number("temperature", self.temperature, minimum=0.0),
            "epsilon": require_number("epsilon", self.epsilon, minimum=0.0, below=1.0),
            "stop_token_ids": _stop_token_ids(self.stop_token_ids),
        }
        if self.top_k is not None:
            checked["top_k"] = require_int("top_k", self.top_k, minimum=1)
        if self.top_p is not None:
            checked["top_p"] = require_number("top_p", self.top_p, above=0.0, maximum=1.0)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.min_length > self.length:
            raise ValueError(
                f"`min_length` must be at most `length`. Received: min_length={self.min_length}, "
                f"length={self.length}."
            )
        if self.epsilon > 0 and self.temperature == 0:
            raise ValueError(
                "`epsilon` mixes draws from the model with others, and at temperature 0 there is "
                "no draw. Set `epsilon=0` or a temperature above 0."
            )

    @property
    def matches_policy(self) -> bool:
        """Whether samples come from the distribution that log-probabilities describe."""
        return (
            self.temperature > 0
            and self.top_k is None
            and (self.top_p is None or self.top_p == 1.0)
        )


def _stop_token_ids(ids):
    if ids is None or (isinstance(ids, str) and ids == "auto"):
        return ids
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise ValueError(
            f'`stop_token_ids` must be "auto", None or a sequence of token ids. Received: {ids!r}.'
        )
    return tuple(require_int("stop_token_ids", i, minimum=0) for i in ids)


class Responses(NamedTuple):
    """Responses as they were drawn.

    token_ids: int32 `(batch, length)`, prompt and response, then padding.
    padding_mask: bool `(batch, length)`, true on prompt and response.
    response_mask: bool `(batch, length)`, true on response tokens, the stop token included.
    prompt_lengths: int32 `(batch,)`.
    ended: bool `(batch,)`, true where a stop token closed the response.
    logprobs: float32 `(batch, length)`, zero outside the response.
    values: float32 `(batch, length)`, zero outside the response; zeros when the critic is a
        network of its own (it is read when the responses are scored).
    behavior_logprobs: float32 `(batch, length)`, of the distribution that the tokens were drawn
        from; differs from `logprobs` with `Sampler(epsilon=...)`.
    """

    token_ids: Any
    padding_mask: Any
    response_mask: Any
    prompt_lengths: Any
    ended: Any
    logprobs: Any
    values: Any
    behavior_logprobs: Any = None


class Rollout(NamedTuple):
    """A scored batch of samples: what `estimate` of a trainer starts from.

    The first fields are those of `Responses`; further:
    ref_logprobs: float32 `(batch, length)`, of the frozen reference.
    scores: float32 `(batch,)`, one number per response, after all rules; of a process reward model
        `(batch, length)`, each at its own token.
    kl_coef: float32 scalar, nats to score.
    behavior_logprobs: float32 `(batch, length)`, of what the tokens were drawn from. `logprobs`
        are those of the policy when the updates begin.
    iteration: int32 scalar.
    drift: float32 `(batch, length)`, in nats. `logprobs` less those of the policy that sampled,
        where that is an earlier one. None in the rollout of the iteration itself.
    """

    token_ids: Any
    padding_mask: Any
    response_mask: Any
    prompt_lengths: Any
    ended: Any
    logprobs: Any
    values: Any
    ref_logprobs: Any
    scores: Any
    kl_coef: Any
    behavior_logprobs: Any = None
    iteration: Any = 0
    drift: Any = None


class Experience(NamedTuple):
    """What one update reads of a row: the rollout's tokens and the estimates made from it.

    All are `(batch, length)` but `prompt_lengths` `(batch,)`; `advantages` and `returns` are
    float32 and zero outside the response. `kl_weights` multiply the KL term of the loss (None
    where the KL is in the reward); `extras` holds what an algorithm adds for its own objective.
    """

    token_ids: Any
    padding_mask: Any
    response_mask: Any
    prompt_lengths: Any
    logprobs: Any
    ref_logprobs: Any
    values: Any
    advantages: Any
    returns: Any
    kl_weights: Any = None
    extras: dict | None = None


class TokenStats(NamedTuple):
    """The current model's view of given tokens, each float32 `(batch, length)`.

    logprobs: of the tokens that stand there.
    entropy: of the distribution they were drawn from, in nats.
    values: the critic's estimate in the state before the token.
    """

    logprobs: Any
    entropy: Any
    values: Any


def require_sampler(sampler: Any) -> Sampler:
    """Returns `sampler`, or raises a `ValueError` for anything else, such as a length."""
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"`sampler` must be a `Sampler(length=...)`. Received: {sampler!r} of type "
            f"{type(sampler).__name__}."
        )
    return sampler


def require_int(
    name: str, value: Any, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Returns `value` as an int, or raises a `ValueError` that names it.

    Example:
        >>> require_int("batch_size", 8, minimum=1)
        8
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"`{name}` must be an integer. Received: {_described(value)}.")
    _check_range(name, value, minimum, None, maximum)
    return int(value)


def require_seed(value: Any) -> int:
    """Returns a seed as an int, or raises a `ValueError` for one that random numbers cannot take.

    Example:
        >>> require_seed(17)
        17
    """
    return require_int("seed", value, minimum=0, maximum=2**63 - 1)


def require_finite_scores(scores: Any, name: str) -> None:
    """Raises a `ValueError` for scores that would turn weights to NaN.

    These are scores that are not finite, or so large that the sum of their squares over a batch is
    not finite in float32.

    Args:
        scores: float array `(batch, ...)`.
        name: str, what gave the scores, as the beginning of a sentence.

    Example:
        >>> require_finite_scores(np.array([1.0, -2.5]), "The reward model")
    """
    scores = np.asarray(scores)
    rows = scores.reshape(len(scores), -1)
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(~(np.abs(rows) <= LARGEST_SCORE).all(axis=1))
    if bad.size:
        shown = ", ".join(f"row {i}: {_worst(rows[i])}" for i in bad[:5])
        raise ValueError(
            f"{name} gave scores that cannot be trained on in {bad.size} of {len(rows)} rows "
            f"({shown}{', ...' if bad.size > 5 else ''}). Scores must be finite numbers of at most "
            f"{LARGEST_SCORE:g} in size: check the weights of a reward model, its `gain` and "
            "`bias`, or scale the scores down."
        )


def _worst(row):
    """A score of the row that is not finite, or else the largest."""
    broken = row[~np.isfinite(row)]
    return broken[0] if broken.size else row[np.argmax(np.abs(row))]


def require_number(
    name: str,
    value: Any,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> float:
    """Returns `value` as a float, or raises a `ValueError` that names it.

    Args:
        name: str, for the message.
        value: what must be a finite number; bool is none.
        minimum: float or None, the smallest value.
        above: float or None, what the value must be above.
        maximum: float or None, the largest value.
        below: float or None, what the value must be below.

    Example:
        >>> require_number("held_out", 0.5, above=0.0, below=1.0)
        0.5
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _is_finite(value):
        raise ValueError(f"`{name}` must be a finite number. Received: {_described(value)}.")
    _check_range(name, value, minimum, above, maximum, below)
    return float(value)


def require_bool(name: str, value: Any) -> bool:
    """Returns `value` as a bool, or raises a `ValueError` that names it.

    Any object has a truth value, so that `"no"` would count as true.

    Example:
        >>> require_bool("shuffle", False)
        False
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False. Received: {_described(value)}.")
    return bool(value)


def _check_range(name, value, minimum=None, above=None, maximum=None, below=None):
    """Refuses a number outside its bounds, all of which the message names."""
    bounds = [
        (minimum, "at least", lambda bound: value >= bound),
        (above, "above", lambda bound: value > bound),
        (maximum, "at most", lambda bound: value <= bound),
        (below, "below", lambda bound: value < bound),
    ]
    given = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
    if not all(holds(bound) for bound, _, holds in given):
        expected = " and ".join(f"{words} {bound}" for bound, words, _ in given)
        raise ValueError(f"`{name}` must be {expected}. Received: {value}.")


def _is_finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _described(value):
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... of type {type(value).__name__}"
