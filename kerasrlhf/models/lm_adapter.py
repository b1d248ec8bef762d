"""The only file that knows how keras-hub builds its language models (how it saves: `mending`).

Everything else asks here for hidden states, logits, a cache, a copy, a preset. The functions take
a `keras_hub.models.CausalLM` and work for every text family; what a family does otherwise than the
rest is written where it matters, by name.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras import ops
from keras_hub.src.utils import preset_utils

from kerasrlhf.data import limits
from kerasrlhf.models import lora, mending

_layouts = weakref.WeakKeyDictionary()


def check(causal_lm: Any) -> None:
    """Raises a `ValueError` when `causal_lm` is not a language model that can be trained here."""
    if not isinstance(causal_lm, keras_hub.models.CausalLM):
        raise ValueError(
            "Expected a `keras_hub.models.CausalLM` (for example "
            '`keras_hub.models.CausalLM.from_preset("gpt2_base_en")`). '
            f"Received: {causal_lm!r} of type {type(causal_lm).__name__}."
        )
    check_backbone(causal_lm.backbone)
    check_preprocessor(causal_lm.backbone, causal_lm.preprocessor)


def check_backbone(backbone: Any) -> None:
    """Raises a `ValueError` when `backbone` is not one of a text family.

    A backbone that passes is mended: what it saves can be loaded (`mending.mend_backbone`).
    """
    names = _input_names(backbone)
    if isinstance(backbone, keras_hub.models.Gemma3nBackbone):
        _complete_gemma3n(backbone)
    if (
        set(names) - {"position_ids"} != {"padding_mask", "token_ids"}
        or not hasattr(backbone, "vocabulary_size")
        or isinstance(backbone.output, dict)
    ):
        raise ValueError(
            "Expected a keras-hub text model whose backbone reads `token_ids` and `padding_mask` "
            "and gives hidden states; of a family with images or sound, one that was made without "
            f"those encoders. Received: {backbone!r} of type {type(backbone).__name__}, which "
            f"reads {names}."
        )
    mending.mend_backbone(backbone)


def check_preprocessor(backbone: keras.Model, preprocessor: Any) -> None:
    """Raises a `ValueError` when a preprocessor makes token ids that `backbone` cannot embed.

    A preprocessor that passes is mended: what it saves can be loaded
    (`mending.mend_preprocessor`).

    Args:
        backbone: keras-hub backbone.
        preprocessor: keras-hub preprocessor, or None.
    """
    mending.mend_preprocessor(preprocessor)
    tokens = limits.token_count(getattr(preprocessor, "tokenizer", None))
    if tokens > backbone.vocabulary_size:
        raise ValueError(
            f"The tokenizer has {tokens} tokens, and the model has embeddings for "
            f"{backbone.vocabulary_size}: in compiled code other ids would be clamped, with wrong "
            "numbers as the only sign. Load the model and its tokenizer from one preset, or make a "
            f"backbone with `vocabulary_size={tokens}`."
        )


def _complete_gemma3n(backbone: keras.Model) -> None:
    """Gives Gemma 3n the name that others have, and freezes what its layers never read."""
    backbone.vocabulary_size = backbone.text_vocab_size
    for layer in backbone._flatten_layers():
        if getattr(layer, "is_kv_shared_layer", False) and hasattr(layer, "k_proj"):
            for unread in (layer.k_proj, layer.v_proj, layer.k_norm):
                unread.trainable = False


def _input_names(backbone: Any) -> list[str]:
    inputs = getattr(backbone, "inputs", None) if isinstance(backbone, keras.Model) else None
    return sorted(x.name for x in inputs or [])


def check_adapted(backbone: keras.Model) -> None:
    """Raises a `ValueError` when `enable_lora` froze a backbone without adapting any layer.

    keras-hub looks for layers by name, and some families name theirs otherwise.
    """
    if getattr(backbone, "_lora_enabled_layers", None) == []:
        kinds = (keras.layers.Dense, keras.layers.EinsumDense)
        found = sorted({x.name for x in backbone._flatten_layers() if isinstance(x, kinds)})
        raise ValueError(
            f"`enable_lora` found none of the layers {backbone.default_lora_layer_names()} in "
            f"{type(backbone).__name__} and left everything frozen. Name the layers to adapt: "
            f"`backbone.enable_lora(rank, target_layer_names=[...])`, of {found}."
        )


def check_adapters(backbone: keras.Model) -> None:
    """Checks the adapters of a backbone that is going to be trained, when its model is compiled.

    Warns about a quantized backbone without adapters: its kernels are integers and cannot be
    trained, and what remains is little.

    Raises:
        ValueError: If `enable_lora` adapted no layer.
    """
    check_adapted(backbone)
    quantized = any(layer.quantization_mode for layer in backbone._flatten_layers())
    if not quantized or lora.adapted_layers(backbone) or not backbone.trainable_variables:
        return
    trained = backbone.trainable_variables
    names = ", ".join(sorted({variable.name for variable in trained}))
    sizes = [sum(int(np.prod(v.shape)) for v in part) for part in (trained, backbone.weights)]
    warnings.warn(
        f"{type(backbone).__name__} is quantized and has no LoRA adapters. Quantized kernels are "
        f"not trained; what is trained are {len(trained)} of its {len(backbone.weights)} variables "
        f"({names}), {sizes[0]:,} of {sizes[1]:,} numbers. Call `backbone.enable_lora(rank)` "
        "before, or train a model that is not quantized.",
        stacklevel=3,
    )


def backbone_inputs(backbone: keras.Model, token_ids: Any, padding_mask: Any) -> dict:
    """The input structure of a text backbone."""
    token_ids = ops.cast(token_ids, "int32")
    inputs = {"token_ids": token_ids, "padding_mask": ops.cast(padding_mask, "int32")}
    if "position_ids" in _input_names(backbone):  # Gemma 4
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        inputs["position_ids"] = ops.zeros_like(token_ids) + positions[None]
    return inputs


def _final_states(backbone: keras.Model) -> keras.KerasTensor:
    """The final hidden states in the backbone's graph; RWKV-7's goes on to the logits."""
    projection = getattr(backbone, "head", None)
    return backbone.output if projection is None else projection.input


def hidden_states(model: keras.Model, token_ids: Any, padding_mask: Any) -> Any:
    """Final hidden states `(batch, length, width)` of a CausalLM or a backbone, dropout off (N13).

    Every family is causal and rows are padded on the right, so the states of real tokens do not
    depend on how much padding follows them (N3).
    """
    backbone = getattr(model, "backbone", None) or model
    limits.Limits.of([backbone]).check_length(token_ids.shape[1])
    states = _final_states(backbone)
    trunk = backbone if states is backbone.output else keras.Model(backbone.input, states)
    return trunk(backbone_inputs(backbone, token_ids, padding_mask), training=False)


def width(model: keras.Model) -> int:
    """Units of the final hidden state."""
    return int(_final_states(getattr(model, "backbone", None) or model).shape[-1])


def vocabulary_size(causal_lm: keras.Model) -> int:
    """Entries of the model's output distribution."""
    return int(causal_lm.output.shape[-1])


