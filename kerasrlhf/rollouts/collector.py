"""Sampling and scoring a batch of prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasrlhf import replica, tokens
from kerasrlhf.functional import masking
from kerasrlhf.models import windows
from kerasrlhf.models.scorer import Scored
from kerasrlhf.rollouts import scoring
from kerasrlhf.rollouts.shaping import ScoreRules
from kerasrlhf.rollouts.weighted import WeightedReward, per_response
from kerasrlhf.types import Responses, Rollout, Sampler, require_finite_scores


class Collected(NamedTuple):
    """A rollout with its texts and diagnostics.

    rollout: for the trainer.
    episodes: texts and columns, those of `log_extra` included.
    raw_scores: float32 `(batch,)`, before the rules; of a process reward model the sums over steps.
    seconds: dict of `rollout` and `score`.
    spread: float32 `(batch,)`, standard deviation between the members of a `RewardEnsemble`, summed
        over steps where these have scores; None for any other reward.
    part_scores: dict from the names of a list or dict of rewards to float32 `(batch,)`, without
        weights and before the rules, NaN where a part does not apply; None for a single reward.
    metrics: dict from the names that functions gave `log_metric` to the means of their values.
    unscored: bool `(batch,)`, whether no reward applies to a response; None before the first one.
    """

    rollout: Rollout
    episodes: scoring.Episodes
    raw_scores: np.ndarray
    seconds: dict[str, float]
    spread: np.ndarray | None = None
    part_scores: dict[str, np.ndarray] | None = None
    metrics: dict[str, float] | None = None
    unscored: np.ndarray | None = None

    @property
    def scores(self) -> np.ndarray:
        """Float32 `(batch,)`, one number per response after the rules: sums of scores per token."""
        return per_response(self.rollout.scores.numpy())


class Readings(NamedTuple):
    """What the compiled networks say about sampled rows, float32.

    logprobs, ref_logprobs, values: `(batch, length)`, 0 outside the response.
    scored: list of `Scored`, one for each reward model that shares the actor's tokens.
    prompt_means: `(batch,)`, mean log-probability of the prompt's tokens given the response; 0
        without a reward for it.
    """

    logprobs: tf.Tensor
    ref_logprobs: tf.Tensor
    values: tf.Tensor
    scored: list[Scored]
    prompt_means: tf.Tensor


class Collector:
    """Turns prompts into a `Rollout`: two compiled functions and, between them, Python.

    The first samples. The second reads the responses with every frozen or separate network at
    once: the reference, a critic of its own, and reward models of the same tokens. A Python
    reward function, or a reward model with another tokenizer, gets the texts. What is trained on
    are the sampled ids: no text is tokenized again (M8).

    Args:
        actor: `ActorCritic`.
        reference: `Reference`.
        reward: as `rollouts.weighted.parts_of` describes: a reward model, a callable, or several
            with weights.
        sampler: how to sample.
        rules: `ScoreRules`.
        strategy: replicas that share the rows.
        jit_compile: compile with XLA.
        parts: int. The responses are read in this many parts, one after the other: logits of a
            whole batch at once would set the peak of memory.
        group_size: int, responses to every prompt.
        reread: bool. `logprobs` of the rollout are read as training reads them, not taken from
            sampling; `behavior_logprobs` remain those of sampling.
        reverse_reward: float. The score gains this times the mean log-probability, under the
            reference, of the prompt's tokens given the response.
        reward_timeout: float or None, seconds that a reward function may take for a batch.
    """

    def __init__(
        self,
        actor: Any,
        reference: Any,
        reward: Any,
        sampler: Sampler,
        rules: ScoreRules,
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        parts: int = 1,
        group_size: int = 1,
        reread: bool = False,
        reverse_reward: float = 0.0,
        reward_timeout: float | None = None,
    ):
        self.actor, self.reference = actor, reference
        self.reward = WeightedReward(reward, actor, group_size, reward_timeout)
        self.sampler, self.rules, self.parts = sampler, rules, parts
        self.group_size, self.reread, self.reverse_reward = group_size, reread, reverse_reward
        self._sample = replica.rowwise(self._sample_rows, strategy, jit_compile)
        self._sample_plainly = self._sample
        if sampler.epsilon:
            self._sample_plainly = replica.rowwise(self._plain_rows, strategy, jit_compile)
        self._read = replica.rowwise(self._read_rows, strategy, jit_compile)
        self._reread = replica.rowwise(self._reread_rows, strategy, jit_compile)

    def _sample_rows(self, token_ids, padding_mask, uniforms, temperature):
        return self.actor.sample(token_ids, padding_mask, uniforms, self.sampler, temperature)

    def _plain_rows(self, token_ids, padding_mask, uniforms, temperature):
        plain = dataclasses.replace(self.sampler, epsilon=0.0)
        return self.actor.sample(token_ids, padding_mask, uniforms, plain, temperature)

    def _read_rows(self, samples, temperature):
        ids, mask, starts = samples.token_ids, samples.padding_mask, samples.prompt_lengths
        inside, width = samples.response_mask, self.sampler.length
        heat = self.sampler.temperature if temperature is None else temperature
        ref_logprobs = self.reference.logprobs(ids, mask, starts, width, heat)
        values, logprobs = samples.values, samples.logprobs
        if self.actor.critic is not None:
            values = self.actor.token_values(ids, mask, starts, width)
        if self.reread:
            logprobs = windows.window_logprobs(self.actor.causal_lm, ids, mask, starts, width, heat)
        scored = self.reward.read_tokens(ids, mask, starts)
        prompt_means = tf.zeros_like(starts, tf.float32)
        if self.reverse_reward:
            prompt_means = self._prompt_means(samples)
        per_token = [tf.where(inside, x, 0.0) for x in (logprobs, ref_logprobs, values)]
        return Readings(*per_token, scored, prompt_means)

    def _prompt_means(self, samples):
        logprobs, inside = self.reference.prompt_logprobs(
            samples.token_ids,
            samples.padding_mask,
            samples.prompt_lengths,
            samples.token_ids.shape[1] - self.sampler.length,
        )
        count = tf.reduce_sum(tf.cast(inside, tf.float32), axis=-1)
        return masking.masked_sum(logprobs, inside, axis=-1) / tf.maximum(count, 1.0)

    def _read_in_parts(self, samples, temperature):
        split = [tf.split(x, self.parts) for x in samples]
        parts = [Responses(*part) for part in zip(*split, strict=True)]
        read = [self._read(part, temperature) for part in parts]
        return tf.nest.map_structure(lambda *rows: tf.concat(rows, axis=0), *read)

    def __call__(
        self,
        batch: dict,
        uniforms: tf.Tensor,
        kl_coef: float,
        iteration: int = 0,
        temperature: tf.Tensor | None = None,
        deviation: Callable[[np.ndarray], float] = lambda raw: 1.0,
        explore: bool = True,
    ) -> Collected:
        """Responses and scores one batch.

        Args:
            batch: dict of `token_ids` int32 `(batch, prompt)`, `padding_mask` bool, and as far as
                there are any `prompt`, `guarded_prompt` and `record` strings `(batch,)`.
            uniforms: float32 `(batch * group_size, sampler.length, 2)`.
            kl_coef: float, goes into the rollout as it is.
            iteration: int, goes into the rollout as it is, and to functions as `trainer_state`.
            temperature: float32 scalar in place of the sampler's, or None.
            deviation: raw scores `(batch * group_size,)` to the running deviation of scores.
            explore: False samples from the policy itself, whatever the sampler's `epsilon` is.
        """
        start = time.perf_counter()
        sample = self._sample if explore else self._sample_plainly
        samples = sample(batch["token_ids"], batch["padding_mask"], uniforms, temperature)
        samples = Responses(*samples)
        ended = samples.ended.numpy()
        sampled = time.perf_counter()
        read = self._read_in_parts(samples, temperature)
        episodes = scoring.read_episodes(
            samples, self._for_each_row(batch), self.actor.causal_lm.preprocessor
        )
        state = scoring.TrainerState(iteration, iteration * len(ended))
        scores = self.reward.score(samples, episodes, read.scored, state)
        raw = self._with_reverse_reward(scores.total, samples, read.prompt_means)
        rollout = Rollout(
            **samples._replace(logprobs=read.logprobs, values=read.values)._asdict(),
            ref_logprobs=read.ref_logprobs,
            scores=tf.constant(self._ruled(raw, samples, ended, deviation)),
            kl_coef=tf.constant(kl_coef, tf.float32),
            iteration=tf.constant(iteration, tf.int32),
        )
        scored = time.perf_counter()
        seconds = {"rollout": sampled - start, "score": scored - sampled}
        log = scores.log
        return Collected(
            rollout,
            episodes._replace(columns=episodes.columns | log.columns),
            per_response(raw),
            seconds,
            spread=scores.spread,
            part_scores=scores.by_part or None,
            metrics={name: float(np.mean(values)) for name, values in log.metrics.items()},
            unscored=scores.unscored,
        )

    def refreshed(self, rollout: Rollout, temperature: tf.Tensor | None = None) -> Rollout:
        """An older rollout as it is seen now: log-probabilities and values at the temperature."""
        logprobs, values, *reference = self._reread(
            rollout.token_ids,
            rollout.padding_mask,
            rollout.response_mask,
            rollout.prompt_lengths,
            temperature,
        )
        ref_logprobs = reference[0] if reference else rollout.ref_logprobs
        return rollout._replace(
            logprobs=logprobs,
            values=values,
            ref_logprobs=ref_logprobs,
            drift=logprobs - rollout.logprobs,
        )

    def _reread_rows(self, ids, mask, inside, starts, temperature):
        width = self.sampler.length
        heat = self.sampler.temperature if temperature is None else temperature
        stats = self.actor.token_stats(ids, mask, starts, width, heat)
        read = [stats.logprobs, stats.values]
        if temperature is not None:
            # The reference stays as it is, but it was read at the temperature of then.
            read.append(self.reference.logprobs(ids, mask, starts, width, heat))
        return [tf.where(inside, x, 0.0) for x in read]

    def _for_each_row(self, batch):
        """The batch's strings once for every response."""
        names = ("prompt", "guarded_prompt", "record")
        strings = {name: batch[name] for name in names if name in batch}
        if self.group_size == 1:
            return strings
        return {name: np.repeat(np.asarray(x), self.group_size) for name, x in strings.items()}

    def _with_reverse_reward(self, scores, samples, prompt_means):
        """Scores plus what the prompt's log-probability given the response is worth."""
        if not self.reverse_reward:
            return scores
        worth = self.reverse_reward * prompt_means.numpy()
        if scores.ndim == 2:
            worth = worth[:, None] * masking.last_true_mask(samples.response_mask).numpy()
        return scores + worth

    def _ruled(self, raw, samples, ended, deviation):
        mask = samples.response_mask
        responses = None
        if self.rules.counts_tokens:
            responses = tokens.masked_rows(np.asarray(samples.token_ids), np.asarray(mask))
        with np.errstate(over="ignore"):
            ruled = self.rules.apply(
                raw,
                ended,
                masking.last_true_mask(mask).numpy(),
                responses,
                self.sampler.length,
                deviation(per_response(raw)) if self.rules.running_scale else 1.0,
            )
        require_finite_scores(ruled, "The reward, after weights and rules such as `score_scale`,")
        return ruled
