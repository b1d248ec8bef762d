"""Sampling and scoring a batch of prompts."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasrlhf import replica
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts import scoring
from kerasrlhf.types import Rollout, Sampler, Samples


class Collected(NamedTuple):
    """A rollout with what people want to see of it.

    rollout: for the trainer.
    episodes: texts and columns.
    raw_scores: float32 `(batch,)`, before the rules.
    seconds: dict of `rollout` and `score`.
    """

    rollout: Rollout
    episodes: scoring.Episodes
    raw_scores: np.ndarray
    seconds: dict[str, float]


class Collector:
    """Turns prompts into a `Rollout`: two compiled functions and, between them, Python.

    The first samples. The second reads the responses with every frozen or separate network at
    once: the reference, a critic of its own, and a reward model of the same tokens. A Python
    reward function, or a reward model with another tokenizer, gets the texts. What is trained on
    are the sampled ids: no text is tokenised again (M8).

    Args:
        actor: `ActorCritic`.
        reference: `Reference`.
        reward: `RewardModel` or callable.
        sampler: how to draw.
        rules: `ScoreRules`.
        strategy: replicas that share the rows.
        jit_compile: compile with XLA.
        parts: int. The responses are read in this many parts, one after the other: logits of a
            whole batch at once would set the peak of memory.
    """

    def __init__(
        self,
        actor: Any,
        reference: Any,
        reward: Any,
        sampler: Sampler,
        rules: scoring.ScoreRules,
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        parts: int = 1,
    ):
        self.actor, self.reference, self.reward = actor, reference, reward
        self.sampler, self.rules, self.parts = sampler, rules, parts
        is_model = isinstance(reward, RewardModel)
        self._token_reward = is_model and scoring.shares_tokens(reward, actor.causal_lm)
        self._text_reward = is_model and not self._token_reward
        self._sample = replica.rowwise(self._sample_rows, strategy, jit_compile)
        self._read = replica.rowwise(self._read_rows, strategy, jit_compile)

    def _sample_rows(self, token_ids, padding_mask, uniforms):
        return self.actor.sample(token_ids, padding_mask, uniforms, self.sampler)

    def _read_rows(self, samples):
        ids, mask, starts = samples.token_ids, samples.padding_mask, samples.prompt_lengths
        width = self.sampler.length
        inside = samples.response_mask
        ref_logprobs = self.reference.logprobs(ids, mask, starts, width, self.sampler.temperature)
        values = samples.values
        if self.actor.critic is not None:
            values = self.actor.token_values(ids, mask, starts, width)
        scores = tf.zeros_like(starts, tf.float32)
        if self._token_reward:
            scores = self.reward({"token_ids": ids, "padding_mask": mask})
        return tf.where(inside, ref_logprobs, 0.0), tf.where(inside, values, 0.0), scores

    def _read_in_parts(self, samples):
        split = [tf.split(x, self.parts) for x in samples]
        read = [self._read(Samples(*part)) for part in zip(*split, strict=True)]
        return [tf.concat(parts, axis=0) for parts in zip(*read, strict=True)]

    def __call__(self, batch: dict, uniforms: tf.Tensor, kl_coef: float) -> Collected:
        """Samples and scores one batch.

        Args:
            batch: dict of `token_ids` int32 `(batch, prompt)`, `padding_mask` bool, and as far as
                there are any `prompt` and `record` strings `(batch,)`.
            uniforms: float32 `(batch, sampler.length, 2)`.
            kl_coef: float, goes into the rollout as it is.
        """
        start = time.perf_counter()
        samples = self._sample(batch["token_ids"], batch["padding_mask"], uniforms)
        samples = Samples(*samples)
        ended = samples.ended.numpy()
        sampled = time.perf_counter()
        ref_logprobs, values, token_scores = self._read_in_parts(samples)
        episodes = scoring.read_episodes(samples, batch, self.actor.causal_lm.preprocessor)
        raw = self._scores(samples, episodes, token_scores)
        scores = self.rules.apply(raw, ended)
        rollout = Rollout(
            *samples[:-1],
            values=values,
            ref_logprobs=ref_logprobs,
            scores=tf.constant(scores),
            kl_coef=tf.constant(kl_coef, tf.float32),
        )
        scored = time.perf_counter()
        seconds = {"rollout": sampled - start, "score": scored - sampled}
        return Collected(rollout, episodes, raw, seconds)

    def _scores(self, samples, episodes, token_scores):
        if self._token_reward:
            return token_scores.numpy()
        if self._text_reward:
            return self.reward.score(episodes.prompts, episodes.responses)
        return scoring.call_reward(self.reward, episodes, samples)
