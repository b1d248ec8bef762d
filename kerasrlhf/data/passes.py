"""The batches of a dataset as a function of how many were read before.

A dataset that counts its own passes starts with the first one in every process. If the order is a
function of a number that training saves, an interrupted run continues with the order that it would
have had.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from kerasrlhf import replica
from kerasrlhf.types import Tensor


class Passes:
    """Passes over a dataset, each a function of the number of batches before it.

    Args:
        make: Function of an int64 scalar, the batches read before, to the `tf.data.Dataset` that
            comes next.
        count: int. Batches of a pass, as `tf.data.Dataset.cardinality` counts them.
        unit: int or None. Batches from the start of a pass to that of the next. Defaults to
            `count`.
        is_fixed: bool. Whether all passes are the same. Defaults to False.

    Attributes:
        count: The argument.
        unit: The argument, at least 1.
        is_fixed: The argument.

    Example:
        >>> ordered = Passes.shuffled({"x": [0, 1, 2, 3]}, rows=4, batch_size=2, seed=0, whole=True)
        >>> ordered.count, ordered.repeat(3).count
        (2, 6)
    """

    def __init__(
        self,
        make: Callable[[Any], tf.data.Dataset],
        count: int,
        unit: int | None = None,
        is_fixed: bool = False,
    ) -> None:
        self._make = make
        self.count = count
        self.unit = max(count if unit is None else unit, 1)
        self.is_fixed = is_fixed

    @classmethod
    def fixed(cls, dataset: tf.data.Dataset) -> Passes:
        """Returns passes that are all those of `dataset`."""
        return cls(lambda step: dataset, int(dataset.cardinality()), is_fixed=True)

    @classmethod
    def shuffled(cls, columns: Any, rows: int, batch_size: int, seed: int, whole: bool) -> Passes:
        """Returns passes over all rows in an order that is a function of the seed and the pass.

        `tf.data.Dataset.shuffle` mixes the global seed into its own, so that the order would depend
        on `keras.utils.set_random_seed`.

        Args:
            columns: A structure of arrays `(rows, ...)`.
            rows: int.
            batch_size: int. Rows of a batch.
            seed: int.
            whole: bool. Whether a last batch of fewer rows is left out.
        """
        # Convert to tensors once; every pass uses the same ones.
        columns = tf.data.Dataset.from_tensors(columns).get_single_element()
        count = rows // batch_size if whole else -(-rows // batch_size)

        def take(index: Tensor) -> Any:
            return tf.nest.map_structure(lambda column: tf.gather(column, index), columns)

        def make(step: Tensor) -> tf.data.Dataset:
            # Permute indices, not rows: the columns stay where they are.
            order = tf.data.Dataset.from_tensor_slices(_order(seed, step // max(count, 1), rows))
            return order.batch(batch_size, drop_remainder=whole).map(take)

        return cls(make, count)

    @classmethod
    def parts(cls, columns: Any, rows: int, edges: np.ndarray, seed: int | None) -> Passes:
        """Returns passes over a part of all rows, in orders as those of `shuffled`.

        Args:
            columns: A structure of arrays `(rows, ...)`.
            rows: int.
            edges: int64 array `(batches, 2)`. Where each batch begins and ends in the order.
            seed: int, or None for the order of the rows.
        """
        columns = tf.data.Dataset.from_tensors(columns).get_single_element()
        count, sizes = len(edges), {*(edges[:, 1] - edges[:, 0]).tolist()}

        def make(step: Tensor) -> tf.data.Dataset:
            number = step // max(count, 1)
            order = tf.range(rows) if seed is None else _order(seed, number, rows)

            def take(edge: Tensor) -> Any:
                index = order[edge[0] : edge[1]]
                # One size of all batches is a static one.
                index.set_shape([*sizes] if len(sizes) == 1 else [None])
                return tf.nest.map_structure(lambda column: tf.gather(column, index), columns)

            return tf.data.Dataset.from_tensor_slices(edges).map(take)

        return cls(make, count, is_fixed=seed is None)

    def then(self, transform: Callable[[tf.data.Dataset], tf.data.Dataset]) -> Passes:
        """Returns passes that a function of datasets transforms, such as `take` or `skip`."""
        # Apply the transformation to numbers first, to know how many batches it leaves.
        some = tf.data.Dataset.range(self.count if self.count >= 0 else 1)
        count = int(transform(some if self.count >= 0 else some.repeat()).cardinality())
        if self.is_fixed:
            return Passes.fixed(transform(self._make(0)))
        if count < 0:
            return Passes(lambda step: transform(self._make(step)), count, self.unit)
        # How many batches of the original belong to one transformed pass.
        before = self.unit if self.count >= 0 else count

        def make(step: Tensor) -> tf.data.Dataset:
            return transform(self._make(step // max(count, 1) * before))

        return Passes(make, count)

    def repeat(self, times: int | None = None) -> Passes:
        """Returns several passes as one, or endless passes, each with a different order."""
        if self.count < 0:
            return self

        def passed(number: Tensor) -> tf.data.Dataset:
            return self._make(number * self.unit)

        if times is None or times < 0:

            def endless(step: Tensor) -> tf.data.Dataset:
                # Start in the pass that `step` falls into, and skip its first batches.
                numbers = tf.data.Dataset.range(step // self.unit, tf.int64.max)
                return numbers.flat_map(passed).skip(step % self.unit)

            return Passes(endless, tf.data.INFINITE_CARDINALITY, self.unit)
        count = self.count * times

        def make(step: Tensor) -> tf.data.Dataset:
            # A repeated pass is `times` passes of the original, each in its own order.
            first = step // max(count, 1) * times
            return tf.data.Dataset.range(first, first + times).flat_map(passed)

        return Passes(make, count, is_fixed=self.is_fixed)

    def read(self, position: Callable[[], int]) -> tf.data.Dataset:
        """Returns a dataset that asks for the number of batches before it at every iteration.

        Args:
            position: Function without arguments that returns an int. It is called in a thread of
                `tf.data`.
        """
        # Equal passes need no position.
        if self.is_fixed:
            with _traced():
                return self._make(tf.constant(0, tf.int64))
        # TensorFlow keeps functions of a graph until the process ends, and with this one it would
        # keep the model whose steps it counts.
        is_method = inspect.ismethod(position)
        weak = weakref.WeakMethod(position) if is_method else weakref.ref(position)

        def step_before() -> np.int64:
            alive = weak()
            if alive is None:
                raise RuntimeError("The dataset no longer exists. Keep a reference to it.")
            return np.int64(alive())

        def begin(_: Tensor) -> tf.data.Dataset:
            # Called when an iteration starts, not when the graph is built.
            step = tf.numpy_function(step_before, [], tf.int64)
            step.set_shape([])
            return self._make(step)

        with _traced():
            dataset = tf.data.Dataset.range(1).flat_map(begin)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(self.count))
        dataset._kerasrlhf_position = position  # noqa: SLF001 (it lives as long as the dataset)
        return dataset


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Keeps TensorFlow from warning, while it runs functions line by line, that datasets do not."""
    line_by_line = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(line_by_line)


def _order(seed: int, number: Tensor, rows: int) -> Tensor:
    """Returns a permutation, int64 `(rows,)`."""
    # Rows are not shuffled with the numbers that sample their responses.
    stream = tf.constant(replica.stream(seed, "data"), tf.int64)
    key = tf.stack([stream, tf.cast(number, tf.int64)])
    bits = tf.random.stateless_uniform([rows], key, None, None, tf.int64)
    return tf.argsort(bits, stable=True)
