"""The commands of the package: each is a recipe, some with one of its fields decided."""

import dataclasses
import pathlib
import sys
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from kerasrlhf.cli import launching
from kerasrlhf.cli.kinds import nearest
from kerasrlhf.cli.running import load_file, run
from kerasrlhf.version import __version__


class Command(NamedTuple):
    """A recipe, what it is for, and the values of fields that the command decides."""

    recipe: str
    text: str
    decided: dict[str, Any] = {}  # noqa: RUF012 (never changed)


COMMANDS = {
    "quickstart": Command("quickstart", "all of RLHF on the embedded model, in minutes"),
    "sft": Command("sft", "supervised fine-tuning on demonstrations"),
    "reward": Command("reward_model", "a reward model from preference pairs"),
    "ppo": Command("ppo", "proximal policy optimization against a reward"),
    "ppo-ptx": Command("ppo_ptx", "PPO mixed with language modeling"),
    "rloo": Command("group", "REINFORCE, leave-one-out baseline", {"algorithm": "rloo"}),
    "grpo": Command("group", "group-relative policy optimization", {"algorithm": "grpo"}),
    "dr-grpo": Command("group", "GRPO without its two biases", {"algorithm": "dr_grpo"}),
    "dpo": Command("dpo", "direct preference optimization", {"method": "dpo"}),
    "ipo": Command("dpo", "identity preference optimization", {"method": "ipo"}),
    "kto": Command("dpo", "Kahneman-Tversky optimization", {"method": "kto"}),
    "orpo": Command("dpo", "odds-ratio preference optimization", {"method": "orpo"}),
    "best-of-n": Command("best_of_n", "sample n responses, keep and distill the best"),
    "sentiment": Command("sentiment", "a task: positive continuations of texts"),
    "classification": Command("classification", "a task: labels of texts"),
    "ner": Command("ner", "a task: named entities of sentences"),
    "summarization": Command("summarization", "a task: short summaries of documents"),
    "dialogue": Command("dialogue", "a task: replies that people prefer"),
    "arithmetic": Command("arithmetic", "a task: word problems; PPO and GRPO side by side"),
}
# Runs another command instead of a recipe.
_LAUNCH = "launch"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names.

    Args:
        argv: list of str, without the program's name. Defaults to None: `sys.argv[1:]`.

    Raises:
        SystemExit: With code 2 for wrong input, with code 0 after `--help` and `--version`.
    """
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if name in ("-h", "--help"):
        sys.stdout.write(_help())
        raise SystemExit(0)
    if name == "--version":
        sys.stdout.write(f"kerasrlhf {__version__}\n")
        raise SystemExit(0)
    if name == _LAUNCH:
        launching.main(arguments)
    if name not in COMMANDS:
        known = [*COMMANDS, _LAUNCH]
        problem = f"unknown command {name!r}.{nearest(name, known)}" if name else "no command."
        sys.stderr.write(f"kerasrlhf: error: {problem} `kerasrlhf --help` lists them.\n")
        raise SystemExit(2)
    # Loaded only now: `--help` and a wrong name take no time.
    file = recipe_path(COMMANDS[name].recipe)
    recipe = load_file(file, f"kerasrlhf.recipes.{file.stem}")
    run(recipe.main, decided(recipe.Config, name), arguments, program=f"kerasrlhf {name}")


def recipe_path(name: str) -> pathlib.Path:
    """Returns the file of a recipe: inside an installed package, next to it in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    packed = package / "recipes" / f"{name}.py"
    return packed if packed.is_file() else package.parent / "recipes" / f"{name}.py"


def decided(config_class: Any, name: str) -> Any:
    """Returns the dataclass of a command: decided fields are no options, and it has a folder."""
    values = COMMANDS[name].decided
    hints = typing.get_type_hints(config_class)
    folder = config_class.output
    # The results of each command go to a folder of its name.
    fields: list[tuple[str, Any, Any]] = [
        ("output", hints["output"], dataclasses.field(default=folder.with_name(name)))
    ]
    for field, value in values.items():
        # Decided: a default that the constructor does not take, and so no option.
        fields.append((field, hints[field], dataclasses.field(init=False, default=value)))
    # Copies: the recipe's own presets stay as they are.
    presets = {preset: dict(chosen) for preset, chosen in config_class.presets.items()}
    for chosen in presets.values():
        if "output" in chosen:
            chosen["output"] = chosen["output"].with_name(name)
    return dataclasses.make_dataclass(
        config_class.__name__,
        fields,
        bases=(config_class,),
        frozen=True,
        namespace={"presets": presets, "__doc__": config_class.__doc__},
    )


def _help() -> str:
    lines = [f"  {name:<16}{command.text}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kerasrlhf COMMAND [options]",
            "",
            "Reinforcement learning from human feedback for Keras, TensorFlow and keras-hub.",
            "",
            "commands:",
            *lines,
            f"  {_LAUNCH:<16}another command in several processes that train together",
            "",
            "`kerasrlhf COMMAND --help` lists the options of a command, and `--preset smoke` is a",
            "trial of seconds. `kerasrlhf --version` prints the version.",
            "",
        ]
    )
