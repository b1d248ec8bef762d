"""The frozen networks of a trainer, and its saving, settings and summary."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasrlhf import signatures
from kerasrlhf.adapters import AdaptedModel, adapted_layers
from kerasrlhf.models import fitting
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.collector import Collected
from kerasrlhf.rollouts.environments import TextEnvironment
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers import settings, summaries
from kerasrlhf.trainers.language_modeling import LanguageModeling


class HeldTrainer(AdaptedModel):
    """Base of trainers with frozen networks: part of `.keras` files, not of checkpoints; abstract.

    Frozen networks are in one opaque object. As attributes, Keras would save them in every
    checkpoint.

    A subclass has the attributes below and calls `hold`.
    """

    actor: ActorCritic
    iteration: keras.Variable
    shaping: RewardShaping
    texts: LanguageModeling | None
    memory: RolloutMemory | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Keras does not look into a `SimpleNamespace`.
        self._held = types.SimpleNamespace(shows_frozen=False, statistics={}, last=None)

    def hold(
        self,
        reward: Any,
        reference: Reference,
        given_reference: Any,
        environment: TextEnvironment | None = None,
    ) -> None:
        """Keeps the frozen networks.

        Args:
            reward: as `rollouts.weighted.parts_of` describes.
            reference: `Reference`.
            given_reference: CausalLM that `reference` was made from, or None.
            environment: `TextEnvironment` that the reward belongs to. Defaults to None.
        """
        self._held.reward, self._held.reference = reward, reference
        self._held.given_reference, self._held.environment = given_reference, environment

    @property
    def reference(self) -> Reference:
        """The frozen model that the KL is measured against."""
        return self._held.reference

    @property
    def reward(self) -> Any:
        """The reward, as passed by the user: of an environment, its reward."""
        return self._held.reward

    @property
    def environment(self) -> TextEnvironment | None:
        """The environment that was passed in place of a reward, or None."""
        return self._held.environment

    @property
    def statistics(self) -> dict[str, float]:
        """Statistics of the last iteration by name."""
        return self._held.statistics

    @property
    def last(self) -> Collected | None:
        """Rollout and texts of the last iteration."""
        return self._held.last

    def settings(self) -> dict[str, Any]:
        """Returns everything that determines a run, except its data and its learned weights.

        Returns:
            Dict from names such as `cliprange`, `sampler.length` or `optimizer.learning_rate` to
            numbers, strings, booleans, lists and None; networks and rewards have fingerprints.
        """
        saved = {id(v) for v in self.variables}
        # With adapters the reference shares weights that are saved and loaded with the actor.
        frozen = [v for v in self.reference.frozen_values() if id(v) not in saved]
        return settings.flat(
            {
                **settings.arguments_of(self),
                "memory": None if self.memory is None else {"reuse": self.memory.reuse},
                "optimizer": settings.describe(self.optimizer),
                "reward": settings.describe_rewards(self.reward),
                "reference": settings.fingerprint(frozen),
                **self._environment_settings(),
            }
        )

    def _environment_settings(self) -> dict[str, Any]:
        if self.environment is None:
            return {}
        return {"environment": settings.describe(self.environment.settings())}

    def summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Prints actor, critic, reference and rewards: parameters, trained or frozen, and bytes.

        Args:
            print_fn: callable that takes the text. Defaults to None: standard output.
        """
        summaries.show(summaries.table(self._networks()), print_fn)

    def _networks(self) -> dict[str, list[Any]]:
        """Returns the variables of each network by name."""
        networks = {"actor": self.actor.causal_lm, "value head": self.actor.value_head}
        if self.actor.critic is not None:
            networks["critic"] = self.actor.critic
        found = {name: network.variables for name, network in networks.items()}
        found["reference"] = self.reference.frozen_values()
        for part in weighted.parts_of(self.reward):
            if isinstance(part.reward, Scorer):
                found[f"reward {part.name}"] = part.reward.variables
        return found

    def __repr__(self) -> str:
        parts = weighted.parts_of(self.reward)
        names = [part.name if part.weight == 1 else (part.name, part.weight) for part in parts]
        reward = names if isinstance(self.reward, (list, dict)) else names[0]
        shaping = None if self.shaping == RewardShaping() else self.shaping
        values = {"reward": reward, "reference": None, "shaping": shaping}
        return summaries.described(self, values)

    def get_weights(self) -> list[np.ndarray]:
        """Returns the values of all weights but the iteration counter.

        So callbacks that restore the best weights do not repeat the random numbers of past
        iterations. `save_weights` and `callbacks.Resume` save the counter.
        """
        return [v.numpy() for v in self.weights if v is not self.iteration]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Sets what `get_weights` returned; the iteration counter stays as it is."""
        place = next(i for i, v in enumerate(self.weights) if v is self.iteration)
        counter = self.iteration.numpy()
        super().set_weights([*weights[:place], counter, *weights[place:]])

    # As one `.keras` file.

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the trainer with all networks as one `.keras` file; see `keras.Model.save`.

        Args:
            filepath: path that ends with ".keras".
            *args: of `keras.Model.save`.
            **kwargs: of `keras.Model.save`.

        Raises:
            ValueError: As in `check_savable`.
        """
        self.check_savable()
        super().save(filepath, *args, **kwargs)

    def check_savable(self) -> None:
        """Raises a `ValueError` for parts that a `.keras` file cannot hold.

        These are LoRA adapters of the actor, the dataset of `texts`, an environment, and rewards
        that Keras cannot serialize: ensembles, process reward models, and objects without
        `get_config`.
        """
        reason = None
        if adapted_layers(self.actor):
            reason = "of its LoRA adapters"
        elif self.texts is not None:
            reason = "`texts` has a dataset"
        elif self.environment is not None:
            reason = "its environment has prompts"
        else:
            try:
                self.get_config()
            except (NotImplementedError, TypeError, ValueError) as error:
                # Ensembles and process reward models have no `get_config`.
                reason = f"of its reward ({str(error).strip() or 'Keras cannot serialize it'})"
        if reason is not None:
            raise ValueError(f"{fitting.saving_advice(self)} The reason: {reason}.")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, networks and rewards included; a memory without its rollouts."""
        names = signatures.signature_of(type(self)).parameters
        arguments = {name: getattr(self, name) for name in names}
        # The model that was passed, not the `Reference` made from it.
        arguments["reference"] = self._held.given_reference
        return {name: keras.saving.serialize_keras_object(x) for name, x in arguments.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HeldTrainer:
        """Returns a trainer with the arguments of `get_config` and new networks.

        Args:
            config: dict.
        """
        found = {n: keras.saving.deserialize_keras_object(x) for n, x in config.items()}
        reward = found["reward"]
        # JSON has no tuples: `(reward, weight)` was saved as a list.
        if isinstance(reward, list):
            reward = [tuple(x) if isinstance(x, list) else x for x in reward]
        elif isinstance(reward, dict):
            reward = {n: tuple(x) if isinstance(x, list) else x for n, x in reward.items()}
        return cls(**{**found, "reward": reward})

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile`."""
        if not self.compiled:
            return None
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "jit_compile": self.jit_compile,
            "run_eagerly": self.run_eagerly,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with the arguments of `get_compile_config`.

        Args:
            config: dict.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))

    def save_assets(self, dir_path: str) -> None:
        """Makes Keras save the frozen networks next; Keras calls this for whole models only.

        Args:
            dir_path: str, unused.
        """
        self._held.shows_frozen = True

    def load_assets(self, dir_path: str) -> None:
        """Makes Keras load the frozen networks next.

        Args:
            dir_path: str, unused.
        """
        self._held.shows_frozen = True

    @property
    def frozen_networks(self) -> list[keras.Model]:
        """The reference and the reward models."""
        rewards = [part.reward for part in weighted.parts_of(self.reward)]
        return [self.reference.causal_lm, *(x for x in rewards if isinstance(x, Scorer))]

    def __dir__(self) -> list[str]:
        # Keras saves every model that it finds under these names. Frozen networks belong to a whole
        # model, not to its weights, so they are listed once after `save_assets` or `load_assets`.
        hidden = {"reward", "frozen_networks"}
        if "_held" in vars(self) and self._held.shows_frozen:
            self._held.shows_frozen = False
            hidden = {"reward"}
        return [name for name in super().__dir__() if name not in hidden]
