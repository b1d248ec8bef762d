"""The skeleton of on-policy training: sample, score, estimate, update."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf import replica
from kerasrlhf.functional import masking, value_losses
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reference import Reference
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts import minibatches
from kerasrlhf.rollouts.collect import Collected, Collector
from kerasrlhf.rollouts.scoring import ScoreRules
from kerasrlhf.trainers import checks
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.parts import Parts
from kerasrlhf.trainers.replay import Replay
from kerasrlhf.trainers.statistics import (
    SHOWN,
    VALIDATED,
    rollout_statistics,
    shown_statistics,
    time_statistics,
    trackers,
)
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats, require_int, require_number


class OnPolicyTrainer(keras.Model):
    """A `keras.Model` whose `fit` runs one iteration a batch of prompts.

    An iteration samples a response to every prompt, scores it, turns the rollout into advantages
    and returns, and updates the actor several times. Final classes say how in two hooks:

        estimate(rollout) -> Experience             once an iteration
        objective(stats, minibatch) -> loss, dict   per token, once an update

    Losses are per token and divided once, by the number of response tokens in the whole minibatch,
    so that micro-batches, replicas and padding leave the gradient as it is.

    Args:
        actor: `ActorCritic`.
        reward: `RewardModel`, or a callable as `rollouts.scoring.call_reward` describes.
        reference: None (the actor as it is now, frozen), or a CausalLM of the same vocabulary.
        sampler: `Sampler` without filters, with a temperature above 0.
        kl: `FixedKL` or `AdaptiveKL`.
        update_epochs: int. Passes over a rollout.
        num_minibatches: int. Optimiser steps a pass; divides the batch.
        micro_batches: int. Parts that a minibatch is computed in, one after the other, to save
            memory; the gradient is the same.
        ptx_coef: float. Weight of the language-modelling loss that every update adds (PPO-ptx).
        ptx_data: dataset as `data.demonstrations` gives it; needed when `ptx_coef` is not 0.
        score_scale, score_clip, missing_end_score, missing_end_penalty: see `ScoreRules`.
        seed: int. With the iteration it determines every sample and permutation.

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.
    """

    def __init__(
        self,
        actor: ActorCritic,
        reward: RewardModel | Callable,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: FixedKL,
        update_epochs: int = 4,
        num_minibatches: int = 1,
        micro_batches: int = 1,
        ptx_coef: float = 0.0,
        ptx_data: tf.data.Dataset | None = None,
        score_scale: float = 1.0,
        score_clip: float | None = None,
        missing_end_score: float | None = None,
        missing_end_penalty: float | None = None,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check_parts(actor, reward, sampler, kl)
        self.update_epochs = require_int("update_epochs", update_epochs, minimum=1)
        self.num_minibatches = require_int("num_minibatches", num_minibatches, minimum=1)
        self.micro_batches = require_int("micro_batches", micro_batches, minimum=1)
        self.ptx_coef = require_number("ptx_coef", ptx_coef, minimum=0.0)
        self.seed = require_int("seed", seed, minimum=0)
        if (self.ptx_coef > 0) != (ptx_data is not None):
            raise ValueError(
                "Language modelling beside RL needs both `ptx_coef` above 0 and `ptx_data`. "
                f"Received: ptx_coef={ptx_coef}, ptx_data={ptx_data!r}."
            )
        rules = ScoreRules(score_scale, score_clip, missing_end_score, missing_end_penalty)
        rules.check(can_end=bool(actor.stop_token_ids(sampler)))
        self.actor, self.kl, self.sampler = actor, kl, sampler
        self.iteration = keras.Variable(0, dtype="int64", trainable=False, name="iteration")
        self._trackers, self._validation = trackers(SHOWN), trackers(VALIDATED)
        # In one opaque object: Keras would put frozen networks, also those that a property gives,
        # into every checkpoint.
        self._parts = Parts(Reference.of(actor.causal_lm, reference), reward, rules, ptx_data)
        self.replay = Replay()
        self.built = True

    def estimate(self, rollout: Rollout) -> Experience:
        """Advantages and returns of a rollout; a pure function of tensors, compiled with XLA."""
        raise NotImplementedError

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        """Loss per token `(batch, length)`, and per-token tensors to log the masked means of."""
        raise NotImplementedError

    @property
    def reference(self) -> Reference:
        """The frozen model that the KL is measured against."""
        return self._parts.reference

    @property
    def statistics(self) -> dict[str, float]:
        """Statistics of the last iteration by name."""
        return self._parts.statistics

    @property
    def last(self) -> Collected | None:
        """Rollout and texts of the last iteration."""
        return self._parts.last

    @property
    def metrics(self):
        return [*self._trackers.values()]

    @property
    def updates_per_iteration(self) -> int:
        """Optimiser steps of one iteration."""
        return self.update_epochs * self.num_minibatches

    def compile(self, optimizer: Any = None, *, jit_compile: bool = True, run_eagerly=False):
        """Sets the optimiser and builds the compiled parts.

        Args:
            optimizer: Keras optimiser. None: `Adam(1e-5, epsilon=1e-5)`, TensorFlow's form of it
                (detail N22).
            jit_compile: compile sampling, scoring and updates with XLA.
            run_eagerly: run Python line by line, to debug.
        """
        if optimizer is None:
            optimizer = keras.optimizers.Adam(1e-5, epsilon=1e-5)
        super().compile(
            optimizer, jit_compile=jit_compile and not run_eagerly, run_eagerly=run_eagerly
        )
        strategy = self.distribute_strategy
        checks.check_precision(self.actor.causal_lm, strategy)
        with strategy.scope():
            self.optimizer.build(self.trainable_variables)
        jit_compile = jit_compile and not run_eagerly
        parts = self._parts
        parts.collect = Collector(
            self.actor,
            parts.reference,
            parts.reward,
            self.sampler,
            parts.rules,
            strategy,
            jit_compile,
            self.num_minibatches,
        )
        parts.estimate = replica.compiled(self.estimate, jit_compile)
        parts.update = replica.update(
            self._gradients_and_sums,
            self.optimizer,
            self.trainable_variables,
            strategy,
            jit_compile,
        )

    def iterate(self, batch: dict) -> dict[str, float]:
        """One iteration: sample, score, estimate, `update_epochs * num_minibatches` updates.

        Args:
            batch: dict of `token_ids` int32 `(batch, prompt)` and `padding_mask` bool, as
                `data.prompts` gives it.

        Returns:
            The iteration's statistics by name, also kept in `statistics`; the rollout with its
            texts is kept in `last`.
        """
        self._assert_compile_called("iterate")
        batch = self._check_batch(batch)
        start = time.perf_counter()
        iteration = int(self.iteration.numpy())
        rows = int(batch["token_ids"].shape[0])
        uniforms = replica.uniforms(self.seed, iteration, rows, self.sampler.length)
        kl_coef = float(self.kl.coef.numpy())
        collected = self._parts.collect(batch, uniforms, kl_coef)
        experience = Experience(*self._parts.estimate(collected.rollout))
        updates = self._update(experience, iteration)
        explained = value_losses.explained_variance(
            experience.values, experience.returns, experience.response_mask
        )
        statistics = {**rollout_statistics(collected), **updates}
        statistics["value/explained_variance"] = float(explained)
        self.kl.update(statistics["objective/kl"], episodes=rows)
        self.iteration.assign_add(1)
        seconds = {**collected.seconds, "iteration": time.perf_counter() - start}
        statistics |= time_statistics(seconds, tokens=statistics["objective/length"] * rows)
        self._parts.statistics, self._parts.last = statistics, collected
        return statistics

    def _update(self, experience: Experience, iteration: int) -> dict[str, float]:
        rows = int(experience.token_ids.shape[0])
        order = minibatches.permutations(
            self.seed, iteration, rows, self.update_epochs, self.num_minibatches
        )
        logs = [self.train_step(minibatches.take(experience, index)) for index in order]
        logs = [{name: float(value) for name, value in log.items()} for log in logs]
        dtype = self.actor.causal_lm.backbone.compute_dtype
        checks.check_first_ratio(logs[0]["policy/ratio_error"], dtype, iteration)
        statistics = {name: float(np.mean([log[name] for log in logs])) for name in logs[0]}
        # Of the first update only: afterwards the policy has moved and the error means nothing.
        statistics["policy/ratio_error"] = logs[0]["policy/ratio_error"]
        return statistics

    def train_step(self, minibatch: Experience) -> dict[str, Any]:
        """One optimiser step on a minibatch of the whole batch's rows, over all replicas."""
        tokens = masking.masked_sum(
            ops.ones(minibatch.response_mask.shape), minibatch.response_mask
        )
        ptx = self._parts.next_ptx_batch()
        return self._parts.update(minibatch, tokens, ptx)

    def _gradients_and_sums(self, minibatch, tokens, ptx):
        """Gradients of the loss over the given rows, divided by the whole minibatch's `tokens`."""
        variables = self.trainable_variables
        size = minibatch[0].shape[0] // self.micro_batches

        def part(index):
            rows = minibatch
            if self.micro_batches > 1:
                rows = minibatches.part(minibatch, index, size)
            return replica.dense_gradients(lambda: self._loss(Experience(*rows), tokens), variables)

        gradients, sums = replica.accumulated(part, self.micro_batches)
        if ptx is not None:
            more, text = replica.dense_gradients(lambda: self._text_loss(*ptx), variables)
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
            total = sums["loss/total"] + self.ptx_coef * text
            sums = {**sums, "loss/ptx": text, "loss/total": total}
        return gradients, sums

    def _loss(self, minibatch, tokens):
        stats = self.actor.token_stats(
            minibatch.token_ids,
            minibatch.padding_mask,
            minibatch.prompt_lengths,
            self.sampler.length,
            self.sampler.temperature,
        )
        loss, logs = self.objective(stats, minibatch)
        logs = {"loss/total": loss, "policy/entropy": stats.entropy, **logs}
        mask = minibatch.response_mask
        sums = {name: masking.masked_sum(x, mask) / tokens for name, x in logs.items()}
        return sums["loss/total"], sums

    def _text_loss(self, inputs, targets, weights, weight_sum):
        """`ptx_coef` times the cross-entropy, and the cross-entropy in nats per counted token."""
        logits = self.actor(inputs)["logits"]
        losses = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        loss = ops.sum(losses * ops.cast(weights, "float32")) / weight_sum
        return self.ptx_coef * loss, loss

    def _check_batch(self, batch: Any) -> dict:
        """The whole batch on the host, checked against sampler, minibatches and replicas."""
        batch = checks.checked_batch(batch, self.distribute_strategy)
        rows, columns = (int(size) for size in batch["token_ids"].shape)
        self.actor.check_length(columns, self.sampler)
        replicas = replica.replicas(self.distribute_strategy)
        checks.check_division(rows, self.num_minibatches, self.micro_batches, replicas)
        return batch

    def make_train_function(self, force=False):
        def train_function(iterator):
            batch = next(iterator)
            recorded = self.replay.next()
            if recorded is None:
                statistics = self.iterate(batch)
                self.replay.record(shown_statistics(statistics))
                recorded = self.replay.records[-1]
            else:
                self._parts.skip_ptx_batches(self.updates_per_iteration)
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

    def collect(self, batch: dict, index: int = 0) -> Collected:
        """Samples and scores prompts without learning from them.

        Args:
            batch: as in `iterate`.
            index: int. The same index draws with the same random numbers every time; training
                uses none of these.

        Returns:
            `Collected`: the rollout, its texts, and the scores before the rules.
        """
        self._assert_compile_called("collect")
        batch = self._check_batch(batch)
        rows = int(batch["token_ids"].shape[0])
        uniforms = replica.uniforms(self.seed, -1 - index, rows, self.sampler.length)
        return self._parts.collect(batch, uniforms, float(self.kl.coef.numpy()))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing to build; Keras would average a batch of strings over replicas here."""
