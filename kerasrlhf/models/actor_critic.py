"""A language model that acts and a critic that values its states."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import adapters, files, replica, tokens
from kerasrlhf.data import inputs
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import logprobs
from kerasrlhf.models import lm_adapter, loading, windows
from kerasrlhf.models.sampling import sample
from kerasrlhf.models.scalar_head import ScalarHead
from kerasrlhf.types import (
    Responses,
    Sampler,
    TokenStats,
    require_int,
    require_sampler,
    require_seed,
)

_CONFIG = "actor_critic.json"
_HEAD = "actor_critic.weights.h5"
_CRITIC = "critic"


def _check_reward_model(critic):
    if not (hasattr(critic, "score_head") and hasattr(critic, "gain")):
        raise ValueError(
            "Of reward models a critic can begin as a `RewardModel`, which gives a text one score. "
            f"Received: {type(critic).__name__}. Pass a backbone for a critic with a fresh head."
        )


@keras.saving.register_keras_serializable("kerasrlhf")
class ActorCritic(adapters.AdaptedModel):
    """A keras-hub `CausalLM` with a value head: the policy and the critic of PPO.

    The language model is used as it is, not copied: what training changes is `causal_lm`, which
    can be saved, exported or asked to `generate` like any other. Both networks run without
    dropout (detail N13).

    Args:
        causal_lm: keras-hub `CausalLM` of a text family.
        critic: None: a value head on the actor's own hidden states, which costs no second network.
            A backbone or CausalLM: a network of its own with a value head (detail P22); it is
            trained too, so pass a copy of anything that must stay. Output embeddings of its own
            are frozen: no value depends on them. It must read the same vocabulary of token ids.
            A `RewardModel`: a copy of its backbone (adapters merged, all of it trained), and a
            value head that starts as its score head, so that a state's first value is its score.
            The reward model stays as it is.

    Call arguments:
        inputs: dict of `token_ids` int32 `(batch, length)` and `padding_mask` `(batch, length)`.

    Returns:
        Dict of `logits` float32 `(batch, length, vocab)` and `values` float32 `(batch, length)`,
        both of the state after the token they stand at.

    Raises:
        ValueError: not a text CausalLM; a critic that is the actor itself, has a smaller
            vocabulary, or is a reward model of another kind.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> responses = actor.generate(["Once upon a time"], rlhf.Sampler(length=8))
        >>> len(responses)
        1

    Reference:
        Stiennon et al. 2020, "Learning to summarize from human feedback"; details N1, N11, N13.
    """

    def __init__(self, causal_lm: keras.Model, critic: keras.Model | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        lm_adapter.check(causal_lm)
        adapters.keep_apart(causal_lm)
        self.causal_lm = causal_lm
        network = getattr(critic, "backbone", None) or critic
        is_reward = hasattr(critic, "read_texts")
        if is_reward:
            _check_reward_model(critic)
            network = lm_adapter.copy(network)
            network.trainable = True
        self.critic = network
        self.value_head = ScalarHead(name="value_head")
        if self.critic is not None:
            self._check_critic()
        self.value_head.build((None, None, lm_adapter.width(self.critic or causal_lm)))
        if is_reward:
            self.value_head.kernel.assign(critic.gain * critic.score_head.kernel)
            self.value_head.bias.assign(critic.gain * critic.score_head.bias + critic.bias)
        self._generate_functions = {}
        self.built = True

    def _check_critic(self):
        lm_adapter.check_backbone(self.critic)
        if self.critic is self.causal_lm.backbone:
            raise ValueError(
                "`critic` is the actor's own network. Pass `critic=None` to share it, or another "
                "model, for example one loaded from the same preset."
            )
        ours = lm_adapter.vocabulary_size(self.causal_lm)
        theirs = self.critic.vocabulary_size
        if theirs < ours:
            raise ValueError(
                "Actor and critic share token ids. Received an actor with a vocabulary of "
                f"{ours} and a critic with {theirs}. Use a critic of the same tokenizer."
            )
        lm_adapter.freeze_unread(self.critic)

    @classmethod
    def from_causal_lm(
        cls, causal_lm: keras.Model, critic: keras.Model | None = None
    ) -> ActorCritic:
        """An actor-critic around `causal_lm` with a fresh value head."""
        return cls(causal_lm, critic=critic)

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> ActorCritic:
        """Loads a folder of `save_to_preset`, or any language model with a fresh value head.

        Args:
            preset: keras-hub name or handle, or a local folder.
            **kwargs: to `CausalLM.from_preset`, for example `dtype="mixed_bfloat16"`.
        """
        folder = pathlib.Path(preset)
        causal_lm = loading.load_causal_lm(preset, **kwargs)
        if not (folder / _CONFIG).is_file():
            return cls(causal_lm)
        separate = files.read_json(folder / _CONFIG)["separate_critic"]
        dtype = {name: value for name, value in kwargs.items() if name == "dtype"}
        critic = loading.load_backbone(folder / _CRITIC, **dtype) if separate else None
        actor = cls(causal_lm, critic=critic)
        keras.saving.load_weights(actor.value_head, folder / _HEAD)
        return actor

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes the language model as a keras-hub preset, and the critic beside it.

        `from_preset` gives back the same actor-critic; `keras_hub.models.CausalLM.from_preset`
        reads the language model of the same folder. A folder that is new appears in one piece; in
        one that exists, only the files of a preset are replaced.

        LoRA adapters are merged. Those of quantized layers are also written as they are, to
        `quantized_adapters.npz`: `from_preset` puts them back, and the model computes what it did.
        Plain keras-hub reads the merged kernels, which Keras rounds to few bits again; that can
        undo what the adapters learned.
        """
        lm_adapter.check(self.causal_lm)  # mends a preprocessor that was put there later
        with files.replacing_preset(preset_dir) as folder:
            self.causal_lm.save_to_preset(str(folder))
            files.write_json(folder / _CONFIG, {"separate_critic": self.critic is not None})
            keras.saving.save_weights(self.value_head, folder / _HEAD)
            if self.critic is not None:
                self.critic.save_to_preset(str(folder / _CRITIC))

    def call(self, inputs):
        token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
        hidden = lm_adapter.hidden_states(self.causal_lm, token_ids, padding_mask)
        states = hidden
        if self.critic is not None:
            states = lm_adapter.hidden_states(self.critic, token_ids, padding_mask)
        logits = lm_adapter.head(self.causal_lm)(hidden)
        return {"logits": logits, "values": self.value_head(states)}

    def token_stats(
        self,
        token_ids: Any,
        padding_mask: Any,
        starts: Any = None,
        width: int | None = None,
        temperature: Any = 1.0,
        entropy_gradient: bool = False,
    ) -> TokenStats:
        """Log-probabilities, entropy and values of given tokens, as the model is now.

        Args:
            token_ids: int32 `(batch, length)`, right-padded.
            padding_mask: bool `(batch, length)`.
            starts: int32 `(batch,)`, at least 1: first token of each row's window. None: token 1.
            width: int, tokens of the window. None: all behind token 0. Only windows are projected
                to the vocabulary.
            temperature: the sampler's; logits are divided by it (detail N10).
            entropy_gradient: whether the entropy carries a gradient, which costs memory.

        Returns:
            `TokenStats`, zero outside the windows. What belongs to token `t` was made in the state
            before it.
        """
        if starts is None:
            starts = ops.ones((token_ids.shape[0],), "int32")
            width = token_ids.shape[1] - 1
        logits, states, chosen = windows.window_logits(
            self.causal_lm, token_ids, padding_mask, starts, width
        )
        per_window = TokenStats(
            logprobs.token_logprobs(logits, chosen, temperature),
            logprobs.token_entropy(
                logits if entropy_gradient else ops.stop_gradient(logits), temperature
            ),
            self._window_values(states, token_ids, padding_mask, starts, width),
        )
        length = token_ids.shape[1]
        return TokenStats(*(windows.lay_back(x, starts, length) for x in per_window))

    def _window_values(self, states, token_ids, padding_mask, starts, width):
        if self.critic is not None:
            hidden = lm_adapter.hidden_states(self.critic, token_ids, padding_mask)
            states = windows.states_before(hidden, starts, width)
        return self.value_head(states)

    def token_values(self, token_ids: Any, padding_mask: Any, starts: Any, width: int) -> Any:
        """Values float32 `(batch, length)` of a separate critic; layout as in `token_stats`."""
        values = self._window_values(None, token_ids, padding_mask, starts, width)
        return windows.lay_back(values, starts, token_ids.shape[1])

    def sample(
        self,
        token_ids: Any,
        padding_mask: Any,
        uniforms: Any,
        sampler: Sampler,
        temperature: Any = None,
    ) -> Responses:
        """Responses to tokenized prompts, with their log-probabilities and values.

        Args:
            token_ids: int32 `(batch, prompt)`, right-padded, static shape.
            padding_mask: bool `(batch, prompt)`.
            uniforms: float32 `(batch * group, sampler.length, 2)`, from `replica.uniforms`: a
                group of responses to every prompt.
            sampler: how to draw.
            temperature: float32 scalar in place of the sampler's, or None.

        Returns:
            `Responses`; values are zeros when the critic is a network of its own.
        """
        return sample(
            self.causal_lm,
            token_ids,
            padding_mask,
            uniforms,
            sampler,
            self.stop_token_ids(sampler),
            self.value_head if self.critic is None else None,
            temperature,
        )

    def stop_token_ids(self, sampler: Sampler) -> tuple[int, ...]:
        """The ids that end a response under `sampler`."""
        if sampler.stop_token_ids == "auto":
            return tokens.stop_ids(self.causal_lm.preprocessor)
        ids = sampler.stop_token_ids or ()
        self.limits().check_ids(ids, name="`stop_token_ids`")
        return ids

    def ended(self, responses: list[list[int]]) -> np.ndarray:
        """Returns which responses, lists of ids, end with a token that ends a turn or a text.

        Bool `(rows,)`.
        """
        ends = tokens.stop_ids(self.causal_lm.preprocessor)
        return np.array([bool(row) and row[-1] in ends for row in responses])

    def limits(self, sampler: Sampler | None = None) -> Limits:
        """What the actor and a critic of its own can read, with room for responses."""
        networks = [self.causal_lm.backbone] + ([self.critic] if self.critic is not None else [])
        limits = Limits.of(networks, self.causal_lm.preprocessor)
        return limits if sampler is None else limits._replace(sampled=sampler.length)

    def positions(self) -> int | None:
        """Positions of the actor and of a critic of its own, or None where any length can be."""
        return self.limits().positions

    def check_length(self, prompt_length: int, sampler: Sampler) -> None:
        """Raises a `ValueError` when prompt and response do not fit the model's positions."""
        self.limits(sampler).check_length(prompt_length)

    def generate(
        self,
        prompts: Any,
        sampler: Sampler,
        seed: int = 0,
        *,
        batch_size: int = 256,
        return_ended: bool = False,
        jit_compile: bool = True,
        template: Any = "plain",
        parse_special: bool = False,
    ) -> Any:
        """Responses to prompts, by the same compiled loop that training samples with.

        Args:
            prompts: a string or a list of messages, or a list of these; or a dict of `token_ids`
                and `padding_mask` `(batch, prompt)`, right-padded.
            sampler: how to draw; filters and temperature 0 are welcome here.
            seed: int. The same seed and prompts give the same responses.
            batch_size: int, at least 1. Texts that are answered at once; a dict is one batch.
            return_ended: whether to tell of texts which of them ended with an end token of the
                tokenizer, which is no part of the text.
            jit_compile: compile with XLA; each new shape and sampler is compiled once. Prompts are
                padded to one of a few lengths, so that there are few shapes.
            template: how messages become a text, see `data.dialogue`.
            parse_special: whether a special token that is written in a prompt, such as
                `<|im_end|>`, becomes that token.

        Returns:
            For texts and messages the responses' texts (one string for one prompt that is no list
            of prompts), without prompt and special tokens; with `return_ended` a tuple of them
            and a bool array `(prompts,)`. For a dict, `Responses`.

        Raises:
            ValueError: If there are no prompts, a prompt is neither a string nor messages or is
                too long, `sampler` is no `Sampler`, or the batch size is below 1.
        """
        require_int("batch_size", batch_size, minimum=1)
        require_sampler(sampler)
        require_seed(seed)
        if isinstance(prompts, dict):
            if not {"token_ids", "padding_mask"} <= {*prompts}:
                raise ValueError(
                    "A dict of prompts must have `token_ids` and `padding_mask`, as batches of "
                    f"`rlhf.data.prompts`. Received: {sorted(prompts)}. Texts are passed as a "
                    "string or a list of strings."
                )
            ids = np.asarray(prompts["token_ids"], "int32")
            return self._generate_ids(
                ids, np.asarray(prompts["padding_mask"], bool), sampler, seed, jit_compile
            )
        is_single = isinstance(prompts, str) or inputs.is_conversation(prompts)
        preprocessor = self.causal_lm.preprocessor
        _, rows = inputs.encode_prompts(
            [prompts] if is_single else prompts, preprocessor, template, parse_special
        )
        size = min(batch_size, len(rows))
        responses = []
        for index, start in enumerate(range(0, len(rows), size)):
            part = rows[start : start + size]
            # The last batch is filled up with its first row: one shape, compiled once.
            ids, mask = self.padded_prompts(part + part[:1] * (size - len(part)), sampler)
            samples = self._generate_ids(ids, mask, sampler, seed, jit_compile, batch=index)
            responses += tokens.masked_rows(samples.token_ids, samples.response_mask)
        responses = responses[: len(rows)]
        texts = tokens.detokenize(responses, preprocessor, after=rows)
        texts = texts[0] if is_single else texts
        return (texts, self.ended(responses)) if return_ended else texts

    def padded_prompts(self, rows: list[list[int]], sampler: Sampler) -> tuple[Any, Any]:
        """Returns rows of ids as arrays `(rows, length)`, of one of a few lengths, and their mask.

        Raises:
            ValueError: If a prompt and its response do not fit the model's positions.
        """
        longest = max(map(len, rows))
        self.check_length(longest, sampler)
        limit = self.positions()
        room = None if limit is None else limit - sampler.length
        return tokens.padded(rows, tokens.padded_length(longest, room))

    def _generate_ids(self, token_ids, padding_mask, sampler, seed, jit_compile, batch=0):
        tokens.check_right_padded(token_ids, padding_mask)
        self.limits(sampler).check_batch({"token_ids": token_ids, "padding_mask": padding_mask})
        key = (sampler, jit_compile)
        if key not in self._generate_functions:
            self._generate_functions[key] = replica.compiled(
                lambda ids, mask, uniforms: self.sample(ids, mask, uniforms, sampler), jit_compile
            )
        stream = replica.stream(seed, "generate")
        uniforms = replica.uniforms(stream, batch, len(token_ids), sampler.length)
        return self._generate_functions[key](
            ops.convert_to_tensor(token_ids), ops.convert_to_tensor(padding_mask), uniforms
        )
