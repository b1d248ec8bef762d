"""Slow reward functions: in parts, several at a time, within a time limit, and tried again."""

from __future__ import annotations

import concurrent.futures
import contextvars
import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kerasrlhf.rollouts import calling
from kerasrlhf.types import (
    changed_fields,
    require_int,
    require_number,
    require_optional,
    serializable,
)

# Arguments that are the same for every part of a batch; all others have one entry per response.
_WHOLE = ("trainer_state", "log_metric", "log_extra")


@serializable
@dataclasses.dataclass(frozen=True)
class RewardPool:
    """A reward function that is called for parts of a batch, in several threads.

    For functions that wait for something else, such as a judge behind a network. The function
    stays as it is, `async def` included: it gets the arguments that its signature names, with the
    entries of a few responses. A call that fails or takes too long is repeated.

    Args:
        function: callable, a reward function as trainers take it.
        workers: int, at least 1. Calls at the same time. Defaults to 8.
        rows: int, at least 1. Responses in a call. Defaults to 1.
        timeout: float, above 0, in seconds, or None. Limit of a call. Defaults to None: no limit.
        retries: int, at least 0. How often a call is repeated. Defaults to 2.
        wait: float, at least 0, in seconds. Pause before the first repetition; each further pause
            is twice as long. Defaults to 1.

    Call arguments:
        those of `function`.

    Returns:
        List of what `function` returned, one entry per response.

    Raises:
        ValueError: If an argument is outside its range, or `function` does not return one value
            per response.
        RuntimeError: If a call fails and all its repetitions do. The message names the function
            and the rows; the error of the last call is its cause.
        TimeoutError: The same, if the last call took too long.

    Example:
        >>> def judge(responses, topic):
        ...     return [float(word in text) for text, word in zip(responses, topic)]
        >>> pool = rlhf.RewardPool(judge, workers=2, rows=2, timeout=30.0)
        >>> pool(responses=["a dog", "a cat", "a boat"], topic=["dog", "dog", "boat"])
        [1.0, 0.0, 1.0]
    """

    function: Callable
    # Only what `compare` leaves in can change the scores.
    workers: int = dataclasses.field(default=8, compare=False)
    rows: int = 1
    timeout: float | None = dataclasses.field(default=None, compare=False)
    retries: int = dataclasses.field(default=2, compare=False)
    wait: float = dataclasses.field(default=1.0, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise ValueError(
                "`function` must be a reward function of prompts and responses. Received: "
                f"{self.function!r} of type {type(self.function).__name__}."
            )
        require_int("workers", self.workers, minimum=1)
        require_int("rows", self.rows, minimum=1)
        require_optional("timeout", self.timeout)
        require_int("retries", self.retries, minimum=0)
        require_number("wait", self.wait, minimum=0.0)
        # Trainers read name and signature; the class is frozen.
        object.__setattr__(self, "__name__", calling.name_of(self.function))
        try:
            object.__setattr__(self, "__signature__", inspect.signature(self.function))
        except (TypeError, ValueError):
            # A builtin without a signature is called by position.
            object.__setattr__(self, "__signature__", inspect.signature(lambda *args: None))

    def __repr__(self) -> str:
        return changed_fields(self)

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls the function for every part of a batch; returns the scores in their order."""
        batch = _Batch.of(args, kwargs)
        starts = range(0, batch.rows, self.rows)
        pool = concurrent.futures.ThreadPoolExecutor(self.workers, "kerasrlhf-pool")
        try:
            # With the context variables of the caller, as in a plain call.
            parts = [
                pool.submit(contextvars.copy_context().run, self._score, batch.part(i, self.rows))
                for i in starts
            ]
            scored = [part.result() for part in parts]
        finally:
            # After an error nothing waits for the other calls.
            pool.shutdown(wait=False, cancel_futures=True)
        batch.log(scored)
        return [value for part in scored for value in part.values]

    def _score(self, part: _Part) -> _Scored:
        """Calls the function for a part until a call succeeds."""
        for attempt in range(1 + self.retries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            # Every attempt has its own logs: those of a failed one are dropped.
            scored = _Scored([], {}, [])
            try:
                result = calling.call(
                    self.function, part.args, part.kwargs | scored.loggers(part), self.timeout,
                    "timeout",
                )  # fmt: skip
            except Exception as error:
                last = error
                continue
            scored.values.extend(_listed(result))
            if len(scored.values) != part.size:
                raise ValueError(
                    f"The reward function `{calling.name_of(self.function)}` must return one "
                    f"number per response. Expected {part.size} for {part.place}, received "
                    f"{len(scored.values)}."
                )
            return scored
        kind = TimeoutError if isinstance(last, TimeoutError) else RuntimeError
        times = f"{1 + self.retries} calls" if self.retries else "1 call"
        raise kind(
            f"The reward function `{calling.name_of(self.function)}` failed for {part.place} in "
            f"{times}: {type(last).__name__}: {str(last).rstrip('.')}. Raise `retries` or `wait` "
            "of the `RewardPool`, or return None for a response that has no score."
        ) from last


class _Part(NamedTuple):
    """The arguments of one call.

    args, kwargs: for the function.
    size: int. Responses.
    place: str. Which rows of the batch these are, for errors.
    """

    args: list[Any]
    kwargs: dict[str, Any]
    size: int
    place: str


class _Batch(NamedTuple):
    """The arguments for a whole batch, and its number of responses."""

    args: tuple
    kwargs: dict[str, Any]
    rows: int

    @classmethod
    def of(cls, args: tuple, kwargs: dict[str, Any]) -> _Batch:
        columns = [*args, *(x for name, x in kwargs.items() if name not in _WHOLE)]
        sizes = {len(column) for column in columns}
        if len(sizes) != 1:
            raise ValueError(
                "A `RewardPool` needs arguments with one entry per response, to divide them. "
                f"Received {len(columns)} with {sorted(sizes)} entries: let the function take "
                "`responses`, for example."
            )
        return cls(args, kwargs, sizes.pop())

    def part(self, start: int, rows: int) -> _Part:
        end = min(start + rows, self.rows)
        kwargs = {k: x if k in _WHOLE else x[start:end] for k, x in self.kwargs.items()}
        place = f"row {start}" if end - start == 1 else f"rows {start} to {end - 1}"
        args = [x[start:end] for x in self.args]
        return _Part(args, kwargs, end - start, f"{place} of {self.rows}")

    def log(self, scored: list[_Scored]) -> None:
        """Passes on what the calls logged, in the order of the rows."""
        for name, value in (entry for part in scored for entry in part.metrics):
            self.kwargs["log_metric"](name, value)
        for column in dict.fromkeys(name for part in scored for name in part.extras):
            # A call that did not log a column leaves its rows without a value.
            values: list[Any] = []
            for part in scored:
                values += part.extras.get(column, [None] * len(part.values))
            self.kwargs["log_extra"](column, values)


class _Scored(NamedTuple):
    """What a call returned and logged: values, columns by name, and pairs of name and number."""

    values: list[Any]
    extras: dict[str, list]
    metrics: list[tuple[str, Any]]

    def loggers(self, part: _Part) -> dict[str, Callable]:
        """Returns the functions that log here, those that the function asks for."""

        def extra(column: str, values: Any) -> None:
            self.extras[column] = _listed(values)

        def metric(name: str, value: Any) -> None:
            self.metrics.append((name, value))

        own = {"log_extra": extra, "log_metric": metric}
        return {name: function for name, function in own.items() if name in part.kwargs}


def _listed(result: Any) -> list[Any]:
    try:
        return list(result)
    except TypeError:
        return [result]
