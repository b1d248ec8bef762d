"""A reward model: a language model's backbone that gives a text one number."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasrlhf.models import lm_adapter
from kerasrlhf.models.scorer import Scored
from kerasrlhf.models.trunk_scorer import TrunkScorer


@keras.saving.register_keras_serializable("kerasrlhf")
class RewardModel(TrunkScorer):
    """Scores a prompt and response with the last real token's hidden state (details N1, N7).

    That is the end token where there is one (P12); what the head makes of others is not read (P13).
    `fit` takes preference pairs or rankings as `rlhf.data.preferences` gives them and minimizes
    the Bradley-Terry loss, or another of `rlhf.losses` that `compile` is given. The score is
    `gain * head + bias`; both constants are set by `normalize` (detail N9) and are not trained.

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

    config_file = "reward_model.json"

    def __init__(self, model: keras.Model, preprocessor: Any = None, **kwargs: Any):
        super().__init__(model, preprocessor, **kwargs)
        self._add_scale()
        self.built = True

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

    def read(self, token_ids: Any, padding_mask: Any, prompt_lengths: Any) -> Scored:
        scores = self({"token_ids": token_ids, "padding_mask": padding_mask})
        return Scored(scores, ops.zeros_like(scores))

    def scaled_parts(self) -> list[RewardModel]:
        return [self]

    def constants(self) -> dict[str, float]:
        return {"gain": float(self.gain.numpy()), "bias": float(self.bias.numpy())}

    @classmethod
    def assembled(cls, backbone: keras.Model, preprocessor: Any, constants: dict) -> RewardModel:
        reward = cls(backbone, preprocessor)
        reward.gain.assign(constants["gain"])
        reward.bias.assign(constants["bias"])
        return reward
