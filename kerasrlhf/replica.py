"""The only file with XLA compilation, `strategy.run` and sums over replicas.

Batches are whole tensors on the host. Under a `tf.distribute` strategy each replica takes its
share of the rows and runs an XLA-compiled function on it, and the results are joined to whole
tensors. Gradients are summed between compiled functions, because an optimizer cannot run inside
one. Without a strategy the optimizer is compiled too. Under a strategy of several processes every
process has the whole batch, and the results of all are joined in one collective operation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.ops import gradient_registry

from kerasrlhf import cluster, shares
from kerasrlhf.shares import in_batches as in_batches

P = ParamSpec("P")
R = TypeVar("R")
_DEFAULT_STRATEGY = tf.distribute.get_strategy()
_SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"


@functools.cache
def _order_by_memory() -> None:
    """Makes XLA order a CPU program for the least memory instead of the most concurrency.

    Matrix products fill the cores anyway: a PPO update is as fast and needs 150 MB less (6 layers,
    width 384). XLA reads its flags once, before it first compiles, and ends the process at an
    unknown flag, so only the tested release gets the flag. A setting of the user takes precedence.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # `XLA_FLAGS` may also be the name of a file with flags.
    names_a_file = flags and not flags.lstrip().startswith("-")
    if tf.__version__.startswith("2.21.") and _SCHEDULER not in flags and not names_a_file:
        os.environ["XLA_FLAGS"] = f"{flags} --{_SCHEDULER}=false".strip()


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the compiled functions of a model run.

    strategy: `tf.distribute.Strategy`. Rows are divided between its replicas.
    jit_compile: bool. Whether to compile with XLA.
    run_eagerly: bool. Whether to run Python line by line instead, to debug.

    Example:
        >>> Execution(tf.distribute.get_strategy(), jit_compile=False).is_distributed
        False
    """

    strategy: tf.distribute.Strategy
    jit_compile: bool = True
    run_eagerly: bool = False

    @property
    def is_distributed(self) -> bool:
        """Whether functions must run through the strategy, even with one mirrored replica."""
        return is_distributed(self.strategy)


def compiled(
    function: Callable[P, R], jit_compile: bool = True, run_eagerly: bool = False
) -> Callable[P, R]:
    """Returns `function` as a graph, with XLA if `jit_compile` is true.

    Args:
        function: callable of tensors.
        jit_compile: bool. Whether to compile with XLA. Defaults to True.
        run_eagerly: bool. Whether to return the function as it is, to debug. Defaults to False.

    Example:
        >>> def is_eager():
        ...     return tf.executing_eagerly()
        >>> graph = compiled(is_eager, jit_compile=False)
        >>> bool(graph()), compiled(is_eager, run_eagerly=True)()
        (False, True)
    """
    if run_eagerly:
        return function
    if jit_compile:
        _order_by_memory()

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with tracing:
            return function(*args, **kwargs)

    return tf.function(traced, jit_compile=jit_compile, autograph=False)


class _Traces:
    """Removes the gradient functions of graphs that are traced inside this context.

    TensorFlow registers the gradient of a `custom_gradient` in a graph under a unique name and
    keeps it, and the graph with it, until the process ends: some 15 MB for every trainer. Once the
    tape inside a function has computed its gradients, nothing needs them again. Threads of several
    replicas trace in turn, and the last one to leave removes the gradients of all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before: set[str] = set()

    def __enter__(self) -> None:
        with self._lock:
            # Outermost trace: remember what was registered before.
            if self._depth == 0:
                self._before = set(gradient_registry.list())
            self._depth += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                # Only what this package traced; Keras and users keep theirs.
                for name in set(gradient_registry.list()) - self._before:
                    if name.startswith("CustomGradient-"):
                        del gradient_registry._registry[name]  # noqa: SLF001 (no public way)


tracing = _Traces()


def is_distributed(strategy: tf.distribute.Strategy) -> bool:
    """Whether code must run through the strategy (true even with one mirrored replica)."""
    return not isinstance(strategy, type(_DEFAULT_STRATEGY))


def replicas(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of replicas that share a batch."""
    return strategy.num_replicas_in_sync


def gather(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Joins per-replica rows to whole-batch tensors; other tensors pass unchanged."""

    def whole(value: Any) -> Any:
        local = strategy.experimental_local_results(value)
        return local[0] if len(local) == 1 else tf.concat(local, axis=0)

    return tf.nest.map_structure(whole, values)


def _first(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Returns the values of this process' first replica, where all replicas have the same."""
    return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], values)


