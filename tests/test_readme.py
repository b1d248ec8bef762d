"""Commands, names, paths and lines of Python in README and `docs/` are those of the package."""

import functools
import importlib.util
import json
import pathlib
import re
import shlex
import sys

import helpers
import numpy as np
import pytest

import kerasrlhf as rlhf

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
every_page = pytest.mark.parametrize("page", PAGES)


def blocks(language, page="README.md"):
    text = PAGES[page].read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page="README.md"):
    """Every command of a page as a list of words; `a && b` are two."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines() if line.strip()]
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def scripts(page="README.md"):
    return [words[1:] for words in commands(page) if words[0] == "python" and words[1] != "-m"]


SCRIPTS = [words for page in PAGES for words in scripts(page)]


def load(path):
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_records(folder):
    """As few records as fill one batch of each kind."""
    names = ("Tom", "Lily", "Ben", "Mia")
    prompts = [
        {"prompt": f"{name} had {i} balls.", "topic": name} for name in names for i in "1234"
    ]
    files = {
        "demos": [{**record, "response": " They were red."} for record in prompts * 2],
        "pairs": [{**record, "chosen": " Good.", "rejected": " Bad."} for record in prompts],
        "prompts": prompts * 4,
    }
    for name, records in files.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def names(folder):
    """What stands in the namespace after README's lines of Python, run in their order."""
    write_records(folder)
    code = "\n".join(blocks("python"))
    assert '"gpt2_base_en"' in code
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code.replace('"gpt2_base_en"', repr(rlhf.presets.TINY_STORIES)), names)
    return names


@pytest.mark.slow
def test_its_python_runs(folder, names):
    assert (folder / "runs/ppo/final/model.weights.h5").is_file()
    assert list((folder / "runs/ppo").glob("events.out.tfevents.*"))
    assert (folder / "runs/ppo/resume.json").is_file()
    assert 0.0 <= names["ppo"].statistics["objective/raw_score"] <= 1.0  # of `on_topic`


@pytest.mark.slow
def test_it_lists_the_statistics_of_an_iteration(names):
    logged = set(names["ppo"].statistics)
    rows = re.findall(
        r"^\| `(objective|policy|value|loss|time)/…` \| (.*) \|$", README, re.MULTILINE
    )
    listed = {f"{group}/{name}" for group, text in rows for name in re.findall(r"`(\w+)`", text)}
    assert listed - {"loss/ptx"} == logged
    assert set(re.findall(r"^\| `(\w+/\w+)` \|", README, re.MULTILINE)) <= logged


def test_its_first_commands_are_those_of_ci():
    first, second = blocks("bash")[:2]
    assert first.rstrip().endswith('pip install ".[quickstart]" && python recipes/quickstart.py')
    ci = [
        line.split(" #")[0].strip() for line in (ROOT / ".ci/run").read_text("utf-8").splitlines()
    ]
    *_, install, test = (part.strip() for part in second.split("&&"))
    assert install.replace("pip install", "pip install --quiet") in ci
    assert f'{test} "$@"' in ci


def test_there_are_commands_for_every_step():
    named = {words[0] for words in scripts()}
    recipes = {f"recipes/{name}.py" for name in ("quickstart", "sft", "reward_model", "ppo")}
    benchmarks = ("ppo_iteration", "known_optimum", "algorithms", "language_modeling")
    assert named == recipes | {f"benchmarks/{name}.py" for name in benchmarks}


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_a_script_takes_the_options_of_its_command(words, monkeypatch):
    # As Python does for a script: benchmarks import what stands beside them.
    monkeypatch.syspath_prepend(str((ROOT / words[0]).parent))
    module = load(ROOT / words[0])
    if hasattr(module, "Config"):
        assert rlhf.cli.parse(module.Config, words[1:])
    else:
        monkeypatch.setattr(sys, "argv", words)
        assert module.parse_args()


@every_page
def test_every_path_exists(page):
    text = PAGES[page].read_text("utf-8")
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    quoted = re.findall(r"`([\w./-]+/[\w./-]*)`", text)
    paths = {path for path in quoted if not path.startswith("runs/")}
    folders = {"path", "policy", "objective", "value", "loss", "time", "val", "train"}
    paths = {ROOT / path for path in paths if path.split("/")[0] not in folders}
    # A file that is named after another one, as in `folder/a.py`, `b.py`, is beside it.
    for folder, others in re.findall(r"`([\w/]+/)\w+\.py`((?:(?:,| and) `\w+\.py`)+)", text):
        paths |= {ROOT / folder / name for name in re.findall(r"\w+\.py", others)}
    paths |= {PAGES[page].parent / path for path in linked}
    assert page == "benchmarks.md" or ROOT / "kerasrlhf/trainers/ppo.py" in paths
    missing = sorted(str(path) for path in paths if not path.exists())
    assert not missing


def test_the_algorithm_of_the_architecture_page_learns():
    names = {}
    (code,) = blocks("python", "architecture.md")
    exec(code, names)
    made = names["BatchBaseline"](
        helpers.actor(),
        helpers.token_reward,
        sampler=rlhf.Sampler(4, stop_token_ids=None),
        kl=rlhf.FixedKL(0.1),
        update_epochs=1,
    )
    made.compile(jit_compile=False)
    before = [np.array(v) for v in made.trainable_variables]
    logs = made.iterate(helpers.prompts([2, 3, 4, 5]))
    assert logs["policy/ratio_error"] < 1e-4 and logs["policy/updates"] == 1
    moved = [np.abs(a - b).max() for a, b in zip(made.trainable_variables, before, strict=True)]
    assert max(moved) > 0


def test_every_anchor_is_a_heading():
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


@every_page
def test_every_public_name_exists(page):
    text = PAGES[page].read_text("utf-8").replace("kerasrlhf/rlhf.py", "")
    names = set(re.findall(r"\brlhf\.([A-Za-z_.]*[A-Za-z_])", text))
    expected = {"README.md": {"PPO", "callbacks.Resume", "cluster.strategy"}}
    assert expected.get(page, set()) <= names
    for name in names:
        functools.reduce(getattr, name.split("."), rlhf)


def test_every_extra_is_declared():
    project = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")
    declared = re.findall(r"^(\w+) = \[", project[1].split("\n[")[0], flags=re.MULTILINE)
    install = README.split("## Install")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", install, flags=re.MULTILINE) == declared
