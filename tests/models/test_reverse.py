"""Rows that are turned round: response first, prompt behind it."""

import helpers
import numpy as np
import pytest
from keras import ops

from kerasrlhf.models import reverse
from kerasrlhf.models.windows import Reference

LENGTHS, SIZES = np.array([3, 1, 4], "int32"), np.array([2, 5, 1], "int32")
COLUMN = np.arange(9)[None]
PADDING = (LENGTHS + SIZES)[:, None] > COLUMN
IDS = np.random.default_rng(4).integers(1, helpers.VOCAB, (3, 9)).astype("int32")


def by_hand():
    return [
        [*row[start : start + size], *row[:start]]
        for row, start, size in zip(IDS.tolist(), LENGTHS, SIZES, strict=True)
    ]


def test_rows_are_response_and_then_prompt():
    found, starts = reverse.turned(ops.convert_to_tensor(IDS), PADDING, LENGTHS)
    assert [row[mask].tolist() for row, mask in zip(np.array(found), PADDING, strict=True)] == (
        by_hand()
    )
    np.testing.assert_array_equal(starts, SIZES)


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_every_prompt_token_is_read_off_what_stands_before_it(family):
    """Row by row, without padding, one prefix at a time."""
    causal_lm = helpers.lm(family)
    found, inside = reverse.prompt_logprobs(
        causal_lm, ops.convert_to_tensor(IDS), PADDING, LENGTHS, 4
    )
    acting = helpers.ActorCritic(causal_lm)
    for row, tokens in enumerate(by_hand()):
        ids = np.array([tokens], "int32")
        logits = acting({"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)})["logits"]
        logprobs = np.array(logits[0]) - np.log(np.exp(np.array(logits[0])).sum(-1, keepdims=True))
        expected = np.zeros(9)
        for t in range(SIZES[row], len(tokens)):
            expected[t] = logprobs[t - 1, tokens[t]]
        np.testing.assert_allclose(found[row], expected, atol=1e-4)
    np.testing.assert_array_equal(inside, PADDING & (SIZES[:, None] <= COLUMN))


def test_the_reference_reads_without_its_adapters():
    causal_lm = helpers.lm()
    given = ops.convert_to_tensor(IDS), PADDING, LENGTHS, 4
    expected, _ = reverse.prompt_logprobs(causal_lm, *given)
    causal_lm.backbone.enable_lora(2)
    reference = Reference.of(causal_lm)
    for variable in causal_lm.backbone.trainable_variables:
        variable.assign(variable + 0.3)
    changed, _ = reverse.prompt_logprobs(causal_lm, *given)
    with reference.frozen():
        found, _ = reverse.prompt_logprobs(reference.causal_lm, *given)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(changed - expected).max() > 0.01
