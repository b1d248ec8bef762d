"""Signals and Ctrl-C end a run between two iterations."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import helpers
import numpy as np
import pytest
import tensorflow as tf
from helpers import Crash, CrashIn
from ppo_runs import letters

import kerasrlhf as rlhf
from kerasrlhf.trainers import interruption

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers_are_restored():
    # A job in the background ignores some of them.
    inherited = [signal.getsignal(number) for number in SIGNALS]
    for number in SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, inherited, strict=True):
        signal.signal(number, handler)
    assert after == before


@pytest.fixture(scope="module")
def expected(built):
    return built.again().fit(2)


def send(number):
    os.kill(os.getpid(), number)


def hanging_reward(number, iteration=3):
    """Gets a signal in an iteration, and does not return of itself in time."""
    calls = []

    def reward(prompts, responses):
        calls.append(None)
        if len(calls) == iteration:
            send(number)
            time.sleep(60)
        return letters(prompts, responses)

    return reward


def in_update(run, patch, action, iteration=3):
    """Does something before the second update of an iteration."""
    step, calls = run.trainer.train_step, []

    def train_step(*args):
        calls.append(None)
        if len(calls) == 4 * (iteration - 1) + 2:
            action()
        return step(*args)

    patch.setattr(run.trainer, "train_step", train_step)


def saved_iteration(folder):
    return json.loads((folder / "resume.json").read_text())["iteration"]


def assert_goes_on(run, folder, expected, every=1):
    variables, history = run.fit(2, [rlhf.callbacks.Resume(folder, every=every)])
    assert history == expected[1]
    for ours, theirs in zip(variables, expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_last_finished_iteration(run, expected, number, every, tmp_path, capfd):
    run.again(hanging_reward(number))
    start = time.perf_counter()
    with pytest.raises(SystemExit) as stopped:
        run.fit(2, [rlhf.callbacks.Resume(tmp_path, every=every)])
    assert stopped.value.code == 128 + number
    assert time.perf_counter() - start < 30
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Stopped by {number.name}. The state after iteration 2 is in ")
    assert saved_iteration(tmp_path) == 2
    assert_goes_on(run.again(), tmp_path, expected, every)


@pytest.mark.parametrize(("every", "iteration"), [(1, 2), (4, 3)])
def test_updates_are_finished_where_something_would_be_lost(
    run, expected, every, iteration, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        in_update(run, patch, lambda: send(signal.SIGTERM))
        run.fit(2, [rlhf.callbacks.Resume(tmp_path, every=every)])
    assert saved_iteration(tmp_path) == iteration
    assert_goes_on(run.again(), tmp_path, expected, every)


def test_a_second_signal_does_not_wait(run, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        in_update(run, patch, lambda: [send(signal.SIGTERM), send(signal.SIGTERM)])
        run.fit(2, [rlhf.callbacks.Resume(tmp_path, every=4)])
    assert stopped.value.code == 143
    assert not (tmp_path / "resume.json").exists()  # Weights that have changed in part.
    assert capfd.readouterr().err == "Stopped by SIGTERM.\n"


def test_ctrl_c_in_a_notebook_leaves_the_trainer_as_after_an_iteration(
    run, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        in_update(run, patch, lambda: send(signal.SIGINT))
        run.fit(2, [rlhf.callbacks.Resume(tmp_path)])
    assert not isinstance(stopped.value, SystemExit)
    assert int(run.trainer.iteration.numpy()) == 3 == saved_iteration(tmp_path)
    assert_goes_on(run, tmp_path, expected)


def test_ctrl_c_without_resume_waits_for_the_updates_alone(run, expected, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        in_update(run, patch, lambda: send(signal.SIGINT))
        run.fit(2)
    assert int(run.trainer.iteration.numpy()) == 3
    run.again(hanging_reward(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stopped:
        run.fit(2)
    assert not isinstance(stopped.value, SystemExit)
    assert int(run.trainer.iteration.numpy()) == 2
    run.reward = letters
    variables, _ = run.fit(1)  # The second epoch, in the order of the data that belongs to it.
    for ours, theirs in zip(variables, expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_interrupt_that_python_code_raises_passes_through(run, expected, tmp_path):
    def reward(prompts, responses):
        raise KeyboardInterrupt("mine")

    run.fit(1, [rlhf.callbacks.Resume(tmp_path, every=2)])
    run.reward = reward
    with pytest.raises(KeyboardInterrupt, match="mine"):
        run.fit(2, [rlhf.callbacks.Resume(tmp_path, every=2)])
    run.reward = letters
    assert_goes_on(run, tmp_path, expected, every=2)


def test_handlers_are_restored_after_an_error_and_those_of_others_are_left(run, tmp_path):
    def theirs(number, frame):
        raise AssertionError

    seen = []

    def reward(prompts, responses):
        seen.append([signal.getsignal(number) for number in SIGNALS])
        return letters(prompts, responses)

    run.again(reward)
    default = signal.signal(signal.SIGTERM, theirs)
    try:
        with pytest.raises(Crash):
            run.fit(1, [rlhf.callbacks.Resume(tmp_path), CrashIn(1)])
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, default)
    term, interrupt, hangup = seen[0]
    assert term is theirs and interrupt == hangup != signal.SIG_DFL


def test_another_thread_than_the_main_one_can_train(run, tmp_path):
    thread = threading.Thread(target=run.fit, args=(1, [rlhf.callbacks.Resume(tmp_path)]))
    thread.start()
    thread.join()
    assert saved_iteration(tmp_path) == 2


def test_ctrl_c_ends_a_script_with_its_status_and_no_traceback():
    path = pathlib.Path(interruption.__file__)
    code = f"import runpy; raise runpy.run_path({str(path)!r})['InterruptedRun'](130)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_whether_a_run_is_saved_is_known_while_a_graph_is_traced(tmp_path):
    """A signal may arrive then, and its handler asks; also with a variable on two devices."""
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        made = helpers.ppo(update_epochs=1)
        made.compile(jit_compile=False)
        resume, found = rlhf.callbacks.Resume(tmp_path), []
        prompts = tf.data.Dataset.from_tensors(helpers.prompts([1, 2]))
        made.fit(prompts, callbacks=[resume], verbose=0)
    tf.function(lambda: found.append(resume._is_saved()))()
    assert found == [True]
