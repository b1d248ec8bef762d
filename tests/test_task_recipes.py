"""Recipes of tasks: what each step of them reports."""

import json

from kerasrlhf.cli.recipe import TaskConfig

import pytest
from recipe_runs import TASKS, load, save_tiny, smoke

import kerasrlhf as rlhf

LIBRARIES = {"ner": "seqeval", "summarization": "rouge_score", "sentiment": "vaderSentiment"}
STAGES = {
    "classification": ["SFT, labels only", "PPO", "PPO, labels only"],
    "arithmetic": ["PPO", "GRPO"],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_measured_after_every_step(name, tiny, tmp_path, capsys):
    if name in LIBRARIES and name != "sentiment":
        pytest.importorskip(LIBRARIES[name])
    report = smoke(load(name), tmp_path, "--model", tiny)
    stages = ["start", "SFT", "best of 2 (SFT)", *STAGES.get(name, ["PPO"])]
    assert sorted(report["table"]) == sorted(stages)
    for stage, row in report["table"].items():
        is_trained = stage in ("start", "SFT", "PPO", "GRPO")
        assert (row["perplexity"] is not None) == is_trained
        assert row["responses"] == 4
        for found in row["metrics"].values():
            assert found["low"] <= found["mean"] <= found["high"]
    start, tuned, learned = (
        report["table"][stage]["perplexity"] for stage in ("start", "SFT", "PPO")
    )
    assert start != tuned
    # This model knows nothing: only these rewards tell its responses apart.
    if name in ("summarization", "dialogue"):
        assert tuned != learned
    assert [set(sample) for sample in report["samples"]] == [{"prompt", "target", *stages}] * 2
    out = capsys.readouterr().out
    assert "4 held-out records, 95 % intervals" in out
    assert all(f"\n{stage} " in out for stage in stages)
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["table"] == report["table"]
    rlhf.ActorCritic.from_preset(tmp_path / "model")


@pytest.mark.slow
def test_a_task_of_files_is_measured_on_records_of_the_test_file(tiny, tmp_path):
    rows = [{"text": f"Tom has {i} cats and a dog at home.", "label": i % 2} for i in range(24)]
    for name, part in (("train", rows[:20]), ("test", rows[20:])):
        lines = [json.dumps(row) + "\n" for row in part]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "Once upon a time there was a dog. " * 40}), "utf-8")
    files = ["--data", str(tmp_path / "train.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    options = [*files, "--model", tiny, "--texts", str(texts), "--words", "even,odd"]
    options += ["--lora-rank", "2"]
    report = smoke(load("classification"), tmp_path / "run", *options)
    assert {sample["target"] for sample in report["samples"]} <= {" even", " odd"}
    asked = {sample["prompt"] for sample in report["samples"]}
    assert asked <= {f"Text: {row['text']}\nLabel:" for row in rows[20:]}


def test_training_is_watched_on_records_without_demonstrations(tiny, tmp_path, monkeypatch):
    """Recipes demonstrate the first records."""
    seen = {}

    class Trainer:
        group_size = 1

        def fit(self, prompts, validation_data, steps_per_epoch, epochs, **_):
            steps = steps_per_epoch * epochs
            seen["learned"] = {x for batch in prompts.take(steps) for x in batch["prompt"].numpy()}
            seen["watched"] = [x for batch in validation_data for x in batch["prompt"].numpy()]

    records = [{"text": f"Text {i}", "label": "a"} for i in range(8)]
    task = rlhf.tasks.Classification(["a", "b"], template="{text}", length=2)
    sizes = {"iterations": 6, "validate_every": 6, "batch_size": 2, "validation": 2}
    config = TaskConfig(model=tiny, output=tmp_path, jit_compile=False, **sizes)
    run = rlhf.applications.TaskRun(task, config, records[:2])
    monkeypatch.setattr(run, "_trainer", lambda algorithm, options: Trainer())
    run.reinforce(records)
    assert seen["watched"] == [b"Text 6", b"Text 7"]
    assert seen["learned"] == {f"Text {i}".encode() for i in range(6)}


@pytest.mark.parametrize("name", TASKS)
def test_samples_of_tasks_are_records_of_the_task(name):
    recipe = load(name)
    assert set(recipe.Config.presets) == {"smoke", "smollm2"}
    for preset in recipe.Config.presets:
        rlhf.cli.parse(recipe.Config, ["--preset", preset])
    if name != "arithmetic":
        assert 24 <= len(rlhf.data.records.load(str(recipe.SAMPLE))) <= 60
