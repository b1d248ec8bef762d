"""Sentiment: a model that continues texts learns to continue them positively.

    python recipes/sentiment.py
    python recipes/sentiment.py --preset smollm2 --model SmolLM2-135M-Instruct \\
        --data sentiment_sentences.jsonl.gz --texts wikitext2_test.jsonl.gz

Records have `text`, whose first words are the prompt, or `prompt` and `response`. The model is
fine-tuned on the texts as they are, happy and unhappy ones, and then reinforced. The report
compares four stages on held-out prompts: the start, after fine-tuning, the best of eight responses
of the fine-tuned model, and after PPO. `output` receives the model (`model`, a keras-hub preset),
`report.json`, curves for TensorBoard (`logs`) and the state of the run (`state`): started again
with `--resume`, an interrupted run continues after the last finished step or state. A trial of
seconds: `python recipes/sentiment.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import SMOKE, SMOLLM2, Progress, TaskConfig, run

import keras

import kerasrlhf as rlhf

SAMPLE = pathlib.Path(__file__).with_name("sentiment.jsonl")


@dataclasses.dataclass(frozen=True)
class Config(TaskConfig):
    """Fine-tunes a model on texts, and teaches it to continue them positively.

    Args:
        reward: What scores responses: vader; words (no further package); a folder of a saved reward
            model; or a Python function of responses, as package.module:function or
            path/to/file.py:function.
        prompt_words: Words of a text that are its prompt.
        length: Tokens of a response at most.
    """

    output: pathlib.Path = pathlib.Path("runs/sentiment")
    reward: str = "vader"
    prompt_words: int = 4
    length: int = 24

    presets: ClassVar[dict] = {
        "smoke": {
            **SMOKE,
            "output": pathlib.Path("runs/smoke/sentiment"),
            "reward": "words",
            "length": 6,
        },
        "smollm2": {**SMOLLM2, "output": pathlib.Path("runs/smollm2/sentiment")},
    }

    def __post_init__(self):
        self.check()


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. The task, and records with more words than a prompt.
    named = config.reward in ("vader", "words")
    reward = config.reward if named else rlhf.load_reward(config.reward)
    task = rlhf.tasks.Sentiment(reward, words=config.prompt_words, length=config.length)
    least = config.prompt_words + 3
    learned, held_out = rlhf.applications.read_records(
        config, SAMPLE, keep=lambda row: "prompt" in row or len(row["text"].split()) >= least
    )
    # 2. The model as it is.
    task_run = rlhf.applications.TaskRun(task, config, held_out, progress.verbose)
    progress.step("Held-out prompts before training")
    task_run.measure("start")
    # 3. Fine-tuning on texts, and the best of several responses after it.
    progress.step("Fine-tuning")
    task_run.fine_tune(learned[: config.demonstrations])
    task_run.measure("SFT")
    task_run.measure_best_of(f"best of {config.best_of} (SFT)")
    # 4. Reinforcement.
    progress.step("PPO")
    task_run.reinforce(learned)
    task_run.measure("PPO")
    # 5. The model, the table and samples.
    report = task_run.finish()
    progress.finish(report)
    return report


if __name__ == "__main__":
    run(main, Config)
