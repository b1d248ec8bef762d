"""Baselines, weights and wider clipping against NumPy loops written from the papers."""

import numpy as np
import pytest

from kerasrlhf.functional import baselines, masking, policy_losses

RNG = np.random.default_rng(17)
SCORES = RNG.normal(1, 2, 12).astype("float32")
SHAPE = (5, 12)
NEW, OLD, ADVANTAGES = (RNG.normal(size=SHAPE).astype("float32") for _ in range(3))
RUNS = [(0, 12), (3, 9), (11, 12), (4, 4), (0, 1)]  # first true position, one past the last
MASK = np.array([[start <= t < end for t in range(12)] for start, end in RUNS])


def relative(size, rule):
    """`rule(score, all of the group, the others)` for every score."""
    out = []
    for index, score in enumerate(SCORES.astype("float64")):
        first = index // size * size
        group = [float(x) for x in SCORES[first : first + size]]
        others = [x for j, x in enumerate(group, first) if j != index]
        out.append(rule(score, group, others))
    return out


@pytest.mark.parametrize("size", [2, 3, 4, 12])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("leave_one_out", lambda x, group, others: x - sum(others) / len(others)),
        ("group_mean", lambda x, group, others: x - sum(group) / len(group)),
        ("group_normalized", lambda x, group, _: (x - np.mean(group)) / (np.std(group) + 1e-4)),
    ],
)
def test_baselines_against_a_loop(name, rule, size):
    found = getattr(baselines, name)(SCORES, size)
    np.testing.assert_allclose(found, relative(size, rule), rtol=1e-4, atol=1e-5)


def test_equal_scores_have_no_advantage():
    for name in ("leave_one_out", "group_mean", "group_normalized"):
        assert not np.any(getattr(baselines, name)([3, 3, 3, 7, 7, 7], 3))


@pytest.mark.parametrize("function", ["leave_one_out", "group_mean", "group_normalized"])
@pytest.mark.parametrize(
    ("scores", "size", "message"),
    [
        (SCORES, 1, "expected at least 2"),
        (SCORES, 5, "12 scores cannot be divided into groups of 5"),
        (SCORES.reshape(3, 4), 2, "scores"),
    ],
)
def test_groups_that_are_none_are_refused(function, scores, size, message):
    with pytest.raises(ValueError, match=message):
        getattr(baselines, function)(scores, size)


@pytest.mark.parametrize(("reduction", "length"), [("token", None), ("sequence", 9), ("fixed", 9)])
def test_loss_weights_against_a_loop(reduction, length):
    rows, tokens = len(RUNS), sum(end - start for start, end in RUNS)
    expected = np.zeros(SHAPE)
    for row, (start, end) in enumerate(RUNS):
        share = {"token": tokens, "sequence": rows * max(end - start, 1), "fixed": rows * 9}
        expected[row, start:end] = 1 / share[reduction]
    found = masking.loss_weights(MASK, reduction, length)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_fixed_weights_divide_by_the_columns_without_a_length():
    np.testing.assert_allclose(masking.loss_weights(MASK, "fixed"), MASK / 60, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`reduction` must be one of .* Received: 'mean'"):
        masking.loss_weights(MASK, "mean")
    with pytest.raises(ValueError, match="mask"):
        masking.loss_weights(MASK[0])


@pytest.mark.parametrize("cap", [None, 0.5, 2.0])
def test_importance_weights_against_a_loop(cap):
    found = np.array(policy_losses.importance_weights(NEW, OLD, cap))
    for where, weight in np.ndenumerate(found):
        ratio = np.exp(float(NEW[where]) - float(OLD[where]))
        assert weight == pytest.approx(ratio if cap is None else min(ratio, cap), rel=1e-5)
    with pytest.raises(ValueError, match="cap"):
        policy_losses.importance_weights(NEW, OLD, 0.0)
    with pytest.raises(ValueError, match="shape"):
        policy_losses.importance_weights(NEW, OLD[:2])


def test_response_weights_against_a_loop():
    found = np.array(policy_losses.response_weights(NEW, OLD, MASK))
    assert found.shape == (5,) and found[3] == 1.0  # no true position
    for row, weight in enumerate(found):
        ratio = 1.0
        for new, old, inside in zip(NEW[row], OLD[row], MASK[row], strict=True):
            ratio *= np.exp(float(new) - float(old)) if inside else 1.0
        assert weight == pytest.approx(min(ratio, 1.0), rel=1e-4)
    assert 0 < found.min() < 0.9 and (found == 1).sum() < 5
    huge = policy_losses.response_weights(NEW + 1e4, OLD, MASK)
    np.testing.assert_array_equal(huge, np.ones(5))
    np.testing.assert_allclose(policy_losses.response_weights(NEW - 1e4, OLD, MASK)[0], 0.0)
    with pytest.raises(ValueError, match="shape"):
        policy_losses.response_weights(NEW, OLD, MASK[:, :2])


@pytest.mark.parametrize(("high", "dual"), [(None, None), (0.6, None), (None, 1.5), (0.4, 3.0)])
def test_clipping_upward_and_of_bad_tokens_against_a_loop(high, dual):
    """Yu et al. 2025, eq. 10, and Ye et al. 2019, eq. 5."""
    loss, clipped = policy_losses.clipped_policy_loss(NEW, OLD, ADVANTAGES, 0.2, high, dual)
    bounded = 0
    for where, advantage in np.ndenumerate(ADVANTAGES.astype("float64")):
        ratio = np.exp(float(NEW[where]) - float(OLD[where]))
        kept = min(max(ratio, 0.8), 1 + (high or 0.2))
        gain = min(ratio * advantage, kept * advantage)
        decides = kept * advantage < ratio * advantage
        if dual is not None and advantage < 0 and gain < dual * advantage:
            gain, decides, bounded = dual * advantage, True, bounded + 1
        assert float(loss[where]) == pytest.approx(-gain, rel=1e-4, abs=1e-6)
        assert bool(clipped[where]) is bool(decides)
    assert (bounded > 0) is (dual is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cliprange_high": 0.0}, "cliprange_high"),
        ({"dual_clip": 1.0}, "`dual_clip` is 1.0, expected a number above 1"),
    ],
)
def test_ranges_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        policy_losses.clipped_policy_loss(NEW, OLD, ADVANTAGES, 0.2, **options)


def test_the_plain_policy_gradient_loss_is_the_ratio_times_the_advantage():
    found = policy_losses.policy_gradient_loss(NEW, OLD, ADVANTAGES)
    expected = -ADVANTAGES * np.exp(NEW.astype("float64") - OLD)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
