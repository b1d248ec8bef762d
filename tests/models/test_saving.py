"""What is saved can be loaded: by this package, and by plain keras-hub."""

import inspect
import json
import os
import pathlib

import helpers
import huggingface
import keras
import keras_hub
import numpy as np
import pytest

from kerasrlhf import special_tokens, tokens
from kerasrlhf.models import lm_adapter, loading, lora, mending
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel

MODELS = keras_hub.models
CORNERS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
GEMMA = {"pad": "<pad>", "unk": "<unk>", "bos": "<bos>", "eos": "<eos>"}
GEMMA_3N = [
    "<image_soft_token>",
    "<audio_soft_token>",
    "<start_of_image>",
    "<end_of_image>",
    "<start_of_audio>",
    "<end_of_audio>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<mask>",
    "[multimodal]",
]
QUIET = {f"has_{kind}_tokens": False for kind in ("vision", "audio", "video")}
LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *mending._EXPECTED)
# By the family's name: the special tokens that its tokenizer wants, and further options.
BYTE_PAIRS = {
    "Bloom": (("<s>", "</s>", "<pad>"), {}),
    "Falcon": (("<|endoftext|>",), {}),
    "GPT2": (("<|endoftext|>",), {}),
    "GPTNeoX": (("<|endoftext|>",), {}),
    "GptOss": (("<|endoftext|>",), {}),
    "Llama3": (LLAMA_3, {}),
    "Llama3 instruct": (LLAMA_3, {"eos_token": "<|eot_id|>"}),
    "Llama3 other": (
        huggingface.SPECIAL,
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "misc_special_tokens": {*huggingface.SPECIAL, "<|extra|>"},
        },
    ),
    "Mistral Tekken": (("<s>", "</s>"), {"split_pattern": r"\d|\p{L}+|[^\d\p{L}]+"}),
    "OPT": (("</s>", "<pad>"), {}),
    "Qwen": (("<|endoftext|>",), {}),
    "QwenMoe": (("<|endoftext|>",), {}),
    "Qwen3": (("<|im_end|>", "<|endoftext|>"), {}),
    "Qwen3Moe": (("<|im_end|>", "<|endoftext|>"), {}),
    "Qwen3_5": (huggingface.SPECIAL, {"has_vision_tokens": False}),
    "Qwen3_5Moe": (huggingface.SPECIAL, {"has_vision_tokens": False}),
    "SmolLM3": (("<|end_of_text|>", "<|begin_of_text|>", "<think>", "</think>"), {}),
}
SENTENCE_PIECES = {
    "Gemma": (GEMMA, {}),
    "Gemma3": (GEMMA, {"has_vision_tokens": False}),
    "Gemma3n": ({**GEMMA, "more": GEMMA_3N}, {}),
    "Gemma4": (GEMMA, QUIET),
    "Llama": (CORNERS, {}),
    "Mistral": (CORNERS, {}),
    "Mixtral": (CORNERS, {}),
    "Phi3": ({**CORNERS, "eos": "<|endoftext|>"}, {}),
}
CASES = [*BYTE_PAIRS, *SENTENCE_PIECES, "RWKV7"]
IDS = np.random.default_rng(0).integers(1, helpers.VOCAB, (2, 9)).astype("int32")
INPUTS = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
QUANTIZED = pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")


def tokenizer(case):
    """A tokenizer of a family with special tokens and one that it does not want."""
    if case == "RWKV7":
        lines = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)]
        return MODELS.RWKVTokenizer([*lines, "257 'Tom' 3", "258 '\\n\\n' 2"])
    name = case.split()[0]
    if case in SENTENCE_PIECES:
        pieces, options = SENTENCE_PIECES[case]
        pieces = {**pieces, "more": [*pieces.get("more", []), "<|extra|>"]}
        make = getattr(MODELS, f"{name}Tokenizer")
        return make(huggingface.sentence_piece(pieces), **options)
    special, options = BYTE_PAIRS[case]
    vocabulary, merges = huggingface.vocabulary_and_merges((*special, "<|extra|>"))
    if "Tekken" in case:
        return MODELS.MistralTekkenTokenizer(vocabulary, merges, **options)
    if "misc_special_tokens" not in options:
        options = {"unsplittable_tokens": [*special, "<|extra|>"], **options}
    return getattr(MODELS, f"{name}Tokenizer")(vocabulary, merges, **options)


def ids(made, texts=huggingface.TEXTS):
    return [np.array(made(text)).tolist() for text in texts]


def settled(config):
    """A configuration without what is in no order or counts objects."""
    if not isinstance(config, dict):
        return config
    config = {key: settled(value) for key, value in config.items() if key != "name"}
    if "unsplittable_tokens" in config:
        config["unsplittable_tokens"] = sorted(config["unsplittable_tokens"])
    return config