def max_length(causal_lm: keras.Model) -> int | None:
    """Positions that the model has, or None where any length can be computed."""
    return positions(causal_lm.backbone)


def positions(backbone: keras.Model) -> int | None:
    """As `max_length`, of a backbone."""
    limit = getattr(backbone, "max_sequence_length", None)
    return int(limit) if limit else None


def head(causal_lm: keras.Model) -> Callable:
    """The part of the model behind its final hidden states: from them to float32 logits.

    It is cut out of the model's own graph, so that scaling and soft caps of a family stay in.
    """
    backbone = causal_lm.backbone
    if isinstance(causal_lm, keras_hub.models.Gemma3nCausalLM):
        # Its graph holds the output embeddings as they were when it was made.
        function = functools.partial(backbone.language_model.token_embedding, reverse=True)
    elif hasattr(backbone, "head"):
        function = keras.Function(_final_states(backbone), causal_lm.output)
    else:
        (node,) = backbone._inbound_nodes[-1:]
        function = keras.Function(node.output_tensors[0], causal_lm.output)
    return lambda hidden: ops.cast(function(hidden), "float32")


def freeze_unread(backbone: keras.Model) -> None:
    """Makes the variables that hidden states do not depend on non-trainable.

    These are the output embeddings of an untied model, which are part of its backbone: a model that
    reads states alone has no gradient for them, and an optimizer would keep its moments of them.
    """
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.ReversibleEmbedding) and not layer.tie_weights:
            layer.reverse_embeddings.trainable = False
    if hasattr(backbone, "head"):
        backbone.head.trainable = False


def cache_layout(causal_lm: keras.Model, length: int) -> Any:
    """How the family's cache is laid out, or None when sampling cannot use it.

    Sampling writes a position again after the prompts were read, so the cache must hold an entry
    for every position, as keys and values do. A recurrent state (RWKV-7, the linear attention of
    Qwen 3.5) has none: what a row's padding did to it cannot be undone.

    Returns:
        `tf.TensorSpec`s in the structure of the cache, for a batch of 1, with None for the axis of
        the positions; read off symbolic runs of keras-hub's own builder, so nothing is computed.
    """
    known = _layouts.setdefault(causal_lm, {})
    if length not in known:
        known[length] = _read_layout(causal_lm, length)
    return known[length]


