"""What TensorBoard reads from the event files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Crash, CrashIn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)

import kerasrlhf as rlhf
from kerasrlhf.callbacks.tensorboard import last_steps, markdown_table


def read(folder, accumulator=EventAccumulator):
    """Tag -> [(step, value)] as TensorBoard shows them."""
    events = accumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def steps(entries):
    return [step for step, _ in entries]


def test_statistics_validation_and_samples_of_a_run(run, tmp_path):
    _, history = run.fit(2, [rlhf.callbacks.TensorBoard(tmp_path, samples=2)], validate=True)
    found = read(tmp_path)
    statistics = set(run.trainer.statistics)
    assert {name.split("/")[0] for name in statistics} >= {"objective", "policy", "value", "loss"}
    assert set(found) == statistics | {"val/score", "val/kl", "val/length", "samples"}
    assert all(steps(found[name]) == [1, 2, 3, 4] for name in [*statistics, "samples"])
    assert found["objective/score"][-1][1] == pytest.approx(
        run.trainer.statistics["objective/score"]
    )
    assert steps(found["val/score"]) == [2, 4]
    np.testing.assert_allclose([v for _, v in found["val/score"]], history["val_score"], rtol=1e-6)
    table = found["samples"][-1][1].item().decode()
    assert len(table.splitlines()) == 2 + 2
    assert run.trainer.last.episodes.responses[0] in table


def test_frequencies(run, tmp_path):
    callback = rlhf.callbacks.TensorBoard(tmp_path, text_freq=3, scalar_freq=2)
    run.fit(2, [callback])
    found = read(tmp_path)
    assert steps(found["samples"]) == [3]
    assert steps(found["objective/kl"]) == [2, 4]


def test_no_samples_no_tables(run, tmp_path):
    run.fit(1, [rlhf.callbacks.TensorBoard(tmp_path, samples=0)])
    assert "samples" not in read(tmp_path)


@pytest.mark.parametrize("resume_first", [True, False])
def test_a_resumed_run_has_every_step_once(run, tmp_path, resume_first):
    def callbacks():
        both = [
            rlhf.callbacks.Resume(tmp_path, every=2),
            rlhf.callbacks.TensorBoard(tmp_path, samples=1),
        ]
        return both if resume_first else both[::-1]

    with pytest.raises(Crash):
        run.fit(3, [*callbacks(), CrashIn(3)], validate=True)
    assert steps(read(tmp_path)["objective/kl"]) == [1, 2, 3]
    run.again().fit(3, callbacks(), validate=True)
    found = read(tmp_path)
    assert steps(found["objective/kl"]) == steps(found["samples"]) == [1, 2, 3, 4, 5, 6]
    assert steps(found["val/score"]) == [2, 4, 6]
    run.again().fit(3, callbacks(), validate=True)  # passes over everything
    assert steps(read(tmp_path)["val/score"]) == [2, 4, 6]


def test_no_step_is_lost_between_two_callbacks(run, tmp_path):
    """`Resume` stands before the callback that ends the run, and TensorBoard behind it."""
    both = [rlhf.callbacks.Resume(tmp_path), rlhf.callbacks.TensorBoard(tmp_path, samples=0)]
    with pytest.raises(Crash):
        run.fit(2, [both[0], CrashIn(2), both[1]])
    run.again().fit(2, both)
    assert steps(read(tmp_path)["objective/kl"]) == [1, 2, 3, 4]


def test_a_new_run_takes_the_place_of_an_older_one(run, tmp_path):
    run.fit(2, [rlhf.callbacks.TensorBoard(tmp_path)])
    run.again().fit(1, [rlhf.callbacks.TensorBoard(tmp_path)])
    shown = PluginEventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    shown.Reload()  # what the pages of TensorBoard are made from
    assert [e.step for e in shown.Tensors("objective/kl")] == [1, 2]
    assert last_steps(tmp_path)["objective/kl"] == 2


def test_event_files_of_one_folder_are_of_different_seconds(run, tmp_path):
    for _ in range(2):
        run.again().fit(1, [rlhf.callbacks.TensorBoard(tmp_path, samples=0)])
    first, second = (int(path.name.split(".")[3]) for path in tmp_path.iterdir())
    assert first != second


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(run, tmp_path):
    run.fit(1, [rlhf.callbacks.TensorBoard(tmp_path, samples=0)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    steps = last_steps(tmp_path)
    assert steps["objective/kl"] == 2 and min(steps.values()) == 1


def test_another_model_writes_its_logs(tmp_path):
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 1), "float32")
    callback = rlhf.callbacks.TensorBoard(tmp_path)
    model.fit(x, x, 4, epochs=2, validation_data=(x, x), callbacks=[callback], verbose=0)
    found = read(tmp_path)
    assert set(found) == {"train/loss", "val/loss"}
    assert steps(found["train/loss"]) == [1, 2, 3, 4]
    assert steps(found["val/loss"]) == [2, 4]


def test_texts_cannot_break_the_table():
    row = {"prompt": "a\n| b", "response": "*x* <script>", "score": 1, "raw_score": 1, "kl": 0}
    last = markdown_table([row]).splitlines()[-1]
    assert last.count("|") == 6
    assert "<script>" not in last and "*" not in last


@pytest.mark.parametrize(
    ("name", "value"), [("samples", -1), ("text_freq", 0), ("scalar_freq", 0.5)]
)
def test_arguments_are_checked(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        rlhf.callbacks.TensorBoard(tmp_path, **{name: value})
