"""Settings of a run as plain values, to compare a resumed run with the one before."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from kerasrlhf import signatures
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.rollouts import weighted

# Networks and data have separate fingerprints; the others do not change the results.
_LEFT_OUT = {"actor", "reward", "reference", "memory", "reward_timeout"}
_PLAIN = (type(None), bool, int, float, str)
# Entries of a Keras config that do not count. Names contain counters of the process.
_OF_KERAS = {"name", "trainable", "dtype", "module", "registered_name"}


def arguments_of(instance: Any) -> dict[str, Any]:
    """Returns the constructor arguments that an object keeps as attributes, as plain values.

    Example:
        >>> import kerasrlhf as rlhf
        >>> arguments_of(rlhf.RolloutMemory(4))
        {'capacity': 4, 'directory': None, 'reuse': 1}
    """
    names = signatures.signature_of(type(instance)).parameters
    return {
        name: describe(getattr(instance, name))
        for name in names
        if name not in _LEFT_OUT and hasattr(instance, name)
    }


def describe_rewards(reward: Any) -> dict[str, Any]:
    """Returns name, weight and fingerprint of each part of a trainer's `reward`."""
    # Names of models contain counters of the process; names in a dict are the user's.
    is_named = isinstance(reward, dict)
    return {
        part.name if is_named else str(index): {
            "is": _describe_reward(part.reward),
            "weight": part.weight,
        }
        for index, part in enumerate(weighted.parts_of(reward))
    }


def describe(value: Any) -> Any:
    """Returns a plain, possibly nested value that differs if two settings differ.

    Functions differ by their names, by their code without line numbers and comments, by default
    arguments, and by the plain values in their closures.

    Example:
        >>> describe(functools.partial(round, ndigits=1))
        {'class': 'partial', 'of': 'round', 'args': [], 'keywords': {'ndigits': 1}}
    """
    # Plain values and containers; NumPy scalars become Python numbers.
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {str(name): describe(entry) for name, entry in value.items()}
    if hasattr(value, "_asdict"):  # a named tuple
        return {"class": type(value).__name__, **describe(value._asdict())}
    if isinstance(value, (list, tuple)):
        return [describe(entry) for entry in value]
    # Sets have no order: sort the descriptions.
    if isinstance(value, (set, frozenset)):
        return sorted(repr(describe(entry)) for entry in value)
    # Objects, by their class and their fields, arguments or configuration.
    name = type(value).__name__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A field that is not compared, such as a number of threads, does not change results.
        compared = [f.name for f in dataclasses.fields(value) if f.compare]
        fields = {name: describe(getattr(value, name)) for name in compared}
        return {"class": name, **fields}
    if isinstance(value, functools.partial):
        described = {"args": describe(value.args), "keywords": describe(value.keywords)}
        return {"class": "partial", "of": describe(value.func), **described}
    if hasattr(value, "get_config"):
        return {"class": name, **_config(value)}
    return _describe_function(value) if callable(value) else name


def fingerprint(values: Iterable[Any]) -> str:
    """Returns a short checksum of tensors or variables.

    Example:
        >>> fingerprint([np.zeros(2)]) == fingerprint([np.zeros(2)]) != fingerprint([np.ones(2)])
        True
    """
    checksum = hashlib.sha256()
    for value in values:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        # Shape and dtype too: equal bytes may be other tensors.
        checksum.update(f"{array.dtype} {array.shape};".encode())
        # As bytes: `hashlib` cannot hash bfloat16 arrays.
        checksum.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()[:16]


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, each as `(before, after)`; None for a missing one.

    Example:
        >>> changes({"cliprange": 0.2, "seed": 0}, {"cliprange": 0.3, "seed": 0})
        {'cliprange': (0.2, 0.3)}
    """
    names = sorted({*before, *after})
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns nested settings with dotted names, as read back from a JSON file.

    Example:
        >>> flat({"sampler": {"length": 4}, "seed": 0})
        {'sampler.length': 4, 'seed': 0}
    """
    return json.loads(json.dumps(dict(_flat(settings, ""))))


def _flat(settings: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _config(value: Any) -> Any:
    """Returns the config of a Keras object without names, or an empty one."""

    def without_names(config: Any) -> Any:
        if not isinstance(config, dict):
            return describe(config)
        return {k: without_names(v) for k, v in config.items() if k not in _OF_KERAS}

    try:
        return without_names(value.get_config())
    except NotImplementedError:  # A class with arguments must define `get_config`.
        return {}


def _describe_reward(reward: Scorer | Callable) -> Any:
    if isinstance(reward, Scorer):
        return f"{type(reward).__name__} of weights {fingerprint(reward.variables)}"
    return describe(reward)


def _describe_function(function: Callable) -> str:
    """Returns the name of a function, and a checksum of its code if there is one."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    # Find Python code: of a function, a method, or an object with `__call__`.
    inner = getattr(function, "__func__", function)
    if not isinstance(inner, types.FunctionType):
        inner = inspect.getattr_static(type(function), "__call__", None)
    if not isinstance(inner, types.FunctionType):
        return name
    # Default arguments and closures change the result too.
    cells = [cell.cell_contents for cell in inner.__closure__ or () if _is_filled(cell)]
    around = [_enclosed(x) for x in (inner.__defaults__, inner.__kwdefaults__, *cells)]
    text = repr((_code(inner.__code__), around))
    return f"{name} of code {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _code(code: types.CodeType) -> list[Any]:
    # Nested functions and lambdas are constants of the code around them.
    constants = [
        _code(x) if isinstance(x, types.CodeType) else describe(x)
        for x in code.co_consts
        if x is not Ellipsis
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _enclosed(value: Any) -> Any:
    """Returns plain values as they are, functions by name, and anything else by its class.

    A full description could refer back to the function and never end.
    """
    if isinstance(value, (dict, list, tuple)):
        entries = value.items() if isinstance(value, dict) else value
        return [_enclosed(entry) for entry in entries]
    if isinstance(value, _PLAIN):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _is_filled(cell: types.CellType) -> bool:
    try:
        # An empty cell raises a `ValueError`.
        return cell.cell_contents is not cell
    except ValueError:
        return False
