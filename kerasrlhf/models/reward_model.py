"""A reward model: a language model's backbone that maps a text to one number."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasrlhf.losses import BradleyTerry
from kerasrlhf.metrics import PreferenceAccuracy
from kerasrlhf.models import lm_adapter, serialization, trunks
from kerasrlhf.models.score_scale import ScoreScale
from kerasrlhf.models.scorer import Scored, Scorer
from kerasrlhf.models.windows import columns_of_rows
from kerasrlhf.types import Tensor

_CONFIG = "reward_model.json"


@keras.saving.register_keras_serializable("kerasrlhf")
class RewardModel(Scorer):
    """Scores a prompt and response with the last real token's hidden state (details N1, N7).

    The last real token is the end token where there is one (P12); the head's outputs at other
    tokens are ignored (P13). `fit` takes preference pairs or rankings from
    `rlhf.data.preferences` and minimizes the Bradley-Terry loss, or another one of `rlhf.losses`
    that `compile` receives. The score is `gain * head + bias`; both constants are set by
    `normalize` (detail N9) and are not trained.

    Args:
        model: keras-hub `CausalLM` or backbone of a text family. It is used as it is and trained
            by `fit`, except for separate output embeddings, which are frozen because no score
            depends on them. `from_causal_lm` makes a copy.
        preprocessor: keras-hub preprocessor for scoring texts. Defaults to the CausalLM's own.
        initial_policy: keras-hub `CausalLM`, or a callable that returns one: the language model
            whose responses `normalize` samples. Defaults to None.

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

    def __init__(
        self,
        model: keras.Model,
        preprocessor: Any = None,
        initial_policy: keras.Model | Callable[[], keras.Model] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            preprocessor or getattr(model, "preprocessor", None), initial_policy, **kwargs
        )
        self.backbone = trunks.checked_backbone(model, self.preprocessor)
        self.score_head = trunks.score_head(self.backbone)
        self.score_scale = ScoreScale(name="score_scale")
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the backbone and the preprocessor."""
        parts = {"model": self.backbone, "preprocessor": self.preprocessor}
        parts = {name: serialization.to_config(x) for name, x in parts.items()}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RewardModel:
        """Returns a reward model with the backbone of `get_config`, and fresh weights.

        Args:
            config: dict, as from `get_config`.
        """
        names = ("model", "preprocessor")
        parts = {name: serialization.from_config(config[name]) for name in names}
        return cls(**{**config, **parts})

    @classmethod
    def from_causal_lm(cls, causal_lm: keras.Model, **kwargs: Any) -> RewardModel:
        """Returns a reward model that starts from a copy of `causal_lm`'s backbone.

        Args:
            causal_lm: keras-hub `CausalLM`. It is the initial policy of `normalize`.
            **kwargs: of `keras.Model`.
        """
        backbone = trunks.trainable_copy(causal_lm)
        return cls(backbone, causal_lm.preprocessor, causal_lm, **kwargs)

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> RewardModel:
        """Loads a folder of `save_to_preset`, or starts from any language model's preset.

        Args:
            preset: keras-hub name or handle, or a local folder.
            **kwargs: of keras-hub's `from_preset`, for example `dtype="mixed_bfloat16"`.
        """
        trunk = trunks.load_trunk(preset, _CONFIG, **kwargs)
        reward = cls(trunk.backbone, trunk.preprocessor, trunk.initial_policy)
        if trunk.head is not None:
            keras.saving.load_weights(reward.score_head, trunk.head)
            reward.gain.assign(trunk.constants["gain"])
            reward.bias.assign(trunk.constants["bias"])
        return reward

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes backbone, preprocessor, head, gain and bias.

        A folder that is new appears in one piece; in one that exists, only the files of a preset
        are replaced. LoRA adapters are merged; those of quantized layers are written unmerged,
        and `from_preset` restores them.

        Args:
            preset_dir: path of the folder.
        """
        constants = {"gain": float(self.gain.numpy()), "bias": float(self.bias.numpy())}
        trunks.save_trunk(
            preset_dir, _CONFIG, self.backbone, self.preprocessor, self.score_head, constants
        )

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes one score per row."""
        token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
        # Candidates become rows: `(batch * candidates, length)`.
        shape = ops.shape(token_ids)
        token_ids = ops.reshape(token_ids, (-1, shape[-1]))
        padding_mask = ops.reshape(padding_mask, (-1, shape[-1]))
        hidden = lm_adapter.hidden_states(self.backbone, token_ids, padding_mask)
        # The last real token (N7); clipped for rows that have none.
        last = ops.maximum(ops.sum(ops.cast(padding_mask, "int32"), axis=-1) - 1, 0)
        state = columns_of_rows(hidden, last)
        # Back to `(batch,)` or `(batch, candidates)`.
        return ops.reshape(self.score_scale(self.score_head(state)), shape[:-1])

    def compute_output_shape(self, input_shape: dict[str, tuple]) -> tuple:
        """Returns the shape of the scores."""
        return input_shape["token_ids"][:-1]

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> Scored:
        """Scores rows, with a spread of 0."""
        scores = self({"token_ids": token_ids, "padding_mask": padding_mask})
        return Scored(scores, ops.zeros_like(scores))

    def backbones(self) -> list[keras.Model]:
        """Returns the backbone, in a list."""
        return [self.backbone]

    def fit_defaults(self) -> dict[str, Any]:
        """Returns the Bradley-Terry loss, and the accuracy of preferences."""
        return {"loss": BradleyTerry(), "metrics": [PreferenceAccuracy()]}
