"""Run by `test_kills.py`: one run without interruption, and one that is killed again and again.

    python killed.py FOLDER KILLS SEED [xla]

Every attempt is a process of its own, forked before TensorFlow has begun to compute. It tells of
its progress through a pipe, and SIGKILL comes at a random moment of a random iteration.
"""

import itertools
import json
import os
import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
from ppo_runs import Run

import kerasrlhf as rlhf

EPOCHS = 4
ITERATIONS = 2 * EPOCHS


class Progress(keras.callbacks.Callback):
    """Writes a byte before each iteration that is done, none for those that are passed over."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def on_train_batch_begin(self, batch, logs=None):
        if not self.model.replay.active:
            os.write(self.pipe, b".")


def train(folder, jit_compile, pipe):
    """What a script does that is started again after each interruption."""
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    run = Run(jit_compile=jit_compile, memory=rlhf.RolloutMemory(2, folder / "memory"))
    callbacks = [
        Progress(pipe),
        rlhf.callbacks.Resume(folder / "state", every=2),
        rlhf.callbacks.TensorBoard(folder / "logs", samples=1, text_freq=3),
        rlhf.callbacks.Samples(2, path=folder / "samples.jsonl", printer=lambda line: None),
    ]
    variables, history = run.fit(EPOCHS, callbacks, validate=True)
    np.savez(folder / "end.npz", *variables)
    (folder / "history.json").write_text(json.dumps(history))


def attempt(folder, jit_compile, kill_after=None, delay=0.0):
    """Trains in a process; returns how it ended, and the seconds that iterations took."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            train(folder, jit_compile, writing)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    moments = []
    while os.read(reading, 1):
        moments.append(time.perf_counter())
        if len(moments) == kill_after:
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, [b - a for a, b in itertools.pairwise(moments)]


def main(folder, kills, seed, jit_compile):
    chance = random.Random(seed)
    (folder / "whole").mkdir(parents=True)
    (folder / "killed").mkdir()
    status, seconds = attempt(folder / "whole", jit_compile)
    assert status == 0, "the run without interruption failed"
    typical = sorted(seconds)[len(seconds) // 2]
    ends = []
    for left in range(kills, 0, -1):
        # Few iterations each, so that the run is not over before the last kill.
        count = chance.randint(1, max(1, ITERATIONS // (left + 1)))
        delay = chance.uniform(0.0, 1.5 * typical)
        ends.append(attempt(folder / "killed", jit_compile, count, delay)[0])
    ends.append(attempt(folder / "killed", jit_compile)[0])
    print(json.dumps(ends))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "xla" in sys.argv)
