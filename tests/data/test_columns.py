"""Margins, rankings, labels of responses and of steps: where they stand, and what is refused."""

import numpy as np
import pytest

from kerasrlhf import data

PAIRS = [
    {"prompt": "ab", "chosen": "cde", "rejected": "f", "margin": 1.5},
    {"prompt": "a", "chosen": "b", "rejected": "cd", "margin": 3},
]
RANKING = [{"prompt": "ab", "responses": ["cde", "f", "gh"]}]
JUDGED = [
    {"prompt": "ab", "response": "cde", "label": True},
    {"prompt": "a", "response": "b", "label": 0},
    {"prompt": "a", "response": "cd", "label": 1.0},
]
STEPS = [
    {"prompt": "ab", "steps": ["cd", "e", "fg"], "labels": [1, 0, 0.25]},
    {"prompt": "a", "steps": ["b"], "labels": [True]},
]


def only(dataset):
    (batch,) = list(dataset.as_numpy_iterator())
    return batch


def ids(preprocessor, text):
    return data.tokenize([text], preprocessor)[0]


def test_margins_are_the_labels(gpt2):
    _, y = only(data.preferences(PAIRS, gpt2, 2, shuffle=False))
    assert y.tolist() == [1.5, 3.0] and y.dtype == "float32"
    for _, y in data.preferences(PAIRS, gpt2, 1, seed=1).as_numpy_iterator():
        assert y.shape == (1,)


def test_without_margins_the_label_is_the_index_of_the_chosen_one(gpt2):
    bare = [{k: v for k, v in pair.items() if k != "margin"} for pair in PAIRS]
    for dataset in (data.preferences(bare, gpt2, 2), data.preferences(PAIRS, gpt2, 2, margin=None)):
        _, y = only(dataset)
        assert y.tolist() == [0, 0] and y.dtype == "int32"


def test_margins_of_another_column_and_from_text(gpt2):
    other = [{**pair, "gap": str(i), "margin": "wide"} for i, pair in enumerate(PAIRS)]
    _, y = only(data.preferences(other, gpt2, 2, margin="gap", shuffle=False))
    assert y.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("value", ["wide", None, float("nan"), True, [1.0]])
def test_a_margin_that_is_no_number_is_named(gpt2, value):
    wrong = [PAIRS[0], {**PAIRS[1], "margin": value}]
    with pytest.raises(ValueError, match=r"1 of 2 rows have no finite .*: rows 1"):
        data.preferences(wrong, gpt2, 2)


def test_a_missing_margin_column_is_named(gpt2):
    with pytest.raises(ValueError, match="no finite number in 'gap'"):
        data.preferences(PAIRS, gpt2, 2, margin="gap")


def test_a_response_alone_is_one_candidate_with_a_label(gpt2):
    x, y = only(data.unpaired_preferences(JUDGED, gpt2, 3, shuffle=False))
    assert y.tolist() == [1.0, 0.0, 1.0] and y.dtype == "float32"
    pairs = [
        {"prompt": row["prompt"], "chosen": row["response"], "rejected": "x"} for row in JUDGED
    ]
    expected, _ = only(data.preferences(pairs, gpt2, 3, shuffle=False))
    assert set(x) == set(expected)
    for name, column in x.items():
        assert column.shape == (3, 1, column.shape[-1])
        np.testing.assert_array_equal(column[:, 0], expected[name][:, 0])
    named = [{"completion" if k == "response" else k: v for k, v in row.items()} for row in JUDGED]
    again, _ = only(data.unpaired_preferences(named, gpt2, 3, shuffle=False))
    np.testing.assert_array_equal(again["token_ids"], x["token_ids"])


@pytest.mark.parametrize("value", ["good", None, 0.5, float("nan"), [1]])
def test_a_label_that_is_neither_true_nor_false_is_named(gpt2, value):
    wrong = [JUDGED[0], {**JUDGED[1], "label": value}]
    with pytest.raises(ValueError, match=r"1 of 2 rows have no 'label' .*: rows 1"):
        data.unpaired_preferences(wrong, gpt2, 2)


def test_rankings_are_candidates_best_first(gpt2):
    x, y = only(data.preferences(RANKING, gpt2, 1))
    assert x["token_ids"].shape == (1, 3, 1 + 2 + 3 + 1) and y.tolist() == [0]
    for candidate, response in enumerate(RANKING[0]["responses"]):
        row = [0, *ids(gpt2, "ab"), *ids(gpt2, response), 0]
        assert x["token_ids"][0, candidate, : len(row)].tolist() == row
        assert x["padding_mask"][0, candidate].sum() == len(row)


