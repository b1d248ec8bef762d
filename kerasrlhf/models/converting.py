"""Hugging Face folders: what the converters of keras-hub 0.32 leave out.

A converter turns the `config.json`, the tensors and the tokenizer of a folder into keras-hub's.
`load` adds the settings that keras-hub can compute with; `check` refuses those that it cannot:
such a model would load silently and have other logits than in `transformers`.

| what is left out | of | what happens without mending |
|---|---|---|
| `rms_norm_eps` | Llama, Gemma, Gemma 2 | other logits |
| `rope_scaling` of type "linear" | Mistral, Mixtral, Qwen | other logits |
| `rope_parameters` of transformers 5, but for their base | all | other logits |
| `use_sliding_window`, both ways | Qwen 2, Qwen 3 MoE | other logits |
| `tie_word_embeddings` | Qwen 2 MoE | it does not load |
| `n_inner` | GPT-2 | it does not load |
| float32 of weights | Mistral | they are rounded to float16 |
| added tokens | GPT-2, gpt-oss | they are split as text |
| merges that are written as strings | Qwen 3, SmolLM3 | most words are split into bytes |

Of a model with encoders of images or sound, the text model is loaded alone.
"""

from __future__ import annotations

import types
import warnings
from typing import Any

import numpy as np

from kerasrlhf.models import lm_adapter

_BYTE_PAIRS = {"gpt2", "gpt_oss", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"}
_LINEAR = {"mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma3_text"}
_TEXT_TYPES = {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}
_WITH_ENCODERS = {"gemma3_text", "gemma3n", "gemma4_text", "qwen3_5", "qwen3_5_moe"}
# The defaults of transformers for the `text_config` of a Gemma 3.
_GEMMA_3 = {"vocab_size": 262208, "head_dim": 256, "num_attention_heads": 8}
_SPARSE_ONLY = {"mlp_only_layers": [], "decoder_sparse_step": 1}
_GEMMA = {"attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"}
_YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
# The values that keras-hub computes with, whatever `config.json` says.
_FIXED: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "mistral": {"hidden_act": "silu", "tie_word_embeddings": False},
    "mixtral": {"hidden_act": "silu", "tie_word_embeddings": False},
    "qwen2": {"hidden_act": "silu"},
    "qwen2_moe": {"hidden_act": "silu", "use_sliding_window": False, **_SPARSE_ONLY},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
    "qwen3_moe": {"hidden_act": "silu", "attention_bias": False, **_SPARSE_ONLY},
    "smollm3": {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {"attention_bias": True, "swiglu_limit": 7.0, "tie_word_embeddings": False},
    "gemma": {**_GEMMA, "rope_theta": 10000.0},
    "gemma2": {**_GEMMA, "rope_theta": 10000.0},
    "gemma3_text": {**_GEMMA, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0},
    "gpt2": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    },
}


def load(preset: str, options: dict) -> Any:
    """Loads a language model from a Hugging Face folder, as its `config.json` defines it.

    Args:
        preset: `hf://` handle or local folder that passed `check`.
        options: dict, arguments of `CausalLM.from_preset`.
    """
    loader, task = lm_adapter.preset_loader(preset)
    config = _settled(loader.config)
    # keras-hub's loader has the settled config and a converter that passes these on.
    found = _options(config)
    loader.config = config
    loader.converter = _mended(loader.converter, config["model_type"], found)
    load_weights = options.get("load_weights", True)
    options = {name: value for name, value in options.items() if name != "load_weights"}
    return loader.load_task(task, load_weights, True, **options)


