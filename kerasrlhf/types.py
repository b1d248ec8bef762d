"""The records passed between the stages of an iteration, and their shapes.

Letters in shapes: `batch` rows, `length` padded tokens (prompt columns plus response length),
`vocab` entries of the vocabulary, `candidates` responses to one prompt, `width` hidden units.

Layout, the same everywhere: a row holds its prompt, directly followed by its response, then
padding. Every per-token tensor is `(batch, length)`. `logprobs[:, t]` and `values[:, t]` belong
to the choice of token `t`, made in the state before it, so position 0 is never a response.
Masks are true where something counts. Statistics are float32, log-probabilities are in nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import keras
import numpy as np
from keras import ops

from kerasrlhf.checks import described
from kerasrlhf.checks import require_bool as require_bool
from kerasrlhf.checks import require_choice as require_choice
from kerasrlhf.checks import require_int as require_int
from kerasrlhf.checks import require_number as require_number

Tensor: TypeAlias = Any
"""A backend tensor, or anything that `keras.ops` converts to one; see docstrings for shapes."""

T = TypeVar("T")

LARGEST_SCORE = 1e15


def serializable(kind: type[T]) -> type[T]:
    """Lets Keras serialize a dataclass, as part of a model that is saved.

    Example:
        >>> import keras
        >>> config = keras.saving.serialize_keras_object(Sampler(length=4))
        >>> keras.saving.deserialize_keras_object(config)
        Sampler(length=4)
    """

    def get_config(self: Any) -> dict[str, Any]:
        # Serialize fields too: a temperature may be a Keras schedule.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: keras.saving.serialize_keras_object(x) for name, x in fields.items()}

    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        # Construct it as a user does, so that values are checked again.
        return cls(**{n: keras.saving.deserialize_keras_object(x) for n, x in config.items()})

    methods = {"get_config": get_config, "from_config": classmethod(from_config)}
    for name, method in methods.items():
        setattr(kind, name, method)
    return keras.saving.register_keras_serializable("kerasrlhf")(kind)


@serializable
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How responses are sampled from the model.

    A trainer only accepts samplers that follow the policy's own distribution at the given
    temperature. With `top_k`, `top_p` or temperature 0, the log-probabilities in training would
    not be those of the samples (details N4, N10, M7). Filters are for `generate`.

    Args:
        length: int, at least 1. Maximum number of new tokens, the stop token included.
        temperature: float, at least 0. Divides the logits; 0 takes the most likely token. For
            trainers also a callable from the iteration to a float above 0, such as a Keras
            learning-rate schedule. Defaults to 1.
        top_k: int or None. Samples among the `top_k` most likely tokens. Defaults to None.
        top_p: float in (0, 1] or None. Samples among the most likely tokens that together have
            this probability. Defaults to None.
        stop_token_ids: `"auto"` (the end tokens of the model's tokenizer), None (always the full
            length) or a sequence of ints. Defaults to `"auto"`.
        stop_strings: str or sequence of str. A text that ends a response too, wherever it begins
            and ends inside of tokens. The token that completes it is the last one of the response
            and is trained on; what people and reward functions see ends before the string.
            Defaults to none.
        min_length: int, at least 1. A stop token or string only ends the response with its
            `min_length`-th token or later (detail N14). Defaults to 1.
        epsilon: float in [0, 1). Fraction of tokens that are sampled uniformly from the
            vocabulary instead of from the model, to explore. `behavior_logprobs` are those of the
            mixture `(1 - epsilon) p + epsilon / vocab`, so that the importance ratio of every
            token is exact. Defaults to 0.

    Raises:
        ValueError: If a value has another type or is outside its range.

    Example:
        >>> Sampler(length=16, temperature=0.7).matches_policy
        True
        >>> Sampler(length=16, top_k=50).matches_policy
        False
        >>> sampler = Sampler(length=16, temperature=lambda iteration: 1.0 + 0.1 * iteration)
        >>> sampler.temperature_at(2)
        1.2
    """

    length: int
    temperature: float | Callable[[int], float] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_token_ids: Any = "auto"
    min_length: int = 1
    epsilon: float = 0.0
    stop_strings: Any = ()

    def __post_init__(self) -> None:
        # Check every value, and keep the checked type, for example int for a NumPy integer.
        checked: dict[str, Any] = {
            "length": require_int("length", self.length, minimum=1),
            "min_length": require_int("min_length", self.min_length, minimum=1),
            "epsilon": require_number("epsilon", self.epsilon, minimum=0.0, below=1.0),
            "stop_token_ids": _stop_token_ids(self.stop_token_ids),
            "stop_strings": _stop_strings(self.stop_strings),
        }
        if not callable(self.temperature):
            checked["temperature"] = require_number("temperature", self.temperature, minimum=0.0)
        if self.top_k is not None:
            checked["top_k"] = require_int("top_k", self.top_k, minimum=1)
        if self.top_p is not None:
            checked["top_p"] = require_number("top_p", self.top_p, above=0.0, maximum=1.0)
        for name, value in checked.items():
            # The dataclass is frozen.
            object.__setattr__(self, name, value)
        if self.min_length > self.length:
            raise ValueError(
                f"`min_length` must be at most `length`. Received: min_length={self.min_length}, "
                f"length={self.length}."
            )
        if self.epsilon > 0 and self.temperature == 0:
            raise ValueError(
                "`epsilon` mixes samples from the model with uniform ones, and temperature 0 does "
                "not sample. Set `epsilon=0` or a temperature above 0."
            )

    def __repr__(self) -> str:
        return changed_fields(self)

    @property
    def matches_policy(self) -> bool:
        """Whether samples follow the distribution that log-probabilities describe (M7, M10)."""
        return (
            (callable(self.temperature) or self.temperature > 0)
            and self.top_k is None
            and (self.top_p is None or self.top_p == 1.0)
        )

    def at(self, iteration: int) -> Sampler:
        """Returns the sampler of an iteration, with a number as its temperature."""
        return dataclasses.replace(self, temperature=self.temperature_at(iteration))

    def temperature_at(self, iteration: int) -> float:
        """Returns the temperature of an iteration.

        Raises:
            ValueError: If the schedule returns anything but a number above 0.
        """
        if not callable(self.temperature):
            return self.temperature
        # `float` for the scalar tensor of a Keras schedule.
        return require_number("temperature", float(self.temperature(iteration)), above=0.0)


