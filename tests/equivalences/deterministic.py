"""Run by `test_deterministic.py`: in TensorFlow's deterministic mode, which a process cannot leave.

Prints how many arrays of two runs are equal to the bit, one of them cut and resumed.
"""

import contextlib
import pathlib
import sys
import tempfile

import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import helpers
import keras
import numpy as np
import trajectories

import kerasrlhf as rlhf

CRASH_IN = 2


def made():
    return trajectories.trainer(jit_compile=True, memory=rlhf.RolloutMemory(2))


def fit(trainer, folder, *callbacks):
    prompts = tf.data.Dataset.from_tensor_slices(
        tf.nest.map_structure(lambda *parts: np.concatenate(parts), *trajectories.BATCHES)
    ).batch(trajectories.ROWS)
    trainer.fit(prompts, callbacks=[*callbacks, rlhf.callbacks.Resume(folder)], verbose=0)
    variables = [*trainer.variables, *trainer.optimizer.variables]
    remembered = trainer.memory.arrays().values()
    return [*map(keras.ops.convert_to_numpy, variables), *remembered]


def main():
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    with tempfile.TemporaryDirectory() as folder:
        whole = fit(made(), pathlib.Path(folder) / "whole")
        cut = made()
        with contextlib.suppress(helpers.Crash):
            fit(cut, pathlib.Path(folder) / "cut", helpers.CrashIn(CRASH_IN))
        assert int(cut.iteration.numpy()) == CRASH_IN
        resumed = fit(made(), pathlib.Path(folder) / "cut")
    equal = [np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True)]
    print("equal", sum(equal), "of", len(equal))


if __name__ == "__main__":
    main()
