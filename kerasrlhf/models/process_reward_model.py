"""A process reward model: a number for every step of a response."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import tokens
from kerasrlhf.functional import masking
from kerasrlhf.losses import StepCrossEntropy
from kerasrlhf.models import lm_adapter, trunks
from kerasrlhf.models.scorer import Scored, Scorer
from kerasrlhf.types import Tensor

_CONFIG = "process_reward_model.json"


class ProcessRewardModel(Scorer):
    r"""Scores every step of a response at the token where it ends.

    A step ends at the token whose text contains the separator, and the last step at the last
    token of the response. The score is the log odds of the step being right: 0 means that both
    are equally likely. Trainers add each score to the reward of its token.
    `fit` takes steps from `rlhf.data.stepwise`; with the same separator there, scores are used at
    the positions that were trained.

    Args:
        model: keras-hub `CausalLM` or backbone, as for `RewardModel`.
        preprocessor: keras-hub preprocessor, whose tokenizer determines where steps end. Defaults
            to the CausalLM's own.
        separator: str, separates steps. Some token has to contain it. Defaults to a line break.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: dict of `token_ids` int32 and `padding_mask`, both `(batch, length)`,
            right-padded.

    Returns:
        Log odds float32 `(batch, length)` of every token; meaningful where steps end.

    Raises:
        ValueError: If there is no tokenizer, or none of its tokens contains the separator.

    Example:
        >>> import kerasrlhf as rlhf
        >>> reward = rlhf.ProcessRewardModel.from_preset(rlhf.presets.TINY_STORIES)
        >>> reward.score(["Tom was sad."], [" He cried.\n He slept."]).shape  # a sum of two
        (1,)

    Reference:
        Lightman et al. 2023, arXiv 2305.20050; Wang et al. 2023, "Math-Shepherd", arXiv 2312.08935
        (rewards per step in PPO).
    """

    is_per_token = True
    trains_on: tuple[str, ...] = ("stepwise",)

    def __init__(
        self,
        model: keras.Model,
        preprocessor: Any = None,
        separator: str = "\n",
        **kwargs: Any,
    ) -> None:
        if not isinstance(separator, str):
            raise ValueError(f"`separator` must be a string. Received: {separator!r}.")
        super().__init__(preprocessor or getattr(model, "preprocessor", None), **kwargs)
        self.backbone = trunks.checked_backbone(model, self.preprocessor)
        self.score_head = trunks.score_head(self.backbone)
        self.separator = separator
        self._separates, self._is_empty = self._kinds_of_tokens()
        self.built = True

    def _kinds_of_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns which tokens contain the separator, and which have no text, bool `(vocab,)`."""
        if self.preprocessor is None:
            raise ValueError(
                "A process reward model finds the ends of steps by its tokenizer. Build it from a "
                "CausalLM with a preprocessor, or pass `preprocessor=...`."
            )
        size = self.preprocessor.tokenizer.vocabulary_size()
        # Decode tokens after another one: some tokenizers leave out the first blank of a text.
        before = tokens.tokenize(["a"], self.preprocessor) * size
        texts = tokens.detokenize([[i] for i in range(size)], self.preprocessor, after=before)
        separates = [bool(self.separator) and self.separator in text for text in texts]
        if not any(separates):
            raise ValueError(
                f"No token of the tokenizer holds the separator {self.separator!r}, so no step "
                "would ever end at it. Choose a text that is one token, such as a line break."
            )
        # Some models have more embeddings than tokens; the rest neither separate nor are empty.
        rest = (0, max(self.backbone.vocabulary_size - size, 0))
        return np.pad(separates, rest), np.pad([not text for text in texts], rest)

    @classmethod
    def from_causal_lm(cls, causal_lm: keras.Model, **kwargs: Any) -> ProcessRewardModel:
        """Returns a process reward model that starts from a copy of `causal_lm`'s backbone.

        Args:
            causal_lm: keras-hub `CausalLM`.
            **kwargs: further arguments of the class, such as `separator`.
        """
        return cls(trunks.trainable_copy(causal_lm), causal_lm.preprocessor, **kwargs)

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> ProcessRewardModel:
        """Loads a folder of `save_to_preset`, or starts from any language model's preset.

        Args:
            preset: keras-hub name or handle, or a local folder.
            **kwargs: of keras-hub's `from_preset`, for example `dtype="mixed_bfloat16"`.
        """
        trunk = trunks.load_trunk(preset, _CONFIG, **kwargs)
        reward = cls(trunk.backbone, trunk.preprocessor, **trunk.constants)
        if trunk.head is not None:
            keras.saving.load_weights(reward.score_head, trunk.head)
        return reward

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes backbone, preprocessor, head and separator.

        A folder that is new appears in one piece; in one that exists, only the files of a preset
        are replaced. LoRA adapters are merged; those of quantized layers are written unmerged,
        and `from_preset` restores them.

        Args:
            preset_dir: path of the folder.
        """
        constants = {"separator": self.separator}
        trunks.save_trunk(
            preset_dir, _CONFIG, self.backbone, self.preprocessor, self.score_head, constants
        )

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes the log odds of every token."""
        return self._token_scores(inputs["token_ids"], inputs["padding_mask"])

    def _token_scores(self, token_ids: Tensor, padding_mask: Tensor) -> Tensor:
        return self.score_head(lm_adapter.hidden_states(self.backbone, token_ids, padding_mask))

    def compute_output_shape(self, input_shape: dict[str, tuple]) -> tuple:
        """Returns the shape of the log odds."""
        return input_shape["token_ids"]

    def step_ends(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
        """Returns where the steps of responses end, bool `(batch, length)`.

        Args:
            token_ids: int32, `(batch, length)`, right-padded.
            padding_mask: bool, `(batch, length)`.
            prompt_lengths: int32, `(batch,)`, in tokens.
        """
        # True on the response, `(batch, length)`.
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None]
        inside = ops.cast(padding_mask, "bool") & (positions >= prompt_lengths[:, None])
        separates, is_empty = (
            ops.take(ops.convert_to_tensor(x), token_ids) for x in (self._separates, self._is_empty)
        )

        def before(mask: Tensor) -> Tensor:
            # Shift to the right by one: each token sees its predecessor.
            return ops.pad(mask[:, :-1], [[0, 0], [1, 0]])

        # A run of separators ends one step, and one that opens a response ends none.
        ends = inside & separates & before(inside & ~separates)
        # The end token after the last separator is no step, unless there is no other.
        is_over = (separates | is_empty) & before(inside & separates)
        is_over = is_over & ops.any(ends, axis=1, keepdims=True)
        return ends | (masking.last_true_mask(inside) & ~is_over)

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> Scored:
        """Scores the steps of rows, each at the token where it ends."""
        scores = self._token_scores(token_ids, padding_mask)
        ends = self.step_ends(token_ids, padding_mask, prompt_lengths)
        scores = masking.zero_outside(scores, ends)
        return Scored(scores, ops.zeros_like(scores))

    def backbones(self) -> list[keras.Model]:
        """Returns the backbone, in a list."""
        return [self.backbone]

    def fit_defaults(self) -> dict[str, Any]:
        """Returns the cross entropy of steps, and their accuracy."""
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
        return {"loss": StepCrossEntropy(), "weighted_metrics": [accuracy]}
