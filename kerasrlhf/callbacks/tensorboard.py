"""Curves and samples in TensorBoard, for every step of RLHF."""

from __future__ import annotations

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import metadata as hparams_metadata

from kerasrlhf.callbacks import cards, iterations, layouts, tags
from kerasrlhf.types import require_int

_FIRST_ANSWERS = "first_answers.json"


class TensorBoard(iterations.IterationCallback):
    """Writes statistics and samples of every iteration for TensorBoard.

    With an on-policy trainer every statistic of an iteration becomes a scalar under its own name
    (`objective/…`, `policy/…`, `value/…`, `loss/…`, `time/…`), and validation results become
    `val/…`; the step is the iteration. Each has a description: its meaning, its unit, and its
    range in a healthy run. The first page begins with copies of the most important ones
    (`at_a_glance/…`). The page "Custom Scalars" begins with score and KL, those of training and
    validation in one chart. The settings of the run are on the pages "HParams" and "Text".

    The table `samples` on the page "Text" has the first prompts of the first batch, the answers of
    the start, and those of the policy, which always has the same random numbers. The answers of
    the start are those of the first iteration. A file `first_answers.json` keeps them for a run
    that is resumed. Later answers are sampled in a batch of the same size: the prompts are repeated
    until it is full. That costs a rollout and changes nothing in training.

    With another Keras model (`CausalLM.fit`, `RewardModel.fit`) the logs become `train/…` and
    `val/…`, and the step is the optimizer's.

    A run that continues in the same folder (`Resume`) adds what is not there yet, so that the
    folder has every step once, even if an interrupted run got further than its last state. A run
    that starts over replaces an older one in TensorBoard's view; the older event files stay.

    Args:
        log_dir: str or path. Folder for the event files.
        samples: int, at least 0. Prompts in the table; 0 for no table. Defaults to 4.
        text_freq: int, at least 1. Iterations between two tables. There is also one after the first
            iteration and one at the end of `fit`. Defaults to 10.
        scalar_freq: int, at least 1. Iterations between two writes of scalars, or batches of
            another model. Defaults to 1.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> import tempfile
        >>> callback = rlhf.callbacks.TensorBoard(tempfile.mkdtemp(), samples=2, text_freq=20)
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        samples: int = 4,
        text_freq: int = 10,
        scalar_freq: int = 1,
    ) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.samples = require_int("samples", samples, minimum=0)
        self.text_freq = iterations.every("text_freq", text_freq)
        self.scalar_freq = iterations.every("scalar_freq", scalar_freq)
        self._writer: tf.summary.SummaryWriter | None = None
        self._last_steps: dict[str, int] = {}
        self._first_answers: cards.FirstAnswers | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Closes what an interrupted `fit` left open."""
        super().on_train_begin(logs)
        self._close()

    def on_first_iteration(self, done: int) -> None:
        """Writes the settings, and finds the first answers of a run that is resumed."""
        settings = {"trainer": type(self.trainer).__name__, **self.trainer.settings()}
        self._write_text("settings", cards.settings_table(settings), 1)
        summary = functools.partial(cards.hyperparameters, settings)
        self._write_summary(hparams_metadata.SESSION_START_INFO_TAG, summary)
        # One decision for all workers: further answers are sampled by all of them.
        self._first_answers = self.workers.by_chief(
            "reading the first answers",
            lambda: cards.FirstAnswers.read(self._answers_path) if done else None,
        )

    def on_iteration_end(self, iteration: int) -> None:
        """Writes the statistics and the samples that are due."""
        values = dict(self.trainer.statistics)
        self._write_summary(layouts.TAG, lambda: layouts.summary(layouts.of_run(values)))
        # Written next to the KL, so that one chart shows both.
        target = getattr(self.trainer.kl, "target", None)
        if target is not None:
            values["objective/kl_target"] = target
        if iteration % self.scalar_freq == 0:
            self._write({**tags.at_a_glance(values), **values}, iteration)
        if self.samples:
            self._write_samples(iteration, is_due=iteration % self.text_freq == 0)
        self._flush()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of a model that is no on-policy trainer."""
        super().on_train_batch_end(batch, logs)
        if not self.is_on_policy:
            step = self._optimizer_step()
            values = iterations.scalars(logs)
            self._write_summary(layouts.TAG, lambda: layouts.summary(layouts.of_logs(values)))
            if step % self.scalar_freq == 0:
                self._write({f"train/{name}": value for name, value in values.items()}, step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the results of a validation, unless they are those of a passed-over one."""
        values = {f"val/{name}": value for name, value in iterations.validated(logs).items()}
        if not self.is_on_policy:
            step = self._optimizer_step()
        elif self.was_done or self.trainer.replay.validation is None:
            step = int(self.trainer.iteration.numpy())
            values = {**tags.at_a_glance(values), **values}
        else:
            return
        self._write(values, step)
        self._flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the last samples and closes the event file."""
        if self.is_on_policy and self.was_done and self.samples:
            self._write_samples(int(self.trainer.iteration.numpy()), is_due=True)
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _optimizer_step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    @property
    def _answers_path(self) -> pathlib.Path:
        return pathlib.Path(self.log_dir) / _FIRST_ANSWERS

    def _write_samples(self, iteration: int, is_due: bool) -> None:
        """Writes a table if it is due, and the first answers alone where there were none yet."""
        answers, last = self._first_answers, self.trainer.last
        if answers is None and last is not None:
            # The first iteration's responses are those of the start: they cost nothing extra.
            answers = self._first_answers = cards.FirstAnswers.of(last, iteration, self.samples)
            answers.write(self._answers_path)
            if not is_due:
                self._write_text("samples", answers.table(), iteration)
        if answers is not None and is_due and self._is_new("samples", iteration):
            collected = self.trainer.collect(answers.batch())
            self._write_text("samples", answers.table(collected, iteration), iteration)

    def _write(self, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            about = tags.describe(name)
            scalar = functools.partial(tf.summary.scalar, name, value, step, description=about)
            self._write_once(name, step, scalar)

    def _write_text(self, tag: str, text: str, step: int) -> None:
        self._write_once(tag, step, lambda: tf.summary.text(tag, text, step))

    def _write_summary(self, tag: str, summary: Callable[[], bytes]) -> None:
        """Writes the summary that a page of TensorBoard is made from, once for a run."""
        write = tf.summary.experimental.write_raw_pb
        self._write_once(tag, 1, lambda: write(summary(), step=1))

    def _write_once(self, tag: str, step: int, write: Callable[[], Any]) -> None:
        """Calls `write` with the event file open, unless this step of the tag is there."""
        with self._opened().as_default():
            if self._is_new(tag, step):
                write()
                self._last_steps[tag] = step

    def _is_new(self, tag: str, step: int) -> bool:
        return step > self._last_steps.get(tag, -1)

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _opened(self) -> tf.summary.SummaryWriter:
        if self._writer is None:
            # A resumed run reads which steps are written; a new one hides those of an older run.
            first = (self._before or 0) + 1 if self.is_on_policy else self._optimizer_step()
            self._last_steps = self.workers.by_chief(
                "reading the event files", lambda: last_steps(self.log_dir) if first > 1 else {}
            )
            if not self.workers.is_chief:
                self._writer = tf.summary.create_noop_writer()
                return self._writer
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
    """Waits for the next second if there is a file of the current one.

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
                # TensorBoard shows nothing from before the last start.
                if event.session_log.status == tf.compat.v1.SessionLog.START:
                    steps = {}
                for value in event.summary.value:
                    steps[value.tag] = max(event.step, steps.get(value.tag, -1))
        except tf.errors.DataLossError:
            continue  # The last record of a process that was killed.
    return steps
