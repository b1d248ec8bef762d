"""The steps that every task has: load, fine-tune, reinforce, and measure after each."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from kerasrlhf import data, evaluation
from kerasrlhf.applications import run_state
from kerasrlhf.applications.tables import Stage, Table
from kerasrlhf.callbacks import Resume, TensorBoard
from kerasrlhf.cli.task_config import TaskConfig
from kerasrlhf.data.records import Record, Records
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.rollouts.best_of_n import best_of_n
from kerasrlhf.tasks import stories
from kerasrlhf.tasks.task import Task
from kerasrlhf.trainers.grpo import GRPO
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import require_choice

# Texts for the perplexity: how many, their words, and tokens at most.
_TEXTS, _TEXT_WORDS, _TEXT_TOKENS = 32, 120, 200
_MULTIPLE = 8
# Fields that do not change what a run finds.
_FREE = {"output", "resume", "overwrite", "save_every", "samples"}


class TaskRun:
    """A model that is fine-tuned for a task, reinforced, and measured on held-out records.

    Each method is a step, in the order of a recipe. `measure` answers the held-out prompts with the
    most likely tokens and keeps the answers; metrics are computed at the end. So a task may get its
    rewards on the way, as one with a reward model does: set `task` then.

    What a step has found is kept under `state` in the folder `config.output`. A run that is
    started again with `config.resume`, with the same steps in the same order, takes it from there,
    continues a `reinforce` that was interrupted, and ends with the table and the weights of a run
    that nothing interrupted. Every step ends with new seeds of Python, NumPy and the backend, so
    that what comes next does not depend on whether the step was done or loaded.

    Args:
        task: `Task`.
        config: `TaskConfig`, or a dataclass that derives from it.
        held_out: list of records that nothing is trained on.
        verbose: int. How Keras shows its progress, as in `fit`. Defaults to 0.

    Attributes:
        task: the task.
        causal_lm: keras-hub `CausalLM` that is trained.
        stages: list of `Stage`, the answers so far.
        seconds: dict from steps to how long they took in this process: about 0 for what was
            loaded, and without the iterations of an earlier process.

    Raises:
        ValueError: If the run to continue had other settings, apart from `output`, `overwrite`,
            `save_every` and `samples`, or other held-out prompts.

    Example:
        >>> import tempfile
        >>> from kerasrlhf.cli.recipe import TaskConfig
        >>> task = rlhf.tasks.Classification(["cat", "dog"], template="{text}", length=2)
        >>> records = [{"text": "It barks.", "label": "dog"}] * 2
        >>> config = TaskConfig(output=tempfile.mkdtemp(), jit_compile=False, best_of=2)
        >>> run = rlhf.applications.TaskRun(task, config, records)
        >>> run.measure("start", perplexity=False)
        >>> list(run.table().rows)
        ['start']
    """

    def __init__(self, task: Task, config: TaskConfig, held_out: Records, verbose: int = 0) -> None:
        self.task, self.config, self.held_out, self.verbose = task, config, held_out, verbose
        # Before the model is loaded: settings that differ are an error.
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
        settings["held-out prompts"] = run_state.checksum_of(task.prompts(held_out))
        self._folder = pathlib.Path(config.output)
        self._state = run_state.RunState(
            self._folder / "state", settings, config.resume, config.overwrite
        )
        options = {"dtype": config.dtype} if config.dtype else {}
        actor = ActorCritic.from_preset(config.model, **options)
        self.causal_lm = actor.causal_lm
        # One object answers at all stages, so that its compiled functions are used again.
        self._answering = actor
        if config.lora_rank:
            self.causal_lm.backbone.enable_lora(config.lora_rank)
        self.stages: list[Stage] = []
        self.seconds: dict[str, float] = {}
        self._texts: list[str] | None = None
        self._tuned: list[tuple[keras.Variable, np.ndarray]] = []
        self._counts: collections.Counter[str] = collections.Counter()

    # What a stage answers.

    def measure(self, name: str, perplexity: bool = True) -> None:
        """Answers the held-out prompts, and keeps the answers as a stage.

        Args:
            name: str, of the stage.
            perplexity: bool. Whether to compute the perplexity of other texts. Defaults to True.
        """
        self.add_stage(name, self._most_likely, perplexity=perplexity)

    def measure_best_of(self, name: str) -> None:
        """Samples several answers to held-out prompts, and keeps the best as a stage.

        The reward of the task chooses. If it compares answers with targets, this shows what can be
        chosen from, and is no method for prompts without targets.

        Args:
            name: str, of the stage.
        """
        self.add_stage(name, self._best, self.held_out[: self.config.best_of_prompts])

    def add_stage(
        self,
        name: str,
        answer: Callable[[Records], list[str]],
        records: Records | None = None,
        perplexity: bool = False,
    ) -> None:
        """Answers the held-out prompts with a function, and keeps the answers as a stage.

        Args:
            name: str, of the stage.
            answer: function of records that returns a response to each. It is not called if the
                run that is resumed has this stage.
            records: list of dict, the first of the held-out records. Defaults to None: all.
            perplexity: bool. Whether to compute the perplexity of other texts. Defaults to False.

        Raises:
            ValueError: If the run that is resumed had another stage here.
        """
        records = self.held_out if records is None else records
        with self._step(f"measure {name}"):
            tokenizer = self.causal_lm.preprocessor.tokenizer
            stage = self._state.stage(len(self.stages), name, records, tokenizer)
            if stage is None:
                responses = answer(records)
                nats = self._perplexity() if perplexity else None
                stage = Stage(name, records, responses, nats)
                self._state.keep_stages([*self.stages, stage])
            self.stages.append(stage)

    def _most_likely(self, records: Records) -> list[str]:
        return self._answering.generate(
            [record["prompt"] for record in self.task.prompts(records)],
            self.task.decoder(),
            batch_size=self.config.batch_size,
            jit_compile=self.config.jit_compile,
        )

    def _best(self, records: Records) -> list[str]:
        config = self.config
        return best_of_n(
            self._answering,
            self.task.rewards(),
            self.task.prompts(records),
            config.best_of,
            self.task.sampler(temperature=config.temperature),
            batch_size=max(1, config.batch_size // config.best_of),
            seed=config.seed,
            jit_compile=config.jit_compile,
        ).winners

    def _perplexity(self) -> float:
        """Returns the perplexity of texts that are not of the task."""
        if self._texts is None:
            texts = stories.HELD_OUT
            if self.config.texts is not None:
                rows = data.records.load(self.config.texts)
                texts = pieces([str(row["text"]) for row in rows], _TEXTS, _TEXT_WORDS)
            # Cut at tokens too: a text may have many tokens and few words.
            rows_of_ids = data.tokenize(texts, self.causal_lm.preprocessor)
            cut = [ids[:_TEXT_TOKENS] for ids in rows_of_ids]
            self._texts = data.detokenize(cut, self.causal_lm.preprocessor)
        return evaluation.perplexity(self.causal_lm, self._texts, batch_size=8)

    # Training.

    def fine_tune(self, records: Records) -> None:
        """Fine-tunes the model on the targets of records.

        Args:
            records: list of dict with targets.
        """
        config, lm = self.config, self.causal_lm
        demonstrations = data.demonstrations(
            self.task.demonstrations(records),
            lm.preprocessor,
            min(config.sft_batch_size, len(records)),
            seed=config.seed,
            drop_remainder=True,
        )
        rate = keras.optimizers.schedules.PolynomialDecay(
            config.sft_learning_rate,
            config.sft_epochs * len(demonstrations),
            end_learning_rate=0.0,
        )
        lm.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss=keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            ),
            jit_compile=config.jit_compile,
        )

        def fit() -> None:
            # The dataset shuffles itself.
            lm.fit(demonstrations, epochs=config.sft_epochs, shuffle=False, verbose=self.verbose)

        self.train("fine-tuning", lm, fit)
        self._tuned = [(v, keras.ops.convert_to_numpy(v)) for v in lm.trainable_variables]

    def train(self, name: str, model: keras.Model, fit: Callable[[], Any]) -> None:
        """Trains a model with a function, and keeps its weights.

        Args:
            name: str, of the step.
            model: `keras.Model`, built the same way in a run that is resumed.
            fit: function that changes variables of the model. It is not called if the run that is
                resumed has done so: its variables are loaded then.

        Raises:
            ValueError: If the state is damaged, or is of a model with other variables.
        """
        with self._step(name) as step:
            if not self._state.load(step, model):
                before = run_state.checksums(model)
                fit()
                self._state.keep(step, model, before)

    def reinforce(
        self, records: Records, algorithm: str = "ppo", **options: Any
    ) -> OnPolicyTrainer:
        """Trains the fine-tuned model with reinforcement learning, and returns the trainer.

        Each call starts from the weights after `fine_tune`, so that algorithms can be compared. An
        iteration has as many responses with each. If the run that is resumed has reached this step,
        its iterations are passed over.

        Args:
            records: list of dict to prompt with.
            algorithm: `"ppo"` or `"grpo"`. Defaults to `"ppo"`.
            **options: of the trainer.

        Raises:
            ValueError: If the run that is resumed had other options, rewards or prompts.
        """
        config = self.config
        require_choice("algorithm", algorithm, ("ppo", "grpo"))
        for variable, value in self._tuned:
            variable.assign(value)
        trainer = self._trainer(algorithm, options)
        group = trainer.group_size
        # The last prompts are kept back, to watch the metrics during training. The first ones may
        # be the demonstrations.
        learned, watched = records[: -config.validation], records[-config.validation :]
        prompts, validation = (
            data.prompts(
                self.task.prompts(part),
                self.causal_lm.preprocessor,
                max(1, config.batch_size // group),
                # Similar lengths get one shape, so that XLA compiles once.
                pad_to_multiple_of=_MULTIPLE,
                shuffle=shuffle,
                seed=config.seed,
            )
            for part, shuffle in ((learned[: config.max_prompts], True), (watched, False))
        )
        with self._step(algorithm) as step:
            resume = Resume(self._folder / "state" / step, every=config.save_every)
            curves = TensorBoard(self._folder / "logs" / step, samples=config.samples)
            trainer.fit(
                prompts.repeat(),
                steps_per_epoch=config.validate_every,
                epochs=config.iterations // config.validate_every,
                validation_data=validation,
                shuffle=False,  # the dataset shuffles itself
                callbacks=[resume, curves],
                verbose=self.verbose,
            )
        return trainer

    def _trainer(self, algorithm: str, options: dict[str, Any]) -> OnPolicyTrainer:
        config = self.config
        kind: Callable[..., OnPolicyTrainer] = {"ppo": PPO, "grpo": GRPO}[algorithm]
        given = {
            "sampler": self.task.sampler(temperature=config.temperature),
            "kl": FixedKL(config.kl_coef),
            "update_epochs": config.update_epochs,
            "num_minibatches": config.num_minibatches,
            "micro_batches": config.micro_batches,
            "seed": config.seed,
        }
        # The same model each time, with a value head of its own.
        actor = ActorCritic(self.causal_lm)
        trainer = kind(actor, self.task.rewards(), **{**given, **options})
        # The rate reaches 0 with the last update of the run (N5).
        rate = keras.optimizers.schedules.PolynomialDecay(
            config.learning_rate, trainer.updates_in(config.iterations), end_learning_rate=0.0
        )
        trainer.compile(
            keras.optimizers.Adam(rate, epsilon=1e-5),
            metrics=self.task.metrics(),
            validation_sampler=self.task.decoder(),
            jit_compile=config.jit_compile,
        )
        return trainer

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[str]:
        """Times a step, and yields its name, with a number if there was one of that name."""
        self._state.begin()
        self._counts[name] += 1
        count = self._counts[name]
        step = name if count == 1 else f"{name}-{count}"
        start = time.perf_counter()
        yield step
        self.seconds[step] = time.perf_counter() - start
        keras.utils.set_random_seed(zlib.crc32(f"{self.config.seed} {step}".encode()))

    # Results.

    def table(self) -> Table:
        """Returns the metrics of all stages."""
        return Table(self.task, self.stages)

    def finish(self) -> dict[str, Any]:
        """Saves the model, prints the table and samples, and returns the report."""
        table = self.table()
        self.causal_lm.save_to_preset(str(self._folder / "model"))
        report = {
            "config": dataclasses.asdict(self.config),
            **table.report(self.config.samples),
            "seconds": {name: round(x, 1) for name, x in self.seconds.items()},
        }
        lines = [f"\n{len(self.held_out)} held-out records, 95 % intervals", table.text()]
        for sample in report["samples"]:
            lines += ["", *(f"{name:>16}: {text!r}" for name, text in sample.items())]
        sys.stdout.write("\n".join(lines) + "\n")
        return report


def read_records(
    config: TaskConfig,
    sample: str | os.PathLike[str],
    keep: Callable[[Record], bool] = lambda record: True,
) -> tuple[Records, Records]:
    r"""Returns records to learn from in random order, and records to measure on.

    Args:
        config: `TaskConfig`, with the files.
        sample: str or path. File to read if `config.data` is None.
        keep: function of a record, whether it is used. Defaults to all.

    Raises:
        ValueError: If a file cannot be read, or too few records are left.

    Example:
        >>> import tempfile, pathlib
        >>> from kerasrlhf.cli.recipe import TaskConfig
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "data.jsonl"
        >>> _ = file.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
        >>> learned, held_out = rlhf.applications.read_records(TaskConfig(held_out=2), file)
        >>> len(learned), len(held_out)
        (1, 2)
    """
    records = [row for row in data.records.load(config.data or str(sample)) if keep(row)]
    if config.test is None:
        return data.split(records, config.held_out, config.seed)
    generator = np.random.default_rng(config.seed)
    tested = [row for row in data.records.load(config.test) if keep(row)]
    learned = [records[i] for i in generator.permutation(len(records))]
    held_out = [tested[i] for i in generator.permutation(len(tested))[: config.held_out]]
    if not learned or len(held_out) < 2:
        raise ValueError(
            f"There are {len(learned)} records to learn from and {len(held_out)} to measure on, "
            "after leaving out those that the task does not use. Expected one and two at least."
        )
    return learned, held_out


def pieces(texts: list[str], count: int, words: int) -> list[str]:
    """Returns the first pieces of texts, each of a number of words.

    Args:
        texts: list of str.
        count: int, at least 1. Pieces.
        words: int, at least 1. Words of a piece.

    Example:
        >>> pieces(["a b c d e", "f g"], count=3, words=2)
        ['a b', 'c d', 'f g']
    """
    found = []
    for text in texts:
        listed = text.split()
        whole = range(0, len(listed) - words + 1, words)
        found += [" ".join(listed[i : i + words]) for i in whole]
    return found[:count]
