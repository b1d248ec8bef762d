"""The options that the recipes of tasks share."""

import dataclasses
import pathlib
from typing import Any

from kerasrlhf import presets as models
from kerasrlhf.cli.ranges import check_ranges


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Fine-tunes a model for a task, and trains it with reinforcement learning.

    A recipe derives its dataclass from this one, with further fields and other defaults. The help
    texts of both are shown.

    Args:
        data: Records to learn from, a .jsonl, .json, .csv (also .gz) or .parquet file; none for the
            small sample that comes with the recipe.
        test: Records to measure on; none to keep some of data back.
        texts: Texts whose perplexity is measured, records with text; none for stories.
        model: A keras-hub preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        resume: Continue from the state in output.
        overwrite: Remove the results of an earlier run in output.
        held_out: Records to measure on.
        demonstrations: Records to fine-tune on; none for all.
        sft_epochs: Passes over the demonstrations.
        sft_batch_size: Demonstrations of an update.
        sft_learning_rate: Of Adam at the start; falls linearly to 0.
        max_prompts: Records to reinforce on at most; none for all.
        iterations: Batches of prompts to sample, score and learn from.
        batch_size: Prompts of an iteration.
        validate_every: Iterations between validations; divides iterations.
        validation: Prompts of a validation; a multiple of batch_size.
        save_every: Iterations between states.
        learning_rate: Of reinforcement, of Adam at the start; falls linearly to 0.
        kl_coef: Score units per nat of KL from the fine-tuned model.
        update_epochs: Passes over the responses of an iteration.
        num_minibatches: Updates of a pass.
        micro_batches: Parts that an update is computed in, to save memory.
        temperature: Of sampling, also of the best of n.
        best_of: Responses of the fine-tuned model to choose the best from, for comparison.
        best_of_prompts: Held-out prompts to do that for; none for all.
        lora_rank: Rank of LoRA adapters, merged when the model is saved; 0 to train all weights.
        dtype: Of the weights, such as mixed_bfloat16; none for the preset's own.
        samples: Responses in the report.
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    data: str | None = None
    test: str | None = None
    texts: str | None = None
    model: str = models.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/task")
    resume: bool = False
    overwrite: bool = False
    held_out: int = 8
    demonstrations: int | None = None
    sft_epochs: int = 8
    sft_batch_size: int = 8
    sft_learning_rate: float = 1e-3
    max_prompts: int | None = None
    iterations: int = 40
    batch_size: int = 8
    validate_every: int = 20
    validation: int = 8
    save_every: int = 5
    learning_rate: float = 3e-4
    kl_coef: float = 0.05
    update_epochs: int = 2
    num_minibatches: int = 2
    micro_batches: int = 1
    temperature: float = 1.0
    best_of: int = 8
    best_of_prompts: int | None = None
    lora_rank: int = 0
    dtype: str | None = None
    samples: int = 3
    jit_compile: bool = True
    seed: int = 0

    def check(self, **ranges: Any) -> None:
        """Checks all fields, those of a recipe included; for its `__post_init__`.

        Args:
            **ranges: of `check_ranges`, for fields of the recipe.

        Raises:
            ValueError: If a field is outside its range.
        """
        own: dict[str, Any] = {
            "zero": ["kl_coef", "lora_rank", "samples", "seed"],
            "at_least": {"best_of": 2, "held_out": 2},
            "multiples": {"validation": "batch_size", "iterations": "validate_every"},
        }
        for name, value in ranges.items():
            known = own.get(name)
            if isinstance(known, list):
                own[name] = [*known, *value]
            else:
                own[name] = {**known, **value} if known else value
        check_ranges(self, **own)


# Values for SmolLM2-135M with LoRA on two cores: within an hour.
SMOLLM2: dict[str, Any] = {
    "lora_rank": 16,
    "held_out": 300,
    "demonstrations": 128,
    "sft_epochs": 3,
    "sft_batch_size": 8,
    "sft_learning_rate": 1e-3,
    "iterations": 120,
    "batch_size": 32,
    "validate_every": 20,
    "validation": 64,
    "learning_rate": 2e-4,
    "update_epochs": 2,
    "num_minibatches": 2,
    "best_of_prompts": 150,
}

# A trial of seconds, for tests.
SMOKE: dict[str, Any] = {
    "held_out": 4,
    "demonstrations": 8,
    "sft_epochs": 1,
    "sft_batch_size": 4,
    "iterations": 1,
    "batch_size": 4,
    "validate_every": 1,
    "validation": 4,
    "save_every": 1,
    "update_epochs": 1,
    "num_minibatches": 1,
    "best_of": 2,
    "best_of_prompts": 4,
    "samples": 2,
    "jit_compile": False,
}
