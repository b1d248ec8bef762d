"""Low-rank adapters: finding them, running a model without them, and saving quantized ones."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf.adapters import adapted_layers, own_variables

_TAILS = ("lora_kernel_b", "lora_embeddings_b")
_ADAPTERS = ("lora_kernel_a", "lora_embeddings_a", *_TAILS)
_FILE = "quantized_adapters.npz"


def is_untrained(model: keras.Model) -> bool:
    """Whether every adapter is still the zero map that it starts as."""
    tails = [getattr(x, n) for x in adapted_layers(model) for n in _TAILS if hasattr(x, n)]
    return not any(bool(ops.any(ops.not_equal(tail, 0))) for tail in tails)


def trainable_values(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """The trainable variables of `model`, each with a copy of its value now."""
    return [(v, ops.copy(v.value)) for v in model.trainable_variables]


def trained_beside(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """The trainable variables that are not adapters, each with a copy of its value now.

    `enable_lora` of keras-hub leaves the biases of the adapted layers trainable, so that without
    their adapters these layers are not what they were.
    """
    adapters = {id(getattr(x, n, None)) for x in adapted_layers(model) for n in _ADAPTERS}
    others = [v for v in model.trainable_variables if id(v) not in adapters]
    return [(v, ops.copy(v.value)) for v in others]


def with_values(values: Sequence[tuple[keras.Variable, Any]]) -> contextlib.AbstractContextManager:
    """A scope in which variables have the given values; nothing is assigned to them."""
    return keras.StatelessScope(state_mapping=values) if values else contextlib.nullcontext()


@contextlib.contextmanager
def adapters_off(
    model: keras.Model, values: Sequence[tuple[keras.Variable, Any]] = ()
) -> Iterator[None]:
    """Runs `model` as it was before its adapters, for code that is traced or run inside.

    Args:
        model: the model with adapters.
        values: of `trained_beside`; these variables have these values inside.
    """
    layers = adapted_layers(model)
    for layer in layers:
        layer.lora_enabled = False
    try:
        with with_values(values):
            yield
    finally:
        for layer in layers:
            layer.lora_enabled = True


def save_quantized(model: keras.Model, folder: str | pathlib.Path) -> None:
    """Writes the adapters of quantized layers, and these layers, as they are.

    Keras saves a quantized layer with its adapters merged and the sum rounded to few bits again,
    which changes what the layer computes. The file that is written here keeps both apart. Where
    no quantized layer has adapters, a file of an earlier model is removed.

    Args:
        model: keras-hub backbone.
        folder: preset folder in which the model was saved.
    """
    path = pathlib.Path(folder) / _FILE
    path.unlink(missing_ok=True)
    arrays = {}
    for index, layer in enumerate(model._flatten_layers()):
        if getattr(layer, "lora_enabled", False) and layer.quantization_mode:
            arrays[f"{index}/rank"], arrays[f"{index}/alpha"] = layer.lora_rank, layer.lora_alpha
            for name, variable in own_variables(layer).items():
                arrays[f"{index}/{name}"] = _storable(variable)
    if arrays:
        with open(path, "wb") as file:
            np.savez(file, **arrays)


def load_quantized(model: keras.Model, folder: str | pathlib.Path) -> None:
    """Puts adapters on the quantized layers that `save_quantized` wrote, and restores both.

    As after `enable_lora`, only the adapted layers are trainable afterward. Does nothing where
    the folder has no such file.

    Args:
        model: keras-hub backbone, loaded from `folder`.
        folder: preset folder, or the name of a preset that is not local.
    """
    path = pathlib.Path(folder) / _FILE
    if not path.is_file():
        return
    with np.load(path) as file:
        saved = dict(file)
    layers = list(model._flatten_layers())
    for layer in layers:
        layer.trainable = layer is model
    adapted = sorted({int(key.split("/")[0]) for key in saved})
    for index in adapted:
        layer = layers[index]
        layer.trainable = True
        layer.enable_lora(int(saved[f"{index}/rank"]), lora_alpha=saved[f"{index}/alpha"].item())
        for name, variable in own_variables(layer).items():
            variable.assign(saved[f"{index}/{name}"])
    # What `enable_lora` of keras-hub notes down for `save_lora_weights`.
    weighted = [layer for layer in layers if layer is not model and layer.weights]
    model._lora_enabled_layers = [weighted.index(layers[index]) for index in adapted]
    model._lora_rank = layers[adapted[0]].lora_rank


def _storable(variable: keras.Variable) -> np.ndarray:
    """The value in a dtype that NumPy's files have, which bfloat16 is not."""
    value = variable.value
    return np.asarray(ops.cast(value, "float32") if variable.dtype == "bfloat16" else value)
