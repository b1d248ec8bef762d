"""Layout, masks, cuts and order of the three kinds of data."""

import json

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import data

DEMOS = [{"prompt": "ab", "response": "cde"}, {"prompt": "a", "response": "b"}]
PAIRS = [{"prompt": "ab", "chosen": "cde", "rejected": "f"}]


def ids(preprocessor, text):
    return data.tokenize([text], preprocessor)[0]


def only(dataset):
    (batch,) = list(dataset.as_numpy_iterator())
    return batch


def without(preprocessor, **options):
    config = {"sequence_length": preprocessor.sequence_length} | options
    return type(preprocessor)(preprocessor.tokenizer, **config)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_row_is_start_prompt_response_end_padding(kind, request):
    preprocessor = request.getfixturevalue(kind)
    demos = [{"prompt": "the fox", "response": " a dog"}, {"prompt": "dog", "response": " a"}]
    start, end = preprocessor.tokenizer.start_token_id, preprocessor.tokenizer.end_token_id
    x, y, weight = only(data.demonstrations(demos, preprocessor, 2, shuffle=False))
    assert x["token_ids"].shape[1] == max(x["padding_mask"].sum(axis=1))
    for row, demo in enumerate(demos):
        prompt = [start, *ids(preprocessor, demo["prompt"])]
        whole = [start, *ids(preprocessor, demo["prompt"] + demo["response"]), end]
        response = whole[len(prompt) :]
        n = len(prompt) + len(response)
        assert x["token_ids"][row, :n].tolist() == prompt + response
        assert (x["token_ids"][row, n:] == preprocessor.tokenizer.pad_token_id).all()
        assert x["padding_mask"][row].tolist() == [True] * n + [False] * (len(y[row]) - n)
        assert y[row, : n - 1].tolist() == (prompt + response)[1:]
        expected = np.zeros(len(y[row]))
        expected[len(prompt) - 1 : n - 1] = 1
        assert weight[row].tolist() == expected.tolist()
    assert (x["token_ids"].dtype, y.dtype, weight.dtype) == ("int32", "int32", "float32")


def test_masks_come_from_lengths_when_padding_equals_the_end_token(gpt2):
    tokenizer = gpt2.tokenizer
    assert tokenizer.pad_token_id == tokenizer.end_token_id == tokenizer.start_token_id
    x, y, weight = only(data.demonstrations(DEMOS, gpt2, 2, shuffle=False))
    assert x["padding_mask"].sum(axis=1).tolist() == [1 + 2 + 3 + 1, 1 + 1 + 1 + 1]
    assert weight.sum(axis=1).tolist() == [3 + 1, 1 + 1]
    assert y[1, 2] == 0 and weight[1, 2] == 1 and weight[1, 3] == 0


def test_a_row_without_start_token(gpt2):
    preprocessor = without(gpt2, add_start_token=False)
    x, _, weight = only(data.demonstrations(DEMOS[:1], preprocessor, 1))
    assert x["token_ids"].tolist() == [[*ids(gpt2, "abcde"), 0]]
    assert weight.tolist() == [[0, 1, 1, 1, 1, 0]]


def test_a_text_without_prompt_is_all_response(gpt2):
    for source in (["abc"], [{"text": "abc"}]):
        x, _, weight = only(data.demonstrations(source, gpt2, 1))
        assert x["token_ids"].tolist() == [[0, *ids(gpt2, "abc"), 0]]
        assert weight.tolist() == [[1, 1, 1, 1, 0]]


def test_whole_row_has_weight_on_every_real_target(gpt2):
    _, _, weight = only(data.demonstrations(DEMOS, gpt2, 2, whole_row=True, shuffle=False))
    assert weight.sum(axis=1).tolist() == [6, 3]


@pytest.mark.parametrize(
    ("options", "end_token_id", "end"),
    [
        ({}, "auto", [0]),
        ({"add_end_token": False}, "auto", []),
        ({"add_end_token": False}, 9, [9]),
        ({}, 9, [9]),
        ({}, None, []),
    ],
)
def test_what_ends_a_response(gpt2, options, end_token_id, end):
    preprocessor = without(gpt2, **options)
    x, _, _ = only(data.demonstrations(DEMOS[:1], preprocessor, 1, end_token_id=end_token_id))
    assert x["token_ids"].tolist() == [[0, *ids(gpt2, "abcde"), *end]]
    x, _ = only(data.preferences(PAIRS, preprocessor, 1, end_token_id=end_token_id))
    assert x["token_ids"][0, 0].tolist() == [0, *ids(gpt2, "abcde"), *end]


