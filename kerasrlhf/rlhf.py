"""RLHF from start to end in two calls, as an introduction."""

from __future__ import annotations

import difflib
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import keras

from kerasrlhf import data, signatures
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.rewards import load_reward
from kerasrlhf.trainers.grpo import GRPO
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.online_dpo import OnlineDPO
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.trainers.reinforce_plus_plus import REINFORCEPlusPlus
from kerasrlhf.trainers.rloo import RLOO
from kerasrlhf.types import Sampler, require_bool, require_int, require_number, require_seed

ALGORITHMS: dict[str, Callable] = {
    "ppo": PPO,
    "rloo": RLOO,
    "grpo": GRPO,
    "dr_grpo": functools.partial(GRPO, variant="dr_grpo"),
    "reinforce++": REINFORCEPlusPlus,
    "online_dpo": OnlineDPO,
}
"""Algorithms by the name that `RLHF(algorithm=...)` takes."""

_NORMALIZED = 256


def _check_algorithm(algorithm: str, options: dict[str, Any]) -> None:
    """Raises a `ValueError` for an unknown algorithm or for options that it does not take."""
    if algorithm not in ALGORITHMS:
        near = difflib.get_close_matches(str(algorithm), ALGORITHMS, n=1, cutoff=0.5)
        raise ValueError(
            f"Unknown algorithm {algorithm!r}.{f' Did you mean {near[0]!r}?' if near else ''} "
            f"There are {list(ALGORITHMS)}."
        )
    # These follow from arguments of `RLHF` itself.
    made = sorted({"actor", "sampler", "kl"} & set(options))
    if made:
        raise ValueError(
            f"`RLHF` makes {made} itself, of `preset`, `length`, `temperature` and `kl_coef`. "
            "For others use the classes behind it, for example "
            "`rlhf.PPO(actor, reward, sampler=..., kl=...)`."
        )
    # A `partial` has the class in `func`.
    trainer = ALGORITHMS[algorithm]
    kind: Any = getattr(trainer, "func", trainer)
    signatures.check_names(kind, options)


