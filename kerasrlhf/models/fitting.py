"""Training with stock `fit`, and checks at its start, before the first batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasrlhf import adapters, cluster, replica
from kerasrlhf.data import kinds
from kerasrlhf.data.limits import Guard, Limits
from kerasrlhf.data.tokenized import TokenizedDataset
from kerasrlhf.data.training import (
    build_optimizer,
    in_step,
    shared_by_workers,
    whole_batch_loss,
)
from kerasrlhf.models import lm_adapter, precision
from kerasrlhf.types import Tensor, require_int
from kerasrlhf.workers import Workers


class FittedModel(adapters.AdaptedModel):
    """A model that stock `fit` of Keras trains on rows of token ids; abstract.

    All methods that take data check that it fits the model. Several replicas learn what one device
    learns, an interrupted run continues with the data that it would have had, and saved weights
    keep adapters apart from the weights they adapt.

    A subclass defines `trains_on`, `limits`, `backbones` and `fit_defaults`.
    """

    trains_on: tuple[str, ...] = ()
    """Functions of `kerasrlhf.data` whose batches `fit` takes."""

    def limits(self) -> Limits:
        """Returns the lengths and token ids that the model can process."""
        raise NotImplementedError

    def backbones(self) -> list[keras.Model]:
        """Returns the networks that process the tokens."""
        raise NotImplementedError

    def fit_defaults(self) -> dict[str, Any]:
        """Returns the arguments of `compile` for loss and metrics that the caller leaves out."""
        raise NotImplementedError

    def compile(
        self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Configures training like `keras.Model.compile`, with this model's loss and metrics.

        Args:
            optimizer: Keras optimizer, or the name of one. Defaults to `"adam"`.
            loss: Keras loss. Defaults to the loss of this kind of model.
            metrics: list of Keras metrics. Defaults to the metrics of this kind of model.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: If the optimizer cannot train the weights in their dtype, the variables
                belong to another distribution strategy, or `enable_lora` adapted no layer.
        """
        cluster.check_distribution()
        for backbone in self.backbones():
            lm_adapter.check_adapters(backbone)
        strategy = self.distribute_strategy
        check_scope(strategy, type(self).__name__, self.variables)
        precision.check_optimizer(optimizer, self.trainable_variables)
        if replica.is_distributed(strategy):
            # Keras would compile around the replicas, which XLA cannot.
            kwargs.setdefault("jit_compile", False)
            precision.check_replicated(self.backbones(), kwargs["jit_compile"])
        given = {"loss": loss, "metrics": metrics, **kwargs}
        # What the caller leaves out is filled in with the defaults of this kind of model.
        given = {name: value for name, value in given.items() if value is not None}
        super().compile(optimizer, **{**self.fit_defaults(), **given})

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains like `keras.Model.fit`, after checks of all arguments."""
        return self._run(super().fit, args, kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates like `keras.Model.evaluate`, after checks of all arguments."""
        if kwargs.get("_use_cached_eval_dataset"):  # validation in `fit`, checked there
            return super().evaluate(*args, **kwargs)
        return self._run(super().evaluate, args, kwargs)

    def _run(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Checks the arguments of `fit` or `evaluate`, and calls it."""
        check_fit(self, function, args, kwargs, *self.trains_on)
        given = inspect.signature(function).bind(*args, **kwargs)
        guard = Guard(self.limits())
        for name in ("x", "validation_data"):
            if name in given.arguments:
                data = guard.checked(given.arguments[name])
                # Our datasets follow the optimizer's steps: a resumed run gets the same batches.
                is_ours = isinstance(data, TokenizedDataset)
                data = in_step(self, data) if is_ours else data
                if isinstance(data, tf.data.Dataset):
                    data = shared_by_workers(self, data)
                given.arguments[name] = data
        for_worker(given, Workers(self.distribute_strategy))
        # A bad batch is found while `function` runs; raise its error, not TensorFlow's around it.
        with guard.raising():
            return function(*given.args, **given.kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Predicts like `keras.Model.predict`, after checks of the data."""
        guard = Guard(self.limits())
        x = guard.checked(x)
        with guard.raising():
            return super().predict(x, *args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch, after checks of it."""
        self.limits().check_batch(x)
        return super().train_on_batch(x, *args, **kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch, after checks of it."""
        self.limits().check_batch(x)
        return super().test_on_batch(x, *args, **kwargs)

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, x: Any) -> Any:
        """Predicts for one batch, after checks of it."""
        self.limits().check_batch(x)
        return super().predict_on_batch(x)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` calls with each batch, as in Keras."""
        build_optimizer(self)
        super().make_train_function(force)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Updates the weights on a batch, as in Keras; the graph is freed with the model."""
        with replica.tracing:
            return super().train_step(data)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates a batch, as in Keras; the graph is freed with the model."""
        with replica.tracing:
            return super().test_step(data)

    def predict_step(self, data: Any) -> Any:
        """Predicts for a batch, as in Keras; the graph is freed with the model."""
        with replica.tracing:
            return super().predict_step(data)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Computes the loss of the batch of all replicas."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return whole_batch_loss(self, loss, y_pred, sample_weight)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds the model as in Keras, with a whole batch where there are several replicas."""
        first = replica.first_batch(self.distribute_strategy, iterator, data_batch)
        with replica.tracing:
            super()._maybe_symbolic_build(*first)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raises a `ValueError`: the model cannot be one `.keras` file."""
        self.check_savable()

    def check_savable(self) -> None:
        """Raises a `ValueError`: the model cannot be one `.keras` file."""
        raise ValueError(saving_advice(self))


def check_fit(model: keras.Model, fit: Callable, args: tuple, kwargs: dict, *expected: str) -> None:
    """Raises a `ValueError` for arguments of `fit` or `evaluate` that would fail later.

    Args:
        model: what is trained, with `limits()`.
        fit: the bound method of Keras that gets the arguments.
        args: its positional arguments.
        kwargs: its keyword arguments.
        *expected: names of the functions in `kerasrlhf.data` whose batches the model trains on.

    Raises:
        ValueError: If the data is of another kind, a number of epochs or steps is below 1, a
            callback is not one, or a callback would save the whole model.
        TypeError: If `fit` has no argument of a name.
    """
    given = inspect.signature(fit).bind(*args, **kwargs).arguments
    data, targets = given.get("x"), given.get("y")
    # Arrays of `fit(x, y, sample_weight)` are checked in the form that a batch has.
    if isinstance(data, dict) and targets is not None:
        weights = given.get("sample_weight")
        data = (data, targets) if weights is None else (data, targets, weights)
    kinds.check_kind("x", data, *expected)
    # Validation would fail only after the first epoch.
    if given.get("validation_data") is not None:
        kinds.check_kind("validation_data", given["validation_data"], *expected)
    for dataset in (data, given.get("validation_data")):
        if isinstance(dataset, TokenizedDataset):
            model.limits().check_dataset(dataset)
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
            try:
                model.check_savable()
            except ValueError as error:
                raise ValueError(f"`ModelCheckpoint({callback.filepath!r})`: {error}") from error


def set_modes(callbacks: Any, modes: dict[str, str]) -> None:
    """Sets the mode of callbacks with `mode="auto"`: whether what they monitor should rise.

    Keras finds that out for its own metrics only.

    Args:
        callbacks: as `fit` takes them, checked.
        modes: dict from names of metrics to `"max"` or `"min"`.
    """
    listed = getattr(callbacks, "callbacks", callbacks)
    for callback in tf.nest.flatten(listed or []):
        # Metrics of validation rise and fall as those of training.

        name = str(getattr(callback, "monitor", "")).removeprefix("val_")
        if name in modes and getattr(callback, "mode", None) == "auto":
            callback.mode = modes[name]


def last_callbacks_last(fit: Callable, args: tuple, kwargs: dict) -> inspect.BoundArguments:
    """Returns arguments of `fit` in which callbacks that say `runs_last = True` come last.

    Such a callback then saves what the others did in the same iteration or epoch, too.

    Args:
        fit: the bound method of Keras that gets the arguments.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    bound = inspect.signature(fit).bind(*args, **kwargs)
    callbacks = bound.arguments.get("callbacks")

    def is_last(callback: Any) -> bool:
        return getattr(callback, "runs_last", False)

    if isinstance(callbacks, keras.callbacks.CallbackList):
        # Sort the caller's own list in place. Sorting is stable: the others keep their order.
        callbacks.callbacks.sort(key=is_last)
    elif callbacks is not None:
        bound.arguments["callbacks"] = sorted(tf.nest.flatten(callbacks), key=is_last)
    return bound


def for_worker(given: inspect.BoundArguments, workers: Workers) -> None:
    """Changes arguments of `fit` or `evaluate`, so that one process shows progress and writes.

    Args:
        given: the arguments, checked.
        workers: the processes that train together.

    Raises:
        ValueError: If a callback or an argument cannot work in several processes.
    """
    if workers.count == 1:
        return
    for name in ("x", "validation_data"):
        data = given.arguments.get(name)
        if data is not None and not isinstance(data, tf.data.Dataset):
            raise ValueError(
                f"Several workers need a dataset as `{name}`, as the functions of `rlhf.data` "
                f"return it. Received: {type(data).__name__}."
            )
    callbacks = given.arguments.get("callbacks")
    listed = tf.nest.flatten(getattr(callbacks, "callbacks", callbacks) or [])
    if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in listed):
        raise ValueError(
            "`BackupAndRestore` works in one process. Several workers resume with "
            "`rlhf.callbacks.Resume` of on-policy trainers, or from saved weights."
        )
    if workers.is_chief:
        return
    given.arguments["verbose"] = 0
    if callbacks is not None and not isinstance(callbacks, keras.callbacks.CallbackList):
        writers = (
            keras.callbacks.CSVLogger,
            keras.callbacks.ModelCheckpoint,
            keras.callbacks.ProgbarLogger,
            keras.callbacks.TensorBoard,
        )
        given.arguments["callbacks"] = [x for x in listed if not isinstance(x, writers)]


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
    # One variable is enough for the message.
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
