"""A resumed run is the run that was never interrupted."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Crash, CrashIn
from ppo_runs import TEXTS, Run, letters

import kerasrlhf as rlhf


def crashing_reward(iteration):
    calls = []

    def reward(prompts, responses):
        calls.append(None)
        if len(calls) == iteration:
            raise Crash
        return letters(prompts, responses)

    return reward


def assert_same(result, other):
    (variables, history), (other_variables, other_history) = result, other
    for a, b in zip(variables, other_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert history.keys() == other_history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, other_history[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_resumed_is_uninterrupted_on_two_replicas(tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        run = Run()
        assert run.trainer.distribute_strategy.num_replicas_in_sync == 2
        expected = run.fit(2, validate=True)
        run.again().fit(1, [rlhf.callbacks.Resume(tmp_path)], validate=True)
        again = run.again().fit(2, [rlhf.callbacks.Resume(tmp_path)], validate=True)
    assert_same(again, expected)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("how", ["callback", "reward"])
def test_a_run_that_died_in_the_third_iteration(run, tmp_path, how, every):
    expected = run.fit(2)
    callbacks = [rlhf.callbacks.Resume(tmp_path, every=every)]
    callbacks = [CrashIn(3), *callbacks] if how == "callback" else callbacks
    with pytest.raises(Crash):
        run.again(crashing_reward(3) if how == "reward" else None).fit(2, callbacks)
    assert json.loads((tmp_path / "resume.json").read_text())["iteration"] == 2
    assert_same(run.again().fit(2, [rlhf.callbacks.Resume(tmp_path, every=every)]), expected)


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_on_a_stream_goes_on_in_the_middle_of_a_pass(run, tmp_path, every, monkeypatch):
    """Six iterations of two epochs, each a pass over a file that is shuffled in a small buffer."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [*TEXTS, "q", "rs"]))
    preprocessor = run.trainer.actor.causal_lm.preprocessor
    orders = []

    def begun(iteration=None):
        run.again()
        orders.append([])

        def reward(prompts, responses):
            orders[-1].append(list(prompts))
            if len(orders[-1]) == iteration:
                raise Crash
            return letters(prompts, responses)

        run.reward = reward
        stream = rlhf.data.Stream(file, buffer_size=3)
        prompts = rlhf.data.prompts(stream, preprocessor, 4, drop_remainder=False, seed=1)
        monkeypatch.setattr(run, "prompts", prompts)
        return run

    expected = begun().fit(2)
    resume = rlhf.callbacks.Resume(tmp_path / "state", every=every)
    with pytest.raises(Crash):
        begun(5).fit(2, [resume])
    again = begun().fit(2, [rlhf.callbacks.Resume(tmp_path / "state", every=every)])
    assert_same(again, expected)
    # The file is read in another order in each pass, and the rest of the second one once more.
    whole, _, rest = orders
    assert len(whole) == 6 and whole[:3] != whole[3:]
    assert rest == whole[4:]


def test_the_same_epochs_again_do_nothing_but_show_the_history(run, tmp_path):
    expected = run.fit(2, [rlhf.callbacks.Resume(tmp_path)], validate=True)
    run.again(crashing_reward(1))
    result = run.fit(2, [rlhf.callbacks.Resume(tmp_path)], validate=True)
    assert_same(result, expected)
    assert result[1] == expected[1]
    assert not run.trainer.replay.active


def test_evaluating_after_a_replay_is_done_anew(run, tmp_path):
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)], validate=True)
    run.again().fit(1, [rlhf.callbacks.Resume(tmp_path)], validate=True)
    run.reward = crashing_reward(1)
    with pytest.raises(Crash):
        run.trainer.evaluate(run.held_out, verbose=0)


def test_stopping_early_is_repeated_from_the_records(run, tmp_path):
    def callbacks():
        stop = keras.callbacks.EarlyStopping("val_kl", mode="min", patience=1, min_delta=100.0)
        return [stop, rlhf.callbacks.Resume(tmp_path)]

    expected = run.fit(5, callbacks()[:1], validate=True)
    assert len(expected[1]["val_kl"]) == 2
    run.again().fit(1, callbacks(), validate=True)
    assert_same(run.again().fit(5, callbacks(), validate=True), expected)


