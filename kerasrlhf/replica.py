"""The only file with XLA compilation, `strategy.run` and sums over replicas.

Batches live on the host as whole tensors. Under a `tf.distribute` strategy each replica takes
its share of the rows, runs an XLA-compiled function on it, and the results come back as whole
tensors; gradients are summed between compiled parts, because an optimizer cannot stand inside
one. Without a strategy everything, the optimizer included, is one compiled function.
"""

from __future__ import annotations

import functools
import math
import os
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_DEFAULT_STRATEGY = tf.distribute.get_strategy()
_SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"


@functools.cache
def _order_by_memory() -> None:
    """Has XLA order a CPU program for the least memory instead of the most concurrency.

    Matrix products fill the cores anyway: a PPO update is as fast and needs 150 MB less (6 layers,
    width 384). XLA reads its flags once, before it first compiles, and ends the process at a flag
    that it does not know, so only the release that was tried gets it. A setting of the user stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    names_a_file = flags and not flags.lstrip().startswith("-")
    if tf.__version__.startswith("2.21.") and _SCHEDULER not in flags and not names_a_file:
        os.environ["XLA_FLAGS"] = f"{flags} --{_SCHEDULER}=false".strip()


def compiled(function: Callable, jit_compile: bool = True) -> Callable:
    """`function` as a graph, XLA-compiled when `jit_compile` is true."""
    if jit_compile:
        _order_by_memory()
    return tf.function(function, jit_compile=jit_compile, autograph=False)


def line_by_line(function: Callable) -> Callable:
    """`function` with whatever is compiled inside it run as plain Python, to debug.

    Example:
        >>> def is_eager():
        ...     return tf.executing_eagerly()
        >>> graph = compiled(is_eager, jit_compile=False)
        >>> bool(graph()), line_by_line(graph)()
        (False, True)
    """

    def run(*args):
        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            return function(*args)
        finally:
            tf.config.run_functions_eagerly(before)

    return run


def is_distributed(strategy: tf.distribute.Strategy) -> bool:
    """Whether code must run through the strategy (true even with one mirrored replica)."""
    return not isinstance(strategy, type(_DEFAULT_STRATEGY))


def replicas(strategy: tf.distribute.Strategy) -> int:
    """How many replicas share a batch."""
    return strategy.num_replicas_in_sync


def gather(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Whole-batch tensors from per-replica rows; other tensors pass unchanged."""

    def whole(value):
        local = strategy.experimental_local_results(value)
        return local[0] if len(local) == 1 else tf.concat(local, axis=0)

    return tf.nest.map_structure(whole, values)


def first_batch(strategy: tf.distribute.Strategy, iterator: Any, batch: Any) -> tuple[Any, Any]:
    """What Keras builds a model from, `(iterator, batch)`: under several replicas one batch.

    Keras itself would average the batch over replicas; masks have no average.
    """
    if iterator is None or not is_distributed(strategy):
        return iterator, batch
    for _, _, batches in iterator:
        return None, gather(strategy, next(batches))
    return None, batch


def check_division(
    what: str,
    rows: int,
    *,
    minibatches: int | None = None,
    micro_batches: int | None = None,
    replicas: int,
) -> None:
    """Raises a `ValueError` when rows cannot be divided into parts of equal size.

    Args:
        what: str, what the rows are, for the message.
        rows: int, of a batch.
        minibatches, micro_batches, replicas: int, what they are divided between; None where there
            is no such division.

    Example:
        >>> check_division("prompts", 8, minibatches=2, micro_batches=1, replicas=4)
    """
    counts = {"minibatches": minibatches, "micro-batches": micro_batches}
    counts = {name: count for name, count in counts.items() if count is not None}
    multiple = math.prod(counts.values()) * replicas
    if rows % multiple:
        into = " of ".join(f"{count} {name}" for name, count in counts.items())
        into = f"into {into} on {replicas} replicas" if into else f"between {replicas} replicas"
        raise ValueError(
            f"A batch of {rows} {what} cannot be divided {into}. Use a batch size that is a "
            f"multiple of {multiple}, and drop a smaller last batch (`drop_remainder=True`)."
        )


def _share(rows: Any, context: Any) -> Any:
    """The rows of the calling replica; scalars and None pass unchanged."""
    count = context.num_replicas_in_sync
    index = context.replica_id_in_sync_group

    def part(x):
        if x is None or x.shape.rank == 0 or count == 1:
            return x
        check_division("rows", x.shape[0] or 0, replicas=count)
        size = tf.shape(x)[0] // count
        return x[index * size : (index + 1) * size]

    return tf.nest.map_structure(part, rows)


