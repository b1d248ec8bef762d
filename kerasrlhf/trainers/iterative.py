"""`fit` for models whose step is a whole iteration: one batch in, a dict of statistics out."""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasrlhf import cluster, replica, signatures
from kerasrlhf.data.limits import Limits
from kerasrlhf.data.tokenized import TokenizedDataset
from kerasrlhf.data.whole import WholeBatches
from kerasrlhf.models import fitting
from kerasrlhf.rollouts.measuring import Measurement, metrics_of
from kerasrlhf.rollouts.scoring import Episodes
from kerasrlhf.trainers import statistics
from kerasrlhf.trainers.held import HeldTrainer
from kerasrlhf.trainers.interruption import Interruption
from kerasrlhf.workers import Workers


class IterativeModel(HeldTrainer):
    """Runs an algorithm's iterations in Keras' `fit`; abstract.

    `fit`, callbacks, history and validation are those of Keras; this class only defines the step
    on a batch. A subclass defines `iterate`, `collect`, `pass_over` and `iteration`. The other
    methods check arguments, so that a mistake is found before the first batch, let signals end
    `fit` between iterations, and call Keras.
    """

    seed: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trackers = _Means(("score", "kl", "kl_coef", "length", "loss"))
        self._validation = _Means(statistics.VALIDATED)
        self._measurement = Measurement({})
        self.replay, self.interruption = Replay(), Interruption()

    @functools.cached_property
    def workers(self) -> Workers:
        """The processes that train together."""
        return Workers(self.distribute_strategy)

    def iterate(self, batch: dict) -> dict[str, float]:
        """Runs one iteration on a batch of prompts; returns its statistics by name."""
        raise NotImplementedError

    def collect(self, batch: dict, index: int = 0) -> Any:
        """Samples and scores prompts without training on them."""
        raise NotImplementedError

    def decode(self, collected: Any, index: int = 0) -> Episodes:
        """Returns the responses that metrics measure, to the prompts of `collect`."""
        raise NotImplementedError

    def limits(self) -> Limits:
        """Returns the limits on prompts that the model can process and answer."""
        raise NotImplementedError

    def pass_over(self, iteration: int) -> None:
        """Skips the data, other than prompts, of an iteration completed before a resume."""
        raise NotImplementedError

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Running means of the shown statistics."""
        return self._trackers.metrics

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the metrics of responses that `evaluate` computes."""
        return tuple(self._measurement.metrics)

    def measure_with(self, metrics: Any) -> None:
        """Sets the metrics that `evaluate` computes.

        Args:
            metrics: as `rollouts.measuring.metrics_of` takes them.
        """
        # The names of other statistics would be ambiguous in the history.
        self._measurement = Measurement(metrics_of(metrics, taken=[*statistics.SHOWN]))

    def measured(self) -> dict[str, float]:
        """Returns the metrics of the responses of the last `evaluate` by name."""
        # Metrics may be random, and all workers have to see the same numbers.
        return self.workers.by_chief("computing metrics", self._measurement.results)

    def measured_here(self) -> dict[str, float]:
        """Returns what `measured` returns in the first worker, without the others."""
        return self._measurement.results()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles as Keras does, under the strategy that the networks were created under."""
        cluster.check_distribution()
        self._check_scope()
        super().compile(*args, **kwargs)
        self._check_scope()

    @signatures.shown_as(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Runs one iteration per batch of prompts; arguments are those of `keras.Model.fit`.

        With an environment, the prompts are its own: leave out `x`. Records then have batches of
        `batch_size`.
        """
        args, kwargs = self._with_prompts(super().fit, args, kwargs)
        # Check arguments before the first, expensive iteration.
        fitting.check_fit(self, super().fit, args, kwargs, "prompts")
        self._check_scope()
        # Bind the arguments to their names, to change some of them.
        given = fitting.last_callbacks_last(super().fit, args, kwargs)
        fitting.set_modes(given.arguments.get("callbacks"), statistics.MODES)
        fitting.for_worker(given, self.workers)
        _show_score_first(given)
        if isinstance(given.arguments.get("x"), TokenizedDataset):
            # Shuffling depends on the pass: align a dataset that was read before with this run.
            given.arguments["x"] = given.arguments["x"].in_step_with(self._batches_before)
        self._give_whole_batches(given)
        try:
            with self.workers.explaining(), self.interruption.watching():
                return super().fit(*given.args, **given.kwargs)
        finally:
            # Also after an error: the next `fit` must not skip iterations.
            self.replay.stop()

    @signatures.shown_as(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Samples and scores prompts; arguments are those of `keras.Model.evaluate`.

        With an environment, `x` may be left out: the prompts are its own.

        Returns:
            Mean score, KL and length, then the metrics of `compile`; or a dict of these in this
            order with `return_dict=True`.
        """
        if not args and kwargs.get("x") is None:
            args, kwargs = self._with_prompts(super().evaluate, args, kwargs)
        fitting.check_fit(self, super().evaluate, args, kwargs, "prompts")
        self._check_scope()
        given = inspect.signature(super().evaluate).bind(*args, **kwargs)
        fitting.for_worker(given, self.workers)
        _show_score_first(given)
        self._give_whole_batches(given)
        with self.workers.explaining():
            result = super().evaluate(*given.args, **given.kwargs)
            measured = self.measured()
        if not isinstance(result, dict):
            return [*result, *measured.values()] if measured else result
        result = {**result, **measured}
        order = [*statistics.VALIDATED, *result]  # Keras sorts by name
        return {name: result[name] for name in dict.fromkeys(order) if name in result}

    def _give_whole_batches(self, given: inspect.BoundArguments) -> None:
        """Makes Keras pass batches of datasets on whole; an iteration divides them itself."""
        for name in ("x", "validation_data"):
            data = given.arguments.get(name)
            if isinstance(data, tf.data.Dataset):
                given.arguments[name] = WholeBatches(data)

    def _with_prompts(
        self, function: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of `fit` or `evaluate`, with the prompts of an environment."""
        if self.environment is None:
            return args, kwargs
        given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
        if given.get("x") is not None:
            raise ValueError(
                f"The environment {type(self.environment).__name__} has its own prompts. Received "
                "others too: leave out `x`, or pass the reward instead of the environment and "
                "keep `x`."
            )
        kwargs = {**given.pop("kwargs", {}), **given}
        batches = self.environment.batches(kwargs.pop("batch_size", None), self.seed)
        return (), {**kwargs, "x": batches}

    def call(self, inputs: Any) -> None:
        """Raises a `ValueError`: a trainer has no outputs."""
        name = type(self).__name__
        raise ValueError(
            f"{name} has no outputs: `fit` trains `trainer.actor`. For responses use "
            "`trainer.actor.generate(prompts, sampler)`, for logits and values "
            "`trainer.actor(batch)`."
        )

    def _check_scope(self) -> None:
        """Raises a `ValueError` if trained variables do not belong to the current strategy."""
        strategy, name = self.distribute_strategy, type(self).__name__
        fitting.check_scope(strategy, f"{name} and its actor", self.variables)
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None:
            fitting.check_scope(strategy, "the optimizer", optimizer.variables)

    def make_train_function(self, force: bool = False) -> None:
        """Makes the function that `fit` calls for each batch."""

        def train_function(iterator: Iterator[Any]) -> dict[str, float]:
            batch = next(iterator)
            # After a resume, show recorded statistics instead of repeating the iteration.
            shown = self.replay.next()
            if shown is None:
                with self.interruption.iteration():
                    shown = statistics.shown_statistics(self.iterate(batch))
                    self.replay.record(shown, self._whole(batch))
            else:
                self.replay.compare(self._whole(batch))
                self.pass_over(self.replay.position - 1)
            # The bar shows the current values; the history gets the means over the epoch.
            self._trackers.update(shown)
            return dict(shown)

        self.train_function = train_function

    def _batches_before(self) -> int:
        return int(self.iteration.numpy()) - self.replay.remaining

    def _whole(self, batch: Any) -> Any:
        return replica.gather(self.distribute_strategy, batch)

    def make_test_function(self, force: bool = False) -> None:
        """Makes the function that `evaluate` and validation call for each batch."""
        self._validation.reset()
        self._measurement.reset()
        # Batch number, so that every validation uses the same random numbers.
        count = iter(range(2**31))

        def test_function(iterator: Iterator[Any]) -> dict[str, Any]:
            batch = next(iterator)
            index = next(count)
            if self.replay.validation is not None:
                return dict(self.replay.validation)
            if self.replay.active:
                # This validation was not recorded, and the weights of that time are gone.
                return {}
            collected = self.collect(batch, index)
            found = statistics.rollout_statistics(collected)
            if self.measures:
                self._measurement.add(self.decode(collected, index))
            names = statistics.VALIDATED
            self._validation.update({name: found[statistics.SHOWN[name]] for name in names})
            return self._validation.results()

        self.test_function = test_function

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds nothing; here Keras would average a batch of strings over replicas."""


class _ScoreFirst(keras.callbacks.ProgbarLogger):
    """The progress bar of Keras, with statistics in the order of `statistics.SHOWN`."""

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, _ordered(logs))

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_test_batch_end(batch, _ordered(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, _ordered(logs))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        # The bar is shown by the first worker alone.
        super().on_test_end(_ordered({**(logs or {}), **self.model.measured_here()}))


def _ordered(logs: dict[str, Any] | None) -> dict[str, Any]:
    # `dict.fromkeys` removes duplicates and keeps the order.
    names = [*statistics.SHOWN, *(f"val_{name}" for name in statistics.SHOWN)]
    logs = logs or {}
    return {name: logs[name] for name in dict.fromkeys([*names, *logs]) if name in logs}


def _show_score_first(given: inspect.BoundArguments) -> None:
    """Adds our progress bar to the callbacks, where Keras would add its own."""
    callbacks = given.arguments.get("callbacks")
    if isinstance(callbacks, keras.callbacks.CallbackList) or not given.arguments.get("verbose", 1):
        return
    callbacks = tf.nest.flatten(callbacks or [])
    if not any(isinstance(x, keras.callbacks.ProgbarLogger) for x in callbacks):
        given.arguments["callbacks"] = [*callbacks, _ScoreFirst()]


class _Means:
    """Running means of shown statistics by name; opaque to Keras.

    Args:
        names: tuple of str. Statistics that every algorithm measures; others are added by `update`.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._by_name = {name: _Mean(name=name) for name in names}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self._by_name[name] for name in statistics.SHOWN if name in self._by_name]

    def update(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name not in self._by_name:
                self._by_name[name] = _Mean(name=name)
            self._by_name[name].update_state(value)

    def results(self) -> dict[str, Any]:
        return {mean.name: mean.result() for mean in self.metrics}

    def reset(self) -> None:
        for mean in self.metrics:
            mean.reset_state()


class _Mean(keras.metrics.Metric):
    """A mean of Python numbers: Keras would add up its variables over all replicas."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.reset_state()

    def reset_state(self) -> None:
        self._total, self._count = 0.0, 0

    def update_state(self, value: float) -> None:
        self._total, self._count = self._total + float(value), self._count + 1

    def result(self) -> float:
        return self._total / max(self._count, 1)


class Replay:
    """Recorded statistics of past iterations, shown again when an interrupted run resumes.

    A resumed `fit` reads its data from the start. For completed iterations it only takes the batch
    and shows the recorded numbers again. So data order, epochs, history and schedules are those of
    a run that was never interrupted, for any dataset that is itself reproducible. Completed
    validations are shown again in the same way.

    Checksums of the prompts of the first batches are recorded too, and compared with the prompts
    that are read after a resume.

    Attributes:
        records: the shown statistics of every iteration, oldest first.
        validations: results of validation, by the number of iterations before them.
        prompts: checksums of the rows of the first `COMPARED` batches.
    """

    COMPARED = 16

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.validations: dict[int, dict[str, float]] = {}
        self.prompts: list[list[int]] = []
        self._on_others: Callable[[int, list[int], list[int]], None] | None = None
        self._position, self._until = 0, 0
        self._is_started = False

    @property
    def active(self) -> bool:
        """Whether recorded iterations are still being skipped."""
        return self._is_started and self._position < self._until

    @property
    def position(self) -> int:
        """Number of recorded iterations that have been skipped."""
        return self._position if self._is_started else 0

    @property
    def remaining(self) -> int:
        """Number of recorded iterations that are still to be skipped."""
        return self._until - self._position if self.active else 0

    @property
    def validation(self) -> dict[str, float] | None:
        """The recorded validation at this point, or None if there is none."""
        return self.validations.get(self._position) if self._is_started else None

    def start(
        self,
        records: list[dict[str, float]],
        validations: dict[int, dict[str, float]] | None = None,
        prompts: list[list[int]] | None = None,
        on_others: Callable[[int, list[int], list[int]], None] | None = None,
    ) -> None:
        """Starts to skip the iterations with these records.

        Args:
            records: list, as in the attribute.
            validations: dict, as in the attribute. Defaults to None: none.
            prompts: list, as in the attribute. Defaults to None: none.
            on_others: callable, called where the prompts of an iteration differ from the recorded
                ones, with its number, from 1, and the recorded and the new checksums. Defaults to
                None.
        """
        self.records = [dict(record) for record in records]
        self.validations = dict(validations or {})
        self.prompts = [list(rows) for rows in prompts or []]
        self._on_others = on_others
        self._position, self._until, self._is_started = 0, len(records), True

    def stop(self) -> None:
        """Ends skipping: the iterations that follow are run."""
        self._is_started = False

    def next(self) -> dict[str, float] | None:
        """Returns the record of the iteration to skip, or None for an iteration to run."""
        if not self.active:
            self.stop()
            return None
        self._position += 1
        return self.records[self._position - 1]

    def compare(self, batch: dict) -> None:
        """Reports prompts of a skipped iteration that differ from the recorded ones."""
        if self._on_others is not None and self.position <= len(self.prompts):
            rows, recorded = row_checksums(batch), self.prompts[self.position - 1]
            if rows != recorded:
                self._on_others(self.position, recorded, rows)
                # The run continues on these prompts: compare with them after the next resume.
                self.prompts[self.position - 1] = rows

    def record(self, shown: dict[str, float], batch: dict) -> None:
        """Adds the record of a completed iteration and its batch of prompts."""
        # Checksums of the first batches only, and without gaps.
        if len(self.records) == len(self.prompts) < self.COMPARED:
            self.prompts.append(row_checksums(batch))
        self.records.append(shown)

    def record_validation(self, result: dict[str, float]) -> None:
        """Adds the result of a validation after the last iteration."""
        if not self.active:
            self.validations[len(self.records)] = dict(result)


def row_checksums(batch: dict) -> list[int]:
    """Returns a number for each prompt of a batch, the same with more or less padding.

    Example:
        >>> batch = {"token_ids": np.array([[5, 6, 0]]), "padding_mask": np.array([[1, 1, 0]])}
        >>> row_checksums(batch) == row_checksums({name: x[:, :2] for name, x in batch.items()})
        True
    """
    # Checksums of real tokens only: padding differs with the batch size.
    ids = np.asarray(batch["token_ids"]).astype("int32")
    inside = np.asarray(batch["padding_mask"]).astype(bool)
    return [zlib.crc32(row[real].tobytes()) for row, real in zip(ids, inside, strict=True)]
