"""The policy and its critic."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import adapters, files
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import logprobs
from kerasrlhf.models import generation, lm_adapter, loading, serialization, windows
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.sampling import Ending, sample
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.types import Responses, Sampler, Tensor, TokenStats

_CONFIG = "actor_critic.json"
_HEAD = "actor_critic.weights.h5"
_CRITIC = "critic"


def require_actor(actor: Any) -> ActorCritic:
    """Returns `actor`, or raises a `ValueError` if it is not an `ActorCritic`.

    Args:
        actor: what a caller received as actor.
    """
    if not isinstance(actor, ActorCritic):
        raise ValueError(
            "`actor` must be an ActorCritic, for example `ActorCritic.from_causal_lm(lm)`. "
            f"Received: {actor!r} of type {type(actor).__name__}."
        )
    return actor


@keras.saving.register_keras_serializable("kerasrlhf")
class ActorCritic(adapters.AdaptedModel):
    """A keras-hub `CausalLM` with a value head: the policy and the critic of PPO.

    The language model is used as it is, not copied: training changes `causal_lm`, which can be
    saved, exported or used to `generate` like any other. Both networks run without dropout
    (detail N13).

    Args:
        causal_lm: keras-hub `CausalLM` of a text family.
        critic: None, a backbone, a CausalLM or a `RewardModel`. None: a value head on the actor's
            own hidden states, which costs no second network. A backbone or CausalLM: a separate
            network with a value head (detail P22). It is trained too, so pass a copy of a model
            that must not change; its untied output embeddings are frozen, as no value depends on
            them. It must have the actor's vocabulary. A `RewardModel`: a copy of its backbone
            (adapters merged, all of it trained), and a value head that starts as its score head,
            so that a state's first value is its score. The reward model does not change. Defaults
            to None.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: dict of `token_ids` int32 `(batch, length)` and `padding_mask` `(batch, length)`.

    Returns:
        Dict of `logits` float32 `(batch, length, vocab)` and `values` float32 `(batch, length)`,
        both of the state after the token at their position.

    Raises:
        ValueError: If `causal_lm` is not a text CausalLM, or the critic is the actor itself, has a
            smaller vocabulary, or is a reward model of another kind.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> responses = actor.generate(["Once upon a time"], rlhf.Sampler(length=8))
        >>> len(responses)
        1

    Reference:
        Stiennon et al. 2020, "Learning to summarize from human feedback"; details N1, N11, N13.
    """

    def __init__(
        self, causal_lm: keras.Model, critic: keras.Model | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        lm_adapter.check(causal_lm)
        # Saved weights then have adapters and the kernels they adapt as separate entries.
        adapters.keep_apart(causal_lm)
        self.causal_lm = causal_lm
        reward = critic if isinstance(critic, Scorer) else None
        # Set once: Keras would keep training the weights of a network that was set before.
        network = getattr(critic, "backbone", None) or critic
        if reward is not None:
            if not isinstance(reward, RewardModel):
                raise ValueError(
                    "A critic can be initialized only from a `RewardModel`, which has one score "
                    f"per sequence. Received: {type(reward).__name__}. Pass a backbone for a "
                    "critic with a fresh head."
                )
            network = lm_adapter.copy(reward.backbone)
            network.trainable = True
        self.critic = network
        self.value_head = windows.ScalarHead(name="value_head")
        if self.critic is not None:
            self._check_critic(self.critic)
        # Built here: its weights exist before anything is saved, loaded or assigned.
        self.value_head.build((None, None, lm_adapter.width(self.critic or causal_lm)))
        if reward is not None:
            # Gain and bias go into the head, so that first values are normalized scores (P22, N9).
            self.value_head.kernel.assign(reward.gain * reward.score_head.kernel)
            self.value_head.bias.assign(reward.gain * reward.score_head.bias + reward.bias)
        self._generate_functions: dict = {}
        self.built = True

    def _check_critic(self, critic: keras.Model) -> None:
        lm_adapter.check_backbone(critic)
        if critic is self.causal_lm.backbone:
            raise ValueError(
                "`critic` is the actor's own network. Pass `critic=None` to share it, or another "
                "model, for example one loaded from the same preset."
            )
        # A larger vocabulary is allowed: some models pad theirs.
        ours = lm_adapter.vocabulary_size(self.causal_lm)
        theirs = critic.vocabulary_size
        if theirs < ours:
            raise ValueError(
                "Actor and critic share token ids. Received an actor with a vocabulary of "
                f"{ours} and a critic with {theirs}. Use a critic of the same tokenizer."
            )
        lm_adapter.freeze_unread(critic)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of both networks, without LoRA adapters."""
        parts = {"causal_lm": self.causal_lm, "critic": self.critic}
        parts = {name: serialization.to_config(x) for name, x in parts.items()}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ActorCritic:
        """Returns an actor-critic with the networks of `get_config`, and fresh weights.

        Args:
            config: dict, as from `get_config`.
        """
        names = ("causal_lm", "critic")
        parts = {name: serialization.from_config(config[name]) for name in names}
        return cls(**{**config, **parts})

    @classmethod
    def from_causal_lm(
        cls, causal_lm: keras.Model, critic: keras.Model | None = None
    ) -> ActorCritic:
        """Returns an actor-critic of `causal_lm` with a fresh value head.

        Args:
            causal_lm: keras-hub `CausalLM` of a text family.
            critic: as in the class. Defaults to None.
        """
        return cls(causal_lm, critic=critic)

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> ActorCritic:
        """Loads a folder of `save_to_preset`, or any language model with a fresh value head.

        Args:
            preset: keras-hub name or handle, or a local folder.
            **kwargs: of `CausalLM.from_preset`, for example `dtype="mixed_bfloat16"`.
        """
        folder = pathlib.Path(preset)
        causal_lm = loading.load_causal_lm(preset, **kwargs)
        if not (folder / _CONFIG).is_file():
            return cls(causal_lm)
        # Other options, such as `load_weights`, are for the language model alone.
        separate = files.read_json(folder / _CONFIG)["separate_critic"]
        dtype = {name: value for name, value in kwargs.items() if name == "dtype"}
        critic = loading.load_backbone(folder / _CRITIC, **dtype) if separate else None
        actor = cls(causal_lm, critic=critic)
        keras.saving.load_weights(actor.value_head, folder / _HEAD)
        return actor

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes the language model as a keras-hub preset, and the critic into the same folder.

        `from_preset` restores the same actor-critic; `keras_hub.models.CausalLM.from_preset`
        loads the language model from the same folder. A folder that is new appears in one piece;
        in one that exists, only the files of a preset are replaced.

        LoRA adapters are merged. Those of quantized layers are also written unmerged, to
        `quantized_adapters.npz`, and `from_preset` restores them exactly. Plain keras-hub loads
        the merged kernels, which Keras has quantized again; that can undo what the adapters
        learned.

        Args:
            preset_dir: path of the folder.
        """
        lm_adapter.check(self.causal_lm)  # mends a preprocessor that was set later
        with files.replacing_preset(preset_dir) as folder:
            self.causal_lm.save_to_preset(str(folder))
            files.write_json(folder / _CONFIG, {"separate_critic": self.critic is not None})
            keras.saving.save_weights(self.value_head, folder / _HEAD)
            if self.critic is not None:
                self.critic.save_to_preset(str(folder / _CRITIC))

    def call(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes logits and values of every token."""
        token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
        hidden = lm_adapter.hidden_states(self.causal_lm, token_ids, padding_mask)
        # A shared trunk computes logits and values from the same states.
        states = hidden
        if self.critic is not None:
            states = lm_adapter.hidden_states(self.critic, token_ids, padding_mask)
        logits = lm_adapter.head(self.causal_lm)(hidden)
        return {"logits": logits, "values": self.value_head(states)}

    def token_stats(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        prompt_lengths: Tensor | None = None,
        width: int | None = None,
        temperature: Tensor | float = 1.0,
        entropy_gradient: bool = False,
    ) -> TokenStats:
        """Computes log-probabilities, entropies and values of given tokens.

        Only a window of each row is projected to the vocabulary.

        Args:
            token_ids: int32, `(batch, length)`, right-padded.
            padding_mask: bool, `(batch, length)`.
            prompt_lengths: int32, `(batch,)`, at least 1. First token of each row's window.
                Defaults to 1 in every row.
            width: int, at least 1. Tokens of a window. Required with `prompt_lengths`; without
                it, all tokens from token 1 on.
            temperature: float or float32 scalar, above 0. Logits are divided by it (detail N10).
                Defaults to 1.
            entropy_gradient: bool. Whether the entropy has a gradient, which costs memory.
                Defaults to False.

        Returns:
            `TokenStats`, zero outside the windows. Entries of token `t` come from the state before
            it.
        """
        length = token_ids.shape[1]
        # Without windows, all tokens but the first, which no state precedes.
        if prompt_lengths is None:
            prompt_lengths, width = ops.ones((token_ids.shape[0],), "int32"), length - 1
        if width is None:
            raise ValueError("With `prompt_lengths`, `token_stats` needs the windows' `width`.")
        logits, states, chosen = windows.window_logits(
            self.causal_lm, token_ids, padding_mask, prompt_lengths, width
        )
        per_window = TokenStats(
            logprobs.token_logprobs(logits, chosen, temperature),
            # Mostly reported only; without its gradient no second softmax is kept in memory.
            logprobs.token_entropy(
                logits if entropy_gradient else ops.stop_gradient(logits), temperature
            ),
            self._window_values(states, token_ids, padding_mask, prompt_lengths, width),
        )
        # From `(batch, width)` back to the columns of the rows.
        return TokenStats(*(windows.lay_back(x, prompt_lengths, length) for x in per_window))

    def _window_values(
        self,
        states: Tensor | None,
        token_ids: Tensor,
        padding_mask: Tensor,
        prompt_lengths: Tensor,
        width: int,
    ) -> Tensor:
        if self.critic is not None:
            hidden = lm_adapter.hidden_states(self.critic, token_ids, padding_mask)
            states = windows.states_before(hidden, prompt_lengths, width)
        return self.value_head(states)

    def token_values(
        self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor, width: int
    ) -> Tensor:
        """Returns values float32 `(batch, length)` of a separate critic.

        Args:
            token_ids: as in `token_stats`.
            padding_mask: as in `token_stats`.
            prompt_lengths: as in `token_stats`.
            width: as in `token_stats`.
        """
        values = self._window_values(None, token_ids, padding_mask, prompt_lengths, width)
        return windows.lay_back(values, prompt_lengths, token_ids.shape[1])

    def sample(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        uniforms: Tensor,
        sampler: Sampler,
        temperature: Tensor | float,
        ending: Ending | None = None,
    ) -> Responses:
        """Samples responses to tokenized prompts, with their log-probabilities and values.

        Args:
            token_ids: int32, `(batch, prompt)`, right-padded, static shape.
            padding_mask: bool, `(batch, prompt)`.
            uniforms: float32, `(batch * group, sampler.length, 2)`, from `replica.uniforms`: a
                group of responses to every prompt.
            sampler: `Sampler`. Its own temperature only decides, by being 0, whether the likeliest
                token is chosen.
            temperature: float or float32 scalar, above 0. Logits are divided by it. Ignored where
                the likeliest token is chosen.
            ending: `Ending` of the sampler. Defaults to None: `self.ending(sampler)`.

        Returns:
            `Responses`; values are zeros if the critic is a separate network.
        """
        return sample(
            self.causal_lm,
            token_ids,
            padding_mask,
            uniforms,
            sampler,
            temperature,
            self.ending(sampler) if ending is None else ending,
            self.value_head if self.critic is None else None,
        )

    def stop_token_ids(self, sampler: Sampler) -> tuple[int, ...]:
        """Returns the ids that end a response under `sampler`.

        Args:
            sampler: `Sampler`.
        """
        return generation.stop_token_ids(self.causal_lm, sampler, self.limits())

    def ending(self, sampler: Sampler) -> Ending:
        """Returns everything that ends a response under `sampler`: ids and texts.

        Args:
            sampler: `Sampler`.
        """
        return generation.ending(self.causal_lm, sampler, self.limits())

    def ended(self, responses: list[list[int]]) -> np.ndarray:
        """Returns which responses end with a token that ends a turn or a text, bool `(rows,)`.

        Args:
            responses: list of lists of token ids.
        """
        return generation.ended(self.causal_lm, responses)

    def limits(self, sampler: Sampler | None = None) -> Limits:
        """Returns what the actor and a separate critic can process, with room for responses.

        Args:
            sampler: `Sampler` of the responses. Defaults to None, no responses.
        """
        networks = [self.causal_lm.backbone] + ([self.critic] if self.critic is not None else [])
        limits = Limits.of(networks, self.causal_lm.preprocessor)
        return limits if sampler is None else limits._replace(sampled=sampler.length)

    def check_length(self, prompt_length: int, sampler: Sampler) -> None:
        """Raises a `ValueError` if prompt and response do not fit the model's positions.

        Args:
            prompt_length: int, in tokens.
            sampler: `Sampler` of the response.
        """
        self.limits(sampler).check_length(prompt_length)

    def padded_prompts(
        self, rows: list[list[int]], sampler: Sampler
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pads rows of token ids to one of a few lengths.

        Args:
            rows: list of lists of token ids.
            sampler: `Sampler` of the responses.

        Returns:
            Token ids int32 `(rows, length)` and their mask, bool.

        Raises:
            ValueError: If a prompt and its response do not fit the model's positions.
        """
        return generation.padded_prompts(rows, self.limits(sampler))

    def generate(
        self,
        prompts: Any,
        sampler: Sampler | int,
        seed: int = 0,
        *,
        batch_size: int = 256,
        return_ended: bool = False,
        jit_compile: bool = True,
        template: str | Callable = "plain",
        parse_special: bool = False,
    ) -> Any:
        """Samples responses to prompts with the compiled loop that training uses.

        Args:
            prompts: a string or a list of messages, or a list of these; or a dict of `token_ids`
                and `padding_mask` `(batch, prompt)`, right-padded.
            sampler: `Sampler`, or an int for `Sampler(length)`. Filters and temperature 0 are
                allowed.
            seed: int, at least 0. Equal seeds and prompts have equal responses. Defaults to 0.
            batch_size: int, at least 1. Texts per batch; a dict is one batch. Defaults to 256.
            return_ended: bool. Whether to also return which texts ended with an end token of the
                tokenizer or a stop string; neither is part of the text. Defaults to False.
            jit_compile: bool. Whether to compile with XLA, once per shape and sampler. Prompts
                are padded to one of a few lengths, which keeps the number of shapes low. Defaults
                to True.
            template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults
                to `"plain"`.
            parse_special: bool. Whether a special token that is written in a prompt, such as
                `<|im_end|>`, becomes that token. Defaults to False.

        Returns:
            For texts and messages, the texts of the responses (one string for a single prompt),
            without prompt and special tokens; with `return_ended` a tuple of these and a bool
            array `(prompts,)`. For a dict, `Responses`.

        Raises:
            ValueError: If there are no prompts, a prompt is neither a string nor messages or is
                too long, `sampler` is not a `Sampler` with a constant temperature, or an argument
                is outside its range.
        """
        return generation.generate(
            self.causal_lm,
            prompts,
            sampler,
            seed,
            batch_size=batch_size,
            return_ended=return_ended,
            jit_compile=jit_compile,
            template=template,
            parse_special=parse_special,
            limits=self.limits(),
            sample=self.sample,
            functions=self._generate_functions,
        )
