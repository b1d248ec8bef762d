"""The arithmetic against loops in NumPy that transcribe the published formulas, in float64.

Schulman et al. 2016 (advantages) and 2017 (policy loss), Schulman 2020 (estimators of the KL),
Ziegler et al. 2019 (rewards, KL control, best of k), Stiennon et al. 2020 (pairs), Huang et al.
2023 and 2024 (whitening, value loss, statistics).
"""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import (
    kl,
    logprobs,
    masking,
    policy_losses,
    preferences,
    returns,
    value_losses,
)
from kerasrlhf.trainers.kl_control import AdaptiveKL

ROWS, LENGTH = 6, 17


def close(found, expected):
    """Equal to 1e-6, of numbers above 1 to 1e-6 of themselves."""
    found = np.asarray(found)
    assert found.dtype == "float32"
    assert np.max(np.abs(found - expected) / np.maximum(1.0, np.abs(expected))) <= 1e-6


@pytest.fixture(params=range(4))
def case(request):
    """Ragged runs of true positions, one full and one of a single token, and numbers."""
    generator = np.random.default_rng(request.param)
    starts = generator.integers(1, 5, ROWS)
    ends = np.array([LENGTH, *generator.integers(6, LENGTH, ROWS - 2), starts[-1] + 1])
    mask = np.array(
        [[s <= t < e for t in range(LENGTH)] for s, e in zip(starts, ends, strict=True)]
    )
    numbers = generator.normal(0, 0.7, (5, ROWS, LENGTH)).astype("float32")
    return mask, numbers.astype("float64"), generator.normal(0, 2, ROWS)


def positions(mask):
    return [(row, t) for row in range(ROWS) for t in range(LENGTH) if mask[row, t]]


def mean_and_variance(x, mask):
    inside = [x[where] for where in positions(mask)]
    mean = sum(inside) / len(inside)
    return mean, sum((v - mean) ** 2 for v in inside) / len(inside)


@pytest.mark.parametrize("center", [True, False])
def test_whitening(case, center):
    mask, (x, *_), _ = case
    x = 3 * x + 5
    mean, variance = mean_and_variance(x, mask)
    expected = np.zeros(x.shape)
    for where in positions(mask):
        expected[where] = (x[where] - mean) / math.sqrt(variance + 1e-8)
        expected[where] += 0.0 if center else mean
    close(masking.whiten(x, mask, center=center), expected)


def test_token_rewards(case):
    mask, (new, old, *_), scores = case
    expected = np.zeros(mask.shape)
    for row, t in positions(mask):
        expected[row, t] = -0.15 * (new[row, t] - old[row, t])
        if t + 1 == LENGTH or not mask[row, t + 1]:
            expected[row, t] += scores[row]
    close(returns.token_rewards(scores, new, old, mask, 0.15), expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (1.0, 0.0), (1.0, 1.0)])
def test_generalized_advantages(case, gamma, lam):
    """As the mean of k-step estimates with weights (1 - lam) lam^(k - 1), eq. 16 before its sum."""
    mask, (rewards, values, *_), _ = case
    expected = np.zeros(mask.shape)
    for row, t in positions(mask):
        left = int(mask[row, t:].sum())
        for steps in range(1, left + 1):
            value = values[row, t + steps] if steps < left else 0.0
            estimate = sum(gamma**i * rewards[row, t + i] for i in range(steps))
            estimate += gamma**steps * value - values[row, t]
            weight = (1 - lam) * lam ** (steps - 1) if steps < left else lam ** (left - 1)
            expected[row, t] += weight * estimate
    advantages, targets = returns.gae(rewards, values, mask, gamma, lam)
    close(advantages, expected)
    close(targets, np.where(mask, expected + values, 0.0))


def test_policy_loss_and_the_share_that_is_clipped(case):
    mask, (new, old, advantages, *_), _ = case
    loss, clipped = policy_losses.clipped_policy_loss(new, old, advantages, 0.2)
    expected, count = np.zeros(mask.shape), 0
    for where in np.ndindex(mask.shape):
        ratio = math.exp(new[where] - old[where])
        surrogate = ratio * advantages[where]
        bounded = max(min(ratio, 1.2), 0.8) * advantages[where]
        expected[where] = -min(surrogate, bounded)
        count += mask[where] and bounded < surrogate
    close(loss, expected)
    share = masking.masked_mean(np.asarray(clipped, "float32"), mask)
    close(share, count / len(positions(mask)))


def test_value_loss(case):
    mask, (values, old, targets, *_), _ = case
    loss, _ = value_losses.clipped_value_loss(values, old, targets, 0.2)
    expected = np.zeros(mask.shape)
    for where in np.ndindex(mask.shape):
        near = min(max(values[where], old[where] - 0.2), old[where] + 0.2)
        errors = (values[where] - targets[where]) ** 2, (near - targets[where]) ** 2
        expected[where] = 0.5 * max(errors)
    close(loss, expected)


