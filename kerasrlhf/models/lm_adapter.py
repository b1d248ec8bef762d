"""The only file that knows how keras-hub builds its language models (how it saves: `mending`).

Everything else asks here for hidden states, logits, a cache, a copy, a preset. The functions take
a `keras_hub.models.CausalLM` and work for every text family; where a family differs from the
others, the code names it.
"""

# ruff: noqa: SLF001

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

from kerasrlhf import signatures
from kerasrlhf.adapters import adapted_layers, all_layers
from kerasrlhf.data import limits
from kerasrlhf.models import mending
from kerasrlhf.types import Tensor

_layouts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def check(causal_lm: Any) -> None:
    """Raises a `ValueError` for anything but a language model that can be trained here.

    Args:
        causal_lm: keras-hub `CausalLM`, or something else.
    """
    if not isinstance(causal_lm, keras_hub.models.CausalLM):
        raise ValueError(
            "Expected a `keras_hub.models.CausalLM` (for example "
            '`keras_hub.models.CausalLM.from_preset("gpt2_base_en")`). '
            f"Received: {causal_lm!r} of type {type(causal_lm).__name__}."
        )
    check_backbone(causal_lm.backbone)
    check_preprocessor(causal_lm.backbone, causal_lm.preprocessor)


def check_backbone(backbone: Any) -> None:
    """Raises a `ValueError` for anything but the backbone of a text family.

    A backbone that passes is mended: what it saves can be loaded (`mending.mend_backbone`).

    Args:
        backbone: keras-hub backbone, or something else.
    """
    names = _input_names(backbone)
    # Before the test below, which needs the attribute that Gemma 3n lacks.
    if isinstance(backbone, keras_hub.models.Gemma3nBackbone):
        _complete_gemma3n(backbone)
    if (
        set(names) - {"position_ids"} != {"padding_mask", "token_ids"}
        or not hasattr(backbone, "vocabulary_size")
        or isinstance(backbone.output, dict)
    ):
        raise ValueError(
            "Expected a keras-hub text model whose backbone reads `token_ids` and `padding_mask` "
            "and returns hidden states; of a family with images or sound, one that was made "
            f"without those encoders. Received: {backbone!r} of type {type(backbone).__name__}, "
            f"which reads {names}."
        )
    mending.mend_backbone(backbone)


def check_preprocessor(backbone: keras.Model, preprocessor: Any) -> None:
    """Raises a `ValueError` for a preprocessor with token ids that `backbone` cannot embed.

    A preprocessor that passes is mended: what it saves can be loaded
    (`mending.mend_preprocessor`).

    Args:
        backbone: keras-hub backbone.
        preprocessor: keras-hub preprocessor, or None.
    """
    mending.mend_preprocessor(preprocessor)
    # Mending comes first: it may remove tokens that a saved vocabulary was padded with.
    tokens = limits.token_count(getattr(preprocessor, "tokenizer", None))
    if tokens > backbone.vocabulary_size:
        raise ValueError(
            f"The tokenizer has {tokens} tokens, and the model has embeddings for "
            f"{backbone.vocabulary_size}: in compiled code other ids would be clamped, with wrong "
            "numbers as the only sign. Load the model and its tokenizer from one preset, or make a "
            f"backbone with `vocabulary_size={tokens}`."
        )


def _complete_gemma3n(backbone: keras.Model) -> None:
    """Adds the attribute that Gemma 3n lacks, and freezes its unused weights."""
    backbone.vocabulary_size = backbone.text_vocab_size
    for layer in all_layers(backbone):
        if getattr(layer, "is_kv_shared_layer", False) and hasattr(layer, "k_proj"):
            # These layers use the keys and values of an earlier layer.
            for unused in (layer.k_proj, layer.v_proj, layer.k_norm):
                unused.trainable = False


def _input_names(backbone: Any) -> list[str]:
    inputs = getattr(backbone, "inputs", None) if isinstance(backbone, keras.Model) else None
    return sorted(x.name for x in inputs or [])


def check_adapted(backbone: keras.Model) -> None:
    """Raises a `ValueError` if `enable_lora` froze a backbone without adapting any layer.

    keras-hub looks for layers by name, and some families have other names.

    Args:
        backbone: keras-hub backbone.
    """
    if getattr(backbone, "_lora_enabled_layers", None) == []:
        kinds = (keras.layers.Dense, keras.layers.EinsumDense)
        # For the message: the layers that `enable_lora` could adapt by name.
        found = sorted({x.name for x in all_layers(backbone) if isinstance(x, kinds)})
        raise ValueError(
            f"`enable_lora` found none of the layers {backbone.default_lora_layer_names()} in "
            f"{type(backbone).__name__} and left everything frozen. Name the layers to adapt: "
            f"`backbone.enable_lora(rank, target_layer_names=[...])`, of {found}."
        )


