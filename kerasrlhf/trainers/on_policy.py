"""The skeleton of on-policy training: sample, score, estimate, update."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf import replica, signatures
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import masking, on_policy_losses, returns
from kerasrlhf.functional.logprobs import ESTIMATORS
from kerasrlhf.models import fitting, lm_adapter, precision
from kerasrlhf.models.actor_critic import ActorCritic, require_actor
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts import environments, scoring, weighted
from kerasrlhf.rollouts.collector import Collected, Collector, prompt_batch
from kerasrlhf.rollouts.dialogues import Dialogue
from kerasrlhf.rollouts.environments import Environment
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import RewardShaping, RunningMoments
from kerasrlhf.trainers import soundness, statistics
from kerasrlhf.trainers.iterative import IterativeModel, row_checksums
from kerasrlhf.trainers.kl_control import KLController
from kerasrlhf.trainers.language_modeling import LanguageModeling, TextBatch, TextBatches
from kerasrlhf.trainers.loss_scale import LossScale
from kerasrlhf.trainers.options import PromptPrediction
from kerasrlhf.trainers.update_step import UpdateBatch, UpdateStep, permutations
from kerasrlhf.types import (
    Experience,
    Rollout,
    Sampler,
    Tensor,
    TokenStats,
    masked_rows,
    require_bool,
    require_choice,
    require_constant_sampler,
    require_finite_scores,
    require_instance,
    require_instance_or_none,
    require_int,
    require_number,
    require_optional,
    require_sampler,
    require_seed,
)

_NO_SHAPING = RewardShaping()


class OnPolicyOptions(TypedDict, total=False):
    """Arguments that all on-policy algorithms take with one default; see `OnPolicyTrainer`."""

    num_minibatches: int
    micro_batches: int
    entropy_coef: float
    target_kl: float | None
    mask_overlong: bool
    shaping: RewardShaping | None
    texts: LanguageModeling | None
    prompt_prediction: PromptPrediction | None
    memory: RolloutMemory | None
    reward_timeout: float | None
    seed: int


class OnPolicyTrainer(IterativeModel):
    """A `keras.Model` whose `fit` runs one iteration per batch of prompts; abstract.

    An iteration samples responses to every prompt, scores them, turns the rollout into advantages
    and returns, and updates the actor several times. Final classes define how in two hooks:

        estimate(rollout) -> Experience             once per rollout
        objective(stats, minibatch) -> loss, dict   per token, once per update

    Losses are per token and weighted once, by counts over the whole minibatch, so that
    micro-batches, replicas and padding do not change the gradient (M3).

    Args:
        actor: `ActorCritic`. Its trunk, value head and separate critic are trained.
        reward: `RewardModel`, or a callable as `rollouts.scoring.call_reward` describes; or a list
            of these, or a dict from names to them, each alone or as `(reward, weight)`. The score
            is the weighted sum, and the mean of each part is the statistic `reward/<name>`. Or an
            environment of `rlhf.environment`, whose reward and prompts are used: `fit` then takes
            no prompts.
        reference: CausalLM of the same vocabulary. Defaults to None: the actor at
            construction, frozen.
        sampler: `Sampler` without filters, with temperatures above 0.
        kl: `FixedKL` or `AdaptiveKL`: coefficient, place and estimator of the KL to the reference.
        group_size: int, at least 1. Responses to every prompt; they share the prompt's forward
            pass. Defaults to 1.
        update_epochs: int, at least 1. Passes over a rollout. Defaults to 4.
        num_minibatches: int, at least 1. Optimizer steps per pass; divides the batch. Defaults to
            1.
        micro_batches: int, at least 1. Parts of a minibatch, computed one after the other to save
            memory; the gradient is the same. Defaults to 1.
        loss_reduction: `"token"`, `"sequence"` or `"fixed"` (`functional.masking.loss_weights`).
            Defaults to `"token"`.
        entropy_coef: float, at least 0. Bonus for the entropy of the policy, in score units per
            nat. Defaults to 0.
        target_kl: float, above 0, or None. After an epoch whose mean `approxkl` per token is above
            it, the iteration makes no further updates on its rollout or on older ones. Defaults to
            None.
        importance_cap: float, above 0, or None. Recomputes log-probabilities with the training
            forward pass and multiplies advantages by `min(p_trained / p_sampled, importance_cap)`:
            truncated importance sampling, which corrects any difference between the two. With
            `Sampler(epsilon=...)` the weights always apply, and None does not cap them. Defaults
            to None.
        mask_overlong: bool. Whether to leave responses without a stop token out of the loss. They
            still count in the baselines of others. Defaults to False.
        shaping: `RewardShaping`, changes to the scores. Defaults to None: no changes.
        texts: `LanguageModeling` in addition to reinforcement (PPO-ptx, alternating steps).
            Defaults to None.
        prompt_prediction: `PromptPrediction`. Defaults to None.
        memory: `RolloutMemory`, to train on older rollouts again. Defaults to None.
        reward_timeout: float, above 0, or None. Seconds that a reward function may take for a
            batch. If it takes longer, `fit` ends with a `TimeoutError` that names it. Each function
            runs in its own thread. Defaults to None.
        seed: int, at least 0. Seed and iteration determine every sample and permutation. Defaults
            to 0.
        kl_place: `"reward"` or `"loss"`, the algorithm's own choice. Defaults to `"reward"`.
        kl_estimators: dict from place to the algorithm's own estimator. Defaults to None: k1 in
            the reward, k2 in the loss.

    Raises:
        ValueError: If an argument is outside its range, or parts do not fit together.
        TypeError: If an argument is unknown.
    """

    learns_values = False
    """Whether the algorithm trains a critic."""
    max_skipped_updates = 3
    """An update is skipped if a gradient or a loss is not finite. This many skipped updates in a
    row end the run with a `FloatingPointError`."""

    collector: Collector
    """Samples and scores; made by `compile`."""
    dialogue: Dialogue | None = None
    """The turns between replies, of a `DialogueEnv`; None if a response is one reply."""
    validation_sampler: Sampler | None = None
    """The sampler of responses that metrics measure; an argument of `compile`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `help` and editors show every argument, those behind `**options` included.
        cls.__signature__ = signatures.expanded(cls, cls.__mro__[1])

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Checks the names of the arguments first."""
        signatures.check_names(cls, kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        actor: ActorCritic,
        reward: Scorer | Callable | list | dict | Environment,
        reference: Any = None,
        *,
        sampler: Sampler,
        kl: KLController,
        group_size: int = 1,
        update_epochs: int = 4,
        num_minibatches: int = 1,
        micro_batches: int = 1,
        loss_reduction: str = "token",
        entropy_coef: float = 0.0,
        target_kl: float | None = None,
        importance_cap: float | None = None,
        mask_overlong: bool = False,
        shaping: RewardShaping | None = None,
        texts: LanguageModeling | None = None,
        prompt_prediction: PromptPrediction | None = None,
        memory: RolloutMemory | None = None,
        reward_timeout: float | None = None,
        seed: int = 0,
        kl_place: str = "reward",
        kl_estimators: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        # Check the networks and how the rewards use them.
        self.actor = require_actor(actor)
        environment = environments.environment_of(reward)
        if environment is not None:
            environment.check_agent(actor, require_sampler(sampler))
            self.dialogue, reward = environment.dialogue, environment.reward
        weighted.parts_of(reward)
        weighted.check_fixed(reward, actor.trainable_variables)
        self._check_critic()
        # Check every option before the reference is copied.
        self.kl = require_instance("kl", kl, KLController, "a FixedKL or an AdaptiveKL")
        self.kl_place, self.kl_estimator = kl.resolve(kl_place, kl_estimators)
        self.group_size = require_int("group_size", group_size, minimum=1)
        self.update_epochs = require_int("update_epochs", update_epochs, minimum=1)
        self.num_minibatches = require_int("num_minibatches", num_minibatches, minimum=1)
        self.micro_batches = require_int("micro_batches", micro_batches, minimum=1)
        self.loss_reduction = require_choice("loss_reduction", loss_reduction, masking.REDUCTIONS)
        self.entropy_coef = require_number("entropy_coef", entropy_coef, minimum=0.0)
        self.target_kl = require_optional("target_kl", target_kl)
        self.importance_cap = require_optional("importance_cap", importance_cap)
        self.mask_overlong = require_bool("mask_overlong", mask_overlong)
        shaping = RewardShaping() if shaping is None else shaping
        self.shaping = require_instance("shaping", shaping, RewardShaping)
        self.texts = require_instance_or_none("texts", texts, LanguageModeling)
        self.prompt_prediction = require_instance_or_none(
            "prompt_prediction", prompt_prediction, PromptPrediction
        )
        self.memory = require_instance_or_none("memory", memory, RolloutMemory)
        self.reward_timeout = require_optional("reward_timeout", reward_timeout)
        self.seed = require_seed(seed)
        self.sampler = self._require_policy_sampler(sampler)
        # Variables, so that checkpoints save them: a resumed run continues from both.
        self.iteration = keras.Variable(0, dtype="int64", trainable=False, name="iteration")
        self.score_moments = keras.Variable(
            np.zeros(3), dtype="float32", trainable=False, name="score_moments"
        )
        dtypes = precision.compute_dtypes(self._trained_networks())
        self.loss_scale = LossScale() if "float16" in dtypes else None
        # Hold the frozen networks where Keras does not track them.
        self.hold(reward, Reference.of(actor.causal_lm, reference), reference, environment)
        self._text_batches = self._new_text_batches()
        self.built = True

    def _check_critic(self) -> None:
        if not self.learns_values and self.actor.critic is not None:
            raise ValueError(
                f"{type(self).__name__} learns without a critic, but the actor has a separate one, "
                "which would only cost memory. Build it with `ActorCritic(causal_lm)`."
            )

    def _require_policy_sampler(self, sampler: Any) -> Sampler:
        """Returns the sampler, or raises a `ValueError` for one that cannot be trained with."""
        if not require_sampler(sampler).matches_policy:
            raise ValueError(
                "Training samples from the model's own distribution: the temperature must be above "
                "0, without `top_k` and `top_p`. Otherwise sampled and trained distributions "
                f"differ and the KL can turn negative. Received: {sampler}."
            )
        can_end = bool(self.actor.stop_token_ids(sampler) or sampler.stop_strings)
        self.shaping.check_sampler(self._spoken(sampler), can_end)
        if self.mask_overlong and not can_end:
            raise ValueError(
                "`mask_overlong` leaves out responses without a stop token, and the sampler has no "
                "stop tokens. Set `Sampler(stop_token_ids=...)` or `mask_overlong=False`."
            )
        return sampler

    def _spoken(self, sampler: Sampler) -> int:
        """Returns the tokens of a response at most: of all replies of a dialogue."""
        dialogue = self.dialogue
        return sampler.length if dialogue is None else dialogue.tokens(sampler.length)

    def _columns(self, sampler: Sampler) -> int:
        """Returns the tokens after a prompt at most, the user's included."""
        dialogue = self.dialogue
        return sampler.length if dialogue is None else dialogue.columns(sampler.length)

    # The two hooks that an algorithm defines, and their helpers.

    def estimate(self, rollout: Rollout) -> Experience:
        """Returns advantages and returns of a rollout; a pure function of tensors."""
        raise NotImplementedError

    def objective(
        self, stats: TokenStats, minibatch: Experience
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss per token `(batch, length)`, and per-token tensors whose means it logs.

        A pure function of tensors.
        """
        raise NotImplementedError

    def rewards(self, rollout: Rollout) -> Tensor:
        """Returns rewards float32 `(batch, length)`: score, minus the KL if it is in the reward."""
        return returns.token_rewards(
            rollout.scores,
            rollout.logprobs,
            rollout.ref_logprobs,
            rollout.response_mask,
            rollout.kl_coef if self.kl_place == "reward" else 0.0,
            ESTIMATORS[self.kl_estimator],
        )

    def experience(
        self, rollout: Rollout, advantages: Tensor, targets: Tensor = None, **extras: Tensor
    ) -> Experience:
        """Returns the `Experience` of a rollout with the given advantages and targets.

        Args:
            rollout: as `estimate` receives it.
            advantages: float32 `(batch, length)`, or `(batch,)` for all tokens of a response.
            targets: float32 `(batch, length)`, targets of the critic. Defaults to None: no critic.
            **extras: tensors `(batch, ...)` for `objective`, as `minibatch.extras`.
        """
        mask = rollout.response_mask
        is_old = rollout.drift is not None
        # Undo the drift: the log-probabilities of the policy that sampled.
        sampled = rollout.logprobs - rollout.drift if is_old else rollout.logprobs
        weights = ops.ones(mask.shape)
        if self.reweighs:
            # Per token: training over sampling probability, both of the policy that sampled.
            weights = on_policy_losses.importance_weights(
                sampled, rollout.behavior_logprobs, self.importance_cap
            )
        if is_old:
            # Per response: the current policy over the policy that sampled.
            whole = on_policy_losses.response_weights(rollout.logprobs, sampled, mask)[:, None]
            weights = whole * weights
            if targets is not None:
                # Weight the critic's errors alike, so that values estimate the current policy's
                # returns.
                targets = rollout.values + whole * (targets - rollout.values)
        # One advantage per response applies to each of its tokens.
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
            kl_weights=rollout.kl_coef * weights if self.kl_place == "loss" else None,
            extras=extras or None,
        )

    @property
    def reweighs(self) -> bool:
        """Whether training may use other probabilities than sampling did."""
        return self.importance_cap is not None or self.sampler.epsilon > 0

    # One iteration.

    def compile(
        self,
        optimizer: Any = None,
        *,
        metrics: dict[str, Callable] | list[Callable] | None = None,
        validation_sampler: Sampler | None = None,
        jit_compile: bool = True,
        run_eagerly: bool = False,
    ) -> None:
        """Sets the optimizer and builds the compiled parts of an iteration.

        Args:
            optimizer: Keras optimizer. Defaults to None: `Adam(1e-5, epsilon=1e-5)`, in
                TensorFlow's form (detail N22).
            metrics: dict from names to functions, or list of functions. `evaluate` and the
                validation of `fit` measure responses with them: `accuracy` is `val_accuracy` in the
                history. A function is called as a reward function is, with texts and columns by
                name, once for all responses. It returns one number per response, whose mean is the
                metric, or one number, such as an F1 score. A `.keras` file does not keep them.
                Defaults to None: none.
            validation_sampler: `Sampler` of the responses that `metrics` measure, for example
                `Sampler(32, temperature=0)`; score, KL and length remain those of the policy's own
                samples. Defaults to None: the metrics measure these, too.
            jit_compile: bool. Whether to compile sampling, scoring and updates with XLA. Defaults
                to True.
            run_eagerly: bool. Whether to run Python line by line, to debug. Defaults to False.
        """
        require_bool("jit_compile", jit_compile)
        require_bool("run_eagerly", run_eagerly)
        self.measure_with(metrics)
        self._check_decoder(validation_sampler)
        self.validation_sampler = validation_sampler
        if optimizer is None:
            # N22: Keras implements TensorFlow's form of Adam.
            optimizer = keras.optimizers.Adam(1e-5, epsilon=1e-5)
        precision.check_optimizer(optimizer, self.trainable_variables)
        jit_compile = jit_compile and not run_eagerly
        if run_eagerly and self.workers.count > 1:
            raise ValueError(
                "`run_eagerly=True` works in one process. Debug there, or compile without it."
            )
        precision.check_unscaled(self._trained_networks(), optimizer)
        # The trainer scales losses itself: the optimizer of Keras cannot, on several devices.
        super().compile(
            optimizer, jit_compile=jit_compile, run_eagerly=run_eagerly, auto_scale_loss=False
        )
        self._check_networks()
        precision.check_steps(self.optimizer)
        # Create the optimizer's variables outside the compiled functions.
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)
        execution = replica.Execution(self.distribute_strategy, jit_compile, run_eagerly)
        self._build(execution)

    def _check_decoder(self, decoder: Sampler | None) -> None:
        """Raises a `ValueError` for metrics or a sampler of their responses that cannot be used."""
        if decoder is not None:
            require_constant_sampler(decoder)
            if not self.measures:
                raise ValueError(
                    "`validation_sampler` has no effect without `metrics`, which measure its "
                    "responses. Pass `metrics={name: function}` too, or leave it out."
                )
        if self.measures and self.actor.causal_lm.preprocessor is None:
            raise ValueError(
                "`metrics` measure texts, which need a tokenizer. Build the actor from a CausalLM "
                "with a preprocessor."
            )

    def _build(self, execution: replica.Execution) -> None:
        """Builds the functions that an iteration calls."""
        prediction = self.prompt_prediction
        self.collector = Collector(
            self.actor,
            self.reference,
            weighted.reward_of(
                self.reward, self.actor, self.group_size, self.reward_timeout, self.workers
            ),
            self.sampler,
            execution,
            parts=self.num_minibatches,
            recompute=self.importance_cap is not None,
            prompt_reward=0.0 if prediction is None else prediction.reward,
            decoder=self.validation_sampler,
            dialogue=self.dialogue,
            workers=self.workers,
        )
        # Gradients get XLA; row selection is a small graph that gains nothing from it.
        step = self.update_step()
        trained = self.optimizer, self.trainable_variables, execution
        eager = execution.run_eagerly
        self._estimate = replica.compiled(self.estimate, execution.jit_compile, eager)
        self._take = replica.compiled(step.batch, jit_compile=False, run_eagerly=eager)
        self._update = replica.update(step.gradients, *trained)
        self._update_on_text = replica.update(step.text_gradients, *trained)
        self._has_compared = False
        self._are_finite = replica.all_finite(self.trainable_variables, execution)
        self._skipped = soundness.SkippedUpdates(self.max_skipped_updates)

    def update_step(self) -> UpdateStep:
        """Returns an `UpdateStep`, loss and gradient of a minibatch, with the trainer's options."""
        return UpdateStep(
            self.actor,
            self.objective,
            self.trainable_variables,
            length=self._spoken(self.sampler),
            columns=self._columns(self.sampler),
            micro_batches=self.micro_batches,
            loss_reduction=self.loss_reduction,
            kl_estimator=self.kl_estimator,
            entropy_coef=self.entropy_coef,
            text_coef=0.0 if self.texts is None else self.texts.coef,
            prompt_coef=0.0 if self.prompt_prediction is None else self.prompt_prediction.coef,
        )

    def iterate(self, batch: dict[str, Any]) -> dict[str, float]:
        """Runs one iteration: sample, score, estimate, update.

        Args:
            batch: dict of `token_ids` int32 `(batch, prompt)` and `padding_mask` bool, as
                `data.prompts` returns it.

        Returns:
            The iteration's statistics by name, also kept in `statistics`; the rollout with its
            texts is kept in `last`.
        """
        self._assert_compile_called("iterate")
        batch, iteration = self._check_batch(batch), int(self.iteration.numpy())
        self._check_workers(batch, iteration)
        temperature = self._temperature(iteration)
        update_texts, texts = self._next_texts(iteration)
        start = time.perf_counter()

        # 1. Sample responses, score them, and shape the scores.
        uniforms = self._uniforms(iteration, batch)
        collected = self.collector(batch, uniforms, temperature, iteration=iteration)
        moments = self._moments(collected.raw_scores)
        collected = self._shaped(collected, moments)
        # A judge that is random, or another model, would make workers learn different things.
        self.workers.check_same(
            sampled_tokens=collected.rollout.token_ids, scores=collected.rollout.scores
        )
        logs = statistics.rollout_statistics(collected)
        soundness.check_rollout(logs, iteration)
        logs["policy/learning_rate"] = float(ops.convert_to_numpy(self.optimizer.learning_rate))
        # Until here nothing has changed and a signal may end the iteration; from here it waits.
        self.interruption.hold()
        self.score_moments.assign(moments)

        # 2. Update the actor on this rollout, then on older ones, evaluated with current weights.
        for reuse, rollout in enumerate(self._rollouts(collected.rollout, temperature)):
            learned, is_far = self._learn(rollout, iteration, temperature, update_texts, reuse)
            # Older rollouts only add to the counts: statistics describe the fresh rollout.
            logs = statistics.added_counts(logs, learned) if reuse else {**logs, **learned}
            if is_far:
                break
        if self.memory is not None:
            # Store the rollout after sampling, so that an iteration never reuses its own.
            self.memory.add(iteration, collected.rollout)

        # 3. Run the language-modeling steps, if they are due.
        if texts:
            logs["loss/lm"] = float(np.mean([self._learn_text(x, iteration) for x in texts]))
        soundness.check_weights(self._are_finite(), iteration)

        if self.loss_scale is not None:
            logs["policy/loss_scale"] = float(self.loss_scale.scale.numpy())

        # 4. Adjust the KL coefficient, count the iteration, and report.
        episodes = len(collected.raw_scores)
        self.kl.update(logs["objective/kl"], episodes=episodes)
        self.iteration.assign_add(1)
        seconds = {**collected.seconds, "iteration": time.perf_counter() - start}
        logs |= statistics.time_statistics(seconds, logs["objective/length"] * episodes)
        # Records of earlier iterations survive a resume, and so do totals made from them.
        lengths = [x["length"] for x in self.replay.records if "length" in x]
        lengths.append(logs["objective/length"])
        logs |= statistics.seen_statistics(iteration + 1, episodes, lengths)
        self._held.statistics, self._held.last = logs, collected
        return logs

    def _learn(
        self,
        rollout: Rollout,
        iteration: int,
        temperature: Tensor,
        texts: Iterator[TextBatch | None],
        reuse: int,
    ) -> tuple[dict[str, float], bool]:
        """Estimates advantages and makes `update_epochs * num_minibatches` updates.

        Returns the statistics of the updates, and whether the last epoch exceeded `target_kl`.
        """
        experience = self._estimate(rollout)
        # Mask after `estimate`: overlong responses still count in the baselines of others.
        if self.mask_overlong:
            mask = ops.logical_and(rollout.response_mask, rollout.ended[:, None])
            experience = experience._replace(response_mask=mask)
        rows = int(experience.token_ids.shape[0])
        # Rows of every update, `(updates, rows per minibatch)`, in a fresh order per epoch (N17).
        order = permutations(
            self.seed,
            iteration,
            rows,
            self.update_epochs,
            self.num_minibatches,
            self.group_size,
            reuse,
            parts=self._parts,
        )
        updates: list[dict[str, Any]] = []
        is_far = False
        for index in order:
            scale = self._scale()
            text = self._with_scale(next(texts), scale)
            update = self._take(experience, tf.constant(index), text, temperature, scale)
            updates.append(self.train_step(update))
            self._after_update(updates[-1], iteration)
            is_far = self._exceeds_target_kl(updates)
            if is_far:
                break
        # S5: the first update has ratio 1, within the tolerance of the dtype.
        compute_dtype = self.actor.causal_lm.backbone.compute_dtype
        soundness.check_first_ratio(updates[0], compute_dtype, iteration)
        logs = statistics.update_statistics(updates)
        if self.learns_values:
            logs |= statistics.value_statistics(experience)
        return logs, is_far

    def train_step(self, batch: UpdateBatch) -> dict[str, Any]:
        """Makes one optimizer step on a minibatch, over all replicas; returns its logs."""
        return self._update(batch)

    def _learn_text(self, text: TextBatch, iteration: int) -> float:
        """Makes one optimizer step on the language-modeling loss alone; returns the loss."""
        logs = self._update_on_text(self._with_scale(text, self._scale()))
        self._after_update(logs, iteration)
        return float(logs["loss/ptx"])

    def _scale(self) -> Tensor | None:
        """Returns the factor of the loss, float32 scalar; None for 1."""
        return None if self.loss_scale is None else tf.constant(self.loss_scale.scale.numpy())

    def _with_scale(self, text: TextBatch | None, scale: Tensor | None) -> TextBatch | None:
        return text if text is None else text._replace(loss_scale=scale)

    def _after_update(self, logs: dict[str, Any], iteration: int) -> None:
        """Counts a skipped update, unless a smaller loss scale mends it."""
        is_sound = not logs["policy/skipped"]
        if self.loss_scale is None or not self.loss_scale.update(is_sound):
            self._skipped.after(logs, iteration)

    def _rollouts(self, rollout: Rollout, temperature: Tensor) -> Iterator[Rollout]:
        """Yields the iteration's rollout, then older ones, evaluated with current weights."""
        yield rollout
        if self.memory is not None:
            for old in self.memory.sample(self.seed, int(rollout.iteration)):
                # Evaluate each when it is used: the updates before it have changed the weights.
                old = self.collector.refreshed(old, temperature)
                yield old._replace(kl_coef=rollout.kl_coef, iteration=rollout.iteration)

    def _exceeds_target_kl(self, updates: list[dict[str, Any]]) -> bool:
        """Whether an epoch has just ended whose mean `approxkl` is above `target_kl`."""
        if self.target_kl is None or len(updates) % self.num_minibatches:
            return False
        epoch = [float(log["policy/approxkl"]) for log in updates[-self.num_minibatches :]]
        return float(np.mean(epoch)) > self.target_kl

    def collect(self, batch: dict[str, Any], index: int = 0) -> Collected:
        """Samples and scores prompts, without training on them and without `epsilon` exploration.

        Args:
            batch: as in `iterate`.
            index: int. The same index always uses the same random numbers, none of which training
                uses. Defaults to 0.

        Returns:
            `Collected`: the rollout, its texts, and the scores before shaping.
        """
        self._assert_compile_called("collect")
        batch, iteration = self._check_batch(batch), int(self.iteration.numpy())
        # Negative stream numbers never collide with those of iterations.
        uniforms = self._uniforms(-1 - index, batch)
        collected = self.collector(
            batch, uniforms, self._temperature(iteration), explore=False, iteration=iteration
        )
        return self._shaped(collected, self._moments())

    def decode(self, collected: Collected, index: int = 0) -> scoring.Episodes:
        """Returns the responses that the metrics of `compile` measure.

        Args:
            collected: `Collected` of `collect`, whose prompts are answered by `validation_sampler`.
                Without one, its own responses are returned.
            index: int, as in `collect`. Defaults to 0.
        """
        batch, decoder = collected.prompts, self.validation_sampler
        if decoder is None or batch is None:
            return collected.episodes
        rows = int(batch["token_ids"].shape[0])
        uniforms = replica.uniforms(self.seed, -1 - index, rows, self._spoken(decoder))
        return self.collector.decode(batch, uniforms)

    def generate(self, prompts: Any, seed: int = 0, **kwargs: Any) -> Any:
        """Returns responses of the current policy, sampled as in training but without `epsilon`.

        Args:
            prompts: as in `ActorCritic.generate`.
            seed: int. The same seed and prompts return the same responses. Defaults to 0.
            **kwargs: as in `ActorCritic.generate`, for example `batch_size` or `template`.
        """
        sampler = self.sampler.at(int(self.iteration.numpy()))
        return self.actor.generate(prompts, sampler, seed, **kwargs)

    def _check_batch(self, batch: Any) -> dict[str, Any]:
        """Returns the whole batch, checked against sampler, minibatches and replicas."""
        batch = prompt_batch(replica.gather(self.distribute_strategy, batch))
        self.limits().check_batch(batch)
        count = int(batch["token_ids"].shape[0])
        if count < self.num_minibatches:
            raise ValueError(
                f"A batch of {count} prompts cannot be divided into {self.num_minibatches} "
                "minibatches. Use a larger batch size, and drop a smaller last batch "
                "(`drop_remainder=True`), or set a smaller `num_minibatches`."
            )
        return batch

    @property
    def _parts(self) -> int:
        """Parts of equal size that the rows of an update are divided into."""
        return self.micro_batches * replica.replicas(self.distribute_strategy)

    def _check_workers(self, batch: dict[str, Any], iteration: int) -> None:
        """Raises a `RuntimeError` if other workers train something else."""
        self.workers.check_same(prompts=row_checksums(batch), iteration=iteration)
        if self.workers.count > 1 and not self._has_compared:
            self._has_compared = True
            # Rewards may differ, as in the address of a server.
            settings = self.settings().items()
            self.workers.check_same(
                settings={k: v for k, v in settings if not k.startswith("reward.")},
                initial_weights=[zlib.crc32(np.asarray(v).tobytes()) for v in self.variables],
            )

    def _uniforms(self, stream: int, batch: dict[str, Any]) -> Tensor:
        """Returns the random numbers of an iteration, or of `collect` for a negative stream."""
        rows = int(batch["token_ids"].shape[0]) * self.group_size
        return replica.uniforms(self.seed, stream, rows, self._spoken(self.sampler))

    def _temperature(self, iteration: int) -> Tensor:
        return tf.constant(self.sampler.temperature_at(iteration), tf.float32)

    def _moments(self, raw_scores: np.ndarray | None = None) -> RunningMoments:
        """Returns the moments of all scores so far, including `raw_scores` if they are given."""
        moments = RunningMoments(*self.score_moments.numpy())
        if raw_scores is None or not self.shaping.running_scale:
            return moments
        return moments.including(raw_scores)

    def _shaped(self, collected: Collected, moments: RunningMoments) -> Collected:
        """Returns the rollout with shaped scores, the KL coefficient and the iteration."""
        rollout, shaping = collected.rollout, self.shaping
        scores = rollout.scores.numpy()
        if shaping != _NO_SHAPING:
            responses = None
            # Copy token ids to the host only if a rule needs them.
            if shaping.counts_tokens:
                responses = masked_rows(rollout.token_ids, rollout.response_mask)
            scores = shaping.apply(
                scores,
                rollout.ended.numpy(),
                masking.last_true_mask(rollout.response_mask).numpy(),
                responses,
                self._spoken(self.sampler),
                moments.std if shaping.running_scale else 1.0,
            )
        # Check after shaping too: weights and scales can overflow.
        require_finite_scores(scores, "The reward, after weights and `RewardShaping`,")
        rollout = rollout._replace(
            scores=tf.constant(scores),
            kl_coef=tf.constant(self.kl.coef.numpy(), tf.float32),
            iteration=tf.constant(int(self.iteration.numpy()), tf.int32),
        )
        return collected._replace(rollout=rollout)

    # Batches of text, and the number of updates of an iteration.

    def _next_texts(self, iteration: int) -> tuple[Iterator[TextBatch | None], list[TextBatch]]:
        """Returns an iteration's texts: one or None per update, and those of separate steps."""
        if self._text_batches is None:
            return itertools.repeat(None), []
        # One stream of batches serves both, so that `pass_over` only has to count them.
        with_updates, alone = self._texts_of(iteration)
        replicas = replica.replicas(self.distribute_strategy)
        batches = self._text_batches.next(with_updates + alone, self.micro_batches, replicas)
        if not with_updates:
            return itertools.repeat(None), batches
        return iter(batches[:with_updates]), batches[with_updates:]

    def _new_text_batches(self) -> TextBatches | None:
        return None if self.texts is None else TextBatches(self.texts, self.actor.limits())

    def _texts_of(self, iteration: int) -> tuple[int, int]:
        """Returns how many batches of text the updates take, and how many the separate steps."""
        if self.texts is None:
            return 0, 0
        with_updates = self._updates_of(iteration) if self.texts.coef > 0 else 0
        return with_updates, self.texts.steps_after(iteration)

    def _updates_of(self, iteration: int) -> int:
        reused = self.memory.reused_in(iteration) if self.memory is not None else 0
        return (1 + reused) * self.update_epochs * self.num_minibatches

    def pass_over(self, iteration: int) -> None:
        """Skips the texts of an iteration that was completed before a resume."""
        if self._text_batches is not None:
            self._text_batches.skip(sum(self._texts_of(iteration)))

    @property
    def updates_per_iteration(self) -> int:
        """The largest number of optimizer steps in an iteration (M2)."""
        reused = self.memory.reuse if self.memory is not None else 0
        alone = self.texts.steps if self.texts is not None and self.texts.every else 0
        return (1 + reused) * self.update_epochs * self.num_minibatches + alone

    def updates_in(self, iterations: int) -> int:
        """Returns the optimizer steps of the first iterations, for learning-rate decay (N5).

        `target_kl` may end some iterations early.
        """
        alone = (
            self.texts.steps_after(i) if self.texts is not None else 0 for i in range(iterations)
        )
        return sum(self._updates_of(i) for i in range(iterations)) + sum(alone)

    def limits(self) -> Limits:
        """Returns the limits on prompts that the actor can process and answer."""
        # Responses of both samplers have to fit.
        samplers = filter(None, (self.sampler, self.validation_sampler))
        return self.actor.limits()._replace(sampled=max(map(self._columns, samplers)))

    def reset(self, seed: int = 0) -> None:
        """Starts a run with another seed: iteration 0, no running moments, an empty memory.

        Weights, the optimizer and the KL coefficient stay as they are.
        """
        self.seed = require_seed(seed)
        self.iteration.assign(0)
        self.score_moments.assign(np.zeros(3))
        if self.memory is not None:
            self.memory.restore({})
        self._text_batches = self._new_text_batches()
        self._held.statistics, self._held.last = {}, None

    def _trained_networks(self) -> list[keras.Model]:
        networks = (self.actor.causal_lm.backbone, self.actor.critic)
        return [network for network in networks if network is not None]

    def _check_networks(self) -> None:
        """Raises a `ValueError` for networks of another strategy or adapters without effect."""
        strategy = self.distribute_strategy
        for network in self._trained_networks():
            lm_adapter.check_adapters(network)
        fitting.check_scope(strategy, "the reference", self.reference.causal_lm.variables)
        for part in weighted.parts_of(self.reward):
            if isinstance(part.reward, Scorer):
                fitting.check_scope(strategy, f"the reward {part.name}", part.reward.variables)
