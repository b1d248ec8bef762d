"""Which function of the package a batch comes from."""

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import data
from kerasrlhf.data import kinds

PAIR = {"prompt": "a", "chosen": "b", "rejected": "ab"}
RESPONSE = {"prompt": "a", "response": "b", "label": True}


@pytest.fixture
def datasets(gpt2):
    return {
        "prompts": data.prompts(["a", "b"], gpt2, 2),
        "demonstrations": data.demonstrations([RESPONSE] * 2, gpt2, 2),
        "preferences": data.preferences([PAIR] * 2, gpt2, 2),
        "unpaired_preferences": data.unpaired_preferences([RESPONSE] * 2, gpt2, 2),
    }


def test_every_kind_is_known_by_its_batches_and_by_its_spec(datasets):
    for name, dataset in datasets.items():
        assert kinds.kind_of(dataset.element_spec) == name
        assert kinds.kind_of(next(iter(dataset))) == name
        assert kinds.kind_of(next(dataset.as_numpy_iterator())) == name
        kinds.check_kind("x", dataset, "stepwise", name)


def test_steps_have_labels_that_are_no_tokens():
    ids, labels = np.ones((2, 5), "int32"), np.ones((2, 5), "float32")
    inputs = {"token_ids": ids, "padding_mask": ids > 0}
    assert kinds.kind_of((inputs, labels, labels)) == "stepwise"
    assert kinds.kind_of((inputs, ids, labels)) == "demonstrations"
    assert kinds.kind_of((inputs, None, None)) == "prompts"  # as Keras completes a batch


def test_another_kind_is_named_on_both_sides(datasets):
    with pytest.raises(ValueError, match="`x` has other batches") as caught:
        kinds.check_kind("x", datasets["preferences"], "prompts")
    message = str(caught.value)
    assert message.startswith("`x` has other batches. Expected batches as from `rlhf.data.prompts`")
    assert "as from `rlhf.data.preferences` (pairs (batch, candidates, length)" in message


@pytest.mark.parametrize("batch", [3, (), {"token_ids": [1]}, tf.constant(["a"]), None, [{}]])
def test_other_objects_are_of_no_kind(batch):
    assert kinds.kind_of(batch) is None
    with pytest.raises(ValueError, match="Expected batches as from"):
        kinds.check_batch(batch, "prompts")


def test_what_cannot_be_told_without_reading_passes():
    kinds.check_kind("x", (row for row in []), "prompts")
