"""The three steps of RLHF, one after the other, on the model that comes with the package."""

import dataclasses
import gzip
import inspect
import json
import pathlib

import h5py
import keras_hub
import numpy as np
import pytest
from recipe_runs import RECIPES, TASKS, load, save_tiny, smoke

import kerasrlhf as rlhf

NAMES = ("sft", "reward_model", "ppo", "dpo")
OTHERS = ("group", "ppo_ptx", "best_of_n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def sft(folder):
    return smoke(load("sft"), folder / "sft", "--lora-rank", "4", "--learning-rate", "0.03")


@pytest.fixture(scope="module")
def reward(folder, sft):
    model = str(folder / "sft" / "model")
    return smoke(load("reward_model"), folder / "reward", "--model", model)


@pytest.fixture(scope="module")
def ppo(folder, reward):
    options = ["--model", str(folder / "sft/model"), "--reward", str(folder / "reward/model")]
    return smoke(load("ppo"), folder / "ppo", *options)


@pytest.fixture(scope="module")
def dpo(folder, sft):
    return smoke(load("dpo"), folder / "dpo", "--model", str(folder / "sft/model"))


def test_sft_learns_and_saves_what_it_learned(folder, sft):
    assert sft["perplexity"]["after"] < 0.5 * sft["perplexity"]["before"]
    assert len(sft["samples"]) == 2
    lm = keras_hub.models.CausalLM.from_preset(str(folder / "sft/model"))
    _, held_out = rlhf.data.split(str(RECIPES / "smoke.jsonl"), 0.25, seed=0)
    (x, _, weight), *_ = rlhf.data.demonstrations(
        held_out, lm.preprocessor, batch_size=len(held_out), shuffle=False
    )
    stats = rlhf.ActorCritic(lm).token_stats(x["token_ids"], x["padding_mask"])
    nats = -np.sum(np.asarray(stats.logprobs)[:, 1:] * np.asarray(weight)[:, :-1]) / np.sum(weight)
    assert nats == pytest.approx(sft["nats_per_token"]["after"], rel=1e-4)


def test_reward_model_reports_groups_and_calibration(folder, reward):
    assert reward["accuracy"]["pairs"] == 6 and reward["accuracy"]["accuracy"] > 0.8
    assert reward["accuracy"]["low"] < reward["accuracy"]["accuracy"] <= 1
    assert set(reward["by_source"]) == {"home", "park"}
    assert sum(x["pairs"] for x in reward["by_source"].values()) == 6
    assert sum(x["pairs"] for x in reward["calibration"]) == 6
    model = rlhf.RewardModel.from_preset(folder / "reward/model")
    assert float(model.gain.numpy()) == pytest.approx(reward["gain"])


def test_several_reward_models_are_one(folder, sft, tmp_path):
    model = str(folder / "sft/model")
    options = ["--model", model, "--ensemble", "2", "--loss", "plackett_luce", "--center", "0.01"]
    report = smoke(load("reward_model"), tmp_path, *options, "--normalize", "0", "--epochs", "1")
    assert report["accuracy"]["pairs"] == 6 and report["accuracy"]["accuracy"] > 0.8
    ensemble = rlhf.RewardEnsemble.from_preset(tmp_path / "model")
    one, other = (m.score_head.get_weights()[0] for m in ensemble.members)
    assert np.abs(one - other).max() > 0.01
    for index in (0, 1):
        assert list((tmp_path / f"member_{index}" / "logs").glob("events.out.tfevents.*"))


def test_dpo_begins_at_its_reference_and_saves_the_policy(folder, dpo):
    assert dpo["before"] == pytest.approx({"loss": np.log(2), "accuracy": 0.5, "margin": 0}, 1e-4)
    assert dpo["after"]["loss"] < 0.5 and dpo["accuracy"]["accuracy"] > 0.8
    assert sum(x["pairs"] for x in dpo["by_source"].values()) == dpo["accuracy"]["pairs"] == 6
    assert [set(x) for x in dpo["samples"]] == [{"prompt", "before", "after"}] * 2
    policy, start = (
        keras_hub.models.CausalLM.from_preset(str(folder / name))
        for name in ("dpo/model", "sft/model")
    )
    pairs = rlhf.data.preferences(str(RECIPES / "smoke.jsonl"), policy.preprocessor, 24)
    scores = rlhf.DPO(policy, start, beta=0.1).predict(pairs, verbose=0)
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.8


@pytest.mark.parametrize("method", ["ipo", "kto", "orpo"])
def test_other_methods_of_the_recipe_learn_too(method, sft, folder, tmp_path):
    options = ["--model", str(folder / "sft/model"), "--samples", "0", "--lora-rank", "4"]
    report = smoke(load("dpo"), tmp_path, "--method", method, *options)
    assert report["after"]["loss"] < report["before"]["loss"]
    assert report["after"]["margin"] > report["before"]["margin"]


def differs_from_the_start(output):
    policy, start = (
        keras_hub.models.CausalLM.from_preset(str(preset))
        for preset in (output / "model", rlhf.presets.TINY_STORIES)
    )
    pairs = zip(policy.get_weights(), start.get_weights(), strict=True)
    return any(np.abs(a - b).max() > 1e-5 for a, b in pairs)


ON_POLICY = {
    "grpo": ("group", []),
    "dr_grpo": ("group", ["--algorithm", "dr_grpo", "--cliprange-high", "0.28"]),
    "rloo": ("group", ["--algorithm", "rloo"]),
    "ppo_ptx": ("ppo_ptx", []),
}


@pytest.mark.parametrize("case", ON_POLICY)
def test_on_policy_recipes_report_and_save_the_policy(case, tmp_path):
    name, options = ON_POLICY[case]
    report = smoke(load(name), tmp_path, *options)
    assert report["before"]["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(report["after"]["kl"]) > 1e-4
    # Only the reward: what `reverse_reward` adds in the smoke of ppo_ptx is about -0.6.
    assert -0.3 < report["before"]["score"] < 0.3
    assert differs_from_the_start(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["config"]["output"] == str(tmp_path)
    assert {name: written[name] for name in ("before", "after")} == {
        name: report[name] for name in ("before", "after")
    }
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))
    if name == "ppo_ptx":
        assert 1 < report["before"]["perplexity"] != report["after"]["perplexity"]
    else:
        with pytest.raises(ValueError, match="--resume"):
            smoke(load(name), tmp_path, *options)


@pytest.mark.parametrize(
    ("algorithm", "trainer", "place", "reduction", "cliprange"),
    [
        ("grpo", rlhf.GRPO, "loss", "sequence", 0.2),
        ("dr_grpo", rlhf.GRPO, "reward", "fixed", 0.2),
        ("rloo", rlhf.RLOO, "reward", "fixed", None),
    ],
)
def test_group_builds_the_published_form_of_an_algorithm(
    algorithm, trainer, place, reduction, cliprange
):
    recipe = load("group")
    options = ["--preset", "smoke", "--algorithm", algorithm, "--missing-end-score", "-1"]
    made = recipe.build(rlhf.cli.parse(recipe.Config, options))
    assert type(made) is trainer
    assert (made.kl_place, made.loss_reduction, made.cliprange) == (place, reduction, cliprange)
    assert made.shaping == rlhf.RewardShaping(missing_end_score=-1.0)
    other = recipe.build(rlhf.cli.parse(recipe.Config, [*options, "--cliprange", "0.1"]))
    assert other.cliprange == 0.1


class Built(Exception):
    pass


class Interrupted(Exception):
    pass


class Interrupting(rlhf.callbacks.TensorBoard):
    """Ends `fit` after its first epoch, as a lost machine would."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise Interrupted
        super().on_epoch_begin(epoch, logs)


@pytest.fixture(scope="module")
def tiny(folder):
    return save_tiny(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sft", ["--samples", "0"]),
        ("reward_model", ["--normalize", "0"]),
        ("dpo", ["--samples", "0"]),
    ],
)
def test_a_resumed_run_with_adapters_ends_like_an_uninterrupted_one(
    name, options, tiny, tmp_path, monkeypatch
):
    recipe, (whole, parts) = load(name), (tmp_path / "whole", tmp_path / "parts")
    options = ["--model", tiny, "--lora-rank", "2", "--epochs", "2", *options]
    expected = smoke(recipe, whole, *options)
    with monkeypatch.context() as patch:
        patch.setattr(rlhf.callbacks, "TensorBoard", Interrupting)
        with pytest.raises(Interrupted):
            smoke(recipe, parts, "--resume", *options)
    assert (parts / "state").is_dir() and not (parts / "model").exists()
    resumed = smoke(recipe, parts, "--resume", *options)
    del expected["config"], resumed["config"]
    assert resumed == expected
    files = [sorted((output / "model").rglob("*.weights.h5")) for output in (whole, parts)]
    assert files[0] and len(files[0]) == len(files[1])
    for ours, theirs in zip(*files, strict=True):
        assert weights_of(ours) == weights_of(theirs)


def weights_of(path):
    """The arrays of a file of weights, as bytes by their place."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda place, x: (
                found.update({place: x[()].tobytes()}) if isinstance(x, h5py.Dataset) else None
            )
        )
    assert found
    return found


