"""Delays the import of Keras until something of it is used.

`importlib.util.LazyLoader` does not: before Python 3.13 a second `import` of a module loads it.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

_DELAYED = ("keras", "keras_hub")


def delay_keras() -> None:
    """Lets `import keras` and `import keras_hub` wait until a name of theirs is used."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # Before the usual finders, which would load the module.
        sys.meta_path.insert(0, _Finder())


def end_delay() -> None:
    """Lets Keras be imported as usual from here on."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name in _DELAYED:
        if isinstance(sys.modules.get(name), _Delayed):
            del sys.modules[name]


class _Delayed(types.ModuleType):
    """Takes the place of a module until the first of its names is used."""

    def __getattr__(self, name: str) -> Any:
        end_delay()
        module = importlib.import_module(self.__name__)
        # Names that were imported from the delayed module find the real ones from here on.
        vars(self).update(vars(module))
        return getattr(module, name)


class _Loader(importlib.abc.Loader):
    def exec_module(self, module: types.ModuleType) -> None:
        module.__class__ = _Delayed


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, _Loader()) if name in _DELAYED else None
