"""Language models and their parts from preset folders and names."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import keras
import keras_hub

from kerasrlhf.models import lm_adapter


def load_causal_lm(preset: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """`CausalLM.from_preset` with its traps removed and a clear error.

    A local Hugging Face folder of a Llama model keeps its own `rms_norm_eps` (keras-hub's
    converter ignores it), and tied embeddings stay tied.

    Raises:
        ValueError: nothing that can be loaded is found under that name.
    """
    preset = str(preset)
    config = _huggingface_config(preset)
    try:
        if config and "rms_norm_eps" in config and "llama" in config.get("model_type", ""):
            backbone = keras_hub.models.Backbone.from_preset(
                preset, layer_norm_epsilon=config["rms_norm_eps"], **kwargs
            )
            kwargs = {"backbone": backbone}
        causal_lm = lm_adapter.task_class(preset).from_preset(preset, **kwargs)
    except ImportError as error:
        raise ValueError(
            f"The preset {preset!r} needs a package that is not installed: {error}. For a "
            'Hugging Face folder run `pip install "kerasrlhf[huggingface]"`.'
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(
            f"No language model could be loaded from the preset {preset!r}. Expected a built-in "
            "keras-hub name, a `kaggle://` or `hf://` handle, or a local folder in keras-hub's or "
            f"Hugging Face's format. The loader said: {error}"
        ) from error
    lm_adapter.check(causal_lm)
    return causal_lm


def _huggingface_config(preset: str) -> dict | None:
    """The `config.json` of a local Hugging Face folder, None for anything else."""
    path = pathlib.Path(preset) / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config if "model_type" in config else None


def load_backbone(preset: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """A backbone from a preset folder that `save_to_preset` wrote."""
    return keras_hub.models.Backbone.from_preset(str(preset), **kwargs)


def load_preprocessor(preset: str | pathlib.Path) -> Any:
    """The preprocessor of a preset folder, None when it holds none."""
    if not (pathlib.Path(preset) / "preprocessor.json").is_file():
        return None
    return keras_hub.models.CausalLMPreprocessor.from_preset(str(preset))
