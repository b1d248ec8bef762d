"""Calls functions of users: with what their signatures name, and within a time limit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

# Seconds for the event loop to notice that a time limit is over.
_GRACE = 1.0
_LIMIT = "reward_timeout"
_starting = threading.Lock()


def call_all(
    functions: Sequence[Callable],
    columns: dict[str, Callable[[], Any]],
    timeout: float | None = None,
    kind: str = "reward function",
) -> list[Any]:
    """Calls functions with the columns that they name, the asynchronous ones at the same time.

    Args:
        functions: list of callables.
        columns: dict from the name of an argument to a function that creates its value.
        timeout: float or None. Seconds for each function. With a number, each function runs in its
            own thread; a function that does not return is abandoned there. Defaults to None.
        kind: str. What the functions are, for errors. Defaults to `"reward function"`.

    Returns:
        List of what the functions return.

    Raises:
        ValueError: If a function asks for an unknown argument.
        TimeoutError: If a function takes longer; the message names it.

    Example:
        >>> columns = {"responses": lambda: ["a", "bc"], "label": lambda: [1, 2]}
        >>> call_all([lambda responses, label: list(zip(responses, label))], columns)
        [[('a', 1), ('bc', 2)]]
    """
    results: list[Any] = []
    try:
        # Call each; an asynchronous one returns an awaitable at once.
        for function in functions:
            args, kwargs = arguments(function, columns, kind)
            results.append(_called(function, args, kwargs, timeout))
    except BaseException:
        # Close the others, or Python warns that they were never awaited.
        for result in filter(inspect.iscoroutine, results):
            result.close()
        raise
    return _awaited(results, functions, timeout)


def call(
    function: Callable,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    timeout: float | None,
    limit: str,
) -> Any:
    """Calls a function with given arguments; an asynchronous one runs to completion.

    Args:
        function: callable.
        args: list of its positional arguments.
        kwargs: dict of its keyword arguments.
        timeout: float or None, as in `call_all`.
        limit: str. The name of the argument that set the time limit, for errors.

    Raises:
        TimeoutError: If it takes longer; the message names it.

    Example:
        >>> call(max, [1, 2], {}, timeout=None, limit="timeout")
        2
    """
    result = _called(function, [*args], kwargs, timeout, limit)
    return _awaited([result], [function], timeout, limit)[0]


def arguments(
    function: Callable, columns: dict[str, Callable[[], Any]], kind: str = "reward function"
) -> tuple[list[Any], dict[str, Any]]:
    """Returns positional and keyword arguments for a function.

    Args:
        function: callable.
        columns: as in `call_all`.
        kind: as in `call_all`. Defaults to `"reward function"`.

    Raises:
        ValueError: If a required argument is unknown.
    """
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        # A builtin without a signature.
        parameters = [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]
    # Compare the names of the function with those of the batch.
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    unknown = [name for name in required if name not in columns]
    known = [p.name for p in named if p.name in columns]
    # By position: without keywords in the signature, or with two unknown names.
    positional = any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters) or (
        len(unknown) == 2 == len(required)
    )
    if positional and not known and {"prompts", "responses"} <= columns.keys():
        return [columns["prompts"](), columns["responses"]()], {}
    if unknown or (positional and not known):
        asked = f"asks for {unknown}" if unknown else "takes prompts and responses by position"
        raise ValueError(
            f"The {kind} `{name_of(function)}` {asked}, which the batch does not have. "
            f"Available: {sorted(columns)}. Add the columns to the records, give the arguments "
            "defaults, or take exactly two arguments (prompts, responses)."
        )
    # By keyword.
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [], {name: columns[name]() for name in (columns if takes_all else known)}


def takes_nothing(function: Callable) -> bool:
    """Returns whether a function has no parameters at all."""
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def name_of(reward: Any) -> str:
    """Returns the name of a reward function or model, for errors and statistics.

    Example:
        >>> name_of(len), name_of(functools.partial(len)), name_of(lambda x: x)
        ('len', 'len', 'lambda')
    """
    if isinstance(reward, functools.partial):
        return name_of(reward.func)
    name = getattr(reward, "__name__", None) or getattr(reward, "name", None)
    return name.strip("<>") if isinstance(name, str) and name else type(reward).__name__


def _event_loop() -> asyncio.AbstractEventLoop:
    # Two threads that ask at the same time get the same loop.
    with _starting:
        return _new_event_loop()


@functools.cache
def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Returns the event loop of asynchronous reward functions, in a separate thread.

    The whole process has one loop, so that clients that a function keeps open remain usable, and
    the running loop of a notebook does not interfere.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="kerasrlhf-rewards", daemon=True).start()
    return loop


def _called(
    function: Callable,
    args: list[Any],
    kwargs: dict[str, Any],
    timeout: float | None,
    limit: str = _LIMIT,
) -> Any:
    """Calls a function; with a time limit, in a thread that can be abandoned."""
    if timeout is None:
        return function(*args, **kwargs)
    future: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    # With the context variables of the caller, as in a plain call.
    run = contextvars.copy_context().run
    threading.Thread(target=run, args=(work,), name="kerasrlhf-reward", daemon=True).start()
    concurrent.futures.wait([future], timeout)
    if not future.done():
        raise _late([function], timeout, limit)
    return future.result()


def _late(functions: Sequence[Callable], timeout: float, limit: str) -> TimeoutError:
    names = " or ".join(f"`{name_of(function)}`" for function in functions)
    return TimeoutError(
        f"The reward function {names} did not return within `{limit}={timeout:g}` seconds. "
        f"Set a time limit for the calls inside it, or raise `{limit}`."
    )


def _awaited(
    results: list[Any],
    functions: Sequence[Callable],
    timeout: float | None = None,
    limit: str = _LIMIT,
) -> list[Any]:
    """Returns `results`, with awaitable ones run to completion, all at the same time."""
    pairs = zip(results, functions, strict=True)
    waiting = {i: pair for i, pair in enumerate(pairs) if inspect.isawaitable(pair[0])}
    if not waiting:
        return results

    async def in_time(awaitable: Awaitable, function: Callable) -> Any:
        task = asyncio.ensure_future(awaitable)
        done, _ = await asyncio.wait([task], timeout=timeout)
        if timeout is not None and not done:
            task.cancel()
            raise _late([function], timeout, limit)
        return task.result()

    # Return exceptions, so that one failure does not cancel the others.
    async def together() -> list[Any]:
        tasks = (in_time(*pair) for pair in waiting.values())
        return await asyncio.gather(*tasks, return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(together(), _event_loop())
    try:
        # By then all have ended or were stopped, unless a function blocks the loop.
        concurrent.futures.wait([future], None if timeout is None else timeout + _GRACE)
        if timeout is not None and not future.done():
            # The loop is blocked: later calls need a new one.
            _new_event_loop.cache_clear()
            raise _late([function for _, function in waiting.values()], timeout, limit)
        done = future.result()
    except BaseException:
        future.cancel()
        raise
    for value in done:
        if isinstance(value, BaseException):
            raise value
    # Put the results back in the order of the functions.
    values = dict(zip(waiting, done, strict=True))
    return [values.get(index, result) for index, result in enumerate(results)]