@pytest.mark.parametrize("case", CASES)
def test_a_tokenizer_is_the_same_after_it_was_saved(case, tmp_path):
    name = case.split()[0]
    made = tokenizer(case)
    make = getattr(MODELS, f"{name}CausalLMPreprocessor")
    before = make(made, sequence_length=24, add_start_token=False, add_end_token=False)
    texts = [text for text in huggingface.TEXTS if text or case != "RWKV7"]
    expected = ids(made, texts)
    assert len({len(row) for row in expected}) > 5
    mending.mend_preprocessor(before)
    before.save_to_preset(str(tmp_path))
    kind = getattr(MODELS, f"{name}Backbone")
    config = {"registered_name": keras.saving.get_registered_name(kind), "config": {}}
    config |= {"module": kind.__module__, "class_name": kind.__name__}
    huggingface.write(tmp_path / "config.json", config)

    ours = loading.load_preprocessor(tmp_path)
    plain = MODELS.CausalLMPreprocessor.from_preset(str(tmp_path))
    for after in (ours, plain):
        assert type(after) is make and type(after.tokenizer) is type(made)
        assert ids(after.tokenizer, texts) == expected
        for token in ("start_token_id", "end_token_id", "pad_token_id", "end_token2_id"):
            assert getattr(after.tokenizer, token, None) == getattr(made, token, None), token
    assert settled(ours.get_config()) == settled(before.get_config())
    assert {*ours.tokenizer.special_tokens} == {*made.special_tokens}
    assert ours.tokenizer.vocabulary_size() == made.vocabulary_size()


def test_every_family_has_a_tokenizer_here():
    families = {case.split()[0] for case in CASES}
    public = {n.removesuffix("CausalLM") for n in dir(MODELS) if n.endswith("CausalLM")}
    named_twice, no_text = {"Qwen2", "SmolLM"}, {"BLIP2", "PaliGemma", "PARSeq"}
    assert public - families - named_twice - no_text == {"", "Gemma4Assistant"}


def test_a_plainly_loaded_tokenizer_is_restored_when_it_is_mended(tmp_path):
    """Two entries satisfy plain keras-hub; no text becomes one of them, and they go again."""
    folder = huggingface.folder(tmp_path / "hf")
    causal_lm = loading.load_causal_lm(folder)
    size = causal_lm.preprocessor.tokenizer.vocabulary_size()
    causal_lm.save_to_preset(str(tmp_path / "saved"))
    plain = MODELS.CausalLM.from_preset(str(tmp_path / "saved"))
    assert plain.preprocessor.tokenizer.vocabulary_size() == size + 2
    expected = ids(causal_lm.preprocessor.tokenizer)
    assert max(map(max, filter(None, expected))) < size
    ActorCritic(plain)
    assert plain.preprocessor.tokenizer.vocabulary_size() == size
    assert {*plain.preprocessor.tokenizer.special_tokens} == {*huggingface.SPECIAL}
    assert ids(plain.preprocessor.tokenizer) == expected


def logits(causal_lm, inputs=INPUTS):
    return np.array(keras.ops.cast(causal_lm(inputs), "float32"))


def both(folder):
    """The language model of a folder, as this package and as plain keras-hub loads it."""
    return loading.load_causal_lm(folder), MODELS.CausalLM.from_preset(str(folder))


def test_a_hugging_face_folder_is_loaded_saved_and_loaded(tmp_path):
    causal_lm = loading.load_causal_lm(huggingface.folder(tmp_path / "hf"))
    assert causal_lm.backbone.get_config()["layer_norm_epsilon"] == 1e-5
    expected = logits(causal_lm)
    assert expected.std() > 0.5
    ActorCritic(causal_lm).save_to_preset(tmp_path / "actor")
    causal_lm.save_to_preset(str(tmp_path / "alone"))
    RewardModel(causal_lm).save_to_preset(tmp_path / "reward")
    for name in ("actor", "alone"):
        for again in both(tmp_path / name):
            np.testing.assert_allclose(logits(again), expected, atol=1e-6)
            assert again.backbone.get_config()["layer_norm_epsilon"] == 1e-5
            assert ids(again.preprocessor.tokenizer) == ids(causal_lm.preprocessor.tokenizer)
    again = RewardModel.from_preset(tmp_path / "reward")
    assert again.preprocessor.tokenizer.end_token == "<|im_end|>"
    assert MODELS.Backbone.from_preset(str(tmp_path / "reward")).tie_word_embeddings