def _read_layout(causal_lm, length):
    if "cache_update_index" not in inspect.signature(causal_lm.call_with_cache).parameters:
        return None

    def unite(one, other):
        shapes = zip(one.shape, other.shape, strict=True)
        return tf.TensorSpec([a if a == b else None for a, b in shapes], one.dtype)

    layout = tf.nest.map_structure(unite, *(_cache_spec(causal_lm, length + i) for i in (0, 1)))
    every_position = [list(x.shape).count(None) == 1 for x in tf.nest.flatten(layout)]
    return layout if all(every_position) else None


def _cache_spec(causal_lm: keras.Model, length: int) -> Any:
    parameters = [*inspect.signature(causal_lm._build_cache).parameters.values()][1:]
    no_images = [None for x in parameters if x.default is x.empty]
    build = tf.function(lambda ids: causal_lm._build_cache(ids, *no_images)[-1], autograph=False)
    with tf.init_scope():
        traced = build.get_concrete_function(tf.TensorSpec((1, length), "int32"))
    return traced.structured_outputs


def empty_cache(causal_lm: keras.Model, batch: int, length: int) -> Any:
    """What `step` starts from for `batch` rows of `length` tokens.

    Zero keys and values in the family's own structure. Where `cache_layout` is None, the tokens
    themselves, int32 `(batch, length)`: `step` then reads the whole row again, with a warning.
    """
    layout = cache_layout(causal_lm, length)
    if layout is None:
        warnings.warn(
            f"{type(causal_lm).__name__} has no cache with an entry for every position, so "
            "responses are sampled without one: the whole row is read again for every token. The "
            "result is the same; sampling takes longer, the more so the longer the rows.",
            stacklevel=2,
        )
        return ops.zeros((batch, length), "int32")

    def zeros(spec):
        return ops.zeros((batch, *(length if n is None else n for n in spec.shape[1:])), spec.dtype)

    return _unstacked(tf.nest.map_structure(zeros, layout))


class _KeysValues(NamedTuple):
    """One layer's part of an unstacked cache."""

    keys: Any
    values: Any


def _unstacked(cache: Any) -> Any:
    """The keys and values of each layer as tensors of their own, where the layout is the usual one.

    Most families stack them into `(batch, layers, 2, length, heads, units)` and copy the whole at
    every step. As separate loop variables XLA cancels the stacking against the slicing and writes
    the new column in place.
    """
    if not hasattr(cache, "shape") or len(cache.shape) != 6 or cache.shape[2] != 2:
        return cache
    layers = [cache[:, layer] for layer in range(cache.shape[1])]
    return tuple(_KeysValues(layer[:, 0], layer[:, 1]) for layer in layers)


def _stacked(cache: Any) -> Any:
    """The inverse of `_unstacked`."""
    if not isinstance(cache[0], _KeysValues):
        return cache
    return ops.stack([ops.stack(layer, axis=1) for layer in cache], axis=1)


def step(causal_lm: keras.Model, token_ids: Any, cache: Any, index: Any) -> tuple[Any, Any, Any]:
    """Runs new columns through the model on top of a cache.

    Args:
        causal_lm: the model.
        token_ids: int32 `(batch, columns)`, the tokens at `index` and behind it.
        cache: as `empty_cache` gives it.
        index: int scalar, the position of the first of these columns.

    Returns:
        Float32 logits `(batch, columns, vocab)`, hidden states `(batch, columns, width)` and the
        new cache. Unused logits cost nothing in compiled code.
    """
    index = ops.convert_to_tensor(index, "int32")
    if hasattr(cache, "shape") and len(cache.shape) == 2:
        return _step_anew(causal_lm, token_ids, cache, index)
    cache = _stacked(cache)
    options = {}
    if isinstance(causal_lm, keras_hub.models.Gemma3nCausalLM):
        # It would make a mask of the new columns alone.
        options["padding_mask"] = ops.ones((cache.shape[0], cache.shape[4]), "bool")
    with _placed_queries(causal_lm, token_ids.shape[1], index):
        logits, hidden, cache = causal_lm.call_with_cache(token_ids, cache, index, **options)
    return ops.cast(logits, "float32"), hidden, _unstacked(cache)


def _step_anew(causal_lm, token_ids, tokens, index):
    """`step` with the tokens of all rows in place of a cache."""
    tokens = ops.slice_update(tokens, [0, index], token_ids)
    columns = index + ops.arange(token_ids.shape[1], dtype="int32")
    known = ops.arange(tokens.shape[1], dtype="int32")[None] <= columns[-1]
    hidden = hidden_states(causal_lm, tokens, ops.broadcast_to(known, tokens.shape))
    hidden = ops.take(hidden, columns, axis=1)
    return head(causal_lm)(hidden), hidden, tokens


