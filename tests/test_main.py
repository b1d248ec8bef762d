"""The command line of the package, in processes of its own where TensorFlow's start matters."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import pytest

from kerasrlhf.cli import commands, kinds

ROOT = Path(__file__).parents[1]
QUIET = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
QUIET |= {"PYTHONPATH": str(ROOT)}

NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795938668.849515    3179 port.cc:153] oneDNN custom operations are on. You may see
W0000 00:00:1795938668.849515    3179 cuda/gpu_device.cc:2344] Cannot dlopen some GPU libraries.
2024-05-01 10:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN custom operations are on.
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the \
appropriate compiler flags.
E0000 00:00:1795938680.076904    3179 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA \
error: Failed call to cuInit: UNKNOWN ERROR (303)
E0000 00:00:1795938680.076904    3179 util.cc:131] oneDNN supports DT_INT32 only on platforms with \
AVX-512. Falling back to the default Eigen-based implementation if present.
"""
ERRORS = """\
E0000 00:00:1795938680.076904    3179 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA \
error: Failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
E0000 00:00:1795938680.076904    3179 allocator.cc:52] out of memory
F0000 00:00:1795938680.076904    3179 tensor.cc:52] Check failed: dtype() == expected
UserWarning: 3 rows were left out
I am a line without a format
"""


def python(code, *arguments, cwd, **options):
    """Runs code in a process without TensorFlow and without a setting of its logging."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=QUIET, capture_output=True, text=True, timeout=120, **options
    )


def test_help_of_every_command_needs_no_tensorflow(tmp_path):
    """In one process: the first `--help` has to import all that the others need."""
    code = """
        import contextlib, sys, time
        sys.argv[0] = "bin/kerasrlhf"
        from kerasrlhf.cli import commands
        for name in ["", *commands.COMMANDS]:
            print(f"== {name}", flush=True)
            with contextlib.suppress(SystemExit):
                commands.main([name, "--help"] if name else ["--help"])
            if name in ("", "quickstart"):
                print(f"took {time.process_time():.3f}")
        print(sorted({"tensorflow", "keras.src", "keras_hub.src"} & {*sys.modules}))
    """
    ran = python(code, cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1] == "[]"
    assert all(float(x) < 1 for x in re.findall(r"took (\S+)", ran.stdout))
    assert str(ROOT) not in ran.stdout and "PosixPath" not in ran.stdout
    shown = dict(re.findall(r"== ([\w-]*)\n(.*?)(?=\n==|\Z)", ran.stdout, re.DOTALL))
    assert [*shown] == ["", *commands.COMMANDS]
    assert all(f"  {name} " in shown[""] for name in commands.COMMANDS)
    for name, command in commands.COMMANDS.items():
        assert shown[name].startswith(f"usage: kerasrlhf {name} ")
        assert f"(default: runs/{name})" in " ".join(shown[name].split())
        assert f"--output runs/smoke/{name} " in " ".join(shown[name].split())
        assert not [field for field in command.decided if f"--{field} " in shown[name]]


RUN = """
    import os, sys, warnings
    sys.argv[0] = "recipes/trial.py"
    from kerasrlhf.cli.recipe import run
    import dataclasses, keras

    import kerasrlhf as rlhf

    @dataclasses.dataclass(frozen=True)
    class Config:
        how: str

    def main(config):
        print(keras.ops.sum([1, 2]).numpy(), rlhf.functional.masking.__name__)
        warnings.warn("ours")
        if config.how == "fails":
            {}["key"]

    before = sorted({"tensorflow", "keras.src"} & {*sys.modules})
    print(before)
    for how in ("works", "fails"):
        run(main, Config, ["--how", how])
"""


def test_a_recipe_prints_nothing_of_tensorflow_and_its_own_errors(tmp_path):
    """One process, because TensorFlow takes seconds: a run that works and one that fails."""
    ran = python(RUN, cwd=tmp_path)
    lines = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert ran.stdout.splitlines() == ["[]", *["3 kerasrlhf.functional.masking"] * 2]
    assert lines[0].endswith(": UserWarning: ours")
    assert lines[1] == "Traceback (most recent call last):" and lines[-1] == "KeyError: 'key'"
    assert all(line.startswith(("  ", "KeyError")) for line in lines[2:])


WRITE = """
    import os, signal, sys, time
    # A suite in the background of a shell ignores it, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    how, sys.argv[0] = sys.argv[1], "recipes/trial.py"
    from kerasrlhf.cli import quiet
    with quiet.without_noise():
        os.write(2, sys.stdin.buffer.read())
        if how == "abort":
            os.abort()
        if how == "raise":
            raise KeyError("key")
        if how == "wait":
            print("waiting", flush=True)
            time.sleep(60)
    os.write(2, b"I0000 00:00:1.2 3 port.cc:153] after it\\n")
