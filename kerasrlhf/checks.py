"""Checks of single values, which say what was received and what was expected.

Nothing is imported here that takes time: command lines check their options before they load Keras.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_SHOWN = 80


def require_int(
    name: str, value: Any, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Returns `value` as an int, or raises a `ValueError` that names it.

    Example:
        >>> require_int("batch_size", 8, minimum=1)
        8
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"`{name}` must be an integer. Received: {described(value)}.")
    _check_range(name, value, minimum, None, maximum, None)
    return int(value)


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
        value: what must be a finite number; a bool is not a number.
        minimum: float or None, the smallest value.
        above: float or None, what the value must be above.
        maximum: float or None, the largest value.
        below: float or None, what the value must be below.

    Example:
        >>> require_number("held_out", 0.5, above=0.0, below=1.0)
        0.5
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _is_finite(value):
        raise ValueError(f"`{name}` must be a finite number. Received: {described(value)}.")
    _check_range(name, value, minimum, above, maximum, below)
    return float(value)


def require_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of `choices`, or raises a `ValueError` that names it.

    Example:
        >>> require_choice("labels", "soft", ("soft", "hard"))
        'soft'
    """
    choices = [*choices]
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        if len(choices) > 2:
            listed = f"one of {choices}"
        raise ValueError(f"`{name}` must be {listed}. Received: {described(value)}.")
    return value


def require_bool(name: str, value: Any) -> bool:
    """Returns `value` as a bool, or raises a `ValueError` that names it.

    Any object has a truth value, so that `"no"` would count as true.

    Example:
        >>> require_bool("shuffle", False)
        False
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False. Received: {described(value)}.")
    return bool(value)


def described(value: Any) -> str:
    """Returns the text of a value for an error message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... of type {type(value).__name__}"


_RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


def _check_range(name: str, value: Any, *bounds: float | None) -> None:
    """Raises a `ValueError` for a number outside its bounds, in the order of `_RANGES`."""
    named = zip(_RANGES, bounds, strict=True)
    given = {words: bound for words, bound in named if bound is not None}
    if not all(_RANGES[words](value, bound) for words, bound in given.items()):
        expected = " and ".join(f"{words} {bound}" for words, bound in given.items())
        raise ValueError(f"`{name}` must be {expected}. Received: {value}.")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False
