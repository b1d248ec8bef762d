"""Text classification: a language model learns to answer with the right label.

    python recipes/classification.py
    python recipes/classification.py --preset smollm2 --model SmolLM2-135M-Instruct \\
        --data sentiment_sentences.jsonl.gz --words negative,positive \\
        --texts wikitext2_test.jsonl.gz

Records have `text` and `label`. The model is fine-tuned on a few of them, and reinforced on all:
a response with the right label scores 1. The report compares, on held-out records, the start, the
fine-tuned model, the best of eight of its responses (which the labels choose, so this is what the
model could answer), its answers where it may only answer with labels, and the model after PPO, free
and with labels only. `output` receives the model (`model`, a keras-hub preset), `report.json`,
curves for TensorBoard (`logs`) and the state of the run (`state`): started again with `--resume`,
an interrupted run continues after the last finished step or state. A trial of seconds:
`python recipes/classification.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import SMOKE, SMOLLM2, Progress, TaskConfig, run

import keras

import kerasrlhf as rlhf

SAMPLE = pathlib.Path(__file__).with_name("classification.jsonl")


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Teaches a model to label texts.

    Args:
        words: The words of the labels, in the order of the sorted labels in the data; none for the
            labels themselves.
        template: The prompt, with columns in braces; \\n is a line break.
        most_words: Words of a text at most; longer records are left out, because all prompts are
            padded to the longest.
        length: Tokens of a response at most.
    """

    output: pathlib.Path = pathlib.Path("runs/classification")
    words: tuple[str, ...] | None = None
    template: str = "Text: {text}\\nLabel:"
    most_words: int = 40
    length: int = 4

    presets: ClassVar[dict] = {
        "smoke": {**SMOKE, "output": pathlib.Path("runs/smoke/classification")},
        "smollm2": {
            **SMOLLM2,
            "output": pathlib.Path("runs/smollm2/classification"),
            "held_out": 500,
            "most_words": 25,
            "demonstrations": 64,
            "iterations": 100,
        },
    }

    def __post_init__(self):
        self.check()


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. The task, with the labels of the data.
    learned, held_out = rlhf.applications.read_records(
        config, SAMPLE, keep=lambda row: len(row["text"].split()) <= config.most_words
    )
    template = config.template.replace("\\n", "\n")
    task = rlhf.tasks.Classification(labels(learned, config.words), template, length=config.length)
    # 2. The model as it is.
    task_run = rlhf.applications.TaskRun(task, config, held_out, progress.verbose)
    progress.step("Held-out records before training")
    task_run.measure("start")
    # 3. Fine-tuning on a few records, and what could be had without reinforcement.
    progress.step("Fine-tuning")
    task_run.fine_tune(learned[: config.demonstrations])
    task_run.measure("SFT")
    answer_with_labels(task_run, "SFT, labels only")
    task_run.measure_best_of(f"best of {config.best_of} (SFT)")
    # 4. Reinforcement on all records.
    progress.step("PPO")
    task_run.reinforce(learned)
    task_run.measure("PPO")
    answer_with_labels(task_run, "PPO, labels only")
    # 5. The model, the table and samples.
    report = task_run.finish()
    progress.finish(report)
    return report


def labels(records, words):
    """Returns a dict from the labels of records to their words."""
    found = sorted({record["label"] for record in records})
    words = [str(label) for label in found] if words is None else words
    if len(words) != len(found):
        raise ValueError(
            f"`--words` must name each of the labels {found}. Received {len(words)}: {words}."
        )
    return dict(zip(found, words, strict=True))


def answer_with_labels(task_run, name):
    """Adds a stage in which the model may only answer with a label."""
    task, config = task_run.task, task_run.config

    def answer(records):
        logprobs = rlhf.evaluation.choice_logprobs(
            task_run.causal_lm,
            [record["prompt"] for record in task.prompts(records)],
            task.choices,
            batch_size=config.batch_size,
            jit_compile=config.jit_compile,
        )
        return task.chosen(logprobs)

    task_run.add_stage(name, answer)


if __name__ == "__main__":
    run(main, Config)
