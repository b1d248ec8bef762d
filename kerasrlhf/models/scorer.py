"""The base of reward models: from token rows and texts to scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from kerasrlhf import replica, tokens
from kerasrlhf.data import inputs
from kerasrlhf.data.limits import Limits
from kerasrlhf.models import fitting, generation, lm_adapter
from kerasrlhf.models.score_scale import ScoreScale
from kerasrlhf.types import (
    Sampler,
    Tensor,
    require_finite_scores,
    require_int,
    require_number,
)


class Scored(NamedTuple):
    """Scores of responses.

    scores: float32, `(batch,)`, one per response; of a process reward model `(batch, length)`,
        each at the token where a step ends, 0 elsewhere.
    spread: float32, the same shape. Standard deviation between the members of an ensemble; 0 for
        a single model.
    """

    scores: Tensor
    spread: Tensor


class Scorer(fitting.FittedModel):
    """A model that scores responses: what a trainer takes as `reward`; abstract.

    Final classes define `call`, which `fit` trains, `backbones` and `fit_defaults`, and

        read(token_ids, padding_mask, prompt_lengths) -> Scored     pure, compiled with XLA

    Those whose scores have a scale that `normalize` can set have a `ScoreScale` as `score_scale`;
    those that combine other models have these as `members`.

    Args:
        preprocessor: keras-hub preprocessor for scoring texts, or None.
        initial_policy: keras-hub `CausalLM`, or a callable that returns one: the language model
            whose responses `normalize` samples. Never part of a checkpoint. Defaults to None.
        **kwargs: of `keras.Model`.
    """

    is_per_token = False
    """Whether `read` returns scores `(batch, length)`."""

    trains_on: tuple[str, ...] = ("preferences",)
    score_scale: ScoreScale
    members: Sequence[Scorer] = ()

    def __init__(
        self,
        preprocessor: Any = None,
        initial_policy: keras.Model | Callable[[], keras.Model | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.preprocessor = preprocessor
        # In a function, Keras does not track the policy as a part of this model.
        is_model = isinstance(initial_policy, keras.Model)
        self._load_policy = (lambda: initial_policy) if is_model else initial_policy
        self._read_function: Callable | None = None

    @property
    def initial_policy(self) -> keras.Model | None:
        """The language model that this model was made from, or None.

        If this model started from a preset, each access loads the language model from it.
        """
        return self._load_policy() if self._load_policy is not None else None

    @property
    def gain(self) -> keras.Variable:
        """The factor of raw scores, a float32 scalar variable; see `normalize`."""
        return self.score_scale.gain

    @property
    def bias(self) -> keras.Variable:
        """The constant that is added to scores, a float32 scalar variable; see `normalize`."""
        return self.score_scale.bias

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> Scored:
        """Scores rows of a prompt and a response.

        Args:
            token_ids: int32, `(batch, length)`, right-padded.
            padding_mask: bool, `(batch, length)`.
            prompt_lengths: int32, `(batch,)`, in tokens.
        """
        raise NotImplementedError

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids that all networks have embeddings for."""
        return min(backbone.vocabulary_size for backbone in self.backbones())

    def limits(self) -> Limits:
        """Returns the lengths and token ids that all networks can process."""
        return Limits.of(self.backbones(), self.preprocessor)

    def score(
        self,
        prompts: Any,
        responses: Any,
        batch_size: int = 32,
        *,
        ended: bool | Sequence[bool] = True,
        template: str | Callable = "plain",
        parse_special: bool = False,
    ) -> np.ndarray:
        """Scores texts; scores of a process reward model are sums over steps.

        Rows are made as `data.preferences` makes them. A row that is too long for the model loses
        the start of its prompt, with a warning.

        Args:
            prompts: list of strings or of lists of messages.
            responses: list of strings or of lists of messages, one per prompt.
            batch_size: int, at least 1. Rows per batch. Defaults to 32.
            ended: bool, or bools `(rows,)`. Whether a response is complete. The end token is
                appended to complete responses, as in `data.preferences`; pass False for truncated
                ones. Defaults to True.
            template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
                `"plain"`.
            parse_special: bool. Whether a special token that is written in a text becomes that
                token. Defaults to False.

        Returns:
            Float32 `(rows,)`.

        Raises:
            ValueError: If there is no preprocessor, the lists have different lengths, or an entry
                is neither a text nor messages.
        """
        options = {"ended": ended, "template": template, "parse_special": parse_special}
        return self.read_texts(prompts, responses, batch_size, **options).scores

    def read_texts(
        self, prompts: Any, responses: Any, batch_size: int = 32, **options: Any
    ) -> Scored:
        """Scores texts like `score`, with the same arguments.

        Returns:
            `Scored` with arrays `(rows,)`.
        """
        require_int("batch_size", batch_size, minimum=1)
        if self.preprocessor is None:
            raise ValueError(
                "Scoring texts needs a tokenizer. Build the reward model from a CausalLM with a "
                f"preprocessor, or pass `{type(self).__name__}(..., preprocessor=...)`."
            )
        limit = self.limits().positions
        heads, tails = inputs.encode_pairs(
            prompts, responses, self.preprocessor, limit or sys.maxsize, **options
        )
        # One array `(rows, length)` for all texts, so that `read` is compiled for one shape.
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        ids, mask = tokens.padded(rows, tokens.padded_length(max(map(len, rows)), limit))
        self.limits().check_ids(ids, mask)
        prompt_lengths = [len(head) for head in heads]
        scored = self._read_in_batches(ids, mask, prompt_lengths, batch_size)
        # A score that is not finite would spread to the whole batch.
        require_finite_scores(scored.scores, f"The {type(self).__name__}")
        return Scored(*(x.sum(axis=1) for x in scored)) if self.is_per_token else scored

    def _read_in_batches(
        self, token_ids: np.ndarray, padding_mask: np.ndarray, prompt_lengths: list, size: int
    ) -> Scored:
        """Applies `read`, compiled once for one shape."""
        if self._read_function is None:
            self._read_function = replica.compiled(self.read)
        columns = token_ids, padding_mask, np.asarray(prompt_lengths, "int32")
        return Scored(*replica.in_batches(self._read_function, columns, size))

    def normalize(
        self,
        prompts: Any,
        mean: float = 0.0,
        std: float | None = 1.0,
        *,
        responses: Any = None,
        ended: bool | Sequence[bool] = True,
        policy: keras.Model | None = None,
        sampler: Sampler | int | None = None,
        seed: int = 0,
        template: str | Callable = "plain",
        parse_special: bool = False,
    ) -> tuple[float, float]:
        """Sets gain and bias so that scores of responses have a mean and a standard deviation.

        gain = std / sigma_data, bias = mean - gain * mu_data (detail N9). With `std=None` only
        the mean is moved (detail P15). In an ensemble, each member is normalized first, so that
        all have one scale, and then the ensemble.

        Args:
            prompts: list of strings or of lists of messages. A few hundred are a stable estimate.
            mean: float. Mean of the scores. Defaults to 0.
            std: float, above 0, or None. Standard deviation of the scores; None keeps the gain.
                Defaults to 1.
            responses: list of strings, one per prompt. Defaults to samples from `policy`.
            ended: bool or bools `(rows,)`. As in `score`, for given responses; for samples it is
                known. Defaults to True.
            policy: `ActorCritic` or keras-hub `CausalLM`. Defaults to `initial_policy`: the
                language model that this model was made from, as it is now or as its preset is.
            sampler: `Sampler`, or an int for `Sampler(length)`. For samples. Defaults to 32 tokens.
            seed: int, at least 0. Of the samples. Defaults to 0.
            template: as in `score`.
            parse_special: as in `score`.

        Returns:
            The new gain and bias.

        Raises:
            ValueError: If there are neither responses nor a policy to sample them from, all scores
                are equal, or this is a process reward model, whose scores are log odds with a zero
                of their own.
        """
        if self.is_per_token:
            raise ValueError(
                "Scores of steps are log odds, which have a zero of their own: there is no gain or "
                "bias to set. To weigh them against the KL penalty use the trainer's "
                "`RewardShaping(scale=...)`."
            )
        require_number("mean", mean)
        if std is not None:
            require_number("std", std, above=0.0)
        if policy is not None:
            policy = getattr(policy, "causal_lm", policy)
            lm_adapter.check(policy)
        # A list once and for all: an iterator could not be read for samples and for every member.
        prompts = tokens.text_list(prompts, "prompts")
        options: dict[str, Any] = {"template": template, "parse_special": parse_special}
        if responses is None:
            # Samples of the initial policy, each with whether it ended (N9).
            policy = self.initial_policy if policy is None else policy
            if policy is None:
                raise ValueError(
                    "`normalize` needs responses of the initial policy. Pass `responses=` or "
                    "`policy=` (an ActorCritic), or build the reward model with `from_causal_lm` "
                    "or from the preset of a language model."
                )
            responses, ended = generation.generate(
                policy,
                prompts,
                Sampler(length=32) if sampler is None else sampler,
                replica.stream(seed, "normalize"),
                return_ended=True,
                **options,
            )
        responses = tokens.text_list(responses, "responses")
        # Members first: the ensemble's scores are computed from theirs.
        for part in [*self.members, self]:
            scores = part.score(prompts, responses, ended=ended, **options)
            constants = part.score_scale.rescale(scores, mean, std)
        return constants
