"""Low-rank adapters: finding them, running a model without them, and saving quantized ones."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from kerasrlhf.adapters import adapted_layers, all_layers, own_variables
from kerasrlhf.types import Tensor

_TAILS = ("lora_kernel_b", "lora_embeddings_b")
_ADAPTERS = ("lora_kernel_a", "lora_embeddings_a", *_TAILS)
_FILE = "quantized_adapters.npz"


def is_untrained(model: keras.Model) -> bool:
    """Returns whether every adapter is still the zero map that it starts as.

    Args:
        model: keras-hub model with LoRA adapters.
    """
    # The second factor starts at zero, and with it the product of both.
    tails = [getattr(x, n) for x in adapted_layers(model) for n in _TAILS if hasattr(x, n)]
    return not any(bool(ops.any(ops.not_equal(tail, 0))) for tail in tails)


def trainable_values(model: keras.Model) -> list[tuple[keras.Variable, Tensor]]:
    """Returns the trainable variables of a model with copies of their present values.

    Args:
        model: Keras model.
    """
    return [(v, ops.copy(v.value)) for v in model.trainable_variables]


def other_trainable_values(model: keras.Model) -> list[tuple[keras.Variable, Tensor]]:
    """Returns the trainable variables outside the adapters with copies of their present values.

    `enable_lora` of keras-hub leaves the biases of the adapted layers trainable, so switching the
    adapters off alone does not restore these layers.

    Args:
        model: keras-hub model with LoRA adapters.
    """
    # By identity: Keras variables compare by value.
    adapters = {id(getattr(x, n, None)) for x in adapted_layers(model) for n in _ADAPTERS}
    others = [v for v in model.trainable_variables if id(v) not in adapters]
    return [(v, ops.copy(v.value)) for v in others]


def with_values(
    values: Sequence[tuple[keras.Variable, Tensor]],
) -> contextlib.AbstractContextManager:
    """Opens a scope in which variables have the given values; nothing is assigned to them.

    Args:
        values: list of variables, each with a value.
    """
    return keras.StatelessScope(state_mapping=values) if values else contextlib.nullcontext()


@contextlib.contextmanager
def adapters_off(
    model: keras.Model, values: Sequence[tuple[keras.Variable, Tensor]] = ()
) -> Iterator[None]:
    """Opens a scope in which a model computes what it did before it had adapters.

    Args:
        model: keras-hub model with LoRA adapters.
        values: list of variables, each with its value in the scope, from
            `other_trainable_values`. Defaults to none.
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

    Keras saves a quantized layer with its adapters merged and the sum quantized again, which
    changes what the layer computes. The file that is written here keeps both separate. If no
    quantized layer has adapters, the file of an earlier model is removed.

    Args:
        model: keras-hub backbone.
        folder: preset folder in which the model was saved.
    """
    path = pathlib.Path(folder) / _FILE
    # Adapters of a model that was saved here before would be loaded with this one.
    path.unlink(missing_ok=True)
    arrays = {}
    # A layer is known by its place in the model; names may differ after loading.
    for index, layer in enumerate(all_layers(model)):
        if getattr(layer, "lora_enabled", False) and layer.quantization_mode:
            arrays[f"{index}/rank"], arrays[f"{index}/alpha"] = layer.lora_rank, layer.lora_alpha
            for name, variable in own_variables(layer).items():
                arrays[f"{index}/{name}"] = _storable(variable)
    if arrays:
        with open(path, "wb") as file:
            np.savez(file, **arrays)


def load_quantized(model: keras.Model, folder: str | pathlib.Path) -> None:
    """Restores the quantized layers that `save_quantized` wrote, and their adapters.

    As after `enable_lora`, only the adapted layers are trainable afterward. Does nothing if the
    folder has no such file.

    Args:
        model: keras-hub backbone, loaded from `folder`.
        folder: preset folder, or the name of a preset that is not local.
    """
    path = pathlib.Path(folder) / _FILE
    if not path.is_file():
        return
    with np.load(path) as file:
        saved = dict(file)
    # Freeze all layers but the outermost, as `enable_lora` of keras-hub does.
    layers = all_layers(model)
    for layer in layers:
        layer.trainable = layer is model
    adapted = sorted({int(key.split("/")[0]) for key in saved})
    for index in adapted:
        layer = layers[index]
        layer.trainable = True
        # Creates the adapter's variables, which then get their saved values.
        layer.enable_lora(int(saved[f"{index}/rank"]), lora_alpha=saved[f"{index}/alpha"].item())
        for name, variable in own_variables(layer).items():
            variable.assign(saved[f"{index}/{name}"])
    # What `enable_lora` of keras-hub records for `save_lora_weights`.
    weighted = [layer for layer in layers if layer is not model and layer.weights]
    enabled = [weighted.index(layers[index]) for index in adapted]
    model._lora_enabled_layers = enabled  # noqa: SLF001
    model._lora_rank = layers[adapted[0]].lora_rank  # noqa: SLF001


def _storable(variable: keras.Variable) -> np.ndarray:
    """Returns the value in a dtype that NumPy's files can have; bfloat16 becomes float32."""
    value = variable.value
    return np.asarray(ops.cast(value, "float32") if variable.dtype == "bfloat16" else value)
