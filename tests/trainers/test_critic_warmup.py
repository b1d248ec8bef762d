"""The critic first: `E[(R - V)^2] + alpha D(policy, reference)`, and PPO as usual afterward."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny import MASK, NOISE

from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.options import CriticWarmup
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import Sampler


def make(acting, **options):
    return PPO(acting, helpers.token_reward, sampler=tiny.SAMPLER, kl=FixedKL(0.3), **options)


@pytest.fixture(scope="module")
def shared():
    return helpers.actor()


@pytest.fixture(scope="module")
def separate():
    return helpers.actor(critic=helpers.backbone(seed=3))


def formula(acting, targets, reference, alpha):
    """Schulman's k2 for the divergence, a mean over the tokens of the batch."""
    found = tiny.stats(acting)
    error = tf.square(targets - found.values)
    held = alpha * tf.square(found.logprobs - reference) / 2
    return tf.reduce_sum(tf.where(MASK, error + held, 0.0)) / MASK.sum()


def estimate(made, acting, iteration):
    return made.estimate(tiny.rollout(acting, iteration=np.int32(iteration)))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
def test_the_loss_of_the_warm_up_is_its_formula(shared, alpha):
    made = make(shared, warmup=CriticWarmup(2, kl_coef=alpha))
    for iteration in (0, 1):
        minibatch = estimate(made, shared, iteration)
        given = shared, minibatch.returns, minibatch.ref_logprobs, alpha
        found, sums = tiny.gradients(made, minibatch)
        expected = tiny.gradients_of(lambda given=given: formula(*given), made.trainable_variables)
        tiny.assert_close(found, expected)
        assert sums["loss/total"] == pytest.approx(float(formula(*given)), rel=1e-4)
    rollout = tiny.rollout(shared)
    error = (np.array(minibatch.returns) - rollout.values)[MASK] ** 2
    by_hand = error.mean() + alpha * (NOISE[MASK] ** 2).mean() / 2
    assert sums["loss/total"] == pytest.approx(by_hand, rel=1e-4)


def test_afterwards_it_is_ppo(shared):
    plain, made = make(shared), make(shared, warmup=CriticWarmup(2))
    expected, logs = tiny.gradients(plain, estimate(plain, shared, 2))
    found, sums = tiny.gradients(made, estimate(made, shared, 2))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    assert sums == pytest.approx(logs)
    warm, _ = tiny.gradients(made, estimate(made, shared, 1))
    assert max(np.abs(a - b).max() for a, b in zip(warm, expected, strict=True)) > 0.01


def test_a_policy_beside_a_critic_of_its_own_stays_without_alpha(separate):
    made = make(separate, warmup=CriticWarmup(1, kl_coef=0.0))
    found, _ = tiny.gradients(made, estimate(made, separate, 0))
    of_policy = {id(v) for v in separate.causal_lm.trainable_variables}
    moved = {id(v): np.abs(g).max() for v, g in zip(made.trainable_variables, found, strict=True)}
    assert of_policy and all(moved[key] == 0 for key in of_policy)
    assert max(size for key, size in moved.items() if key not in of_policy) > 0.01


def test_as_many_iterations_as_asked_hold_the_policy(separate):
    made = PPO(
        separate,
        helpers.token_reward,
        sampler=Sampler(length=3),
        kl=FixedKL(0.1),
        warmup=CriticWarmup(2, kl_coef=0.0),
        update_epochs=1,
    )
    made.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    policy, changed = separate.causal_lm.trainable_variables, []
    for _ in range(3):
        before = [np.array(v) for v in policy]
        made.iterate(helpers.prompts([2, 1, 3, 2]))
        changed.append(any((a != np.array(b)).any() for a, b in zip(before, policy, strict=True)))
    assert changed == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "`iterations` must be at least 1"),
        ({"iterations": 0}, "`iterations` must be at least 1"),
        ({"iterations": 1.5}, "`iterations` must be an integer"),
        ({"iterations": 2, "kl_coef": -0.5}, "`kl_coef` must be at least 0"),
    ],
)
def test_values_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CriticWarmup(**options)


def test_a_number_of_iterations_is_not_taken_for_a_warmup(shared):
    with pytest.raises(ValueError, match="`warmup` must be a CriticWarmup"):
        make(shared, warmup=2)
