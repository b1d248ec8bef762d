"""Small but real model folders and tokenizers, made from a few sentences of our own.

`folder` writes what `transformers` writes for a model like SmolLM2: `config.json`, a byte-level
BPE `tokenizer.json` with added special tokens, their settings, and `model.safetensors`.
"""

import io
import json
import pathlib

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


def folder(path, seed=0, **changes):
    """Writes a Llama model as `transformers` would; its path.

    Args:
        path: folder to make.
        seed: of the weights.
        **changes: to `config.json`.
    """
    import safetensors.numpy

    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_pairs()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        **SHAPE,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float32",
        **changes,
    }
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    write(path / "config.json", config)
    write(path / "special_tokens_map.json", names)
    write(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write(path / "generation_config.json", ids)
    safetensors.numpy.save_file(
        weights(config, seed), path / "model.safetensors", metadata={"format": "pt"}
    )
    return path


def weights(config, seed):
    """Random tensors under the names of `transformers`, large enough to prefer some tokens."""
    generator = np.random.default_rng(seed)
    width, inner = config["hidden_size"], config["intermediate_size"]
    grouped = width * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (grouped, width),
        "self_attn.v_proj": (grouped, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    norms = ("input_layernorm", "post_attention_layernorm")

    def normal(*shape, center=0.0, stddev=0.3):
        return generator.normal(center, stddev, shape).astype("float32")

    made = {"model.embed_tokens.weight": normal(config["vocab_size"], width)}
    if not config["tie_word_embeddings"]:
        made["lm_head.weight"] = normal(config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}."
        made |= {f"{start}{name}.weight": normal(*shape) for name, shape in shapes.items()}
        made |= {f"{start}{name}.weight": normal(width, center=1.0, stddev=0.1) for name in norms}
    made["model.norm.weight"] = normal(width, center=1.0, stddev=0.1)
    return made