def test_an_untied_model_stays_untied(tmp_path):
    folder = huggingface.folder(tmp_path / "hf", tie_word_embeddings=False)
    causal_lm = loading.load_causal_lm(folder)
    causal_lm.save_to_preset(str(tmp_path / "saved"))
    for again in both(tmp_path / "saved"):
        assert not again.backbone.tie_word_embeddings
        np.testing.assert_allclose(logits(again), logits(causal_lm), atol=1e-6)


def test_no_text_backbone_forgets_an_argument():
    """Arguments that a config leaves out are kept as attributes, where mending finds them."""
    found = {}
    for name in {case.split()[0] for case in CASES}:
        kind = getattr(MODELS, f"{name}Backbone")
        source = "".join(inspect.getsource(base.get_config) for base in (kind, *kind.__bases__))
        names = {*inspect.signature(kind.__init__).parameters} - {"self", "kwargs", "dtype"}
        found[name] = {n for n in names if f'"{n}"' not in source}
    forgotten = {name: names for name, names in found.items() if names}
    assert forgotten == {
        "Llama": {"tie_word_embeddings"},
        "Llama3": {"tie_word_embeddings"},
        "Mixtral": {"output_router_logits"},
        "QwenMoe": {"router_aux_loss_coefficient"},
    }
    shape = {"vocabulary_size": 9, "num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8}
    shape |= {"num_query_heads": 2, "num_key_value_heads": 2, "num_experts": 2, "top_k": 1}
    more = {"moe_intermediate_dim": 8, "shared_expert_intermediate_dim": 8}
    for made, argument, value in (
        (MODELS.MixtralBackbone(**shape, output_router_logits=True), "output_router_logits", True),
        (
            MODELS.QwenMoeBackbone(**shape, **more, router_aux_loss_coefficient=0.5),
            "router_aux_loss_coefficient",
            0.5,
        ),
    ):
        lm_adapter.check_backbone(made)
        assert made.get_config()[argument] == value


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_mixed_precision_is_saved_in_a_form_that_loads(family, policy, tmp_path):
    """Plain keras-hub ends with "Invalid dtype" at what it saved itself."""
    causal_lm = helpers.lm(family, dtype=policy)
    expected = logits(causal_lm)
    ActorCritic(causal_lm).save_to_preset(tmp_path / "actor")
    ours, plain = both(tmp_path / "actor")
    assert ours.backbone.dtype_policy.name == policy
    for again in (ours, plain):
        assert again.backbone.compute_dtype == policy.removeprefix("mixed_")
        assert {v.dtype for v in again.trainable_variables} == {"float32"}
        np.testing.assert_array_equal(logits(again), expected)
    other = loading.load_causal_lm(tmp_path / "actor", dtype="float32")
    assert other.backbone.compute_dtype == "float32"
    again = loading.load_backbone(tmp_path / "actor")
    assert again.dtype_policy.name == policy


def test_mixed_precision_that_plain_keras_hub_saved_is_loaded(tmp_path):
    causal_lm = helpers.lm("gpt2", dtype="mixed_bfloat16")
    causal_lm.save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="Invalid dtype"):
        MODELS.CausalLM.from_preset(str(tmp_path))
    np.testing.assert_array_equal(logits(loading.load_causal_lm(tmp_path)), logits(causal_lm))


def adapted(backbone):
    """`backbone` with adapters that are not zero."""
    backbone.enable_lora(2)
    generator = np.random.default_rng(0)
    for layer in lora.adapted_layers(backbone):
        for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
            variable.assign(generator.normal(0, 0.2, variable.shape))
    return backbone


@QUANTIZED
@pytest.mark.parametrize(
    ("family", "dtype", "mode"),
    [
        ("llama", "float32", "int8"),
        ("llama", "float32", "int4"),
        ("gpt2", "mixed_bfloat16", "int4"),
    ],
)
def test_quantized_models_compute_the_same_after_loading(family, dtype, mode, tmp_path):
    causal_lm = helpers.lm(family, dtype=dtype)
    actor = ActorCritic(causal_lm)
    causal_lm.backbone.quantize(mode)
    base = logits(causal_lm)
    actor.save_to_preset(tmp_path / "base")
    ours = loading.load_causal_lm(tmp_path / "base")
    np.testing.assert_allclose(logits(ours), base, atol=1e-5)

    adapted(ours.backbone)
    expected = logits(ours)
    assert np.abs(expected - base).max() > 0.1
    ours.save_to_preset(str(tmp_path / "tuned"))
    np.testing.assert_array_equal(logits(ours), expected)
    again = loading.load_causal_lm(tmp_path / "tuned")
    np.testing.assert_allclose(logits(again), expected, atol=1e-5)
    # Its adapters can be trained further and saved again.
    names = [v.path for v in ours.backbone.trainable_variables]
    assert [v.path for v in again.backbone.trainable_variables] == names
    assert again.backbone._lora_enabled_layers == ours.backbone._lora_enabled_layers
    again.save_to_preset(str(tmp_path / "base"))
    assert (tmp_path / "base" / lora._FILE).is_file()
    # Plain keras-hub has what Keras merged.
    assert np.isfinite(logits(MODELS.CausalLM.from_preset(str(tmp_path / "tuned")))).all()
    # A folder does not keep the adapters of an earlier model.
    causal_lm.backbone.save_to_preset(str(tmp_path / "base"))
    assert not (tmp_path / "base" / lora._FILE).exists()


