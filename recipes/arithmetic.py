"""Arithmetic: word problems with a reward that can be verified, by PPO and GRPO side by side.

    python recipes/arithmetic.py
    python recipes/arithmetic.py --preset smollm2 --model SmolLM2-135M-Instruct \\
        --texts wikitext2_test.jsonl.gz

The problems, in the style of GSM8K, are generated: a name has a number of things, and gets or loses
some. The model is fine-tuned on a few solutions. Then PPO and GRPO each start from there, with as
many responses: a right answer scores 1. The report compares the start, the fine-tuned model, the
best of eight of its responses (which the answers choose: what the model solves at least once), PPO
and GRPO, on held-out problems. Records of `--data` have `question`, `answer` (a number) and
`solution`. `output` receives the model after GRPO (`model`, a keras-hub preset), `report.json`,
curves for TensorBoard (`logs`) and the state of the run (`state`): started again with `--resume`,
an interrupted run continues after the last finished step or state. A trial of seconds:
`python recipes/arithmetic.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import SMOKE, SMOLLM2, Progress, TaskConfig, run

import keras

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Teaches a model to solve word problems.

    Args:
        problems: Problems to generate, if there is no data.
        steps: Calculations of a problem.
        largest: Largest number at the start of a problem.
        group_size: Responses of GRPO to a problem; divides batch_size.
        length: Tokens of a response at most.
    """

    output: pathlib.Path = pathlib.Path("runs/arithmetic")
    problems: int = 600
    steps: int = 1
    largest: int = 20
    group_size: int = 8
    length: int = 32

    presets: ClassVar[dict] = {
        "smoke": {
            **SMOKE,
            "output": pathlib.Path("runs/smoke/arithmetic"),
            "problems": 24,
            "group_size": 2,
            "length": 10,
        },
        "smollm2": {
            **SMOLLM2,
            "output": pathlib.Path("runs/smollm2/arithmetic"),
            "problems": 4000,
            "iterations": 40,
            "steps": 2,
        },
    }

    def __post_init__(self):
        self.check(at_least={"group_size": 2}, multiples={"batch_size": "group_size"})


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Problems, and the task.
    learned, held_out = read_problems(config)
    task = rlhf.tasks.Arithmetic(length=config.length)
    # 2. The model as it is.
    task_run = rlhf.applications.TaskRun(task, config, held_out, progress.verbose)
    progress.step("Held-out problems before training")
    task_run.measure("start")
    # 3. Fine-tuning on a few solutions, and the best of several responses after it.
    progress.step("Fine-tuning")
    task_run.fine_tune(learned[: config.demonstrations])
    task_run.measure("SFT")
    task_run.measure_best_of(f"best of {config.best_of} (SFT)")
    # 4. Reinforcement: both algorithms start from the fine-tuned model.
    progress.step("PPO")
    task_run.reinforce(learned)
    task_run.measure("PPO")
    progress.step("GRPO")
    task_run.reinforce(learned, "grpo", group_size=config.group_size)
    task_run.measure("GRPO")
    # 5. The model, the table and samples.
    report = task_run.finish()
    progress.finish(report)
    return report


def read_problems(config):
    """Returns problems to learn from, and others to measure on."""
    if config.data is not None:
        return rlhf.applications.read_records(config, config.data)
    made = rlhf.tasks.arithmetic.problems(
        config.problems, config.steps, config.largest, config.seed
    )
    return rlhf.data.split(made, config.held_out, config.seed)


if __name__ == "__main__":
    run(main, Config)
