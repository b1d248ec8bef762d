"""What all reward models have in common: from token rows and texts to scores."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kerasrlhf import replica, tokens
from kerasrlhf.data import inputs
from kerasrlhf.data.limits import Limits
from kerasrlhf.losses import BradleyTerry
from kerasrlhf.metrics import PreferenceAccuracy
from kerasrlhf.models import fitting, lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.precision import check_optimizer
from kerasrlhf.types import Sampler, require_finite_scores, require_int, require_number


class Scored(NamedTuple):
    """Scores of responses, float32.

    scores: `(batch,)`, one a response; of a process reward model `(batch, length)`, each at the
        token where a step ends, 0 elsewhere.
    spread: the same shape. Standard deviation between the members of an ensemble; 0 of one model.
    """

    scores: Any
    spread: Any


class Scorer(fitting.FittedModel):
    """A model that scores responses: what a trainer takes as `reward` beside Python functions.

    Final classes define `call`, which is what `fit` trains, and these hooks:

        read(token_ids, padding_mask, prompt_lengths) -> Scored     pure, compiled with XLA
        backbones() -> list of keras-hub backbones
        scaled_parts() -> list of models whose gain and bias `normalize` sets, one after the other

    Args:
        preprocessor: keras-hub preprocessor for scoring texts, or None.
    """

    is_per_token = False
    """Whether `read` gives scores `(batch, length)`."""

    trains_on = ("preferences",)

    def __init__(self, preprocessor: Any = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.preprocessor = preprocessor
        self._policy = None
        self._read_function = None

    def read(self, token_ids: Any, padding_mask: Any, prompt_lengths: Any) -> Scored:
        """Scores of rows that hold a prompt and a response.

        Args:
            token_ids: int32 `(batch, length)`, right-padded.
            padding_mask: bool `(batch, length)`.
            prompt_lengths: int32 `(batch,)`, in tokens.
        """
        raise NotImplementedError

    def backbones(self) -> list[keras.Model]:
        """The networks that read the tokens."""
        raise NotImplementedError

    @property
    def vocabulary_size(self) -> int:
        """How many token ids can be read."""
        return min(backbone.vocabulary_size for backbone in self.backbones())

    def scaled_parts(self) -> list[Scorer]:
        """Models with a gain and a bias, the last one `self`."""
        raise NotImplementedError

    def fit_defaults(self) -> dict[str, Any]:
        """Loss and metrics of `compile` where the caller gives none."""
        return {"loss": BradleyTerry(), "metrics": [PreferenceAccuracy()]}

    def compile(self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs):
        """`keras.Model.compile` with the loss and the accuracy of this kind of model as defaults.

        These are the Bradley-Terry loss and the pair accuracy, or a process reward model's own.
        """
        for backbone in self.backbones():
            lm_adapter.check_adapters(backbone)
        fitting.check_scope(self.distribute_strategy, type(self).__name__, self.variables)
        check_optimizer(optimizer, self.trainable_variables)
        if replica.is_distributed(self.distribute_strategy):
            # Keras would compile around the replicas, which XLA cannot.
            kwargs.setdefault("jit_compile", False)
        given = {"loss": loss, "metrics": metrics, **kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        super().compile(optimizer, **{**self.fit_defaults(), **given})

    def limits(self) -> Limits:
        return Limits.of(self.backbones(), self.preprocessor)

    def score(
        self,
        prompts: Any,
        responses: Any,
        batch_size: int = 32,
        *,
        ended: Any = True,
        template: Any = "plain",
        parse_special: bool = False,
    ) -> np.ndarray:
        """Scores texts; of a process reward model the scores are sums over steps.

        A row is made as `data.preferences` makes it. One that is too long for the model loses the
        beginning of its prompt, with a warning.

        Args:
            prompts: list of strings or of lists of messages.
            responses: list of strings or of lists of messages, one per prompt.
            batch_size: int, rows that are read at once.
            ended: bool, or bools `(rows,)`. Whole responses are read with the end token that
                `data.preferences` gives them; False is for those without one, which a trainer
                samples where it cuts them off or stops at another token.
            template: how messages become a text, see `data.dialogue`.
            parse_special: whether a special token that is written in a text becomes that token.

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
        """Scores texts, as `score` with the same options; arrays `(rows,)` and their spread."""
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
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        ids, mask = tokens.padded(rows, tokens.padded_length(max(map(len, rows)), limit))
        self.limits().check_ids(ids, mask)
        starts = [len(head) for head in heads]
        scored = self._read_in_batches(ids, mask, starts, batch_size)
        require_finite_scores(scored.scores, f"The {type(self).__name__}")
        return Scored(*(x.sum(axis=1) for x in scored)) if self.is_per_token else scored

    def _read_in_batches(self, token_ids, padding_mask, prompt_lengths, size):
        """`read` compiled once, for one shape: the last batch is filled with copies of row 0."""
        if self._read_function is None:
            self._read_function = replica.compiled(self.read)
        rows = len(token_ids)
        order = np.arange(-(-rows // size) * size)
        order[rows:] = 0
        columns = token_ids, padding_mask, np.asarray(prompt_lengths, "int32")
        read = [
            self._read_function(*(ops.convert_to_tensor(column[batch]) for column in columns))
            for batch in order.reshape(-1, size)
        ]
        joined = (np.concatenate([np.asarray(x) for x in part]) for part in zip(*read, strict=True))
        return Scored(*(x[:rows] for x in joined))

    def _add_scale(self) -> None:
        options = {"shape": (), "trainable": False, "dtype": "float32"}
        self.gain = self.add_weight(initializer="ones", name="gain", **options)
        self.bias = self.add_weight(initializer="zeros", name="bias", **options)

    def normalize(
        self,
        prompts: Any,
        mean: float = 0.0,
        std: float | None = 1.0,
        *,
        responses: Any = None,
        ended: Any = True,
        policy: Any = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        template: Any = "plain",
        parse_special: bool = False,
    ) -> tuple[float, float]:
        """Sets gain and bias so that the responses' scores have a given mean and deviation.

        gain = std / sigma_data, bias = mean - gain * mu_data (detail N9). With `std=None` only
        the mean is moved (detail P15). An ensemble does so with every member first, so that they
        speak of one scale, and then with itself.

        Args:
            prompts: list of strings or of lists of messages; a few hundred are a steady estimate.
            mean: target mean of the scores.
            std: target standard deviation, or None to leave the gain alone.
            responses: list of strings, one per prompt. None: sampled from `policy`.
            ended: as in `score`, for given responses; of sampled ones it is known.
            policy: an `ActorCritic`, or None: the language model that this reward model was made
                from, as it is now or as its preset gives it.
            sampler: for sampled responses; default `Sampler(length=32)`.
            seed: of the sampling.
            template: as in `score`.
            parse_special: as in `score`.

        Returns:
            The new gain and bias.

        Raises:
            ValueError: no responses and no policy to sample them from; scores without variance; a
                process reward model, whose scores are log odds with a zero of their own.
        """
        parts = self.scaled_parts()
        require_number("mean", mean)
        if std is not None:
            require_number("std", std, above=0.0)
        if policy is not None and not isinstance(policy, ActorCritic):
            raise ValueError(
                "`policy` must be an ActorCritic, for example `ActorCritic.from_causal_lm(lm)`. "
                f"Received: {policy!r} of type {type(policy).__name__}."
            )
        prompts = tokens.text_list(prompts, "prompts")
        options = {"template": template, "parse_special": parse_special}
        if responses is None:
            responses, ended = self._sampled_responses(prompts, policy, sampler, seed, options)
        responses = tokens.text_list(responses, "responses")
        for part in parts:
            part._rescale(part.score(prompts, responses, ended=ended, **options), mean, std)
        return float(self.gain.numpy()), float(self.bias.numpy())

    def _rescale(self, scores, mean, std):
        """Sets gain and bias from scores that were made with the present ones."""
        gain, bias = float(self.gain.numpy()), float(self.bias.numpy())
        raw = (scores - bias) / gain
        if std is not None:
            if not raw.std() > 0:
                raise ValueError(
                    f"All {len(raw)} scores are equal, so no gain gives them a deviation of {std}. "
                    "Pass more prompts, or `std=None` to move the mean alone."
                )
            gain = std / float(raw.std())
        self.gain.assign(gain)
        self.bias.assign(mean - gain * float(raw.mean()))

    def _sampled_responses(self, prompts, policy, sampler, seed, options):
        if policy is None:
            if self._policy is None:
                raise ValueError(
                    "`normalize` needs responses of the initial policy. Pass `responses=` or "
                    "`policy=` (an ActorCritic), or build the reward model with `from_causal_lm` "
                    "or from the preset of a language model."
                )
            policy = ActorCritic(self._policy())
        sampler = sampler or Sampler(length=32)
        stream = replica.stream(seed, "normalize")
        return policy.generate(prompts, sampler, seed=stream, return_ended=True, **options)