def test_an_end_token_that_is_there_already_is_not_doubled(gpt2):
    demos = [{"prompt": "a", "response": "b<|endoftext|>"}]
    x, _, _ = only(data.demonstrations(demos, gpt2, 1, parse_special=True))
    assert x["token_ids"].tolist() == [[0, *ids(gpt2, "ab"), 0]]


def test_preferences_put_the_chosen_response_first(gpt2):
    x, y = only(data.preferences(PAIRS, gpt2, 1))
    chosen, rejected = [0, *ids(gpt2, "abcde"), 0], [0, *ids(gpt2, "abf"), 0]
    assert x["token_ids"].tolist() == [[chosen, rejected + [0] * 2]]
    assert x["padding_mask"].tolist() == [[[True] * 7, [True] * 5 + [False] * 2]]
    assert y.tolist() == [0] and y.dtype == "int32"


def test_preferences_tell_where_the_responses_stand(gpt2):
    """The prompt "ab" with its start token is three tokens; end tokens count, padding does not."""
    dataset = data.preferences(PAIRS, gpt2, 1)
    x, _ = only(dataset)
    expected = [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert x["response_mask"].astype(int).tolist() == [expected]
    assert x["response_mask"].dtype == bool
    assert dataset.report.longest_response == 4


def test_prompts_carry_their_text_and_their_record(gpt2):
    record = {"prompt": "ab", "label": 3, "tags": ["é", None], "score": 0.5, "array": np.arange(2)}
    batch = only(data.prompts([record], gpt2, 1))
    assert batch["token_ids"].tolist() == [[0, *ids(gpt2, "ab")]]
    assert batch["padding_mask"].all()
    assert batch["prompt"].tolist() == [b"ab"]
    assert json.loads(batch["record"][0]) == record | {"array": [0, 1]}


def test_strings_are_prompts(gpt2):
    batch = only(data.prompts(["a", "abc"], gpt2, 2, shuffle=False))
    assert batch["prompt"].tolist() == [b"a", b"abc"]
    assert json.loads(batch["record"][1]) == {"prompt": "abc"}
    assert batch["padding_mask"].sum(axis=1).tolist() == [2, 4]


def test_messages_are_rendered(gpt2):
    messages = [{"role": "user", "content": "Hi"}]
    batch = only(data.prompts([{"prompt": messages}], gpt2, 1))
    assert batch["prompt"].tolist() == [b"Human: Hi\n\nAssistant:"]
    assert json.loads(batch["record"][0]) == {"prompt": messages}
    batch = only(data.prompts([{"prompt": messages}], gpt2, 1, max_length=99, template="chatml"))
    assert batch["prompt"].tolist() == [b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]


class TestCuts:
    def test_a_long_prompt_loses_its_beginning_at_a_word(self, gpt2):
        with pytest.warns(UserWarning, match="1 prompts were cut"):
            dataset = data.prompts(["aaa bb cc", "dd"], gpt2, 2, max_length=7, shuffle=False)
        batch = only(dataset)
        assert batch["prompt"].tolist() == [b"bb cc", b"dd"]
        assert batch["token_ids"][0].tolist() == [0, *ids(gpt2, "bb cc")]
        assert dataset.report == data.Report(2, 6, 10, 1, 0)
        assert json.loads(batch["record"][0]) == {"prompt": "aaa bb cc"}

    def test_the_preprocessor_gives_the_default_length(self, gpt2):
        with pytest.warns(UserWarning, match="fit 32 tokens"):
            dataset = data.prompts(["a" * 40], gpt2, 1)
        assert dataset.report.length == 32

    def test_a_long_demonstration_keeps_its_response(self, gpt2):
        demos = [{"prompt": "aaa bb", "response": "cde"}]
        with pytest.warns(UserWarning, match="1 prompts were cut"):
            dataset = data.demonstrations(demos, gpt2, 1, max_length=8)
        x, _, weight = only(dataset)
        assert x["token_ids"].tolist() == [[0, *ids(gpt2, "bbcde"), 0]]
        assert weight.sum() == 4

    def test_both_candidates_keep_the_same_prompt(self, gpt2):
        pairs = [{"prompt": "aaa bb", "chosen": "c", "rejected": "cde"}]
        with pytest.warns(UserWarning, match="1 prompts were cut"):
            dataset = data.preferences(pairs, gpt2, 1, max_length=8)
        x, _ = only(dataset)
        assert x["token_ids"][0, 0].tolist() == [0, *ids(gpt2, "bbc"), 0, 0, 0]
        assert x["token_ids"][0, 1].tolist() == [0, *ids(gpt2, "bbcde"), 0]

    def test_a_response_that_does_not_fit_loses_its_end(self, gpt2):
        demos = [{"prompt": "a", "response": "bcdefg"}]
        with pytest.warns(UserWarning, match="1 prompts .* 1 responses"):
            dataset = data.demonstrations(demos, gpt2, 1, max_length=5)
        x, _, weight = only(dataset)
        assert x["token_ids"].tolist() == [[0, *ids(gpt2, "bcde")]]
        assert weight.tolist() == [[1, 1, 1, 1, 0]]
        assert dataset.report == data.Report(1, 5, 9, 1, 1, 4)

    def test_something_stands_before_a_response_without_start_token(self, gpt2):
        preprocessor = without(gpt2, add_start_token=False)
        demos = [{"prompt": "ah", "response": "bcdefg"}]
        with pytest.warns(UserWarning, match="1 prompts .* 1 responses"):
            dataset = data.demonstrations(demos, preprocessor, 1, max_length=5)
        x, _, weight = only(dataset)
        assert x["token_ids"].tolist() == [ids(gpt2, "hbcde")]
        assert weight.tolist() == [[1, 1, 1, 1, 0]]

    def test_sentencepiece(self, llama):
        with pytest.warns(UserWarning, match="1 prompts were cut"):
            batch = only(data.prompts(["the quick brown fox is not a dog"], llama, 1, max_length=6))
        text = batch["prompt"][0].decode()
        assert "the quick brown fox is not a dog".endswith(text) and text
        assert batch["token_ids"][0].tolist() == [1, *ids(llama, text)]


class TestShapes:
    def test_a_remainder_leaves_the_batch_open(self, gpt2):
        x, y, weight = data.demonstrations(DEMOS * 3, gpt2, 4).element_spec
        assert {spec.shape.as_list()[0] for spec in (*x.values(), y, weight)} == {None}
        assert {spec.shape.as_list()[1] for spec in (*x.values(), y, weight)} == {7}

    @pytest.mark.parametrize(("batch_size", "drop_remainder"), [(3, False), (4, True)])
    def test_otherwise_everything_is_static(self, gpt2, batch_size, drop_remainder):
        dataset = data.preferences(PAIRS * 6, gpt2, batch_size, drop_remainder=drop_remainder)
        x, y = dataset.element_spec
        assert x["token_ids"].shape == x["padding_mask"].shape == (batch_size, 2, 7)
        assert y.shape == (batch_size,)
        assert len(dataset) == 6 // batch_size

    def test_prompts(self, gpt2):
        spec = data.prompts(["a", "abc", "b"], gpt2, 2).element_spec
        assert {name: tuple(s.shape) for name, s in spec.items()} == {
            "token_ids": (2, 4),
            "padding_mask": (2, 4),
            "prompt": (2,),
            "guarded_prompt": (2,),
            "record": (2,),
        }


class TestOrder:
    TEXTS = tuple("abcdefghijklmnopqrst")

    def passes(self, gpt2, count=3, **options):
        dataset = data.prompts(self.TEXTS, gpt2, 4, **options)
        return [
            [text.decode() for batch in dataset.as_numpy_iterator() for text in batch["prompt"]]
            for _ in range(count)
        ]

    def test_every_pass_has_every_row_in_another_order(self, gpt2):
        passes = self.passes(gpt2)
        assert all(sorted(texts) == list(self.TEXTS) for texts in passes)
        assert len({tuple(texts) for texts in passes}) == 3

    def test_it_depends_on_the_seed_and_the_pass_only(self, gpt2):
        first = self.passes(gpt2)
        keras.utils.set_random_seed(1234)
        tf.random.uniform(())
        assert self.passes(gpt2) == first
        assert self.passes(gpt2, seed=1) != first

    def test_no_shuffle(self, gpt2):
        assert self.passes(gpt2, shuffle=False) == [list(self.TEXTS)] * 3

    def test_a_skipped_stream_continues_where_another_stopped(self, gpt2):
        def stream(skipped):
            dataset = data.prompts(self.TEXTS, gpt2, 4).repeat(3).skip(skipped)
            return [batch["prompt"].tolist() for batch in dataset.as_numpy_iterator()]

        assert stream(7) == stream(0)[7:]

    def test_passes_over_parts_count(self, gpt2):
        first, second, _ = self.passes(gpt2)
        dataset = data.prompts(self.TEXTS, gpt2, 4)
        (head,) = dataset.take(1).as_numpy_iterator()
        assert [text.decode() for text in head["prompt"]] == first[:4]
        (head,) = dataset.take(1).as_numpy_iterator()
        assert [text.decode() for text in head["prompt"]] == second[:4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0"),
        ({"batch_size": 1.5}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"max_length": 1}, "`max_length` must be an integer of at least 2"),
        ({"max_length": "long"}, "`max_length` must be"),
        ({"end_token_id": 999}, "`end_token_id` must be"),
        ({"end_token_id": "<eos>"}, "`end_token_id` must be"),
        ({"template": "other"}, "Unknown template 'other'"),
        ({"batch_size": 3, "drop_remainder": True}, "only 2 rows"),
        ({"preprocessor": None}, "A tokenizer is needed"),
    ],
)
def test_bad_arguments(gpt2, options, message):
    arguments = {"source": DEMOS, "preprocessor": gpt2, "batch_size": 1} | options
    with pytest.raises(ValueError, match=message):
        data.demonstrations(**arguments)


