"""A `tf.distribute` strategy for the devices of this machine or of several."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from typing import Any

import keras
import tensorflow as tf

from kerasrlhf.checks import require_choice

_KINDS = ("auto", "one", "mirrored", "workers")


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


@dataclasses.dataclass(frozen=True)
class Worker:
    """The place of this process among those that train together.

    index: int, from 0. The worker with index 0, the chief, writes files.
    count: int, at least 1.

    Example:
        >>> rlhf.cluster.Worker(index=1, count=2).is_chief
        False
    """

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether it is the worker that writes files."""
        return self.index == 0


def strategy(kind: str = "auto") -> tf.distribute.Strategy:
    """Returns a strategy for the devices that this process was started with.

    Build models, trainer and optimizer, and call `fit`, inside its scope.

    Args:
        kind: `"one"`, `"mirrored"`, `"workers"` or `"auto"`. `"one"` is TensorFlow's default
            strategy on one device, which lets whole updates compile into one program.
            `"mirrored"` has one replica per GPU of this machine or, without GPUs, one per logical
            CPU device. `"workers"` adds those of other processes: all run the same program, and
            `TF_CONFIG` or SLURM names them. `"auto"` is `"workers"` where there are other
            processes, `"mirrored"` where there are several devices, or else `"one"`. Defaults to
            `"auto"`.

    Returns:
        A `MultiWorkerMirroredStrategy`, the same one at every call; a `MirroredStrategy`; or the
        default strategy.

    Raises:
        ValueError: If `kind` is another one, `keras.distribution` is set, `TF_CONFIG` cannot be
            used, no other process is named for `"workers"`, or TensorFlow has already started.

    Example:
        >>> with rlhf.cluster.strategy().scope():
        ...     count = tf.distribute.get_strategy().num_replicas_in_sync
        >>> count >= 1
        True
        >>> rlhf.cluster.strategy("one").num_replicas_in_sync
        1
    """
    require_choice("strategy", kind, _KINDS)
    check_distribution()
    if kind == "workers" or (kind == "auto" and _named_workers() > 1):
        return _workers_strategy()
    if kind != "one":
        # CPU devices count only without a GPU.
        for device_kind in ("GPU", "CPU"):
            devices = [device.name for device in tf.config.list_logical_devices(device_kind)]
            if len(devices) > 1 or (devices and kind == "mirrored"):
                return tf.distribute.MirroredStrategy(devices)
            if devices:
                break
    return tf.distribute.get_strategy()


def _named_workers() -> int:
    """Returns how many processes `TF_CONFIG` or SLURM says that train together.

    Raises:
        ValueError: If `TF_CONFIG` cannot be used.
    """
    if os.environ.get("TF_CONFIG"):
        return sum(len(_tf_config()["cluster"].get(job, ())) for job in ("chief", "worker"))
    # Of the running step: inside `sbatch` without `srun` there is one task.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def worker(strategy: tf.distribute.Strategy | None = None) -> Worker:
    """Returns the place of this process among the workers of a strategy.

    Args:
        strategy: `tf.distribute.Strategy`. Defaults to None: the one of the scope that this is
            called in or, outside, the workers' strategy that this process has made.

    Example:
        >>> rlhf.cluster.worker()
        Worker(index=0, count=1)
    """
    chosen = tf.distribute.get_strategy() if strategy is None else strategy
    made = strategy is None and _workers_strategy.cache_info().currsize
    if made and not tf.distribute.has_strategy():
        chosen = _workers_strategy()
    if not isinstance(chosen, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker(0, 1)
    # TensorFlow has no public name for the place among chief and workers.
    inner = chosen.extended
    return Worker(inner._id_in_cluster, inner._num_workers)  # noqa: SLF001


def replicas() -> int:
    """Returns the number of devices that share a batch, in the scope that this is called in.

    Example:
        >>> rlhf.cluster.replicas()
        1
    """
    return tf.distribute.get_strategy().num_replicas_in_sync


def is_chief() -> bool:
    """Returns whether this process writes files: the first worker, or the only process.

    Example:
        >>> rlhf.cluster.is_chief()
        True
    """
    return worker().is_chief


def check_distribution() -> None:
    """Raises a `ValueError` if `keras.distribution` is set, which has no effect on TensorFlow."""
    chosen = keras.distribution.distribution()
    if chosen is not None:
        raise ValueError(
            f"`keras.distribution` is set to a {type(chosen).__name__}. With TensorFlow it has no "
            "effect: training would use one device. Undo it with "
            "`keras.distribution.set_distribution(None)`, and build and train inside `with "
            "rlhf.cluster.strategy().scope():`."
        )


@functools.cache
def _workers_strategy() -> tf.distribute.Strategy:
    """Returns the strategy of several processes: TensorFlow connects them once in a process."""
    if _named_workers() < 2:
        raise ValueError(
            '`strategy="workers"` needs the other processes: start them with `kerasrlhf launch '
            "--workers 2 -- COMMAND`, with `srun`, or with `TF_CONFIG` set in each. Found neither "
            "`TF_CONFIG` with several workers nor a SLURM step with several tasks."
        )
    resolver = None
    if not os.environ.get("TF_CONFIG"):
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise ValueError(
            "The strategy of several processes must be made before TensorFlow computes anything. "
            "Call `rlhf.cluster.strategy()` first, right after the imports."
        ) from error


def _tf_config() -> dict[str, Any]:
    """Returns `TF_CONFIG`, or raises a `ValueError` for one that no strategy can be made from."""
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        index, hosts = int(task["index"]), cluster[task["type"]]
        is_usable = task["type"] in ("chief", "worker") and 0 <= index < len(hosts)
    except (ValueError, KeyError, TypeError):
        is_usable = False
    if not is_usable:
        raise ValueError(
            "`TF_CONFIG` must be JSON such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
            '"index": 0}}, with the place of this process as `task`. Received: '
            f"{text!r}. Unset it to use the devices of this machine alone."
        )
    return config
