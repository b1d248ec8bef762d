"""What a trainer needs of an environment: its prompts, its reward and how its episodes go."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import tensorflow as tf

from kerasrlhf import data
from kerasrlhf.data import kinds
from kerasrlhf.data.dialogue import Template, check_template
from kerasrlhf.models import lm_adapter, loading
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.dialogues import Dialogue
from kerasrlhf.types import Sampler, require_sampler

_BATCH_SIZE = 32
# Prompts that are tokenized together to read all of them.
_READ = 256
# What must be the same in a trainer's sampler, for an episode to end at the same token.
_ENDS = ("length", "stop_token_ids", "stop_strings", "min_length")
# Wrappers of `gymnasium.make` that only check how an environment is used.
_CHECKS = {"OrderEnforcing", "PassiveEnvChecker"}
_OURS = "`TokenEnv`, `ResponseEnv` or `DialogueEnv` of `rlhf.environment`"


class Environment(Protocol):
    """Whatever has the methods of a `gymnasium.Env`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode."""
        ...

    def step(self, action: Any) -> Any:
        """Takes an action."""
        ...


class TextEnvironment:
    """Prompts, a reward and the rules of an episode; abstract.

    A trainer samples the episodes of such an environment with its compiled loop, whole batches at
    a time, instead of taking its steps one by one.

    Args:
        prompts: what `data.prompts` accepts or returns: records or texts, or a dataset, whose
            batches are then those of a trainer.
        reward: as in a trainer: a reward model, a function, or a list or dict of these.
        causal_lm: keras-hub `CausalLM` whose tokens are the actions, or the name or folder of its
            preset. Its weights are not used.
        sampler: `Sampler`, or an int for `Sampler(length)`. Its length and its stops end a reply;
            how an agent chooses tokens is its own business.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.

    Raises:
        ValueError: If an argument cannot be used.
    """

    dialogue: Dialogue | None = None
    """How the dialogue goes on after a reply; None if an episode is one reply."""

    def __init__(
        self,
        prompts: Any,
        reward: Any,
        causal_lm: keras.Model | str,
        sampler: Sampler | int,
        template: Template = "plain",
    ) -> None:
        if isinstance(sampler, int):
            sampler = Sampler(sampler)
        self.sampler = require_sampler(sampler)
        check_template(template)
        self.template = template
        weighted.parts_of(reward)
        self.reward = reward
        if not isinstance(causal_lm, keras.Model):
            causal_lm = loading.load_causal_lm(causal_lm)
        lm_adapter.check(causal_lm)
        self.causal_lm = causal_lm
        self.vocabulary = lm_adapter.vocabulary_size(causal_lm)
        self.prompts = prompts
        if isinstance(prompts, tf.data.Dataset):
            kinds.check_kind("prompts", prompts, "prompts")
            if prompts.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise ValueError(
                    "An environment needs a finite set of prompts, to choose one at `reset`. "
                    "Received an infinite dataset: leave out `repeat()`."
                )
        elif causal_lm.preprocessor is None:
            raise ValueError(
                "Prompts that are texts need a tokenizer, and the model has no preprocessor. "
                "Attach one, or pass a dataset of `token_ids` and `padding_mask`."
            )
        else:
            # Read once: a generator would be exhausted by the first pass.
            self.prompts = data.records.load(prompts, text_column="prompt")

    @property
    def columns(self) -> int:
        """Tokens that follow a prompt at most."""
        length = self.sampler.length
        return length if self.dialogue is None else self.dialogue.columns(length)

    def batches(self, batch_size: int | None = None, seed: int = 0) -> tf.data.Dataset:
        """Returns the prompts in batches, for `fit` of a trainer.

        Args:
            batch_size: int, at least 1, or None. Prompts of an iteration. Defaults to None: the
                batches of a dataset, or of records 32, or all if there are fewer.
            seed: int, at least 0. Of the order of records. Defaults to 0.

        Raises:
            ValueError: If the prompts are a dataset, which has its own batch size.
        """
        if not isinstance(self.prompts, tf.data.Dataset):
            size = min(_BATCH_SIZE, len(self.prompts)) if batch_size is None else batch_size
            return self._loaded(size, seed=seed)
        if batch_size is not None:
            raise ValueError(
                f"The prompts of this environment are batches already. Received `batch_size="
                f"{batch_size}`: leave it out, or make the environment with records instead."
            )
        return self.prompts

    def one_pass(self) -> tf.data.Dataset:
        """Returns the first pass over the prompts in batches, in the same order every time."""
        if not isinstance(self.prompts, tf.data.Dataset):
            return self._loaded(_READ, shuffle=False, drop_remainder=False)
        # A pass of its own, which does not count for those that train on the dataset.
        in_step = getattr(self.prompts, "in_step_with", None)
        return self.prompts if in_step is None else in_step(lambda: 0)

    def _loaded(self, batch_size: int, **options: Any) -> tf.data.Dataset:
        return data.prompts(
            self.prompts,
            self.causal_lm.preprocessor,
            batch_size,
            template=self.template,
            **options,
        )

    def check_agent(self, actor: ActorCritic, sampler: Sampler) -> None:
        """Raises a `ValueError` for an actor or a sampler with other episodes.

        Args:
            actor: `ActorCritic`.
            sampler: `Sampler` of a trainer.
        """
        own = lm_adapter.vocabulary_size(actor.causal_lm)
        if own != self.vocabulary:
            raise ValueError(
                f"The actions of the environment are {self.vocabulary} tokens, and the actor has "
                f"{own}. Make the environment with the actor's `causal_lm`."
            )
        preprocessor = self.causal_lm.preprocessor
        actor.limits().check_tokenizer(getattr(preprocessor, "tokenizer", None))
        pairs = {name: (getattr(self.sampler, name), getattr(sampler, name)) for name in _ENDS}
        other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if other:
            shown = ", ".join(f"{n}={ours!r} and {theirs!r}" for n, (ours, theirs) in other.items())
            raise ValueError(
                "The environment and the trainer end a reply differently: the environment's "
                f"sampler and the trainer's have {shown}. Pass `sampler=environment.sampler`, or "
                "one that differs only in how tokens are chosen."
            )

    def settings(self) -> dict[str, Any]:
        """Returns what determines its episodes, besides prompts, reward and sampler."""
        return {"class": type(self).__name__, "dialogue": self.dialogue}


def environment_of(reward: Any) -> TextEnvironment | None:
    """Returns the environment that was passed in place of a reward; None for a reward.

    Args:
        reward: what a trainer received as reward.

    Raises:
        ValueError: If it is an environment that a trainer cannot train on.

    Example:
        >>> environment_of(len) is None
        True
    """
    if isinstance(reward, TextEnvironment):
        return reward
    if not (hasattr(reward, "reset") and hasattr(reward, "step")):
        return None
    if hasattr(reward, "num_envs"):
        raise ValueError(
            f"Pass one environment, not {type(reward).__name__} with {reward.num_envs}: a trainer "
            "samples the episodes of a whole batch together anyway."
        )
    inner = getattr(reward, "unwrapped", reward)
    wrappers, layer = [], reward
    while layer is not inner:
        wrappers.append(type(layer).__name__)
        layer = getattr(layer, "env", inner)
    if not isinstance(inner, TextEnvironment):
        raise ValueError(
            f"A trainer of this package cannot train on {type(inner).__name__}, whose actions are "
            f"{getattr(inner, 'action_space', 'unknown')}: it samples tokens of a language model "
            "and needs the log-probability of each, the prompt it followed, and a score of the "
            f"text. Expected {_OURS}. A program that answers is the `user` of a `DialogueEnv`, and "
            "a score is a reward function."
        )
    # A trainer takes no steps, so that whatever is around them would have no effect.
    changing = [name for name in wrappers if name not in _CHECKS]
    if changing:
        raise ValueError(
            f"The wrappers {changing} would have no effect: a trainer samples whole episodes of "
            f"{type(inner).__name__} itself. Pass `environment.unwrapped`, and change rewards with "
            "a reward function or `RewardShaping`."
        )
    return inner
