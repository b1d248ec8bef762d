"""Makes data and the model that is trained on it agree, whoever calls `fit`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from kerasrlhf import adapters, cluster, replica
from kerasrlhf.data.limits import Limits
from kerasrlhf.types import Tensor

if TYPE_CHECKING:
    from kerasrlhf.data.tokenized import TokenizedDataset

# The versions of Keras whose `fit` is mended for several processes.
_MENDED = "3.15."


def prepared(model: keras.Model, dataset: TokenizedDataset) -> TokenizedDataset:
    """Returns the batches of a `TokenizedDataset` as `fit` of a keras-hub task trains on them.

    The rows must fit the model. Each pass has the order that belongs to the number of steps that
    the model's optimizer has made, several replicas learn what one device learns, and saved weights
    keep LoRA adapters apart.

    Args:
        model: A keras-hub `CausalLM`. Methods of it are replaced.
        dataset: `TokenizedDataset`.

    Returns:
        `TokenizedDataset`.

    Raises:
        ValueError: If rows are too long for the model, or tokens of another vocabulary.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        Limits.of([backbone], getattr(model, "preprocessor", None)).check_dataset(dataset)
    adapters.keep_apart(model)
    _build_optimizer_first(model)
    _free_graphs_with(model)
    if replica.is_distributed(model.distribute_strategy):
        _train_whole_batches(model)
    return shared_by_workers(model, in_step(model, dataset))


def shared_by_workers(model: keras.Model, dataset: Any) -> Any:
    """Returns a dataset whose batches `fit` of Keras divides between several processes.

    Args:
        model: The compiled model.
        dataset: `tf.data.Dataset`, the same in every process.

    Raises:
        ValueError: If this version of Keras cannot train in several processes, or with XLA on CPUs.
    """
    if cluster.worker(model.distribute_strategy).count == 1:
        return dataset
    if getattr(model, "jit_compile", False) and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            "XLA cannot sum over processes on CPUs. Compile the model with `jit_compile=False`."
        )
    _reduce_in_each_worker()
    options = tf.data.Options()
    # Rows of every batch, not whole files or batches, so that all have the same batches.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


@functools.cache
def _reduce_in_each_worker() -> None:
    """Makes Keras average the logs of a step over the replicas of a process.

    Its own way fails for scalars under a strategy of several processes. The metrics of an epoch are
    those of all replicas either way.
    """
    if not keras.__version__.startswith(_MENDED):
        raise ValueError(
            f"`fit` of Keras {keras.__version__} was not tried with several processes, and that of "
            f"{_MENDED}* needs a correction. Train this model in one process, with "
            '`rlhf.cluster.strategy("mirrored")` on its GPUs.'
        )
    module: Any = importlib.import_module("keras.src.backend.tensorflow.trainer")
    reduce = module.reduce_per_replica

    def reduce_in_each_worker(values: Any, strategy: Any, reduction: str) -> Any:
        is_mean = reduction in ("auto", "mean")
        if not is_mean or cluster.worker(strategy).count == 1:
            return reduce(values, strategy, reduction)
        return tf.nest.map_structure(
            lambda v: tf.reduce_mean(tf.stack(strategy.experimental_local_results(v)), axis=0),
            values,
        )

    module.reduce_per_replica = reduce_in_each_worker


def build_optimizer(model: keras.Model) -> None:
    """Makes the variables of a model's optimizer, if it has one and they are missing.

    Variables that appear while TensorFlow traces an update would have it trace everything twice.

    Args:
        model: A built `keras.Model`.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


def _build_optimizer_first(model: keras.Model) -> None:
    """Makes `fit` of a stock model trace an update once."""
    if "make_train_function" in vars(model):
        return
    make = model.make_train_function

    def make_train_function(force: bool = False) -> None:
        build_optimizer(model)
        make(force)

    model.make_train_function = make_train_function


def _free_graphs_with(model: keras.Model) -> None:
    """Makes the graphs of a stock model's `fit` and `evaluate` end with the model."""
    if "train_step" in vars(model):
        return

    def traced(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def step_and_free(data: Any) -> Any:
            with replica.tracing:
                return step(data)

        return step_and_free

    model.train_step, model.test_step = traced(model.train_step), traced(model.test_step)


def in_step(model: keras.Model, dataset: TokenizedDataset) -> TokenizedDataset:
    """Returns the passes of a dataset in the orders that belong to the steps of a model.

    A step of the optimizer is a batch. Its counter is saved and restored with the weights, by
    `keras.callbacks.BackupAndRestore` too, and so is the order of the data.

    Args:
        model: A `keras.Model` with or without an optimizer.
        dataset: `TokenizedDataset`.

    Returns:
        `TokenizedDataset`.
    """

    def position() -> int:
        optimizer = getattr(model, "optimizer", None)
        # A `LossScaleOptimizer` wraps the one that counts.
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        # `iterations` would count the accumulated gradients of several batches as one.
        if optimizer is None:
            return 0
        return int(keras.ops.convert_to_numpy(optimizer._iterations))  # noqa: SLF001

    return dataset.in_step_with(position)


def whole_batch_loss(
    model: keras.Model, loss: Tensor, y_pred: Tensor, sample_weight: Tensor | None
) -> Tensor:
    """Returns the loss of the batch of all replicas, of which Keras has computed one part.

    Keras averages the losses of replicas, and so do their gradients: parts with fewer rows, or
    fewer tokens that count, would weigh too much. For `compute_loss`.

    Args:
        model: The compiled model.
        loss: What `compute_loss` of Keras returns, divided by the number of replicas.
        y_pred: Predictions `(rows, ...)`.
        sample_weight: Weights `(rows, ...)`, or None.

    Returns:
        A scalar. Its value is the whole loss divided by the number of replicas, the same on all of
        them; its gradients add up to that of the whole loss.
    """
    # Keras has no public way to the losses that a model was compiled with.
    losses = keras.tree.flatten(model._compile_loss._user_loss)  # noqa: SLF001
    reductions = {getattr(x, "reduction", None) or "mean" for x in losses}
    # A sum has no denominator; a mean has the weights or the rows of this part.
    if "sum" in reductions:
        part = None
    elif "mean_with_sample_weight" in reductions and sample_weight is not None:
        part = tf.reduce_sum(tf.cast(sample_weight, tf.float32))
    else:
        part = tf.cast(tf.shape(keras.tree.flatten(y_pred)[0])[0], tf.float32)
    return replica.whole_loss(loss, part)


def _train_whole_batches(model: keras.Model) -> None:
    """Makes `fit` of a stock model learn on several replicas what it would on one device."""
    if "compute_loss" in vars(model):
        return
    compute_loss, build = model.compute_loss, model._maybe_symbolic_build  # noqa: SLF001

    def whole(
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        loss = compute_loss(x, y, y_pred, sample_weight, training)
        return whole_batch_loss(model, loss, y_pred, sample_weight)

    def built(iterator: Any = None, data_batch: Any = None) -> None:
        build(*replica.first_batch(model.distribute_strategy, iterator, data_batch))

    model.compute_loss, model._maybe_symbolic_build = whole, built  # noqa: SLF001
