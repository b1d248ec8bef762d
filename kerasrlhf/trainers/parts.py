"""What a trainer has beside its own weights."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kerasrlhf import replica
from kerasrlhf.data.limits import Guard, Limits
from kerasrlhf.models.reference import Reference
from kerasrlhf.rollouts import minibatches
from kerasrlhf.rollouts.collector import Collector
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import ScoreRules
from kerasrlhf.trainers.gradients import Gradients
from kerasrlhf.trainers.soundness import SkippedUpdates


class Parts:
    """What a trainer holds without Keras tracking it: frozen networks and compiled functions.

    Attributes:
        reference, reward, rules, memory: as given; `limits` are those of the actor.
        collect, estimate, take, update, learn_text: the compiled parts of an iteration; None before
            `compile`.
        statistics, last: of the last iteration.
        skipped: `SkippedUpdates`, and `are_finite` says whether all trained weights are finite.
    """

    def __init__(
        self,
        reference: Reference,
        reward: Any,
        rules: ScoreRules,
        ptx_data: tf.data.Dataset | None,
        memory: RolloutMemory | None,
        limits: Limits,
    ):
        self.reference, self.reward, self.rules = reference, reward, rules
        self.memory = memory
        self.collect = self.estimate = self.take = self.update = self.learn_text = None
        self.statistics, self.last = {}, None
        self.skipped, self.are_finite = None, None
        self._texts = None
        if ptx_data is not None:
            self._texts = Guard(limits).batches(ptx_data.repeat())

    def compile(self, trainer: Any, strategy: tf.distribute.Strategy) -> None:
        """Builds the compiled parts of a trainer that Keras has compiled."""
        jit_compile = trainer.jit_compile
        self.collect = Collector(
            trainer.actor,
            self.reference,
            self.reward,
            trainer.sampler,
            self.rules,
            strategy,
            jit_compile,
            parts=trainer.num_minibatches,
            group_size=trainer.group_size,
            reread=trainer.importance_cap is not None,
            reverse_reward=trainer.reverse_reward,
            reward_timeout=trainer.reward_timeout,
        )
        self.estimate = replica.compiled(trainer.estimate, jit_compile)
        self.take = replica.compiled(minibatches.take, jit_compile=False)
        gradients = Gradients(trainer)
        optimized = (trainer.optimizer, trainer.trainable_variables, strategy, jit_compile)
        self.update = replica.update(gradients.of_minibatch, *optimized, prepare=gradients.counted)
        self.learn_text = replica.update(gradients.of_text, *optimized)
        self.skipped = SkippedUpdates(trainer.max_skipped_updates)
        self.are_finite = replica.all_finite(trainer.trainable_variables, strategy, jit_compile)
        if trainer.run_eagerly:
            for name in ("collect", "estimate", "take", "update", "learn_text"):
                setattr(self, name, replica.line_by_line(getattr(self, name)))

    def ptx_batches(self, count: int, micro_batches: int, replicas: int) -> list[tuple | None]:
        """The next batches of text, each with the number of its counted tokens.

        Args:
            count: int, how many.
            micro_batches, replicas: int, what the rows of every batch are divided between.

        Returns:
            `count` tuples of inputs, targets, weights and a float32 scalar; Nones without text.

        Raises:
            ValueError: no texts, or rows that cannot be divided into parts of equal size.
        """
        if self._texts is None:
            return [None] * count
        batches = [self._next_texts() for _ in range(count)]
        for rows in (int(weights.shape[0]) for _, _, weights in batches):
            replica.check_division(
                "texts of `ptx_data`", rows, micro_batches=micro_batches, replicas=replicas
            )
        return [(*batch, tf.maximum(tf.reduce_sum(batch[-1]), 1.0)) for batch in batches]

    def skip_ptx_batches(self, count: int) -> None:
        """Passes over the batches that updates done before a resume have read."""
        for _ in range(count if self._texts is not None else 0):
            self._next_texts()

    def _next_texts(self):
        batch = next(self._texts, None)
        if batch is None:
            raise ValueError(
                "`ptx_data` has no batches. A batch size above the number of texts leaves none "
                "with `drop_remainder=True`."
            )
        return batch