def next_rows(rows: Any) -> Any:
    """Each row's successor in the batch of all replicas, and the first row after the last.

    For a model that is called inside `strategy.run`, as Keras calls it in `fit`.

    Args:
        rows: int32 tensor `(batch, ...)`, the calling replica's share.

    Example:
        >>> next_rows(tf.constant([[1], [2], [3]])).numpy().tolist()
        [[2], [3], [1]]
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.roll(rows, -1, axis=0)
    own = tf.shape(rows)[0]
    counts = context.all_gather(own[None], axis=0)
    first = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
    whole = context.all_gather(rows, axis=0)
    return tf.roll(whole, -1, axis=0)[first : first + own]


def batch_mean(x: Any) -> tf.Tensor:
    """The mean over a batch of which every replica holds a share; without a gradient.

    Example:
        >>> float(batch_mean([1.0, 3.0]))
        2.0
    """
    x = tf.stop_gradient(tf.convert_to_tensor(x))
    total, count = tf.reduce_sum(x), tf.cast(tf.size(x), x.dtype)
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        total, count = context.all_reduce(tf.distribute.ReduceOp.SUM, [total, count])
    return total / tf.maximum(count, 1.0)


def whole_loss(loss: tf.Tensor, part: tf.Tensor | None) -> tf.Tensor:
    """The loss of a batch of which every replica has computed the loss of its share.

    For a model whose loss is computed inside `strategy.run`, as Keras computes it in `fit`.

    Args:
        loss: scalar. Of a mean, the share's own divided by the number of replicas, as losses of
            Keras are; of a sum, the share's own.
        part: float32 scalar, what the mean of the share is divided by (its rows, or the sum of its
            weights); None for a sum.

    Returns:
        A scalar: the value is that of the whole batch divided by the number of replicas; the
        gradients of all replicas add up to that of the whole batch.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return loss
    count = float(context.num_replicas_in_sync)
    own = loss
    if part is not None:
        whole = context.all_reduce(tf.distribute.ReduceOp.SUM, part)
        share = tf.cast(tf.math.divide_no_nan(part, whole), loss.dtype)
        # A share without rows has no mean, and no part in the loss.
        own = tf.where(part > 0, share * count * loss, 0.0)
    fixed = tf.stop_gradient(own)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, fixed) / count + own - fixed


def batch_rows(rows: Any) -> tf.Tensor:
    """How many rows the batch has of which every replica holds a share, int32 scalar.

    Example:
        >>> int(batch_rows(tf.zeros((3, 2))))
        3
    """
    own = tf.shape(rows)[0]
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return own
    return context.all_reduce(tf.distribute.ReduceOp.SUM, own)


def rowwise(function: Callable, strategy: tf.distribute.Strategy, jit_compile: bool) -> Callable:
    """A compiled version of a function whose output rows depend on the same input rows only.

    Args:
        function: maps nested tensors `(rows, ...)` to nested tensors `(rows, ...)`; scalar inputs
            are given to every replica whole.
        strategy: rows are divided between its replicas; their number must divide the rows.
        jit_compile: compile with XLA.
    """
    island = compiled(function, jit_compile)
    if not is_distributed(strategy):
        return island

    def on_replica(*args):
        return island(*_share(args, tf.distribute.get_replica_context()))

    @tf.function(autograph=False)
    def run(*args):
        return strategy.run(on_replica, args=args)

    return lambda *args: gather(strategy, run(*args))


def dense_gradients(
    loss_and_sums: Callable, variables: list[keras.Variable]
) -> tuple[list[tf.Tensor], Any]:
    """Gradients of a scalar with respect to `variables`, and what the function also returns.

    Args:
        loss_and_sums: no arguments; returns the scalar to differentiate and nested tensors.
        variables: trainable variables.

    Returns:
        Dense gradients, one a variable (embeddings included; zeros where the scalar does not
        depend on it), and the nested tensors.
    """
    values = [v.value for v in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        loss, sums = loss_and_sums()
    gradients = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(g) for g in gradients], sums


