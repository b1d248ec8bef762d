"""Checks of a recipe's options, before anything is loaded."""

import dataclasses
import pathlib
import typing

from kerasrlhf.cli.options import option
from kerasrlhf.types import require_bool, require_int, require_number


def check_ranges(config, *, zero=(), signed=(), fractions=(), at_least=None, multiples=None):
    """Raises a `ValueError` for a number, switch, choice or path that a recipe cannot use.

    Each number of the dataclass is checked, so that none is forgotten: an `int` must be at least
    1 and a `float` above 0, unless the field is named in an argument. None passes where the
    annotation has it. Messages name the option as it is typed.

    Args:
        config: An instance of a dataclass, usually `self` in `__post_init__`.
        zero: Names of the fields that may be 0.
        signed: Names of the fields that may be any finite number.
        fractions: Names of the fields between 0 and 1, both excluded.
        at_least: Dictionary from a field to its smallest value.
        multiples: Dictionary from a field to the field that must divide it.

    Example:

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     learning_rate: float = 1e-5
    ...     lora_rank: int = 0
    ...     def __post_init__(self):
    ...         check_ranges(self, zero=["lora_rank"])
    >>> Config(learning_rate=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: `--learning-rate` must be above 0. Received: -1.0.
    """
    kinds = typing.get_type_hints(type(config))
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


def _check_names(config, names):
    unknown = set(names) - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise ValueError(f"{type(config).__name__} has no fields {sorted(unknown)}.")


def _check_field(name, kind, value, bounds):
    kinds = {kind, *typing.get_args(kind)}
    if value is None and type(None) in kinds:
        return
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(
                f"`{name}` must be one of {typing.get_args(kind)}. Received: {value!r}."
            )
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


def _check_multiple(config, whole, part):
    size, divisor = getattr(config, whole), getattr(config, part)
    if size % divisor:
        raise ValueError(
            f"`{option(whole)}` must be a multiple of `{option(part)}`. Received: {size} and "
            f"{divisor}."
        )