def check_adapters(backbone: keras.Model) -> None:
    """Checks the adapters of a backbone that will be trained.

    Warns about a quantized backbone without adapters: its kernels are integers and cannot be
    trained, and few other weights are left.

    Args:
        backbone: keras-hub backbone.

    Raises:
        ValueError: If `enable_lora` adapted no layer.
    """
    check_adapted(backbone)
    quantized = any(layer.quantization_mode for layer in all_layers(backbone))
    if not quantized or adapted_layers(backbone) or not backbone.trainable_variables:
        return
    trained = backbone.trainable_variables
    names = ", ".join(sorted({variable.name for variable in trained}))
    # How many numbers are trained, of how many.
    sizes = [sum(int(np.prod(v.shape)) for v in part) for part in (trained, backbone.weights)]
    warnings.warn(
        f"{type(backbone).__name__} is quantized and has no LoRA adapters. Quantized kernels are "
        f"not trained; what is trained are {len(trained)} of its {len(backbone.weights)} variables "
        f"({names}), {sizes[0]:,} of {sizes[1]:,} numbers. Call `backbone.enable_lora(rank)` "
        "before, or train a model that is not quantized.",
        stacklevel=3,
    )


def backbone_inputs(
    backbone: keras.Model, token_ids: Tensor, padding_mask: Tensor
) -> dict[str, Tensor]:
    """Returns the input structure of a text backbone.

    Args:
        backbone: keras-hub backbone.
        token_ids: int, `(batch, length)`.
        padding_mask: bool, `(batch, length)`.
    """
    token_ids = ops.cast(token_ids, "int32")
    inputs = {"token_ids": token_ids, "padding_mask": ops.cast(padding_mask, "int32")}
    if "position_ids" in _input_names(backbone):  # Gemma 4
        positions = ops.arange(ops.shape(token_ids)[1], dtype="int32")
        inputs["position_ids"] = ops.zeros_like(token_ids) + positions[None]
    return inputs


def _final_states(backbone: keras.Model) -> keras.KerasTensor:
    """Returns the final hidden states in the backbone's graph; that of RWKV-7 ends with logits."""
    projection = getattr(backbone, "head", None)
    return backbone.output if projection is None else projection.input


def hidden_states(model: keras.Model, token_ids: Tensor, padding_mask: Tensor) -> Tensor:
    """Computes the final hidden states, without dropout (detail N13).

    Every family is causal and rows are padded on the right, so the states of real tokens do not
    depend on how much padding follows them (N3).

    Args:
        model: keras-hub `CausalLM` or backbone.
        token_ids: int, `(batch, length)`, right-padded.
        padding_mask: bool, `(batch, length)`.

    Returns:
        `(batch, length, width)`, in the model's compute dtype.
    """
    backbone = getattr(model, "backbone", None) or model
    limits.Limits.of([backbone]).check_length(token_ids.shape[1])
    states = _final_states(backbone)
    # A graph that ends with logits (RWKV-7) is cut before its projection.
    trunk = backbone if states is backbone.output else keras.Model(backbone.input, states)
    return trunk(backbone_inputs(backbone, token_ids, padding_mask), training=False)


def width(model: keras.Model) -> int:
    """Returns the number of units of the final hidden state.

    Args:
        model: keras-hub `CausalLM` or backbone.
    """
    return int(_final_states(getattr(model, "backbone", None) or model).shape[-1])


def vocabulary_size(causal_lm: keras.Model) -> int:
    """Returns the number of entries of the model's output distribution.

    Args:
        causal_lm: keras-hub `CausalLM`.
    """
    return int(causal_lm.output.shape[-1])


def max_length(causal_lm: keras.Model) -> int | None:
    """Returns the number of positions of a model, or None if any length can be computed.

    Args:
        causal_lm: keras-hub `CausalLM`.
    """
    return positions(causal_lm.backbone)


def positions(backbone: keras.Model) -> int | None:
    """Returns the number of positions of a backbone, or None if any length can be computed.

    Args:
        backbone: keras-hub backbone.
    """
    limit = getattr(backbone, "max_sequence_length", None)
    return int(limit) if limit else None


