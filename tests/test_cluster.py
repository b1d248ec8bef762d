"""Which strategy is chosen, from the machine, from `TF_CONFIG` and by name."""

import json

import keras
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf import cluster

WORKERS = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}


@pytest.fixture(autouse=True)
def no_others(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def as_worker(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))


@pytest.mark.parametrize(("kind", "replicas"), [("auto", 4), ("mirrored", 4), ("one", 1)])
def test_a_kind_has_its_replicas(kind, replicas):
    found = rlhf.cluster.strategy(kind)
    assert found.num_replicas_in_sync == replicas
    assert isinstance(found, tf.distribute.MirroredStrategy) == (replicas > 1)
    assert cluster.worker(found) == cluster.Worker(index=0, count=1)


def test_a_cluster_of_one_is_this_machine(monkeypatch):
    as_worker(monkeypatch, {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})
    assert rlhf.cluster.strategy().num_replicas_in_sync == 4


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"strategy.*many"):
        rlhf.cluster.strategy("many")


def test_workers_need_others():
    with pytest.raises(ValueError, match="kerasrlhf launch"):
        rlhf.cluster.strategy("workers")


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        {"cluster": WORKERS},
        {"cluster": WORKERS, "task": {"type": "worker", "index": 2}},
        {"cluster": WORKERS, "task": {"type": "chief", "index": 0}},
        {"cluster": WORKERS | {"ps": ["c:1"]}, "task": {"type": "ps", "index": 0}},
    ],
    ids=str,
)
def test_a_configuration_without_a_place_is_refused(monkeypatch, config):
    as_worker(monkeypatch, config)
    with pytest.raises(ValueError, match="`TF_CONFIG` must be JSON such as"):
        rlhf.cluster.strategy()


def test_workers_come_before_everything_else(monkeypatch):
    """TensorFlow has started in this process."""
    as_worker(monkeypatch, {"cluster": WORKERS, "task": {"type": "worker", "index": 0}})
    tf.constant(1.0)
    with pytest.raises(ValueError, match="before TensorFlow computes anything"):
        rlhf.cluster.strategy()


@pytest.mark.parametrize(("tasks", "count"), [("3", 3), ("1", 1)])
def test_slurm_counts_the_tasks_of_a_step(monkeypatch, tasks, count):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    assert cluster._named_workers() == count


def test_keras_distribution_is_refused():
    """It trains on one device without a word."""
    devices = [device.name for device in tf.config.list_logical_devices()]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    try:
        with pytest.raises(ValueError, match=r"`keras.distribution` is set to a DataParallel"):
            rlhf.cluster.strategy()
    finally:
        keras.distribution.set_distribution(None)
