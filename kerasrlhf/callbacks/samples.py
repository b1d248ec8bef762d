"""A few prompts and responses in the terminal."""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kerasrlhf import data, files, tokens
from kerasrlhf.callbacks import iterations
from kerasrlhf.data.dialogue import Template
from kerasrlhf.trainers.on_policy import OnPolicyTrainer


class Samples(iterations.IterationCallback):
    """Shows a few responses with their scores every so many iterations.

    Args:
        count: int, at least 1. Responses to show. Defaults to 3.
        every: int, at least 1. Iterations between two showings. Defaults to 1.
        prompts: list of strings or records, or None. They are answered again each time, always
            with the same random numbers, so that what differs is the policy; a batch of another
            shape is compiled once. Defaults to None: the first responses of the iteration's own
            batch.
        path: str, path or None. File of JSON lines that every sample shown is added to, with
            `iteration`, `prompt`, `response`, `score`, `raw_score` and `kl`. A run that is resumed
            takes out what an interrupted one had written of iterations that are done again, so
            that the file has each once. A run that starts over moves the lines of an older one to
            a separate file, `samples-former-1.jsonl` next to `samples.jsonl`. Defaults to None.
        printer: callable or None. Called with each line; `lambda line: None` for silence. Defaults
            to None: standard output.
        template: str or callable. Turns messages of `prompts` into a text, see `data.dialogue`.
            Defaults to `"plain"`.

    Raises:
        ValueError: If a number is outside its range, or the list of prompts is empty.

    Example:
        >>> callback = rlhf.callbacks.Samples(count=2, every=10, path="samples.jsonl")
    """

    def __init__(
        self,
        count: int = 3,
        every: int = 1,
        prompts: Sequence[Any] | None = None,
        path: str | os.PathLike | None = None,
        printer: Callable[[str], Any] | None = None,
        template: Template = "plain",
    ) -> None:
        super().__init__()
        self.count = iterations.every("count", count)
        self.every = iterations.every("every", every)
        self.prompts = prompts if prompts is None else tokens.text_list(prompts, "prompts")[:count]
        self.path = None if path is None else pathlib.Path(path)
        if printer is not None and not callable(printer):
            raise ValueError(
                f"`printer` must be a function of a line, such as `print`. Received: {printer!r}."
            )
        self.printer = printer
        self.template = template

    def on_first_iteration(self, done: int) -> None:
        """Removes lines from the file that are not of the iterations before this one."""
        if self.path is None or not self.workers.is_chief or not self.path.is_file():
            return
        # Split the lines at the iterations that this run continues from.
        kept: list[bytes] = []
        dropped: list[bytes] = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            (kept if _iteration_of(line) <= done else dropped).append(line)
        if not dropped:
            return
        if done == 0:
            # A run that starts over keeps the samples of the older run in their own file.
            former = _free_name(self.path)
            with files.replacing(former) as temporary:
                temporary.write_bytes(b"".join(dropped))
        with files.replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def on_iteration_end(self, iteration: int) -> None:
        """Shows samples where they are due."""
        if iteration % self.every == 0:
            self.show(self.trainer)

    def show(self, model: OnPolicyTrainer) -> list[dict[str, Any]]:
        """Shows samples at once, with `prompts` also outside of `fit`.

        Args:
            model: compiled on-policy trainer.

        Returns:
            List of dicts, as they are written to `path`.

        Raises:
            ValueError: If there are neither `prompts` nor an iteration.
        """
        iteration = int(model.iteration.numpy())
        if self.prompts is None:
            collected, count = model.last, self.count
        else:
            collected, count = model.collect(self._batch(model, self.prompts)), len(self.prompts)
        if collected is None:
            raise ValueError("There is no iteration to show yet. Pass `Samples(prompts=...)`.")
        rows = iterations.sample_rows(collected, iteration, count)
        # All workers sample, and one shows.
        if not model.workers.is_chief:
            return rows
        printer = self.printer or _write_line
        printer(f"Samples after iteration {iteration}:")
        for row in rows:
            printer(_line(row))
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return rows

    def _batch(self, model: OnPolicyTrainer, prompts: list[Any]) -> dict[str, Any]:
        """Returns the prompts as a batch, repeated to a number of rows that the trainer divides."""
        preprocessor = model.actor.causal_lm.preprocessor
        (batch,) = data.prompts(
            prompts,
            preprocessor,
            batch_size=len(prompts),
            shuffle=False,
            template=self.template,
        )
        replicas = model.distribute_strategy.num_replicas_in_sync
        # Repeat the prompts until minibatches, micro-batches and replicas divide them.
        parts = model.num_minibatches * model.micro_batches * replicas
        order = np.arange(-(-len(prompts) // parts) * parts) % len(prompts)
        return {name: tf.gather(column, order) for name, column in batch.items()}


def _iteration_of(line: bytes) -> float:
    """Returns the iteration of a line of samples; infinity for an incomplete line."""
    try:
        return json.loads(line)["iteration"] if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _free_name(path: pathlib.Path) -> pathlib.Path:
    names = (path.with_name(f"{path.stem}-former-{i}{path.suffix}") for i in itertools.count(1))
    return next(name for name in names if not name.exists())


def _line(row: dict[str, Any]) -> str:
    """Returns one sample as one line, which nothing in the texts can break."""
    prompt, response = (
        json.dumps(row[name], ensure_ascii=False) for name in ("prompt", "response")
    )
    raw = "" if row["raw_score"] == row["score"] else f" (raw {row['raw_score']:.3f})"
    return f"  score {row['score']:.3f}{raw}  kl {row['kl']:.2f}  {prompt} -> {response}"


def _write_line(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()
