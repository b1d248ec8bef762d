"""Checks of a recipe's options, before anything is loaded."""

import dataclasses
import pathlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from kerasrlhf.checks import require_bool, require_int, require_number
from kerasrlhf.cli.options import option


def check_ranges(
    config: Any,
    *,
    zero: Iterable[str] = (),
    signed: Iterable[str] = (),
    fractions: Iterable[str] = (),
    at_least: Mapping[str, float] | None = None,
    multiples: Mapping[str, str] | None = None,
) -> None:
    """Raises a `ValueError` for a number, switch, choice or path that a recipe cannot use.

    Every number of the dataclass is checked, so none can be forgotten: an `int` must be at least 1
    and a `float` above 0, unless the field is named in an argument. None is accepted where the
    annotation allows it. Messages name the option as it is typed.

    Args:
        config: instance of a dataclass, usually `self` in `__post_init__`.
        zero: names of fields. These may be 0. Defaults to none.
        signed: names of fields. These may be any finite number. Defaults to none.
        fractions: names of fields. These must be between 0 and 1, both excluded. Defaults to none.
        at_least: dict from a field to its smallest value. Defaults to None: no such field.
        multiples: dict from a field to the field that must divide it. Defaults to None: no such
            field.

    Raises:
        ValueError: If a value is outside its range, or an argument names an unknown field.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     learning_rate: float = 1e-5
        ...     lora_rank: int = 0
        ...     def __post_init__(self):
        ...         rlhf.cli.check_ranges(self, zero=["lora_rank"])
        >>> Config(learning_rate=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: `--learning-rate` must be above 0. Received: -1.0.
    """
    # Bounds by field; fields without an entry must be positive.
    kinds = typing.get_type_hints(type(config))
    bounds: dict[str, dict[str, Any]]
    bounds = {name: {"minimum": value} for name, value in (at_least or {}).items()}
    bounds |= {name: {"minimum": 0} for name in zero}
    bounds |= {name: {} for name in signed}
    bounds |= {name: {"above": 0, "below": 1} for name in fractions}
    _check_names(config, [*bounds, *(multiples or {}), *(multiples or {}).values()])
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        _check_field(option(field.name), kinds[field.name], value, bounds.get(field.name))
    for whole, part in (multiples or {}).items():
        _check_multiple(config, whole, part)


def _check_names(config: Any, names: Iterable[str]) -> None:
    unknown = set(names) - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise ValueError(f"{type(config).__name__} has no fields {sorted(unknown)}.")


def _check_field(name: str, kind: Any, value: Any, bounds: dict[str, Any] | None) -> None:
    kinds = {kind, *typing.get_args(kind)}
    if value is None and type(None) in kinds:
        return
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(
                f"`{name}` must be one of {typing.get_args(kind)}. Received: {value!r}."
            )
    # float first: a field of `int | float` may have a fraction.
    elif float in kinds:
        require_number(name, value, **({"above": 0} if bounds is None else bounds))
    elif int in kinds:
        require_int(name, value, **({"minimum": 1} if bounds is None else bounds))
    elif bool in kinds:
        require_bool(name, value)
    elif pathlib.Path in kinds and not isinstance(value, pathlib.Path):
        raise ValueError(
            f"`{name}` must be a path. Received: {value!r} of type {type(value).__name__}. Pass "
            "`pathlib.Path(...)`."
        )


def _check_multiple(config: Any, whole: str, part: str) -> None:
    size, divisor = getattr(config, whole), getattr(config, part)
    if size % divisor:
        raise ValueError(
            f"`{option(whole)}` must be a multiple of `{option(part)}`. Received: {size} and "
            f"{divisor}."
        )
