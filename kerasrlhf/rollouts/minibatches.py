"""Which rows an update reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops


def permutations(
    seed: int,
    iteration: int,
    rows: int,
    update_epochs: int,
    num_minibatches: int,
    group_size: int = 1,
    reuse: int = 0,
) -> np.ndarray:
    """Row indices of every update of an iteration: a fresh permutation each epoch (detail N17).

    The rows of a group stay together, in their order.

    Args:
        seed: int, of the run.
        iteration: int.
        rows: int, divisible by `num_minibatches * group_size`.
        update_epochs: int, passes over the rows.
        num_minibatches: int, updates a pass.
        group_size: int, rows that stand next to each other and belong together.
        reuse: int, which of the iteration's rollouts: 0 is the fresh one.

    Returns:
        Int32 `(update_epochs * num_minibatches, rows / num_minibatches)`, a function of the
        arguments alone.

    Example:
        >>> order = permutations(0, 1, rows=6, update_epochs=2, num_minibatches=3)
        >>> order.shape, sorted(order[:3].ravel().tolist())
        ((6, 2), [0, 1, 2, 3, 4, 5])
    """
    generator = np.random.default_rng((seed, iteration, reuse) if reuse else (seed, iteration))
    groups = [generator.permutation(rows // group_size) for _ in range(update_epochs)]
    epochs = [order[:, None] * group_size + np.arange(group_size) for order in groups]
    return np.stack(epochs).reshape(update_epochs * num_minibatches, -1).astype("int32")


def take(experience: Any, rows: np.ndarray) -> Any:
    """The given rows of every tensor of `experience`."""
    return tf.nest.map_structure(lambda x: None if x is None else tf.gather(x, rows), experience)


def part(minibatch: Any, index: Any, parts: int) -> Any:
    """The `index`-th of `parts` equal shares of the rows of every tensor, in the same structure.

    `index` may be a tensor.
    """
    if parts == 1:
        return minibatch

    def share(x):
        if x is None:
            return None
        size = x.shape[0] // parts
        return ops.slice(x, (index * size, *[0] * (len(x.shape) - 1)), (size, *x.shape[1:]))

    return tf.nest.map_structure(share, minibatch)
