"""`fit` is that of Keras: epochs, history, validation, stock callbacks; texts and shaping."""

import re

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.language_modeling import LanguageModeling
from kerasrlhf.types import Sampler

SAMPLER = Sampler(length=3)
ROWS = helpers.prompts([1, 2, 3, 4] * 3)
PROMPTS = tf.data.Dataset.from_tensor_slices(ROWS).batch(4)  # three iterations
SHOWN = ["score", "kl", "kl_coef", "length", "clipfrac", "loss"]
VALIDATED = {"val_score", "val_kl", "val_length"}


def trainer(rate=3e-3, run_eagerly=False, **options):
    options = {"sampler": SAMPLER, "kl": FixedKL(0.1), "update_epochs": 1, **options}
    made = helpers.ppo(helpers.actor(num_layers=2), **options)
    made.compile(
        keras.optimizers.Adam(rate, epsilon=1e-5), jit_compile=False, run_eagerly=run_eagerly
    )
    return made


def seen(made):
    """A callback that keeps every iteration's statistics and logs."""
    record = []
    return record, keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: record.append((dict(made.statistics), dict(logs)))
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("fit")
    made = trainer()
    record, callback = seen(made)
    checkpoint = keras.callbacks.ModelCheckpoint(
        folder / "best.weights.h5", save_weights_only=True, monitor="val_score", mode="max"
    )
    history = made.fit(
        PROMPTS,
        epochs=2,
        validation_data=PROMPTS.take(2),
        callbacks=[callback, checkpoint],
        verbose=0,
    )
    return made, record, history.history, folder


def test_a_batch_of_prompts_is_an_iteration(fitted):
    made, record, history, _ = fitted
    assert len(record) == 2 * 3 == int(made.iteration.numpy())
    assert {*history} == {*SHOWN} | VALIDATED
    assert all(len(values) == 2 and np.isfinite(values).all() for values in history.values())


def test_epoch_logs_are_means_over_its_iterations(fitted):
    _, record, history, _ = fitted
    places = {"loss": "loss/total", "clipfrac": "policy/clipfrac"}
    for name in SHOWN:
        entries = [entry[places.get(name, f"objective/{name}")] for entry, _ in record]
        for epoch in range(2):
            mean = np.mean(entries[3 * epoch : 3 * epoch + 3])
            assert history[name][epoch] == pytest.approx(mean, abs=1e-5), name
    assert len({entry["objective/score"] for entry, _ in record}) == 6


def test_the_progress_bar_shows_the_score_first_and_the_loss_last(capsys):
    """Numbers of each iteration, and at the end those of the history: means of the epoch."""
    made = trainer()
    made.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    record, callback = seen(made)
    history = made.fit(PROMPTS, validation_data=PROMPTS.take(1), callbacks=[callback]).history
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    bars = [dict(re.findall(r" (\w+): (\S+)", line)) for line in lines]
    *iterations, epoch = [bar for bar in bars if bar]
    assert [*iterations[0]] == [*iterations[-1]] == SHOWN
    assert [*epoch] == [*SHOWN, "val_score", "val_kl", "val_length"]
    for bar, (statistics, _) in ((iterations[0], record[0]), (iterations[-1], record[-1])):
        assert float(bar["score"]) == pytest.approx(statistics["objective/score"], abs=1e-3)
    assert float(epoch["score"]) == pytest.approx(history["score"][0], abs=1e-3)
    assert history["score"][0] != pytest.approx(record[-1][0]["objective/score"], abs=0.01)


def test_checkpoints_of_keras_are_written(fitted):
    _, _, _, folder = fitted
    fresh = trainer()
    fresh.load_weights(folder / "best.weights.h5")
    assert int(fresh.iteration.numpy()) in (3, 6)


def test_validation_learns_nothing_and_draws_the_same_every_time(fitted):
    made, _, history, _ = fitted
    weights = [np.array(w) for w in made.weights]
    first = made.evaluate(PROMPTS.take(2), verbose=0, return_dict=True)
    again = made.evaluate(PROMPTS.take(2), verbose=0, return_dict=True)
    assert {f"val_{name}" for name in first} == VALIDATED and first == again
    for name, value in first.items():
        assert value == pytest.approx(history[f"val_{name}"][-1], abs=1e-5)
    for weight, former in zip(made.weights, weights, strict=True):
        np.testing.assert_array_equal(weight, former)


def test_steps_per_epoch_go_through_the_data():
    made = trainer()
    record, callback = seen(made)
    history = made.fit(
        PROMPTS.repeat(), epochs=2, steps_per_epoch=2, callbacks=[callback], verbose=0
    )
    assert len(record) == 4 and len(history.history["score"]) == 2


