"""Masks with gaps, the user's turns of a dialogue: every result is that without the gaps."""

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import logprobs as logprobs_lib
from kerasrlhf.functional import masking, on_policy_losses, returns

RNG = np.random.default_rng(3)
# A prompt, then turns of the policy (true) with the user's turns between them, then padding.
ROWS = ["..###..##.#...", ".#.....####..#", "...######.....", ".#............"]
MASK = np.array([[c == "#" for c in row] for row in ROWS])
SHAPE, KEPT = MASK.shape, MASK.sum(axis=1)
PLAIN = np.arange(KEPT.max())[None] < KEPT[:, None]


def compact(x):
    """The true positions of each row at its start, zeros behind them."""
    found = np.zeros(PLAIN.shape, "float32")
    for row, (values, mask) in enumerate(zip(np.asarray(x, "float32"), MASK, strict=True)):
        found[row, : mask.sum()] = values[mask]
    return found


def spread(garbage=None):
    """Values, and whatever the gaps hold."""
    x = RNG.normal(0.0, 1.0, SHAPE).astype("float32")
    return x if garbage is None else np.where(MASK, x, np.float32(garbage))


A, B, C = (spread(garbage) for garbage in (np.nan, np.inf, -np.inf))
SCORES = np.array([1.0, -2.0, 0.5, 3.0], "float32")
PER_TOKEN = spread(7.0)

FUNCTIONS = {
    "gae": lambda m, a, b, c: returns.gae(a, b, m, 0.9, 0.8),
    "gae_undiscounted": lambda m, a, b, c: returns.gae(a, b, m),
    "discounted_sums": lambda m, a, b, c: returns.discounted_sums(a, 0.7, m),
    "rewards": lambda m, a, b, c: returns.token_rewards(SCORES, a, b, m, 0.3),
    "rewards_k3": lambda m, a, b, c: returns.token_rewards(SCORES, a, b, m, 0.3, logprobs_lib.k3),
    "rewards_per_token": lambda m, a, b, c: returns.token_rewards(c, a, b, m, 0.3),
    "whiten": lambda m, a, b, c: masking.whiten(a, m),
    "whiten_keeping_the_mean": lambda m, a, b, c: masking.whiten(a, m, center=False),
    "explained_variance": lambda m, a, b, c: on_policy_losses.explained_variance(a, b, m),
    "masked_mean": lambda m, a, b, c: masking.masked_mean(a, m),
    "response_weights": lambda m, a, b, c: on_policy_losses.response_weights(a, b, m),
    "last_true": lambda m, a, b, c: masking.last_true(a, m),
    **{
        f"loss_weights_{reduction}": lambda m, a, b, c, r=reduction: masking.loss_weights(m, r, 9)
        for reduction in masking.REDUCTIONS
    },
}


def arrays(found):
    return [np.asarray(x) for x in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "xla"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gaps_change_no_result(name, compiled):
    function = FUNCTIONS[name]
    if compiled:
        function = tf.function(function, jit_compile=True, autograph=False)
    with_gaps = arrays(function(MASK, A, B, C))
    without = arrays(FUNCTIONS[name](PLAIN, *(compact(x) for x in (A, B, C))))
    for ours, theirs in zip(with_gaps, without, strict=True):
        if ours.shape == SHAPE:
            assert not ours[~MASK].any()
            ours = compact(ours)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_last_token_before_a_gap_bootstraps_from_the_next_turn():
    """Worked out by hand: lam 0 is one step, whose next value is beyond the gap."""
    rewards, values = np.zeros((1, 6), "float32"), np.array([[9.0, 1, 9, 9, 5, 2]], "float32")
    mask = np.array([[0, 1, 0, 0, 1, 1]], bool)
    rewards[0, 5] = 10.0
    advantages, targets = returns.gae(rewards, values, mask, gamma=0.5, lam=0.0)
    assert np.asarray(advantages).tolist() == [[0.0, 0.5 * 5 - 1, 0.0, 0.0, 0.5 * 2 - 5, 10 - 2]]
    assert np.asarray(targets).tolist() == [[0.0, 2.5, 0.0, 0.0, 1.0, 10.0]]


def test_masks_without_gaps_are_computed_as_before():
    """The loop of the paper on rows of one run, bit for bit."""
    mask = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
    rewards, values = (RNG.normal(size=mask.shape).astype("float32") for _ in range(2))
    advantages, _ = returns.gae(rewards, values, mask, 1.0, 0.95)
    decay = np.float32(0.95)
    for row in range(2):
        following = running = np.float32(0.0)
        for t in np.flatnonzero(mask[row])[::-1]:
            delta = rewards[row, t] + following - values[row, t]
            running = delta + decay * running
            assert running == np.asarray(advantages)[row, t]
            following = values[row, t]


def loss_of(logprobs, values, mask, ref, old, old_values, advantages, targets):
    """PPO's loss as an update weighs it: policy, value, KL and entropy terms."""
    old, ref, old_values = (masking.zero_outside(x, mask) for x in (old, ref, old_values))
    policy, _ = on_policy_losses.clipped_policy_loss(logprobs, old, advantages, 0.2)
    value, _ = on_policy_losses.clipped_value_loss(values, old_values, targets, 0.2)
    ours = masking.zero_outside(logprobs, mask)
    loss = policy + 0.1 * value + 0.3 * logprobs_lib.k3(ours, ref) - 0.01 * logprobs
    loss = masking.zero_outside(loss, mask) * masking.loss_weights(mask)
    return tf.reduce_sum(loss)


def gradients(logprobs, values, *others):
    logprobs, values = tf.constant(logprobs), tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch([logprobs, values])
        loss = loss_of(logprobs, values, *others)
    return [np.asarray(x) for x in (loss, *tape.gradient(loss, [logprobs, values]))]


def test_log_probabilities_and_values_of_the_user_have_no_gradient():
    logprobs, values, ref, old, old_values = (spread() * 0.3 for _ in range(5))
    advantages, targets = returns.gae(spread(), old_values, MASK)
    fixed = (ref, old, old_values, advantages, targets)
    loss, *slopes = gradients(logprobs, values, MASK, *fixed)
    other = [np.where(MASK, x, x - 3.0).astype("float32") for x in (logprobs, values)]
    loss_of_others, *slopes_of_others = gradients(*other, MASK, *fixed)
    assert loss == loss_of_others
    for ours, theirs in zip(slopes, slopes_of_others, strict=True):
        assert ours[MASK].any() and not ours[~MASK].any()
        np.testing.assert_array_equal(ours, theirs)
    # And they are those of the rows without the gaps.
    short = [compact(x) for x in (logprobs, values)]
    plain, *slopes_without = gradients(*short, PLAIN, *(compact(x) for x in fixed))
    assert loss == pytest.approx(plain, rel=1e-5)
    for ours, theirs in zip(slopes, slopes_without, strict=True):
        np.testing.assert_allclose(compact(ours), theirs, rtol=1e-5, atol=1e-7)
