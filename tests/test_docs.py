"""The pages of `docs/`: their code runs, and what they name and link to exists."""

import functools
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import shlex
import sys
import types

import keras_hub
import pytest
import tensorflow as tf
import test_api

import kerasrlhf as rlhf
from kerasrlhf.callbacks import tags
from kerasrlhf.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ROOT / "docs/pages"
BLOB = "https://github.com/kerasrlhf/kerasrlhf/blob/main/"
RAW = "https://raw.githubusercontent.com/kerasrlhf/kerasrlhf/main/"
TEXTS = {"README.md": (ROOT / "README.md").read_text("utf-8")} | {
    path.relative_to(PAGES).as_posix(): path.read_text("utf-8")
    for path in sorted(PAGES.rglob("*.md"))
}
every_page = pytest.mark.parametrize("page", TEXTS)


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    """Every command of a page as a list of words; `a && b` are two."""
    lines = [line for block in blocks("bash", text) for line in block.splitlines() if line.strip()]
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def run(text, name):
    """Runs the Python blocks of a page in one namespace, with the page's line numbers."""
    names = {"__name__": name}
    for match in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        before = text[: match.start(1)].count("\n")
        exec(compile("\n" * before + match[1], name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """The embedded model with its tokenizer and the first of its layers: tracing is the cost."""
    lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
    config = {**lm.backbone.get_config(), "num_layers": 1}
    backbone = type(lm.backbone).from_config(config)
    kept = {weight.path.split("/", 1)[-1]: weight for weight in lm.backbone.weights}
    for weight in backbone.weights:
        weight.assign(kept[weight.path.split("/", 1)[-1]])
    folder = tmp_path_factory.mktemp("presets") / "one_layer"
    type(lm)(backbone=backbone, preprocessor=lm.preprocessor).save_to_preset(folder)
    return str(folder)


@pytest.fixture
def quick(one_layer, monkeypatch, tmp_path):
    """A smaller model and graphs without XLA, in a folder of its own; the code is as printed."""
    monkeypatch.setattr(rlhf.presets, "TINY_STORIES", one_layer)
    function = tf.function
    # Keras and the package both compile through it.
    monkeypatch.setattr(
        tf, "function", lambda *args, jit_compile=None, **kwargs: function(*args, **kwargs)
    )
    monkeypatch.chdir(tmp_path)
    # A person who labels, and always prefers the response on the left.
    monkeypatch.setattr("builtins.input", lambda question: "left")
    return tmp_path


TAG_TABLE, RANGES = (
    TEXTS["reading_a_run.md"].split(f"## {title}\n")[1].split("\n## ")[0]
    for title in ("Tags", "Healthy ranges")
)


def test_the_table_of_tags_has_the_words_of_tensorboard():
    rows = re.findall(r"^\| `.*$", TAG_TABLE, re.MULTILINE)
    assert rows == [
        f"| `{name}` | {tag.meaning} | {tag.unit} | {tag.healthy} |"
        for name, tag in tags.TAGS.items()
    ]


def test_what_to_do_is_said_of_statistics_that_there_are():
    first = re.findall(r"^\| (`.*?) \|", RANGES, re.MULTILINE)
    named = {name for cell in first for name in re.findall(r"`(.*?)`", cell)}
    assert len(named) > 5 and named <= set(tags.TAGS)


CODED = [page for page, text in TEXTS.items() if blocks("python", text)]


@pytest.mark.slow
@pytest.mark.parametrize("page", CODED)
def test_its_python_runs(page, quick):
    names = run(TEXTS[page], page)
    trainers = [x for x in names.values() if isinstance(x, rlhf.OnPolicyTrainer)]
    assert all(x.statistics["policy/ratio_error"] < 1e-3 for x in trainers if x.iteration > 0)
    CHECKS.get(page, lambda names, folder: None)(names, quick)


def check_readme(names, folder):
    assert names["history"].history["score"]
    assert (folder / "runs/readme/model.weights.h5").is_file()


def check_rewards(names, folder):
    assert 0.0 <= names["history"].history["score"][0] <= 1.0  # of `on_topic`


def check_reading_a_run(names, folder):
    """The table lists the statistics of an iteration; others are of options and dtypes."""
    logged = set(names["ppo"].statistics)
    listed = set(re.findall(r"^\| `(\w+/\w+)` \|", TAG_TABLE, re.MULTILINE))
    of_validation = {name for name in listed if name.startswith("val/")}
    assert {name.replace("/", "_") for name in of_validation} <= set(names["history"].history)
    of_options = {
        "objective/kl_target",
        "objective/score_spread",
        "objective/unscored",
        "policy/accuracy",
        "policy/loss_scale",
        "loss/kl",
        "loss/ptx",
        "loss/lm",
        "loss/reverse",
    }
    assert listed - of_validation - of_options == logged
    assert list((folder / "runs/reading").glob("events.out.tfevents.*"))
    lines = (folder / "runs/reading/samples.jsonl").read_text("utf-8").splitlines()
    assert {"prompt", "response", "score"} <= set(json.loads(lines[0]))


def check_applications(names, folder):
    history = names["history"].history
    assert 0.0 <= history["val_has_word"][0] <= 1.0 and history["val_words"][0] < 16
    assert names["measured"]["has_word"].low <= names["measured"]["has_word"].mean
    assert {"reward/word", "reward/repetition"} <= set(names["ppo"].statistics)


def test_a_task_of_ones_own_is_a_short_file():
    code, *_ = blocks("python", TEXTS["applications.md"])
    assert "rlhf.tasks.Task" in code and "ppo.fit(" in code
    assert len(code.splitlines()) < 60


def check_saving_and_resuming(names, folder):
    assert (folder / "runs/resume/resume.json").is_file()
    assert (folder / "runs/policy/model.weights.h5").is_file()


CHECKS = {
    "applications.md": check_applications,
    "README.md": check_readme,
    "rewards.md": check_rewards,
    "reading_a_run.md": check_reading_a_run,
    "saving_and_resuming.md": check_saving_and_resuming,
}


def test_a_block_that_raises_is_noticed():
    text = "# Page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as raised:
        run(text, "page.md")
    assert raised.traceback[-1].lineno == 7


@every_page
def test_every_block_runs_or_is_text(page):
    fences = re.findall(r"^```(.*)$", TEXTS[page], flags=re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash", "text"}
    assert set(fences[1::2]) <= {""}


WIDTH = 74


@every_page
def test_text_fits_the_width_of_a_page(page):
    lines = [line for block in blocks("text", TEXTS[page]) for line in block.splitlines()]
    assert not [line for line in lines if len(line) > WIDTH]


def load(path):
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {
    " ".join(words[1:]): words[1:]
    for text in TEXTS.values()
    for words in commands(text)
    if words[0] == "python" and words[1] != "-m"
}


@pytest.mark.parametrize("words", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_takes_the_options_of_its_command(words, monkeypatch):
    # As Python does for a script: benchmarks import files of their own folder.
    monkeypatch.syspath_prepend(str((ROOT / words[0]).parent))
    module = load(ROOT / words[0])
    if hasattr(module, "Config"):
        assert rlhf.cli.parse(module.Config, words[1:])
    else:
        monkeypatch.setattr(sys, "argv", words)
        assert module.parse_args()
    paths = [word for word in words if re.match(r"(benchmarks|docs)/", word)]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_there_are_commands_for_every_recipe_and_benchmark():
    named = {words[0] for words in SCRIPTS.values()}
    tasks = ("sentiment", "classification", "ner", "summarization", "dialogue", "arithmetic")
    recipes = ("quickstart", "sft", "reward_model", "ppo", "ppo_ray", *tasks)
    benchmarks = ("ppo_iteration", "known_optimum", "algorithms", "language_modeling", "audit")
    benchmarks += ("clean_and_augment", "scaling")
    assert named == {f"recipes/{name}.py" for name in recipes} | {
        f"benchmarks/{name}.py" for name in benchmarks
    }
    mentioned = {path for text in TEXTS.values() for path in re.findall(r"recipes/\w+\.py", text)}
    others = {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")}
    assert others - mentioned <= {"recipes/pretrain_tiny.py"}


def test_peers_take_the_sizes_that_the_benchmark_passes():
    benchmark = load(ROOT / "benchmarks/ppo_iteration.py")
    assert list(load(ROOT / "benchmarks/peers/peer.py").SIZES) == list(benchmark.SIZES)


def test_the_table_of_commands_is_complete():
    table = TEXTS["quickstart.md"].split("| command | recipe |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `kerasrlhf (.+?)` \| `recipes/(\w+)\.py` \|", table, re.MULTILINE)
    shown = {name: recipe for names, recipe in rows for name in names.split("`, `")}
    assert shown == {name: command.recipe for name, command in COMMANDS.items()}


@every_page
def test_other_commands_are_possible(page):
    extras = (ROOT / "pyproject.toml").read_text("utf-8")
    for words in commands(TEXTS[page]):
        if words[:3] == ["python", "-m", "pytest"]:
            assert all((ROOT / path).exists() for path in words[3:])
        elif words[:2] == ["pip", "install"]:
            (package,) = words[2:]
            named = re.fullmatch(r"\.(?:\[(\w+)\])?", package)
            if package != "tensorflow[and-cuda]":
                assert named[1] is None or f"\n{named[1]} = [" in extras
        elif words[0] == "kerasrlhf":
            assert words[1] == "--help" or (
                words[1:] == [words[1], "--help"] and words[1] in COMMANDS
            )
        elif words[0] != "python" or words[1] == "-m":
            assert words in (
                ["git", "clone", BLOB.removesuffix("/blob/main/")],
                ["cd", "kerasrlhf"],
                ["python", "-m", "venv", ".venv"],
                [".", ".venv/bin/activate"],
            )


def anchors(text):
    """The anchors that both GitHub and the site make of headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        address, _, anchor = link.partition("#")
        if address.startswith((BLOB, RAW)):
            target = ROOT / address.removeprefix(BLOB).removeprefix(RAW)
        elif address.startswith("http"):
            continue
        else:
            target = (PAGES / page).parent / address if address else PAGES / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


@every_page
def test_every_quoted_path_exists(page):
    text = TEXTS[page]
    quoted = re.findall(r"`([\w.-]+/[\w./-]*)`", text)
    known = {path.name for path in ROOT.iterdir()}
    paths = {path for path in quoted if path.split("/")[0] in known}
    # A file that is named after another one, as in `folder/a.py`, `b.py`, is in its folder.
    for folder, others in re.findall(r"`([\w/]+/)\w+\.py`((?:(?:,| and) `\w+\.py`)+)", text):
        paths |= {folder + name for name in re.findall(r"\w+\.py", others)}
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


@every_page
def test_every_public_name_exists(page):
    text = re.sub(r"https?://\S+|kerasrlhf/rlhf\.py", "", TEXTS[page])
    for name in set(re.findall(r"\brlhf\.([A-Za-z_.]*[A-Za-z_])", text)):
        functools.reduce(getattr, name.split("."), rlhf)


def test_every_page_is_in_the_navigation():
    configuration = (ROOT / "docs/mkdocs.yml").read_text("utf-8")
    listed = re.findall(r": ([\w/]+\.md)$", configuration, flags=re.MULTILINE)
    assert sorted(listed) == sorted(page for page in TEXTS if page != "README.md")


def documented():
    """The objects that API pages describe, by their names there; a module is listed for its own."""
    names = [
        name
        for page, text in TEXTS.items()
        if page.startswith("api/")
        for name in re.findall(r"^::: kerasrlhf\.([\w.]+)$", text, flags=re.MULTILINE)
    ]
    assert len(names) == len(set(names))
    found = {
        name: functools.reduce(getattr, name.split("."), rlhf)
        for name in names
        if name != "version"
    }
    for name, value in list(found.items()):
        if inspect.ismodule(value):
            found |= {f"{name}.{own}": getattr(value, own) for own in test_api.public(value)}
    return found


def public_objects(module=rlhf, prefix=""):
    """Every class and function under a public name, those of public modules included."""
    for name in test_api.public(module):
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            yield from public_objects(value, f"{prefix}{name}.")
        elif callable(value):
            yield prefix + name, value


def test_every_public_name_is_on_an_api_page():
    shown = [id(value) for value in documented().values()]
    assert not [name for name, value in public_objects() if id(value) not in shown]


def test_everything_on_an_api_page_is_public_and_has_a_docstring():
    public = {id(value) for _, value in public_objects()}
    for name, value in documented().items():
        if inspect.ismodule(value) or callable(value):
            assert value.__doc__, name
            assert inspect.ismodule(value) or id(value) in public, name


ARGUMENTS = {
    "algorithms/ppo.md": rlhf.PPO,
    "algorithms/rloo.md": rlhf.RLOO,
    "algorithms/grpo.md": rlhf.GRPO,
    "algorithms/reinforce_plus_plus.md": rlhf.REINFORCEPlusPlus,
    "algorithms/online_dpo.md": rlhf.OnlineDPO,
    "algorithms/dpo.md": rlhf.DPO,
    "algorithms/ipo.md": rlhf.IPO,
    "algorithms/kto.md": rlhf.KTO,
    "algorithms/orpo.md": rlhf.ORPO,
    "algorithms/best_of_n.md": rlhf.best_of_n,
    "sampling.md": rlhf.Sampler,
}


@pytest.mark.parametrize("page", ARGUMENTS)
def test_tables_of_settings_have_the_arguments_and_their_defaults(page):
    parameters = dict(inspect.signature(ARGUMENTS[page]).parameters)
    # Those of the base class are behind `**kwargs`.
    parameters = {**inspect.signature(rlhf.DirectTrainer).parameters, **parameters}
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.+?) \| ", TEXTS[page], flags=re.MULTILINE)
    rows = [
        (names, defaults)
        for names, defaults in rows
        if "`" in defaults or re.search(r"\d|req", defaults)
    ]
    assert rows
    for names, defaults in rows:
        shown = [default.strip("`") for default in defaults.split(", ")]
        for name, default in zip(re.findall(r"`(\w+)`", names), shown, strict=True):
            real = parameters[name].default
            assert default == (
                "required" if real is inspect.Parameter.empty else repr(real).replace("'", '"')
            )


def cells(row):
    return [cell.strip() for cell in row.strip("| ").split(" | ")]


def table(text, header):
    """The rows of the table whose header begins with these cells, by their first cell."""
    lines = text.split(f"| {header}", 1)[1].split("\n\n")[0].splitlines()[2:]
    return {cells(line)[0]: cells(line)[1:] for line in lines}


MEASURED = [page for page, text in TEXTS.items() if "\n## Measured\n" in text]


def test_every_algorithm_has_its_rows_of_the_table_of_benchmarks():
    rows = table(TEXTS["benchmarks.md"], "algorithm | seeds | score | KL")
    shown = {}
    for page in MEASURED:
        own = table(TEXTS[page], "algorithm | score | KL")
        del own["(the start)"]
        assert own
        shown |= own
    assert shown == {name: row[1:6] for name, row in rows.items()}


def test_readme_has_rows_of_the_table_of_benchmarks():
    header = "measurement | kerasrlhf | other"
    rows = table(TEXTS["benchmarks.md"], header).values()
    shown = table(TEXTS["README.md"], header).values()
    known = {(ours, theirs, ratio.split()[0]) for ours, theirs, ratio in rows}
    assert {(ours, theirs, ratio.split()[0]) for ours, theirs, ratio in shown} <= known
