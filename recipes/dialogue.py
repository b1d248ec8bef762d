"""Dialogue: replies that people prefer, by a reward model that has learned from their choices.

    python recipes/dialogue.py
    python recipes/dialogue.py --preset smollm2 --model SmolLM2-135M-Instruct \\
        --data hh_rlhf_train.jsonl.gz --test hh_rlhf_test.jsonl.gz --texts wikitext2_test.jsonl.gz

Records have `prompt`, a text that ends with the name of the assistant, `chosen` and `rejected`. The
model is fine-tuned on chosen replies. Two reward models learn from different halves of the pairs:
one is the reward of PPO, and the other, which nothing is trained against, is the judge of the
report. So a policy that only finds errors of its reward gains nothing there. The report compares
the start, the fine-tuned model, the best of eight of its replies (by the reward) and the model
after PPO, on held-out prompts; `win` is how often the judge scores a reply above the chosen one.
`output` receives the model (`model`, a keras-hub preset), `report.json`, curves for TensorBoard
(`logs`) and the state of the run (`state`): started again with `--resume`, an interrupted run
continues after the last finished step or state. A trial of seconds:
`python recipes/dialogue.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import SMOKE, SMOLLM2, Progress, TaskConfig, run

import keras

import kerasrlhf as rlhf

SAMPLE = pathlib.Path(__file__).with_name("dialogue.jsonl")


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Teaches a model to reply as people prefer.

    Args:
        pairs: Pairs that each of the two reward models learns from; none for half of all.
        reward_epochs: Passes over them.
        reward_batch_size: Pairs of an update.
        reward_learning_rate: Of Adam for the reward models.
        most_words: Words of a prompt and of each reply at most; longer records are left out.
        length: Tokens of a response at most.
    """

    output: pathlib.Path = pathlib.Path("runs/dialogue")
    pairs: int | None = None
    reward_epochs: int = 2
    reward_batch_size: int = 8
    reward_learning_rate: float = 1e-4
    most_words: int = 60
    length: int = 32

    presets: ClassVar[dict] = {
        "smoke": {
            **SMOKE,
            "output": pathlib.Path("runs/smoke/dialogue"),
            "reward_epochs": 1,
            "reward_batch_size": 4,
            "pairs": 8,
            "length": 6,
        },
        "smollm2": {
            **SMOLLM2,
            "output": pathlib.Path("runs/smollm2/dialogue"),
            "iterations": 30,
            "validate_every": 10,
            "pairs": 400,
            "held_out": 200,
            "reward_epochs": 1,
            "reward_learning_rate": 2e-4,
            "most_words": 50,
        },
    }

    def __post_init__(self):
        self.check()


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Short dialogues, and the task; its reward models come later.
    learned, held_out = rlhf.applications.read_records(
        config,
        SAMPLE,
        keep=lambda row: all(
            len(row[name].split()) <= config.most_words for name in ("prompt", "chosen", "rejected")
        ),
    )
    task = rlhf.tasks.Dialogue(length=config.length)
    # 2. The model as it is.
    task_run = rlhf.applications.TaskRun(task, config, held_out, progress.verbose)
    progress.step("Held-out prompts before training")
    task_run.measure("start")
    # 3. Fine-tuning on chosen replies.
    progress.step("Fine-tuning")
    task_run.fine_tune(learned[: config.demonstrations])
    task_run.measure("SFT")
    # 4. A reward model, and a judge that learns from other pairs.
    count = min(config.pairs or len(learned), len(learned) // 2)
    models, accuracies = [], {}
    for name, pairs in (("reward", learned[:count]), ("judge", learned[-count:])):
        progress.step(f"Model of preferences: {name}")
        models.append(learn_preferences(task_run, name, pairs))
        accuracies[name] = accuracy(task, models[-1], held_out)
    task = task_run.task = rlhf.tasks.Dialogue(*models, length=config.length)
    task_run.measure_best_of(f"best of {config.best_of} (SFT)")
    # 5. Reinforcement.
    progress.step("PPO")
    task_run.reinforce(learned)
    task_run.measure("PPO")
    # 6. The model, the table and samples.
    report = {**task_run.finish(), "accuracy": accuracies}
    for name, found in accuracies.items():
        print(f"accuracy of the {name} on held-out pairs: {found}")
    progress.finish(report)
    return report


def learn_preferences(task_run, name, records):
    """Returns a reward model that starts from the fine-tuned model and learns from pairs."""
    task, config = task_run.task, task_run.config
    model = rlhf.RewardModel.from_causal_lm(task_run.causal_lm)
    if config.lora_rank:
        model.backbone.enable_lora(config.lora_rank)
    pairs = rlhf.data.preferences(
        task.preferences(records),
        model.preprocessor,
        min(config.reward_batch_size, len(records)),
        seed=config.seed,
        drop_remainder=True,
    )
    optimizer = keras.optimizers.Adam(config.reward_learning_rate)
    model.compile(optimizer, jit_compile=config.jit_compile)

    def fit():
        model.fit(pairs, epochs=config.reward_epochs, shuffle=False, verbose=task_run.verbose)
        # Scores of the fine-tuned model have mean 0 and variance 1 (N9).
        prompts = [row["prompt"] for row in task_run.held_out]
        model.normalize(prompts, responses=task_run.stages[-1].responses)

    # A run that is resumed loads the weights instead.
    task_run.train(name, model, fit)
    return model


def accuracy(task, model, records):
    """Returns how often a reward model prefers the chosen reply, with its interval."""
    pairs = task.preferences(records)
    prompts = [pair["prompt"] for pair in pairs]
    scores = [model.score(prompts, [x[name] for x in pairs]) for name in ("chosen", "rejected")]
    return rlhf.evaluation.fraction_interval(float((scores[0] > scores[1]).mean()), len(pairs))


if __name__ == "__main__":
    run(main, Config)