@pytest.mark.parametrize(("lm_every", "reads"), [(None, False), (2, True)])
def test_ppo_ptx_reads_texts_where_something_learns_from_them(
    lm_every, reads, tmp_path, monkeypatch
):
    """With `reverse_coef` alone nothing does, and PPO would refuse them."""

    def ppo(*args, texts=None, **kwargs):
        raise Built(texts)

    recipe, texts = load("ppo_ptx"), tmp_path / "texts.jsonl"
    lines = [f'{{"text": "Tom ran to the park {i} times and played."}}\n' for i in range(12)]
    texts.write_text("".join(lines))
    options = ["--preset", "smoke", "--ptx-coef", "0", "--texts", str(texts)]
    config = rlhf.cli.parse(recipe.Config, [*options, "--output", str(tmp_path)])
    monkeypatch.setattr(rlhf, "PPO", ppo)
    with pytest.raises(Built) as found:
        recipe.main(dataclasses.replace(config, lm_every=lm_every))
    assert (found.value.args[0] is not None) == reads


def test_best_of_n_keeps_the_winners_and_distils_them(tmp_path):
    report = smoke(load("best_of_n"), tmp_path)
    lines = (tmp_path / "winners.jsonl").read_text("utf-8").splitlines()
    won = [rlhf.tasks.sentiment.happy_words([json.loads(x)["response"]])[0] for x in lines]
    assert len(won) == 8
    assert report["train"]["best"] == pytest.approx(np.mean(won))
    assert report["train"]["best"] > report["train"]["mean"]
    assert report["kl_bound"] == pytest.approx(np.log(2) - 0.5)
    assert report["before"]["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(report["after"]["kl"]) > 1e-4
    assert report["before"]["best_of_n"] >= report["before"]["score"]
    assert differs_from_the_start(tmp_path)
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_ppo_reports_and_saves_the_policy(folder, ppo):
    assert set(ppo["before"]) == {"score", "kl", "length"} == set(ppo["after"])
    assert ppo["before"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert [set(x) for x in ppo["samples"]] == [
        {"prompt", "before", "score_before", "after", "score_after"}
    ] * 2
    actor = rlhf.ActorCritic.from_preset(folder / "ppo/model")
    assert np.any(np.asarray(actor.value_head.kernel))
    lines = (folder / "ppo/samples.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 1, 2, 2]


@pytest.mark.parametrize("name", NAMES)
def test_reports_and_curves_are_written(folder, ppo, dpo, name):
    output = folder / {"reward_model": "reward"}.get(name, name)
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["config"]["output"] == str(output)
    assert list((output / "logs").glob("events.out.tfevents.*"))


def test_ppo_with_a_function_goes_on_where_it_was(tiny, tmp_path):
    recipe = load("ppo")
    options = ["--model", tiny, "--kl-target", "none", "--no-decay"]
    smoke(recipe, tmp_path, "--iterations", "1", *options)
    with pytest.raises(ValueError, match="--resume"):
        smoke(recipe, tmp_path, *options)
    went_on = smoke(recipe, tmp_path, "--resume", *options)
    state = json.loads((tmp_path / "state/resume.json").read_text("utf-8"))
    assert state["iteration"] == 2
    assert [record["kl_coef"] for record in state["records"]] == pytest.approx([0.1, 0.1])
    assert went_on["after"] != went_on["before"]


@pytest.mark.slow
def test_pretraining_makes_a_preset(tmp_path, capsys):
    """The embedded model teaches, on texts of this test."""
    pytest.importorskip("tokenizers")
    names, places = ("Tom", "Lily", "Ben", "Sue"), ("park", "house", "lake", "garden")
    texts = [f"{a} and {b} went to the {c}." for a in names for b in names for c in places]
    with gzip.open(tmp_path / "stories.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    recipe = load("pretrain_tiny")
    shape = {"vocabulary_size": 300, "length": 32, "layers": 1, "width": 16, "heads": 2}
    config = recipe.Config(
        stories=tmp_path / "stories.jsonl.gz",
        test_stories=tmp_path / "stories.jsonl.gz",
        teacher=pathlib.Path(rlhf.presets.TINY_STORIES),
        sampled=tmp_path / "sampled.jsonl.gz",
        output=tmp_path / "preset",
        rounds=1,
        rows=8,
        batch_size=4,
        epochs=1,
        final_epochs=1,
        held_out=8,
        jit_compile=False,
        **shape,
    )
    model = recipe.main(config)
    assert recipe.read(config.sampled), "the teacher wrote nothing good"
    assert "teacher" in capsys.readouterr().out
    again = keras_hub.models.CausalLM.from_preset(str(config.output))
    assert again.backbone.compute_dtype == "float32"
    for ours, theirs in zip(again.weights, model.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    tokens = [list(lm.preprocessor.tokenizer("Tom went")) for lm in (model, again)]
    assert tokens[0] == tokens[1]


def test_the_quickstart_reports_and_saves_the_policy(tmp_path, capsys):
    report = smoke(load("quickstart"), tmp_path, "--pairs", "16", "--epochs", "1")
    assert {"gold", "proxy", "kl", "perplexity_of_stories", "samples"} <= set(report)
    assert all(np.isfinite(report["perplexity_of_stories"])) and abs(report["kl"]) < 20
    assert json.loads((tmp_path / "report.json").read_text())["kl"] == report["kl"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert [*(tmp_path / "logs").rglob("*tfevents*")]
    rlhf.ActorCritic.from_preset(tmp_path / "model")
    assert [sample["rank"] for sample in report["samples"]] == ["best", "median", "worst"]
    gold = [sample["gold"][1] for sample in report["samples"]]
    assert gold == sorted(gold, reverse=True) and gold[0] > gold[-1]
    out = capsys.readouterr().out
    assert "4. Before and after" in out and f"after  {gold[0]:+.2f}" in out


@pytest.mark.parametrize("name", [*NAMES, *OTHERS, *TASKS, "pretrain_tiny"])
def test_every_field_has_a_help_text(name, capsys):
    recipe = load(name)
    with pytest.raises(SystemExit) as caught:
        rlhf.cli.run(recipe.main, recipe.Config, ["--help"])
    assert caught.value.code == 0
    documented = [inspect.cleandoc(kind.__doc__ or "") for kind in recipe.Config.__mro__]
    texts = set().union(*map(rlhf.cli.options.help_texts, documented))
    names = {field.name for field in dataclasses.fields(recipe.Config)}
    assert names <= texts
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} " in shown for name in names)


ERRORS = {
    "no data": ("sft", ["--data", "no/such.jsonl"], "There is no file 'no/such.jsonl'"),
    "column": ("sft", ["--data", "{wrong}"], "Expected a column 'response'"),
    "model": ("sft", ["--model", "no/such/model"], "No language model could be loaded"),
    "fraction": ("sft", ["--held-out", "1.5"], "`--held-out` must be above 0 and below 1"),
    "pairs": ("reward_model", ["--data", "{wrong}"], "Expected a column 'chosen'"),
    "method": ("dpo", ["--method", "ppo"], "expected {dpo,ipo,kto,orpo}"),
    "smoothing": ("dpo", ["--method", "ipo", "--label-smoothing", "0.1"], "of --method dpo"),
    "prompts": ("ppo", ["--prompts", "{wrong}"], "Expected a column 'prompt'"),
    "reward": ("ppo", ["--reward", "no/such/reward"], "There is no reward model"),
    "function": ("ppo", ["--reward", "ppo:no_such"], "Cannot import the module"),
    "held out": ("ppo", ["--held-out", "4"], "multiple of `--batch-size`"),
    "groups": ("group", ["--held-out", "6"], "must be a multiple of `--batch-size`"),
    "algorithm": ("group", ["--algorithm", "gpro"], "expected {grpo,dr_grpo,rloo}"),
    "clip higher": (
        "group",
        ["--algorithm", "rloo", "--cliprange-high", "0.3"],
        "an option of --algorithm grpo",
    ),
    "steps": ("ppo_ptx", ["--lm-every", "none", "--lm-steps", "2"], "without `--lm-every`"),
    "texts": ("ppo_ptx", ["--text-length", "8"], "`--text-length` must be at least 9"),
    "n": ("best_of_n", ["--n", "1"], "`--n` must be at least 2"),
    "labels": ("classification", ["--words", "one"], "must name each of the labels"),
    "groups of a task": ("arithmetic", ["--group-size", "3"], "multiple of `--group-size`"),
    "sentiment": ("sentiment", ["--reward", "bert"], "There is no reward model"),
    "iterations": ("ppo", ["--validate-every", "3"], "must be a multiple of `--validate-every`"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_input_is_told_in_one_line(case, tmp_path, capsys):
    name, options, message = ERRORS[case]
    recipe = load(name)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"question": "What?"}\n' * 20)
    options = [option.format(wrong=wrong) for option in options]
    arguments = ["--preset", "smoke", "--output", str(tmp_path / "out"), *options]
    with pytest.raises(SystemExit) as caught:
        rlhf.cli.run(recipe.main, recipe.Config, arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in error and message in error