class RLHF:
    """Supervised fine-tuning, reward model and reinforcement learning behind one object.

    `build_model()` creates and compiles the networks; `train()` runs the steps that have data. All
    parts are public classes of this package, available as attributes. For more than one learning
    rate, use those classes directly, in the same order.

    Args:
        preset: keras-hub name or handle, or a local folder, of the initial policy.
        prompts: source of prompts, as in `data.prompts`.
        reward: a trained reward model, a function of prompts and responses, a list or dict of
            these as in a trainer, or a name as in `load_reward`. Instead of `preferences`.
        preferences: source of pairs to train a reward model on, as in `data.preferences`.
        demonstrations: source of texts to imitate first, as in `data.demonstrations`, or None.
        algorithm: a key of `rlhf.ALGORITHMS`.
        length: int. Maximum number of tokens of a response.
        temperature: float, above 0. Sampling temperature.
        kl_coef: float. Score units per nat of distance from the model before reinforcement.
        learning_rate: float. Learning rate of Adam in every step.
        batch_size: int. Prompts per iteration, and pairs or demonstrations per update.
        jit_compile: bool. Whether to compile with XLA.
        seed: int.
        template: how messages become a text, see `data.dialogue`.
        **options: of the algorithm, such as `update_epochs`, `group_size` or `reference`.

    Attributes:
        actor, reward, trainer: `ActorCritic`, the reward, and the on-policy trainer; None before
            `build_model()`.

    Raises:
        ValueError: If the algorithm is unknown, not exactly one of `reward` and `preferences` is
            passed, or an option belongs to `RLHF` itself.

    Example:
        >>> import kerasrlhf as rlhf
        >>> front = rlhf.RLHF(
        ...     rlhf.presets.TINY_STORIES, prompts=["Tom was sad.", "Lily had a ball."],
        ...     reward=lambda responses: [-len(r) for r in responses], algorithm="rloo",
        ...     length=4, batch_size=2, jit_compile=False)
        >>> front.build_model()
        >>> history = front.train(epochs=1, verbose=0)
        >>> sorted(history.history)
        ['kl', 'kl_coef', 'length', 'loss', 'score']
        >>> len(front.generate(["Ben saw a dog."]))
        1
    """

    def __init__(
        self,
        preset: str | pathlib.Path,
        prompts: Any,
        *,
        reward: Any = None,
        preferences: Any = None,
        demonstrations: Any = None,
        algorithm: str = "ppo",
        length: int = 32,
        temperature: float = 1.0,
        kl_coef: float = 0.1,
        learning_rate: float = 1e-5,
        batch_size: int = 32,
        jit_compile: bool = True,
        seed: int = 0,
        template: Any = "plain",
        **options: Any,
    ) -> None:
        _check_algorithm(algorithm, options)
        if (reward is None) == (preferences is None):
            raise ValueError(
                "Give either `reward`, which scores responses, or `preferences`, on which a reward "
                f"model is trained. Received {'neither' if reward is None else 'both'}."
            )
        if not isinstance(preset, str | pathlib.Path):
            raise ValueError(
                "`preset` must be a keras-hub name or handle, or a folder. Received: "
                f"{preset!r} of type {type(preset).__name__}. For a model that is loaded already "
                "use the classes behind this one, such as `rlhf.PPO`."
            )
        # Check a reward now, but load one by name only in `build_model`.
        is_named = isinstance(reward, str | pathlib.Path)
        if reward is not None and not is_named:
            weighted.parts_of(reward)
        # Check all values before a model is downloaded.
        self.preset, self.algorithm, self.options = preset, algorithm, options
        self.learning_rate = require_number("learning_rate", learning_rate, above=0.0)
        self.batch_size = require_int("batch_size", batch_size, minimum=1)
        require_number("temperature", temperature, above=0.0)
        self.sampler = Sampler(length, temperature=temperature)
        self.kl = FixedKL(require_number("kl_coef", kl_coef, minimum=0.0))
        self.jit_compile = require_bool("jit_compile", jit_compile)
        self.seed = require_seed(seed)
        data.dialogue.check_template(template)
        self.template = template
        # Read sources once: the first call of `train` would exhaust a generator.
        self._sources: list[Any] = [
            source if source is None else data.records.load(source, text_column=column)
            for source, column in (
                (prompts, "prompt"),
                (preferences, "text"),
                (demonstrations, "text"),
            )
        ]
        self._given_reward = reward
        self._is_prepared = False
        self.actor: Any = None
        self.reward: Any = None
        self.trainer: Any = None

    def build_model(self) -> None:
        """Creates and compiles policy, reward and trainer.

        Raises:
            ValueError: If the preset cannot be loaded, or an option is outside its range.
        """
        self._is_prepared = False
        self.reward = self._given_reward
        if isinstance(self.reward, (str, pathlib.Path)):
            self.reward = load_reward(self.reward)
        self.actor = ActorCritic.from_preset(self.preset)
        if self.reward is None:
            # Start the reward model from the policy; `train` fits it to `preferences`.
            self.reward = RewardModel.from_causal_lm(self.actor.causal_lm)
            self.reward.compile(self._optimizer(), jit_compile=self.jit_compile)
        self.trainer = ALGORITHMS[self.algorithm](
            self.actor,
            self.reward,
            sampler=self.sampler,
            kl=self.kl,
            seed=self.seed,
            **self.options,
        )
        self.trainer.compile(self._optimizer(), jit_compile=self.jit_compile)

    def train(self, epochs: int = 1, **kwargs: Any) -> keras.callbacks.History:
        """Fine-tunes the policy, fits the reward model, and runs reinforcement learning.

        Each of the first two steps runs once, for one epoch, if it has data; further calls only
        continue the reinforcement learning.

        Args:
            epochs: int. Passes over the prompts.
            **kwargs: of the trainer's `fit`, such as `callbacks` and `verbose`.

        Returns:
            The history of the trainer, with score and KL of every epoch.

        Raises:
            ValueError: If there is no model yet, or data cannot be used.
        """
        self._check_built("train")
        prompts, preferences, demonstrations = self._sources
        batches = self._batches(data.prompts, prompts)
        if not self._is_prepared:
            if demonstrations is not None:
                self._imitate(self._batches(data.demonstrations, demonstrations))
            if preferences is not None:
                texts = [record["prompt"] for record in prompts[:_NORMALIZED]]
                self._learn_preferences(self._batches(data.preferences, preferences), texts)
            self._is_prepared = True
        return self.trainer.fit(batches, epochs=epochs, shuffle=False, **kwargs)

    def generate(self, prompts: Any, seed: int = 0) -> Any:
        """Returns responses of the current policy: a string for one prompt, else a list."""
        self._check_built("generate")
        return self.actor.generate(
            prompts, self.sampler, seed, jit_compile=self.jit_compile, template=self.template
        )

    def _imitate(self, demonstrations: Any) -> None:
        """Fine-tunes the policy, and copies it to the reference and to a new reward model."""
        lm = self.actor.causal_lm
        lm.compile(
            optimizer=self._optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            ),
            jit_compile=self.jit_compile,
        )
        lm.fit(demonstrations, shuffle=False, verbose=0)
        # By default the KL is measured against the fine-tuned model.
        if self.options.get("reference") is None:
            self.trainer.reference.causal_lm.set_weights(lm.get_weights())
        # The reward model starts from the fine-tuned backbone; its head stays.
        if self._given_reward is None:
            self.reward.backbone.set_weights(lm.backbone.get_weights())

    def _learn_preferences(self, pairs: Any, prompts: list[str]) -> None:
        """Fits the reward model and normalizes its scores of the policy's responses (N9)."""
        self.reward.fit(pairs, shuffle=False, verbose=0)
        # Scale to mean 0 and variance 1 on responses of the initial policy (N9).
        responses, ended = self.actor.generate(
            prompts,
            self.sampler,
            self.seed,
            return_ended=True,
            jit_compile=self.jit_compile,
            template=self.template,
        )
        self.reward.normalize(prompts, responses=responses, ended=ended, template=self.template)

    def _batches(self, read: Callable, source: Any) -> Any:
        return read(
            source,
            self.actor.causal_lm.preprocessor,
            batch_size=self.batch_size,
            seed=self.seed,
            template=self.template,
        )

    def _optimizer(self) -> keras.optimizers.Optimizer:
        return keras.optimizers.Adam(self.learning_rate, epsilon=1e-5)

    def _check_built(self, name: str) -> None:
        if self.trainer is None:
            raise ValueError(f"There is no model yet. Call `build_model()` before `{name}()`.")
