"""From a dataclass to a command line."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from kerasrlhf import cli


@dataclasses.dataclass(frozen=True)
class Config:
    """A recipe that learns 100% of it.

    More about it.

    Args:
        out_dir: Where the run goes; a text that continues
            on the next line.
        learning_rate: At the start; falls by 5 % each time.
        sizes: See: the layers.

    Raises:
        ValueError: Never mind.
    """

    out_dir: Path = Path("runs")
    learning_rate: float = 1e-5
    iterations: int = 100
    xla: bool = False
    verbose: bool = True
    name: str = "none"
    top_k: int | None = 5
    note: str | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (0.5, "a")
    words: list[str] = dataclasses.field(default_factory=lambda: ["x"])
    mode: Literal["fast", "slow"] = "fast"
    stop: Literal["auto"] | tuple[int, ...] | None = "auto"
    cached: bool | None = None
    derived: int = dataclasses.field(init=False, default=1)

    presets: ClassVar[dict[str, dict]] = {
        "smoke": {"iterations": 1, "sizes": (1,)},
        "full": {},
    }

    def __post_init__(self):
        if self.iterations < 0:
            raise ValueError("iterations must not be negative")


@dataclasses.dataclass(frozen=True)
class Required:
    source: str
    count: int

    presets: ClassVar[dict] = {"one": {"count": 1}}


def test_defaults():
    assert cli.parse(Config, []) == Config()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--iterations", "3"], {"iterations": 3}),
        (["--iterations=3"], {"iterations": 3}),
        (["--iterations", "3", "--iterations", "4"], {"iterations": 4}),
        (["--learning-rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--learning_rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--learning_rate=-1e-3"], {"learning_rate": -1e-3}),
        (["--learning-rate", "-1e-3"], {"learning_rate": -1e-3}),
        (["--out-dir", "a_b/--c"], {"out_dir": Path("a_b/--c")}),
        (["--xla"], {"xla": True}),
        (["--xla", "true"], {"xla": True}),
        (["--xla", "False"], {"xla": False}),
        (["--xla", "--no-xla"], {"xla": False}),
        (["--no-verbose", "--xla"], {"verbose": False, "xla": True}),
        (["--name", "none"], {"name": "none"}),
        (["--name", ""], {"name": ""}),
        (["--name=--x=1"], {"name": "--x=1"}),
        (["--top-k", "none"], {"top_k": None}),
        (["--top-k", "7"], {"top_k": 7}),
        (["--note", "None"], {"note": None}),
        (["--note", "some thing"], {"note": "some thing"}),
        (["--sizes", "3, 4,5"], {"sizes": (3, 4, 5)}),
        (["--sizes", ""], {"sizes": ()}),
        (["--pair", "-1,b"], {"pair": (-1.0, "b")}),
        (["--words", "a,b"], {"words": ["a", "b"]}),
        (["--mode", "slow"], {"mode": "slow"}),
        (["--stop", "auto"], {"stop": "auto"}),
        (["--stop", "1,2"], {"stop": (1, 2)}),
        (["--stop", "none"], {"stop": None}),
        (["--cached"], {"cached": True}),
        (["--cached", "none"], {"cached": None}),
        (["--no-cached"], {"cached": False}),
        (["--preset", "smoke"], {"iterations": 1, "sizes": (1,)}),
        (["--preset", "smoke", "--iterations", "2"], {"iterations": 2, "sizes": (1,)}),
        (["--iterations", "2", "--preset", "smoke"], {"iterations": 2, "sizes": (1,)}),
        (["--preset", "full"], {}),
    ],
)
def test_options(argv, expected):
    config = cli.parse(Config, argv)
    assert config == dataclasses.replace(Config(), **expected)
    for name, value in expected.items():
        assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--itertions", "3"], "unknown option --itertions. Did you mean --iterations?"),
        (["--learning_rat=3"], "unknown option --learning-rat. Did you mean --learning-rate?"),
        (["--qqqqqq"], "unknown option --qqqqqq."),
        (["--iter", "3"], "unknown option --iter."),
        (["--derived", "3"], "unknown option --derived."),
        (["iterations"], "unexpected argument 'iterations'"),
        (["--iterations", "3", "4"], "unexpected argument '4'"),
        (["--iterations", "many"], "--iterations: expected int, got 'many'"),
        (["--iterations", "1.5"], "expected int"),
        (["--iterations"], "expected one argument"),
        (["--iterations", "none"], "expected int"),
        (["--iterations", "-1"], "iterations must not be negative"),
        (["--xla", "maybe"], "expected bool, got 'maybe'"),
        (["--top-k", "x"], "expected int|none"),
        (["--sizes", "1,b"], "expected int,..."),
        (["--pair", "1"], "expected float,str"),
        (["--mode", "other"], "expected {fast,slow}"),
        (["--mode", "flow"], "expected {fast,slow}, got 'flow'. Did you mean slow?"),
        (["--stop", "uto"], "Did you mean auto?"),
        (["--preset", "other"], "--preset: expected one of smoke, full, got 'other'"),
        (["--preset", "smok"], "got 'smok'. Did you mean smoke?"),
    ],
)
def test_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Config, argv)
    assert exit_info.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_required_fields(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Required, [])
    assert exit_info.value.code == 2
    assert "missing: --source, --count" in capsys.readouterr().err
    assert cli.parse(Required, ["--source", "a", "--preset", "one"]) == Required("a", 1)


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(Config, ["--help"])
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A recipe that learns 100% of it." in text and "Never mind" not in text
    for field in dataclasses.fields(Config):
        assert (f"--{field.name.replace('_', '-')} " in text) == field.init
    assert "Where the run goes; a text that continues on the next line. (default: runs)" in text
    assert "At the start; falls by 5 % each time. (default: 1e-5)" in text
    assert "See: the layers. (default: 1,2)" in text
    assert "--note str|none (default: none)" in text
    assert "--xla [bool] (default: false; --no-xla for false)" in text
    assert "smoke: --iterations 1 --sizes 1 full: the defaults" in text


def test_values_of_the_help_can_be_typed():
    for field in dataclasses.fields(Config):
        if field.init:
            value = getattr(Config(), field.name)
            shown = cli.kinds.show(value)
            argv = [f"--{field.name.replace('_', '-')}", shown.strip("'")]
            assert getattr(cli.parse(Config, argv), field.name) == value


def test_help_shows_files_of_the_package_without_the_folders_of_this_machine(capsys):
    file = Path(cli.__file__).with_name("some.jsonl")
    bare = dataclasses.make_dataclass("Bare", [("data", str, str(file)), ("log", Path, Path(file))])
    with pytest.raises(SystemExit):
        cli.parse(bare, ["--help"], program="kerasrlhf bare")
    text = capsys.readouterr().out
    assert (
        text.count("kerasrlhf/cli/some.jsonl") == 2 and str(Path(cli.__file__).parent) not in text
    )
    assert text.startswith("usage: kerasrlhf bare [options]\n")


def test_usage_names_what_is_required(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Required, ["--help"])
    text = capsys.readouterr().out
    assert "--source STR --count INT [options]" in text and text.count("(required)") == 2


def test_help_without_docstring_or_presets(capsys):
    bare = dataclasses.make_dataclass("Bare", [("count", int, 3)])
    with pytest.raises(SystemExit):
        cli.parse(bare, ["-h"])
    text = capsys.readouterr().out
    assert "--count int" in text and "preset" not in text and "Bare(" not in text


def test_the_arguments_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--iterations", "8"])
    assert cli.parse(Config).iterations == 8


def test_presets_of_a_method():
    @dataclasses.dataclass(frozen=True)
    class Method:
        count: int = 0

        @classmethod
        def presets(cls):
            return {"two": {"count": 2}}

    assert cli.parse(Method, ["--preset", "two"]).count == 2


def with_presets(presets, *fields):
    return dataclasses.make_dataclass("Bad", fields, namespace={"presets": presets})


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        (dict, "must be a dataclass"),
        (Config(), "must be a dataclass"),
        (with_presets({"a": {"cout": 1}}, ("count", int, 0)), "'cout'.* Did you mean count"),
        (with_presets({"a": {}}, ("preset", str, "x")), "both `presets` and a field `preset`"),
        (dataclasses.make_dataclass("Bad", [("table", dict, None)]), "'table' has the type"),
        (dataclasses.make_dataclass("Bad", [("t", list[bytes], None)]), "'t' has the type"),
    ],
)
def test_classes_that_no_command_line_fits(config_class, message):
    with pytest.raises(ValueError, match=message):
        cli.parse(config_class, [])


def test_run_hands_the_config_to_main():
    assert cli.run(lambda config: config.count, Required, ["--preset", "one", "--source", "a"]) == 1


def test_run_shows_an_error_of_its_own_in_one_line(capsys):
    def main(config):
        raise ValueError("No such\n  file. Do this.")

    with pytest.raises(SystemExit) as caught:
        cli.run(main, Required, ["--preset", "one", "--source", "a"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith(": error: No such file. Do this.\n") and error.count("\n") == 1


def test_run_shows_an_error_of_the_package_in_one_line(capsys):
    from kerasrlhf import data

    with pytest.raises(SystemExit) as caught:
        cli.run(
            lambda config: data.records.load("a/b.jsonl"), Required, ["--preset=one", "--source=a"]
        )
    assert caught.value.code == 2
    assert "There is no file 'a/b.jsonl'" in capsys.readouterr().err


def test_run_keeps_the_traceback_of_other_errors():
    arguments = ["--preset", "one", "--source", "a"]
    with pytest.raises(json.JSONDecodeError):  # a ValueError from another library
        cli.run(lambda config: json.loads("{"), Required, arguments)
    with pytest.raises(KeyError):
        cli.run(lambda config: {}["a"], Required, arguments)


def test_load_function_from_a_file_and_a_module(tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text("def good(prompts, responses):\n    return [1.0]\n")
    assert cli.load_function(f"{tmp_path / 'my_reward.py'}:good")([], []) == [1.0]
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert cli.load_function("my_reward:good")([], []) == [1.0]
    assert sys.path == path
    with pytest.raises(ValueError, match=r"no function 'god'\. Did you mean good"):
        cli.load_function("my_reward.py:god")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math", "Expected a function"),
        (":sqrt", "Expected a function"),
        ("hf://a/b", "Expected a function"),
        ("math:pi", "no function 'pi'"),
        ("no_such_module:f", "Cannot import the module 'no_such_module'"),
        ("no/such/file.py:f", "There is no file"),
    ],
)
def test_functions_that_cannot_be_found(name, message):
    with pytest.raises(ValueError, match=message):
        cli.load_function(name)


@dataclasses.dataclass(frozen=True)
class Ranges:
    rate: float = 1.0
    rows: int = 4
    parts: int = 2
    limit: int | None = None
    coef: float = 0.0
    score: float | None = -1.0
    share: float = 0.5
    flag: bool = False
    mode: Literal["fast", "slow"] = "fast"
    folder: Path = Path("runs")

    def __post_init__(self):
        cli.check_ranges(
            self,
            zero=["coef"],
            signed=["score"],
            fractions=["share"],
            at_least={"parts": 2},
            multiples={"rows": "parts"},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "`--rate` must be above 0. Received: 0."),
        ({"rate": "1"}, "`--rate` must be a finite number. Received: '1'."),
        ({"rate": float("nan")}, "`--rate` must be a finite number. Received: nan."),
        ({"rows": 0}, "`--rows` must be at least 1. Received: 0."),
        ({"rows": 4.0}, "`--rows` must be an integer. Received: 4.0."),
        ({"rows": 5}, "`--rows` must be a multiple of `--parts`. Received: 5 and 2."),
        ({"parts": 1}, "`--parts` must be at least 2. Received: 1."),
        ({"limit": 0}, "`--limit` must be at least 1. Received: 0."),
        ({"coef": -0.5}, "`--coef` must be at least 0. Received: -0.5."),
        ({"score": float("inf")}, "`--score` must be a finite number. Received: inf."),
        ({"share": 1.0}, "`--share` must be above 0 and below 1. Received: 1.0."),
        ({"flag": "no"}, "`--flag` must be True or False. Received: 'no'."),
        ({"mode": "other"}, "`--mode` must be one of ('fast', 'slow'). Received: 'other'."),
        ({"folder": "runs"}, "`--folder` must be a path. Received: 'runs' of type str."),
        ({"rate": None}, "`--rate` must be a finite number. Received: None."),
    ],
)
def test_ranges(options, message):
    assert Ranges(score=None, limit=3).rows == 4
    with pytest.raises(ValueError, match=re.escape(message)):
        Ranges(**options)


def test_ranges_of_fields_that_are_not_there():
    with pytest.raises(ValueError, match=r"Required has no fields \['cuont'\]"):
        cli.check_ranges(Required("a", 1), at_least={"cuont": 1})


def test_a_range_is_one_line_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(Ranges, ["--rate", "-1"])
    assert caught.value.code == 2
    assert "error: `--rate` must be above 0. Received: -1.0.\n" in capsys.readouterr().err


class Clock:
    """Seconds that a test can pass at once."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(cli.progress.time, "perf_counter", lambda: self.now)


