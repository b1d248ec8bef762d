"""Rows of batches: filled up to be divided, packed to be sent, and in batches of one size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def padding(count: int, parts: int) -> np.ndarray:
    """Returns row numbers that `parts` divides: all rows, then some of them again.

    Args:
        count: int, at least 1. Rows.
        parts: int, at least 1.

    Example:
        >>> padding(3, 2).tolist(), padding(1, 4).tolist()
        ([0, 1, 2, 0], [0, 0, 0, 0])
    """
    return np.arange(-(-count // parts) * parts) % count


def units(values: Any) -> int | None:
    """Returns the smallest number of rows of nested tensors, which divides that of all; or None.

    Example:
        >>> units({"prompts": tf.zeros((2, 5)), "responses": tf.zeros((4, 9))})
        2
    """
    sizes = [x.shape[0] for x in tf.nest.flatten(values) if x is not None and x.shape.rank]
    return min(sizes, default=None)


def padded(values: Any, parts: int) -> Any:
    """Returns nested rows that can be divided; those that are added are copies of the first.

    Args:
        values: nested tensors `(rows, ...)`, where the number of rows may be a multiple of that of
            others, as of a group's responses to a prompt. Scalars and None pass unchanged.
        parts: int, at least 1.

    Example:
        >>> prompts, responses = padded((tf.constant([1]), tf.constant([2, 3])), parts=2)
        >>> prompts.numpy().tolist(), responses.numpy().tolist()
        ([1, 1], [2, 3, 2, 3])
    """
    count = units(values)
    if count is None or count % parts == 0:
        return values
    order = padding(count, parts)

    def longer(x: Any) -> Any:
        if x is None or x.shape.rank == 0:
            return x
        # Consecutive rows of one unit stay together.
        size = x.shape[0] // count
        return tf.gather(x, (order[:, None] * size + np.arange(size)).reshape(-1))

    return tf.nest.map_structure(longer, values)


def packed(values: Any) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
    """Returns nested rows as one tensor, and the function that restores them.

    Collective operations know few dtypes, and each has a cost: all tensors travel as one.

    Args:
        values: nested tensors `(rows, ...)` of booleans, int32, and floats of at most 32 bits.

    Returns:
        An int32 tensor `(rows, columns)`, and a function of such a tensor with any number of rows.

    Example:
        >>> tensor, unpack = packed({"mask": tf.constant([True]), "x": tf.constant([[0.5, 2.0]])})
        >>> tensor.shape, unpack(tensor)["x"].numpy().tolist()
        (TensorShape([1, 3]), [[0.5, 2.0]])
    """
    tensors, count = tf.nest.flatten(values), units(values)
    columns = [tf.reshape(_as_integers(x), (count, -1)) for x in tensors]
    sizes = [x.shape[1] for x in columns]

    def unpack(whole: tf.Tensor) -> Any:
        parts = zip(tf.split(whole, sizes, axis=1), tensors, strict=True)
        return tf.nest.pack_sequence_as(values, [_from_integers(x, like) for x, like in parts])

    return tf.concat(columns, axis=1), unpack


def _as_integers(x: tf.Tensor) -> tf.Tensor:
    if x.dtype in (tf.bool, tf.int32):
        return tf.cast(x, tf.int32)
    if not x.dtype.is_floating or x.dtype.size > 4:
        raise ValueError(f"Rows of dtype {x.dtype.name} cannot be sent to other processes.")
    # Numbers of 32 bits keep their bits; shorter ones are exact in 32.
    return tf.bitcast(tf.cast(x, tf.float32), tf.int32)


def _from_integers(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    x = tf.reshape(x, (-1, *like.shape[1:]))
    if like.dtype in (tf.bool, tf.int32):
        return tf.cast(x, like.dtype)
    return tf.cast(tf.bitcast(x, tf.float32), like.dtype)


def in_batches(function: Callable, columns: Any, size: int) -> Any:
    """Applies a function to batches of one size and joins the results.

    The last batch is filled up with copies of its first row, so that a compiled function has one
    shape; results of the copies are dropped.

    Args:
        function: Maps a batch of every column to a list, an array or a tensor with one entry per
            row, or to a tuple of these.
        columns: A column, or a tuple of columns of equal length, with at least one row. The
            function gets lists of a column that is a list, and tensors of a column that is an
            array.
        size: int, at least 1. Rows of a batch.

    Returns:
        A list where the function returns lists, else an array; a tuple where it returns tuples.

    Example:
        >>> in_batches(lambda x: 2 * x, np.array([1, 2, 3]), size=2).tolist()
        [2, 4, 6]
        >>> in_batches(lambda words: [len(words)] * 2, ["a", "b", "c"], size=2)
        [2, 2, 2]
    """
    columns = columns if isinstance(columns, tuple) else (columns,)
    count = len(columns[0])
    # Row numbers, rounded up to whole batches; the rest repeats one row.
    order = np.arange(-(-count // size) * size)
    order[count:] = order[-size]
    found = [
        function(*(_picked(column, part) for column in columns)) for part in order.reshape(-1, size)
    ]
    if isinstance(found[0], tuple):
        return tuple(_joined(parts, count) for parts in zip(*found, strict=True))
    return _joined(found, count)


def _picked(column: Any, part: np.ndarray) -> Any:
    if isinstance(column, list):
        return [column[index] for index in part]
    return tf.convert_to_tensor(np.asarray(column)[part])


def _joined(parts: Sequence[Any], count: int) -> Any:
    if isinstance(parts[0], list):
        return list(itertools.chain.from_iterable(parts))[:count]
    return np.concatenate([np.asarray(part) for part in parts])[:count]
