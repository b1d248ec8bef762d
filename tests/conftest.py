"""Shared setting of the tests: four logical CPU devices, one fixed seed, and one trajectory."""

import contextlib
import ctypes
import gc
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
# Most programs run a few times on tiny shapes: XLA takes a fifth as long to compile them.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 4,
)

# Graphs of a few small operations run once or twice are not worth optimizing; XLA does without.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

# What is imported stays, and graphs are many small objects that TensorFlow does not always free. To
# look at all of them again and again would take longer than many tests.
gc.freeze()
gc.set_threshold(50_000, 50, 1000)


@pytest.fixture(autouse=True, scope="module")
def garbage_is_collected_once_a_file():
    yield
    collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def garbage_is_collected_where_there_is_much():
    yield
    if resident() > collected["at"] + 400 * 2**20:
        collect()


collected = {"at": 0}


def collect():
    gc.collect()
    # Compilers leave much free memory to the process: glibc gives it back only if asked to.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    collected["at"] = resident()


def resident():
    """Bytes of this process in memory; 0 where Linux does not tell."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def plain():
    """The trajectory that others are compared with: graphs without XLA, one part a minibatch."""
    import trajectories  # after the devices are set

    return trajectories.run(trajectories.trainer())
