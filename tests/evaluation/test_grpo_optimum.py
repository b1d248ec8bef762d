"""Where GRPO comes to rest, against the gradient of its loss over every possible group."""

import itertools
import math

import numpy as np
import pytest

from kerasrlhf.evaluation import grpo_optimum, optimum

# (0,), (1, 0), (1, 1)
RESPONSES = optimum.enumerate_responses(2, 2, stop_token_ids=[0])
SCORES = np.array([0.0, 1.0, 3.0])
COEF = 0.4


def table(first, second):
    """Log-probabilities of the responses and of their tokens, from chances of token 1."""
    tokens = [
        [math.log(1 - first)],
        [math.log(first), math.log(1 - second)],
        [math.log(first), math.log(second)],
    ]
    return np.array([sum(row) for row in tokens]), tokens


def gradient(policy, reference, group_size):
    """Of GRPO's loss with respect to both logits, by central differences over all groups."""
    sampled, old = table(*policy)
    _, given = table(*reference)

    def loss(logits):
        _, new = table(*(1 / (1 + np.exp(-logits))))
        total = 0.0
        for group in itertools.product(range(3), repeat=group_size):
            scores = SCORES[list(group)]
            chance = math.exp(sum(sampled[y] for y in group))
            for y, score in zip(group, scores, strict=True):
                advantage = (score - scores.mean()) / (scores.std() + 1e-4)
                terms = [
                    COEF * (math.exp(p - q) - 1 - (p - q)) - advantage * math.exp(q - o)
                    for q, o, p in zip(new[y], old[y], given[y], strict=True)
                ]
                total += chance * sum(terms) / len(terms) / group_size
        return total

    logits = np.log(policy) - np.log1p(-np.array(policy))
    return [(loss(logits + d) - loss(logits - d)) / 2e-5 for d in np.eye(2) * 1e-5]


@pytest.mark.parametrize("group_size", [2, 3])
def test_there_the_gradient_over_all_groups_is_zero(group_size):
    reference = 0.6, 0.3
    given, _ = table(*reference)
    (found,) = grpo_optimum.resting_logprobs([given], SCORES, RESPONSES, COEF, group_size)
    first = 1 - math.exp(found[0])
    policy = first, math.exp(found[2]) / first
    assert np.abs(gradient(policy, reference, group_size)).max() < 5e-4
    best = np.exp(optimum.optimal_logprobs([given], SCORES, COEF)[0])
    other = 1 - best[0], best[2] / (1 - best[0])
    for wrong in (reference, other):
        assert np.abs(gradient(wrong, reference, group_size)).max() > 0.01


@pytest.mark.parametrize("chance", [1e-6, 1e-3, 0.5])
def test_rare_responses_grow_as_far_as_they_are_pulled(chance):
    """Two responses in groups of two: the difference of their advantages is 1 at any chance.

    So `1 = b ((1 - p) / (1 - q) - p / q)`, whose root is found by halving.
    """
    responses = optimum.enumerate_responses(2, 1)
    given = np.log([[1 - chance, chance]])
    (found,) = grpo_optimum.resting_logprobs(given, [[0.0, 1.0]], responses, COEF, 2)
    low, high = 0.0, 1.0
    for _ in range(60):
        q = (low + high) / 2
        left = 1 - COEF * ((1 - chance) / (1 - q) - chance / q)
        low, high = (q, high) if left > 0 else (low, q)
    assert math.exp(found[1]) == pytest.approx(q, rel=2e-3)


def test_each_prompt_has_its_own():
    given = [table(0.6, 0.3)[0], table(0.2, 0.5)[0]]
    both = grpo_optimum.resting_logprobs(given, [SCORES, -SCORES], RESPONSES, COEF, 4)
    np.testing.assert_allclose(np.exp(both).sum(axis=1), 1.0, rtol=1e-6)
    for row, ref, scores in zip(both, given, (SCORES, -SCORES), strict=True):
        alone = grpo_optimum.resting_logprobs([ref], scores, RESPONSES, COEF, 4)
        np.testing.assert_array_equal(row, alone[0])


