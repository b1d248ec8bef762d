"""A task's run that died is continued, and ends as one that nothing interrupted."""

import contextlib
import functools

from kerasrlhf.cli.recipe import TaskConfig

import numpy as np
import pytest
from helpers import Crash
from recipe_runs import RECIPES, load, save_tiny, smoke

import kerasrlhf as rlhf
from kerasrlhf.applications.run_state import RunState
from kerasrlhf.callbacks import TensorBoard
from kerasrlhf.tokens import SampledText
from kerasrlhf.trainers import settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@contextlib.contextmanager
def dying(owner, name, call=None):
    """Makes a method fail when it is called for the n-th time; yields the calls."""
    method, calls = getattr(owner, name), []

    def counted(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Crash
        return method(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield calls


def outcome(folder, report):
    """The table, and the weights of the saved model."""
    model = rlhf.ActorCritic.from_preset(folder / "model").causal_lm
    cells = {k: x for k, x in settings.flat(report["table"]).items() if x is not None}
    return cells, [v.numpy() for v in model.backbone.variables]


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_run_that_died_in_its_reinforcement(tiny, tmp_path):
    recipe, whole, output = load("sentiment"), tmp_path / "whole", tmp_path / "died"
    options = ["--model", tiny, "--reward", f"{RECIPES / 'ppo.py'}:brevity", "--iterations", "4"]
    expected = outcome(whole, smoke(recipe, whole, *options))
    with dying(TensorBoard, "on_iteration_end", 3), pytest.raises(Crash):
        smoke(recipe, output, *options)
    # It is neither mixed with another run nor removed.
    with pytest.raises(ValueError, match="continue it with --resume"):
        smoke(recipe, output, *options)
    with (
        dying(rlhf.ActorCritic, "from_preset", 1),
        pytest.raises(ValueError, match=r"seed was 0 and is 1; sft_epochs was 1 and is 2\. Set"),
    ):
        smoke(recipe, output, *options, "--resume", "--seed", "1", "--sft-epochs", "2")
    # Only the rest is done.
    with (
        dying(TensorBoard, "on_iteration_end") as iterations,
        dying(rlhf.ActorCritic, "generate") as answered,
        dying(RunState, "keep") as trained,
    ):
        report = smoke(recipe, output, *options, "--resume", "--samples", "1")
    assert iterations == [(3,), (4,)]
    assert len(answered) == 1 and not trained
    assert_same(outcome(output, report), expected)
    # A run that has finished is only read.
    with dying(TensorBoard, "on_iteration_end", 1), dying(rlhf.ActorCritic, "generate", 1):
        report = smoke(recipe, output, *options, "--resume")
    assert_same(outcome(output, report), expected)


@pytest.mark.slow
def test_models_of_preferences_are_those_of_the_run_that_died(tiny, tmp_path):
    recipe, whole, output = load("dialogue"), tmp_path / "whole", tmp_path / "died"
    options = ["--model", tiny, "--lora-rank", "2", "--iterations", "2"]
    report = smoke(recipe, whole, *options)
    expected, accuracy = outcome(whole, report), report["accuracy"]
    with dying(rlhf.RewardModel, "normalize", 2), pytest.raises(Crash):
        smoke(recipe, output, *options)
    with (
        dying(rlhf.RewardModel, "normalize") as normalized,
        dying(TensorBoard, "on_iteration_end", 2),
        pytest.raises(Crash),
    ):
        smoke(recipe, output, *options, "--resume")
    assert len(normalized) == 1
    with dying(rlhf.RewardModel, "normalize", 1):
        report = smoke(recipe, output, *options, "--resume")
    assert report["accuracy"] == accuracy
    assert_same(outcome(output, report), expected)


def test_each_call_of_a_step_has_a_state(tiny, tmp_path):
    records = [{"text": f"Text {i}", "label": "a"} for i in range(4)]
    task = rlhf.tasks.Classification(["a", "b"], template="{text}", length=2)

    def start(records=records, **options):
        config = TaskConfig(model=tiny, output=tmp_path, jit_compile=False, **options)
        return rlhf.applications.TaskRun(task, config, records)

    def steps(run, values):
        head = run._answering.variables[-1]
        for value in values:
            fit = functools.partial(head.assign, np.full(head.shape, value))
            run.train("constant", run._answering, fit)
            run.add_stage(f"{value}", lambda records: [str(head.numpy().max())] * len(records))
        return [stage.responses[0] for stage in run.stages]

    expected = steps(start(), [1.0, 2.0])
    assert expected == ["1.0", "2.0"]
    with pytest.raises(ValueError, match="continue it with `resume=True`"):
        start().measure("start")
    run = start(resume=True)
    assert steps(run, [1.0, 2.0]) == expected
    assert set(run.seconds) == {"constant", "constant-2", "measure 1.0", "measure 2.0"}
    with pytest.raises(ValueError, match=r"had '1\.0' as stage 1, and here it is 'start'"):
        start(resume=True).measure("start")
    with pytest.raises(ValueError, match="held-out prompts was"):
        start(records[:3], resume=True)
    # Other tokens may have the same text.
    tokenizer = run.causal_lm.preprocessor.tokenizer
    sampled = [SampledText("\ufffd", [103 + i], tokenizer) for i in range(4)]
    run.add_stage("sampled", lambda records: sampled)
    run = start(resume=True)
    steps(run, [1.0, 2.0])
    run.add_stage("sampled", lambda records: ["other"] * 4)
    texts, tokenizer = run.stages[-1].responses, run.causal_lm.preprocessor.tokenizer
    assert texts == ["\ufffd"] * 4 and all(text.tokenizer is tokenizer for text in texts)
    assert [text.token_ids for text in texts] == [[103], [104], [105], [106]]
    # Started over, it has nothing of the run before.
    assert steps(start(overwrite=True), [3.0]) == ["3.0"]
    assert steps(start(resume=True), [3.0, 4.0]) == ["3.0", "4.0"]
    (tmp_path / "state" / "stages.json").write_text("[")
    with pytest.raises(ValueError, match=r"stages\.json' cannot be read"):
        start(resume=True)
