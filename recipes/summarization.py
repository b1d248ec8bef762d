"""Summarization: a language model learns short summaries that share words with the references.

    python recipes/summarization.py
    python recipes/summarization.py --preset smollm2 --model SmolLM2-135M-Instruct \\
        --data scitldr_train.jsonl.gz --test scitldr_test.jsonl.gz --texts wikitext2_test.jsonl.gz

Records have `document`, and `summaries` (a list) or `summary`. The model is fine-tuned on some of
them, and reinforced on all: the score is ROUGE-L, less penalties for a wrong length and for
repeated words. ROUGE rewards shared words and nothing else, so read the samples too. The report
compares the start, the fine-tuned model, the best of eight of its responses (which the references
choose, so this is what the model could answer) and the model after PPO, on held-out documents.
`output` receives the model (`model`, a keras-hub preset), `report.json`, curves for TensorBoard
(`logs`) and the state of the run (`state`): started again with `--resume`, an interrupted run
continues after the last finished step or state. A trial of seconds:
`python recipes/summarization.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import SMOKE, SMOLLM2, Progress, TaskConfig, run

import keras

import kerasrlhf as rlhf

SAMPLE = pathlib.Path(__file__).with_name("summarization.jsonl")


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Teaches a model to summarize documents.

    Args:
        document_words: Words of a document that the model reads.
        least_words: Words of a summary without a penalty, at least.
        most_words: Words of a summary without a penalty, at most.
        length: Tokens of a response at most.
    """

    output: pathlib.Path = pathlib.Path("runs/summarization")
    document_words: int = 120
    least_words: int = 6
    most_words: int = 30
    length: int = 32

    presets: ClassVar[dict] = {
        "smoke": {**SMOKE, "output": pathlib.Path("runs/smoke/summarization"), "length": 10},
        "smollm2": {
            **SMOLLM2,
            "output": pathlib.Path("runs/smollm2/summarization"),
            "iterations": 40,
            "document_words": 80,
        },
    }

    def __post_init__(self):
        self.check()


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Documents, and the task.
    learned, held_out = rlhf.applications.read_records(config, SAMPLE)
    task = rlhf.tasks.Summarization(
        document_words=config.document_words,
        words=(config.least_words, config.most_words),
        length=config.length,
    )
    # 2. The model as it is.
    task_run = rlhf.applications.TaskRun(task, config, held_out, progress.verbose)
    progress.step("Held-out documents before training")
    task_run.measure("start")
    # 3. Fine-tuning on some documents, and the best of several responses after it.
    progress.step("Fine-tuning")
    task_run.fine_tune(learned[: config.demonstrations])
    task_run.measure("SFT")
    task_run.measure_best_of(f"best of {config.best_of} (SFT)")
    # 4. Reinforcement on all documents.
    progress.step("PPO")
    task_run.reinforce(learned)
    task_run.measure("PPO")
    # 5. The model, the table and samples.
    report = task_run.finish()
    progress.finish(report)
    return report


if __name__ == "__main__":
    run(main, Config)
