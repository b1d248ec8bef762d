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