def test_progress_prints_seconds_and_what_the_folder_holds(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    progress = cli.Progress(tmp_path / "run")
    clock.now += 75.4
    progress.step("Training")
    assert capsys.readouterr().out == "\n[  75 s] Training\n"
    (tmp_path / "run" / "model").mkdir(parents=True)
    progress.finish({"score": 1.5, "output": tmp_path})
    assert json.loads((tmp_path / "run/report.json").read_text()) == {
        "score": 1.5,
        "output": str(tmp_path),
    }
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"Done after 75 s. Results in {tmp_path / 'run'}",
        "  model/         the trained model, a keras-hub preset",
        "  report.json    settings, figures and samples",
    ]


@pytest.mark.parametrize("name", ["report.json", "state"])
def test_a_folder_that_holds_a_run_is_not_used_by_accident(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="replace it with --overwrite, or change --output"):
        cli.Progress(tmp_path)
    with pytest.raises(ValueError, match="continue it with --resume, replace it"):
        cli.Progress(tmp_path, resume=False)
    cli.Progress(tmp_path, resume=True, overwrite=True)
    assert (tmp_path / name).exists()


def test_overwriting_removes_results_and_nothing_else(tmp_path):
    for folder in ("model/assets", "state", "logs", "member_0/logs", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("report.json", "samples.jsonl", "notes.txt"):
        (tmp_path / file).write_text("{}")
    progress = cli.Progress(tmp_path, overwrite=True)
    assert (tmp_path / "model/assets").exists(), "the run may start from this model"
    progress.step("Training")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes.txt"]
    (tmp_path / "model").mkdir()
    progress.step("After training")
    assert (tmp_path / "model").exists(), "this run's own"


def test_trials_replace_trials(tmp_path):
    (tmp_path / "smoke/sft").mkdir(parents=True)
    (tmp_path / "smoke/sft/report.json").write_text("{}")
    cli.Progress(tmp_path / "smoke/sft").step("Training")
    assert not [*(tmp_path / "smoke/sft").iterdir()]


def test_keras_shows_a_bar_on_a_terminal_only(tmp_path, monkeypatch):
    progress = cli.Progress(tmp_path)
    assert progress.verbose == 2
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert progress.verbose == 1
