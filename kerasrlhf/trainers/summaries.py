"""Text about a trainer: a table of its networks, and its settings in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasrlhf import signatures


def table(networks: dict[str, list[keras.Variable]]) -> str:
    """Returns a table of networks with parameters, trained and frozen ones, and bytes.

    Args:
        networks: dict from names to lists of Keras variables or tensors; tensors are frozen.

    Example:
        >>> print(table({"head": [keras.Variable(np.zeros((2, 3)), dtype="float32")]}))
        network       parameters       trained        frozen         bytes
        head                   6             6             0          24 B
        total                  6             6             0          24 B
    """
    rows, total, seen = [], np.zeros(3, "int64"), set()
    for name, variables in networks.items():
        counts = np.zeros(3, "int64")
        for variable in variables:
            size = int(np.prod(variable.shape))
            trained = size if getattr(variable, "trainable", False) else 0
            amount = np.array([trained, size - trained, size * _bytes(variable.dtype)])
            counts += amount
            # Count shared weights once: with adapters the reference is the actor's own weights.
            total += amount if id(variable) not in seen else 0
            seen.add(id(variable))
        rows.append(_row(name, counts))
    header = f"{'network':<12}{'parameters':>12}{'trained':>14}{'frozen':>14}{'bytes':>14}"
    return "\n".join([header, *rows, _row("total", total)])


def _row(name: str, counts: np.ndarray) -> str:
    trained, frozen, size = (int(x) for x in counts)
    numbers = f"{trained + frozen:>{24 - max(12, len(name))},}{trained:>14,}{frozen:>14,}"
    return f"{name:<12}{numbers}{_readable(size):>14}"


def _bytes(dtype: Any) -> int:
    name = keras.backend.standardize_dtype(dtype)
    # NumPy itself has no bfloat16.
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def show(text: str, print_fn: Callable[[str], Any] | None = None) -> None:
    """Prints a text, to standard output if no function is passed."""
    if print_fn is None:
        sys.stdout.write(text + "\n")
    else:
        print_fn(text)


def described(instance: Any, values: dict[str, Any]) -> str:
    """Returns an object with the arguments that differ from their defaults, for `repr`.

    Args:
        instance: object that keeps arguments of its class as attributes.
        values: dict of arguments to show with other values.
    """
    shown = []
    for name, parameter in signatures.signature_of(type(instance)).parameters.items():
        value = values.get(name, getattr(instance, name, parameter.default))
        # Networks have no short form.
        if value is parameter.empty or isinstance(value, keras.Model):
            continue
        value = str(value) if isinstance(value, os.PathLike) else value
        if parameter.default is parameter.empty or value != parameter.default:
            shown.append(f"{name}={value!r}")
    return f"{type(instance).__name__}({', '.join(shown)})"