"""


def test_only_noise_is_dropped(tmp_path):
    ran = python(WRITE, "end", cwd=tmp_path, input=NOISE + ERRORS + NOISE + "no line end")
    assert ran.stderr == ERRORS + "no line end" + "I0000 00:00:1.2 3 port.cc:153] after it\n"


def test_errors_survive_a_crash_of_native_code_and_an_exception(tmp_path):
    crashed = python(WRITE, "abort", cwd=tmp_path, input=NOISE + ERRORS)
    assert crashed.returncode == -signal.SIGABRT and crashed.stderr == ERRORS
    raised = python(WRITE, "raise", cwd=tmp_path, input=NOISE + ERRORS)
    assert raised.stderr.startswith(ERRORS + "Traceback") and raised.stderr.endswith("'key'\n")


def test_a_keyboard_interrupt_shows_its_traceback(tmp_path):
    """As a terminal sends it: to all processes of the group."""
    command = [sys.executable, "-c", textwrap.dedent(WRITE), "wait"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = subprocess.Popen(command, cwd=tmp_path, env=QUIET, start_new_session=True, **pipes)
    started.stdin.write(ERRORS.encode())
    started.stdin.close()
    assert started.stdout.readline() == b"waiting\n"
    time.sleep(0.1)
    os.killpg(started.pid, signal.SIGINT)
    error = started.stderr.read().decode()
    started.wait(timeout=30)
    started.stdout.close()
    started.stderr.close()
    assert error.startswith(ERRORS + "Traceback") and error.endswith("KeyboardInterrupt\n")


def test_keras_is_delayed_until_it_is_used_even_after_tensorflow(tmp_path):
    """The package is loaded at the first use of a public name, with all that Keras deserializes."""
    code = """
        import sys
        sys.argv[0] = "recipes/trial.py"
        import kerasrlhf
        assert "keras" not in sys.modules and "PPO" in dir(kerasrlhf)
        from kerasrlhf.cli import recipe
        import keras, keras_hub
        assert "keras.src" not in sys.modules and not hasattr(kerasrlhf, "__wrapped__")
        import tensorflow
        assert keras.Model is sys.modules["keras"].Model
        assert keras_hub.models is sys.modules["keras_hub"].models
        from kerasrlhf import KLController
        assert issubclass(kerasrlhf.PPO, keras.Model) and not hasattr(kerasrlhf, "PPPO")
        assert keras.saving.get_registered_object("kerasrlhf>RewardModel") is kerasrlhf.RewardModel
    """
    ran = python(code, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "no command. `kerasrlhf --help` lists them"),
        (["pp0"], 2, "unknown command 'pp0'. Did you mean ppo?"),
        (["qqqqq"], 2, "unknown command 'qqqqq'. `kerasrlhf"),
        (["--version"], 0, "kerasrlhf "),
        (["rloo", "--algorithm", "grpo"], 2, "kerasrlhf rloo: error: unknown option --algorithm."),
        (["ppo", "--itertions", "3"], 2, "Did you mean --iterations?"),
        (["sft", "--preset", "smoke", "--epochs", "0"], 2, "`--epochs` must be at least 1"),
        (["kto", "--preset", "smok"], 2, "Did you mean smoke?"),
    ],
)
def test_wrong_commands(argv, code, message, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(argv)
    assert caught.value.code == code
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())


def test_a_command_decides_fields_and_has_a_folder_of_its_own():
    recipe = commands.load_file(commands.recipe_path("dpo"), "recipe_of_the_commands")
    config = commands.decided(recipe.Config, "orpo")(data="a.jsonl", epochs=2)
    assert isinstance(config, recipe.Config) and config.epochs == 2
    assert (config.method, config.output) == ("orpo", Path("runs/orpo"))
    assert dataclasses.asdict(config)["method"] == "orpo"
    assert recipe.Config.presets["smoke"]["output"] == Path("runs/smoke/dpo")
    with pytest.raises(TypeError, match="method"):
        commands.decided(recipe.Config, "orpo")(data="a.jsonl", method="dpo")


def test_every_recipe_is_a_command():
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    scripts = {"pretrain_tiny", "ppo_ray"}  # for developers, and for an extra of its own
    assert {command.recipe for command in commands.COMMANDS.values()} == recipes - scripts


def test_recipes_of_an_installed_package_are_inside_it(tmp_path, monkeypatch):
    file = tmp_path / "kerasrlhf/cli/commands.py"
    monkeypatch.setattr(commands, "__file__", str(file))
    assert commands.recipe_path("ppo") == tmp_path / "recipes/ppo.py"
    (tmp_path / "kerasrlhf/recipes").mkdir(parents=True)
    (tmp_path / "kerasrlhf/recipes/ppo.py").touch()
    assert commands.recipe_path("ppo") == tmp_path / "kerasrlhf/recipes/ppo.py"


def test_all_packages_are_in_the_wheel():
    """`.ci/run` compares the files; this says which name is missing, in no time."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    package = ROOT / "kerasrlhf"
    folders = {package, *(path for path in package.rglob("*") if path.is_dir())}
    names = {".".join(path.relative_to(ROOT).parts) for path in folders}
    names = {name for name in names if "__pycache__" not in name}
    assert {*settings["tool"]["setuptools"]["packages"]} == names | {"kerasrlhf.recipes"}
    module, _, function = settings["project"]["scripts"]["kerasrlhf"].partition(":")
    assert getattr(sys.modules[module], function) is commands.main


def test_values_are_shown_as_they_are_typed():
    shown = [kinds.show(x) for x in (None, True, 1e-5, 0.25, (1, 2), (), "", Path("a/b"))]
    assert shown == ["none", "true", "1e-5", "0.25", "1,2", "''", "''", "a/b"]
