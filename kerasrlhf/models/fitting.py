"""Checks at the start of `fit`, so that a mistake is found before the first batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasrlhf import replica
from kerasrlhf.data import kinds
from kerasrlhf.types import require_int


def check_fit(model: keras.Model, fit: Callable, args: tuple, kwargs: dict, *expected: str) -> None:
    """Raises a `ValueError` for arguments of `fit` or `evaluate` that would fail later.

    Args:
        model: what is trained.
        fit: the bound method of Keras that gets the arguments.
        args: its positional arguments.
        kwargs: its keyword arguments.
        *expected: names of the functions in `kerasrlhf.data` whose batches the model trains on.

    Raises:
        ValueError: If the data is of another kind, a number of epochs or steps is below 1, a
            callback is none, or a callback would save the whole model.
        TypeError: If `fit` has no argument of a name.
    """
    given = inspect.signature(fit).bind(*args, **kwargs).arguments
    data, targets = given.get("x"), given.get("y")
    if isinstance(data, dict) and targets is not None:
        weights = given.get("sample_weight")
        data = (data, targets) if weights is None else (data, targets, weights)
    kinds.check_kind("x", data, *expected)
    if given.get("validation_data") is not None:
        kinds.check_kind("validation_data", given["validation_data"], *expected)
    for name in ("epochs", "steps_per_epoch", "validation_steps", "steps"):
        if given.get(name) is not None:
            require_int(name, given[name], minimum=1)
    check_callbacks(given.get("callbacks"), model)


def check_callbacks(callbacks: Any, model: keras.Model) -> None:
    """Raises a `ValueError` for callbacks that would fail only at the end of an epoch.

    Args:
        callbacks: as `fit` takes them.
        model: what is trained.
    """
    if callbacks is None or isinstance(callbacks, keras.callbacks.CallbackList):
        return
    for callback in tf.nest.flatten(callbacks):
        if not isinstance(callback, keras.callbacks.Callback):
            hint = f" Pass `{callback.__name__}(...)`." if isinstance(callback, type) else ""
            raise ValueError(
                "`callbacks` must be a list of instances of `keras.callbacks.Callback`. "
                f"Received: {callback!r} of type {type(callback).__name__}.{hint}"
            )
        is_checkpoint = isinstance(callback, keras.callbacks.ModelCheckpoint)
        if is_checkpoint and not callback.save_weights_only:
            raise ValueError(f"`ModelCheckpoint({callback.filepath!r})`: {saving_advice(model)}")


def saving_advice(model: keras.Model) -> str:
    """Returns how to save a model that is made of other models and cannot be one `.keras` file."""
    name = type(model).__name__
    if hasattr(model, "actor"):
        others = (
            "the run with `rlhf.callbacks.Resume(directory)`, or the policy with "
            "`trainer.actor.save_to_preset(directory)`"
        )
    elif hasattr(model, "save_to_preset"):
        others = "or the model with `save_to_preset(directory)`"
    else:
        others = "or the policy with `causal_lm.save_to_preset(directory)`"
    return (
        f"{name} cannot be saved as one Keras model. Save the weights (`save_weights`, or "
        '`ModelCheckpoint(..., save_weights_only=True)` with a name that ends with ".weights.h5"), '
        f"{others}."
    )


def check_scope(strategy: tf.distribute.Strategy, name: str, variables: list) -> None:
    """Raises a `ValueError` for variables of another strategy than the one they are used under.

    Args:
        strategy: what training runs under.
        name: what has the variables, for the message.
        variables: Keras variables.
    """
    created = strategy.extended.variable_created_in_scope
    other = next((v for v in variables if not created(v.value)), None)
    if other is None:
        return
    where = f"under the {type(strategy).__name__} that training runs under"
    if not replica.is_distributed(strategy):
        where = "without a distribution strategy, as training runs here"
    raise ValueError(
        f"The variables of {name}, such as {other.path!r}, were not created {where}. Build all "
        "networks, the optimizer and the trainer, and call `compile` and `fit`, inside one `with "
        "strategy.scope():`, or do all of it outside."
    )
