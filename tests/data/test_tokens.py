"""Token ids of every kind of keras-hub tokenizer, and prompts cut at their front."""

import types

import keras_hub
import pytest

from kerasrlhf import tokens
from kerasrlhf.data import cutting

TEXTS = ["the fox", "", "a lazy dog"]


@pytest.fixture(params=["gpt2", "gpt2 in graph ops", "llama"])
def tokenizer(request, gpt2_tokenizer):
    if request.param == "llama":
        return request.getfixturevalue("llama").tokenizer
    if request.param == "gpt2":
        return gpt2_tokenizer
    # The TensorFlow workflow returns ragged tensors instead of lists.
    return keras_hub.models.GPT2Tokenizer(
        gpt2_tokenizer.vocabulary, gpt2_tokenizer.merges, _allow_python_workflow=False
    )


def test_there_and_back(tokenizer):
    rows = tokens.tokenize(TEXTS, tokenizer)
    assert [type(row) for row in rows] == [list] * 3 and rows[1] == []
    assert all(type(token) is int for row in rows for token in row)
    assert tokens.detokenize(rows, tokenizer) == TEXTS


def test_batches_do_not_change_the_ids(tokenizer):
    one_by_one = [tokens.tokenize([text], tokenizer)[0] for text in TEXTS]
    assert tokens.tokenize(TEXTS, tokenizer) == one_by_one
    assert tokens.tokenize([], tokenizer) == tokens.detokenize([], tokenizer) == []


def test_special_tokens_are_left_out(tokenizer):
    (row,) = tokens.tokenize(["the fox"], tokenizer)
    row = [tokenizer.start_token_id, *row, tokenizer.end_token_id]
    assert tokens.detokenize([row], tokenizer) == ["the fox"]


def test_an_ordinary_token_whose_id_is_also_padding_is_kept():
    vocabulary = {"!": 0, "a": 1, "<|endoftext|>": 2, "aa": 3}
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
    assert tokenizer.pad_token_id == 0
    assert tokens.detokenize([[2, 3, 0, 0, 2]], tokenizer) == ["aa!!"]


def test_more_texts_than_a_chunk(gpt2, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 2)
    texts = ["a", "bc", "", "d", "ef", "g"]
    assert tokens.detokenize(tokens.tokenize(texts, gpt2), gpt2) == texts


def test_tokenizers_that_add_tokens_are_refused(gpt2_tokenizer, llama_proto):
    padding = keras_hub.models.GPT2Tokenizer(
        gpt2_tokenizer.vocabulary, gpt2_tokenizer.merges, sequence_length=4
    )
    starting = keras_hub.models.LlamaTokenizer(llama_proto, add_bos=True)
    for tokenizer, option in ((padding, "sequence_length=4"), (starting, "add_bos=True")):
        for preprocessor in (tokenizer, types.SimpleNamespace(tokenizer=tokenizer)):
            with pytest.raises(ValueError, match=option):
                tokens.tokenize(["a"], preprocessor)


def test_strings_instead_of_ids_are_refused(llama_proto):
    tokenizer = keras_hub.models.LlamaTokenizer(llama_proto, dtype="string")
    with pytest.raises(ValueError, match="returns strings"):
        tokens.tokenize(["the fox"], tokenizer)


def test_a_tokenizer_without_special_tokens():
    tokenizer = types.SimpleNamespace(vocabulary_size=lambda: 9)
    preprocessor = types.SimpleNamespace(tokenizer=tokenizer)
    assert tokens.start_ids(preprocessor) == tokens.end_ids(preprocessor) == []
    assert tokens.pad_id(preprocessor) == 0


def test_a_model_without_preprocessor_pads_with_zero_and_stops_nowhere():
    assert tokens.pad_id(None) == 0
    assert tokens.stop_ids(None) == ()


class TestCutFront:
    def cut(self, text, budget, preprocessor):
        (kept,), (ids,) = cutting.cut_front([text], [budget], preprocessor)
        assert len(ids) <= budget
        assert text.endswith(kept)
        assert ids == tokens.tokenize([kept], preprocessor)[0]
        return kept

    def test_as_much_as_fits_from_a_word_on(self, gpt2):
        text = "aa bb cc dd"
        assert self.cut(text, 8, gpt2) == "bb cc dd"
        assert self.cut(text, 7, gpt2) == "cc dd"
        assert self.cut(text, 2, gpt2) == "dd"

    def test_a_turn_in_the_first_half_is_a_better_place(self, gpt2):
        text = "Human: aa bb cc dd\n\nAssistant: ee\n\nHuman: ff gg hh ii jj kk"
        assert self.cut(text, 52, gpt2) == "Assistant: ee\n\nHuman: ff gg hh ii jj kk"

    def test_a_turn_near_the_end_is_not(self, gpt2):
        text = "Human: aa bb cc dd ee ff gg hh\n\nAssistant:"
        assert self.cut(text, 34, gpt2) == "bb cc dd ee ff gg hh\n\nAssistant:"

    def test_a_line_in_the_first_half_is_a_better_place(self, gpt2):
        assert self.cut("aa bb cc\ndd ee\nff", 12, gpt2) == "dd ee\nff"

    def test_chatml(self, gpt2):
        turn = "<|im_start|>user\nxx yy<|im_end|>\n"
        assert self.cut(turn * 3, 3 * len(turn) - 3, gpt2) == turn * 2

    def test_a_word_that_does_not_fit_is_cut_inside(self, gpt2):
        assert self.cut("abcdef", 3, gpt2) == "def"
        assert self.cut("xx abcdef", 3, gpt2) == "def"

    def test_no_budget(self, gpt2):
        assert self.cut("aa bb", 0, gpt2) == ""

    def test_many_at_once_equal_one_at_a_time(self, gpt2):
        texts = ["aa bb cc", "x " * 30, "abcdef", "a\nb\nc d"]
        budgets = [5, 20, 3, 4]
        together, _ = cutting.cut_front(texts, budgets, gpt2)
        assert together == [self.cut(t, b, gpt2) for t, b in zip(texts, budgets, strict=True)]
