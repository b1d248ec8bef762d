"""A process reward model: a number for every step of a response."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import tokens
from kerasrlhf.functional import masking
from kerasrlhf.losses import StepCrossEntropy
from kerasrlhf.models.scorer import Scored, Scorer
from kerasrlhf.models.trunk_scorer import TrunkScorer


@keras.saving.register_keras_serializable("kerasrlhf")
class ProcessRewardModel(TrunkScorer):
    """Scores every step of a response at the token where it ends.

    A step ends at the token whose text holds the separator, and the last step at the last token
    of the response. The score is the log odds of the step being right, so 0 says nothing either
    way. Trainers add each score to the reward of its own token.
    `fit` takes steps as `rlhf.data.stepwise` gives them; with one separator for both, the places
    that are read are the places that were learned.

    Args:
        model: keras-hub `CausalLM` or backbone, as for `RewardModel`.
        preprocessor: keras-hub preprocessor; default: the CausalLM's own. Its tokenizer tells
            where steps end.
        separator: str, what stands between steps. One token must hold it.

    Call arguments:
        inputs: dict of `token_ids` int32 and `padding_mask`, both `(batch, length)`,
            right-padded.

    Returns:
        Log odds float32 `(batch, length)`, of every token; they mean something where steps end.

    Raises:
        ValueError: no tokenizer, or one that has no token with the separator.

    Example:
        >>> import kerasrlhf as rlhf
        >>> reward = rlhf.ProcessRewardModel.from_preset(rlhf.presets.TINY_STORIES)
        >>> reward.score(["Tom was sad."], [" He cried.\\n He slept."]).shape  # a sum of two
        (1,)

    Reference:
        Lightman et al. 2023, arXiv 2305.20050; Wang et al. 2023, "Math-Shepherd", arXiv 2312.08935
        (rewards per step in PPO).
    """

    config_file = "process_reward_model.json"
    is_per_token = True

    def __init__(
        self, model: keras.Model, preprocessor: Any = None, separator: str = "\n", **kwargs: Any
    ):
        if not isinstance(separator, str):
            raise ValueError(f"`separator` must be a string. Received: {separator!r}.")
        super().__init__(model, preprocessor, **kwargs)
        self.separator = separator
        self._separates, self._is_empty = self._kinds_of_tokens()
        self.built = True

    def _kinds_of_tokens(self):
        """Whether a token holds the separator and whether it has no text, bool `(vocabulary,)`."""
        if self.preprocessor is None:
            raise ValueError(
                "A process reward model finds the ends of steps by its tokenizer. Build it from a "
                "CausalLM with a preprocessor, or pass `preprocessor=...`."
            )
        size = self.preprocessor.tokenizer.vocabulary_size()
        # As they stand in a text: a row's first blank is not shown.
        before = tokens.tokenize(["a"], self.preprocessor) * size
        texts = tokens.detokenize([[i] for i in range(size)], self.preprocessor, after=before)
        separates = [bool(self.separator) and self.separator in text for text in texts]
        if not any(separates):
            raise ValueError(
                f"No token of the tokenizer holds the separator {self.separator!r}, so no step "
                "would ever end at it. Choose a text that is one token, such as a line break."
            )
        rest = (0, max(self.backbone.vocabulary_size - size, 0))
        return np.pad(separates, rest), np.pad([not text for text in texts], rest)

    def call(self, inputs):
        return self.token_scores(inputs["token_ids"], inputs["padding_mask"])

    def compute_output_shape(self, input_shape):
        return input_shape["token_ids"]

    def step_ends(self, token_ids: Any, padding_mask: Any, prompt_lengths: Any) -> Any:
        """Where the steps of responses end, bool `(batch, length)`.

        Args:
            token_ids: int32 `(batch, length)`, right-padded.
            padding_mask: bool `(batch, length)`.
            prompt_lengths: int32 `(batch,)`, in tokens.
        """
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")[None]
        inside = ops.cast(padding_mask, "bool") & (positions >= prompt_lengths[:, None])
        separates, is_empty = (
            ops.take(ops.convert_to_tensor(x), token_ids) for x in (self._separates, self._is_empty)
        )

        def before(mask):
            return ops.pad(mask[:, :-1], [[0, 0], [1, 0]])

        # A run of separators ends one step, and one that opens a response ends none.
        ends = inside & separates & before(inside & ~separates)
        # The end token behind the last separator is no step, unless there is no other.
        is_over = (separates | is_empty) & before(inside & separates)
        is_over = is_over & ops.any(ends, axis=1, keepdims=True)
        return ends | (masking.last_true_mask(inside) & ~is_over)

    def read(self, token_ids: Any, padding_mask: Any, prompt_lengths: Any) -> Scored:
        scores = self.token_scores(token_ids, padding_mask)
        ends = self.step_ends(token_ids, padding_mask, prompt_lengths)
        scores = masking.zero_outside(scores, ends)
        return Scored(scores, ops.zeros_like(scores))

    trains_on = ("stepwise",)

    def fit_defaults(self) -> dict[str, Any]:
        accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)
        return {"loss": StepCrossEntropy(), "weighted_metrics": [accuracy]}

    def scaled_parts(self) -> list[Scorer]:
        raise ValueError(
            "Scores of steps are log odds, which have a zero of their own: there is no gain or "
            "bias to set. To weigh them against the KL penalty use the trainer's `score_scale`."
        )

    def constants(self) -> dict[str, str]:
        return {"separator": self.separator}

    @classmethod
    def assembled(
        cls, backbone: keras.Model, preprocessor: Any, constants: dict
    ) -> ProcessRewardModel:
        return cls(backbone, preprocessor, **constants)
