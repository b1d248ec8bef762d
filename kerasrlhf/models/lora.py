"""Low-rank adapters: telling whether a model has them, and running it without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def adapters_off(model: keras.Model) -> Iterator[None]:
    """Runs `model` as it was before its adapters, for code that is traced or run inside."""
    layers = adapted_layers(model)
    for layer in layers:
        layer.lora_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora_enabled = True