def test_validation_that_the_first_run_did_not_have(run, tmp_path):
    run.fit(2, [rlhf.callbacks.Resume(tmp_path)])
    _, history = run.again().fit(3, [rlhf.callbacks.Resume(tmp_path)], validate=True)
    # Nothing is known of the first epoch; the state is that of the end of the second.
    assert len(history["score"]) == 3 and len(history["val_score"]) == 2


def test_fewer_epochs_than_were_done_end_the_replay(run, tmp_path):
    run.fit(2, [rlhf.callbacks.Resume(tmp_path)])
    run.again().fit(1, [rlhf.callbacks.Resume(tmp_path)])
    assert not run.trainer.replay.active
    assert int(run.trainer.iteration.numpy()) == 4


def test_a_run_without_a_state_has_records_of_its_own(run, tmp_path):
    run.fit(1)
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    state = json.loads((tmp_path / "resume.json").read_text())
    assert (state["iteration"], len(state["records"])) == (4, 2)


def test_the_state_holds_the_trained_variables_alone(run, tmp_path):
    run.fit(1, [rlhf.callbacks.Resume(tmp_path, every=2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "resume-00000002.npz",
        "resume.json",
    ]
    trainer = run.trainer
    # Iteration, KL coefficient and score moments come on top, neither reference nor reward.
    expected = len(trainer.actor.variables) + 3 + len(trainer.optimizer.variables)
    with np.load(tmp_path / "resume-00000002.npz") as arrays:
        assert len(arrays.files) == expected


def test_the_previous_state_stays_until_the_new_one_is_complete(run, tmp_path, monkeypatch):
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(file, **arrays):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        run.again().fit(2, [rlhf.callbacks.Resume(tmp_path)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bfloat16_is_kept_exactly(tmp_path):
    run = Run(dtype="bfloat16", optimizer=keras.optimizers.SGD(0.1, momentum=0.5))
    variables, _ = run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    again, _ = run.again().fit(1, [rlhf.callbacks.Resume(tmp_path)])
    assert {str(v.dtype) for v in variables} >= {"bfloat16", "float32"}
    for a, b in zip(variables, again, strict=True):
        np.testing.assert_array_equal(a, b)


OTHERS = {
    "seed": ({"seed": 1}, "its seed is 0, and here it is 1"),
    "optimizer": ({"optimizer": "sgd"}, "its optimizer is 'Adam', and here it is 'SGD'"),
    "shape": ({"vocab": 20}, r"'embeddings' \[\[23, 8\]"),
    "number of variables": ({"lora": True}, "variables, and here are"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_state_of_another_run_is_refused(run, tmp_path, case):
    options, message = OTHERS[case]
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    if options.get("optimizer"):
        options = {"optimizer": keras.optimizers.SGD(0.1)}
    with pytest.raises(ValueError, match=message):
        Run(**options).fit(1, [rlhf.callbacks.Resume(tmp_path)])


def test_a_state_of_another_trainer_is_refused(run, tmp_path):
    try:
        rlhf.PPO.__name__ = "GRPO"
        run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    finally:
        rlhf.PPO.__name__ = "PPO"
    with pytest.raises(ValueError, match="its trainer is 'GRPO', and here it is 'PPO'"):
        run.fit(1, [rlhf.callbacks.Resume(tmp_path)])


def test_a_missing_weights_file_is_named(run, tmp_path):
    run.fit(1, [rlhf.callbacks.Resume(tmp_path, every=2)])
    (tmp_path / "resume-00000002.npz").unlink()
    with pytest.raises(ValueError, match=r"resume-00000002.npz.*missing"):
        run.fit(1, [rlhf.callbacks.Resume(tmp_path)])


def test_another_kind_of_model_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="BackupAndRestore"):
        model.fit(
            np.ones((2, 1)),
            np.ones((2, 1)),
            verbose=0,
            callbacks=[rlhf.callbacks.Resume(tmp_path)],
        )


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_every_is_checked(tmp_path, value):
    with pytest.raises(ValueError, match="every"):
        rlhf.callbacks.Resume(tmp_path, every=value)
