"""The trunk of a reward model, a backbone with a score head: made, saved and loaded."""

from __future__ import annotations

import functools
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from kerasrlhf import files
from kerasrlhf.models import lm_adapter, loading
from kerasrlhf.models.windows import ScalarHead

_HEAD = "reward_model.weights.h5"


class Trunk(NamedTuple):
    """The parts of a reward model in a preset.

    backbone: keras-hub backbone.
    preprocessor: keras-hub preprocessor, or None.
    initial_policy: callable that loads the language model again, where the preset is one; None
        for a saved reward model.
    head: path of the score head's weights; None where the preset is a language model.
    constants: dict, as passed to `save_trunk`; empty where the preset is a language model.
    """

    backbone: keras.Model
    preprocessor: Any
    initial_policy: Callable[[], keras.Model] | None = None
    head: pathlib.Path | None = None
    constants: Mapping[str, Any] = types.MappingProxyType({})


def checked_backbone(model: keras.Model, preprocessor: Any) -> keras.Model:
    """Returns the backbone of a model for training; untied output embeddings are frozen.

    Args:
        model: keras-hub `CausalLM` or backbone of a text family.
        preprocessor: keras-hub preprocessor, or None.

    Raises:
        ValueError: If the model is of another family, or the preprocessor does not fit it.
    """
    backbone = getattr(model, "backbone", None) or model
    # Both checks also mend what the parts save.
    lm_adapter.check_backbone(backbone)
    lm_adapter.check_preprocessor(backbone, preprocessor)
    lm_adapter.freeze_unread(backbone)
    return backbone


def score_head(backbone: keras.Model) -> ScalarHead:
    """Returns a fresh score head (detail N8).

    Args:
        backbone: keras-hub backbone that the head belongs to.
    """
    head = ScalarHead("score", name="score_head")
    head.build((None, lm_adapter.width(backbone)))
    return head


def trainable_copy(causal_lm: keras.Model) -> keras.Model:
    """Returns a copy of a language model's backbone, all of it trainable.

    Args:
        causal_lm: keras-hub `CausalLM`.
    """
    lm_adapter.check(causal_lm)
    # `copy` freezes what it returns, as a reference needs it.
    backbone = lm_adapter.copy(causal_lm.backbone)
    backbone.trainable = True
    return backbone


def save_trunk(
    preset_dir: str | pathlib.Path,
    config_file: str,
    backbone: keras.Model,
    preprocessor: Any,
    head: ScalarHead,
    constants: dict[str, Any],
) -> None:
    """Writes a reward model to a preset folder.

    A folder that is new appears in one piece; in one that exists, only the files of a preset
    are replaced. LoRA adapters are merged; those of quantized layers are written unmerged, and
    `load_trunk` restores them.

    Args:
        preset_dir: path of the folder.
        config_file: str, name of the JSON file that marks the kind of model.
        backbone: keras-hub backbone.
        preprocessor: keras-hub preprocessor, or None.
        head: `ScalarHead`.
        constants: dict of JSON values that `load_trunk` returns.
    """
    lm_adapter.check_preprocessor(backbone, preprocessor)
    with files.replacing_preset(preset_dir) as folder:
        backbone.save_to_preset(str(folder))
        if preprocessor is not None:
            preprocessor.save_to_preset(str(folder))
        keras.saving.save_weights(head, folder / _HEAD)
        files.write_json(folder / config_file, constants)


def load_trunk(preset: str | pathlib.Path, config_file: str, **kwargs: Any) -> Trunk:
    """Loads a folder of `save_trunk`, or a language model's preset to start from.

    Args:
        preset: keras-hub name or handle, or a local folder.
        config_file: str, as in `save_trunk`.
        **kwargs: of keras-hub's `from_preset`, for example `dtype="mixed_bfloat16"`.
    """
    folder = pathlib.Path(preset)
    if not (folder / config_file).is_file():
        load = functools.partial(loading.load_causal_lm, preset, **kwargs)
        causal_lm = load()
        # The policy is loaded again when it is needed: this model is trained, and a copy would
        # cost memory.
        return Trunk(causal_lm.backbone, causal_lm.preprocessor, initial_policy=load)
    return Trunk(
        loading.load_backbone(folder, **kwargs),
        loading.load_preprocessor(folder),
        head=folder / _HEAD,
        constants=files.read_json(folder / config_file),
    )