def test_estimators_of_the_kl(case):
    _, (new, old, *_), _ = case
    ratio = np.exp(old - new)  # r = reference / policy, as the note writes it
    close(kl.k1(new, old), -np.log(ratio))
    close(kl.k2(new, old), np.log(ratio) ** 2 / 2)
    close(kl.k3(new, old), ratio - 1 - np.log(ratio))


def test_pairs_and_best_of_k(case):
    _, numbers, _ = case
    scores = 3 * numbers[:4, :, 0].T
    pairs = [math.log(1 + math.exp(-(row[0] - row[1]))) for row in scores]
    best = [-math.log(math.exp(row[0]) / sum(math.exp(v) for v in row)) for row in scores]
    close(preferences.bradley_terry(scores[:, :2]), pairs)
    close(preferences.best_of_k(scores), best)


def test_explained_variance(case):
    mask, (values, targets, *_), _ = case
    values = targets + 0.3 * values
    _, variance = mean_and_variance(targets, mask)
    error = sum((targets[w] - values[w]) ** 2 for w in positions(mask)) / len(positions(mask))
    close(value_losses.explained_variance(values, targets, mask), 1 - error / variance)


def test_entropy_and_logprobs(case):
    _, numbers, _ = case
    logits = numbers.transpose(1, 2, 0)
    for temperature in (0.7, 1.0):
        entropy, chosen = np.zeros((ROWS, LENGTH)), np.zeros((ROWS, LENGTH))
        for where in np.ndindex(ROWS, LENGTH):
            weights = [math.exp(v / temperature) for v in logits[where]]
            p = [w / sum(weights) for w in weights]
            entropy[where] = -sum(v * math.log(v) for v in p)
            chosen[where] = math.log(p[2])
        ids = np.full((ROWS, LENGTH), 2)
        close(logprobs.token_entropy(logits, temperature), entropy)
        close(logprobs.token_logprobs(logits, ids, temperature), chosen)


def test_kl_control_over_many_iterations(case):
    _, numbers, _ = case
    control, expected = AdaptiveKL(0.15, target=6.0, horizon=10_000), 0.15
    for measured in 6 + 4 * numbers[0, 0]:
        error = max(-0.2, min(0.2, (measured - 6.0) / 6.0))
        expected *= 1 + error * 512 / 10_000
        control.update(measured, episodes=512)
        close(np.float32(control.coef), expected)


def two_token_policy(parameters):
    """Log-probabilities `(9, 2)` of all texts of two tokens out of three, from a table."""
    first = tf.nn.log_softmax(parameters[0])
    second = tf.nn.log_softmax(parameters[1:], axis=-1)
    texts = list(itertools.product(range(3), repeat=2))
    return tf.stack([tf.stack([first[a], second[a, b]]) for a, b in texts])


@pytest.mark.parametrize("seed", range(3))
def test_the_first_update_descends_along_the_gradient_of_the_whole_objective(seed):
    """Exact, over all nine texts: E[score] - coef KL(policy || reference) in nats a text.

    The library's part: rewards with k1, advantages with lam 1 and no critic, the clipped loss.
    """
    generator = np.random.default_rng(seed)
    table, frozen = (generator.normal(size=(4, 3)).astype("float32") for _ in range(2))
    scores = generator.normal(size=9).astype("float32")
    reference, coef = two_token_policy(frozen), 0.4
    parameters = tf.Variable(table)
    old = two_token_policy(table)
    weights = tf.exp(tf.reduce_sum(old, axis=1))
    mask = np.ones((9, 2), bool)
    rewards = returns.token_rewards(scores, old, reference, mask, coef)
    with_k3 = returns.token_rewards(scores, old, old, mask, coef) - coef * kl.k3(old, reference)

    def surrogate_gradient(rewards):
        advantages, _ = returns.gae(rewards, np.zeros((9, 2)), mask, 1.0, 1.0)
        with tf.GradientTape() as tape:
            new = two_token_policy(parameters)
            loss, _ = policy_losses.clipped_policy_loss(new, old, advantages, 0.2)
            total = tf.reduce_sum(weights[:, None] * loss)
        return np.array(tape.gradient(total, parameters))

    with tf.GradientTape() as tape:
        text = tf.reduce_sum(two_token_policy(parameters), axis=1)
        p = tf.exp(text)
        divergence = tf.reduce_sum(p * (text - tf.reduce_sum(reference, axis=1)))
        objective = tf.reduce_sum(p * scores) - coef * divergence
    exact = -np.array(tape.gradient(objective, parameters))
    np.testing.assert_allclose(surrogate_gradient(rewards), exact, atol=1e-6)
    assert np.abs(surrogate_gradient(with_k3) - exact).max() > 1e-2
