"""Language models and their parts from preset folders and names."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import keras
import keras_hub

from kerasrlhf.models import converting, lm_adapter, lora, mending

_FAILURES: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    OSError,
)
with contextlib.suppress(ImportError):  # which only Hugging Face folders need
    from safetensors import SafetensorError

    _FAILURES += (SafetensorError,)


def load_causal_lm(preset: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """Loads a language model like `CausalLM.from_preset`, and corrects what that loads wrong.

    A Hugging Face folder computes what its `config.json` says, even where keras-hub's converter
    ignores it (`converting`). A preset that was saved in mixed precision is loaded in it. A
    quantized model that was saved with LoRA adapters has them again, unmerged.

    Args:
        preset: built-in keras-hub name, `kaggle://` or `hf://` handle, or local folder.
        **kwargs: of `CausalLM.from_preset`, for example `dtype="mixed_bfloat16"`.

    Raises:
        ValueError: If nothing is found under that name, or it cannot be loaded or would compute
            something else. The message begins with the loader's own.
    """
    preset = str(preset)
    config = _config(preset)
    # Only configurations in Hugging Face's format have a model type.
    if "model_type" in config:
        converting.check(config)
    try:
        causal_lm = _load(preset, config, kwargs)
    except ImportError as error:
        raise ValueError(
            f"The preset {preset!r} needs a package that is not installed: {error}. For a "
            'Hugging Face folder run `pip install "kerasrlhf[huggingface]"`.'
        ) from error
    except _FAILURES as error:
        raise _broken(preset, error) from error
    lm_adapter.check(causal_lm)
    lora.load_quantized(causal_lm.backbone, preset)
    return causal_lm


def _config(preset: str) -> dict:
    """Returns the `config.json` of a preset, in keras-hub's or Hugging Face's format."""
    try:
        return lm_adapter.preset_config(preset)
    except _FAILURES as error:
        # A folder that exists is broken; otherwise the name is wrong.
        if (pathlib.Path(preset) / "config.json").is_file():
            raise _broken(preset, error) from error
        raise ValueError(
            f"{error}\nNo language model could be loaded from the preset {preset!r}. Expected a "
            "built-in keras-hub name, a `kaggle://` or `hf://` handle, or a local folder in "
            "keras-hub's or Hugging Face's format, which has a `config.json`."
        ) from error


def _broken(preset: str, error: Exception) -> ValueError:
    said = str(error) if isinstance(error, ValueError | OSError) else repr(error)
    return ValueError(
        f"{said}\nThat is what loading the preset {preset!r} ended with. The preset was found; it "
        "is incomplete, of an unknown kind or version, or does not fit the arguments."
    )


def _load(preset: str, config: dict, options: dict) -> keras.Model:
    if "model_type" in config:
        return converting.load(preset, options)
    # keras-hub cannot load a mixed policy that it saved: pass its name instead.
    if mending.mixed_dtype(config):
        options = {"dtype": mending.mixed_dtype(config), **options}
    return lm_adapter.task_class(preset).from_preset(preset, **options)


def load_backbone(preset: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """Loads a backbone from a preset folder that `save_to_preset` wrote.

    Args:
        preset: local folder.
        **kwargs: of `Backbone.from_preset`. A quantized backbone keeps its own `dtype`.
    """
    config = _config(str(preset))
    dtype = mending.mixed_dtype(config) or mending.quantized_dtype(config)
    options = {"dtype": dtype, **kwargs} if dtype else kwargs
    backbone = keras_hub.models.Backbone.from_preset(str(preset), **options)
    lm_adapter.check_backbone(backbone)
    lora.load_quantized(backbone, preset)
    return backbone


def load_preprocessor(preset: str | pathlib.Path) -> Any:
    """Loads the preprocessor of a preset folder; None if the folder has none.

    Args:
        preset: local folder.
    """
    if not (pathlib.Path(preset) / "preprocessor.json").is_file():
        return None
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(str(preset))
    mending.mend_preprocessor(preprocessor)
    return preprocessor
