"""Every text family of keras-hub in a tiny shape, and the documentation's table of them."""

from typing import NamedTuple

import helpers
import keras_hub

SHAPE = {
    "vocabulary_size": helpers.VOCAB,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
HEADS = {"num_heads": 2}
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_dim": 8, "num_experts": 4, "top_k": 2}
CAPS = {"attention_logit_soft_cap": 5.0, "final_logit_soft_cap": 3.0}
NORMS = {"use_post_ffw_norm": True, "use_post_attention_norm": True}
LINEAR = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 3,
}


class Family(NamedTuple):
    """One family.

    title: as people write it.
    options: of its backbone, beside or in place of `SHAPE`'s; None takes one of `SHAPE` away.
    window: the option that sets its sliding window, None where there is none.
    cached: whether it samples with a cache.
    lora: names of the layers for `enable_lora`, None for keras-hub's own choice.
    """

    title: str
    options: dict
    window: str | None = None
    cached: bool = True
    lora: tuple[str, ...] | None = None


GEMMA_3N = {
    **dict.fromkeys(SHAPE),
    "text_vocab_size": helpers.VOCAB,
    "text_hidden_size": 16,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": [32] * 4,
    "hidden_activation": "gelu_approximate",
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "vocab_size_per_layer_input": helpers.VOCAB,
    "hidden_size_per_layer_input": 4,
    "altup_num_inputs": 2,
    "laurel_rank": 2,
    "num_kv_shared_layers": 2,
    "final_logit_soft_cap": 3.0,
}
GEMMA_4 = {
    "image_size": 16,
    "head_dim": 4,
    "num_layers": 4,
    "sliding_window_pattern": 2,
    "global_head_dim": 8,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 4,
    "final_logit_soft_cap": 3.0,
}
SMOLLM_3 = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["attention"] * 2,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
RWKV_7 = {
    **dict.fromkeys(SHAPE),
    "vocabulary_size": helpers.VOCAB,
    "hidden_size": 16,
    "head_size": 4,
    "num_layers": 2,
    "intermediate_dim": 32,
    **dict.fromkeys(["gate_lora", "mv_lora", "aaa_lora", "decay_lora"], 4),
}
LEARNED = {"max_sequence_length": 64, "dropout": 0.0}
SLIDING, SLIDING_SIZE = "sliding_window", "sliding_window_size"
SWITCH = {"use_sliding_window_attention": True}

# By the name of the class, without `CausalLM`.
FAMILIES = {
    "Bloom": Family("BLOOM", HEADS),
    "Falcon": Family("Falcon", {"num_attention_heads": 2}),
    "Gemma": Family(
        "Gemma, Gemma 2", {**GROUPED, "head_dim": 4, **CAPS, **NORMS, **SWITCH}, SLIDING_SIZE
    ),
    "Gemma3": Family(
        "Gemma 3 (text)",
        {**GROUPED, "image_size": 16, "head_dim": 4, "num_layers": 6, **CAPS, **NORMS, **SWITCH},
        SLIDING_SIZE,
    ),
    "Gemma3n": Family("Gemma 3n (text)", GEMMA_3N, SLIDING, lora=("q_proj", "v_proj")),
    "Gemma4": Family("Gemma 4 (text)", {**GROUPED, **GEMMA_4}, SLIDING_SIZE),
    "GPT2": Family("GPT-2", {**HEADS, **LEARNED}),
    "GPTNeoX": Family("GPT-NeoX, Pythia", HEADS, lora=("query_key_value",)),
    "GptOss": Family("gpt-oss", {**GROUPED, "head_dim": 4, "num_experts": 4}, SLIDING),
    "Llama": Family("Llama 2", GROUPED),
    "Llama3": Family("Llama 3, SmolLM 2", GROUPED),
    "Mistral": Family("Mistral", GROUPED, SLIDING),
    "Mixtral": Family("Mixtral", {**GROUPED, "num_experts": 4}, SLIDING),
    "OPT": Family("OPT", {**HEADS, **LEARNED}),
    "Phi3": Family("Phi-3", GROUPED),
    "Qwen": Family("Qwen 2, 2.5", {**GROUPED, **SWITCH}, SLIDING_SIZE),
    "Qwen3": Family("Qwen 3", {**GROUPED, "head_dim": 4}, SLIDING_SIZE),
    "Qwen3Moe": Family("Qwen 3 MoE", {**GROUPED, "head_dim": 4, **EXPERTS}, SLIDING_SIZE),
    "Qwen3_5": Family("Qwen 3.5 (text)", {**GROUPED, **LINEAR}, SLIDING_SIZE, cached=False),
    "Qwen3_5Moe": Family(
        "Qwen 3.5 MoE (text)",
        {
            **GROUPED,
            **LINEAR,
            **EXPERTS,
            "intermediate_dim": None,
            "shared_expert_intermediate_size": 8,
        },
        SLIDING_SIZE,
        cached=False,
    ),
    "QwenMoe": Family(
        "Qwen 1.5 MoE",
        {**GROUPED, **EXPERTS, "shared_expert_intermediate_dim": 8, **SWITCH},
        SLIDING_SIZE,
    ),
    "RWKV7": Family("RWKV-7", RWKV_7, cached=False),
    "SmolLM3": Family("SmolLM 3", SMOLLM_3, lora=("q_proj", "v_proj")),
}
ALIASES = {"Qwen2": "Qwen", "SmolLM": "SmolLM3"}
NO_TEXT_MODELS = {
    "BLIP2": "answers about images",
    "PaliGemma": "answers about images",
    "PARSeq": "reads text in images",
    "Gemma4Assistant": "drafts tokens for another model and cannot stand alone",
}


def lm(name: str, seed: int = 0, window: int = 4):
    """A tiny model of a family, with weights far from their near-uniform start."""
    family = FAMILIES[name]
    shape = {**SHAPE, **family.options}
    if family.window:
        shape |= {family.window: window}
    make = getattr(keras_hub.models, f"{name}Backbone")
    backbone = make(**{key: value for key, value in shape.items() if value is not None})
    constants = [v for v in backbone.weights if v.name == "inv_freq"]
    kept = [v.numpy() for v in constants]
    helpers.filled(backbone, seed)
    for variable, value in zip(constants, kept, strict=True):
        variable.assign(value)
    return getattr(keras_hub.models, f"{name}CausalLM")(backbone=backbone, preprocessor=None)


def table() -> str:
    """Table of `docs/pages/families.md`; `tests/models/test_families.py` verifies every entry."""
    rows = [
        "| family | class | sampling | PPO | reward model | LoRA | save and load |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, family in sorted(FAMILIES.items(), key=lambda item: item[1].title.lower()):
        names = ", ".join(f'"{layer}"' for layer in family.lora or ())
        lora = f"`enable_lora(rank, [{names}])`" if names else "`enable_lora(rank)`"
        sampling = "cached" if family.cached else "uncached"
        rows.append(
            f"| {family.title} | `{name}CausalLM` | {sampling} | yes | yes | {lora} | yes |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
