"""Language models and their tokenizers as configurations, for `.keras` files."""

from __future__ import annotations

import base64
import pathlib
import tempfile
import zlib
from typing import Any

import keras


def to_config(model: Any) -> Any:
    """Returns a keras-hub model or preprocessor as a configuration with its vocabulary, or None.

    Keras itself writes vocabularies apart from configurations and loads them last, when a trainer
    has already asked for stop tokens.

    Args:
        model: keras-hub `CausalLM`, backbone or preprocessor, or None.
    """
    config = keras.saving.serialize_keras_object(model)
    if model is None:
        return None
    config.pop("compile_config", None)  # keras-hub compiles every language model it makes
    return {"object": config, "vocabulary": _vocabulary(_tokenizer(model))}


def from_config(config: Any) -> Any:
    """Returns a model or preprocessor of `to_config`, with fresh weights.

    Args:
        config: dict of `to_config`, or None.
    """
    if config is None:
        return None
    model = keras.saving.deserialize_keras_object(config["object"])
    tokenizer = _tokenizer(model)
    if config["vocabulary"]:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in config["vocabulary"].items():
                data = zlib.decompress(base64.b64decode(text))
                (pathlib.Path(folder) / name).write_bytes(data)
            tokenizer.load_assets(folder)
        # Keras calls it again, without files for a tokenizer that two networks have in common.
        tokenizer.load_assets = _keep
    return model


def _keep(folder: str | None) -> None:
    """Leaves the vocabulary of a tokenizer as it is."""


def _tokenizer(model: Any) -> Any:
    return getattr(getattr(model, "preprocessor", model), "tokenizer", None)


def _vocabulary(tokenizer: Any) -> dict[str, str]:
    """The files of a tokenizer, compressed, as text."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_assets(folder)
        files = sorted(pathlib.Path(folder).iterdir())
        return {f.name: base64.b64encode(zlib.compress(f.read_bytes())).decode() for f in files}