def test_stock_callbacks_can_stop_a_run():
    made = trainer(rate=0.0)
    stop = keras.callbacks.EarlyStopping(monitor="val_score", mode="max", patience=1)
    history = made.fit(
        PROMPTS, epochs=5, validation_data=PROMPTS.take(1), callbacks=[stop], verbose=0
    ).history
    assert stop.stopped_epoch == 1 and int(made.iteration.numpy()) == 6
    # The policy stands still, so that the same random numbers give the same validation.
    assert history["val_score"][0] == history["val_score"][1]
    assert history["score"][0] != history["score"][1]


def test_a_callback_can_set_the_learning_rate():
    """N5."""
    made = trainer(run_eagerly=True)
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * (1 - epoch / 2))
    made.fit(PROMPTS.take(1), epochs=2, callbacks=[schedule], verbose=0)
    assert float(made.optimizer.learning_rate) == pytest.approx(1.5e-3)


def test_records_reach_the_reward_function():
    """Columns of the records by name, and the texts."""
    received = []

    def reward(prompts, responses, label):
        received.append((prompts, responses, label))
        return [float(x) for x in label]

    made = trainer()  # only to show that a trainer without texts is possible
    assert made.actor.causal_lm.preprocessor is None
    made = helpers.ppo(helpers.actor(texts=True), reward, sampler=SAMPLER, update_epochs=1)
    made.compile(run_eagerly=True)
    batch = {k: x[:2] for k, x in ROWS.items()}
    batch["prompt"] = np.array(["one", "two"])
    batch["record"] = np.array(['{"label": 0.25}', '{"label": -1.5}'])
    made.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    ((prompts, responses, label),) = received
    assert prompts == ["one", "two"] and label == [0.25, -1.5]
    assert responses == made.last.episodes.responses and all(isinstance(r, str) for r in responses)
    assert made.statistics["objective/score"] == pytest.approx(-0.625)


def texts():
    """Demonstrations as `data.demonstrations` gives them; of token 5 over and over."""
    ids = np.full((4, 6), 5, "int32")
    weights = np.ones((4, 6), "float32")
    weights[:, -1] = 0
    inputs = {"token_ids": ids, "padding_mask": np.ones((4, 6), bool)}
    return tf.data.Dataset.from_tensors((inputs, ids, weights))


def test_no_text_is_no_end_of_prompts():
    made = trainer(texts=LanguageModeling(texts().take(0), coef=2.0))
    with pytest.raises(ValueError, match="`data` of `LanguageModeling` has no batches"):
        made.fit(PROMPTS, verbose=0)


def test_language_modeling_in_addition_to_reinforcement():
    """PPO-ptx: the loss on text falls, and its first value is the text's own."""
    made = trainer(texts=LanguageModeling(texts(), coef=2.0), update_epochs=2)
    inputs, _, weights = next(iter(texts()))
    stats = made.actor.token_stats(inputs["token_ids"], inputs["padding_mask"])
    expected = -float(np.sum(stats.logprobs[:, 1:] * weights[:, :-1]) / np.sum(weights))
    record, callback = seen(made)
    made.fit(PROMPTS.take(2).repeat(4), callbacks=[callback], verbose=0)
    losses = [entry["loss/ptx"] for entry, _ in record]
    assert losses[0] == pytest.approx(expected, rel=0.2)  # a mean over two updates
    assert losses[-1] < 0.6 * losses[0]
    plain = trainer(update_epochs=2)
    entries, callback = seen(plain)
    plain.fit(PROMPTS.take(2), callbacks=[callback], verbose=0)
    assert "loss/ptx" not in entries[0][0]
    assert entries[1][0]["objective/score"] != record[1][0]["objective/score"] or (
        entries[1][0]["loss/total"] != record[1][0]["loss/total"]
    )


def test_shaping_reaches_the_scores_that_are_trained_on():
    sampler = Sampler(length=3, stop_token_ids=[4, 13])
    batch = {k: x[:4] for k, x in ROWS.items()}
    for name, value in (
        ("scale", 0.5),
        ("clip", 0.1),
        ("missing_end_score", -1.0),
        ("missing_end_penalty", 2.0),
    ):
        shaping = RewardShaping(**{name: value})
        made = trainer(run_eagerly=True, sampler=sampler, shaping=shaping)
        made.iterate(dict(batch))
        collected = made.last
        raw, scores = collected.raw_scores, np.array(collected.rollout.scores)
        ended = np.array(collected.rollout.ended)
        expected = {
            "scale": raw * 0.5,
            "clip": np.clip(raw, -0.1, 0.1),
            "missing_end_score": np.where(ended, raw, -1.0),
            "missing_end_penalty": np.where(ended, raw, raw - 2.0),
        }
        np.testing.assert_allclose(scores, expected[name], atol=1e-6)
        assert np.any(scores != raw)
        assert made.statistics["objective/score"] == pytest.approx(scores.mean(), abs=1e-5)
        assert made.statistics["objective/raw_score"] == pytest.approx(raw.mean(), abs=1e-5)
