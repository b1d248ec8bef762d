"""Warnings about records, which a caller that reads them in parts collects."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

# Of each thread its own, unlike the filters of `warnings`: `tf.data` reads in a thread.
_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def warn(message: str, stacklevel: int = 2) -> None:
    """Warns, or keeps the message inside `collected`.

    Args:
        message: str.
        stacklevel: int. As in `warnings.warn`, counted from the caller. Defaults to 2.
    """
    found = _collected.get()
    if found is None:
        warnings.warn(message, stacklevel=stacklevel + 1)
    else:
        found.append(message)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Collects the messages of a block in a list instead of warning.

    Example:
        >>> with collected() as found:
        ...     warn("2 of 3 rows are odd.")
        >>> found
        ['2 of 3 rows are odd.']
    """
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
