"""Saves what keras-hub 0.32 and Keras 3.15 forget when a language model is saved.

`mend_backbone` and `mend_preprocessor` change single objects, not classes: presets that such an
object writes afterward, through our functions or through its own `save_to_preset`, can be loaded
by plain keras-hub and by this package. Both do nothing to an object that was mended before.

| what is forgotten | by | what happens without mending |
|---|---|---|
| `tie_word_embeddings`, others | `get_config` of Llama, Mixtral, Qwen MoE | another network |
| a mixed policy such as `mixed_bfloat16` | `CausalLM.from_preset` | "Invalid dtype" |
| the policies of single layers | a loaded quantized backbone | it cannot be saved again |
| that int4 leaves inputs alone | a loaded `ReversibleEmbedding` | logits move by some 0.03 |
| `bos_token`, `eos_token` | `Llama3Tokenizer.get_config` | the tokenizer does not load |
| line ends of the vocabulary | `RWKVTokenizer.save_assets` | the tokenizer does not load |
| adapters of quantized layers | `save_weights` | they are rounded into the kernel |
| `layer_norm_epsilon` | layers of Gemma, Gemma 3, Qwen 3, Qwen 3 MoE | 1e-6 or 1e-5 is taken |
| `query_head_dim_normalize` | layers of Gemma and Gemma 3 | queries of 27B have another scale |

The last two are saved, and plain keras-hub ignores them.
"""

# ruff: noqa: SLF001

from __future__ import annotations

import copy
import json
import pathlib
import types
from typing import Any

import keras
import keras_hub

from kerasrlhf import signatures
from kerasrlhf.adapters import all_layers
from kerasrlhf.models import lora

_VOCABULARY = "vocabulary.json"
_PLAIN = (bool, int, float, str, list, type(None))
# `Llama3Tokenizer` wants these in every vocabulary unless it is given a set of other tokens, and
# a set cannot be written to its JSON file.
_EXPECTED = ("<|start_header_id|>", "<|end_header_id|>")


def mend_backbone(backbone: keras.Model) -> None:
    """Makes a keras-hub backbone save everything that loading it needs.

    Args:
        backbone: keras-hub backbone. Its `get_config` and `save_to_preset` are replaced.
    """
    _separate_policies(backbone)
    _pass_on(backbone)
    if "get_config" in vars(backbone):
        return
    kind = type(backbone)

    def get_config(self: keras.Model) -> dict:
        config = kind.get_config(self)
        return {**config, **_forgotten(self, config), "dtype": _saved_policy(self)}

    def save_to_preset(self: keras.Model, preset_dir: str, *args: Any, **kwargs: Any) -> None:
        kind.save_to_preset(self, preset_dir, *args, **kwargs)
        lora.save_quantized(self, preset_dir)

    backbone.get_config = types.MethodType(get_config, backbone)
    backbone.save_to_preset = types.MethodType(save_to_preset, backbone)


def _pass_on(backbone: keras.Model) -> None:
    """Passes constructor arguments to layers of those families whose backbones do not."""
    models = keras_hub.models
    is_gemma = isinstance(backbone, models.GemmaBackbone | models.Gemma3Backbone)
    if not is_gemma and not isinstance(backbone, models.Qwen3Backbone | models.Qwen3MoeBackbone):
        return
    for layer in backbone.transformer_layers:
        for part in all_layers(layer):
            if hasattr(part, "epsilon"):
                part.epsilon = backbone.layer_norm_epsilon
        if is_gemma:
            layer.attention.query_head_dim_normalize = backbone.query_head_dim_normalize


def mend_preprocessor(preprocessor: Any) -> None:
    """Makes the tokenizer of a keras-hub preprocessor save everything that loading it needs.

    Args:
        preprocessor: keras-hub preprocessor, or None.
    """
    tokenizer = getattr(preprocessor, "tokenizer", None)
    if getattr(tokenizer, "vocabulary", None) is None:
        return
    if isinstance(tokenizer, keras_hub.tokenizers.Llama3Tokenizer):
        _mend_llama3(tokenizer)
    if isinstance(tokenizer, keras_hub.tokenizers.RWKVTokenizer):
        # They are joined when they are saved, and loaded as lines.
        tokenizer.vocabulary = [line.rstrip("\n") + "\n" for line in tokenizer.vocabulary]


def _forgotten(backbone: keras.Model, config: dict) -> dict:
    """Returns constructor arguments that a config lacks and the backbone or its layers have."""
    names = signatures.signature_of(type(backbone)).parameters
    found: dict[str, Any] = {}
    # The backbone comes last: its own attributes replace those of its first layer.
    for holder in (*getattr(backbone, "transformer_layers", [])[:1], backbone):
        found |= {n: getattr(holder, n) for n in names if n not in config and hasattr(holder, n)}
    return {name: value for name, value in found.items() if isinstance(value, _PLAIN)}


