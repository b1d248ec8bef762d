"""Runs a recipe from the command line, and finds functions named there."""

import contextlib
import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kerasrlhf.cli.kinds import nearest
from kerasrlhf.cli.options import parse
from kerasrlhf.cli.quiet import quiet_tensorflow

_PACKAGE = __name__.partition(".")[0]
_Config = TypeVar("_Config")
_Result = TypeVar("_Result")


def run(
    main: Callable[[_Config], _Result],
    config_class: type[_Config],
    argv: Sequence[str] | None = None,
    program: str | None = None,
) -> _Result:
    """Parses the command line, loads TensorFlow, runs a recipe, and reports errors in one line.

    A `ValueError` raised by this package or by the recipe itself says how to correct the input, so
    it is shown without a traceback. Errors raised inside other libraries keep theirs.

    If the dataclass has a field `strategy`, `main` runs in the scope of `rlhf.cluster.strategy` of
    that kind: on several devices everything has to be built in one scope.

    Args:
        main: function of one `config_class`.
        config_class: dataclass, as in `parse`.
        argv: list of str, without the program's name. Defaults to None: `sys.argv[1:]`.
        program: str. Its name in messages. Defaults to None: the name of the script.

    Returns:
        The result of `main`.

    Raises:
        SystemExit: With code 2 for wrong input, as in `parse`.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     count: int = 1
        >>> rlhf.cli.run(lambda config: config.count + 1, Config, ["--count", "2"])
        3
    """
    # Options first: wrong ones are reported without loading TensorFlow.
    config = parse(config_class, argv, program)
    try:
        with quiet_tensorflow(), _scope(getattr(config, "strategy", None)):
            return main(config)
    except ValueError as error:
        if not _is_ours(error, main):
            raise
        name = program or pathlib.Path(sys.argv[0]).name
        sys.stderr.write(f"{name}: error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None


def _scope(kind: str | None) -> contextlib.AbstractContextManager:
    """Returns the scope of a kind of strategy; None for none."""
    if kind is None:
        return contextlib.nullcontext()
    # Only now: it imports TensorFlow.
    return importlib.import_module(f"{_PACKAGE}.cluster").strategy(kind).scope()


def _is_ours(error: Exception, main: Callable[..., Any]) -> bool:
    """Returns whether an error was raised in this package or in the module of `main`."""
    # The innermost frame is where the error was raised.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "")
    return module.partition(".")[0] == _PACKAGE or module == main.__module__


def load_function(name: str) -> Callable[..., Any]:
    """Returns the Python function with a name such as `package.module:function`.

    Args:
        name: str. `module:function` with a module that Python can import (also from the working
            directory), or `path/to/file.py:function`.

    Returns:
        The function.

    Raises:
        ValueError: If there is no such file, module or function.

    Example:
        >>> rlhf.cli.load_function("math:sqrt")(9.0)
        3.0
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute.isidentifier()):
        raise ValueError(
            "Expected a function as 'package.module:function' or 'path/to/file.py:function'. "
            f"Received: {name!r}"
        )
    module = load_file(pathlib.Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(
            f"{place!r} has no function {attribute!r}.{nearest(attribute, names)} "
            f"Found: {sorted(names)}"
        )
    return function


def load_file(path: pathlib.Path, name: str | None = None) -> types.ModuleType:
    """Returns the module in a file, under its own name among the loaded modules."""
    name = name or f"{path.stem}_of_{_PACKAGE}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"There is no file {str(path)!r}. (Working directory: {os.getcwd()!r}.)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look up the names of their annotations there.
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> types.ModuleType:
    # Modules of the working directory are found, whichever way Python was started.
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"Cannot import the module {name!r}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
