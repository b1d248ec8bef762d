"""Files of weights that keep low-rank adapters unmerged.

Keras merges an adapter into the weights that it adapts whenever it saves them. A loaded model
computes the same, but the base weights are lost: a reference that is the same weights without
adapters has become the policy, and adapters whose two factors are both 0 cannot learn anymore.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model and all layers inside it, at any depth.

    Args:
        model: Keras model.
    """
    return list(model._flatten_layers())  # noqa: SLF001


def adapted_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers of a model that have a LoRA adapter.

    Args:
        model: Keras model.
    """
    return [x for x in all_layers(model) if getattr(x, "lora_enabled", False)]


def own_variables(layer: keras.Layer) -> dict[str, keras.Variable]:
    """Returns the variables that a layer itself has, without those of layers inside it, by name.

    Args:
        layer: Keras layer.
    """
    own = layer._trainable_variables + layer._non_trainable_variables  # noqa: SLF001
    return {v.name: v for v in own}


@contextlib.contextmanager
def kept_apart(model: keras.Model) -> Iterator[None]:
    """Opens a scope in which weights of `model` are saved and loaded without merging adapters.

    Args:
        model: Keras model.

    Raises:
        ValueError: Inside, if a file is loaded that has no adapters for a layer that has one.
    """
    # Replace the methods of instances; Keras finds these before those of the class.
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
    def save_weights(self, *args: Any, **kwargs: Any) -> None:
        """Saves weights like Keras, with adapters unmerged."""
        with kept_apart(self):
            super().save_weights(*args, **kwargs)

    @functools.wraps(keras.Model.load_weights)
    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """Loads weights like Keras, with adapters unmerged."""
        with kept_apart(self):
            super().load_weights(*args, **kwargs)


def keep_apart(model: keras.Model) -> None:
    """Makes `save_weights` and `load_weights` of a stock model keep its adapters unmerged.

    This includes callbacks that call them: `ModelCheckpoint(save_weights_only=True)`,
    `BackupAndRestore`. Presets still have merged adapters.

    Args:
        model: Keras model. Two methods of it are replaced.
    """
    if "save_weights" in vars(model):
        return
    save, load = model.save_weights, model.load_weights

    def save_weights(*args: Any, **kwargs: Any) -> None:
        """Saves weights like Keras, with adapters unmerged."""
        with kept_apart(model):
            save(*args, **kwargs)

    def load_weights(*args: Any, **kwargs: Any) -> None:
        """Loads weights like Keras, with adapters unmerged."""
        with kept_apart(model):
            load(*args, **kwargs)

    model.save_weights, model.load_weights = save_weights, load_weights


def _save(layer: keras.Layer, store: Any) -> None:
    for name, variable in own_variables(layer).items():
        store[name] = variable


def _load(layer: keras.Layer, store: Any) -> None:
    variables = own_variables(layer)
    # A file of merged weights has a kernel, and no adapters for it.
    if {*store.keys()} != {*variables}:
        raise ValueError(
            f"The layer {layer.path!r} has a LoRA adapter, and the file has none for it: it was "
            "saved without adapters, or by Keras, which merges them. Load such a file before "
            "`enable_lora`, or load a preset of `save_to_preset`; to continue a run use "
            "`rlhf.callbacks.Resume`, or `save_weights` of the trainer or the actor."
        )
    for name, variable in variables.items():
        variable.assign(store[name])
