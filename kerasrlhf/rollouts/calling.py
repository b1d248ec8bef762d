"""Calls slow functions of users: within a time limit, and asynchronous ones at the same time."""

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
        timeout: float or None. Seconds; a function that does not return is abandoned in a thread of
            its own.
        limit: str. The name of the argument that set the time limit, for errors.

    Raises:
        TimeoutError: If it takes longer; the message names it.

    Example:
        >>> call(max, [1, 2], {}, timeout=None, limit="timeout")
        2
    """
    if timeout is None:
        result = function(*args, **kwargs)
    else:
        result = called(function, [*args], kwargs, timeout, limit)
    return awaited([result], [function], timeout, limit)[0]


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


def called(
    function: Callable,
    args: list[Any],
    kwargs: dict[str, Any],
    timeout: float,
    limit: str = _LIMIT,
) -> Any:
    """Calls a function in a thread that can be abandoned; returns an awaitable as it is.

    Args:
        function: callable.
        args: list of its positional arguments.
        kwargs: dict of its keyword arguments.
        timeout: float. Seconds.
        limit: str. As in `call`. Defaults to `"reward_timeout"`.

    Raises:
        TimeoutError: If it takes longer; the message names it.
    """
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


def awaited(
    results: list[Any],
    functions: Sequence[Callable],
    timeout: float | None = None,
    limit: str = _LIMIT,
) -> list[Any]:
    """Returns results, with awaitable ones run to completion, all at the same time.

    Args:
        results: list of what the functions returned.
        functions: list of callables, for errors.
        timeout: float or None. Seconds for each. Defaults to None.
        limit: str. As in `call`. Defaults to `"reward_timeout"`.

    Raises:
        TimeoutError: If a function takes longer; the message names it.
    """
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