def check(config: dict) -> None:
    """Raises a `ValueError` for values that keras-hub's model of the family does not have.

    Args:
        config: dict, a Hugging Face folder's `config.json`.
    """
    # Before settling, which leaves out what is not text.
    encoders = [name for name in ("vision_config", "audio_config") if config.get(name)]
    config = _settled(config)
    wrong = {
        key: (config[key], expected)
        for key, expected in _needed(config).items()
        if config.get(key) is not None and config[key] != expected
    }
    if wrong:
        received = ", ".join(f"{key}={value!r}" for key, (value, _) in wrong.items())
        expected = ", ".join(f"{key}={value!r}" for key, (_, value) in wrong.items())
        raise ValueError(
            f"The model's config.json says {received}. keras-hub's model of the type "
            f"{config['model_type']!r} computes with {expected} whatever it says: the logits would "
            "not be those of the model that was published. Choose a model with these values."
        )
    if config["model_type"] in _WITH_ENCODERS and encoders:
        warnings.warn(
            f"The model's config.json has {' and '.join(encoders)}. Those encoders are left out; "
            "the text model is loaded alone.",
            stacklevel=3,
        )
    window = config.get("sliding_window")
    if config["model_type"] == "gpt_oss" and window:
        warnings.warn(
            "The sliding windows of gpt-oss are in its even layers. keras-hub has them in the odd "
            f"ones: logits after the first {window} tokens of a row are not those of the model "
            "that was published.",
            stacklevel=3,
        )