def _stop_token_ids(ids: Any) -> Any:
    if ids is None or (isinstance(ids, str) and ids == "auto"):
        return ids
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise ValueError(
            f'`stop_token_ids` must be "auto", None or a sequence of token ids. Received: {ids!r}.'
        )
    # A tuple, because a frozen dataclass must be hashable and comparable.
    return tuple(require_int("stop_token_ids", i, minimum=0) for i in ids)


def _stop_strings(strings: Any) -> tuple[str, ...]:
    if isinstance(strings, str):
        strings = (strings,)
    listed = tuple(strings) if isinstance(strings, Iterable) else (None,)
    if not all(isinstance(x, str) and x for x in listed):
        raise ValueError(
            "`stop_strings` must be a string or a sequence of strings that are not empty. "
            f"Received: {strings!r}."
        )
    return listed


class Responses(NamedTuple):
    """Responses as they were sampled.

    token_ids: int32 `(batch, length)`, prompt and response, then padding.
    padding_mask: bool `(batch, length)`, true on prompt and response.
    response_mask: bool `(batch, length)`, true on response tokens; the stop token, or the one that
        completes a stop string, included.
    prompt_lengths: int32 `(batch,)`.
    ended: bool `(batch,)`, true where a stop token or a stop string closed the response.
    logprobs: float32 `(batch, length)`, zero outside the response.
    values: float32 `(batch, length)`, zero outside the response; zeros if the critic is a separate
        network, which is evaluated when the responses are scored.
    behavior_logprobs: float32 `(batch, length)`, of the distribution that the tokens were sampled
        from; differs from `logprobs` with `Sampler(epsilon=...)`.
    """

    token_ids: Tensor
    padding_mask: Tensor
    response_mask: Tensor
    prompt_lengths: Tensor
    ended: Tensor
    logprobs: Tensor
    values: Tensor
    behavior_logprobs: Tensor


class Rollout(NamedTuple):
    """A scored batch of responses: the input of `estimate` of a trainer.

    The first fields are those of `Responses`; further:
    ref_logprobs: float32 `(batch, length)`, of the frozen reference.
    scores: float32 `(batch,)`, one number per response, after `RewardShaping`; of a process reward
        model `(batch, length)`, each at its own token.
    kl_coef: float32 scalar, units of score per nat.
    behavior_logprobs: float32 `(batch, length)`, of the distribution that the tokens were sampled
        from. `logprobs` are those of the policy when the updates begin.
    iteration: int32 scalar.
    drift: float32 `(batch, length)`, in nats. `logprobs` minus those of the earlier policy that
        sampled. None in a rollout of the current iteration.
    """

    token_ids: Tensor
    padding_mask: Tensor
    response_mask: Tensor
    prompt_lengths: Tensor
    ended: Tensor
    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor
    scores: Tensor
    kl_coef: Tensor = 0.0
    behavior_logprobs: Tensor = None
    iteration: Tensor = 0
    drift: Tensor = None

    @property
    def total_scores(self) -> Tensor:
        """Scores float32 `(batch,)`, one per response: sums of scores per token."""
        return ops.sum(ops.reshape(self.scores, (self.scores.shape[0], -1)), axis=1)


