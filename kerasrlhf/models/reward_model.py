"""A reward model: a language model's backbone that gives a text one number."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import files, replica, tokens
from kerasrlhf.losses import BradleyTerry
from kerasrlhf.metrics import PreferenceAccuracy
from kerasrlhf.models import lm_adapter, loading
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.scalar_head import ScalarHead
from kerasrlhf.types import Sampler

_CONFIG = "reward_model.json"
_HEAD = "reward_model.weights.h5"


@keras.saving.register_keras_serializable("kerasrlhf")
class RewardModel(keras.Model):
    """Scores a prompt and response with the last real token's hidden state (details N1, N7).

    That is the end token where there is one (P12); what the head makes of others is not read (P13).
    `fit` takes preference pairs as `rlhf.data.preferences` gives them and minimises the
    Bradley-Terry loss. The score is `gain * head + bias`; both constants are set by `normalize`
    (detail N9) and are not trained.

    Args:
        model: keras-hub `CausalLM` or backbone of a text family. It is used as it is and trained
            by `fit`, all but its output embeddings where these are weights of their own (no score
            depends on them; they are frozen). `from_causal_lm` makes a copy.
        preprocessor: keras-hub preprocessor for scoring texts; default: the CausalLM's own.

    Call arguments:
        inputs: dict of `token_ids` int32 and `padding_mask`, both `(batch, length)` or
            `(batch, candidates, length)`, right-padded.

    Returns:
        Scores float32 `(batch,)` or `(batch, candidates)`.

    Example:
        >>> import kerasrlhf as rlhf
        >>> reward = rlhf.RewardModel.from_preset(rlhf.presets.TINY_STORIES)
        >>> reward.score(["Tom was sad."], [" He cried."]).shape
        (1,)

    Reference:
        Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2;
        details N7, N8, N9, P11.
    """

    def __init__(self, model: keras.Model, preprocessor: Any = None, **kwargs: Any):
        super().__init__(**kwargs)
        backbone = getattr(model, "backbone", None) or model
        lm_adapter.check_backbone(backbone)
        lm_adapter.freeze_unread(backbone)
        self.backbone = backbone
        self.preprocessor = preprocessor or getattr(model, "preprocessor", None)
        self.score_head = ScalarHead("score", name="score_head")
        self.score_head.build((None, lm_adapter.width(backbone)))
        self.gain = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="gain", dtype="float32"
        )
        self.bias = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="bias", dtype="float32"
        )
        self._policy = None
        self._score_function = None
        self.built = True

    @classmethod
    def from_causal_lm(cls, causal_lm: keras.Model) -> RewardModel:
        """A reward model that starts from a copy of `causal_lm`'s backbone."""
        lm_adapter.check(causal_lm)
        backbone = lm_adapter.copy(causal_lm.backbone)
        backbone.trainable = True
        reward = cls(backbone, preprocessor=causal_lm.preprocessor)
        # Behind a function, so that Keras does not track the policy as a part of this model.
        reward._policy = lambda: causal_lm
        return reward

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> RewardModel:
        """Loads a folder of `save_to_preset`, or starts from any language model's preset.

        Args:
            preset: keras-hub name or handle, or a local folder.
            **kwargs: to keras-hub's `from_preset`, for example `dtype="bfloat16"`.
        """
        folder = pathlib.Path(preset)
        if not (folder / _CONFIG).is_file():
            reward = cls(loading.load_causal_lm(preset, **kwargs))
            # Loaded anew when asked for: the model above is trained, and a copy would cost memory.
            reward._policy = lambda: loading.load_causal_lm(preset, **kwargs)
            return reward
        constants = files.read_json(folder / _CONFIG)
        backbone = loading.load_backbone(folder, **kwargs)
        reward = cls(backbone, loading.load_preprocessor(folder))
        keras.saving.load_weights(reward.score_head, folder / _HEAD)
        reward.gain.assign(constants["gain"])
        reward.bias.assign(constants["bias"])
        return reward

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes backbone, preprocessor, head, gain and bias; the folder appears in one piece."""
        with files.replacing(preset_dir) as folder:
            self.backbone.save_to_preset(str(folder))
            if self.preprocessor is not None:
                self.preprocessor.save_to_preset(str(folder))
            keras.saving.save_weights(self.score_head, folder / _HEAD)
            constants = {"gain": float(self.gain.numpy()), "bias": float(self.bias.numpy())}
            files.write_json(folder / _CONFIG, constants)

    def compile(self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs):
        """`keras.Model.compile` with the Bradley-Terry loss and the pair accuracy as defaults."""
        lm_adapter.check_adapters(self.backbone)
        if replica.is_distributed(self.distribute_strategy):
            # Keras would compile around the replicas, which XLA cannot.
            kwargs.setdefault("jit_compile", False)
        metrics = [PreferenceAccuracy()] if metrics is None else metrics
        super().compile(optimizer, loss=loss or BradleyTerry(), metrics=metrics, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """As in Keras, which averages a batch over replicas here; masks have no average."""
        if iterator is not None and replica.is_distributed(self.distribute_strategy):
            for _, _, batches in iterator:
                data_batch = replica.gather(self.distribute_strategy, next(batches))
                break
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def call(self, inputs):
        token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
        shape = ops.shape(token_ids)
        token_ids = ops.reshape(token_ids, (-1, shape[-1]))
        padding_mask = ops.reshape(padding_mask, (-1, shape[-1]))
        hidden = lm_adapter.hidden_states(self.backbone, token_ids, padding_mask)
        last = ops.maximum(ops.sum(ops.cast(padding_mask, "int32"), axis=-1) - 1, 0)
        state = ops.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        scores = self.gain * self.score_head(state) + self.bias
        return ops.reshape(scores, shape[:-1])

    def compute_output_shape(self, input_shape):
        return input_shape["token_ids"][:-1]

    def score(self, prompts: Any, responses: Any, batch_size: int = 32) -> np.ndarray:
        """Scores of texts.

        Args:
            prompts: list of strings.
            responses: list of strings, one a prompt.
            batch_size: int, rows that are read at once.

        Returns:
            Float32 `(rows,)`.

        Raises:
            ValueError: no preprocessor, lists of different lengths, or entries that are no text.
        """
        if self.preprocessor is None:
            raise ValueError(
                "Scoring texts needs a tokenizer. Build the reward model from a CausalLM with a "
                "preprocessor, or pass `RewardModel(backbone, preprocessor=...)`."
            )
        prompts, responses = list(prompts), list(responses)
        if len(prompts) != len(responses) or not prompts:
            raise ValueError(
                "Expected as many responses as prompts, and at least one. Received "
                f"{len(prompts)} prompts and {len(responses)} responses."
            )
        heads = tokens.encode(prompts, self.preprocessor)
        tails = tokens.tokenize(responses, self.preprocessor)
        limit = getattr(self.backbone, "max_sequence_length", None)
        rows = [(a + b)[-limit:] if limit else a + b for a, b in zip(heads, tails, strict=True)]
        ids, mask = (x[:, :limit] for x in tokens.padded(rows, multiple=32))
        return self.score_ids(ids, mask, batch_size=batch_size)

    def score_ids(self, token_ids: Any, padding_mask: Any, batch_size: int = 32) -> np.ndarray:
        """Scores float32 `(rows,)` of token rows `(rows, length)`, in batches of one shape."""
        if self._score_function is None:
            self._score_function = replica.compiled(
                lambda ids, mask: self({"token_ids": ids, "padding_mask": mask})
            )
        rows = len(token_ids)
        # The last batch is filled with copies of row 0, so that one shape is compiled.
        order = np.arange(-(-rows // batch_size) * batch_size)
        order[rows:] = 0
        batches = order.reshape(-1, batch_size)
        ids, mask = np.asarray(token_ids, "int32"), np.asarray(padding_mask, bool)
        scores = [
            self._score_function(*map(ops.convert_to_tensor, (ids[b], mask[b]))) for b in batches
        ]
        return np.concatenate([np.asarray(s) for s in scores])[:rows]

    def normalize(
        self,
        prompts: Any,
        mean: float = 0.0,
        std: float | None = 1.0,
        *,
        responses: Any = None,
        policy: Any = None,
        sampler: Sampler | None = None,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Sets gain and bias so that the responses' scores have a given mean and deviation.

        gain = std / sigma_data, bias = mean - gain * mu_data (detail N9). With `std=None` only
        the mean is moved (detail P15).

        Args:
            prompts: list of strings; a few hundred give a steady estimate.
            mean: target mean of the scores.
            std: target standard deviation, or None to leave the gain alone.
            responses: list of strings, one a prompt. None: sampled from `policy`.
            policy: an `ActorCritic`-like object with `generate`, or None: the language model that
                this reward model was made from, as it is now or as its preset gives it.
            sampler: for sampled responses; default `Sampler(length=32)`.
            seed: of the sampling.

        Returns:
            The new gain and bias.

        Raises:
            ValueError: no responses and no policy to sample them from; scores without variance.
        """
        if responses is None:
            responses = self._sampled_responses(prompts, policy, sampler, seed)
        raw = (self.score(prompts, responses) - float(self.bias.numpy())) / float(self.gain.numpy())
        gain = float(self.gain.numpy())
        if std is not None:
            if not raw.std() > 0:
                raise ValueError(
                    f"All {len(raw)} scores are equal, so no gain gives them a deviation of {std}. "
                    "Pass more prompts, or `std=None` to move the mean alone."
                )
            gain = std / float(raw.std())
        self.gain.assign(gain)
        self.bias.assign(mean - gain * float(raw.mean()))
        return float(self.gain.numpy()), float(self.bias.numpy())

    def _sampled_responses(self, prompts, policy, sampler, seed):
        if policy is None:
            if self._policy is None:
                raise ValueError(
                    "`normalize` needs responses of the initial policy. Pass `responses=` or "
                    "`policy=` (an ActorCritic), or build the reward model with `from_causal_lm` "
                    "or from the preset of a language model."
                )
            policy = ActorCritic(self._policy())
        return policy.generate(list(prompts), sampler or Sampler(length=32), seed=seed)
