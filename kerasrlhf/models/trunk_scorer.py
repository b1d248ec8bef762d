"""A reward model of one network: a language model's backbone and a head."""

from __future__ import annotations

import pathlib
from typing import Any

import keras

from kerasrlhf import files
from kerasrlhf.models import lm_adapter, loading
from kerasrlhf.models.scalar_head import ScalarHead
from kerasrlhf.models.scorer import Scorer

_HEAD = "reward_model.weights.h5"


class TrunkScorer(Scorer):
    """A `Scorer` with a backbone and a head, in memory and on disk.

    Final classes define two more hooks, and the name of the file that marks their folders:

        constants() -> dict                                 what is saved as JSON
        assembled(backbone, preprocessor, constants)        a class method: the model again

    Args:
        model: keras-hub `CausalLM` or backbone of a text family. It is used as it is and trained
            by `fit`, all but its output embeddings where these are weights of their own (no score
            depends on them; they are frozen). `from_causal_lm` makes a copy.
        preprocessor: keras-hub preprocessor for scoring texts; default: the CausalLM's own.
    """

    config_file = ""

    def __init__(self, model: keras.Model, preprocessor: Any = None, **kwargs: Any):
        super().__init__(preprocessor or getattr(model, "preprocessor", None), **kwargs)
        backbone = getattr(model, "backbone", None) or model
        lm_adapter.check_backbone(backbone)
        lm_adapter.check_preprocessor(backbone, self.preprocessor)
        lm_adapter.freeze_unread(backbone)
        self.backbone = backbone
        self.score_head = ScalarHead("score", name="score_head")
        self.score_head.build((None, lm_adapter.width(backbone)))

    def constants(self) -> dict[str, Any]:
        """What a saved model needs in addition to its weights."""
        raise NotImplementedError

    @classmethod
    def assembled(cls, backbone: keras.Model, preprocessor: Any, constants: dict) -> TrunkScorer:
        """A model of saved parts, its head not yet loaded."""
        raise NotImplementedError

    @classmethod
    def from_causal_lm(cls, causal_lm: keras.Model, **options: Any) -> TrunkScorer:
        """A reward model that starts from a copy of `causal_lm`'s backbone.

        Args:
            causal_lm: keras-hub `CausalLM`.
            **options: further arguments of the class.
        """
        lm_adapter.check(causal_lm)
        backbone = lm_adapter.copy(causal_lm.backbone)
        backbone.trainable = True
        reward = cls(backbone, preprocessor=causal_lm.preprocessor, **options)
        # Behind a function, so that Keras does not track the policy as a part of this model.
        reward._policy = lambda: causal_lm
        return reward

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> TrunkScorer:
        """Loads a folder of `save_to_preset`, or starts from any language model's preset.

        Args:
            preset: keras-hub name or handle, or a local folder.
            **kwargs: to keras-hub's `from_preset`, for example `dtype="mixed_bfloat16"`.
        """
        folder = pathlib.Path(preset)
        if not (folder / cls.config_file).is_file():
            reward = cls(loading.load_causal_lm(preset, **kwargs))
            # Loaded again when asked for: the model above is trained, and a copy would cost memory.
            reward._policy = lambda: loading.load_causal_lm(preset, **kwargs)
            return reward
        backbone = loading.load_backbone(folder, **kwargs)
        constants = files.read_json(folder / cls.config_file)
        reward = cls.assembled(backbone, loading.load_preprocessor(folder), constants)
        keras.saving.load_weights(reward.score_head, folder / _HEAD)
        return reward

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes backbone, preprocessor, head and constants.

        A folder that is new appears in one piece; in one that exists, only the files of a preset
        are replaced.

        LoRA adapters are merged; those of quantized layers are written as they are and are put
        back by `from_preset`.
        """
        lm_adapter.check_preprocessor(self.backbone, self.preprocessor)
        with files.replacing_preset(preset_dir) as folder:
            self.backbone.save_to_preset(str(folder))
            if self.preprocessor is not None:
                self.preprocessor.save_to_preset(str(folder))
            keras.saving.save_weights(self.score_head, folder / _HEAD)
            files.write_json(folder / self.config_file, self.constants())

    def backbones(self) -> list[keras.Model]:
        return [self.backbone]

    def token_scores(self, token_ids: Any, padding_mask: Any) -> Any:
        """What the head makes of every token: float32 `(batch, length)`, padding included."""
        return self.score_head(lm_adapter.hidden_states(self.backbone, token_ids, padding_mask))
