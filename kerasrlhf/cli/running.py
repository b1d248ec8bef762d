"""Running a recipe from the command line, and finding the functions named there."""

import importlib
import importlib.util
import os
import pathlib
import sys

from kerasrlhf.cli.options import nearest, parse

_PACKAGE = __package__.partition(".")[0]


def run(main, config_class, argv=None):
    """Parses the command line, runs a recipe, and reports wrong input in one line.

    A `ValueError` that this package or the recipe itself raises says what to mend, so it is shown
    without a traceback. Errors from inside other libraries keep theirs.

    Args:
        main: Function of one `config_class`.
        config_class: A dataclass, see `parse`.
        argv: List of `str`, without the program's name. `None` means `sys.argv[1:]`.

    Returns:
        What `main` returns.

    Raises:
        SystemExit: With code 2 for wrong input, as `parse`.

    Example:

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     count: int = 1
    >>> run(lambda config: config.count + 1, Config, ["--count", "2"])
    3
    """
    config = parse(config_class, argv)
    try:
        return main(config)
    except ValueError as error:
        if not _is_ours(error, main):
            raise
        program = pathlib.Path(sys.argv[0]).name
        sys.stderr.write(f"{program}: error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None


def _is_ours(error, main):
    """Whether the innermost frame of an error stands in this package or beside `main`."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] == _PACKAGE or module == main.__module__


def load_function(name):
    """Finds a Python function by a name such as `package.module:function`.

    Args:
        name: `str`, `module:function` with a module that Python can import (the working directory
            included), or `path/to/file.py:function`.

    Returns:
        The function.

    Raises:
        ValueError: No such file, module or function.

    Example:

    >>> load_function("math:sqrt")(9.0)
    3.0
    """
    place, colon, attribute = name.rpartition(":")
    if not (colon and place and attribute.isidentifier()):
        raise ValueError(
            "Expected a function as 'package.module:function' or 'path/to/file.py:function'. "
            f"Received: {name!r}"
        )
    module = _load_file(pathlib.Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(
            f"{place!r} has no function {attribute!r}.{nearest(attribute, names)} "
            f"Found: {sorted(names)}"
        )
    return function


def _load_file(path):
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}. (Working directory: {os.getcwd()!r}.)")
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_{_PACKAGE}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names of their annotations
    spec.loader.exec_module(module)
    return module


def _load_module(name):
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"Cannot import the module {name!r}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
