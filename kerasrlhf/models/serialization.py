"""Language models and their tokenizers as configurations, for `.keras` files."""

from __future__ import annotations

import base64
import json
import pathlib
import tempfile
import zlib
from typing import Any

import keras


def to_config(model: Any) -> dict[str, Any] | None:
    """Returns a keras-hub model or preprocessor as a configuration with its vocabulary.

    Keras itself writes vocabularies apart from configurations and loads them last, when a trainer
    has already asked for stop tokens.

    Args:
        model: keras-hub `CausalLM`, backbone or preprocessor; None is returned as it is.
    """
    if model is None:
        return None
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)  # keras-hub compiles every language model it makes
    return {"object": config, "vocabulary": _files(_tokenizer(model))}


def from_config(config: dict[str, Any] | None) -> Any:
    """Returns a model or preprocessor of `to_config`, with fresh weights.

    Args:
        config: dict of `to_config`; None is returned as it is.
    """
    if config is None:
        return None
    model = keras.saving.deserialize_keras_object(config["object"])
    tokenizer = _tokenizer(model)
    if tokenizer is not None:
        _load(tokenizer, config["vocabulary"])
        # Keras calls it again, without files for a tokenizer that two networks have in common.
        tokenizer.load_assets = _keep
    return model


def _keep(folder: str | None) -> None:
    """Leaves the vocabulary of a tokenizer as it is."""


def _tokenizer(model: Any) -> Any:
    return getattr(getattr(model, "preprocessor", model), "tokenizer", None)


def _files(tokenizer: Any) -> dict[str, str]:
    """Returns the files of a tokenizer, compressed, as text."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_assets(folder)
        files = sorted(pathlib.Path(folder).iterdir())
        return {f.name: base64.b64encode(zlib.compress(f.read_bytes())).decode() for f in files}


def _load(tokenizer: Any, files: dict[str, str]) -> None:
    """Sets a vocabulary from contents: keras-hub accepts paths only inside an archive."""
    contents = {name: zlib.decompress(base64.b64decode(text)) for name, text in files.items()}
    # SentencePiece, byte pairs, or plain lines (WordPiece, RWKV).
    if hasattr(tokenizer, "set_proto"):
        tokenizer.set_proto(*contents.values())
    elif hasattr(tokenizer, "set_vocabulary_and_merges"):
        merges = [line for line in contents["merges.txt"].decode().split("\n") if line]
        tokenizer.set_vocabulary_and_merges(json.loads(contents["vocabulary.json"]), merges)
    else:
        (vocabulary,) = contents.values()
        tokenizer.set_vocabulary(vocabulary.decode().removesuffix("\n").split("\n"))
