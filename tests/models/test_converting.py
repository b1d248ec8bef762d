"""Hugging Face folders of every family compute what they say, and are saved and loaded."""

import json
import re

import huggingface
import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers_reference

from kerasrlhf.models import lm_adapter, loading

IDS = np.random.default_rng(0).integers(1, 300, (2, 9)).astype("int32")
WITHOUT_REFERENCE = {"gemma3n", "gemma4"}
WINDOWS = pytest.mark.filterwarnings("ignore:The sliding windows of gpt-oss:UserWarning")
ENCODERS = pytest.mark.filterwarnings("ignore:.*Those encoders are left out:UserWarning")
EPSILON = {"rms_norm_eps": 0.02}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
SLIDING = {"use_sliding_window": True, "max_window_layers": 0}
SPLIT = {"use_sliding_window": True, "max_window_layers": 1}
ROPE_5 = {"rope_theta": None, "rope_scaling": None}


def logits(causal_lm):
    hidden = lm_adapter.hidden_states(causal_lm, IDS, np.ones_like(IDS))
    return np.array(lm_adapter.head(causal_lm)(hidden))


def ids(tokenizer):
    return [np.array(tokenizer(text)).tolist() for text in huggingface.TEXTS]


def settled(layer):
    config = {key: value for key, value in layer.get_config().items() if key != "name"}
    if "unsplittable_tokens" in config:
        config["unsplittable_tokens"] = sorted(config["unsplittable_tokens"])
    return config


def special_ids(folder):
    """The ids of a folder's added tokens, by the libraries that transformers asks."""
    if (folder / "tokenizer.model").is_file():
        path = str(folder / "tokenizer.model")
        return sentencepiece.SentencePieceProcessor(model_file=path).piece_to_id
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id


@WINDOWS
@ENCODERS
@pytest.mark.parametrize("family", huggingface.FAMILIES)
def test_a_folder_computes_what_it_says_and_is_saved_and_loaded(family, tmp_path):
    folder = huggingface.folder(tmp_path / "hf", family=family)
    causal_lm = loading.load_causal_lm(folder)
    expected = logits(causal_lm)
    assert expected.std() > 1
    if family not in WITHOUT_REFERENCE:
        published = transformers_reference.logits(folder, IDS)
        np.testing.assert_allclose(expected, published, atol=1e-4)
    tokenizer = causal_lm.preprocessor.tokenizer
    known = ids(tokenizer)
    assert len({len(row) for row in known}) > 5
    of_token = special_ids(folder)
    for token in huggingface.FAMILIES[family].special:
        assert tokenizer.token_to_id(token) == of_token(token)
        if not huggingface.FAMILIES[family].pieces:
            assert np.array(tokenizer(f"a{token}b"))[1:-1].tolist() == [of_token(token)]

    causal_lm.save_to_preset(str(tmp_path / "preset"))
    again = loading.load_causal_lm(tmp_path / "preset")
    plain = lm_adapter.task_class(str(tmp_path / "preset"))
    plain = plain.from_preset(str(tmp_path / "preset"))
    if family == "gemma3n":
        lm_adapter.check(plain)
    np.testing.assert_array_equal(logits(again), expected)
    np.testing.assert_allclose(logits(plain), expected, atol=1e-4)
    for loaded in (again, plain):
        assert type(loaded) is type(causal_lm)
        assert ids(loaded.preprocessor.tokenizer) == known
        assert loaded.preprocessor.sequence_length == causal_lm.preprocessor.sequence_length
    assert settled(again.backbone) == settled(causal_lm.backbone)
    assert settled(again.preprocessor.tokenizer) == settled(tokenizer)


