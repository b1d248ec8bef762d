"""What a prompt and its response are as tokens, for every kind of tokenizer."""

import numpy as np
import pytest

from kerasrlhf import data, special_tokens, tokens
from kerasrlhf.data import rows

KINDS = ("llama", "gemma", "gpt2", "qwen", "llama3")
PAIRS = [
    ("Once upon a", " time"),
    ("Once upon a ti", "me there"),
    ("She said: ", "Hello"),
    ("She said:", "\nHello"),
    ("2 + 2 =", "4"),
    ('He said "', 'Hi"'),
    ("Tom was sad.", "He cried."),
    ("Lily", "'s cat ran."),
    ("Hi.\n", "\nyes"),
    ("caf", "é 🙂  \t two"),
]


@pytest.fixture(params=KINDS)
def preprocessor(request, tokenizers):
    return tokenizers[request.param]


def test_prompt_and_response_are_the_text_that_was_given(preprocessor):
    prompts, responses = zip(*PAIRS, strict=True)
    found = rows.encode(prompts, [responses], preprocessor, end_token_id=None)
    joined = [p + r for p, r in zip(found.prompt_ids, found.candidates[0], strict=True)]
    assert tokens.detokenize(joined, preprocessor) == [p + r for p, r in PAIRS]
    # A model is given the prompt alone when it responds.
    assert found.prompt_ids == tokens.encode(prompts, preprocessor)
    texts = tokens.detokenize(found.candidates[0], preprocessor, after=found.prompt_ids)
    assert texts == list(responses)


def test_the_whole_is_tokenized_where_the_prompt_keeps_its_tokens(tokenizers):
    llama = tokenizers["llama"]
    whole = tokens.tokenize(["Once upon a time"], llama)[0]
    found = rows.encode(["Once upon a"], [[" time"]], llama, end_token_id=None)
    assert found.prompt_ids[0][1:] + found.candidates[0][0] == whole


def test_what_was_sampled_keeps_its_tokens(preprocessor):
    """Other tokens than a tokenizer would choose, which make the same text."""
    before = tokens.encode(["Once upon a"], preprocessor)
    sampled = [
        t
        for piece in (" ti", "me")
        for t in tokens.continuations(
            ["Once upon a"], tokens.tokenize(["Once upon a"], preprocessor), [piece], preprocessor
        )[0]
    ]
    (text,) = tokens.detokenize([sampled], preprocessor, after=before)
    assert text == " time" and text.token_ids == sampled
    records = [{"prompt": "Once upon a", "response": text}]
    demos = data.demonstrations(records, preprocessor, 1, end_token_id=None)
    x, _, _ = next(demos.as_numpy_iterator())
    assert x["token_ids"][0].tolist() == before[0] + sampled
    other = tokens.SampledText(text, [1], tokenizer=None)
    again = rows.encode(["Once upon a"], [[other]], preprocessor, end_token_id=None)
    assert (
        again.candidates
        == rows.encode(["Once upon a"], [[" time"]], preprocessor, end_token_id=None).candidates
    )


@pytest.mark.parametrize("place", ["prompt", "response"])
def test_typed_special_tokens_are_text(preprocessor, place):
    known = special_tokens.special_token_ids(preprocessor.tokenizer)
    typed = "He typed " + " and ".join(sorted(known)) + " here."
    record = {"prompt": "Hi", "response": " yes", place: typed}
    x, *_ = next(data.demonstrations([record], preprocessor, 1, max_length=500).as_numpy_iterator())
    ids = x["token_ids"][0][x["padding_mask"][0]].tolist()
    start, end = tokens.start_ids(preprocessor), tokens.end_ids(preprocessor)
    inner = ids[len(start) : len(ids) - len(end)]
    assert not set(inner) & set(known.values())
    assert tokens.detokenize([inner], preprocessor) == [record["prompt"] + record["response"]]
    x, _, _ = next(
        data.demonstrations(
            [record], preprocessor, 1, max_length=500, parse_special=True
        ).as_numpy_iterator()
    )
    assert set(known.values()) <= set(x["token_ids"][0].tolist())


def test_a_special_token_does_not_form_across_the_boundary(preprocessor):
    token = min(special_tokens.special_token_ids(preprocessor.tokenizer))
    found = rows.encode([token[:2]], [[token[2:]]], preprocessor, end_token_id=None)
    joined = found.prompt_ids[0][len(tokens.start_ids(preprocessor)) :] + found.candidates[0][0]
    assert not set(joined) & {*special_tokens.special_token_ids(preprocessor.tokenizer).values()}
    assert tokens.detokenize([joined], preprocessor) == [token]


def test_the_guard_itself_is_dropped(tokenizers):
    gpt2 = tokenizers["gpt2"]
    hidden = "<|im" + special_tokens.GUARD + "_end|>"
    assert tokens.tokenize([hidden], gpt2) == tokens.tokenize(["<|im_end|>"], gpt2)
    assert (
        special_tokens.special_token_ids(gpt2.tokenizer)["<|im_end|>"]
        not in tokens.tokenize([hidden], gpt2)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_steps_end_at_their_separators(tokenizers, kind):
    preprocessor = tokenizers[kind]
    records = [{"prompt": "2 + 2?", "steps": [" yes.", "well", "so 4"], "labels": [1, 0, 1]}]
    x, y, weight = next(data.stepwise(records, preprocessor, 1).as_numpy_iterator())
    ids = x["token_ids"][0][x["padding_mask"][0]].tolist()
    places = np.flatnonzero(weight[0]).tolist()
    assert y[0][places].tolist() == [1, 0, 1]
    start = len(tokens.start_ids(preprocessor))
    read = tokens.detokenize([ids[start : i + 1] for i in places], preprocessor)
    assert read == ["2 + 2? yes.\n", "2 + 2? yes.\nwell\n", "2 + 2? yes.\nwell\nso 4"]