def test_fewer_prompts_than_a_batch(gpt2):
    with pytest.raises(ValueError, match="`batch_size` is 3 but there are only 2 rows"):
        data.prompts(["a", "b"], gpt2, 3)
    assert len(data.prompts(["a", "b"], gpt2, 3, drop_remainder=False)) == 1


def test_a_record_beyond_json(gpt2):
    with pytest.raises(ValueError, match="Row 1: JSON cannot express"):
        data.prompts([{"prompt": "a"}, {"prompt": "b", "extra": object()}], gpt2, 1)


def test_a_preprocessor_without_tokenizer():
    with pytest.raises(ValueError, match="A tokenizer is needed"):
        data.prompts(["a"], keras_hub.models.GPT2CausalLMPreprocessor(None), 1)


def test_stories(stories):
    """A story ends at the next start token, which the caller names."""
    preprocessor = stories.preprocessor
    texts = ["Once upon a time, there was a dog.", "Tom was sad."]
    x, _, weight = only(data.demonstrations(texts, preprocessor, 2, end_token_id=1, shuffle=False))
    for row, text in enumerate(texts):
        real = x["token_ids"][row][x["padding_mask"][row]].tolist()
        assert real == [1, *ids(preprocessor, text), 1]
        assert weight[row].sum() == len(real) - 1
        assert data.detokenize([real], preprocessor) == [text]