def _saved_policy(backbone: keras.Model) -> dict:
    """Returns the dtype policy of a backbone in the form that keras-hub loads.

    keras-hub uses the name of a simple policy as a dtype, which fails for mixed ones. It uses a
    map of policies as it is.
    """
    policy = backbone.dtype_policy
    policies = {}
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        policies, policy = dict(policy), policy.default_policy
    policies |= {x.path: x.dtype_policy for x in _quantized(backbone)}
    if not policies and not _is_mixed(policy):
        return keras.dtype_policies.serialize(policy)
    # Serializing a map without a default removes names from its policies; the layers keep theirs.
    policies = {path: copy.copy(value) for path, value in policies.items()}
    default = policy.name if _is_mixed(policy) else None
    for quantized in policies.values():
        if default and getattr(quantized, "_source_name", default) is None:
            quantized._source_name = default  # `get_config` of keras-hub did it before
    return keras.dtype_policies.serialize(keras.dtype_policies.DTypePolicyMap(default, policies))


def mixed_dtype(config: dict) -> str | None:
    """Returns the name of the mixed policy of a preset, or None if it has another policy.

    Args:
        config: dict, the preset's `config.json`, saved with or without mending.
    """
    saved = config.get("config", {}).get("dtype")
    inner = saved.get("config", {}) if isinstance(saved, dict) else {}
    # A plain policy has a name; a map, as mending writes it, has a default.
    name = inner.get("name") or inner.get("default_policy")
    is_mixed = str(name).startswith("mixed_") and not inner.get("policy_map")
    return name if is_mixed else None


def quantized_dtype(config: dict) -> dict | None:
    """Returns the map of dtype policies that a preset was saved with, or None.

    `Backbone.from_preset` forgets it, unlike `CausalLM.from_preset`.

    Args:
        config: dict, the preset's `config.json`.
    """
    saved = config.get("config", {}).get("dtype")
    is_map = isinstance(saved, dict) and bool(saved.get("config", {}).get("policy_map"))
    return saved if is_map else None


def _is_mixed(policy: Any) -> bool:
    return policy.compute_dtype != policy.variable_dtype


def _quantized(backbone: keras.Model) -> list[keras.Layer]:
    return [x for x in all_layers(backbone) if x is not backbone and x.quantization_mode]


def _separate_policies(backbone: keras.Model) -> None:
    """Sets each layer's own dtype policy in a loaded backbone, in place of the map of all.

    When a quantized layer is saved, it needs the mode of its policy, and the map has none.
    """
    whole = backbone._dtype_policy
    if not isinstance(whole, keras.dtype_policies.DTypePolicyMap):
        return
    for layer in all_layers(backbone):
        if layer is backbone:
            continue
        if isinstance(layer._dtype_policy, keras.dtype_policies.DTypePolicyMap) and layer.path:
            layer._dtype_policy = layer._dtype_policy[layer.path]
        if layer.quantization_mode == "int4" and getattr(layer, "inputs_quantizer", None):
            # `quantize("int4")` leaves inputs as they are; loaded embeddings round them.
            layer.inputs_quantizer = None
    # Nothing but quantized layers differs from the default, and these have their own policies.
    if all(policy.quantization_mode for policy in whole.values()):
        backbone._dtype_policy = whole.default_policy


def _mend_llama3(tokenizer: Any) -> None:
    """Makes a `Llama3Tokenizer` write its start and end token and what plain keras-hub expects.

    Two entries after the end of the saved vocabulary satisfy plain keras-hub if a model has other
    special tokens. No text is tokenized to them, and they are removed from a tokenizer that was
    loaded with them.
    """
    if "get_config" in vars(tokenizer):
        return
    kind = type(tokenizer)
    # First remove what an earlier `save_assets` appended.
    _restore_special_tokens(tokenizer)

    def get_config(self: Any) -> dict:
        tokens = {"bos_token": self.start_token, "eos_token": self.end_token}
        return {**kind.get_config(self), **tokens}

    def save_assets(self: Any, dir_path: str) -> None:
        kind.save_assets(self, dir_path)
        vocabulary = dict(self.vocabulary)
        for token in _EXPECTED:
            # Ids after the last one leave all others as they are.
            vocabulary.setdefault(token, max(vocabulary.values()) + 1)
        path = pathlib.Path(dir_path) / _VOCABULARY
        path.write_text(json.dumps(vocabulary), encoding="utf-8")

    tokenizer.get_config = types.MethodType(get_config, tokenizer)
    tokenizer.save_assets = types.MethodType(save_assets, tokenizer)


def _restore_special_tokens(tokenizer: Any) -> None:
    """Removes the tokens that `save_assets` added, and names the model's own special tokens."""
    unsplittable = set(tokenizer.unsplittable_tokens or [])
    vocabulary = tokenizer.vocabulary
    # Only `save_assets` puts them after all other tokens without declaring them special.
    last = max(vocabulary.values()) - len(_EXPECTED)
    added = {x for x in _EXPECTED if vocabulary.get(x, -1) > last} - unsplittable
    if not added:
        return
    # The attributes of added tokens go; the model's other special tokens become attributes.
    kept = [n for n in tokenizer._special_token_attrs if getattr(tokenizer, n) not in added]
    tokenizer._special_token_attrs = kept
    others = unsplittable - {getattr(tokenizer, name) for name in kept}
    for index, token in enumerate(sorted(others)):
        tokenizer._add_special_token(token, f"special_token_{index:03d}")
    tokenizer.set_vocabulary_and_merges(
        {token: i for token, i in vocabulary.items() if token not in added}, tokenizer.merges
    )
