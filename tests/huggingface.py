"""Small but real model folders and tokenizers, made from a few sentences of our own.

`folder` writes what `transformers` writes for the models of `FAMILIES`: `config.json`, a tokenizer
with added special tokens, their settings, and `model.safetensors`.
"""

import io
import json
import pathlib
from typing import NamedTuple

import numpy as np

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCES = [
    "Tom had a red ball and Ann had a blue kite.",
    "The cat sat on the mat, and the dog ran to the door.",
    "Once upon a time there was a small bear who liked honey.",
    "It rained for 12 days; on the 13th the sun came back.",
    "We don't know what she'll say, but they've asked her twice.",
    "A boy and a girl went to the park to play with their toys.",
]
TEXTS = [
    "",
    " ",
    "   ",
    "\n\n\n",
    "Tom had a ball",
    " Tom had a ball ",
    "two  spaces and   three",
    "tab\tand\nline\n\n  indented",
    "1234567890 12 3.14",
    "x=1;y+=2",
    "don't they'll we've I'D",
    "naïve café",
    "中文 and кириллица",
    "😀 and 👩‍🚀",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>",
    "a<|im_end|>b<|im_end|>",
    "<|start_header_id|>user<|end_header_id|>",
    "<s>[INST] x </s>",
    "a" * 40,
]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class Family(NamedTuple):
    """What the folder of one family holds.

    config: of its `config.json`, beside or in place of `SHAPE` and `COMMON`'s. Values are chosen so
        that logits show which of them does not arrive.
    special: its special tokens, the end of a text first.
    pieces: whether its tokenizer is a SentencePiece model.
    text: the `model_type` of its text model, where that is one part beside an encoder of images.
    """

    config: dict
    special: tuple[str, ...]
    pieces: bool = False
    text: str = ""


COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 0.02,
    "rope_theta": 700.0,
    "rope_scaling": None,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Plain keras-hub computes with no other epsilon in these families.
SMALL = {"rms_norm_eps": 1e-6}
QWEN = {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 2}
EXPERTS = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "router_aux_loss_coef": 0.01,
    "output_router_logits": False,
}
GEMMA = {
    **SMALL,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
EXPERTS_3_5 = {
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
QWEN_3_5 = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 3,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 700.0,
        "partial_rotary_factor": 0.5,
        "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
    },
}
GEMMA_3 = {
    **GEMMA,
    "num_hidden_layers": 6,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 4,
    "sliding_window_pattern": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}
