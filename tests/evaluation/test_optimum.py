"""The best policy of a small task, against numbers worked out by hand and a loop over responses."""

import math

import helpers
import numpy as np
import pytest

from kerasrlhf.evaluation import optimum
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.windows import Reference

LN2 = math.log(2.0)

# Two tokens, at most two of them, 0 ends: (0,), (1, 0), (1, 1). With b = 1 the scores weigh them
# 1, 2, 4: p e^r = 1/2, 1/2, 1, so Z = 2. With b = 1/2 they weigh 1, 4, 16, so Z = 5.5.
REFERENCE = np.log([[1 / 2, 1 / 4, 1 / 4]])
SCORES = np.array([[0.0, LN2, 2 * LN2]])
# The other way round, for a second prompt: p e^r = 2, 1/2, 1/4, so Z = 2.75.
MIRRORED = SCORES[:, ::-1]

VOCAB, LENGTH, TEMPERATURE, PROMPTS = 3, 2, 0.7, [[1], [2, 0, 1]]


def test_every_response_is_listed_once():
    assert optimum.enumerate_responses(2, 1).tuples() == [(0,), (1,)]
    assert optimum.enumerate_responses(2, 2).tuples() == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_stop_token_ends_a_response():
    listed = optimum.enumerate_responses(2, 2, stop_token_ids=[0])
    assert listed.tuples() == [(0,), (1, 0), (1, 1)]
    assert listed.mask.tolist() == [[True, False], [True, True], [True, True]]
    early = optimum.enumerate_responses(2, 2, stop_token_ids=[0], min_length=2).tuples()
    assert sorted(early) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    many = optimum.enumerate_responses(8, 4, stop_token_ids=[0, 5])
    # Two ends after 0 to 3 of the six others, or four of the others.
    assert len(many.token_ids) == 2 * (1 + 6 + 36 + 216) + 6**4
    assert len(set(many.tuples())) == len(many.token_ids)


@pytest.mark.parametrize(("coef", "normalizer"), [(1.0, 2.0), (0.5, 5.5)])
def test_the_best_value_is_coef_times_log_of_the_normalizer(coef, normalizer):
    best = optimum.best_value(REFERENCE, SCORES, coef)
    np.testing.assert_allclose(best, [coef * math.log(normalizer)], rtol=1e-12)
    policy = optimum.optimal_logprobs(REFERENCE, SCORES, coef)
    np.testing.assert_allclose(optimum.value(policy, REFERENCE, SCORES, coef), best, rtol=1e-12)


def test_the_best_policy_tilts_the_reference():
    best = np.exp(optimum.optimal_logprobs(REFERENCE, SCORES, 1.0))
    np.testing.assert_allclose(best, [[1 / 4, 1 / 4, 1 / 2]], rtol=1e-12)


def test_a_value_is_the_mean_score_less_the_kl():
    at_reference = optimum.value(REFERENCE, REFERENCE, SCORES, 0.5)
    np.testing.assert_allclose(at_reference, [3 / 4 * LN2], rtol=1e-12)
    uniform = np.log(np.full((1, 3), 1 / 3))
    # Mean score ln 2; KL = (ln 2/3 + 2 ln 4/3) / 3.
    kl = (math.log(2 / 3) + 2 * math.log(4 / 3)) / 3
    by_hand = [LN2 - 0.5 * kl]
    np.testing.assert_allclose(optimum.value(uniform, REFERENCE, SCORES, 0.5), by_hand, rtol=1e-12)


def test_regret_is_zero_at_the_best_and_one_at_the_reference():
    best = optimum.optimal_logprobs(REFERENCE, SCORES, 0.5)
    assert optimum.regret(best, REFERENCE, SCORES, 0.5) == pytest.approx(0.0, abs=1e-12)
    assert optimum.regret(REFERENCE, REFERENCE, SCORES, 0.5) == 1.0
    # Aiming at b = 1 misses b/2 log 5.5 - (5/4 ln 2 - KL/2) with KL = 1/4 ln 1/2 + 1/2 ln 2.
    tilted = optimum.optimal_logprobs(REFERENCE, SCORES, 1.0)
    best_value = 0.5 * math.log(5.5)
    missed = best_value - (5 / 4 * LN2 - 0.5 * (LN2 / 4))
    by_hand = missed / (best_value - 3 / 4 * LN2)
    assert optimum.regret(tilted, REFERENCE, SCORES, 0.5) == pytest.approx(by_hand, rel=1e-9)