def first_batch(strategy: tf.distribute.Strategy, iterator: Any, batch: Any) -> tuple[Any, Any]:
    """Returns what Keras builds a model from, `(iterator, batch)`; on several replicas one batch.

    Keras itself would average the batch over replicas; masks have no average.
    """
    if iterator is None or not is_distributed(strategy):
        return iterator, batch
    # Take one batch of the epoch, joined over the replicas.
    for _, _, batches in iterator:
        return None, gather(strategy, next(batches))
    return None, batch


def _share(values: Any, context: Any) -> Any:
    """Returns the rows of the calling replica; scalars and None pass unchanged."""
    count = context.num_replicas_in_sync
    index = context.replica_id_in_sync_group

    def part(x: Any) -> Any:
        if x is None or x.shape.rank == 0 or count == 1:
            return x
        size = x.shape[0] // count
        return x[index * size : (index + 1) * size]

    return tf.nest.map_structure(part, values)


def _joined_by_all(values: Any, context: Any) -> Any:
    """Returns the rows of the replicas of all processes, by one collective operation."""
    packed, unpack = shares.packed(values)
    return unpack(context.all_gather(packed, axis=0))


def bytes_of_all(strategy: tf.distribute.Strategy) -> Callable[[bytes], list[bytes]]:
    """Returns a function that passes bytes of any number to all workers, and returns theirs.

    Every worker has to call it, and gets the bytes of all workers in their order.

    Args:
        strategy: `tf.distribute.MultiWorkerMirroredStrategy`.
    """
    workers = cluster.worker(strategy).count

    def on_replica(words: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_gather(tf.identity(words), axis=0)

    spec = tf.TensorSpec([None], tf.int32)
    run = tf.function(lambda words: strategy.run(on_replica, (words,)), input_signature=[spec])

    def exchange(own: bytes) -> list[bytes]:
        # The number of bytes, then the bytes in words of four.
        padded = own + bytes(-len(own) % 4)
        words = np.frombuffer(len(own).to_bytes(4, "little") + padded, "<i4")
        found = strategy.experimental_local_results(run(tf.constant(words)))[0].numpy()
        parts, start = [], 0
        while start < len(found):
            size = int(found[start])
            end = start + 1 + -(-size // 4)
            parts.append(found[start + 1 : end].astype("<i4").tobytes()[:size])
            start = end
        # All replicas of a worker say the same.
        return parts[:: len(parts) // workers]

    return exchange


def next_rows(values: Any) -> Any:
    """Returns the next row of each row in the batch of all replicas; the first follows the last.

    For a model that is called inside `strategy.run`, as Keras calls it in `fit`.

    Args:
        values: int32 tensor `(batch, ...)`, the calling replica's share.

    Example:
        >>> next_rows(tf.constant([[1], [2], [3]])).numpy().tolist()
        [[2], [3], [1]]
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tf.roll(values, -1, axis=0)
    own = tf.shape(values)[0]
    # Rows before this replica's share: shares of a last batch may differ in size.
    counts = context.all_gather(own[None], axis=0)
    first = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
    # Roll the whole batch, and cut out the replica's own rows.
    whole = context.all_gather(values, axis=0)
    return tf.roll(whole, -1, axis=0)[first : first + own]


def batch_mean(x: Any) -> tf.Tensor:
    """Returns the mean over a batch that replicas share; without a gradient.

    Example:
        >>> float(batch_mean([1.0, 3.0]))
        2.0
    """
    x = tf.stop_gradient(tf.convert_to_tensor(x))
    # Sum and count separately: a mean of means is wrong for unequal shares (M3).
    total, count = tf.reduce_sum(x), tf.cast(tf.size(x), x.dtype)
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        total, count = context.all_reduce(tf.distribute.ReduceOp.SUM, [total, count])
    return total / tf.maximum(count, 1.0)


def whole_loss(loss: tf.Tensor, part: tf.Tensor | None) -> tf.Tensor:
    """Returns the loss of a batch from the losses of the replicas' shares.

    For a model whose loss is computed inside `strategy.run`, as Keras computes it in `fit`.

    Args:
        loss: scalar, of the calling replica's share. For a mean, divided by the number of replicas,
            as Keras does; for a sum, undivided.
        part: float32 scalar, the denominator of the share's mean (its rows, or the sum of its
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
        # Weigh the mean of the share by its fraction of the whole denominator.
        whole = context.all_reduce(tf.distribute.ReduceOp.SUM, part)
        share = tf.cast(tf.math.divide_no_nan(part, whole), loss.dtype)
        # A share without rows has no mean and does not count.
        own = tf.where(part > 0, share * count * loss, 0.0)
    # The value is that of all replicas, the gradient that of the own share only.
    fixed = tf.stop_gradient(own)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, fixed) / count + own - fixed


def batch_rows(values: Any) -> tf.Tensor:
    """Returns the number of rows of a batch that replicas share, int32 scalar.

    Example:
        >>> int(batch_rows(tf.zeros((3, 2))))
        3
    """
    own = tf.shape(values)[0]
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return own
    return context.all_reduce(tf.distribute.ReduceOp.SUM, own)


def rowwise(function: Callable[..., R], execution: Execution) -> Callable[..., R]:
    """Compiles a function whose output rows depend only on the same input rows.

    Rows that replicas cannot share equally are filled up with copies, whose results are dropped.

    Args:
        function: maps nested tensors `(rows, ...)` to nested tensors `(rows, ...)`. Scalar inputs
            go to every replica whole.
        execution: `Execution`.
    """
    # XLA compiles what runs on one replica; joining the results stays outside.
    island = compiled(function, execution.jit_compile, execution.run_eagerly)
    if not execution.is_distributed:
        return island
    strategy = execution.strategy
    are_several = cluster.worker(strategy).count > 1

    def on_replica(*args: Any) -> Any:
        context = tf.distribute.get_replica_context()
        found = island(*_share(shares.padded(args, replicas(strategy)), context))
        return _joined_by_all(found, context) if are_several else found

    def on_replicas(*args: Any) -> Any:
        return strategy.run(on_replica, args=args)

    run = compiled(on_replicas, jit_compile=False, run_eagerly=execution.run_eagerly)

    def whole(*args: Any) -> Any:
        found = (_first if are_several else gather)(strategy, run(*args))
        units = shares.units(args) or 1
        shared = -(-units // replicas(strategy)) * replicas(strategy)
        return tf.nest.map_structure(lambda x: x[: x.shape[0] // shared * units], found)

    return whole


def dense_gradients(tape: tf.GradientTape, loss: tf.Tensor, values: list[Any]) -> list[tf.Tensor]:
    """Returns dense gradients of a scalar with respect to `values`, one for each.

    Gradients of embeddings are dense too, as XLA needs them. A gradient is zero if the scalar does
    not depend on the value.

    Args:
        tape: has recorded `loss` and watches `values`.
        loss: float32 scalar.
        values: list of `v.value` of Keras variables.
    """
    gradients = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(g) for g in gradients]


def update(
    gradients_and_sums: Callable[[Any], tuple[list[tf.Tensor], dict[str, tf.Tensor]]],
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    execution: Execution,
) -> Callable[[Any], dict[str, Any]]:
    """Returns a function that makes one optimizer step, the same on one device and on many.

    Args:
        gradients_and_sums: maps a batch (nested tensors `(rows, ...)`, and scalars) to gradients
            and nested sums, both already divided by counts over the whole batch, so that those of
            replicas add up.
        optimizer: built on `variables`.
        variables: list of Keras variables to update.
        execution: `Execution`. The rows of the batch are divided between its replicas, whose number
            must divide them.

    Returns:
        A function of the whole batch that updates the variables and returns a dict of the summed
        sums, with `policy/grad_norm`, the global norm of the gradients before any clipping, and
        `policy/skipped`: 1 if a gradient or a loss was not finite, so that nothing was updated,
        else 0.
    """
    jit_compile, eager = execution.jit_compile, execution.run_eagerly
    # `read` computes gradients, `apply` updates, `measure` decides in between.
    if execution.is_distributed:
        read, apply = _update_on_replicas(gradients_and_sums, optimizer, variables, execution)
    else:
        read = compiled(gradients_and_sums, jit_compile, eager)
        apply = compiled(functools.partial(_apply, optimizer, variables), jit_compile, eager)
    measure = compiled(_norm_and_soundness, jit_compile=False, run_eagerly=eager)

    def step(batch: Any) -> dict[str, Any]:
        # Two programs: a single one that may skip the update would hold all variables twice.
        gradients, sums = read(batch)
        # All replicas hold the same sums: measure those of the first.
        norm, is_sound = measure(_first(execution.strategy, gradients), sums)
        sound = bool(is_sound)
        if sound:
            apply(gradients)
        return {**sums, "policy/grad_norm": norm, "policy/skipped": float(not sound)}

    return step


def _apply(
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    gradients: list[tf.Tensor],
) -> None:
    optimizer.apply(gradients, variables)


def _update_on_replicas(
    gradients_and_sums: Callable[[Any], Any],
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    execution: Execution,
) -> tuple[Callable, Callable]:
    """Returns `read` and `apply` of `update` for several replicas."""
    strategy, eager = execution.strategy, execution.run_eagerly
    island = compiled(gradients_and_sums, execution.jit_compile, eager)

    def read_on_replica(batch: Any) -> Any:
        context = tf.distribute.get_replica_context()
        gradients, sums = island(_share(batch, context))
        # Sum outside the compiled function: XLA cannot reduce over replicas.
        return _summed_by_all(context, gradients, sums)

    def apply_on_replica(gradients: list[tf.Tensor]) -> None:
        with _as_summed(optimizer):
            optimizer.apply(gradients, variables)

    def read(batch: Any) -> Any:
        gradients, sums = strategy.run(read_on_replica, args=(batch,))
        return gradients, _first(strategy, sums)

    def apply(gradients: list[tf.Tensor]) -> None:
        strategy.run(apply_on_replica, args=(gradients,))

    graph = functools.partial(compiled, jit_compile=False, run_eagerly=eager)
    return graph(read), graph(apply)


def _summed_by_all(
    context: Any, gradients: list[tf.Tensor], sums: dict[str, tf.Tensor]
) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the sums over all replicas, by one collective operation of one dtype."""
    parts = [tf.cast(x, tf.float32) for x in [*gradients, *sums.values()]]
    whole = context.all_reduce(tf.distribute.ReduceOp.SUM, parts)
    totals = [tf.cast(x, g.dtype) for x, g in zip(whole, gradients, strict=False)]
    return totals, dict(zip(sums, whole[len(gradients) :], strict=True))


@contextlib.contextmanager
def _as_summed(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Makes an optimizer take gradients as they are: Keras would sum them over replicas again."""
    # Keras has no public way. An attribute of the instance takes precedence over the method.
    name = "_all_reduce_sum_gradients"
    object.__setattr__(optimizer, name, list)
    try:
        yield
    finally:
        # Replicas trace in threads that take turns: another one may have removed it.
        vars(optimizer).pop(name, None)


def _norm_and_soundness(
    gradients: list[tf.Tensor], sums: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the global norm of the gradients, and whether gradients and losses are finite."""
    norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients])
    losses = [x for name, x in sums.items() if name.startswith("loss/")]
    # A finite norm has finite elements. Squares of finite elements may overflow, so the elements
    # themselves are checked if, and only if, the norm is not finite.
    are_finite = tf.cond(
        tf.math.is_finite(norm), lambda: tf.constant(True), lambda: _are_finite(gradients)
    )
    return norm, tf.logical_and(are_finite, _are_finite(losses))


def _are_finite(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])


def all_finite(variables: list[keras.Variable], execution: Execution) -> Callable[[], bool]:
    """Returns a function that checks whether all values of variables are finite."""

    def read() -> tf.Tensor:
        return _are_finite([v.value for v in variables])

    # No XLA around mirrored variables: its program must not span devices.
    jit_compile = execution.jit_compile and not execution.is_distributed
    function = compiled(read, jit_compile, execution.run_eagerly)
    return lambda: bool(function())


def uniforms(seed: int, iteration: int, rows: int, length: int) -> tf.Tensor:
    """Returns the random numbers of one iteration, float32 `(rows, length, 2)` in [0, 1).

    They depend on seed, iteration and row only. Every row, and so every replica, has different
    numbers (N6), and a row samples the same tokens on one device as on many.

    Example:
        >>> a, b = uniforms(0, 3, 4, 5), uniforms(0, 3, 4, 5)
        >>> bool(tf.reduce_all(a == b)), bool(tf.reduce_all(a == uniforms(0, 4, 4, 5)))
        (True, False)
    """
    return tf.random.stateless_uniform((rows, length, 2), seed=(seed, iteration))


def stream(seed: int, use: str) -> int:
    """Returns the seed for a use outside training, with random numbers that training never uses.

    Args:
        seed: int.
        use: str, purpose of the numbers.

    Example:
        >>> stream(0, "generate") == stream(0, "generate") != stream(0, "best_of_n")
        True
    """
    sequence = np.random.SeedSequence((seed, zlib.crc32(use.encode())))
    # 63 bits: TensorFlow's seeds are signed.
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def accumulated(gradients_and_sums: Callable, parts: int) -> tuple[list[tf.Tensor], Any]:
    """Returns the sum of a function of the part's index over `parts` calls, one after the other.

    Args:
        gradients_and_sums: maps an int32 scalar to gradients and nested sums.
        parts: int. With 1 the function is called once, without a loop.
    """
    if parts == 1:
        return gradients_and_sums(0)
    total = gradients_and_sums(tf.constant(0))

    def body(index: tf.Tensor, total: Any) -> Any:
        return index + 1, tf.nest.map_structure(tf.add, total, gradients_and_sums(index))

    # A loop, not an unrolled sum: only one part's activations are in memory.
    return tf.while_loop(lambda index, _: index < parts, body, (tf.constant(1), total))[1]