@WINDOWS
@ENCODERS
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma", EPSILON),
        ("gemma2", {**EPSILON, "query_pre_attn_scalar": 8}),
        (
            "gemma3_text",
            {
                **EPSILON,
                "query_pre_attn_scalar": 8,
                **ROPE_5,
                "rope_local_base_freq": None,
                "rope_parameters": {
                    "full_attention": {**LINEAR["rope_scaling"], "rope_theta": 1000000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            },
        ),
        ("gpt2", {"n_inner": 48}),
        ("gpt_oss", {"sliding_window": None, "rope_scaling": None}),
        ("llama", {**EPSILON, "rope_scaling": huggingface.LLAMA_3, "tie_word_embeddings": False}),
        (
            "llama",
            {**ROPE_5, "rope_parameters": {"rope_theta": 700.0, **huggingface.LLAMA_3}},
        ),
        ("mistral", {**LINEAR, "head_dim": None, "sliding_window": None}),
        ("mixtral", LINEAR),
        ("qwen2", {**SLIDING, **LINEAR, "tie_word_embeddings": True}),
        ("qwen2_moe", {"tie_word_embeddings": True, "norm_topk_prob": False}),
        ("qwen3", {**EPSILON, **SLIDING}),
        ("qwen3_moe", {**EPSILON, **SLIDING, "norm_topk_prob": False}),
        ("qwen3_5", {"tie_word_embeddings": True, "linear_num_key_heads": 4}),
        ("smollm3", {"no_rope_layers": [0, 1]}),
    ],
)
def test_values_of_a_config_arrive_in_the_network(family, changes, tmp_path):
    folder = huggingface.folder(tmp_path / "hf", family=family, **changes)
    reference = dict(changes)
    rope = reference.pop("rope_parameters", {})
    if "full_attention" in rope:
        reference["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if rope:
        reference |= {"rope_theta": rope["rope_theta"], "rope_scaling": rope}
    causal_lm = loading.load_causal_lm(folder)
    expected = transformers_reference.logits(folder, IDS, **reference)
    np.testing.assert_allclose(logits(causal_lm), expected, atol=1e-4)
    np.testing.assert_array_equal(logits(lm_adapter.copy(causal_lm)), logits(causal_lm))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("gemma", "rope_theta", 700.0),
        ("gemma2", "query_pre_attn_scalar", 24),
        ("gemma3_text", "rope_local_base_freq", 700.0),
        ("gemma3_text", "layer_types", ["sliding_attention", "full_attention"] * 3),
        ("gpt2", "layer_norm_epsilon", 0.02),
        ("gpt2", "activation_function", "relu"),
        ("gpt_oss", "rope_scaling", {**huggingface.YARN, "beta_fast": 16.0}),
        ("llama", "attention_bias", True),
        ("llama", "mlp_bias", True),
        ("llama", "head_dim", 16),
        ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("mistral", "tie_word_embeddings", True),
        ("mixtral", "head_dim", 16),
        ("qwen2", "max_window_layers", 1),
        ("qwen2_moe", "use_sliding_window", True),
        ("qwen3", "attention_bias", True),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("smollm3", "tie_word_embeddings", False),
    ],
)
def test_values_that_keras_hub_cannot_compute_are_refused(family, key, value, tmp_path):
    """Before anything is built: there are no weights in the folder."""
    folder = huggingface.folder(tmp_path / "hf", family=family)
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    if key == "max_window_layers":
        config["use_sliding_window"] = True
    huggingface.write(folder / "config.json", config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"config.json says .*{re.escape(key)}=.*{family}"):
        loading.load_causal_lm(folder)


@ENCODERS
def test_a_short_config_of_gemma_3_means_what_transformers_takes(tmp_path):
    short = {"num_hidden_layers": 1, "layer_types": None, "query_pre_attn_scalar": 256}
    full = {"head_dim": 256, "num_attention_heads": 8}
    folder = huggingface.folder(tmp_path / "hf", family="gemma3", **short, **full)
    config = json.loads((folder / "config.json").read_text())
    for key in full:
        del config["text_config"][key]
    huggingface.write(folder / "config.json", config)
    expected = transformers_reference.logits(folder, IDS, **full)
    np.testing.assert_allclose(logits(loading.load_causal_lm(folder)), expected, atol=1e-4)


def test_encoders_are_said_to_be_left_out(tmp_path, capsys):
    folder = huggingface.folder(tmp_path / "hf", family="qwen3_5")
    with pytest.warns(UserWarning, match="vision_config and audio_config. Those encoders"):
        loading.load_causal_lm(folder)
    assert capsys.readouterr().out == ""


def test_windows_of_gpt_oss_are_said_to_be_elsewhere(tmp_path):
    folder = huggingface.folder(tmp_path / "hf", family="gpt_oss")
    with pytest.warns(UserWarning, match="after the first 64 tokens"):
        loading.load_causal_lm(folder)


@WINDOWS
def test_weights_that_are_missing_are_named(tmp_path):
    """As in a gpt-oss that was saved without its 4-bit blocks."""
    import safetensors.numpy

    folder = huggingface.folder(tmp_path / "hf", family="gpt_oss")
    path = folder / "model.safetensors"
    kept = safetensors.numpy.load_file(path)
    kept = {name: value for name, value in kept.items() if "blocks" not in name}
    safetensors.numpy.save_file(kept, path)
    with pytest.raises(ValueError, match=r"(?s)gate_up_proj_blocks.*The preset was found"):
        loading.load_causal_lm(folder)


@pytest.mark.parametrize("family", ["qwen3", "smollm3"])
def test_merges_that_are_strings_are_read_as_those_that_are_pairs(family, tmp_path):
    folder = huggingface.folder(tmp_path / "hf", family=family)
    expected = ids(loading.load_causal_lm(folder).preprocessor.tokenizer)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    merges = saved["model"]["merges"]
    saved["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    assert " " in saved["model"]["merges"][0]
    huggingface.write(path, saved)
    assert ids(loading.load_causal_lm(folder).preprocessor.tokenizer) == expected


def test_gpt_2_with_the_files_of_old_has_its_own_tokens_alone(tmp_path):
    folder = huggingface.folder(tmp_path / "hf", family="gpt2")
    (folder / "tokenizer.json").unlink()
    tokenizer = loading.load_causal_lm(folder).preprocessor.tokenizer
    assert tokenizer.special_tokens == ["<|endoftext|>"]
