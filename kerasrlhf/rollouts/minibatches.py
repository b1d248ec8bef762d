"""Which rows an update reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops


def permutations(
    seed: int, iteration: int, rows: int, update_epochs: int, num_minibatches: int
) -> np.ndarray:
    """Row indices of every update of an iteration: a fresh permutation each epoch (detail N17).

    Args:
        seed: int, of the run.
        iteration: int.
        rows: int, divisible by `num_minibatches`.
        update_epochs: int, passes over the rows.
        num_minibatches: int, updates a pass.

    Returns:
        Int32 `(update_epochs * num_minibatches, rows / num_minibatches)`, a function of the
        arguments alone.

    Example:
        >>> order = permutations(0, 1, rows=6, update_epochs=2, num_minibatches=3)
        >>> order.shape, sorted(order[:3].ravel().tolist())
        ((6, 2), [0, 1, 2, 3, 4, 5])
    """
    generator = np.random.default_rng((seed, iteration))
    epochs = [generator.permutation(rows) for _ in range(update_epochs)]
    return np.stack(epochs).reshape(update_epochs * num_minibatches, -1).astype("int32")


def take(experience: Any, rows: np.ndarray) -> Any:
    """The given rows of every tensor of `experience`."""
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), experience)


def part(minibatch: Any, index: Any, size: int) -> list[Any]:
    """The `index`-th `size` rows of every tensor; `index` may be a tensor."""
    return [
        ops.slice(x, (index * size, *[0] * (len(x.shape) - 1)), (size, *x.shape[1:]))
        for x in minibatch
    ]