def head(causal_lm: keras.Model) -> Callable:
    """Returns the function from final hidden states to float32 logits.

    It is a part of the model's own graph, with the scaling and soft caps of the family.

    Args:
        causal_lm: keras-hub `CausalLM`.
    """
    backbone = causal_lm.backbone
    if isinstance(causal_lm, keras_hub.models.Gemma3nCausalLM):
        # Its graph contains the output embeddings as they were when it was made.
        function = functools.partial(backbone.language_model.token_embedding, reverse=True)
    elif hasattr(backbone, "head"):
        # RWKV-7 has its projection inside the backbone.
        function = keras.Function(_final_states(backbone), causal_lm.output)
    else:
        # Start from the backbone's output in the model's own graph, which has scaling and caps.
        (node,) = backbone._inbound_nodes[-1:]
        function = keras.Function(node.output_tensors[0], causal_lm.output)
    return lambda hidden: ops.cast(function(hidden), "float32")


def freeze_unread(backbone: keras.Model) -> None:
    """Makes the variables that hidden states do not depend on non-trainable.

    These are the output embeddings of an untied model, which are part of its backbone. A model
    that only uses states has no gradient for them, and an optimizer would store moments for them.

    Args:
        backbone: keras-hub backbone.
    """
    for layer in all_layers(backbone):
        if isinstance(layer, keras.layers.ReversibleEmbedding) and not layer.tie_weights:
            layer.reverse_embeddings.trainable = False
    if hasattr(backbone, "head"):
        backbone.head.trainable = False


def cache_layout(causal_lm: keras.Model, length: int) -> Any:
    """Returns the layout of the family's cache, or None if sampling cannot use it.

    Sampling overwrites positions after the prompts were processed, so the cache must have an
    entry for every position, as keys and values do. A recurrent state (RWKV-7, the linear
    attention of Qwen 3.5) has none: the effect of a row's padding on it cannot be undone.

    Args:
        causal_lm: keras-hub `CausalLM`.
        length: int, tokens of a row.

    Returns:
        `tf.TensorSpec`s in the structure of the cache, for a batch of 1, with None for the axis of
        the positions. They come from symbolic runs of keras-hub's own builder, so nothing is
        computed.
    """
    known = _layouts.setdefault(causal_lm, {})
    if length not in known:
        known[length] = _read_layout(causal_lm, length)
    return known[length]


def _read_layout(causal_lm: keras.Model, length: int) -> Any:
    if "cache_update_index" not in inspect.signature(causal_lm.call_with_cache).parameters:
        return None

    def unite(one: tf.TensorSpec, other: tf.TensorSpec) -> tf.TensorSpec:
        shapes = zip(one.shape, other.shape, strict=True)
        return tf.TensorSpec([a if a == b else None for a, b in shapes], one.dtype)

    # The axis of positions is the one whose size changes with the length of a row.
    layout = tf.nest.map_structure(unite, *(_cache_spec(causal_lm, length + i) for i in (0, 1)))
    # A recurrent state has no such axis.
    every_position = [list(x.shape).count(None) == 1 for x in tf.nest.flatten(layout)]
    return layout if all(every_position) else None


def _cache_spec(causal_lm: keras.Model, length: int) -> Any:
    """The cache that keras-hub's builder hands to the model, whose layout the model keeps."""
    builder = type(causal_lm)._build_cache
    parameters = [*inspect.signature(builder).parameters.values()][2:]
    # Families with encoders have further required parameters, for embeddings of images.
    no_images = [None for x in parameters if x.default is x.empty]
    given = _WithoutLayers(causal_lm)
    build = tf.function(lambda ids: builder(given, ids, *no_images)[-1], autograph=False)
    # Outside a graph that is being built, so that the trace is a graph by itself.
    with tf.init_scope():
        traced = build.get_concrete_function(tf.TensorSpec((1, length), "int32"))
    return traced.structured_outputs


class _WithoutLayers:
    """A `CausalLM` whose layers are skipped: to trace them would take as long as to sample."""

    def __init__(self, causal_lm: keras.Model) -> None:
        self._causal_lm = causal_lm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._causal_lm, name)

    def call_with_cache(self, token_ids: Tensor, cache: Any, *_: Any, **__: Any) -> tuple:
        return None, None, cache