def _settled(config: dict) -> dict:
    """Returns a `config.json` of the text alone, with the names that converters read.

    These are the names of transformers 4.
    """
    config = {"architectures": ["CausalLM"], **config}
    kind = config["model_type"]
    if kind in _TEXT_TYPES and "text_config" in config:
        text = {"model_type": _TEXT_TYPES[kind], "architectures": config["architectures"]}
        config = {**(_GEMMA_3 if kind == "gemma3" else {}), **config["text_config"], **text}
    if kind.startswith("qwen3_5"):
        config.pop("vision_config", None)
    if config["model_type"] not in _FIXED:
        return config
    # transformers 5 has one dict; for Gemma 3 it has one for each kind of attention.
    rope = config.pop("rope_parameters", None) or {}
    if "full_attention" in rope:
        whole, local = rope["full_attention"], rope.get("sliding_attention", {})
        config.setdefault("rope_local_base_freq", local.get("rope_theta"))
        rope = whole
    if rope.get("rope_theta") is not None:
        config["rope_theta"] = rope["rope_theta"]
    # Older configs say "type"; "default" means no scaling.
    scaling = config.get("rope_scaling") or {k: v for k, v in rope.items() if k != "rope_theta"}
    if "type" in scaling:
        scaling = {"rope_type": scaling["type"], **scaling}
    config["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return config


def _sliding_layers(config: dict) -> list[bool]:
    """Returns which layers of a Qwen model have a sliding window."""
    layers = range(config["num_hidden_layers"])
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return [False for _ in layers]
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    # Configs without `layer_types`: windows start at one layer, in Qwen 3 MoE at the first.
    first = config.get("max_window_layers", 0) if config["model_type"] != "qwen3_moe" else 0
    return [layer >= first for layer in layers]


def _options(config: dict) -> dict:
    """Returns the arguments of the backbone that the converter leaves out."""
    kind = config["model_type"]
    found = {}
    if kind in ("llama", "gemma", "gemma2") and "rms_norm_eps" in config:
        found["layer_norm_epsilon"] = config["rms_norm_eps"]
    if kind in _LINEAR and config["rope_scaling"] and kind != "gemma3_text":
        found["rope_scaling_factor"] = config["rope_scaling"]["factor"]
    if kind == "qwen2":
        found["use_sliding_window_attention"] = all(_sliding_layers(config))
    if kind == "qwen3_moe" and not any(_sliding_layers(config)):
        found["sliding_window_size"] = None
    if kind == "qwen2_moe":
        found["tie_word_embeddings"] = config.get("tie_word_embeddings", False)
    if kind == "gpt2" and config.get("n_inner"):
        found["intermediate_dim"] = config["n_inner"]
    if kind == "gemma3n":
        found |= {"vision_encoder_config": None, "audio_encoder_config": None}
    return found


def _needed(config: dict) -> dict:
    """Returns the values of keras-hub's model for keys that it does not take from a config."""
    kind = config["model_type"]
    needed = dict(_FIXED.get(kind, {}))
    heads, width = config.get("num_attention_heads", 1), config.get("hidden_size", 0)
    if kind in ("llama", "mixtral", "qwen2", "qwen2_moe", "smollm3"):
        # These families compute the size of a head.
        needed["head_dim"] = width // heads
    if kind in ("qwen2", "qwen3") and len({*_sliding_layers(config)}) > 1:
        # keras-hub has windows in all layers or in none.
        needed["max_window_layers"] = 0
        needed["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
    if kind == "smollm3":
        needed["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    if kind in ("gemma2", "gemma3_text"):
        # keras-hub scales queries by one of two sizes.
        scales = [config["head_dim"], width // heads]
        found = config.get("query_pre_attn_scalar")
        needed["query_pre_attn_scalar"] = found if found in scales else scales[0]
        needed["layer_types"] = _windows_of_gemma(config)
    rope = config.get("rope_scaling") or {}
    # The only kind of scaling that each family has in keras-hub.
    known = {"llama": "llama3", "gpt_oss": "yarn", **dict.fromkeys(_LINEAR, "linear")}
    if kind in _FIXED and rope and rope.get("rope_type") != known.get(kind):
        needed["rope_scaling"] = None
    elif kind == "gpt_oss" and rope:
        needed["rope_scaling"] = {**rope, **_YARN}
    return needed


def _windows_of_gemma(config: dict) -> list[str]:
    """Returns the kind of each layer of keras-hub's Gemma 2 and 3, with or without a window."""
    period = 2 if config["model_type"] == "gemma2" else 6
    found = config.get("layer_types") or []
    # A Gemma 3 without any windows is computed without them.
    if period == 6 and found and "sliding_attention" not in found:
        return found
    layers = range(1, config["num_hidden_layers"] + 1)
    return [f"{'sliding' if i % period else 'full'}_attention" for i in layers]


def _mended(converter: Any, kind: str, options: dict) -> types.SimpleNamespace:
    """Returns a converter that also passes `options` to the backbone, with mended parts."""
    parts = dict(vars(converter))
    if options:

        def convert_backbone_config(config: dict) -> dict:
            return {**converter.convert_backbone_config(config), **options}

        parts["convert_backbone_config"] = convert_backbone_config
    if kind == "mistral":  # which rounds weights to float16
        exact = types.SimpleNamespace(**{**vars(np), "float16": np.float32})
        parts["convert_weights"] = _with_names(converter.convert_weights, np=exact)
    if kind.startswith("qwen3_5"):  # which prints the tensors of encoders as missing
        silent = {"_audit_weights": lambda *args: None}
        parts["convert_weights"] = _with_names(converter.convert_weights, **silent)
    if kind in _WITH_ENCODERS:
        # The loader would make parts of the preprocessor that a text model has no use for.
        for part in ("image_converter", "audio_converter", "video_converter", "preprocessor"):
            parts.pop(f"load_{part}_config", None)
    if kind == "gemma3n":
        port = converter._port_language_model  # noqa: SLF001
        parts["convert_weights"] = lambda backbone, loader, _: port(loader, backbone)
    if kind in _BYTE_PAIRS:

        def convert_tokenizer(cls: type, preset: str, **kwargs: Any) -> Any:
            saved = lm_adapter.preset_json(preset, "tokenizer.json")
            if saved is None:
                return converter.convert_tokenizer(cls, preset, **kwargs)
            return _byte_pairs(cls, saved, kwargs)

        parts["convert_tokenizer"] = convert_tokenizer
    return types.SimpleNamespace(**parts)


def _with_names(function: types.FunctionType, **names: Any) -> types.FunctionType:
    """Returns a function with the same code and other values for some global names."""
    return types.FunctionType(function.__code__, {**function.__globals__, **names})


def _byte_pairs(cls: type, saved: dict, options: dict) -> Any:
    """Returns the byte-pair tokenizer of a `tokenizer.json`, with its added tokens."""
    # Reserved tokens occur in no text.
    merges = saved["model"]["merges"]
    added = {
        token["content"]: token["id"]
        for token in saved.get("added_tokens", [])
        if not token["content"].startswith("<|reserved_special_token_")
    }
    return cls(
        vocabulary={**saved["model"]["vocab"], **added},
        # Written as "a b" or as ["a", "b"], by the version of `tokenizers`.
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        unsplittable_tokens=list(added),
        **options,
    )
