"""`Sampler(epsilon=...)`: tokens of the mixture, and what is known of how they were drawn."""

import itertools

import helpers
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import replica
from kerasrlhf.functional import policy_losses
from kerasrlhf.models.sampling import draw, mixture_logprobs
from kerasrlhf.types import Rollout, Sampler

EPSILON, VOCAB = 0.3, 5
LOGITS = np.array([2.0, -1.0, 0.5, 3.0, -4.0], "float32")
BATCH = helpers.prompts([2, 5, 1, 3])
SAMPLER = Sampler(length=4, temperature=0.7, stop_token_ids=(0, 4), epsilon=EPSILON)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize(("vocab", "epsilon"), [(5, 0.3), (5, 0.9), (700, 0.5)])
def test_frequencies_are_those_of_the_mixture(vocab, epsilon):
    """Within five standard errors of 40,000 draws."""
    count = 40_000
    logits = np.resize(LOGITS, vocab) + np.linspace(0, 1, vocab).astype("float32")
    expected = (1 - epsilon) * softmax(logits / 0.7) + epsilon / vocab
    uniforms = replica.uniforms(3, 0, count, 1)[:, 0]
    sampler = Sampler(length=1, temperature=0.7, epsilon=epsilon)
    tokens, logprobs = draw(tf.tile(logits[None], (count, 1)), uniforms, sampler, 0.7)
    found = np.bincount(tokens, minlength=vocab) / count
    error = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(found - expected) < 5 * error)
    np.testing.assert_allclose(logprobs, np.log(softmax(logits / 0.7))[tokens], atol=1e-4)


@pytest.fixture(scope="module")
def acting():
    return helpers.actor()


@pytest.fixture(scope="module")
def drawn(acting):
    return helpers.draw_eagerly(acting, BATCH, SAMPLER)


def test_logprobs_are_those_of_the_policy_and_behavior_those_of_the_mixture(acting, drawn):
    inside = np.array(drawn.response_mask)
    expected = acting.token_stats(
        drawn.token_ids, drawn.padding_mask, drawn.prompt_lengths, 4, 0.7
    ).logprobs
    np.testing.assert_allclose(drawn.logprobs, np.where(inside, expected, 0), atol=1e-5)
    policy = np.exp(np.array(expected, "float64"))
    mixed = np.log((1 - EPSILON) * policy + EPSILON / helpers.VOCAB)
    np.testing.assert_allclose(drawn.behavior_logprobs, np.where(inside, mixed, 0), atol=1e-5)
    assert np.abs(np.array(drawn.behavior_logprobs - drawn.logprobs)).max() > 0.1


def test_graphs_and_xla_draw_what_eager_draws(acting, drawn):
    compiled = acting.generate(BATCH, SAMPLER)
    for name, expected in helpers.arrays(drawn).items():
        np.testing.assert_allclose(getattr(compiled, name), expected, atol=1e-5, err_msg=name)


def test_without_epsilon_both_are_the_same_numbers(acting):
    plain = helpers.draw_eagerly(acting, BATCH, Sampler(length=3))
    assert plain.behavior_logprobs is plain.logprobs


def test_weighted_by_importance_an_expectation_is_the_policy_s():
    """Over every response of two tokens, whose second depends on the first."""
    first = softmax(LOGITS)
    second = [softmax(np.roll(LOGITS, token)) for token in range(VOCAB)]
    policy = weighted = unweighted = 0.0
    for a, b in itertools.product(range(VOCAB), repeat=2):
        logprobs = np.log([first[a], second[a][b]]).astype("float32")
        behavior = np.array(mixture_logprobs(logprobs, EPSILON, VOCAB))
        weight = np.prod(policy_losses.importance_weights(logprobs, behavior))
        score = 3.0 * a - b * b
        policy += first[a] * second[a][b] * score
        weighted += np.exp(behavior.sum()) * weight * score
        unweighted += np.exp(behavior.sum()) * score
    assert weighted == pytest.approx(policy, rel=1e-5)
    assert abs(unweighted - policy) > 0.1
    each = mixture_logprobs(np.log(first).astype("float32"), EPSILON, VOCAB)
    assert np.exp(each).sum() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, 1.5, None])
def test_a_share_outside_its_range_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        Sampler(length=1, epsilon=epsilon)


def test_there_is_nothing_to_mix_with_at_temperature_zero():
    with pytest.raises(ValueError, match=r"`epsilon` mixes samples .* temperature above 0"):
        Sampler(length=1, epsilon=0.1, temperature=0.0)


def test_training_weighs_what_was_explored(acting):
    """Advantages count `p / behavior` times, which is at most `1 / (1 - epsilon)`."""
    made = helpers.ppo(acting, sampler=SAMPLER)
    assert made.reweighs and not helpers.ppo(acting).reweighs
    shape, inside = (2, 3), np.array([[False, True, True], [False, True, False]])
    logprobs = np.where(inside, np.log([[0.5], [0.01]]), 0.0).astype("float32")
    from_mixture = np.where(inside, mixture_logprobs(logprobs, EPSILON, VOCAB), 0.0)
    rollout = Rollout(
        **dict.fromkeys(Rollout._fields, np.zeros(shape, "float32"))
        | {
            "response_mask": inside,
            "logprobs": logprobs,
            "behavior_logprobs": from_mixture.astype("float32"),
        }
    )
    found = made.experience(rollout, np.ones(shape, "float32")).advantages
    weights = [[0.5 / (0.7 * 0.5 + 0.06)], [0.01 / (0.7 * 0.01 + 0.06)]]
    np.testing.assert_allclose(found, np.where(inside, weights, 0.0), rtol=1e-5)


def test_validation_does_not_explore(acting):
    made = helpers.ppo(acting, sampler=SAMPLER, update_epochs=1)
    made.compile(run_eagerly=True)
    seen = made.collect(BATCH).rollout
    np.testing.assert_array_equal(seen.behavior_logprobs, seen.logprobs)
    made.iterate(BATCH)
    explored = made.last.rollout
    assert np.abs(np.array(explored.behavior_logprobs - explored.logprobs)).max() > 0.1