def test_hits_among_many_are_binomial():
    """A hit beside k others of 63 has the advantage sqrt((1 - m) / m) of a share m of hits."""
    chance, others = 0.1, 63
    k = np.arange(others + 1)
    weight = [math.comb(others, i) * chance**i * (1 - chance) ** (others - i) for i in k]
    shares = (k + 1) / (others + 1)
    hit = np.sum(weight * (1 - shares) / (np.sqrt(shares * (1 - shares)) + 1e-4))
    shares = k / (others + 1)
    miss = np.sum(weight * -shares / (np.sqrt(shares * (1 - shares)) + 1e-4))
    found = grpo_optimum.mean_advantages(
        np.array([1.0, 0.0, 0.0]), np.array([chance, 0.5, 0.4]), grpo_optimum._quantiles(64)
    )
    np.testing.assert_allclose(found, [hit, miss, miss], rtol=0.01)


def test_many_different_scores_are_interpolated():
    """Above 33 the curve between them is drawn through 33: against every score by itself."""
    scores = np.random.default_rng(0).normal(size=200)
    equal, quantiles = np.full(200, 1 / 200), grpo_optimum._quantiles(8)
    found = grpo_optimum.mean_advantages(scores, equal, quantiles)
    others = np.sort(scores)[np.floor(quantiles * 200).astype(int)]
    for i in range(0, 200, 7):
        group = np.concatenate([others, np.full((len(others), 1), scores[i])], axis=1)
        alone = (scores[i] - group.mean(axis=1)) / (group.std(axis=1) + 1e-4)
        assert found[i] == pytest.approx(alone.mean(), abs=0.02)


def test_what_is_found_hangs_little_on_the_groups_that_were_drawn(monkeypatch):
    given, _ = table(0.6, 0.3)
    found = []
    for draws in (1024, 4096):
        monkeypatch.setattr(grpo_optimum, "_GROUPS", draws)
        found.append(grpo_optimum.resting_logprobs([given], SCORES, RESPONSES, COEF, 8)[0])
    assert 0.0 <= np.sum(np.exp(found[0]) * (found[0] - found[1])) < 1e-5


def test_no_resting_point_is_no_answer(monkeypatch):
    monkeypatch.setattr(grpo_optimum, "_STEPS", 2)
    with pytest.raises(RuntimeError, match="No resting point after 2 steps"):
        grpo_optimum.resting_logprobs([table(0.6, 0.3)[0]], SCORES, RESPONSES, COEF, 2)


def test_a_relative_divergence_from_the_best_policy_is_the_regret():
    given, _ = table(0.6, 0.3)
    policy, _ = table(0.5, 0.9)
    best = optimum.optimal_logprobs([given], SCORES, COEF)
    assert grpo_optimum.relative_divergence([policy], [given], best) == pytest.approx(
        optimum.regret([policy], [given], SCORES, COEF), rel=1e-9
    )
    assert grpo_optimum.relative_divergence(best, [given], best) == pytest.approx(0.0, abs=1e-9)


def test_bad_input_is_refused():
    given, _ = table(0.6, 0.3)
    with pytest.raises(ValueError, match=r"group_size.*1"):
        grpo_optimum.resting_logprobs([given], SCORES, RESPONSES, COEF, 1)
    with pytest.raises(ValueError, match="kl_coef"):
        grpo_optimum.resting_logprobs([given], SCORES, RESPONSES, 0.0, 2)
    fewer = optimum.enumerate_responses(2, 1)
    with pytest.raises(ValueError, match=r"2 responses.*3"):
        grpo_optimum.resting_logprobs([given], SCORES, fewer, COEF, 2)
    never = [np.log([1.0, 1e-300]) - [0.0, np.inf]]
    with pytest.raises(ValueError, match="must be finite"):
        grpo_optimum.resting_logprobs(never, SCORES[:2], fewer, COEF, 2)
    with pytest.raises(ValueError, match="one shape"):
        grpo_optimum.relative_divergence([given], [given[:2]], [given])
    with pytest.raises(ValueError, match="target is the reference"):
        grpo_optimum.relative_divergence([given], [given], [given])
