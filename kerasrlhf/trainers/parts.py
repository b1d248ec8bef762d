"""What a trainer has beside its own weights."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kerasrlhf.models.reference import Reference
from kerasrlhf.rollouts.scoring import ScoreRules


class Parts:
    """What a trainer holds without Keras tracking it: frozen networks and compiled functions.

    Attributes:
        reference, reward, rules: as given.
        collect, estimate, update: the compiled parts of an iteration; None before `compile`.
        statistics, last: of the last iteration.
    """

    def __init__(
        self,
        reference: Reference,
        reward: Any,
        rules: ScoreRules,
        ptx_data: tf.data.Dataset | None,
    ):
        self.reference, self.reward, self.rules = reference, reward, rules
        self.collect = self.estimate = self.update = None
        self.statistics, self.last = {}, None
        self._texts = iter(ptx_data.repeat()) if ptx_data is not None else None

    def next_ptx_batch(self) -> tuple | None:
        """The next batch of text and the number of its counted tokens, or None."""
        if self._texts is None:
            return None
        inputs, targets, weights = next(self._texts)
        return inputs, targets, weights, tf.maximum(tf.reduce_sum(weights), 1.0)

    def skip_ptx_batches(self, count: int) -> None:
        """Passes over the batches that updates done before a resume have read."""
        for _ in range(count if self._texts is not None else 0):
            next(self._texts)
