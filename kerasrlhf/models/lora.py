"""Low-rank adapters: telling whether a model has them, and running it without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops


def adapted_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of `model` that carry a LoRA adapter."""
    return [x for x in model._flatten_layers() if getattr(x, "lora_enabled", False)]


def is_untrained(model: keras.Model) -> bool:
    """Whether every adapter is still the zero map that it starts as."""
    names = ("lora_kernel_b", "lora_embeddings_b")
    tails = [getattr(x, n) for x in adapted_layers(model) for n in names if hasattr(x, n)]
    return not any(bool(ops.any(ops.not_equal(tail, 0))) for tail in tails)


def trained_beside(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """The trainable variables that are no adapters, each with its value now.

    `enable_lora` of keras-hub leaves the biases of the adapted layers trainable, so that without
    their adapters these layers are not what they were.
    """
    names = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
    adapters = {id(getattr(x, n, None)) for x in adapted_layers(model) for n in names}
    others = [v for v in model.trainable_variables if id(v) not in adapters]
    return [(v, ops.copy(v.value)) for v in others]


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
    scope = keras.StatelessScope(state_mapping=values) if values else contextlib.nullcontext()
    for layer in layers:
        layer.lora_enabled = False
    try:
        with scope:
            yield
    finally:
        for layer in layers:
            layer.lora_enabled = True
