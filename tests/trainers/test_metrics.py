"""Metrics of responses to held-out prompts are part of `evaluate`, `fit` and its callbacks."""

import json

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf.rollouts import measuring
from kerasrlhf.rollouts.scoring import Episodes

SAMPLER = rlhf.Sampler(length=3)
GREEDY = rlhf.Sampler(length=4, temperature=0.0)
TARGETS = [*"abcdefgh"]
BASE = ["val_score", "val_kl", "val_length"]


def prompts(lengths=(1, 2, 3, 4, 1, 2, 3, 4), batch_size=4):
    records = [json.dumps({"prompt": "?", "target": TARGETS[i]}) for i in range(len(lengths))]
    rows = helpers.prompts(lengths) | {"record": records}
    return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)


def length(responses):
    return [len(text) for text in responses]


def starts(responses, target):
    return [float(text.startswith(t)) for text, t in zip(responses, target, strict=True)]


def kinds(responses):
    """A number of the whole set, which is no mean over batches."""
    return len({*responses})


METRICS = {"letters": length, "starts": starts, "kinds": kinds}


def trainer(rate=0.05, **options):
    keras.utils.set_random_seed(0)
    made = helpers.ppo(helpers.actor(texts=True), sampler=SAMPLER, update_epochs=1)
    made.compile(keras.optimizers.SGD(rate), run_eagerly=True, **options)
    return made


def test_a_metric_of_all_responses_is_not_a_mean_of_batches():
    made = trainer(metrics=METRICS, validation_sampler=GREEDY)
    found = made.evaluate(prompts(), verbose=0, return_dict=True)
    assert [*found] == ["score", "kl", "length", "letters", "starts", "kinds"]
    batches = [helpers.draw_eagerly(made.actor, batch, GREEDY) for batch in made_batches()]
    texts = [text for batch in batches for text in decoded(made, batch)]
    assert found["letters"] == pytest.approx(np.mean([len(x) for x in texts]))
    expected = np.mean([x.startswith(t) for x, t in zip(texts, TARGETS, strict=True)])
    assert found["starts"] == pytest.approx(expected)
    counts = [len({*texts[:4]}), len({*texts[4:]})]
    assert found["kinds"] == len({*texts}) and found["kinds"] != np.mean(counts)
    # Without names they follow the others.
    assert made.evaluate(prompts(), verbose=0) == pytest.approx([*found.values()])


def made_batches():
    return [{k: v.numpy() for k, v in x.items() if k != "record"} for x in prompts()]


def decoded(made, responses):
    ids, inside = np.asarray(responses.token_ids), np.asarray(responses.response_mask)
    tokenizer = made.actor.causal_lm.preprocessor.tokenizer
    rows = [[int(i) for i in row[keep] if i] for row, keep in zip(ids, inside, strict=True)]
    return [tokenizer.detokenize(row) if row else "" for row in rows]


def test_without_a_sampler_of_its_own_the_policys_samples_are_measured():
    made = trainer(metrics={"letters": length})
    found = made.evaluate(prompts(batch_size=8), verbose=0, return_dict=True)
    (batch,) = prompts(batch_size=8)
    responses = made.collect(batch).episodes.responses
    assert found["letters"] == pytest.approx(np.mean([len(x) for x in responses]))


def test_fit_puts_them_into_history_and_callbacks(tmp_path):
    made = trainer(metrics=METRICS, validation_sampler=GREEDY)
    stop = keras.callbacks.EarlyStopping(monitor="val_starts", mode="max", patience=99)
    curves = rlhf.callbacks.TensorBoard(tmp_path / "logs")
    history = made.fit(
        prompts(), epochs=2, validation_data=prompts(), callbacks=[stop, curves], verbose=0
    ).history
    named = [f"val_{name}" for name in METRICS]
    assert {name for name in history if name.startswith("val_")} == {*BASE, *named}
    again = made.evaluate(prompts(), verbose=0, return_dict=True)
    for name in METRICS:
        assert history[f"val_{name}"][-1] == pytest.approx(again[name])
    assert stop.best == pytest.approx(max(history["val_starts"]))
    steps = {}
    for path in (tmp_path / "logs").glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            for value in tf.compat.v1.Event.FromString(record).summary.value:
                steps[value.tag] = value.metadata.summary_description
    assert steps["val/starts"].startswith("A metric of `compile(metrics=...)`")