def empty_cache(causal_lm: keras.Model, batch: int, length: int) -> Any:
    """Returns an empty cache for `step`.

    It consists of zero keys and values in the family's own structure. If `cache_layout` is None,
    it is the tokens themselves, int32 `(batch, length)`: `step` then computes the whole row every
    time, with a warning.

    Args:
        causal_lm: keras-hub `CausalLM`.
        batch: int, rows.
        length: int, tokens of a row.
    """
    layout = cache_layout(causal_lm, length)
    if layout is None:
        warnings.warn(
            f"{type(causal_lm).__name__} has no cache with an entry for every position, so "
            "responses are sampled without one: the whole row is computed for every token. The "
            "result is the same; sampling takes longer, the more so the longer the rows.",
            stacklevel=2,
        )
        return ops.zeros((batch, length), "int32")

    def zeros(spec: tf.TensorSpec) -> Tensor:
        return ops.zeros((batch, *(length if n is None else n for n in spec.shape[1:])), spec.dtype)

    # The same form as `step` returns: a loop's variables must keep their structure.
    return _unstacked(tf.nest.map_structure(zeros, layout))


class _KeysValues(NamedTuple):
    """One layer's part of an unstacked cache."""

    keys: Tensor
    values: Tensor


def _unstacked(cache: Any) -> Any:
    """Splits a cache of the usual layout into the keys and values of each layer.

    Most families stack them into `(batch, layers, 2, length, heads, units)` and copy the whole at
    every step. With separate loop variables XLA cancels the stacking against the slicing and
    writes the new column in place.
    """
    if not hasattr(cache, "shape") or len(cache.shape) != 6 or cache.shape[2] != 2:
        return cache
    # Each `(batch, 2, length, heads, units)`: keys and values of a layer.
    layers = [cache[:, layer] for layer in range(cache.shape[1])]
    return tuple(_KeysValues(layer[:, 0], layer[:, 1]) for layer in layers)


def _stacked(cache: Any) -> Any:
    """Stacks a cache of `_unstacked` again."""
    if not isinstance(cache[0], _KeysValues):
        return cache
    return ops.stack([ops.stack(layer, axis=1) for layer in cache], axis=1)


def step(
    causal_lm: keras.Model, token_ids: Tensor, cache: Any, index: Tensor | int
) -> tuple[Tensor, Tensor, Any]:
    """Runs new columns through the model on top of a cache.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32, `(batch, columns)`. The tokens from `index` on.
        cache: as from `empty_cache`.
        index: int or int scalar. Position of the first of these columns.

    Returns:
        Float32 logits `(batch, columns, vocab)`, hidden states `(batch, columns, width)` and the
        new cache. Unused logits cost nothing in compiled code.
    """
    index = ops.convert_to_tensor(index, "int32")
    # Two axes: rows of tokens, from a family without a usable cache.
    if hasattr(cache, "shape") and len(cache.shape) == 2:
        return _step_without_cache(causal_lm, token_ids, cache, index)
    cache = _stacked(cache)
    options = {}
    if isinstance(causal_lm, keras_hub.models.Gemma3nCausalLM):
        # It would make a mask of the new columns alone.
        options["padding_mask"] = ops.ones((cache.shape[0], cache.shape[4]), "bool")
    with _placed_queries(causal_lm, token_ids.shape[1], index):
        logits, hidden, cache = causal_lm.call_with_cache(token_ids, cache, index, **options)
    return ops.cast(logits, "float32"), hidden, _unstacked(cache)


