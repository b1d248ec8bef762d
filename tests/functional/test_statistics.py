"""Masked statistics, log probabilities, entropy and KL estimators against NumPy loops."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import kl, logprobs, masking, value_losses

RNG = np.random.default_rng(7)
X = RNG.normal(2.0, 3.0, (4, 9)).astype("float32")
MASK = RNG.random((4, 9)) < 0.6
LOGITS = RNG.normal(0.0, 2.0, (2, 3, 11)).astype("float32")
IDS = RNG.integers(0, 11, (2, 3))


def softmax(logits):
    p = [math.exp(v) for v in logits]
    return [v / sum(p) for v in p]


def test_mean_and_variance_run_over_all_true_positions_of_the_batch():
    kept = [float(v) for v, keep in zip(X.flat, MASK.flat, strict=True) if keep]
    mean = sum(kept) / len(kept)
    variance = sum((v - mean) ** 2 for v in kept) / len(kept)
    assert float(masking.masked_mean(X, MASK)) == pytest.approx(mean, rel=1e-5)
    assert float(masking.masked_variance(X, MASK)) == pytest.approx(variance, rel=1e-5)
    # Rows of unequal length: not the mean of the means.
    assert float(masking.masked_mean([[0.0, 0.0], [3.0, 9.0]], [[1, 1], [1, 0]])) == 1.0


@pytest.mark.parametrize("center", [True, False])
def test_whiten_reaches_variance_one_and_moves_the_mean_only_when_told(center):
    """N19, and the mistake of a switch that adds the mean back instead of removing it."""
    white = np.asarray(masking.whiten(X, MASK, center=center))[MASK]
    assert white.mean() == pytest.approx(0.0 if center else X[MASK].mean(), abs=1e-5)
    assert white.var() == pytest.approx(1.0, rel=1e-5)


def test_whiten_uses_the_population_variance_and_its_epsilon():
    # Mean 2e-4, population variance 1e-8: the epsilon doubles what stands below the root.
    white = masking.whiten([[1e-4, 3e-4, 5.0]], [[True, True, False]])
    np.testing.assert_allclose(white, [[-math.sqrt(0.5), math.sqrt(0.5), 0.0]], rtol=1e-4)
    np.testing.assert_array_equal(masking.whiten([[4.0, 9.0]], [[True, False]]), [[0.0, 0.0]])


def test_response_mask_against_a_loop():
    prompts, responses = np.array([0, 2, 3, 5]), np.array([2, 0, 3, 4])
    mask = np.asarray(masking.response_mask(prompts, responses, length=6))
    for row, (start, size) in enumerate(zip(prompts, responses, strict=True)):
        assert np.flatnonzero(mask[row]).tolist() == list(range(start, min(start + size, 6)))


def test_last_true_survives_holes_and_empty_rows():
    x = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    mask = [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(masking.last_true(x, mask), [3.0, 4.0, 0.0])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_logprobs_and_entropy_against_a_loop(temperature):
    """N10: the temperature divides the logits."""
    chosen = np.asarray(logprobs.token_logprobs(LOGITS, IDS, temperature))
    entropy = np.asarray(logprobs.token_entropy(LOGITS, temperature))
    for where in np.ndindex(2, 3):
        p = softmax(LOGITS[where] / temperature)
        assert chosen[where] == pytest.approx(math.log(p[IDS[where]]), rel=1e-4)
        assert entropy[where] == pytest.approx(-sum(v * math.log(v) for v in p), rel=1e-4)


def test_logprobs_stand_where_their_logits_stand():
    logits = [[[0.0, 0.0], [0.0, math.log(3.0)], [50.0, 0.0]]]
    chosen = logprobs.token_logprobs(logits, [[0, 1, 0]])
    np.testing.assert_allclose(chosen, np.log([[0.5, 0.75, 1.0]]), rtol=1e-6)


def test_large_and_forbidden_logits_stay_finite():
    logits = tf.constant([[1e4, 1e4, -np.inf], [-1e4, 0.0, -np.inf]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        chosen, entropy = logprobs.token_logprobs(logits, [0, 1]), logprobs.token_entropy(logits)
        total = tf.reduce_sum(chosen + entropy)
    np.testing.assert_allclose(chosen, [-math.log(2.0), 0.0], atol=1e-6)
    np.testing.assert_allclose(entropy, [math.log(2.0), 0.0], atol=1e-6)
    assert np.isfinite(tape.gradient(total, logits)).all()


def test_estimators_of_the_kl_have_the_expectation_of_the_kl():
    """Exact expectation under the policy: k1 and k3 are unbiased, k2 is not."""
    policy, reference = softmax([0.3, -0.4, 1.0, 0.1]), softmax([0.0, 0.5, 0.2, -0.7])
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    logs = np.log([policy]), np.log([reference])
    expected = {k: float(np.sum(policy * k(*logs).numpy())) for k in (kl.k1, kl.k2, kl.k3)}
    assert expected[kl.k1] == pytest.approx(exact, rel=1e-5)
    assert expected[kl.k3] == pytest.approx(exact, rel=1e-5)
    assert expected[kl.k2] != pytest.approx(exact, rel=1e-2)
    assert np.min(kl.k3(*logs)) >= 0 and np.min(kl.k1(*logs)) < 0


def test_k3_keeps_its_digits_for_close_policies():
    d = 1e-3
    exact = math.expm1(-d) + d
    assert float(kl.k3([[d]], [[0.0]])[0, 0]) == pytest.approx(exact, rel=1e-3)


def test_explained_variance_pins():
    mask = [[True, True, True, False]]
    returns = [[1.0, 2.0, 3.0, 99.0]]  # variance 2/3
    explained = value_losses.explained_variance
    assert float(explained(returns, returns, mask)) == 1.0
    assert float(explained([[2.0, 2.0, 2.0, 0.0]], returns, mask)) == pytest.approx(0.0, abs=1e-6)
    # An offset of 1 is an error of 1, not a residual without variance: 1 - 1 / (2/3).
    assert float(explained([[2.0, 3.0, 4.0, 0.0]], returns, mask)) == pytest.approx(-0.5)
    constant = np.full((8, 100), 0.1, "float32")
    assert float(explained(np.zeros_like(constant), constant, np.ones_like(constant))) == 0.0
