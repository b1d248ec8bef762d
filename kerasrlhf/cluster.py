"""A `tf.distribute` strategy for the devices of this machine."""

from __future__ import annotations

import itertools
import os

import tensorflow as tf


class _KeyBase:
    """Start numbers of a strategy's collective operations, different for every strategy.

    TensorFlow starts at 0 in all of them and mistakes the second strategy of a process for the
    first: a notebook cell that builds a strategy would fail when it runs a second time.
    """

    def __init__(self) -> None:
        self._strategies = itertools.count(1)

    def __get__(self, strategy: object | None, owner: type) -> int:
        return 0 if strategy is None else 100_000 * next(self._strategies)


# TensorFlow has no public name for these numbers.
tf.distribute.MirroredStrategy._collective_key_base = _KeyBase()  # noqa: SLF001


def strategy() -> tf.distribute.Strategy:
    """Returns a strategy with one replica per GPU or, without GPUs, one per logical CPU device.

    Build models, trainer and optimizer, and call `fit`, inside its scope.

    Returns:
        A `MirroredStrategy` over all devices; with a single device TensorFlow's default strategy,
        which lets whole updates compile into one program.

    Raises:
        ValueError: If `TF_CONFIG` names several machines.

    Example:
        >>> with rlhf.cluster.strategy().scope():
        ...     count = tf.distribute.get_strategy().num_replicas_in_sync
        >>> count >= 1
        True
    """
    if os.environ.get("TF_CONFIG"):
        raise ValueError(
            "TF_CONFIG is set, but training across machines is not supported: the batch is kept "
            "whole on one host. Unset TF_CONFIG to use the devices of this machine."
        )
    # CPU devices count only without a GPU.
    for kind in ("GPU", "CPU"):
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy(devices)
        if devices:
            break
    return tf.distribute.get_strategy()
