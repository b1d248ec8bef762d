"""Rows that cannot be used, say nothing, or are too long: left out and counted."""

import numpy as np
import pytest

from kerasrlhf import data
from kerasrlhf.data import records

GOOD = {"prompt": "ab", "chosen": "c", "rejected": "d", "response": "c", "label": 1, "steps": ["c"]}
GOOD["labels"] = [1]
EMPTY = {"chosen": "", "rejected": "", "response": "", "prompt": " ", "steps": [""], "labels": [1]}
LOADERS = {
    "demonstrations": data.demonstrations,
    "preferences": data.preferences,
    "prompts": data.prompts,
    "unpaired_preferences": data.unpaired_preferences,
    "stepwise": data.stepwise,
}


def elements(dataset):
    return [*dataset.as_numpy_iterator()]


@pytest.mark.parametrize("name", LOADERS)
def test_odd_rows_are_refused_or_skipped_and_named(gpt2, name):
    odd = [EMPTY | {"label": 1}, {"prompt": None}, {**GOOD, "prompt": "a\ud800"}]
    rows = [GOOD, odd[0], GOOD, odd[1], odd[2], GOOD]
    separator = {"separator": "z"} if name == "stepwise" else {}
    with pytest.raises(ValueError, match=r"rows [1345]"):
        LOADERS[name](rows, gpt2, 1, **separator)
    with pytest.warns(UserWarning, match="3 of 6 rows cannot be used and were left out .row 1: "):
        found = LOADERS[name](rows, gpt2, 1, shuffle=False, on_error="skip", **separator)
    assert found.report.skipped == (1, 3, 4) and found.report.rows == 3
    alone = LOADERS[name]([GOOD] * 3, gpt2, 1, shuffle=False, **separator)
    for one, other in zip(elements(found), elements(alone), strict=True):
        np.testing.assert_equal(one, other)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"shuffle": "no"}, "`shuffle` must be True or False"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"drop_remainder": 1}, "`drop_remainder` must be True or False"),
        ({"template": "other"}, "Unknown template 'other'"),
        ({"preprocessor": None}, "A tokenizer is needed"),
    ],
)
def test_options_are_checked_before_the_source_is_read(gpt2, name, options, message):
    source = (pytest.fail("The source was read.") for _ in range(1))
    arguments = {"preprocessor": gpt2, "batch_size": 1} | options
    with pytest.raises(ValueError, match=message):
        LOADERS[name](source, **arguments)


def test_columns_go_with_their_rows(gpt2):
    """Margins and labels of the rows that are left, in their order."""
    rows = [
        GOOD | {"margin": 1},
        GOOD | {"margin": "x"},
        GOOD | {"margin": 3},
        GOOD | {"chosen": "c" * 20, "margin": 4},
    ]
    with (
        pytest.warns(UserWarning, match="1 rows are longer than"),
        pytest.warns(UserWarning, match="1 of 4 rows cannot be used"),
    ):
        found = data.preferences(rows, gpt2, 2, shuffle=False, on_error="skip", drop_longer_than=9)
    assert next(found.as_numpy_iterator())[1].tolist() == [1, 3]
    assert (found.report.skipped, found.report.dropped) == ((1,), (3,))


def test_nothing_left_is_an_error(gpt2):
    with pytest.raises(ValueError, match=r"No row can be used. .*empty 'rejected'"):
        data.preferences([GOOD | {"rejected": ""}], gpt2, 1, on_error="skip")
    with pytest.raises(ValueError, match=r"All 1 rows have more than .*=3.* the shortest has 5"):
        data.demonstrations([GOOD], gpt2, 1, drop_longer_than=3)
    with pytest.raises(ValueError, match=r'`on_error` must be "raise" or "skip". Received: True'):
        data.demonstrations([GOOD], gpt2, 1, on_error=True)
    rows = [GOOD, GOOD | {"prompt": ""}]
    with pytest.warns(UserWarning, match="1 of 2"), pytest.raises(ValueError, match="only 1 rows"):
        data.prompts(rows, gpt2, 2, on_error="skip")


def test_a_long_row_does_not_make_every_batch_long(gpt2):
    rows = [GOOD] * 3 + [GOOD | {"prompt": "a" * 20}]
    with pytest.warns(UserWarning, match="1 rows are longer than `drop_longer_than`"):
        found = data.prompts(rows, gpt2, 3, drop_longer_than=8, shuffle=False)
    batch = next(found.as_numpy_iterator())
    assert batch["token_ids"].shape == (3, 3)
    assert found.report.dropped == (3,)


def test_identical_responses_are_counted_also_after_cutting(gpt2):
    same = [GOOD | {"rejected": "c"}, GOOD]
    with pytest.warns(UserWarning, match="1 of 2 rows have identical responses"):
        assert data.preferences(same, gpt2, 1).report.identical == 1
    long = [GOOD | {"chosen": "c" * 30 + "x", "rejected": "c" * 30 + "y"}]
    with pytest.warns(UserWarning, match="1 of 1 rows have identical"):
        assert data.preferences(long, gpt2, 1, max_length=16).report.identical == 1
    ranking = [{"prompt": "a", "responses": ["b", "c", "b"]}]
    with pytest.warns(UserWarning, match="identical"):
        data.preferences(ranking, gpt2, 1)


def test_all_rows_of_one_fault_are_named_at_once():
    rows = [{"prompt": [{"role": "robot", "content": "a"}]}] * 3
    with pytest.raises(
        records.RowError, match=r"Row 0: Unknown role .*3 of 3 rows: 0, 1, 2"
    ) as caught:
        records.prompt_texts(rows)
    assert caught.value.numbers == [0, 1, 2]


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("true", "false"), ("True", "False"), (1.0, np.False_)]
)
def test_truth_values_of_a_table(gpt2, yes, no):
    rows = [GOOD | {"label": yes}, GOOD | {"label": no}]
    found = data.unpaired_preferences(rows, gpt2, 2, shuffle=False)
    assert next(found.as_numpy_iterator())[1].tolist() == [1, 0]
    with pytest.raises(ValueError, match="have no 'label'"):
        data.unpaired_preferences([GOOD | {"label": "maybe"}], gpt2, 1)


@pytest.mark.parametrize("margin", [10**400, 1e39, float("inf"), "nan", None, True])
def test_a_margin_is_finite_in_single_precision(gpt2, margin):
    rows = [GOOD | {"margin": 1}, GOOD | {"margin": margin}]
    with pytest.raises(ValueError, match="1 of 2 rows have no finite number in 'margin'"):
        data.preferences(rows, gpt2, 1)


def test_what_is_no_message_is_refused(gpt2):
    talk = [{"role": "user", "content": "a", "name": "b"}, "c"]
    with (
        pytest.warns(UserWarning, match="1 of 1 messages have keys"),
        pytest.raises(ValueError, match=r"no text .* in 'messages'"),
    ):
        data.demonstrations([{"messages": talk}], gpt2, 1)


def test_generators_are_read_once(gpt2):
    for name, loader in LOADERS.items():
        separator = {"separator": "z"} if name == "stepwise" else {}
        found = loader((row for row in [GOOD, GOOD]), gpt2, 1, **separator)
        assert len(elements(found)) == len(elements(found)) == 2
