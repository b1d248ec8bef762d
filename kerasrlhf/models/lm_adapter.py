"""The only file that knows how keras-hub builds its language models.

Everything else asks here for hidden states, logits, a key-value cache, a copy, a preset. The
functions take a `keras_hub.models.CausalLM` and work for every text family whose
`call_with_cache(token_ids, cache, index)` returns `(logits, hidden_states, cache)`.
"""

from __future__ import annotations

import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras import ops


def check(causal_lm: Any) -> None:
    """Raises a `ValueError` when `causal_lm` is not a language model that can be trained here."""
    if not isinstance(causal_lm, keras_hub.models.CausalLM):
        raise ValueError(
            "Expected a `keras_hub.models.CausalLM` (for example "
            '`keras_hub.models.CausalLM.from_preset("gpt2_base_en")`). '
            f"Received: {causal_lm!r} of type {type(causal_lm).__name__}."
        )
    check_backbone(causal_lm.backbone)


def check_backbone(backbone: Any) -> None:
    """Raises a `ValueError` when `backbone` is not one of a text family."""
    inputs = getattr(backbone, "input", None) if isinstance(backbone, keras.Model) else None
    names = sorted(inputs) if isinstance(inputs, dict) else []
    if names != ["padding_mask", "token_ids"] or not hasattr(backbone, "vocabulary_size"):
        raise ValueError(
            "Expected a keras-hub text model whose backbone reads `token_ids` and `padding_mask`. "
            f"Received: {backbone!r} of type {type(backbone).__name__}, which reads {names}."
        )
    _keep_tied_embeddings(backbone)


def _keep_tied_embeddings(backbone: keras.Model) -> None:
    """Makes `get_config` tell of tied embeddings, which some backbones forget.

    Without the key a copy made from the config, or a saved preset, is untied and cannot take
    the weights.
    """
    tied = getattr(backbone, "tie_word_embeddings", None)
    if tied is None or "tie_word_embeddings" in backbone.get_config():
        return
    original = type(backbone).get_config

    def get_config(self):
        return {**original(self), "tie_word_embeddings": tied}

    backbone.get_config = types.MethodType(get_config, backbone)


def backbone_inputs(token_ids: Any, padding_mask: Any) -> dict:
    """The input structure of a text backbone."""
    return {
        "token_ids": ops.cast(token_ids, "int32"),
        "padding_mask": ops.cast(padding_mask, "int32"),
    }


def hidden_states(model: keras.Model, token_ids: Any, padding_mask: Any) -> Any:
    """Final hidden states `(batch, length, width)` of a CausalLM or a backbone, dropout off (N13).

    Attention is causal and rows are padded on the right, so the states of real tokens do not
    depend on how much padding follows them (N3).
    """
    backbone = getattr(model, "backbone", None) or model
    return backbone(backbone_inputs(token_ids, padding_mask), training=False)


def width(model: keras.Model) -> int:
    """Units of the final hidden state."""
    backbone = getattr(model, "backbone", None) or model
    return int(backbone.output.shape[-1])


def vocabulary_size(causal_lm: keras.Model) -> int:
    """Entries of the model's output distribution."""
    return int(causal_lm.output.shape[-1])


def max_length(causal_lm: keras.Model) -> int | None:
    """Positions that the model has, or None where any length can be computed."""
    limit = getattr(causal_lm.backbone, "max_sequence_length", None)
    return int(limit) if limit else None


def head(causal_lm: keras.Model) -> Callable:
    """The part of the model behind the backbone: hidden states to float32 logits.

    It is cut out of the model's own graph, so that scaling and soft caps of a family stay in.
    """
    (node,) = causal_lm.backbone._inbound_nodes[-1:]
    function = keras.Function([node.output_tensors[0]], causal_lm.output)
    return lambda hidden: ops.cast(function([hidden]), "float32")


def freeze_unread(backbone: keras.Model) -> None:
    """Makes the variables that hidden states do not depend on non-trainable.

    These are the output embeddings of an untied model, which stand in its backbone: a model that
    reads states alone has no gradient for them, and an optimiser would keep its moments of them.
    """
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.ReversibleEmbedding) and not layer.tie_weights:
            layer.reverse_embeddings.trainable = False


