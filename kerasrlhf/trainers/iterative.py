"""`fit` for models whose step is a whole iteration: one batch in, a dict of statistics out."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.trainers.replay import Replay
from kerasrlhf.trainers.statistics import (
    SHOWN,
    VALIDATED,
    rollout_statistics,
    shown_statistics,
    trackers,
)


class IterativeModel(keras.Model):
    """What stands between Keras' `fit` and an algorithm's iteration; abstract.

    `fit`, callbacks, history and validation are Keras' own: only what is done with a batch is
    given. A subclass has `iterate`, `collect` and `pass_over`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._trackers, self._validation = trackers(SHOWN), trackers(VALIDATED)
        self.replay = Replay()

    def iterate(self, batch: dict) -> dict[str, float]:
        """One iteration on a batch of prompts; its statistics by name."""
        raise NotImplementedError

    def collect(self, batch: dict, index: int = 0) -> Any:
        """Samples and scores prompts without learning from them."""
        raise NotImplementedError

    def pass_over(self, iteration: int) -> None:
        """Reads what an iteration that was done before a resume has read beside its prompts."""
        raise NotImplementedError

    @property
    def metrics(self):
        return [*self._trackers.values()]

    def make_train_function(self, force=False):
        def train_function(iterator):
            batch = next(iterator)
            recorded = self.replay.next()
            if recorded is None:
                statistics = self.iterate(batch)
                self.replay.record(shown_statistics(statistics))
                recorded = self.replay.records[-1]
            else:
                self.pass_over(self.replay.position - 1)
            for name, tracker in self._trackers.items():
                tracker.update_state(recorded[name])
            return {name: tracker.result() for name, tracker in self._trackers.items()}

        self.train_function = train_function

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