@contextlib.contextmanager
def _placed_queries(causal_lm: keras.Model, columns: int, index: Any) -> Iterator[None]:
    """Rotates the queries of GPT-NeoX to their positions in the row.

    Its cached step keeps keys unrotated and rotates all of them, as is right, but takes the new
    queries for the first tokens of the row.
    """
    if not isinstance(causal_lm, keras_hub.models.GPTNeoXCausalLM):
        yield
        return
    attentions = [x._self_attention_layer for x in causal_lm.backbone.transformer_layers]
    rotations = [x.rotary_embedding_layer for x in attentions]

    def placed(rotation):
        return lambda x: rotation(x, start_index=index if x.shape[1] == columns else 0)

    try:
        for attention, rotation in zip(attentions, rotations, strict=True):
            attention.rotary_embedding_layer = placed(rotation)
        yield
    finally:
        for attention, rotation in zip(attentions, rotations, strict=True):
            attention.rotary_embedding_layer = rotation


def pad_token_id(causal_lm: keras.Model) -> int:
    """The id that fills rows up; any id will do, since masks and not ids mark padding (N2)."""
    tokenizer = getattr(causal_lm.preprocessor, "tokenizer", None)
    return int(getattr(tokenizer, "pad_token_id", None) or 0)


def copy(causal_lm: keras.Model) -> keras.Model:
    """A frozen copy of a CausalLM or backbone: own weights, same preprocessor, adapters merged."""
    backbone = getattr(causal_lm, "backbone", None) or causal_lm
    mending.mend_backbone(backbone)
    twin = type(backbone).from_config(backbone.get_config())
    mending.mend_backbone(twin)
    for source, target in zip(backbone._flatten_layers(), twin._flatten_layers(), strict=True):
        _copy_variables(source, target)
    twin.trainable = False
    if backbone is causal_lm:
        return twin
    parts = {"backbone": twin, "preprocessor": causal_lm.preprocessor}
    names = {*inspect.signature(type(causal_lm)).parameters} - {*parts, "kwargs"}
    model = type(causal_lm)(**parts, **{name: getattr(causal_lm, name) for name in names})
    model.trainable = False
    return model


def _copy_variables(source: keras.Layer, target: keras.Layer) -> None:
    """Copies the variables that a layer itself owns; a LoRA kernel is merged on the way."""
    if source.quantization_mode and hasattr(source, "inputs_quantizer"):
        target.inputs_quantizer = source.inputs_quantizer  # which is in no config
    adapted = getattr(source, "lora_enabled", False)
    own = [*source._trainable_variables, *source._non_trainable_variables]
    if not adapted:
        for value, variable in zip(
            own, target._trainable_variables + target._non_trainable_variables, strict=True
        ):
            variable.assign(value)
        return
    if getattr(source, "quantization_mode", None):
        raise ValueError(
            f"The quantized layer {source.path!r} has LoRA adapters, and a copy cannot merge them. "
            "Copy the model before `enable_lora`, or load it again."
        )
    kernel = "embeddings" if hasattr(source, "lora_embeddings_a") else "kernel"
    getattr(target, f"_{kernel}").assign(getattr(source, kernel))
    for name in ("bias", "reverse_embeddings"):
        if getattr(source, name, None) is not None:
            getattr(target, name).assign(getattr(source, name))


def preset_config(preset: str) -> dict:
    """The `config.json` of a preset: keras-hub's or Hugging Face's.

    Raises:
        Exception: If the preset is not found or not of a known kind, with keras-hub's message.
    """
    return preset_utils.get_preset_loader(preset).config


def task_class(preset: str) -> type:
    """The class that loads a preset's language model.

    `CausalLM` finds it by the backbone. Gemma 4 has two, of which it takes either, by the order of
    a set: the other is an assistant that drafts tokens for a larger model.
    """
    backbone = preset_utils.get_preset_loader(preset).check_backbone_class()
    models = keras_hub.models
    return models.Gemma4CausalLM if backbone is models.Gemma4Backbone else models.CausalLM


def preset_loader(preset: str) -> tuple[Any, type]:
    """keras-hub's loader of a preset, and the class of the language model in it."""
    loader = preset_utils.get_preset_loader(preset)
    task, backbone = task_class(preset), loader.check_backbone_class()
    if task.backbone_cls != backbone:
        task = preset_utils.find_subclass(preset, task, backbone)
    return loader, task


def preset_json(preset: str, name: str) -> Any:
    """What a JSON file of a preset holds, None where there is no such file."""
    found = preset_utils.check_file_exists(preset, name)
    return preset_utils.load_json(preset, name) if found else None
