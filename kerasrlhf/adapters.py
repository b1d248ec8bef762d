"""Files of weights in which low-rank adapters are what they are in the model.

Keras merges an adapter into the weights that it adapts whenever it saves them. Loaded again, the
model computes the same, but what the adapters were added to is lost: a reference that is the same
weights without adapters has become the policy, and adapters whose two factors are both 0 learn
nothing any more.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras


def adapted_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers of `model` that carry a LoRA adapter."""
    return [x for x in model._flatten_layers() if getattr(x, "lora_enabled", False)]


def own_variables(layer: keras.Layer) -> dict[str, keras.Variable]:
    """Returns the variables that a layer itself holds, by name."""
    return {v.name: v for v in layer._trainable_variables + layer._non_trainable_variables}


@contextlib.contextmanager
def kept_apart(model: keras.Model) -> Iterator[None]:
    """A scope in which weights of `model` are saved and loaded without merging its adapters.

    Raises:
        ValueError: Inside, if a file is loaded that holds no adapters for a layer that has one.
    """
    layers = adapted_layers(model)
    for layer in layers:
        layer.save_own_variables = functools.partial(_save, layer)
        layer.load_own_variables = functools.partial(_load, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.save_own_variables, layer.load_own_variables


class AdaptedModel(keras.Model):
    """A model whose files of weights keep its LoRA adapters apart; abstract."""

    @functools.wraps(keras.Model.save_weights)
    def save_weights(self, *args, **kwargs):
        with kept_apart(self):
            super().save_weights(*args, **kwargs)

    @functools.wraps(keras.Model.load_weights)
    def load_weights(self, *args, **kwargs):
        with kept_apart(self):
            super().load_weights(*args, **kwargs)


def keep_apart(model: keras.Model) -> None:
    """Has `save_weights` and `load_weights` of a stock model keep its adapters apart.

    So do callbacks that call them: `ModelCheckpoint(save_weights_only=True)`, `BackupAndRestore`.
    Presets are written as before, with adapters merged.
    """
    if "save_weights" in vars(model):
        return
    save, load = model.save_weights, model.load_weights

    def save_weights(*args, **kwargs):
        with kept_apart(model):
            save(*args, **kwargs)

    def load_weights(*args, **kwargs):
        with kept_apart(model):
            load(*args, **kwargs)

    model.save_weights, model.load_weights = save_weights, load_weights


def _save(layer: keras.Layer, store: Any) -> None:
    for name, variable in own_variables(layer).items():
        store[name] = variable


def _load(layer: keras.Layer, store: Any) -> None:
    variables = own_variables(layer)
    if {*store.keys()} != {*variables}:
        raise ValueError(
            f"The layer {layer.path!r} has a LoRA adapter, and the file has none for it: it was "
            "saved without adapters, or by Keras, which merges them. Load such a file before "
            "`enable_lora`, or load a preset of `save_to_preset`; to go on with a run use "
            "`rlhf.callbacks.Resume`, or `save_weights` of the trainer or the actor."
        )
    for name, variable in variables.items():
        variable.assign(store[name])