def _step_without_cache(
    causal_lm: keras.Model, token_ids: Tensor, tokens: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `step` with the tokens of all rows in place of a cache."""
    tokens = ops.slice_update(tokens, [0, index], token_ids)
    columns = index + ops.arange(token_ids.shape[1], dtype="int32")
    # Columns after the new ones are not sampled yet: masked out as padding.
    known = ops.arange(tokens.shape[1], dtype="int32")[None] <= columns[-1]
    hidden = hidden_states(causal_lm, tokens, ops.broadcast_to(known, tokens.shape))
    hidden = ops.take(hidden, columns, axis=1)
    return head(causal_lm)(hidden), hidden, tokens


@contextlib.contextmanager
def _placed_queries(causal_lm: keras.Model, columns: int, index: Tensor) -> Iterator[None]:
    """Rotates the queries of GPT-NeoX to their positions in the row.

    Its cached step correctly keeps keys unrotated and rotates all of them, but rotates the new
    queries as if they were the first tokens of the row.
    """
    if not isinstance(causal_lm, keras_hub.models.GPTNeoXCausalLM):
        yield
        return
    attentions = [x._self_attention_layer for x in causal_lm.backbone.transformer_layers]
    rotations = [x.rotary_embedding_layer for x in attentions]

    def placed(rotation: Callable) -> Callable:
        # Keys have the length of the cache and start at 0; only queries have `columns` tokens.
        return lambda x: rotation(x, start_index=index if x.shape[1] == columns else 0)

    # Restored even if tracing fails, as the model is the caller's.
    try:
        for attention, rotation in zip(attentions, rotations, strict=True):
            attention.rotary_embedding_layer = placed(rotation)
        yield
    finally:
        for attention, rotation in zip(attentions, rotations, strict=True):
            attention.rotary_embedding_layer = rotation


def copy(causal_lm: keras.Model) -> keras.Model:
    """Returns a frozen copy with separate weights, the same preprocessor and merged adapters.

    Args:
        causal_lm: keras-hub `CausalLM` or backbone.
    """
    backbone = getattr(causal_lm, "backbone", None) or causal_lm
    # Without mending, `get_config` of some families describes another network.
    mending.mend_backbone(backbone)
    twin = type(backbone).from_config(backbone.get_config())
    mending.mend_backbone(twin)
    # By layer, not by variable: adapted layers of the source have variables the copy lacks.
    for source, target in zip(all_layers(backbone), all_layers(twin), strict=True):
        _copy_variables(source, target)
    twin.trainable = False
    if backbone is causal_lm:
        return twin
    parts = {"backbone": twin, "preprocessor": causal_lm.preprocessor}
    # Further arguments of a family are attributes of the same name.
    names = {*signatures.signature_of(type(causal_lm)).parameters} - {*parts, "kwargs"}
    model = type(causal_lm)(**parts, **{name: getattr(causal_lm, name) for name in names})
    model.trainable = False
    return model


def _copy_variables(source: keras.Layer, target: keras.Layer) -> None:
    """Copies a layer's own variables, without sublayers, and merges a LoRA kernel."""
    if source.quantization_mode and hasattr(source, "inputs_quantizer"):
        target.inputs_quantizer = source.inputs_quantizer  # which is in no config
    adapted = getattr(source, "lora_enabled", False)
    if not adapted:
        own, other = (x._trainable_variables + x._non_trainable_variables for x in (source, target))
        for value, variable in zip(own, other, strict=True):
            variable.assign(value)
        return
    if getattr(source, "quantization_mode", None):
        raise ValueError(
            f"The quantized layer {source.path!r} has LoRA adapters, and a copy cannot merge them. "
            "Copy the model before `enable_lora`, or load it again."
        )
    # The public attribute is the merged kernel; the private one is the target's variable.
    kernel = "embeddings" if hasattr(source, "lora_embeddings_a") else "kernel"
    getattr(target, f"_{kernel}").assign(getattr(source, kernel))
    for name in ("bias", "reverse_embeddings"):
        if getattr(source, name, None) is not None:
            getattr(target, name).assign(getattr(source, name))


def preset_config(preset: str) -> dict:
    """Returns the `config.json` of a preset: keras-hub's or Hugging Face's.

    Args:
        preset: keras-hub name or handle, or a local folder.

    Raises:
        Exception: If the preset is not found or not of a known kind, with keras-hub's message.
    """
    return preset_utils.get_preset_loader(preset).config


def task_class(preset: str) -> Any:
    """Returns the class that loads a preset's language model.

    `CausalLM` finds it by the backbone. Gemma 4 has two classes, and `CausalLM` takes either, by
    the order of a set: the other one is an assistant that drafts tokens for a larger model.

    Args:
        preset: keras-hub name or handle, or a local folder.
    """
    backbone = preset_utils.get_preset_loader(preset).check_backbone_class()
    models = keras_hub.models
    return models.Gemma4CausalLM if backbone is models.Gemma4Backbone else models.CausalLM


def preset_loader(preset: str) -> tuple[Any, Any]:
    """Returns keras-hub's loader of a preset, and the class of the language model in it.

    Args:
        preset: keras-hub name or handle, or a local folder.
    """
    loader = preset_utils.get_preset_loader(preset)
    task, backbone = task_class(preset), loader.check_backbone_class()
    if task.backbone_cls != backbone:
        task = preset_utils.find_subclass(preset, task, backbone)
    return loader, task


def preset_json(preset: str, name: str) -> Any:
    """Returns the content of a JSON file of a preset, or None if there is no such file.

    Args:
        preset: keras-hub name or handle, or a local folder.
        name: str, name of the file.
    """
    found = preset_utils.check_file_exists(preset, name)
    return preset_utils.load_json(preset, name) if found else None
