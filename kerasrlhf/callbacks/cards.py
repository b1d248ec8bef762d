"""Texts for TensorBoard: settings, and samples of one set of prompts as the policy changes."""

from __future__ import annotations

import html
import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import summary_v2

from kerasrlhf import files
from kerasrlhf.callbacks import iterations
from kerasrlhf.rollouts.collector import Collected

_STRINGS = ("prompt", "guarded_prompt", "record")


class FirstAnswers(NamedTuple):
    """The first prompts of a run, and the answers of its start; plain values, as JSON holds them.

    iteration: int. In which they were sampled; 1 is the start, before any update.
    rows: list of dicts, as `iterations.sample_rows` returns them.
    batch_size: int. Prompts of the batch that they were part of.
    prompts: dict of lists of one entry per prompt: `token_ids` and `padding_mask`, with all
        columns of that batch, and strings.
    """

    iteration: int
    rows: list[dict[str, Any]]
    batch_size: int
    prompts: dict[str, list[Any]]

    @classmethod
    def of(cls, collected: Collected, iteration: int, count: int) -> FirstAnswers:
        """Returns the first answers of a batch, one for each prompt.

        Args:
            collected: `Collected`, of a trainer's iteration.
            iteration: int, at least 1.
            count: int, at least 1. Prompts at most.
        """
        batch: Any = collected.prompts
        size = int(batch["token_ids"].shape[0])
        # One response of each group: its rows are adjacent.
        group_size = int(collected.rollout.token_ids.shape[0]) // size
        rows = iterations.sample_rows(collected, iteration, min(count, size), group_size)
        prompts = {name: np.asarray(batch[name]).tolist() for name in ("token_ids", "padding_mask")}
        for name in _STRINGS:
            if name in batch:
                prompts[name] = [tf.compat.as_text(x) for x in np.asarray(batch[name]).tolist()]
        return cls(iteration, rows, size, {name: x[: len(rows)] for name, x in prompts.items()})

    @classmethod
    def read(cls, path: str | os.PathLike) -> FirstAnswers | None:
        """Returns what `write` has written, or None where there is no such file.

        Args:
            path: str or path.
        """
        try:
            return cls(**files.read_json(path))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: str | os.PathLike) -> None:
        """Writes a JSON file, atomically.

        Args:
            path: str or path.
        """
        files.write_json(path, self._asdict())

    def batch(self) -> dict[str, Any]:
        """Returns the prompts as a batch of the size that the trainer has compiled.

        The prompts are repeated until it is full.
        """
        # The compiled size, so that no new shape is compiled.
        order = np.arange(self.batch_size) % len(self.rows)
        columns = {name: tf.constant(values) for name, values in self.prompts.items()}
        return {name: tf.gather(column, order) for name, column in columns.items()}

    def table(self, collected: Collected | None = None, iteration: int = 0) -> str:
        """Returns a Markdown table of prompts, first answers, and later ones next to them.

        Args:
            collected: `Collected` of `batch()`. Defaults to None: the first answers alone.
            iteration: int. After which it was sampled.
        """
        first = "start" if self.iteration == 1 else f"iteration {self.iteration}"
        columns = {"prompt": [_text(row["prompt"]) for row in self.rows]}
        columns[first] = [_answer(row) for row in self.rows]
        if collected is not None:
            size = int(collected.rollout.token_ids.shape[0]) // self.batch_size
            rows = iterations.sample_rows(collected, iteration, len(self.rows), size)
            columns[f"after iteration {iteration}"] = [_answer(row) for row in rows]
        return markdown_table(columns)


def settings_table(settings: dict[str, Any]) -> str:
    """Returns settings as a Markdown table.

    Args:
        settings: dict from names to plain values, as `trainer.settings()` returns it.

    Example:
        >>> print(settings_table({"kl.class": "FixedKL", "seed": 0}))
        | setting | value |
        | --- | --- |
        | kl.class | FixedKL |
        | seed | 0 |
    """
    names = [_text(name) for name in settings]
    return markdown_table({"setting": names, "value": [_text(x) for x in settings.values()]})


def hyperparameters(settings: dict[str, Any]) -> bytes:
    """Returns settings as a serialized summary for the HParams page.

    Args:
        settings: dict, as in `settings_table`.
    """
    plain = (bool, int, float, str)
    values = {name: x if isinstance(x, plain) else str(x) for name, x in settings.items()}
    return summary_v2.hparams_pb(values).SerializeToString()


def markdown_table(columns: dict[str, list[str]]) -> str:
    """Returns columns of Markdown cells as a table.

    Args:
        columns: dict from titles to lists of equal length.

    Example:
        >>> print(markdown_table({"prompt": ["a", "b"], "start": ["c", "d"]}))
        | prompt | start |
        | --- | --- |
        | a | c |
        | b | d |
    """
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _answer(row: dict[str, Any]) -> str:
    """Returns numbers that no line break divides, and the response below them.

    TensorBoard divides words that are wider than their column: no word is more than a number.
    """
    numbers = {"score": row["score"], "KL": row["kl"]}
    if row["raw_score"] != row["score"]:
        numbers = {"score": row["score"], "raw": row["raw_score"], "KL": row["kl"]}
    # A line may break after a hyphen, but not after a minus sign.
    shown = (f"{name} {x:z.2f}".replace("-", "&minus;") for name, x in numbers.items())
    return f"**{', '.join(shown)}**<br>{_text(row['response'])}"


def _text(value: Any) -> str:
    """Returns a value as text that no Markdown changes, for a cell of a table."""
    text = html.escape(str(value), quote=False)
    for mark in "\\|*_`~[]":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text.replace("\n", "<br>")
