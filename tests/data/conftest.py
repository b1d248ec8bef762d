"""Small tokenizers of our own, whose ids can be read."""

import io
import string
from pathlib import Path

import keras_hub
import pytest

CHARACTERS = string.ascii_letters + ":.<|>_'"
STORIES = Path(__file__).parents[3] / "shared/models/stories260k/keras"


@pytest.fixture(scope="session")
def gpt2_tokenizer():
    """One token per character; start, end and padding are all id 0."""
    characters = [*CHARACTERS, "Ġ", "Ċ", "zz"]
    vocabulary = {"<|endoftext|>": 0} | {c: i for i, c in enumerate(characters, 1)}
    return keras_hub.models.GPT2Tokenizer(vocabulary, merges=["z z"])


@pytest.fixture
def gpt2(gpt2_tokenizer):
    return keras_hub.models.GPT2CausalLMPreprocessor(gpt2_tokenizer, sequence_length=32)


@pytest.fixture(scope="session")
def llama_proto():
    import sentencepiece

    model = io.BytesIO()
    texts = [
        "the quick brown fox jumps over the lazy dog",
        "a dog is not a fox",
        "Human: Assistant:",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture
def llama(llama_proto):
    tokenizer = keras_hub.models.LlamaTokenizer(proto=llama_proto)
    return keras_hub.models.LlamaCausalLMPreprocessor(
        tokenizer, sequence_length=32, add_end_token=True
    )


@pytest.fixture(scope="session")
def stories():
    if not STORIES.is_dir():
        pytest.skip(f"needs the preset {STORIES}")
    return keras_hub.models.CausalLM.from_preset(str(STORIES))


def sentence_piece(**options):
    """A SentencePiece model in the manner of published ones: byte fallback, text as it is."""
    import sentencepiece

    model = io.BytesIO()
    texts = [
        "Once upon a time there was a little girl named Lily.",
        "She said hello to the dog and the dog ran to her.",
        "2 + 2 = 4. Human: Hi Assistant: yes, no, well.",
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def tokenizers():
    """Tokenizers with and without a blank before the first word, with and without chat marks."""
    llama = sentence_piece(vocab_size=380, unk_id=0, bos_id=1, eos_id=2)
    gemma = sentence_piece(
        vocab_size=385,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        add_dummy_prefix=False,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
    )
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    # All bytes, as GPT-2 writes them, so that any text can be tokenized.
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [code for code in range(256) if code not in codes]
    byte_tokens = [chr(c) for c in codes] + [chr(256 + n) for n in range(len(hidden))]
    merges = ["Ġ t", "i m", "im e", "Ġt ime", "h e", ". Ċ"]
    words = [*marks, *byte_tokens, *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(words)}
    models = keras_hub.models
    return {
        "llama": models.LlamaCausalLMPreprocessor(
            models.LlamaTokenizer(proto=llama), sequence_length=96, add_end_token=True
        ),
        "gemma": models.GemmaCausalLMPreprocessor(
            models.GemmaTokenizer(proto=gemma), sequence_length=96
        ),
        "gpt2": models.GPT2CausalLMPreprocessor(
            models.GPT2Tokenizer(vocabulary, merges), sequence_length=96
        ),
        "qwen": models.QwenCausalLMPreprocessor(
            models.QwenTokenizer(vocabulary, merges, unsplittable_tokens=marks), sequence_length=96
        ),
        "llama3": models.Llama3CausalLMPreprocessor(
            models.Llama3Tokenizer(
                vocabulary,
                merges,
                bos_token="<|im_start|>",
                eos_token="<|im_end|>",
                misc_special_tokens={*marks},
            ),
            sequence_length=96,
        ),
    }
