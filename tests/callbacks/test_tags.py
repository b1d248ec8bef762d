"""The table of tags has every statistic that the package can log."""

import ast
import pathlib
import re

import helpers
import pytest

import kerasrlhf as rlhf
from kerasrlhf.callbacks import tags

PACKAGE = pathlib.Path(rlhf.__file__).parent
NAME = re.compile(r"(objective|policy|value|loss|time)/\w+")
# Of one update; an iteration has `policy/skipped_updates`.
OF_UPDATES = {"policy/skipped"}


def logged(source):
    """Names of statistics among the strings of a file, docstrings aside."""
    strings = (x.value for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Constant))
    return {x for x in strings if isinstance(x, str) and NAME.fullmatch(x)}


def parts():
    """Two rewards, of which one applies to no response."""
    return {"tokens": helpers.token_reward, "none": lambda responses: [None] * len(responses)}


RUNS = {
    "ppo": (rlhf.PPO, {"group_size": 1}),
    "rloo": (rlhf.RLOO, {}),
    "grpo": (rlhf.GRPO, {"kl": rlhf.FixedKL(0.1, place="loss")}),
    "reinforce_plus_plus": (rlhf.REINFORCEPlusPlus, {}),
    "online_dpo": (rlhf.OnlineDPO, {"prompt_prediction": rlhf.PromptPrediction(coef=0.1)}),
}


@pytest.mark.parametrize("algorithm", RUNS)
def test_an_iteration_logs_what_has_an_entry(algorithm):
    made, options = RUNS[algorithm]
    options = {"group_size": 2, "kl": rlhf.FixedKL(0.1), **options}
    sampler = rlhf.Sampler(length=3)
    made = made(helpers.actor(num_layers=1, texts=True), parts(), sampler=sampler, **options)
    made.compile(run_eagerly=True)
    logged = set(made.iterate(helpers.prompts([1, 2])))
    assert {"reward/tokens", "objective/score", "policy/grad_norm"} <= logged
    assert {name for name in logged if not name.startswith("reward/")} <= set(tags.TAGS)


def test_every_statistic_in_the_code_has_an_entry():
    files = [PACKAGE / "replica.py", *(PACKAGE / "trainers").glob("*.py")]
    named = set().union(*(logged(path.read_text("utf-8")) for path in files))
    assert len(named) > 30 and {"policy/accuracy", "loss/ptx", "loss/reverse"} <= named
    assert named - OF_UPDATES <= set(tags.TAGS)


def test_an_entry_is_of_something_that_is_logged():
    tables = {"tags.py", "layouts.py"}
    paths = [path for path in PACKAGE.rglob("*.py") if path.name not in tables]
    source = "".join(path.read_text("utf-8") for path in paths)
    for name in tags.TAGS:
        group, _, own = name.partition("/")
        written = [f'"{name}"', *([f'"{own}"'] if group == "time" else [])]
        assert group in ("reward", "val") or any(text in source for text in written), name


def test_a_statistic_is_noticed():
    source = '"""loss/none of these."""\nlogs = {"loss/new": 1, "policy/a b": 2}'
    assert logged(source) == {"loss/new"}


@pytest.mark.parametrize("name", tags.TAGS)
def test_an_entry_is_whole_and_fits_a_table(name):
    tag = tags.TAGS[name]
    assert all(tag) and not any("|" in text or text.endswith(".") for text in tag)
    assert tag.description.count(". ") >= 2


def test_general_entries():
    assert tags.describe("reward/happy") == tags.TAGS["reward/<name>"].description
    assert tags.describe("objective/new") == "The statistic `objective/new` of a trainer."
    assert tags.describe("at_a_glance/2_kl").startswith("The same as `objective/kl`. KL to the")