def test_a_response_that_was_cut_off_is_not_ended(gpt2):
    records = [{"text": "ab"}, {"text": "ba", "ended": False}, {"text": "b", "ended": True}]
    _, y, weight = only(data.demonstrations(records, gpt2, 3, shuffle=False))
    end = gpt2.tokenizer.end_token_id
    ends = [row[w > 0][-1] == end for row, w in zip(y, weight, strict=True)]
    assert ends == [True, False, True]
    with pytest.raises(ValueError, match=r"column 'ended' .* rows 1 .*'no'"):
        data.demonstrations([{"text": "a"}, {"text": "b", "ended": "no"}], gpt2, 2)
    with pytest.raises(ValueError, match=r"column 'ended' .* list of 2 .*\[True\]"):
        data.preferences([{**PAIRS[0], "ended": [True]}], gpt2, 1)


def test_candidates_end_each_for_itself(gpt2):
    """A list in the order of the candidates, one word for all of them, or nothing: all end."""
    pair = {"prompt": "a", "chosen": "bb", "rejected": "ccc"}
    cases = {(True, True): {}, (True, False): {"ended": [True, False]}}
    cases |= {(False, False): {"ended": False}, (False, True): {"ended": np.array([False, True])}}
    records = [{**pair, **more} for more in cases.values()] + [{**pair, "ended": None}]
    x, _ = only(data.preferences(records, gpt2, len(records), shuffle=False))
    last = np.sum(x["padding_mask"], axis=-1, keepdims=True) - 1
    ends = np.take_along_axis(x["token_ids"], last, axis=-1)[..., 0] == gpt2.tokenizer.end_token_id
    assert ends.tolist() == [[*case] for case in cases] + [[True, True]]