class Experience(NamedTuple):
    """The rows of an update: the tokens of a rollout and the estimates made from it.

    All are `(batch, length)` except `prompt_lengths` `(batch,)`; `advantages` and `returns` are
    float32 and zero outside the response. `kl_weights` multiply the KL term of the loss (None if
    the KL is in the reward); `extras`, a dict of tensors or None, holds inputs of an algorithm's
    own objective.
    """

    token_ids: Tensor
    padding_mask: Tensor
    response_mask: Tensor
    prompt_lengths: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl_weights: Tensor = None
    extras: Any = None


class TokenStats(NamedTuple):
    """The current model's view of given tokens, each float32 `(batch, length)`.

    logprobs: of the given tokens.
    entropy: of the distribution they were sampled from, in nats.
    values: the critic's estimate in the state before the token.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def masked_rows(token_ids: Any, mask: Any) -> list[list[int]]:
    """Returns the ids at true positions.

    Args:
        token_ids: int `(rows, length)`.
        mask: bool `(rows, length)`.

    Returns:
        list of lists of int.

    Example:
        >>> masked_rows([[5, 6, 7]], [[False, True, True]])
        [[6, 7]]
    """
    ids, mask = np.asarray(token_ids), np.asarray(mask, bool)
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def changed_fields(instance: Any) -> str:
    """Returns a dataclass with the fields that differ from their defaults, for `repr`.

    Example:
        >>> changed_fields(Sampler(length=4, top_k=5))
        'Sampler(length=4, top_k=5)'
    """
    shown = [
        f"{field.name}={getattr(instance, field.name)!r}"
        for field in dataclasses.fields(instance)
        if getattr(instance, field.name) != field.default
    ]
    return f"{type(instance).__name__}({', '.join(shown)})"


def require_instance(name: str, value: Any, kind: type[T], expected: str | None = None) -> T:
    """Returns `value`, or raises a `ValueError` that names it if it is no instance of `kind`.

    Args:
        name: str, for the message.
        value: what must be an instance.
        kind: class.
        expected: str, for the message. Defaults to None: the name of the class.

    Example:
        >>> require_instance("sampler", Sampler(length=4), Sampler).length
        4
    """
    if isinstance(value, kind):
        return value
    # A class instead of an instance is a common slip.
    hint = f" Pass `{name}={value.__name__}(...)`." if isinstance(value, type) else ""
    raise ValueError(
        f"`{name}` must be {expected or f'a {kind.__name__}'}. Received: {described(value)} of "
        f"type {type(value).__name__}.{hint}"
    )


def require_instance_or_none(name: str, value: Any, kind: type[T]) -> T | None:
    """Returns None as it is, and anything else as `require_instance` does."""
    return None if value is None else require_instance(name, value, kind)


def require_sampler(sampler: Any) -> Sampler:
    """Returns `sampler`, or raises a `ValueError` for anything else, such as a length."""
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"`sampler` must be a `Sampler(length=...)`. Received: {sampler!r} of type "
            f"{type(sampler).__name__}."
        )
    return sampler


def require_constant_sampler(sampler: Any) -> Sampler:
    """Returns `sampler`, or raises a `ValueError` for anything else, or for a schedule in it."""
    if callable(require_sampler(sampler).temperature):
        raise ValueError(
            "The temperature of this sampler is a schedule over the iterations of a trainer. To "
            "generate, pass a number, for example `Sampler(length, temperature=1.0)`. Received: "
            f"temperature={sampler.temperature!r}."
        )
    return sampler


def require_seed(value: Any) -> int:
    """Returns a seed as an int, or raises a `ValueError` for one that is out of range.

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
        name: str, the source of the scores, as the start of a sentence.

    Example:
        >>> require_finite_scores(np.array([1.0, -2.5]), "The reward model")
    """
    scores = np.asarray(scores)
    # One row per response, also with scores per token.
    rows = scores.reshape(len(scores), -1)
    # `not <=` instead of `>`, to catch NaN too.
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


def _worst(row: np.ndarray) -> Any:
    """Returns a score of the row that is not finite, or else the largest."""
    broken = row[~np.isfinite(row)]
    return broken[0] if broken.size else row[np.argmax(np.abs(row))]


def require_optional(name: str, value: Any, above: float = 0.0) -> float | None:
    """Returns None as it is and a number as a float, or raises a `ValueError` that names it.

    Example:
        >>> require_optional("target_kl", None), require_optional("target_kl", 0.1)
        (None, 0.1)
    """
    return None if value is None else require_number(name, value, above=above)
