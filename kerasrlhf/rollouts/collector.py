"""Sampling and scoring a batch of prompts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasrlhf import replica, shares
from kerasrlhf.data import kinds
from kerasrlhf.functional import masking
from kerasrlhf.models import reverse, windows
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.sampling import Ending
from kerasrlhf.models.scorer import Scored
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts import scoring
from kerasrlhf.rollouts.dialogues import Dialogue, Dialogues
from kerasrlhf.rollouts.scoring import Reward, per_response
from kerasrlhf.types import Responses, Rollout, Sampler, Tensor
from kerasrlhf.workers import Workers


class Collected(NamedTuple):
    """A rollout with its texts and diagnostics.

    rollout: for the trainer.
    episodes: texts and columns, those of `log_extra` included.
    raw_scores: float32 `(batch,)`, before `RewardShaping`; of a process reward model the sums over
        steps.
    seconds: dict of `rollout` and `score`.
    spread: float32 `(batch,)`, standard deviation between the members of a `RewardEnsemble`, summed
        over steps where these have scores; None for any other reward.
    part_scores: dict from the names of a list or dict of rewards to float32 `(batch,)`, without
        weights and before shaping, NaN where a part does not apply; None for a single reward.
    metrics: dict from the names that functions gave `log_metric` to the means of their values.
    unscored: bool `(batch,)`, whether no reward applies to a response; None before the first one.
    prompts: dict, the batch of prompts, as in `OnPolicyTrainer.collect`.
    """

    rollout: Rollout
    episodes: scoring.Episodes
    raw_scores: np.ndarray
    seconds: dict[str, float]
    spread: np.ndarray | None = None
    part_scores: dict[str, np.ndarray] | None = None
    metrics: dict[str, float] | None = None
    unscored: np.ndarray | None = None
    prompts: dict[str, Any] | None = None

    @property
    def scores(self) -> np.ndarray:
        """Float32 `(batch,)`, one number per response after shaping: sums of scores per token."""
        return per_response(np.asarray(self.rollout.scores))


class Readings(NamedTuple):
    """Outputs of the compiled networks for sampled rows, float32.

    logprobs, ref_logprobs, values: `(batch, length)`, 0 outside the response.
    scored: list of `Scored`, one for each reward model that shares the actor's tokens.
    prompt_means: `(batch,)`, mean log-probability of the prompt's tokens given the response; 0
        without a reward for it.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scored: list[Scored]
    prompt_means: Tensor


class Reread(NamedTuple):
    """Outputs of the actor and the reference for an older rollout, at a temperature.

    logprobs, values, ref_logprobs: float32 `(batch, length)`, 0 outside the response.
    """

    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor


class Collector:
    """Turns prompts into scored responses: two compiled functions, and Python between them.

    The first samples. The second evaluates every frozen or separate network on the responses: the
    reference, a separate critic, and reward models with the actor's tokenizer. A Python reward
    function, or a reward model with another tokenizer, gets the texts. Training uses the sampled
    ids: no text is tokenized again (M8).

    Args:
        actor: `ActorCritic`.
        reference: `Reference`.
        reward: `FunctionReward` or `WeightedReward`. Its group size is the number of responses to
            every prompt.
        sampler: `Sampler`.
        execution: `replica.Execution`.
        parts: int. The responses are evaluated in this many parts, one after the other: logits of
            a whole batch at once would set the peak of memory. Defaults to 1.
        recompute: bool. Whether to recompute `logprobs` of the rollout with the training forward
            pass instead of taking them from sampling; `behavior_logprobs` remain those of sampling.
            Defaults to False.
        prompt_reward: float. The score gains this times the mean log-probability, under the
            reference, of the prompt's tokens given the response. Defaults to 0.
        decoder: `Sampler` of `decode`. Defaults to None: there are no such responses.
        dialogue: `Dialogue`. A response is then several replies with a user's turns between them,
            each sampled by `sampler`. Defaults to None: a response is one reply.
        workers: `Workers`, of which the first asks the user of a dialogue. Defaults to None: this
            process alone.
    """

    def __init__(
        self,
        actor: ActorCritic,
        reference: Reference,
        reward: Reward,
        sampler: Sampler,
        execution: replica.Execution,
        *,
        parts: int = 1,
        recompute: bool = False,
        prompt_reward: float = 0.0,
        decoder: Sampler | None = None,
        dialogue: Dialogue | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers
        self.actor, self.reference, self.reward, self.sampler = actor, reference, reward, sampler
        self.parts, self.recompute, self.prompt_reward = parts, recompute, prompt_reward
        # What ends a response is read from the tokenizer once.
        self._ending = actor.ending(sampler)
        # Compiled once per trainer; each is retraced only for new shapes.
        self._sample = replica.rowwise(self._sample_rows, execution)
        self._sample_policy = self._sample
        if sampler.epsilon:
            self._sample_policy = replica.rowwise(self._sample_policy_rows, execution)
        self._decoder = None if decoder is None else (decoder, actor.ending(decoder))
        # Tokens after a prompt at most: the window that the networks evaluate.
        self.columns = sampler.length if dialogue is None else dialogue.columns(sampler.length)
        self.dialogue = dialogue
        self._dialogues = self._dialogues_of(sampler, self._ending)
        self._decode = replica.rowwise(self._decode_rows, execution)
        self._read = replica.rowwise(self._read_rows, execution)
        self._reread = replica.rowwise(self._reread_rows, execution)

    def __call__(
        self,
        batch: dict[str, Any],
        uniforms: Tensor,
        temperature: Tensor,
        *,
        explore: bool = True,
        iteration: int = 0,
    ) -> Collected:
        """Samples and scores one batch.

        Args:
            batch: dict of `token_ids` int32 `(batch, prompt)`, `padding_mask` bool, and where
                present `prompt`, `guarded_prompt` and `record`, strings `(batch,)`.
            uniforms: float32 `(batch * group_size, sampler.length, 2)`; for dialogues of all
                replies, `(batch * group_size, dialogue.tokens(sampler.length), 2)`.
            temperature: float32 scalar. Divides the logits.
            explore: bool. False samples from the policy itself, whatever the sampler's `epsilon`
                is. Defaults to True.
            iteration: int. `trainer_state.global_step` of reward functions. Defaults to 0.

        Returns:
            `Collected`. The scores of its rollout are not shaped, and its `kl_coef` is 0.
        """
        # Sample responses, `(batch * group_size, length)`.
        start = time.perf_counter()
        sample = self._sample if explore else self._sample_policy
        strings = self._for_each_response(batch, self.reward.group_size)
        responses, episodes = self._respond(
            batch, strings, uniforms, lambda *rows: sample(*rows, temperature), self._dialogues
        )
        # `numpy` waits for the device, so that the time of sampling is measured.
        rows = len(responses.ended.numpy())
        sampled = time.perf_counter()
        # Evaluate the networks, then score the texts and token ids.
        readings = self._read_in_parts(responses, temperature)
        if episodes is None:
            episodes = self._read_episodes(responses, strings, self._ending)
        state = scoring.TrainerState(iteration, iteration * rows)
        scores = self.reward.score(responses, episodes, readings.scored, state)
        total = scores.total
        if self.dialogue is not None and total.ndim == 2:
            # Scores of the user's tokens are no rewards.
            total = np.where(responses.response_mask.numpy(), total, np.float32(0.0))
        raw = self._with_prompt_reward(total, responses, readings.prompt_means)
        # The rollout for the trainer; its scores are shaped there.
        rollout = Rollout(
            **responses._replace(logprobs=readings.logprobs, values=readings.values)._asdict(),
            ref_logprobs=readings.ref_logprobs,
            scores=tf.constant(raw),
        )
        scored = time.perf_counter()
        log = scores.log
        return Collected(
            rollout,
            # Columns from `log_extra` join those of the records.
            episodes._replace(columns=episodes.columns | log.columns),
            raw_scores=per_response(raw),
            seconds={"rollout": sampled - start, "score": scored - sampled},
            spread=scores.spread,
            part_scores=scores.by_part or None,
            metrics={name: float(np.mean(values)) for name, values in log.metrics.items()},
            unscored=scores.unscored,
            prompts=batch,
        )

    def decode(self, batch: dict[str, Any], uniforms: Tensor) -> scoring.Episodes:
        """Samples one response to every prompt with `decoder`; scores nothing.

        Args:
            batch: as in a call.
            uniforms: float32 `(batch, decoder.length, 2)`; for dialogues of all replies.

        Returns:
            `Episodes`.
        """
        strings = self._for_each_response(batch, size=1)
        sampler, ending = self._require_decoder()
        dialogues = self._dialogues_of(sampler, ending)
        responses, episodes = self._respond(batch, strings, uniforms, self._decode, dialogues)
        if episodes is not None:
            return episodes
        return self._read_episodes(responses, strings, ending)

    def _require_decoder(self) -> tuple[Sampler, Ending]:
        if self._decoder is None:
            raise ValueError("There is no sampler to decode with. Pass `decoder`.")
        return self._decoder

    def _respond(
        self,
        batch: dict[str, Any],
        strings: dict[str, Any],
        uniforms: Tensor,
        sample: Callable[[Tensor, Tensor, Tensor], Responses],
        dialogues: Dialogues | None,
    ) -> tuple[Responses, scoring.Episodes | None]:
        """Returns sampled responses, and of dialogues the texts, which were read on the way."""
        rows = batch["token_ids"], batch["padding_mask"]
        if dialogues is None:
            return sample(*rows, uniforms), None
        texts = scoring.PromptStrings.of(strings)
        return dialogues.converse(*rows, texts, uniforms, sample)

    def _dialogues_of(self, sampler: Sampler, ending: Ending) -> Dialogues | None:
        if self.dialogue is None:
            return None
        return Dialogues(
            self.dialogue, self.actor.causal_lm, sampler.length, ending.strings, self.workers
        )

    def _read_episodes(
        self, responses: Responses, strings: dict[str, Any], ending: Ending
    ) -> scoring.Episodes:
        preprocessor = self.actor.causal_lm.preprocessor
        return scoring.read_episodes(responses, strings, preprocessor, ending.strings)

    def refreshed(self, rollout: Rollout, temperature: Tensor) -> Rollout:
        """Returns an older rollout with log-probabilities and values of the current networks.

        Args:
            rollout: `Rollout` of an earlier iteration.
            temperature: float32 scalar. Divides the logits.
        """
        read = self._reread(rollout, temperature)
        return rollout._replace(**read._asdict(), drift=read.logprobs - rollout.logprobs)

    def _sample_rows(
        self, token_ids: Tensor, padding_mask: Tensor, uniforms: Tensor, temperature: Tensor
    ) -> Responses:
        rows = token_ids, padding_mask, uniforms
        return self.actor.sample(*rows, self.sampler, temperature, self._ending)

    def _sample_policy_rows(
        self, token_ids: Tensor, padding_mask: Tensor, uniforms: Tensor, temperature: Tensor
    ) -> Responses:
        sampler = dataclasses.replace(self.sampler, epsilon=0.0)
        rows = token_ids, padding_mask, uniforms
        return self.actor.sample(*rows, sampler, temperature, self._ending)

    def _decode_rows(self, token_ids: Tensor, padding_mask: Tensor, uniforms: Tensor) -> Responses:
        sampler, ending = self._require_decoder()
        # Greedy: log-probabilities, which are not used, at temperature 1.
        temperature = sampler.temperature or 1.0
        rows = token_ids, padding_mask, uniforms
        return self.actor.sample(*rows, sampler, temperature, ending)

    def _read_rows(self, responses: Responses, temperature: Tensor) -> Readings:
        rows = responses.token_ids, responses.padding_mask, responses.prompt_lengths
        width = self.columns
        logprobs, values = responses.logprobs, responses.values
        # Recompute if sampling and training may differ, for example in bfloat16.
        if self.recompute:
            logprobs = windows.window_logprobs(self.actor.causal_lm, *rows, width, temperature)
        # A critic with a shared trunk has computed its values during sampling.
        if self.actor.critic is not None:
            values = self.actor.token_values(*rows, width)
        # The reference at the same temperature (N10).
        ref_logprobs = self.reference.logprobs(*rows, width, temperature)
        prompt_means = tf.zeros_like(responses.prompt_lengths, tf.float32)
        if self.prompt_reward:
            prompt_means = self._prompt_means(responses)
        # Padding may hold anything: zero it before any sum (M9).
        inside = responses.response_mask
        return Readings(
            logprobs=masking.zero_outside(logprobs, inside),
            ref_logprobs=masking.zero_outside(ref_logprobs, inside),
            values=masking.zero_outside(values, inside),
            scored=self.reward.read(*rows),
            prompt_means=prompt_means,
        )

    def _prompt_means(self, responses: Responses) -> Tensor:
        with self.reference.frozen():
            logprobs, inside = reverse.prompt_logprobs(
                self.reference.causal_lm,
                responses.token_ids,
                responses.padding_mask,
                responses.prompt_lengths,
                responses.token_ids.shape[1] - self.columns,
            )
        # Mean over the prompt's tokens, `(batch,)`; 0 for an empty prompt.
        count = tf.reduce_sum(tf.cast(inside, tf.float32), axis=-1)
        return masking.masked_sum(logprobs, inside, axis=-1) / tf.maximum(count, 1.0)

    def _read_in_parts(self, responses: Responses, temperature: Tensor) -> Readings:
        if self.parts == 1:
            return self._read(responses, temperature)
        # Parts of equal size share one compiled function; the last is filled up with copies.
        count = responses.token_ids.shape[0]
        filled = shares.padded(responses, self.parts)
        rows = filled.token_ids.shape[0] // self.parts
        parts = [
            tf.nest.map_structure(lambda x, i=i: x[i * rows : (i + 1) * rows], filled)
            for i in range(self.parts)
        ]
        readings = [self._read(part, temperature) for part in parts]
        return tf.nest.map_structure(lambda *xs: tf.concat(xs, axis=0)[:count], *readings)

    def _reread_rows(self, rollout: Rollout, temperature: Tensor) -> Reread:
        rows = rollout.token_ids, rollout.padding_mask, rollout.prompt_lengths
        width, inside = self.columns, rollout.response_mask
        stats = self.actor.token_stats(*rows, width, temperature)
        ref_logprobs = rollout.ref_logprobs
        if callable(self.sampler.temperature):
            # The reference does not change, but it was evaluated at another temperature.
            ref_logprobs = self.reference.logprobs(*rows, width, temperature)
        return Reread(
            logprobs=masking.zero_outside(stats.logprobs, inside),
            values=masking.zero_outside(stats.values, inside),
            ref_logprobs=masking.zero_outside(ref_logprobs, inside),
        )

    def _for_each_response(self, batch: dict[str, Any], size: int) -> dict[str, Any]:
        """Returns the strings of the batch, repeated for each of `size` responses to a prompt."""
        names = ("prompt", "guarded_prompt", "record")
        strings = {name: batch[name] for name in names if name in batch}
        if size == 1:
            return strings
        return {name: np.repeat(np.asarray(x), size) for name, x in strings.items()}

    def _with_prompt_reward(
        self, scores: np.ndarray, responses: Responses, prompt_means: Tensor
    ) -> np.ndarray:
        """Returns the scores plus `prompt_reward` times `prompt_means`."""
        if not self.prompt_reward:
            return scores
        worth = self.prompt_reward * prompt_means.numpy()
        # With scores per token, add to the last response token.
        if scores.ndim == 2:
            worth = worth[:, None] * masking.last_true_mask(responses.response_mask).numpy()
        return scores + worth


def prompt_batch(batch: Any) -> dict[str, Any]:
    """Returns a batch of prompts as tensors of the right dtypes.

    Args:
        batch: dict of `token_ids` and `padding_mask`, `(batch, prompt)`. Other columns stay.

    Raises:
        ValueError: If it is not a batch of prompts, or rows are not padded on the right.
    """
    kinds.check_batch(batch, "prompts")
    ids = tf.cast(batch["token_ids"], tf.int32)
    mask = tf.cast(batch["padding_mask"], tf.bool)
    kinds.check_right_padded(ids, mask)
    return {**batch, "token_ids": ids, "padding_mask": mask}
