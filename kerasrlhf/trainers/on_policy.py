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
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import kl as kl_estimators
from kerasrlhf.functional import masking, policy_losses, returns
from kerasrlhf.models import fitting, lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.precision import check_optimizer
from kerasrlhf.models.reference import Reference
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.collector import Collected
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import RunningMoments, ScoreRules
from kerasrlhf.trainers import checks, soundness, updates
from kerasrlhf.trainers.iterative import IterativeModel
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.parts import Parts
from kerasrlhf.trainers.statistics import rollout_statistics, time_statistics
from kerasrlhf.types import (
    Experience,
    Rollout,
    Sampler,
    TokenStats,
    require_bool,
    require_int,
    require_number,
    require_seed,
)


class OnPolicyTrainer(IterativeModel):
    """A `keras.Model` whose `fit` runs one iteration a batch of prompts.

    An iteration samples responses to every prompt, scores them, turns the rollout into advantages
    and returns, and updates the actor several times. Final classes say how in two hooks:

        estimate(rollout) -> Experience             once an iteration
        objective(stats, minibatch) -> loss, dict   per token, once an update

    Losses are per token and weighted once, by counts over the whole minibatch, so that
    micro-batches, replicas and padding leave the gradient as it is (M3).

    Args:
        actor: `ActorCritic`.
        reward: `RewardModel`, or a callable as `rollouts.scoring.call_reward` describes; or a list
            of these, or a dict from names to them, each alone or as `(reward, weight)`. The score
            is the weighted sum, and the mean of each part is the statistic `reward/<name>`.
        reference: None (the actor as it is now, frozen), or a CausalLM of the same vocabulary.
        sampler: `Sampler` without filters, with a temperature above 0.
        kl: `FixedKL` or `AdaptiveKL`.
        group_size: int. Responses to every prompt; they share the prompt's forward pass.
        update_epochs: int. Passes over a rollout.
        num_minibatches: int. Optimizer steps a pass; divides the batch.
        micro_batches: int. Parts that a minibatch is computed in, one after the other, to save
            memory; the gradient is the same.
        kl_in: `"reward"`: the KL to the reference lowers the rewards. `"loss"`: it is a term of
            the loss.
        kl_estimator: `"k1"`, `"k2"` or `"k3"` (`functional.kl`). None: k1 in the reward, whose
            gradient is that of the KL of whole responses; k2 in the loss, whose gradient is that
            of the KL of every token, the tokens before it held fixed. The gradient of k3 in the
            loss is that of `D(reference, policy)`, another best policy.
        loss_reduction: `"token"`, `"sequence"` or `"fixed"` (`functional.masking.loss_weights`).
        entropy_coef: float. Bonus for the entropy of the policy, in score units per nat.
        target_kl: float or None. After an epoch whose mean `approxkl` a token is above it, the
            iteration makes no further updates on its rollout or on older ones.
        importance_cap: float or None. Log-probabilities are read as training reads them, and
            advantages count `min(p_trained / p_sampled, importance_cap)` times: truncated
            importance sampling, for whatever makes the two differ. With `Sampler(epsilon=...)` the
            weights are there anyway, and None does not cap them. Rollouts of a memory have weights
            of whole responses besides, see `memory`.
        mask_overlong: bool. Responses without a stop token teach nothing themselves; in the
            baselines of others they count.
        temperature_schedule: callable from the iteration to the temperature, such as a Keras
            learning-rate schedule, in place of the sampler's.
        ptx_coef: float. Weight of the language-modeling loss that every update adds (PPO-ptx).
        ptx_data: dataset as `data.demonstrations` gives it; needed for `ptx_coef` and `lm_every`.
            Every update reads one batch of it; micro-batches and replicas divide its rows too.
        lm_every, lm_steps: int. After every `lm_every` iterations, `lm_steps` optimizer steps of
            language modeling alone. None: never.
        reverse_coef: float. Weight of the loss of predicting the prompt from the response.
        reverse_reward: float. Weight in the score of the mean log-probability that the reference
            gives the prompt's tokens after the response: responses that tell of their prompt.
        memory: `RolloutMemory` or None. Rollouts are kept there and older ones reused. A response
            of an older one counts `min(1, p_today / p_then)` times, both of the whole response
            (`functional.policy_losses.response_weights`): in advantages, in the KL of the loss,
            and in how far values move to its returns.
        memory_reuse: int. Older rollouts that an iteration learns from, after its own.
        reward_timeout: float or None. Seconds that a reward function may take for a batch; then
            `fit` ends with a `TimeoutError` that names it. Functions run in threads of their own.
        seed: int. With the iteration it determines every sample and permutation.
        **options: `score_scale`, `score_clip`, `score_running_scale`, `score_per_token`,
            `repetition_penalty`, `repetition_ngram`, `overlong_buffer`, `overlong_penalty`,
            `missing_end_score`, `missing_end_penalty` as `rollouts.shaping.ScoreRules` describes
            them.

    Raises:
        ValueError: an argument outside its range, or parts that do not fit together.
    """

    learns_values = False
    max_skipped_updates = 3
    """Updates that are skipped because a gradient or a loss is not finite; so many in a row end
    the run with a `FloatingPointError`."""

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: FixedKL,
        group_size: int = 1,
        update_epochs: int = 4,
        num_minibatches: int = 1,
        micro_batches: int = 1,
        kl_in: str = "reward",
        kl_estimator: str | None = None,
        loss_reduction: str = "token",
        entropy_coef: float = 0.0,
        target_kl: float | None = None,
        importance_cap: float | None = None,
        mask_overlong: bool = False,
        temperature_schedule: Callable | None = None,
        ptx_coef: float = 0.0,
        ptx_data: tf.data.Dataset | None = None,
        lm_every: int | None = None,
        lm_steps: int = 1,
        reverse_coef: float = 0.0,
        reverse_reward: float = 0.0,
        memory: RolloutMemory | None = None,
        memory_reuse: int = 1,
        reward_timeout: float | None = None,
        seed: int = 0,
        name: str | None = None,
        **options: Any,
    ):
        super().__init__(name=name)
        checks.check_parts(actor, reward, sampler, kl)
        checks.check_reward_is_fixed(actor, reward)
        if not self.learns_values:
            checks.check_no_critic(actor, type(self).__name__)
        self.group_size = require_int("group_size", group_size, minimum=1)
        self.update_epochs = require_int("update_epochs", update_epochs, minimum=1)
        self.num_minibatches = require_int("num_minibatches", num_minibatches, minimum=1)
        self.micro_batches = require_int("micro_batches", micro_batches, minimum=1)
        self.kl_in, self.kl_estimator = checks.checked_kl(kl_in, kl_estimator)
        self.loss_reduction = checks.checked_reduction(loss_reduction)
        self.entropy_coef = require_number("entropy_coef", entropy_coef, minimum=0.0)
        self.target_kl = checks.optional("target_kl", target_kl)
        self.importance_cap = checks.optional("importance_cap", importance_cap)
        self.mask_overlong = require_bool("mask_overlong", mask_overlong)
        self.temperature_schedule = temperature_schedule
        self.ptx_coef = require_number("ptx_coef", ptx_coef, minimum=0.0)
        self.lm_every = None if lm_every is None else require_int("lm_every", lm_every, minimum=1)
        self.lm_steps = require_int("lm_steps", lm_steps, minimum=1)
        checks.check_text(self.ptx_coef, ptx_data, self.lm_every)
        checks.check_extras(memory, temperature_schedule)
        self.reverse_coef = require_number("reverse_coef", reverse_coef, minimum=0.0)
        self.reverse_reward = require_number("reverse_reward", reverse_reward, minimum=0.0)
        self.memory_reuse = require_int("memory_reuse", memory_reuse, minimum=0)
        self.reward_timeout = checks.optional("reward_timeout", reward_timeout)
        self.seed = require_seed(seed)
        rules = ScoreRules.of(options)
        can_end = bool(actor.stop_token_ids(sampler))
        rules.check(can_end, sampler.length)
        checks.check_overlong(mask_overlong, can_end)
        self.actor, self.kl, self.sampler = actor, kl, sampler
        self.iteration = keras.Variable(0, dtype="int64", trainable=False, name="iteration")
        self.score_moments = keras.Variable(
            np.zeros(3), dtype="float32", trainable=False, name="score_moments"
        )
        # In one opaque object: Keras would put frozen networks, also those that a property gives,
        # into every checkpoint.
        self._parts = Parts(
            Reference.of(actor.causal_lm, reference),
            reward,
            rules,
            ptx_data,
            memory,
            actor.limits(),
        )
        self.built = True

    def estimate(self, rollout: Rollout) -> Experience:
        """Advantages and returns of a rollout; a pure function of tensors, compiled with XLA."""
        raise NotImplementedError

    def objective(self, stats: TokenStats, minibatch: Experience) -> tuple[Any, dict[str, Any]]:
        """Loss per token `(batch, length)`, and per-token tensors to log the masked means of."""
        raise NotImplementedError

    def rewards(self, rollout: Rollout) -> Any:
        """Rewards per token float32 `(batch, length)`: scores, and the KL where it is in them."""
        mask, in_reward = rollout.response_mask, self.kl_in == "reward"
        return returns.token_rewards(
            rollout.scores,
            rollout.logprobs,
            rollout.ref_logprobs,
            mask,
            rollout.kl_coef if in_reward else 0.0,
            kl_estimators.ESTIMATORS[self.kl_estimator],
        )

    def experience(
        self, rollout: Rollout, advantages: Any, targets: Any = None, **extras: Any
    ) -> Experience:
        """What `estimate` returns, made from its results.

        Args:
            rollout: as given to `estimate`.
            advantages: float32 `(batch, length)`, or `(batch,)` for all tokens of a response.
            targets: float32 `(batch, length)`, what a critic is to learn; None without one.
            **extras: tensors `(batch, …)` that `objective` is to find in `minibatch.extras`.
        """
        mask = rollout.response_mask
        is_old = rollout.drift is not None
        sampled = rollout.logprobs - rollout.drift if is_old else rollout.logprobs
        weights = ops.ones(mask.shape)
        if self.reweighs:
            # Of training to sampling, both by the policy that sampled.
            weights = policy_losses.importance_weights(
                sampled, rollout.behavior_logprobs, self.importance_cap
            )
        if is_old:
            # Of the policy as it is to the one that sampled.
            whole = policy_losses.response_weights(rollout.logprobs, sampled, mask)[:, None]
            weights = whole * weights
            if targets is not None:
                # With other weights than the policy the critic would be the baseline of other
                # responses.
                targets = rollout.values + whole * (targets - rollout.values)
        if len(advantages.shape) == 1:
            advantages = advantages[:, None]
        return Experience(
            token_ids=rollout.token_ids,
            padding_mask=rollout.padding_mask,
            response_mask=mask,
            prompt_lengths=rollout.prompt_lengths,
            logprobs=rollout.logprobs,
            ref_logprobs=rollout.ref_logprobs,
            values=rollout.values,
            advantages=masking.zero_outside(advantages * weights, mask),
            returns=ops.zeros(mask.shape) if targets is None else targets,
            kl_weights=rollout.kl_coef * weights if self.kl_in == "loss" else None,
            extras=extras or None,
        )

    def get_weights(self) -> list[np.ndarray]:
        """Returns the values of all weights but the iteration counter.

        So callbacks that restore the best weights do not bring back the random numbers of
        iterations that are done. `save_weights` and `callbacks.Resume` keep the counter.
        """
        return [v.numpy() for v in self.weights if v is not self.iteration]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Sets what `get_weights` returned; the iteration counter stays as it is."""
        place = next(i for i, v in enumerate(self.weights) if v is self.iteration)
        counter = self.iteration.numpy()
        super().set_weights([*weights[:place], counter, *weights[place:]])

    @property
    def reweighs(self) -> bool:
        """Whether training may see other probabilities than those that were sampled from."""
        return self.importance_cap is not None or self.sampler.epsilon > 0

    @property
    def reference(self) -> Reference:
        """The frozen model that the KL is measured against."""
        return self._parts.reference

    @property
    def memory(self) -> RolloutMemory | None:
        """The rollouts that are learned from again."""
        return self._parts.memory

    @property
    def statistics(self) -> dict[str, float]:
        """Statistics of the last iteration by name."""
        return self._parts.statistics

    @property
    def last(self) -> Collected | None:
        """Rollout and texts of the last iteration."""
        return self._parts.last

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps of an iteration at most (M2)."""
        reused = self.memory_reuse if self.memory is not None else 0
        texts = self.lm_steps if self.lm_every is not None else 0
        return (1 + reused) * self.update_epochs * self.num_minibatches + texts

    def updates_in(self, iterations: int) -> int:
        """Optimizer steps of so many iterations from the first on; rates that fall to 0 count them.

        `target_kl` may end some of them early (N5).
        """
        return sum(updates.steps_of(self, iteration) for iteration in range(iterations))

    def compile(self, optimizer: Any = None, *, jit_compile: bool = True, run_eagerly=False):
        """Sets the optimizer and builds the compiled parts.

        Args:
            optimizer: Keras optimizer. None: `Adam(1e-5, epsilon=1e-5)`, TensorFlow's form of it
                (detail N22).
            jit_compile: compile sampling, scoring and updates with XLA.
            run_eagerly: run Python line by line, to debug.
        """
        require_bool("jit_compile", jit_compile)
        require_bool("run_eagerly", run_eagerly)
        if optimizer is None:
            optimizer = keras.optimizers.Adam(1e-5, epsilon=1e-5)
        check_optimizer(optimizer, self.trainable_variables)
        super().compile(
            optimizer, jit_compile=jit_compile and not run_eagerly, run_eagerly=run_eagerly
        )
        strategy = self.distribute_strategy
        for network in (self.actor.causal_lm.backbone, self.actor.critic):
            if network is not None:
                lm_adapter.check_adapters(network)
        fitting.check_scope(strategy, "the reference", self.reference.causal_lm.variables)
        for part in weighted.parts_of(self._parts.reward):
            if isinstance(part.reward, Scorer):
                fitting.check_scope(strategy, f"the reward {part.name}", part.reward.variables)
        checks.check_unscaled(self.actor, self.optimizer)
        checks.check_steps(self.optimizer)
        with strategy.scope():
            self.optimizer.build(self.trainable_variables)
        self._parts.compile(self, strategy)

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
        iteration = int(self.iteration.numpy())
        texts = self._parts.ptx_batches(
            updates.texts_of(self, iteration),
            self.micro_batches,
            replica.replicas(self.distribute_strategy),
        )
        start = time.perf_counter()
        moments = [RunningMoments(*self.score_moments.numpy())]

        def including(raw):
            """The running deviation of scores with those of this rollout; a rule asks for it."""
            moments.append(moments[0].including(raw))
            return moments[-1].deviation

        collected = self._collect(batch, iteration, including)
        heat = self._temperature(iteration)
        statistics = rollout_statistics(collected)
        soundness.check_rollout(statistics, iteration)
        # Up to here nothing has changed, and a signal may end the iteration.
        self.interruption.hold()
        self.score_moments.assign(moments[-1])
        statistics |= updates.learn_all(self, collected.rollout, iteration, texts, heat)
        statistics |= updates.learn_texts(self, iteration, texts)
        soundness.check_weights(self._parts.are_finite(), iteration)
        episodes = len(collected.raw_scores)
        self.kl.update(statistics["objective/kl"], episodes=episodes)
        self.iteration.assign_add(1)
        seconds = {**collected.seconds, "iteration": time.perf_counter() - start}
        statistics |= time_statistics(seconds, tokens=statistics["objective/length"] * episodes)
        self._parts.statistics, self._parts.last = statistics, collected
        return statistics

    def _temperature(self, iteration):
        if self.temperature_schedule is None:
            return None
        heat = require_number("temperature", float(self.temperature_schedule(iteration)), above=0.0)
        return tf.constant(heat, tf.float32)

    def train_step(
        self, minibatch: Experience, text: tuple | None = None, temperature: Any = None
    ) -> dict[str, Any]:
        """One optimizer step on a minibatch of the whole batch's rows, over all replicas.

        Args:
            minibatch: rows of the iteration's experience.
            text: a batch of `Parts.ptx_batches`, None without `ptx_coef`.
            temperature: float32 scalar in place of the sampler's, or None.
        """
        return self._parts.update(minibatch, text, temperature)

    def _check_batch(self, batch: Any) -> dict:
        """The whole batch on the host, checked against sampler, minibatches and replicas."""
        batch = checks.checked_batch(batch, self.distribute_strategy)
        rows = int(batch["token_ids"].shape[0])
        self.limits().check_batch(batch)
        replica.check_division(
            "prompts",
            rows,
            minibatches=self.num_minibatches,
            micro_batches=self.micro_batches,
            replicas=replica.replicas(self.distribute_strategy),
        )
        return batch

    def limits(self) -> Limits:
        return self.actor.limits(self.sampler)

    def collect(self, batch: dict, index: int = 0) -> Collected:
        """Samples and scores prompts without learning from them, or exploring by `epsilon`.

        Args:
            batch: as in `iterate`.
            index: int. The same index draws with the same random numbers every time; training
                uses none of these.

        Returns:
            `Collected`: the rollout, its texts, and the scores before the rules.
        """
        self._assert_compile_called("collect")
        return self._collect(self._check_batch(batch), -1 - index)

    def pass_over(self, iteration: int) -> None:
        self._parts.skip_ptx_batches(updates.texts_of(self, iteration))

    def _collect(self, batch, stream, including=None):
        """Samples and scores with the random numbers of `stream`, an iteration or below 0."""
        rows = int(batch["token_ids"].shape[0]) * self.group_size
        iteration = int(self.iteration.numpy())
        return self._parts.collect(
            batch,
            replica.uniforms(self.seed, stream, rows, self.sampler.length),
            float(self.kl.coef.numpy()),
            iteration,
            self._temperature(iteration),
            including or (lambda raw: RunningMoments(*self.score_moments.numpy()).deviation),
            including is not None,
        )