def test_prompts_are_pooled_by_what_they_can_gain():
    references, scores = np.tile(REFERENCE, (2, 1)), np.concatenate([SCORES, MIRRORED])
    half_right = np.concatenate([optimum.optimal_logprobs(REFERENCE, SCORES, 1.0), REFERENCE])
    gains = math.log(2.0) - 3 / 4 * LN2, math.log(2.75) - 5 / 4 * LN2
    pooled = optimum.regret(half_right, references, scores, 1.0)
    assert pooled == pytest.approx(gains[1] / sum(gains), rel=1e-9)
    assert pooled != pytest.approx(0.5, abs=0.03), "this would be the mean over prompts"


def test_scores_may_be_the_same_for_all_prompts():
    references = np.tile(REFERENCE, (2, 1))
    np.testing.assert_array_equal(
        optimum.best_value(references, SCORES[0], 0.5),
        optimum.best_value(references, np.tile(SCORES, (2, 1)), 0.5),
    )


@pytest.fixture(scope="module")
def actor():
    return helpers.actor(vocab=VOCAB, positions=8)


@pytest.fixture(scope="module")
def listed():
    return optimum.enumerate_responses(VOCAB, LENGTH, stop_token_ids=[0])


def looped(causal_lm, responses):
    """Log-probabilities from the logits of one row at a time."""
    table = np.zeros((len(PROMPTS), len(responses)))
    for i, prompt in enumerate(PROMPTS):
        for j, response in enumerate(responses):
            ids = np.array([[*prompt, *response]])
            logits = causal_lm({"token_ids": ids, "padding_mask": np.ones_like(ids)})
            scaled = np.asarray(logits, "float64")[0] / TEMPERATURE
            for place, token in enumerate(response, len(prompt)):
                row = scaled[place - 1]
                table[i, j] += row[token] - np.log(np.exp(row).sum())
    return table


def test_a_reader_follows_the_model(actor, listed):
    read = optimum.ResponseLogprobs(actor, PROMPTS, listed, TEMPERATURE, batch_size=4)
    before = read()
    np.testing.assert_allclose(before, looped(actor.causal_lm, listed.tuples()), atol=1e-4)
    np.testing.assert_allclose(np.exp(before).sum(axis=1), 1.0, atol=1e-5)
    bias = actor.causal_lm.backbone.get_layer("layer_norm").beta
    bias.assign(bias + 0.5)
    after = read()
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, looped(actor.causal_lm, listed.tuples()), atol=1e-4)


def test_a_reader_reads_a_reference(actor, listed):
    frozen = lm_adapter.copy(actor.causal_lm)
    ours, theirs = (
        optimum.ResponseLogprobs(model, PROMPTS, listed, TEMPERATURE, jit_compile=False)()
        for model in (actor, Reference(frozen))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


WRONG = {
    "stop_outside": (lambda: optimum.enumerate_responses(2, 2, [2]), "below vocab=2"),
    "no_tokens": (lambda: optimum.enumerate_responses(0, 2), "`vocab`"),
    "no_length": (lambda: optimum.enumerate_responses(2, 0), "`length`"),
    "other_shape": (lambda: optimum.best_value(REFERENCE, SCORES[:, :2], 1.0), "Received"),
    "no_distribution": (lambda: optimum.best_value(REFERENCE[:, :2], [0.0, 1.0], 1.0), "sum to 1"),
    "no_coefficient": (lambda: optimum.best_value(REFERENCE, SCORES, 0.0), "`kl_coef`"),
    "no_gain": (lambda: optimum.regret(REFERENCE, REFERENCE, 0 * SCORES, 1.0), "are equal"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case):
    call, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        call()


def test_an_empty_prompt_is_refused(actor, listed):
    with pytest.raises(ValueError, match="at least one token"):
        optimum.ResponseLogprobs(actor, [[1], []], listed)
