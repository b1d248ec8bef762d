"""Curves and samples in TensorBoard, for every step of RLHF."""

from __future__ import annotations

import html
import os
import pathlib
import time
from typing import Any

import tensorflow as tf

from kerasrlhf.callbacks import iterations
from kerasrlhf.types import require_int

_TEXT_COLUMNS = ("prompt", "response", "score", "raw_score", "kl")


class TensorBoard(iterations.IterationCallback):
    """Writes statistics and samples of every iteration for TensorBoard.

    With an on-policy trainer every statistic of an iteration becomes a scalar under its own name
    (`objective/…`, `policy/…`, `value/…`, `loss/…`, `time/…`), validation results become `val/…`,
    and the first responses of the batch a table; the step is the iteration. With another Keras
    model (`CausalLM.fit`, `RewardModel.fit`) the logs become `train/…` and `val/…`, and the step
    is the optimizer's.

    A run that goes on in the same folder (`Resume`) adds what is not there yet, so that the folder
    has every step once, also where an interrupted run had come further than its last state. A run
    that starts over replaces an older one in TensorBoard's view; the older event files stay.

    Args:
        log_dir: str or path. Folder for the event files.
        samples: int, at least 0. Responses in a table; 0 for no tables. Defaults to 4.
        text_freq: int, at least 1. Iterations between two tables. Defaults to 1.
        scalar_freq: int, at least 1. Iterations between two writes of scalars, or batches of
            another model. Defaults to 1.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> import tempfile
        >>> callback = rlhf.callbacks.TensorBoard(tempfile.mkdtemp(), samples=2, text_freq=10)
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        samples: int = 4,
        text_freq: int = 1,
        scalar_freq: int = 1,
    ) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.samples = require_int("samples", samples, minimum=0)
        self.text_freq = iterations.every("text_freq", text_freq)
        self.scalar_freq = iterations.every("scalar_freq", scalar_freq)
        self._writer: tf.summary.SummaryWriter | None = None
        self._last_steps: dict[str, int] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Closes what an interrupted `fit` left open."""
        super().on_train_begin(logs)
        self.on_train_end()

    def on_iteration_end(self, iteration: int) -> None:
        """Writes the statistics and the samples that are due."""
        if iteration % self.scalar_freq == 0:
            self._write("", self.trainer.statistics, iteration)
        collected = self.trainer.last
        if collected is not None and self.samples and iteration % self.text_freq == 0:
            rows = iterations.sample_rows(collected, iteration, self.samples)
            self._write_text("samples", markdown_table(rows), iteration)
        self._flush()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of a model that is no on-policy trainer."""
        super().on_train_batch_end(batch, logs)
        if not self.is_on_policy:
            step = self._optimizer_step()
            if step % self.scalar_freq == 0:
                self._write("train/", iterations.scalars(logs), step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the results of a validation, unless they are those of a passed-over one."""
        validated = iterations.validated(logs)
        if not self.is_on_policy:
            step = self._optimizer_step()
        elif self.was_done or self.trainer.replay.validation is None:
            step = int(self.trainer.iteration.numpy())
        else:
            return
        self._write("val/", validated, step)
        self._flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _optimizer_step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _write(self, prefix: str, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            with self._opened().as_default():
                if self._is_new(prefix + name, step):
                    tf.summary.scalar(prefix + name, value, step=step)

    def _write_text(self, tag: str, text: str, step: int) -> None:
        with self._opened().as_default():
            if self._is_new(tag, step):
                tf.summary.text(tag, text, step=step)

    def _is_new(self, tag: str, step: int) -> bool:
        return step > self._last_steps.get(tag, -1)

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _opened(self) -> tf.summary.SummaryWriter:
        if self._writer is None:
            first = (self._before or 0) + 1 if self.is_on_policy else self._optimizer_step()
            self._last_steps = last_steps(self.log_dir) if first > 1 else {}
            _await_later_name(self.log_dir)
            self._writer = tf.summary.create_file_writer(self.log_dir)
            if first == 1:
                _mark_start(self._writer)
        return self._writer


def _mark_start(writer: tf.summary.SummaryWriter) -> None:
    """Writes the event from which on TensorBoard shows nothing older."""
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(session_log=log, step=1, wall_time=time.time())
    resource = writer._resource  # noqa: SLF001 (no public way)
    tf.raw_ops.ImportEvent(writer=resource, event=tf.constant(event.SerializeToString()))


def _await_later_name(log_dir: str | os.PathLike) -> None:
    """Waits for the next second where a file of this one is there.

    TensorBoard loads event files in the order of their names. These have seconds and then
    counters, and as text 10 is before 9.
    """
    names = (path.name.split(".")[3] for path in _event_files(log_dir))
    if any(int(seconds) >= int(time.time()) for seconds in names if seconds.isdecimal()):
        time.sleep(1.0 - time.time() % 1.0)


def _event_files(log_dir: str | os.PathLike) -> list[pathlib.Path]:
    return sorted(pathlib.Path(log_dir).glob("events.out.tfevents.*"))


def last_steps(log_dir: str | os.PathLike) -> dict[str, int]:
    """Returns the last step of every tag in a folder's event files, since the last start of a run.

    Args:
        log_dir: str or path. Folder; need not exist.

    Returns:
        Dict from tag to int.

    Example:
        >>> last_steps("no/such/folder")
        {}
    """
    steps: dict[str, int] = {}
    for path in _event_files(log_dir):
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                if event.session_log.status == tf.compat.v1.SessionLog.START:
                    steps = {}
                for value in event.summary.value:
                    steps[value.tag] = max(event.step, steps.get(value.tag, -1))
        except tf.errors.DataLossError:
            continue  # The last record of a process that was killed.
    return steps


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Returns samples as a Markdown table; texts are shown as they are, whatever they contain.

    Args:
        rows: list of dicts from `sample_rows`.

    Example:
        >>> row = {"prompt": "a|b", "response": "<i>", "score": 1.0, "raw_score": 1.0, "kl": 0.0}
        >>> markdown_table([row]).splitlines()[-1]
        '| a&#124;b | &lt;i&gt; | 1.000 | 1.000 | 0.000 |'
    """
    lines = [" | ".join(_TEXT_COLUMNS), " | ".join("---" for _ in _TEXT_COLUMNS)]
    lines += [" | ".join(_cell(row[name]) for name in _TEXT_COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = html.escape(str(value), quote=False)
    for mark in "\\|*_`~[]":
        text = text.replace(mark, f"&#{ord(mark)};")
    return text.replace("\n", "<br>")
