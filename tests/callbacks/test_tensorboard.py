"""What TensorBoard reads from the event files."""

import html
import json
import re

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Crash, CrashIn
from ppo_runs import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

import kerasrlhf as rlhf
from kerasrlhf.callbacks import cards, layouts, tags
from kerasrlhf.callbacks.tensorboard import last_steps

PAGES = {"custom_scalars__config__", "_hparams_/session_start_info"}


def read(folder, accumulator=EventAccumulator):
    """Tag -> [(step, value)] as TensorBoard shows them."""
    events = accumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [(e.step, tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def metadata(folder):
    """Tag -> what TensorBoard knows of it besides its values."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.SummaryMetadata(tag) for tag in events.Tags()["tensors"]}


def categories(found):
    """Category -> chart -> regular expressions for tags, as the layout says."""
    ((step, layout),) = found["custom_scalars__config__"]
    assert step == 1
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout_pb2.Layout.FromString(layout.item()).category
    }


def cells(entry):
    """The rows of a table as TensorBoard shows them, its head first."""
    _, markdown = entry
    shown = markdown_to_safe_html(markdown.item())
    rows = re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]


def steps(entries):
    return [step for step, _ in entries]


def values(entries):
    return [value.item() for _, value in entries]


def test_a_run_with_validation(run, tmp_path):
    _, history = run.fit(2, [rlhf.callbacks.TensorBoard(tmp_path, samples=2)], validate=True)
    found, known = read(tmp_path), metadata(tmp_path)

    # Every statistic, and what the callback adds.
    statistics = set(run.trainer.statistics)
    validated = {"val/score", "val/kl", "val/length"}
    scalars = {*statistics, *validated, *tags.AT_A_GLANCE, "objective/kl_target"}
    assert set(found) == scalars | PAGES | {"samples", "settings"}
    at_the_end = {*validated, "at_a_glance/5_val_score"}
    assert all(steps(found[name]) == [1, 2, 3, 4] for name in scalars - at_the_end)
    assert all(steps(found[name]) == [2, 4] for name in at_the_end)
    for name, value in run.trainer.statistics.items():
        assert values(found[name])[-1] == pytest.approx(value, nan_ok=True), name
    np.testing.assert_allclose(values(found["val/score"]), history["val_score"], rtol=1e-6)
    assert values(found["objective/kl_target"]) == pytest.approx([0.05] * 4)

    # Each with its description, and the most important ones before all others.
    for name in scalars:
        original = tags.AT_A_GLANCE.get(name, name)
        assert tags.TAGS[original].description in known[name].summary_description, name
    groups = {name.split("/")[0] for name in scalars}
    assert sorted(groups)[0] == "at_a_glance" and len(groups) == 7
    for copy, original in tags.AT_A_GLANCE.items():
        assert found[copy] == found[original]

    # The layout begins with the score, and no chart of it is empty.
    shown = categories(found)
    assert next(iter(shown)) == "Is it working?"
    first, second, *_ = shown["Is it working?"].values()
    assert first == ["^objective/score$", "^val/score$"]
    assert second == ["^objective/kl$", "^objective/kl_target$", "^val/kl$"]
    for charts in shown.values():
        for patterns in charts.values():
            assert any(re.match(pattern, tag) for pattern in patterns for tag in scalars), patterns

    # What the run was set to, for both pages.
    content = known["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["trainer"].string_value == "PPO"
    assert hparams["optimizer.learning_rate"].number_value == pytest.approx(0.01)
    settings = run.trainer.settings()
    assert set(hparams) == {"trainer", *settings}
    assert steps(found["settings"]) == [1]
    rows = dict(cells(found["settings"][0]))
    assert rows["trainer"] == "PPO" and rows["sampler.length"] == "4"
    assert len(rows) == 2 + len(settings)


def test_samples_are_answers_to_the_first_prompts(run, tmp_path):
    """The start's are those of the first iteration, later ones have the same random numbers."""
    firsts, later = [], {}

    def keep(batch, logs):
        iteration = int(run.trainer.iteration.numpy())
        firsts.append(run.trainer.last)
        later[iteration] = run.trainer.collect(firsts[0].prompts)

    keeper = keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    callback = rlhf.callbacks.TensorBoard(tmp_path, samples=3, text_freq=2)
    run.fit(3, [keeper, callback])
    found = read(tmp_path)["samples"]
    assert steps(found) == [1, 2, 4, 6]
    prompts, answers = firsts[0].episodes.prompts[:3], firsts[0].episodes.responses[:3]
    head, *rows = cells(found[0])
    assert head == ["prompt", "start"] and [row[0] for row in rows] == prompts
    for (_, shown), answer in zip(rows, answers, strict=True):
        assert shown.split("<br>")[1] == answer
    for entry in found[1:]:
        head, *rows = cells(entry)
        assert head == ["prompt", "start", f"after iteration {entry[0]}"]
        for i, (prompt, start, shown) in enumerate(rows):
            assert (prompt, start.split("<br>")[1]) == (prompts[i], answers[i])
            collected = later[entry[0]]
            assert shown.split("<br>")[1] == collected.episodes.responses[i]
            assert f"score {collected.scores[i]:.2f}".replace("-", "\u2212") in shown
    assert len({entry[1].item() for entry in found}) == 4, "the policy has changed"


def test_the_callback_changes_nothing_in_training(tmp_path):
    """No weights, scale of scores, remembered rollouts, or random numbers."""
    run = Run(memory=rlhf.RolloutMemory(2), shaping=rlhf.RewardShaping(running_scale=True))
    alone, history = run.fit(2, validate=True)
    remembered = run.trainer.memory.arrays()
    callback = rlhf.callbacks.TensorBoard(tmp_path, text_freq=1)
    found, same = run.again().fit(2, [callback], validate=True)
    assert len(read(tmp_path)["samples"]) == 4
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert same == history
    assert remembered.keys() == run.trainer.memory.arrays().keys()
    for name, rows in run.trainer.memory.arrays().items():
        np.testing.assert_array_equal(rows, remembered[name])


def test_frequencies(run, tmp_path):
    callback = rlhf.callbacks.TensorBoard(tmp_path, text_freq=3, scalar_freq=2)
    run.fit(2, [callback])
    found = read(tmp_path)
    assert steps(found["samples"]) == [1, 3, 4]
    assert steps(found["objective/kl"]) == [2, 4]


def test_no_samples_no_tables(run, tmp_path):
    run.fit(1, [rlhf.callbacks.TensorBoard(tmp_path, samples=0)])
    assert "samples" not in read(tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("resume_first", [True, False])
def test_a_resumed_run_has_every_step_once(run, tmp_path, resume_first):
    def callbacks():
        both = [
            rlhf.callbacks.Resume(tmp_path, every=2),
            rlhf.callbacks.TensorBoard(tmp_path, samples=1, text_freq=2),
        ]
        return both if resume_first else both[::-1]

    with pytest.raises(Crash):
        run.fit(3, [*callbacks(), CrashIn(3)], validate=True)
    assert steps(read(tmp_path)["objective/kl"]) == [1, 2, 3]
    run.again().fit(3, callbacks(), validate=True)
    found = read(tmp_path)
    assert steps(found["objective/kl"]) == [1, 2, 3, 4, 5, 6]
    assert steps(found["val/score"]) == [2, 4, 6]
    assert all(len(found[tag]) == 1 for tag in [*PAGES, "settings"])
    # The start's answers are known, and what was sampled so far.
    assert steps(found["samples"]) == [1, 2, 4, 6]
    tables = [cells(entry) for entry in found["samples"]]
    assert {tuple(row[:2]) for table in tables for row in table[1:]} == {tuple(tables[0][1])}
    assert values(found["time/episodes"]) == [4, 8, 12, 16, 20, 24]
    lengths = np.array(values(found["objective/length"]))
    np.testing.assert_allclose(values(found["time/tokens"]), np.cumsum(4 * lengths), rtol=1e-6)
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
    path = tmp_path / "first_answers.json"
    own = cards.FirstAnswers.read(path)
    own._replace(rows=[{**row, "response": "of another run"} for row in own.rows]).write(path)
    run.again().fit(1, [rlhf.callbacks.TensorBoard(tmp_path)])
    assert cards.FirstAnswers.read(path) == own
    shown = PluginEventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    shown.Reload()  # what the pages of TensorBoard are made from
    assert [e.step for e in shown.Tensors("objective/kl")] == [1, 2]
    assert all(len(shown.Tensors(tag)) == 1 for tag in [*PAGES, "settings"])
    assert last_steps(tmp_path)["objective/kl"] == 2


def test_event_files_of_one_folder_are_of_different_seconds(run, tmp_path):
    for _ in range(2):
        run.again().fit(1, [rlhf.callbacks.TensorBoard(tmp_path, samples=0)])
    first, second = (int(path.name.split(".")[3]) for path in tmp_path.glob("events*"))
    assert first != second


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(run, tmp_path):
    run.fit(1, [rlhf.callbacks.TensorBoard(tmp_path, samples=0)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    steps = last_steps(tmp_path)
    assert steps["objective/kl"] == 2 and steps["objective/kl_target"] == 1


def test_another_model_writes_its_logs(tmp_path):
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 1), "float32")
    callback = rlhf.callbacks.TensorBoard(tmp_path)
    model.fit(x, x, 4, epochs=2, validation_data=(x, x), callbacks=[callback], verbose=0)
    found = read(tmp_path)
    assert set(found) == {"train/loss", "val/loss", "custom_scalars__config__"}
    assert categories(found) == {
        "Training and validation": {"loss": ["^train/loss$", "^val/loss$"]}
    }
    assert metadata(tmp_path)["val/loss"].summary_description == (
        "The log `loss` of validation in `fit`."
    )
    assert steps(found["train/loss"]) == [1, 2, 3, 4]
    assert steps(found["val/loss"]) == [2, 4]


def answers(count, **columns):
    rows = [
        {
            "prompt": "a\n| b",
            "response": "*x* <script>",
            "score": -0.5,
            "raw_score": 1.0,
            "kl": -1e-9,
        }
    ] * count
    inside = [[True] * 3] * count
    prompts = {"token_ids": [[1, 2, 3]] * count, "padding_mask": inside, **columns}
    return cards.FirstAnswers(1, rows, 4, prompts)


def test_texts_cannot_break_the_table():
    table = answers(1).table()
    assert table.splitlines()[-1].count("|") == 3
    assert "<script>" not in table and "*x*" not in table
    ((_, _), (prompt, answer)) = cells((1, np.array(table)))
    assert prompt == "a<br>| b" and answer.endswith("<br>*x* <script>")


def test_no_line_break_divides_a_number():
    ((_, _), (_, answer)) = cells((1, np.array(answers(1).table())))
    numbers, _ = answer.split("<br>")
    assert numbers == "<strong>score \u22120.50, raw 1.00, KL 0.00</strong>"


def test_first_answers_are_as_they_were_after_a_file(tmp_path):
    kept = answers(3, prompt=["ä", "b", "c"], record=['{"x": 1}', "{}", "{}"])
    kept.write(tmp_path / "a/answers.json")
    again = cards.FirstAnswers.read(tmp_path / "a/answers.json")
    assert again == kept
    batch = again.batch()
    assert batch["token_ids"].shape == (4, 3) and batch["token_ids"].dtype == tf.int32
    assert batch["padding_mask"].dtype == bool
    assert batch["prompt"].numpy().tolist() == ["ä".encode(), b"b", b"c", "ä".encode()]


def test_a_group_has_one_row():
    acting, sampler = helpers.actor(num_layers=1, texts=True), rlhf.Sampler(length=3)
    options = {"sampler": sampler, "kl": rlhf.FixedKL(0.1), "group_size": 2}
    rloo = rlhf.RLOO(acting, helpers.token_reward, **options)
    rloo.compile(run_eagerly=True)
    collected = rloo.collect(helpers.prompts([1, 2, 3]))
    kept = cards.FirstAnswers.of(collected, iteration=1, count=2)
    expected = collected.episodes.responses[0:4:2]
    assert expected != collected.episodes.responses[:2]
    assert [row["response"] for row in kept.rows] == expected
    _, *rows = cells((1, np.array(kept.table(collected, 1))))
    assert [row[2].split("<br>")[1] for row in rows] == expected
    assert kept.batch()["token_ids"].shape[0] == 3


@pytest.mark.parametrize("content", [None, "", "[]", '{"other": 1}', json.dumps({"rows": []})])
def test_a_file_of_anything_else_is_none(tmp_path, content):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    assert cards.FirstAnswers.read(path) is None


def test_the_layout_has_every_statistic_that_the_table_describes():
    charted = {tag for charts in layouts.ON_POLICY.values() for x in charts.values() for tag in x}
    left_out = {
        "objective/score_std",
        "objective/raw_score",
        "objective/reward",
        "objective/score_spread",
        "objective/unscored",
        "reward/<name>",
        "policy/entropy",
        "policy/ratio",
        "policy/accuracy",
        "val/<name>",
    }
    assert charted | left_out == set(tags.TAGS)
    assert not charted & left_out


@pytest.mark.parametrize(
    ("name", "value"), [("samples", -1), ("text_freq", 0), ("scalar_freq", 0.5)]
)
def test_arguments_are_checked(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        rlhf.callbacks.TensorBoard(tmp_path, **{name: value})