def empty_cache(causal_lm: keras.Model, batch: int, length: int) -> Any:
    """A zero key-value cache for `batch` rows of `length` tokens, in the family's own structure.

    The structure is read off a symbolic run of keras-hub's own builder: nothing is computed.
    """
    build = tf.function(lambda ids: causal_lm._build_cache(ids)[-1], autograph=False)
    with tf.init_scope():
        traced = build.get_concrete_function(tf.TensorSpec((1, length), "int32"))
    spec = traced.structured_outputs

    def zeros(x):
        return ops.zeros((batch, *x.shape[1:]), dtype=x.dtype)

    return _unstacked(tf.nest.map_structure(zeros, spec))


def _unstacked(cache: Any) -> Any:
    """The keys and values of each layer as tensors of their own, where the layout is the usual one.

    keras-hub stacks them into `(batch, layers, 2, length, heads, units)` and copies the whole at
    every step. As separate loop variables XLA cancels the stacking against the slicing and writes
    the new column in place.
    """
    if not hasattr(cache, "shape") or len(cache.shape) != 6 or cache.shape[2] != 2:
        return cache
    layers = [cache[:, layer] for layer in range(cache.shape[1])]
    return tuple((layer[:, 0], layer[:, 1]) for layer in layers)


def _stacked(cache: Any) -> Any:
    """The inverse of `_unstacked`."""
    if not isinstance(cache, tuple):
        return cache
    return ops.stack([ops.stack(layer, axis=1) for layer in cache], axis=1)


def step(causal_lm: keras.Model, token_ids: Any, cache: Any, index: Any) -> tuple[Any, Any, Any]:
    """Runs new columns through the model on top of a cache.

    Args:
        causal_lm: the model.
        token_ids: int32 `(batch, columns)`, the tokens that stand at `index` and behind it.
        cache: as `empty_cache` gives it.
        index: int scalar, the position of the first of these columns.

    Returns:
        Float32 logits `(batch, columns, vocab)`, hidden states `(batch, columns, width)` and the
        new cache. Unused logits cost nothing in compiled code.
    """
    logits, hidden, cache = causal_lm.call_with_cache(token_ids, _stacked(cache), index)
    return ops.cast(logits, "float32"), hidden, _unstacked(cache)


def end_token_ids(causal_lm: keras.Model) -> tuple[int, ...]:
    """The ids at which the model's tokenizer ends a text; empty when there is none."""
    tokenizer = getattr(causal_lm.preprocessor, "tokenizer", None)
    names = ("end_token_id", "end_token2_id")
    ids = [getattr(tokenizer, name, None) for name in names]
    return tuple(int(i) for i in ids if i is not None)


def pad_token_id(causal_lm: keras.Model) -> int:
    """The id that fills rows up; any id will do, since masks and not ids tell padding (N2)."""
    tokenizer = getattr(causal_lm.preprocessor, "tokenizer", None)
    return int(getattr(tokenizer, "pad_token_id", None) or 0)


def copy(causal_lm: keras.Model) -> keras.Model:
    """A frozen copy of a CausalLM or backbone: own weights, same preprocessor, adapters merged."""
    backbone = getattr(causal_lm, "backbone", None) or causal_lm
    _keep_tied_embeddings(backbone)
    twin = type(backbone).from_config(backbone.get_config())
    for source, target in zip(backbone._flatten_layers(), twin._flatten_layers(), strict=True):
        _copy_variables(source, target)
    twin.trainable = False
    if backbone is causal_lm:
        return twin
    model = type(causal_lm)(backbone=twin, preprocessor=causal_lm.preprocessor)
    model.trainable = False
    return model


def _copy_variables(source: keras.Layer, target: keras.Layer) -> None:
    """Copies the variables that a layer itself owns; a LoRA kernel is merged on the way."""
    adapted = getattr(source, "lora_enabled", False)
    own = [*source._trainable_variables, *source._non_trainable_variables]
    if not adapted:
        for value, variable in zip(
            own, target._trainable_variables + target._non_trainable_variables, strict=True
        ):
            variable.assign(value)
        return
    kernel = "embeddings" if hasattr(source, "lora_embeddings_a") else "kernel"
    getattr(target, f"_{kernel}").assign(getattr(source, kernel))
    for name in ("bias", "reverse_embeddings"):
        if getattr(source, name, None) is not None:
            getattr(target, name).assign(getattr(source, name))


def load_causal_lm(preset: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """`CausalLM.from_preset` with two traps removed and a clear error.

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
        causal_lm = keras_hub.models.CausalLM.from_preset(preset, **kwargs)
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
    check(causal_lm)
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
