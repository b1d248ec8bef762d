"""Losses on a policy's own log-probabilities against NumPy loops written from the papers."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import direct_losses, preferences

RNG = np.random.default_rng(5)
RATIOS = RNG.normal(size=(6, 3))
MEANS = -RNG.uniform(0.01, 4.0, (6, 3))


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def test_the_log_probability_of_a_response_is_a_sum_or_a_mean():
    logprobs = RNG.normal(size=(2, 2, 4))
    mask = np.array([[[0, 1, 1, 0], [0, 1, 1, 1]], [[0, 0, 0, 1], [0, 0, 0, 0]]], bool)
    total = [[sum(logprobs[i, j][mask[i, j]]) for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(direct_losses.response_logprobs(logprobs, mask), total, rtol=1e-5)
    means = np.array(total) / [[2, 3], [1, 1]]
    np.testing.assert_allclose(
        direct_losses.response_logprobs(logprobs, mask, True), means, rtol=1e-5
    )


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_is_bradley_terry_of_implicit_rewards(beta):
    """Eq. 7 of arXiv 2305.18290, its four log-probabilities in the order it prints them."""
    policy, reference = RNG.normal(-5.0, 1.0, (2, 6, 2))
    expected = [
        -math.log(sigmoid(beta * (w - ref_w) - beta * (loser - ref_l)))
        for (w, loser), (ref_w, ref_l) in zip(policy, reference, strict=True)
    ]
    rewards = direct_losses.implicit_reward(policy, reference, beta)
    np.testing.assert_allclose(preferences.bradley_terry(rewards), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_smoothed_labels_are_labels_that_are_wrong_with_that_probability(smoothing):
    leads = RATIOS[:, :1] - RATIOS[:, 1:]
    expected = [
        np.mean(
            [
                -(1 - smoothing) * math.log(sigmoid(x)) - smoothing * math.log(sigmoid(-x))
                for x in row
            ]
        )
        for row in leads
    ]
    found = preferences.bradley_terry(RATIOS, label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_ipo_against_a_loop(beta):
    """Eq. 17 of arXiv 2310.12036."""
    expected = [np.mean([(row[0] - x - 1 / (2 * beta)) ** 2 for x in row[1:]]) for row in RATIOS]
    np.testing.assert_allclose(direct_losses.ipo(RATIOS, beta), expected, rtol=1e-5)


def test_kto_against_a_loop():
    """Eq. 8 of arXiv 2402.01306: lambda_y - v, with v of each response by its own label."""
    beta, z0, weights = 0.3, 0.7, (1.5, 0.5)
    expected = []
    for row in RATIOS:
        desirable = weights[0] - weights[0] * sigmoid(beta * (row[0] - z0))
        others = [weights[1] - weights[1] * sigmoid(beta * (z0 - x)) for x in row[1:]]
        expected.append(np.mean([desirable, *others]))
    rewards = direct_losses.implicit_reward(RATIOS, np.zeros_like(RATIOS), beta, z0)
    np.testing.assert_allclose(direct_losses.kto(rewards, *weights), expected, rtol=1e-5)


@pytest.mark.parametrize("coef", [0.0, 0.1, 3.0])
def test_orpo_against_a_loop(coef):
    """Eq. 4, 6 and 7 of arXiv 2403.07691."""
    expected = []
    for row in MEANS:
        odds = [math.exp(x) / (1 - math.exp(x)) for x in row]
        ratios = [-math.log(sigmoid(math.log(odds[0] / other))) for other in odds[1:]]
        expected.append(-row[0] + coef * np.mean(ratios))
    np.testing.assert_allclose(direct_losses.orpo(MEANS, coef), expected, rtol=1e-4)


def test_odds_stay_finite_with_their_gradient():
    logprobs = tf.constant([-1e-9, 0.0, -1e-3, -0.5, -100.0])
    with tf.GradientTape() as tape:
        tape.watch(logprobs)
        odds = direct_losses.log_odds(logprobs)
    gradient = tape.gradient(odds, logprobs).numpy()
    certain = math.log(1 - 1e-6) - math.log(1e-6)
    assert odds.numpy()[:2].tolist() == pytest.approx([certain] * 2, rel=1e-3)
    assert odds.numpy()[4] == pytest.approx(-100.0)
    assert gradient[:2].tolist() == [0.0, 0.0]
    # d log(p / (1 - p)) / d log p = 1 / (1 - p)
    expected = [1 / -math.expm1(x) for x in (-1e-3, -0.5, -100.0)]
    np.testing.assert_allclose(gradient[2:], expected, rtol=1e-3)


def test_kto_of_responses_with_labels_of_their_own():
    rewards, weights = np.array([[0.3, -2.0], [1.0, 0.0]], "float32"), (1.5, 0.5)
    labels = np.array([[False, True], [True, True]])
    expected = [
        np.mean(
            [
                weights[0] / (1 + math.exp(r)) if wanted else weights[1] / (1 + math.exp(-r))
                for r, wanted in zip(*rows, strict=True)
            ]
        )
        for rows in zip(rewards.tolist(), labels.tolist(), strict=True)
    ]
    np.testing.assert_allclose(direct_losses.kto(rewards, *weights, labels), expected, rtol=1e-5)
    alone = direct_losses.kto(rewards[:, :1], *weights, labels[:, :1])
    one = [weights[1] / (1 + math.exp(-0.3)), weights[0] / (1 + math.exp(1.0))]
    np.testing.assert_allclose(alone, one, rtol=1e-5)
    with pytest.raises(ValueError, match="`desirable`"):
        direct_losses.kto(rewards, desirable=labels[:, :1])


@pytest.mark.parametrize("loss", [direct_losses.ipo, direct_losses.kto, direct_losses.orpo])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 2)])
def test_other_shapes_than_candidates_are_refused(loss, shape):
    arguments = (0.1,) if loss is direct_losses.ipo else ()
    with pytest.raises(ValueError, match=r"expected \(batch, candidates\)"):
        loss(np.full(shape, -1.0), *arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: direct_losses.ipo(RATIOS, 0.0), "`beta` is 0.0"),
        (lambda: direct_losses.implicit_reward(RATIOS, RATIOS, -1.0), "`beta` is -1.0"),
        (lambda: direct_losses.implicit_reward(RATIOS, RATIOS[:1]), "`ref_logprobs`"),
        (lambda: direct_losses.response_logprobs(RATIOS, RATIOS[:1] > 0), "`mask`"),
        (lambda: preferences.bradley_terry(RATIOS, label_smoothing=1.5), "`label_smoothing` is"),
    ],
)
def test_wrong_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
