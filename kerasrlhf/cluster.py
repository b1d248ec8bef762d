"""A `tf.distribute` strategy for the devices of this machine."""

from __future__ import annotations

import itertools
import os

import tensorflow as tf


class _KeyBase:
    """Numbers from which a strategy counts its collective operations, others for every strategy.

    TensorFlow counts from 0 in all of them, and takes the second strategy of a process for the
    first: run a notebook's cell twice and it fails.
    """

    def __init__(self):
        self._strategies = itertools.count(1)

    def __get__(self, strategy, owner):
        return 0 if strategy is None else 100_000 * next(self._strategies)


tf.distribute.MirroredStrategy._collective_key_base = _KeyBase()


def strategy() -> tf.distribute.Strategy:
    """One replica a GPU or, without GPUs, one a logical CPU device.

    Build models, trainer and optimizer, and call `fit`, inside its scope.

    Returns:
        A `MirroredStrategy` over all devices; with a single device TensorFlow's default strategy,
        which lets whole updates compile into one program.

    Raises:
        ValueError: `TF_CONFIG` names several machines.

    Example:
        >>> with strategy().scope():
        ...     count = tf.distribute.get_strategy().num_replicas_in_sync
        >>> count >= 1
        True
    """
    if os.environ.get("TF_CONFIG"):
        raise ValueError(
            "TF_CONFIG is set, but training across machines is not supported: the batch is kept "
            "whole on one host. Unset TF_CONFIG to use the devices of this machine."
        )
    for kind in ("GPU", "CPU"):
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy(devices)
        if devices:
            break
    return tf.distribute.get_strategy()