def test_a_resumed_run_shows_them_again(tmp_path):
    histories = []
    for epochs in (1, 2):
        made = trainer(metrics=METRICS, validation_sampler=GREEDY)
        resume = rlhf.callbacks.Resume(tmp_path)
        options = {"validation_data": prompts(), "callbacks": [resume], "verbose": 0}
        histories.append(made.fit(prompts(), epochs=epochs, **options).history)
    before, after = histories
    assert [*before] == [*after]
    for name in METRICS:
        assert after[f"val_{name}"][0] == pytest.approx(before[f"val_{name}"][0])


def test_the_bar_of_evaluate_shows_them(capsys):
    trainer(metrics={"letters": length}).evaluate(prompts())
    assert " letters: " in capsys.readouterr().out.splitlines()[-1]


def test_training_and_its_random_numbers_do_not_depend_on_them():
    one, other = trainer(), trainer(metrics=METRICS, validation_sampler=GREEDY)
    for made in (one, other):
        made.fit(prompts(), validation_data=prompts(), verbose=0)
    for left, right in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_groups_have_every_response_measured():
    made = helpers.ppo(helpers.actor(texts=True), sampler=SAMPLER, group_size=2)
    made.compile("sgd", run_eagerly=True, metrics={"count": lambda responses: len(responses)})
    assert made.evaluate(prompts(), verbose=0, return_dict=True)["count"] == 16
    made.compile(
        "sgd",
        run_eagerly=True,
        metrics={"count": lambda responses: len(responses)},
        validation_sampler=GREEDY,
    )
    assert made.evaluate(prompts(), verbose=0, return_dict=True)["count"] == 8


def test_a_longer_sampler_of_validation_has_to_fit_the_positions():
    made = trainer(metrics=METRICS, validation_sampler=rlhf.Sampler(length=31))
    with pytest.raises(ValueError, match="32"):
        made.evaluate(prompts(), verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": {"score": length}}, r"none that `evaluate` returns.*'score'"),
        ({"metrics": {"my metric": length}}, r"must be a word.*'my metric'"),
        ({"metrics": {"a": 3}}, r"must be a function.*Received: 3 of type int"),
        ({"metrics": {"a": lambda: 3}}, "must be a function"),
        ({"metrics": [kinds, kinds]}, r"one name: \['kinds', 'kinds'\]"),
        ({"metrics": "accuracy"}, r"must be a function.*'accuracy'"),
        ({"validation_sampler": GREEDY}, "no effect without `metrics`"),
        ({"metrics": METRICS, "validation_sampler": 8}, r"Sampler\(length=...\)"),
    ],
)
def test_what_cannot_be_measured_is_found_by_compile(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


def test_texts_need_a_tokenizer():
    made = helpers.ppo()
    with pytest.raises(ValueError, match="need a tokenizer"):
        made.compile("sgd", metrics={"letters": length})


EPISODES = Episodes(["a", "b"], ["c", "d"], {"target": ["c", "x"]})


@pytest.mark.parametrize(
    "result", [[1.0], [1.0, 2.0, 3.0], "good", None, [1.0, None], float("nan"), [[1.0], [2.0]]]
)
def test_a_metric_of_another_shape_is_named(result):
    with pytest.raises(
        ValueError, match=r"metric `own` must return one finite number for each of 2"
    ):
        measuring.measure({"own": lambda responses: result}, EPISODES)


def test_a_metric_that_asks_for_what_there_is_not():
    with pytest.raises(ValueError, match=r"The metric `lambda` asks for \['label'\]"):
        measuring.measure({"own": lambda label: 1.0}, EPISODES)


def test_asynchronous_metrics_and_positions():
    async def judged(completions):
        return [float(c == "c") for c in completions]

    found = measuring.measure({"a": judged, "b": lambda one, two: len(one + two)}, EPISODES)
    assert found["a"].tolist() == [1.0, 0.0] and found["b"] == 4.0
