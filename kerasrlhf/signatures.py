"""Signatures that name every argument, and errors that name the nearest one."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def expanded(kind: type, base: type) -> inspect.Signature:
    """Returns the signature of a class, with the arguments of its `**kwargs` by name.

    Args:
        kind: class whose `__init__` may end in `**kwargs` that go to `base`, annotated as
            `Unpack[...]` of a `TypedDict` or not at all.
        base: class with a signature.

    Example:
        >>> class Base:
        ...     def __init__(self, size, *, seed=0): ...
        >>> class Final(Base):
        ...     def __init__(self, *args, rate=0.1, **kwargs): ...
        >>> str(expanded(Final, Base))
        '(size, *, rate=0.1, seed=0)'
    """
    own = _parameters(kind)
    inherited = signature_of(base).parameters
    parameters: list[inspect.Parameter] = []
    for parameter in own:
        # `*args` are the base's positional arguments, `**kwargs` its others.
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional = (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            parameters += [p for p in inherited.values() if p.kind in positional]
        elif parameter.kind is parameter.VAR_KEYWORD:
            taken = {p.name for p in [*own, *parameters]}
            for name in _names(kind, parameter.name, inherited):
                if name not in taken and inherited[name].kind is not parameter.VAR_KEYWORD:
                    parameters.append(inherited[name].replace(kind=parameter.KEYWORD_ONLY))
        else:
            parameters.append(parameter)
    # Sorting by kind is stable: positional first, each kind in its order.
    return inspect.Signature(sorted(parameters, key=lambda p: p.kind))


def signature_of(kind: type) -> inspect.Signature:
    """Returns the signature of a class: its `__signature__`, or else that of its `__init__`.

    `inspect.signature` of a Keras class is that of `__new__`, `(*args, **kwargs)`, in some versions
    of Python.

    Example:
        >>> class Model:
        ...     def __new__(cls, *args, **kwargs):
        ...         return object.__new__(cls)
        ...     def __init__(self, size): ...
        >>> class Final(Model): ...
        >>> str(signature_of(Final))
        '(size)'
    """
    known = getattr(kind, "__signature__", None)
    return known if known is not None else inspect.Signature(_parameters(kind))


def _parameters(kind: type) -> list[inspect.Parameter]:
    return [*inspect.signature(inspect.getattr_static(kind, "__init__")).parameters.values()][1:]


def _names(kind: type, name: str, inherited: Iterable[str]) -> Iterable[str]:
    """Returns the names in `**kwargs`: those of its `TypedDict`, or all that are inherited."""
    hint = typing.get_type_hints(inspect.getattr_static(kind, "__init__")).get(name)
    options = next(iter(typing.get_args(hint)), None)
    return typing.get_type_hints(options) if typing.is_typeddict(options) else inherited


def shown_as(other: Callable[..., Any]) -> Callable[[F], F]:
    """Returns a decorator for a method that shows the signature and docstring of another one.

    As `functools.wraps`, but a type checker keeps to the method itself, which it may call without
    arguments.

    Args:
        other: callable.

    Example:
        >>> @shown_as(round)
        ... def nearest(*args):
        ...     return round(*args)
        >>> str(inspect.signature(nearest)), nearest(2.6)
        ('(number, ndigits=None)', 3)
    """

    def decorate(function: F) -> F:
        return typing.cast(F, functools.wraps(other)(function))

    return decorate


def check_names(kind: type, names: Iterable[str]) -> None:
    """Raises a `TypeError` for arguments that a class does not have, with the nearest name.

    Example:
        >>> class Trainer:
        ...     def __init__(self, cliprange=0.2): ...
        >>> check_names(Trainer, ["clip_range"])
        Traceback (most recent call last):
            ...
        TypeError: `Trainer` has no argument `clip_range`. Did you mean `cliprange`?
    """
    known = signature_of(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean `{near[0]}`?" if near else f" Its arguments are {[*known]}."
            raise TypeError(f"`{kind.__name__}` has no argument `{name}`.{hint}")