def update(
    gradients_and_sums: Callable,
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    strategy: tf.distribute.Strategy,
    jit_compile: bool,
    prepare: Callable = lambda *minibatch: minibatch,
) -> Callable:
    """One optimizer step as a function of a minibatch, the same on one device and on many.

    Args:
        gradients_and_sums: maps a minibatch (nested tensors `(rows, ...)`, and scalars) to
            gradients and nested sums, both already divided by counts over the whole minibatch, so
            that shares of replicas simply add up.
        optimizer: built on `variables`.
        variables: what is updated.
        strategy: the rows of the minibatch are divided between its replicas.
        jit_compile: compile with XLA.
        prepare: maps the whole minibatch to what `gradients_and_sums` takes, before the rows are
            divided: the place for counts over all rows.

    Returns:
        A function of the whole minibatch that updates the variables and returns the summed sums,
        a dict, with `policy/skipped`: 1 where a gradient or a loss was not finite, so that nothing
        was updated, else 0.
    """
    if is_distributed(strategy):
        read, apply = _update_on_replicas(
            gradients_and_sums, optimizer, variables, strategy, jit_compile, prepare
        )
    else:
        read = compiled(lambda *rows: gradients_and_sums(*prepare(*rows)), jit_compile)
        apply = compiled(lambda gradients: optimizer.apply(gradients, variables), jit_compile)
    is_sound = compiled(_is_sound, jit_compile=False)

    def step(*minibatch):
        # Two programs: one that could skip the update would hold all variables twice.
        gradients, sums = read(*minibatch)
        sound = bool(is_sound(strategy.experimental_local_results(gradients)[0], sums))
        if sound:
            apply(gradients)
        return {**sums, "policy/skipped": float(not sound)}

    return step


def _update_on_replicas(gradients_and_sums, optimizer, variables, strategy, jit_compile, prepare):
    """The two functions of `update` on several replicas: of a whole minibatch, of gradients."""
    island = compiled(gradients_and_sums, jit_compile)

    def read_on_replica(*minibatch):
        context = tf.distribute.get_replica_context()
        gradients, sums = island(*_share(minibatch, context))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients), sums

    def apply_on_replica(gradients):
        # The optimizer sums over replicas once more and clips before it does: clip the sum here,
        # then hand every replica its share, on which the second clipping has no effect.
        count = tf.distribute.get_replica_context().num_replicas_in_sync
        clipped = optimizer._clip_gradients(gradients)
        optimizer.apply([g / count for g in clipped], variables)

    @tf.function(autograph=False)
    def read(*minibatch):
        gradients, sums = strategy.run(read_on_replica, args=prepare(*minibatch))
        sums = tf.nest.map_structure(
            lambda x: strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None), sums
        )
        return gradients, sums

    @tf.function(autograph=False)
    def apply(gradients):
        strategy.run(apply_on_replica, args=(gradients,))

    return read, apply


def _is_sound(gradients: list[tf.Tensor], sums: dict) -> tf.Tensor:
    """Whether gradients and losses are finite, a bool scalar."""
    losses = [x for name, x in sums.items() if name.startswith("loss/")]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in [*gradients, *losses]])


def all_finite(
    variables: list[keras.Variable], strategy: tf.distribute.Strategy, jit_compile: bool
) -> Callable:
    """A function without arguments that returns whether all values of variables are finite."""

    def read():
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(v.value)) for v in variables])

    function = compiled(read, jit_compile and not is_distributed(strategy))
    return lambda: bool(function())


def uniforms(seed: int, iteration: int, rows: int, length: int) -> tf.Tensor:
    """The random numbers of one iteration, float32 `(rows, length, 2)` in [0, 1).

    They are a function of seed, iteration and row alone. Every row, and so every replica, has its
    own (N6), and the same row draws the same tokens on one device as on many.

    Example:
        >>> a, b = uniforms(0, 3, 4, 5), uniforms(0, 3, 4, 5)
        >>> bool(tf.reduce_all(a == b)), bool(tf.reduce_all(a == uniforms(0, 4, 4, 5)))
        (True, False)
    """
    return tf.random.stateless_uniform((rows, length, 2), seed=(seed, iteration))


def stream(seed: int, use: str) -> int:
    """Returns the seed of a use of its own, whose random numbers no training iteration has.

    Args:
        seed: int.
        use: str, what the numbers are for.

    Example:
        >>> stream(0, "generate") == stream(0, "generate") != stream(0, "best_of_n")
        True
    """
    sequence = np.random.SeedSequence((seed, zlib.crc32(use.encode())))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def accumulated(gradients_and_sums: Callable, parts: int) -> tuple[list[tf.Tensor], Any]:
    """The sum over `parts` calls of a function of the part's index, one after the other.

    Args:
        gradients_and_sums: maps an int32 scalar to gradients and nested sums.
        parts: int. With 1 the function is called once, without a loop.
    """
    if parts == 1:
        return gradients_and_sums(0)
    total = gradients_and_sums(tf.constant(0))

    def body(index, total):
        return index + 1, tf.nest.map_structure(tf.add, total, gradients_and_sums(index))

    return tf.while_loop(lambda index, _: index < parts, body, (tf.constant(1), total))[1]
