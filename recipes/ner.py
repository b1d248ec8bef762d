"""Named entities: a language model learns to list the entities of a sentence in a fixed format.

    python recipes/ner.py
    python recipes/ner.py --preset smollm2 --model SmolLM2-135M-Instruct \\
        --data wnut17_train.jsonl.gz --test wnut17_test.jsonl.gz --texts wikitext2_test.jsonl.gz

Records have `tokens` and `tags` (BIO). A response is `person: Anna Smith; location: Paris`, or
`none`; what cannot be read scores 0. The model is fine-tuned on some sentences, and reinforced on
all: the score is the F1 of the sentence. The report compares the start, the fine-tuned model, the
best of eight of its responses (which the tags choose, so this is what the model could answer) and
the model after PPO, on held-out sentences. `output` receives the model (`model`, a keras-hub
preset), `report.json`, curves for TensorBoard (`logs`) and the state of the run (`state`): started
again with `--resume`, an interrupted run continues after the last finished step or state. A trial
of seconds: `python recipes/ner.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import SMOKE, SMOLLM2, Progress, TaskConfig, run

import keras

import kerasrlhf as rlhf

SAMPLE = pathlib.Path(__file__).with_name("ner.jsonl")


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Teaches a model to list the entities of sentences.

    Args:
        empty: Whether sentences without entities are used too. Where most have none, a model can
            score well by always answering that there is none.
        most_tokens: Tokens of a sentence at most, as the data counts them.
        length: Tokens of a response at most.
    """

    output: pathlib.Path = pathlib.Path("runs/ner")
    empty: bool = False
    most_tokens: int = 30
    length: int = 40

    presets: ClassVar[dict] = {
        "smoke": {**SMOKE, "output": pathlib.Path("runs/smoke/ner"), "length": 12},
        "smollm2": {
            **SMOLLM2,
            "output": pathlib.Path("runs/smollm2/ner"),
            "demonstrations": 256,
            "iterations": 60,
            "length": 32,
        },
    }

    def __post_init__(self):
        self.check()


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Sentences, and the task with their types of entities.
    learned, held_out = rlhf.applications.read_records(
        config,
        SAMPLE,
        keep=lambda row: (
            (config.empty or set(row["tags"]) != {"O"}) and len(row["tokens"]) <= config.most_tokens
        ),
    )
    types = sorted({tag[2:] for row in learned for tag in row["tags"] if tag != "O"})
    task = rlhf.tasks.NER(types, length=config.length)
    # 2. The model as it is.
    task_run = rlhf.applications.TaskRun(task, config, held_out, progress.verbose)
    progress.step("Held-out sentences before training")
    task_run.measure("start")
    # 3. Fine-tuning on some sentences, and the best of several responses after it.
    progress.step("Fine-tuning")
    task_run.fine_tune(learned[: config.demonstrations])
    task_run.measure("SFT")
    task_run.measure_best_of(f"best of {config.best_of} (SFT)")
    # 4. Reinforcement on all sentences.
    progress.step("PPO")
    task_run.reinforce(learned)
    task_run.measure("PPO")
    # 5. The model, the table and samples.
    report = task_run.finish()
    progress.finish(report)
    return report


if __name__ == "__main__":
    run(main, Config)
