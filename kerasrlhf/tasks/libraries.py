"""Libraries that only some tasks need, loaded at the first use."""

from __future__ import annotations

import importlib
from types import ModuleType


def load(module: str, package: str, what: str) -> ModuleType:
    """Returns a module of a library that is not always installed.

    Args:
        module: str. Its dotted name.
        package: str. What provides it, as `pip` knows it.
        what: str. What needs it, as the start of a sentence.

    Raises:
        ValueError: If it is not installed.

    Example:
        >>> load("math", "Python", "Counting").sqrt(9.0)
        3.0
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f'{what} needs the package {package}. Run `pip install "kerasrlhf[tasks]"`.'
        ) from error
