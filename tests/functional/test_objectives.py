"""Rewards, advantages and losses against NumPy loops written from the papers."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import policy_losses, preferences, returns, value_losses

RNG = np.random.default_rng(11)
SHAPE = (5, 12)
A, B, C = (RNG.normal(size=SHAPE).astype("float32") for _ in range(3))
SCORES = RNG.normal(size=5).astype("float32")
RUNS = [(0, 12), (3, 9), (11, 12), (4, 4), (0, 1)]  # first true position, one past the last
MASK = np.array([[start <= t < end for t in range(12)] for start, end in RUNS])


def test_token_rewards_against_a_loop():
    """N18: the score on the end token itself, not on the pad after it."""
    scores = np.where(MASK.any(axis=1), SCORES, np.nan)  # an empty row loses its score
    rewards = returns.token_rewards(scores, A, B, MASK, kl_coef=0.3)
    expected = np.zeros(SHAPE)
    for row, (start, end) in enumerate(RUNS):
        for t in range(start, end):
            expected[row, t] = -0.3 * (A[row, t] - B[row, t])
            if t == end - 1:
                expected[row, t] += SCORES[row]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)


def test_scores_per_token_are_added_at_their_own_tokens():
    """Process rewards: each score at its step, and none outside the mask."""
    scores = np.where(MASK, C, np.nan).astype("float32")
    rewards = np.array(returns.token_rewards(scores, A, B, MASK, kl_coef=0.3))
    for row in range(SHAPE[0]):
        for t in range(SHAPE[1]):
            expected = C[row, t] - 0.3 * (A[row, t] - B[row, t]) if MASK[row, t] else 0.0
            assert rewards[row, t] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_score_per_response_is_a_score_per_token_at_the_end():
    ends = np.array([[t == end - 1 and end > start for t in range(12)] for start, end in RUNS])
    placed = np.where(ends, SCORES[:, None], 0.0)
    np.testing.assert_array_equal(
        returns.token_rewards(placed, A, B, MASK, 0.3),
        returns.token_rewards(SCORES, A, B, MASK, 0.3),
    )


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_fractions_survive_integers_and_other_dtypes(dtype):
    """The mistake of rewards accumulated in an array made like the token ids."""
    zeros, score = np.zeros((1, 2), "int32"), np.array([3.75]).astype(dtype)
    rewards = returns.token_rewards(score, zeros, zeros + 1, np.ones((1, 2), "int32"), 0.25)
    assert rewards.dtype == "float32"
    np.testing.assert_array_equal(rewards, [[0.25, float(score[0]) + 0.25]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_gae_is_the_weighted_sum_of_temporal_differences(gamma, lam):
    """Eq. 16 of arXiv 1506.02438, summed forward as printed instead of run backward."""
    advantages, targets = returns.gae(A, B, MASK, gamma, lam)
    expected = np.zeros(SHAPE)
    for row, (start, end) in enumerate(RUNS):
        for t in range(start, end):
            for later in range(t, end):
                following = B[row, later + 1] if later + 1 < end else 0.0
                delta = A[row, later] + gamma * following - B[row, later]
                expected[row, t] += (gamma * lam) ** (later - t) * delta
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets, np.where(MASK, expected + B, 0.0), rtol=1e-4, atol=1e-5)


def test_monte_carlo_returns_are_the_rewards_to_come():
    _, targets = returns.gae([[1.0, 2.0, 4.0]], [[9.0, -3.0, 5.0]], [[1, 1, 1]], 1.0, 1.0)
    np.testing.assert_allclose(targets, [[7.0, 6.0, 4.0]])


def test_clipped_policy_loss_against_a_loop():
    """N20."""
    loss, clipped = policy_losses.clipped_policy_loss(A, B, C, 0.2)
    for where in np.ndindex(SHAPE):
        ratio = math.exp(float(A[where]) - float(B[where]))
        plain = -C[where] * ratio
        bounded = -C[where] * min(max(ratio, 0.8), 1.2)
        assert loss[where].numpy() == pytest.approx(max(plain, bounded), rel=1e-4)
        assert bool(clipped[where]) == (bounded > plain)
    assert 0 < np.sum(clipped) < np.size(clipped)


def test_first_update_has_no_clipping_and_the_gradient_of_the_policy_gradient():
    logprobs = tf.constant(A)
    with tf.GradientTape() as tape:
        tape.watch(logprobs)
        loss, clipped = policy_losses.clipped_policy_loss(logprobs, A, C, 0.2)
    assert not np.any(clipped)
    np.testing.assert_array_equal(loss, -C)
    np.testing.assert_allclose(tape.gradient(loss, logprobs), -C, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.5, 1.0, 0.0), (0.5, -1.0, 0.0), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5)],
)
def test_no_gradient_beyond_the_range_but_a_full_one_back_into_it(ratio, advantage, slope):
    logprobs = tf.constant([[math.log(ratio)]])
    with tf.GradientTape() as tape:
        tape.watch(logprobs)
        loss, clipped = policy_losses.clipped_policy_loss(logprobs, [[0.0]], [[advantage]], 0.2)
    assert float(tape.gradient(loss, logprobs)[0, 0]) == pytest.approx(slope)
    assert bool(clipped[0, 0]) == (slope == 0.0)


def test_clipped_value_loss_against_a_loop():
    """N20: the larger of two squared errors, halved."""
    loss, clipped = value_losses.clipped_value_loss(A, B, C, 0.2)
    for where in np.ndindex(SHAPE):
        value, old, target = (float(x[where]) for x in (A, B, C))
        near = min(max(value, old - 0.2), old + 0.2)
        plain, bounded = (value - target) ** 2, (near - target) ** 2
        assert loss[where].numpy() == pytest.approx(0.5 * max(plain, bounded), rel=1e-4, abs=1e-7)
        assert bool(clipped[where]) == (bounded > plain)
    assert 0 < np.sum(clipped) < np.size(clipped)
    assert not np.any(value_losses.clipped_value_loss(A, A, C, 0.2)[1])


@pytest.mark.parametrize("margin", [None, 0.5, np.array([0.1, -0.2, 0.3])])
def test_bradley_terry_against_a_loop(margin):
    """P11."""
    scores = RNG.normal(size=(3, 4))
    margins = np.broadcast_to(0.0 if margin is None else margin, (3,))
    expected = [
        np.mean([math.log1p(math.exp(-(row[0] - other - m))) for other in row[1:]])
        for row, m in zip(scores, margins, strict=True)
    ]
    np.testing.assert_allclose(preferences.bradley_terry(scores, margin), expected, rtol=1e-5)


def test_best_of_k_against_a_loop_and_against_bradley_terry():
    scores = RNG.normal(size=(3, 4))
    expected = [-math.log(math.exp(row[0]) / sum(map(math.exp, row))) for row in scores]
    np.testing.assert_allclose(preferences.best_of_k(scores), expected, rtol=1e-5)
    pairs = scores[:, :2]
    np.testing.assert_allclose(
        preferences.best_of_k(pairs), preferences.bradley_terry(pairs), rtol=1e-5
    )


@pytest.mark.parametrize("loss", [preferences.bradley_terry, preferences.best_of_k])
def test_preference_losses_are_stable_and_ignore_a_common_shift(loss):
    np.testing.assert_allclose(loss([[-1e4, 1e4], [1e4, -1e4]]), [2e4, 0.0])
    np.testing.assert_allclose(loss([[1.0, 2.0]]), loss([[1001.0, 1002.0]]), rtol=1e-6)


def test_ties_are_shared_out_and_a_lead_is_over_the_best_other():
    scores = [[2.0, 2.0, 1.0], [1.0, 1.0, 1.0], [3.0, 1.0, 2.0], [0.0, 1.0, 1.0]]
    np.testing.assert_allclose(preferences.accuracy(scores), [0.5, 1 / 3, 1.0, 0.0])
    np.testing.assert_allclose(preferences.lead(scores), [0.0, 0.0, 1.0, -1.0])


def plackett_luce(scores):
    """Minus the log of the product of shares exp(s_k) / sum of exp(s_j) over those left."""
    likelihood, left = 1.0, list(np.exp(np.asarray(scores, "float64")))
    while len(left) > 1:
        likelihood *= left[0] / sum(left)
        left.pop(0)
    return -math.log(likelihood)


def test_plackett_luce_against_the_product_of_choices():
    scores = RNG.normal(size=(6, 4)).astype("float32")
    found = preferences.plackett_luce(scores)
    assert found.shape == (6,) and found.dtype == "float32"
    np.testing.assert_allclose(found, [plackett_luce(row) for row in scores], rtol=1e-5)


def test_plackett_luce_is_a_distribution_over_the_orders():
    orders = np.array(list(itertools.permutations([0.3, -1.2, 2.0, 0.9])), "float32")
    assert len(orders) == 24
    total = np.exp(-np.array(preferences.plackett_luce(orders), "float64")).sum()
    assert total == pytest.approx(1.0, rel=1e-6)


def test_plackett_luce_of_two_is_bradley_terry_and_begins_with_the_best_of_k():
    scores = RNG.normal(size=(6, 3)).astype("float32")
    np.testing.assert_allclose(
        preferences.plackett_luce(scores[:, :2]),
        preferences.bradley_terry(scores[:, :2]),
        rtol=1e-5,
    )
    rest = preferences.plackett_luce(scores[:, 1:])
    np.testing.assert_allclose(
        preferences.plackett_luce(scores), preferences.best_of_k(scores) + rest, rtol=1e-5
    )


def test_plackett_luce_stays_finite_where_scores_are_far_apart():
    scores = tf.Variable([[-300.0, 0.0, 300.0], [300.0, 0.0, -300.0]])
    with tf.GradientTape() as tape:
        losses = preferences.plackett_luce(scores)
    np.testing.assert_allclose(losses, [600 + 300, 0.0], atol=1e-4)
    np.testing.assert_allclose(tape.gradient(losses, scores)[0], [-1, -1, 2], atol=1e-5)


def test_the_squared_sum_takes_all_candidates_of_a_row():
    np.testing.assert_array_equal(
        preferences.squared_sum([[1.0, 2.0, -4.0], [3.0, -3.0, 0.0]]), [1.0, 0.0]
    )
    with pytest.raises(ValueError, match="at least 2"):
        preferences.squared_sum([[1.0]])
    with pytest.raises(ValueError, match="batch, candidates"):
        preferences.plackett_luce([1.0, 2.0])
