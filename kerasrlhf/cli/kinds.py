"""Which types an option can have, and how its text becomes a value of them."""

import argparse
import pathlib
import types
import typing

_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_switch(kind):
    """Whether a type is an on-off switch: `--name` alone means true."""
    return kind is bool or (_is_union(kind) and bool in typing.get_args(kind))


def _is_union(kind):
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def converter(name, kind):
    """A function from `str` to `kind` that argparse can call.

    Raises:
        ValueError: A type that no option can express; `name` is the field's.
    """
    _check_kind(name, kind)

    def convert(text):
        try:
            return _convert(kind, text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {describe(kind)}, got {text!r}") from None

    return convert


def _check_kind(name, kind):
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


def _switch(text):
    if text.lower() not in _SWITCH:
        raise ValueError(text)
    return _SWITCH[text.lower()]


def _none(text):
    if text.lower() != "none":
        raise ValueError(text)


_SCALARS = {
    int: int,
    float: float,
    str: str,
    pathlib.Path: pathlib.Path,
    bool: _switch,
    type(None): _none,
}


def _convert(kind, text):
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if _is_union(kind):
        return _first_that_fits(members, text)
    if origin is typing.Literal:
        return _choice(members, text)
    if origin in (tuple, list):
        return origin(_items(origin, members, text))
    return _SCALARS[kind](text)


def _first_that_fits(members, text):
    # None first: "none" is also a str. str last: it takes anything.
    for member in sorted(members, key=lambda m: (m is str) - (m is type(None))):
        try:
            return _convert(member, text)
        except ValueError:
            continue
    raise ValueError(text)


def _choice(choices, text):
    for choice in choices:
        if str(choice).lower() == text.lower():
            return choice
    raise ValueError(text)


def _items(origin, members, text):
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if origin is list or Ellipsis in members:
        members = members[:1] * len(parts)
    if len(parts) != len(members):
        raise ValueError(text)
    return [_convert(member, part) for member, part in zip(members, parts, strict=True)]


def describe(kind):
    """How the help text calls a type."""
    members = [describe(m) for m in typing.get_args(kind) if m is not Ellipsis and m != ()]
    if _is_union(kind):
        return "|".join(members)
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(str(choice) for choice in typing.get_args(kind)) + "}"
    if typing.get_origin(kind) in (tuple, list):
        variable = typing.get_origin(kind) is list or Ellipsis in typing.get_args(kind)
        return ",".join([*members, "..."] if variable else members)
    return {type(None): "none", pathlib.Path: "path"}.get(kind, getattr(kind, "__name__", kind))