PER_LAYER = {"vocab_size_per_layer_input": 380, "hidden_size_per_layer_input": 4}
GEMMA_3N = {
    **GEMMA,
    **PER_LAYER,
    "intermediate_size": [64, 64],
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.0, 0.0],
    "final_logit_softcapping": 30.0,
}
GEMMA_4 = {
    **GEMMA,
    **PER_LAYER,
    "global_head_dim": 24,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 4,
    "final_logit_softcapping": 30.0,
    "rope_parameters": {
        "full_attention": {"rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_theta": 10000.0},
    },
}
# What keras-hub asks of the sound of a Gemma 3n.
CONFORMER = ("attention_chunk_size", "attention_context_left", "attention_context_right")
CONFORMER += ("attention_logit_cap", "conv_kernel_size", "num_attention_heads", "num_hidden_layers")
CONFORMER += ("reduction_factor", "residual_weight")
SOUND = ("gradient_clipping", "input_feat_size", "rms_norm_eps", "sscp_conv_channel_size")
SOUND += ("sscp_conv_group_norm_eps", "sscp_conv_kernel_size", "sscp_conv_stride_size")
ENCODER = {"hidden_size": 8, "vocab_size": 8, "vocab_offset": 380}
ENCODERS = {
    "vision_config": ENCODER,
    "audio_config": {**ENCODER, **dict.fromkeys([*SOUND, *(f"conf_{x}" for x in CONFORMER)], 1)},
    "vision_soft_tokens_per_image": 4,
    "audio_soft_tokens_per_image": 4,
    "image_token_id": 381,
    "audio_token_id": 382,
}
CORNERS = ("</s>", "<unk>", "<s>")
TURNS = ("<eos>", "<pad>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
CHATML = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
# Families whose norms multiply with 1 and their weight.
FROM_1 = {"gemma", "gemma2", "gemma3_text", "qwen3_5_text", "qwen3_5_moe_text"}
SOFT = tuple(f"<{kind}_soft_token>" for kind in ("image", "audio"))
SOFT += tuple(f"<{end}_of_{kind}>" for kind in ("image", "audio") for end in ("start", "end"))
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
STARTS = {"<s>", "<bos>", "<|im_start|>", "<|begin_of_text|>", "<|startoftext|>"}
# By the `model_type` of transformers.
FAMILIES = {
    "llama": Family(
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
        },
        ("<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    ),
    "mistral": Family({"head_dim": 16, "sliding_window": 4}, CORNERS, True),
    "mixtral": Family(
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.02,
        },
        CORNERS,
        True,
    ),
    "qwen2": Family(QWEN, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "qwen3": Family({**QWEN, **SMALL, "head_dim": 16, "attention_bias": False}, CHATML),
    "qwen2_moe": Family(
        {**QWEN, **EXPERTS, "shared_expert_intermediate_size": 24},
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ),
    "qwen3_moe": Family(
        {**QWEN, **EXPERTS, **SMALL, "head_dim": 16, "attention_bias": False}, CHATML
    ),
    "smollm3": Family(
        {
            "attention_bias": False,
            "mlp_bias": False,
            "no_rope_layers": [1, 0],
            "layer_types": ["full_attention"] * 2,
            "tie_word_embeddings": True,
        },
        (*CHATML[::2], "<|begin_of_text|>", "<|end_of_text|>", "<think>", "</think>"),
    ),
    "gpt_oss": Family(
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_scaling": YARN,
            "swiglu_limit": 7.0,
        },
        ("<|return|>", "<|startoftext|>", "<|endoftext|>", "<|start|>", "<|end|>", "<|message|>"),
    ),
    "gemma": Family({**GEMMA, "hidden_act": "gelu_pytorch_tanh"}, TURNS, True),
    "gemma2": Family(
        {
            **GEMMA,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 4,
        },
        TURNS,
        True,
    ),
    "gemma3_text": Family(GEMMA_3, TURNS, True),
    "gemma3": Family(
        {**GEMMA_3, "num_hidden_layers": 1, "layer_types": None}, TURNS, True, "gemma3_text"
    ),
    "gemma3n": Family(GEMMA_3N, (*TURNS, *SOFT, "[multimodal]", "<mask>"), True, "gemma3n_text"),
    "gemma4": Family(GEMMA_4, (*TURNS, "<|video|>"), True, "gemma4_text"),
    "qwen3_5": Family(QWEN_3_5, CHATML + VISION, False, "qwen3_5_text"),
    "qwen3_5_moe": Family({**QWEN_3_5, **EXPERTS_3_5}, CHATML + VISION, False, "qwen3_5_moe_text"),
    "gpt2": Family(
        {
            "n_layer": 2,
            "n_head": 4,
            "n_embd": 32,
            "n_inner": None,
            "n_positions": 64,
            "n_ctx": 64,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "resid_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
        },
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ),
}


def write(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def byte_pairs(size=400, special=SPECIAL):
    """A byte-level BPE tokenizer of the `tokenizers` library; special tokens come first."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A few sentences have fewer pairs than a vocabulary of this size needs.
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def vocabulary_and_merges(special=SPECIAL, size=400):
    """What keras-hub's byte-pair tokenizers are made of."""
    model = json.loads(byte_pairs(size, special).to_str())["model"]
    merges = [x if isinstance(x, str) else " ".join(x) for x in model["merges"]]
    return model["vocab"], merges


def sentence_piece(pieces, size=380):
    """A SentencePiece model with byte fallback, as bytes.

    Args:
        pieces: dict of the ids `unk`, `bos`, `eos`, `pad` to tokens, and `more`, a list of further
            tokens that are kept whole.
        size: int, entries of the vocabulary.
    """
    import sentencepiece

    names = [name for name in ("pad", "unk", "bos", "eos") if name in pieces]
    ids = {f"{n}_id": names.index(n) if n in names else -1 for n in ("pad", "unk", "bos", "eos")}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=written,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=pieces.get("more", []),
        minloglevel=2,
        **ids,
        **{f"{name}_piece": pieces[name] for name in names},
    )
    return written.getvalue()


def folder(path, seed=0, family="llama", **changes):
    """Writes a model as `transformers` would; its path.

    Args:
        path: folder to make.
        seed: of the weights.
        family: name in `FAMILIES`; "llama" is like SmolLM2.
        **changes: to `config.json`.
    """
    import safetensors.numpy

    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    own = FAMILIES[family]
    end, *_ = own.special
    start = next((t for t in own.special if t in STARTS), end)
    vocabulary = write_tokenizer(path, own)
    config = {
        "architectures": ["CausalLM"],
        "model_type": own.text or family,
        "vocab_size": len(vocabulary),
        **SHAPE,
        **COMMON,
        **own.config,
        "bos_token_id": vocabulary[start],
        "eos_token_id": vocabulary[end],
        "pad_token_id": vocabulary[end],
        **changes,
    }
    tensors = weights(config, seed)
    names = {"bos_token": start, "eos_token": end, "pad_token": end}
    write(path / "special_tokens_map.json", names)
    write(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write(path / "generation_config.json", ids)
    if own.text:
        tensors = {k.replace("model.", "model.language_model."): v for k, v in tensors.items()}
        tensors["model.vision_tower.embed_tokens.weight"] = np.zeros((2, 2), "float32")
        config = {"text_config": config, **ENCODERS, "model_type": family}
        config |= {"tie_word_embeddings": config["text_config"]["tie_word_embeddings"]}
    write(path / "config.json", config)
    path = path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return path.parent


def write_tokenizer(path, family):
    """Writes the tokenizer's files; the vocabulary."""
    if family.pieces:
        import sentencepiece

        names = {"</s>": "eos", "<eos>": "eos", "<s>": "bos", "<bos>": "bos"}
        names |= {"<unk>": "unk", "<pad>": "pad"}
        pieces = {names[t]: t for t in family.special if t in names}
        pieces["more"] = [t for t in family.special if t not in names]
        model = sentence_piece(pieces)
        (path / "tokenizer.model").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        vocabulary = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
        # Gemma 4 has no other file. Of a merge keras-hub reads what comes out.
        merges = [[t[:1], t[1:]] for t in vocabulary if len(t) > 1 and t[0] not in "<["]
        added = [{"id": vocabulary[t], "content": t, "special": True} for t in family.special]
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        write(path / "tokenizer.json", {"model": model, "added_tokens": added})
        return vocabulary
    tokenizer = byte_pairs(special=sorted(family.special))
    tokenizer.save(str(path / "tokenizer.json"))
    tokenizer.model.save(str(path))  # `vocab.json` and `merges.txt`, as GPT-2 has them
    return tokenizer.get_vocab()


def weights(config, seed):
    """Random tensors under the names of `transformers`, large enough to prefer some tokens."""
    generator = np.random.default_rng(seed)

    def normal(name, shape):
        if name.endswith("_blocks"):
            return generator.integers(0, 256, shape, "uint8")
        if name.endswith("_scales"):
            return generator.integers(122, 126, shape, "uint8")
        is_norm = "norm" in name or name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
        from_1 = config["model_type"] in FROM_1 and "linear_attn" not in name
        is_one = name.endswith("layer_scalar") or (is_norm and not from_1)
        return generator.normal(is_one, 0.1 if is_norm else 0.3, shape).astype("float32")

    return {name: normal(name, shape) for name, shape in shapes(config).items()}


def shapes(config):
    """The shapes of a model's tensors by their names in `transformers`."""
    kind, words = config["model_type"], config["vocab_size"]
    if kind == "gpt2":
        return _gpt2_shapes(config)
    width = config["hidden_size"]
    found = {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (words, width)
    if config.get("hidden_size_per_layer_input"):
        each = config["hidden_size_per_layer_input"]
        every = config["num_hidden_layers"] * each
        rows = config["vocab_size_per_layer_input"]
        found["model.embed_tokens_per_layer.weight"] = (rows, every)
        found["model.per_layer_model_projection.weight"] = (every, width)
        found["model.per_layer_projection_norm.weight"] = (each,)
    for i in range(config.get("altup_num_inputs", 1) - 1):
        found[f"model.altup_projections.{i}.weight"] = (width, width)
        found[f"model.altup_unembed_projections.{i}.weight"] = (width, width)
    for i in range(config["num_hidden_layers"]):
        layer = _layer_shapes(config, (config.get("layer_types") or [None] * 99)[i])
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return found


def _layer_shapes(config, layer_type):
    kind, width = config["model_type"], config["hidden_size"]
    inner = config["intermediate_size"]
    inner = inner[0] if isinstance(inner, list) else inner
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or width // heads
    if layer_type == "full_attention":
        size = config.get("global_head_dim", size)
    is_3_5 = kind.startswith("qwen3_5")
    layer = {}

    def linear(name, outputs, inputs, bias=False):
        layer[f"{name}.weight"] = (outputs, inputs)
        if bias:
            layer[f"{name}.bias"] = (outputs,)

    def gated(name, inner, names=("gate_proj", "up_proj", "down_proj"), bias=False):
        gate, up, down = (f"{name}.{part}" for part in names)
        linear(gate, inner, width, bias)
        linear(up, inner, width, bias)
        linear(down, width, inner, bias)

    bias = config.get("attention_bias", False)
    if layer_type == "linear_attention":
        values = config["linear_num_value_heads"]
        depth = values * config["linear_value_head_dim"]
        columns = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"] + depth
        for name, outputs in (("qkv", columns), ("z", depth), ("b", values), ("a", values)):
            linear(f"linear_attn.in_proj_{name}", outputs, width)
        layer["linear_attn.conv1d.weight"] = (columns, 1, config["linear_conv_kernel_dim"])
        layer |= dict.fromkeys(("linear_attn.dt_bias", "linear_attn.A_log"), (values,))
        layer["linear_attn.norm.weight"] = (config["linear_value_head_dim"],)
        linear("linear_attn.out_proj", width, depth)
    else:
        queries = 2 * heads if is_3_5 else heads
        for name, count in (("q", queries), ("k", groups), ("v", groups)):
            linear(f"self_attn.{name}_proj", count * size, width, bias or kind.startswith("qwen2"))
        linear("self_attn.o_proj", width, heads * size, bias)
        if kind.startswith(("qwen3", "gemma3", "gemma4")):
            layer |= dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (size,))
    experts = range(config.get("num_experts") or config.get("num_local_experts") or 0)
    if kind == "mixtral":
        linear("block_sparse_moe.gate", len(experts), width)
        for i in experts:
            gated(f"block_sparse_moe.experts.{i}", inner, ("w1", "w3", "w2"))
    elif kind == "gpt_oss":
        layer["self_attn.sinks"] = (heads,)
        linear("mlp.router", len(experts), width, True)
        for name, outputs, inputs in (("gate_up", 2 * inner, width), ("down", width, inner)):
            blocks = (len(experts), outputs, inputs // 32)
            layer[f"mlp.experts.{name}_proj_blocks"] = (*blocks, 16)
            layer[f"mlp.experts.{name}_proj_scales"] = blocks
            layer[f"mlp.experts.{name}_proj_bias"] = blocks[:2]
    elif experts:
        linear("mlp.gate", len(experts), width)
        inner = config["moe_intermediate_size"]
        if is_3_5:
            layer["mlp.experts.gate_up_proj"] = (len(experts), 2 * inner, width)
            layer["mlp.experts.down_proj"] = (len(experts), width, inner)
        for i in () if is_3_5 else experts:
            gated(f"mlp.experts.{i}", inner)
        if "shared_expert_intermediate_size" in config:
            gated("mlp.shared_expert", config["shared_expert_intermediate_size"])
            linear("mlp.shared_expert_gate", 1, width)
    else:
        gated("mlp", inner, bias=config.get("mlp_bias", False))
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind.startswith("gemma") and kind != "gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if kind == "gemma4_text":
        layer["layer_scalar"] = (1,)
    if config.get("hidden_size_per_layer_input"):
        linear("per_layer_input_gate", config["hidden_size_per_layer_input"], width)
        linear("per_layer_projection", width, config["hidden_size_per_layer_input"])
        norms.append("post_per_layer_input_norm")
    if kind == "gemma3n_text":
        inputs, rank = config["altup_num_inputs"], config["laurel_rank"]
        linear("altup.correction_coefs", inputs, inputs)
        linear("altup.prediction_coefs", inputs**2, inputs)
        linear("altup.modality_router", inputs, width)
        layer["altup.correct_output_scale"] = (width,)
        linear("laurel.linear_left", rank, width)
        linear("laurel.linear_right", width, rank)
        norms += ["altup.router_norm", "laurel.post_laurel_norm"]
    return layer | {f"{name}.weight": (width,) for name in norms}


def _gpt2_shapes(config):
    width = config["n_embd"]
    inner = config["n_inner"] or 4 * width
    matrices = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }
    found = {
        "wte.weight": (config["vocab_size"], width),
        "wpe.weight": (config["n_positions"], width),
    }
    norms = ["ln_f"]
    for i in range(config["n_layer"]):
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        for name, shape in matrices.items():
            found |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return found
