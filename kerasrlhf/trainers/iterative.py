"""`fit` for models whose step is a whole iteration: one batch in, a dict of statistics out."""

from __future__ import annotations

import functools
from typing import Any

import keras

from kerasrlhf import adapters, replica
from kerasrlhf.data.limits import Limits
from kerasrlhf.data.tokenized import TokenizedDataset
from kerasrlhf.models import fitting
from kerasrlhf.trainers.interruption import Interruption
from kerasrlhf.trainers.replay import Replay
from kerasrlhf.trainers.statistics import (
    MODES,
    SHOWN,
    VALIDATED,
    rollout_statistics,
    shown_statistics,
    trackers,
)


class IterativeModel(adapters.AdaptedModel):
    """Runs an algorithm's iterations in Keras' `fit`; abstract.

    `fit`, callbacks, history and validation are Keras' own: only what is done with a batch is
    given. A subclass has `iterate`, `collect`, `pass_over` and `iteration`. What is overridden here
    beyond that checks arguments, so that a mistake is found before the first batch, has signals end
    `fit` between iterations, and calls Keras.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._trackers, self._validation = trackers(SHOWN), trackers(VALIDATED)
        self.replay, self.interruption = Replay(), Interruption()

    def iterate(self, batch: dict) -> dict[str, float]:
        """One iteration on a batch of prompts; its statistics by name."""
        raise NotImplementedError

    def collect(self, batch: dict, index: int = 0) -> Any:
        """Samples and scores prompts without learning from them."""
        raise NotImplementedError

    def limits(self) -> Limits:
        """What prompts the model can read and answer."""
        raise NotImplementedError

    def pass_over(self, iteration: int) -> None:
        """Reads what an iteration before a resume has read in addition to its prompts."""
        raise NotImplementedError

    @property
    def metrics(self):
        return [*self._trackers.values()]

    def compile(self, *args, **kwargs):
        self._check_scope()
        super().compile(*args, **kwargs)
        self._check_scope()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        fitting.check_fit(self, super().fit, args, kwargs, "prompts")
        self._check_scope()
        given = fitting.last_callbacks_last(super().fit, args, kwargs)
        fitting.set_modes(given.arguments.get("callbacks"), MODES)
        if isinstance(given.arguments.get("x"), TokenizedDataset):
            # The order of a pass belongs to the iterations before it: a dataset that was read
            # before begins where this run does.
            given.arguments["x"] = given.arguments["x"].in_step_with(self._batches_before)
        try:
            with self.interruption.watching():
                return super().fit(*given.args, **given.kwargs)
        finally:
            self.replay.stop()

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        fitting.check_fit(self, super().evaluate, args, kwargs, "prompts")
        self._check_scope()
        return super().evaluate(*args, **kwargs)

    def call(self, inputs):
        name = type(self).__name__
        raise ValueError(
            f"{name} has no outputs of its own: `fit` trains `trainer.actor`. For responses use "
            "`trainer.actor.generate(prompts, sampler)`, for logits and values "
            "`trainer.actor(batch)`."
        )

    def save(self, *args, **kwargs):
        raise ValueError(fitting.saving_advice(self))

    def _check_scope(self):
        """Everything that training changes must belong to the strategy that it runs under."""
        strategy, name = self.distribute_strategy, type(self).__name__
        fitting.check_scope(strategy, f"{name} and its actor", self.variables)
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None:
            fitting.check_scope(strategy, "the optimizer", optimizer.variables)

    def make_train_function(self, force=False):
        def train_function(iterator):
            batch = next(iterator)
            recorded = self.replay.next()
            if recorded is None:
                with self.interruption.iteration():
                    shown = shown_statistics(self.iterate(batch))
                    self.replay.record(shown, self._whole(batch))
                recorded = self.replay.records[-1]
            else:
                self.replay.compare(self._whole(batch))
                self.pass_over(self.replay.position - 1)
            for name, tracker in self._trackers.items():
                tracker.update_state(recorded[name])
            return {name: tracker.result() for name, tracker in self._trackers.items()}

        self.train_function = train_function

    def _batches_before(self):
        return int(self.iteration.numpy()) - self.replay.remaining

    def _whole(self, batch):
        return replica.gather(self.distribute_strategy, batch)

    def make_test_function(self, force=False):
        for tracker in self._validation.values():
            tracker.reset_state()
        count = iter(range(2**31))

        def test_function(iterator):
            batch = next(iterator)
            index = next(count)
            if self.replay.validation is not None:
                return dict(self.replay.validation)
            if self.replay.active:
                # Not recorded, and the weights of this moment are gone: there is nothing to show.
                return {}
            statistics = rollout_statistics(self.collect(batch, index))
            for name, tracker in self._validation.items():
                tracker.update_state(statistics[f"objective/{name}"])
            return {name: tracker.result() for name, tracker in self._validation.items()}

        self.test_function = test_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing to build; Keras would average a batch of strings over replicas here."""
