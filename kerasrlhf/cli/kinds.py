"""The types that an option can have, and the conversion of its text to a value."""

import argparse
import difflib
import os
import pathlib
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_switch(kind: Any) -> bool:
    """Returns whether a type is an on-off switch: `--name` alone means true."""
    return kind is bool or (_is_union(kind) and bool in typing.get_args(kind))


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def converter(name: str, kind: Any) -> Callable[[str], Any]:
    """Returns a function from `str` to `kind`, for argparse.

    Args:
        name: str. Name of the field, for the error message.
        kind: type annotation of the field.

    Raises:
        ValueError: If no option can express the type.
    """
    _check_kind(name, kind)

    def convert(text: str) -> Any:
        try:
            return _convert(kind, text)
        except ValueError:
            # argparse shows this message after the name of the option.
            hint = nearest(text, _choices(kind))
            raise argparse.ArgumentTypeError(
                f"expected {describe(kind)}, got {text!r}{'.' if hint else ''}{hint}"
            ) from None

    return convert


def _check_kind(name: str, kind: Any) -> None:
    members = typing.get_args(kind)
    if _is_union(kind) or typing.get_origin(kind) in (tuple, list):
        for member in members:
            if member is not Ellipsis:
                _check_kind(name, member)
    elif typing.get_origin(kind) is not typing.Literal and kind not in _SCALARS:
        raise ValueError(
            f"Field {name!r} has the type {kind}, which no option can express. Use one of int, "
            "float, str, bool, pathlib.Path, Literal, a tuple, list or union of those."
        )


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError(text)
    return _SWITCH[text.lower()]


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


_SCALARS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    pathlib.Path: pathlib.Path,
    bool: _switch,
    type(None): _none,
}


def _convert(kind: Any, text: str) -> Any:
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if _is_union(kind):
        return _first_that_fits(members, text)
    if origin is typing.Literal:
        return _choice(members, text)
    if origin in (tuple, list):
        return origin(_items(origin, members, text))
    return _SCALARS[kind](text)


def _first_that_fits(members: tuple[Any, ...], text: str) -> Any:
    # None first: "none" is also a str. str last: it takes anything.
    for member in sorted(members, key=lambda m: (m is str) - (m is type(None))):
        try:
            return _convert(member, text)
        except ValueError:
            continue
    raise ValueError(text)


def _choice(choices: tuple[Any, ...], text: str) -> Any:
    for choice in choices:
        if str(choice).lower() == text.lower():
            return choice
    raise ValueError(text)


def _items(origin: Any, members: tuple[Any, ...], text: str) -> list[Any]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    # Any number of items of one type; otherwise one item for each type.
    if origin is list or Ellipsis in members:
        members = members[:1] * len(parts)
    if len(parts) != len(members):
        raise ValueError(text)
    return [_convert(member, part) for member, part in zip(members, parts, strict=True)]


def describe(kind: Any) -> str:
    """Returns the name of a type in the help text."""
    members = [describe(m) for m in typing.get_args(kind) if m is not Ellipsis and m != ()]
    if _is_union(kind):
        return "|".join(members)
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(str(choice) for choice in typing.get_args(kind)) + "}"
    if typing.get_origin(kind) in (tuple, list):
        variable = typing.get_origin(kind) is list or Ellipsis in typing.get_args(kind)
        return ",".join([*members, "..."] if variable else members)
    return {type(None): "none", pathlib.Path: "path"}.get(kind, getattr(kind, "__name__", kind))


def show(value: Any) -> str:
    """Returns a value as one types it; files that come with the package without their folder."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(show, value)) or "''"
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    return str(value).removeprefix(_PLACE) or "''"


# Of the package: what comes with it is shown as kerasrlhf/... on every machine.
_PLACE = str(pathlib.Path(__file__).parents[2]) + os.sep


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the end of an error message that suggests the most similar name, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {found[0]}?" if found else ""


def _choices(kind: Any) -> list[str]:
    """Returns the words that a type allows."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    return [word for member in typing.get_args(kind) for word in _choices(member)]