@QUANTIZED
def test_quantized_reward_models_and_critics_keep_their_adapters(tmp_path):
    reward = RewardModel(helpers.lm("llama"))
    helpers.filled(reward.score_head, seed=3)
    reward.backbone.quantize("int8")
    adapted(reward.backbone)
    expected = np.array(reward(INPUTS))
    reward.save_to_preset(tmp_path / "reward")
    again = RewardModel.from_preset(tmp_path / "reward")
    np.testing.assert_allclose(again(INPUTS), expected, atol=1e-5)
    assert lora.adapted_layers(again.backbone)

    actor = ActorCritic(helpers.lm("llama"), critic=reward.backbone)
    helpers.filled(actor.value_head, seed=3)
    expected = np.array(actor(INPUTS)["values"])
    actor.save_to_preset(tmp_path / "actor")
    again = ActorCritic.from_preset(tmp_path / "actor")
    np.testing.assert_allclose(again(INPUTS)["values"], expected, atol=1e-5)


@QUANTIZED
def test_a_quantized_model_without_adapters_says_how_little_is_trained():
    reward = RewardModel(helpers.lm("llama"))
    reward.backbone.quantize("int8")
    trained = len(reward.backbone.trainable_variables)
    with pytest.warns(UserWarning, match=rf"trained are {trained} of its .*\(scale\), 48 of"):
        reward.compile("sgd")
    reward.backbone.enable_lora(2)
    reward.compile("sgd")


@QUANTIZED
@pytest.mark.parametrize("mode", ["int4", "int8"])
def test_a_copy_of_a_quantized_model_computes_the_same(mode):
    causal_lm = helpers.lm("llama")
    causal_lm.backbone.quantize(mode)
    np.testing.assert_array_equal(logits(lm_adapter.copy(causal_lm)), logits(causal_lm))


def test_errors_tell_what_is_missing_from_what_is_broken(tmp_path):
    with pytest.raises(ValueError, match="No language model could be loaded") as missing:
        loading.load_causal_lm(tmp_path / "nothing")
    assert str(missing.value).startswith("Unknown preset identifier")
    folder = huggingface.folder(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="The preset was found") as broken:
        loading.load_causal_lm(folder)
    assert "safetensors" in str(broken.value).splitlines()[0]
    assert "Expected a built-in" not in str(broken.value)
    config = json.loads((folder / "config.json").read_text())
    huggingface.write(folder / "config.json", {**config, "model_type": "unheard_of"})
    with pytest.raises(ValueError, match=r"no converter .*unheard_of"):
        loading.load_causal_lm(folder)


@pytest.mark.slow
def test_smollm2_is_loaded_saved_and_loaded(tmp_path):
    folder = pathlib.Path(os.environ.get("SMOLLM2", "no folder"))
    if not (folder / "model.safetensors").is_file():
        pytest.skip("SMOLLM2 names no folder that ../shared/models/make_smollm2.py made")
    causal_lm = loading.load_causal_lm(folder)
    expected = logits(causal_lm)
    ActorCritic(causal_lm).save_to_preset(tmp_path / "actor")
    for again in both(tmp_path / "actor"):
        np.testing.assert_allclose(logits(again), expected, atol=1e-5)
        assert ids(again.preprocessor.tokenizer) == ids(causal_lm.preprocessor.tokenizer)
        assert again.preprocessor.tokenizer.end_token == "<|im_end|>"


@pytest.mark.parametrize("case", CASES)
def test_typed_special_tokens_are_text_in_every_family(case):
    """And what a template writes is not: the same words become the tokens themselves."""
    made = tokenizer(case)
    known = special_tokens.special_token_ids(made)
    assert getattr(made, "end_token", None) in {None, *known}
    typed = "Tom " + " and ".join(sorted(known)) + " ran."
    (row,) = tokens.tokenize([typed], made)
    assert not set(row) & set(known.values())
    assert tokens.detokenize([row], made) == [typed]
    (row,) = tokens.tokenize([typed], made, parse_special=True)
    assert [i for i in row if i in known.values()] == [known[token] for token in sorted(known)]
