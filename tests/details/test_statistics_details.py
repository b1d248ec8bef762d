"""S1 to S5: what the logged numbers are, that padding enters none, and the first update."""

import math
import warnings

import helpers
import numpy as np
import pytest

from kerasrlhf.functional import masking, value_losses
from kerasrlhf.rollouts.collector import Collected
from kerasrlhf.rollouts.scoring import Episodes
from kerasrlhf.trainers.soundness import check_first_ratio
from kerasrlhf.trainers.statistics import rollout_statistics
from kerasrlhf.trainers.update_step import policy_logs
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats

MASK = np.array([[False, True, True], [False, True, False]])
OLD = np.array([[0.0, -1.0, -2.0], [0.0, -3.0, 0.0]], "float32")
NEW = np.array([[0.0, -1.5, -1.0], [0.0, -3.0, 0.0]], "float32")
REFERENCE = np.array([[0.0, -2.0, -2.5], [0.0, -2.0, 0.0]], "float32")


@pytest.fixture(scope="module")
def made():
    return helpers.ppo()


def padded(x, columns, filling):
    """Further columns, and `filling` wherever the mask is false."""
    inside = np.pad(MASK, [(0, 0), (0, columns)])
    return np.where(inside, np.pad(x, [(0, 0), (0, columns)]), filling).astype("float32")


def batch_logs(made, columns=0, filling=0.0):
    """Masked means of everything that an update logs."""
    old, new, values, advantages, targets = (
        padded(x, columns, filling) for x in (OLD, NEW, REFERENCE, NEW + 3, OLD + 1)
    )
    mask = np.pad(MASK, [(0, 0), (0, columns)])
    lengths = np.ones(2, "int32")
    batch = Experience(mask * 1, mask, mask, lengths, old, old, values, advantages, targets)
    stats = TokenStats(new, new, values)
    loss, logs = made.objective(stats, batch)
    logs = {"loss": loss, **logs, **policy_logs(stats, batch)}
    explained = value_losses.explained_variance(values, targets, mask)
    means = {name: float(masking.masked_mean(x, mask)) for name, x in logs.items()}
    return {**means, "value/explained_variance": float(explained)}


def rollout_logs(columns=0, filling=0.0, behavior=None):
    """The statistics of a rollout."""
    old, reference = padded(OLD, columns, filling), padded(REFERENCE, columns, filling)
    mask = np.pad(MASK, [(0, 0), (0, columns)])
    scores = np.array([1.0, 3.0], "float32")
    rollout = Rollout(
        mask * 1,
        mask,
        mask,
        np.ones(2, "int32"),
        np.array([True, False]),
        old,
        old,
        reference,
        masking.zero_outside(scores, [True, True]),
        np.float32(0.5),
        behavior,
    )
    return rollout_statistics(Collected(rollout, Episodes(None, None, {}), scores, {}))


def test_s1_approxkl_is_half_the_mean_square_of_the_change(made):
    """Changes -0.5, 1 and 0: 0.5 * 1.25 / 3."""
    assert batch_logs(made)["policy/approxkl"] == pytest.approx(0.5 * 1.25 / 3, rel=1e-6)


def test_s2_entropy_and_kl_are_means_over_responses_of_sums_over_tokens():
    """Surprise 1 + 2 and 3; log ratios (1 + 0.5) and -1; not means over tokens."""
    found = rollout_logs()
    assert found["objective/entropy"] == pytest.approx(3.0)
    assert found["objective/kl"] == pytest.approx(0.25)
    assert found["objective/reward"] == pytest.approx(2.0 - 0.5 * 0.25)
    assert found["objective/length"] == 1.5 and found["objective/ended"] == 0.5


def test_s2_tokens_that_were_drawn_too_often_or_too_rarely_weigh_accordingly():
    """The first token is drawn half as often as the policy would: 2 * 1 + 2 and 3; 2 * 1 + 0.5."""
    behavior = OLD - np.where(OLD == -1, np.log(2.0), 0.0).astype("float32")
    found = rollout_logs(behavior=behavior)
    assert found["objective/entropy"] == pytest.approx(3.5)
    assert found["objective/kl"] == pytest.approx(0.75)


def test_s3_explained_variance_is_one_less_error_by_variance_of_the_returns():
    """Returns 1, 2, 3 have variance 2/3; errors 1, 0, 1 a mean square of 2/3; 1, 1, 1 one of 1."""
    mask, targets = [[True, True, True, False]], [[1.0, 2.0, 3.0, 50.0]]
    explained = value_losses.explained_variance
    assert float(explained([[2.0, 2.0, 2.0, 0.0]], targets, mask)) == pytest.approx(0, abs=1e-6)
    assert float(explained([[2.0, 3.0, 4.0, 0.0]], targets, mask)) == pytest.approx(-0.5)
    assert float(explained([[1.0, 2.0, 3.5, 0.0]], targets, mask)) == pytest.approx(1 - 0.125)


@pytest.mark.parametrize("filling", [0.0, -7.0])
def test_s4_padding_changes_no_statistic(made, filling):
    for logs in (lambda *x: batch_logs(made, *x), rollout_logs):
        plain, wide = logs(), logs(5, filling)
        assert len(plain) > 8
        for name, value in plain.items():
            assert wide[name] == pytest.approx(value, abs=1e-6), name


def test_s5_the_first_update_sees_the_policy_that_sampled():
    made = helpers.ppo(helpers.actor(), update_epochs=1, sampler=Sampler(length=5))
    made.compile(jit_compile=False)
    for seed in range(2):
        found = made.iterate(helpers.prompts([1, 2, 4, 6], seed=seed))
        assert found["policy/approxkl"] < 1e-10 and found["policy/clipfrac"] == 0.0
        assert found["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert found["policy/ratio_error"] < 1e-5


def logged(error):
    return {"policy/ratio_error": error, "policy/skipped": 0.0}


@pytest.mark.parametrize("error", [2e-3, 0.5, math.inf, math.nan])
def test_s5_a_disagreement_is_loud(error):
    with pytest.warns(RuntimeWarning, match="must see the policy that sampled: ratio 1"):
        check_first_ratio(logged(error), "float32", iteration=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_first_ratio(logged(1e-6), "float32", iteration=3)