def test_rankings_of_messages():
    message = {"role": "user", "content": "Hi"}
    rows = [{"prompt": [message], "responses": ["a", [{"role": "assistant", "content": "b"}]]}]
    assert data.records.preference_texts(rows) == (["Human: Hi\n\nAssistant:"], [" a"], [" b"])


def test_pairs_come_before_a_ranking():
    rows = [{**PAIRS[0], "responses": ["x", "y", "z"]}]
    assert data.records.preference_texts(rows) == (["ab"], ["cde"], ["f"])


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (["a"], "no list of two or more texts in 'responses'"),
        ("ab", "no list of two or more texts in 'responses'"),
        (["a", 3], "no list of two or more texts in 'responses'"),
        (["a", "b"], "another number of 'responses' than the first, 3: rows 1"),
        (["a", " ", "c"], "have an empty 'responses'"),
    ],
)
def test_rankings_that_cannot_be_used_are_named(gpt2, responses, message):
    with pytest.raises(ValueError, match=message):
        data.preferences([*RANKING, {"prompt": "a", "responses": responses}], gpt2, 2)


def test_labels_stand_where_steps_end(gpt2):
    """At the separator behind a step, and at the end token behind the last."""
    x, y, weight = only(data.stepwise(STEPS, gpt2, 2, shuffle=False))
    (line,) = ids(gpt2, "\n")
    row = [0, *ids(gpt2, "abcd"), line, *ids(gpt2, "e"), line, *ids(gpt2, "fg"), 0]
    assert x["token_ids"][0].tolist() == row
    ends = [i for i, token in enumerate(row) if token == line] + [len(row) - 1]
    assert ends == [5, 7, 10]
    assert np.flatnonzero(weight[0]).tolist() == ends
    assert y[0, ends].tolist() == [1.0, 0.0, 0.25] and y[0].sum() == 1.25
    assert np.flatnonzero(weight[1]).tolist() == [3] and y[1, 3] == 1.0
    assert x["padding_mask"].sum(axis=1).tolist() == [11, 4]
    assert (y.dtype, weight.dtype, x["token_ids"].dtype) == ("float32", "float32", "int32")


def test_without_an_end_token_the_last_label_stands_at_the_last_token(gpt2):
    x, _, weight = only(data.stepwise(STEPS[1:], gpt2, 1, end_token_id=None))
    assert x["token_ids"].tolist() == [[0, *ids(gpt2, "ab")]]
    assert weight.tolist() == [[0.0, 0.0, 1.0]]


def test_a_separator_at_the_end_of_a_step_and_the_other_name_of_the_column(gpt2):
    same = [{"prompt": "ab", "completions": ["cd\n", "e", "fg"], "labels": [1, 0, 0.25]}]
    one, other = (only(data.stepwise(rows, gpt2, 1)) for rows in (STEPS[:1], same))
    for left, right in zip(
        (one[0]["token_ids"], *one[1:]), (other[0]["token_ids"], *other[1:]), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def test_steps_that_do_not_fit_lose_their_label(gpt2):
    with pytest.warns(UserWarning, match="1 responses"):
        dataset = data.stepwise(STEPS[:1], gpt2, 1, max_length=6)
    x, y, weight = only(dataset)
    assert x["token_ids"].shape == (1, 6)
    assert np.flatnonzero(weight[0]).tolist() == [3, 5]  # after "cd" and "e"; the last one is cut
    assert y[0].tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "labels": [1]}, "'steps' or 'completions' and 'labels'. Found"),
        ({"prompt": "a", "steps": "b", "labels": [1]}, "no list of strings in 'steps'"),
        ({"prompt": "a", "steps": [], "labels": []}, "no list of strings in 'steps'"),
        ({"prompt": "a", "steps": ["b\nc"], "labels": [1]}, "holds the separator"),
        ({"prompt": "a", "steps": ["b", " "], "labels": [1, 1]}, "empty or holds"),
        ({"prompt": "a", "steps": ["b", "c"], "labels": [1]}, "no list in 'labels'"),
        ({"prompt": "a", "steps": ["b"], "labels": [2]}, "number from 0 to 1"),
        ({"steps": ["b"], "labels": [1]}, "Expected a column 'prompt'"),
    ],
)
def test_steps_that_cannot_be_used_are_named(gpt2, record, message):
    with pytest.raises(ValueError, match=message):
        data.stepwise([record], gpt2, 1)


@pytest.mark.parametrize("separator", ["", "ab", None])
def test_a_separator_is_one_token(gpt2, separator):
    with pytest.raises(ValueError, match="one token"):
        data.stepwise(STEPS, gpt2, 1, separator=separator)
