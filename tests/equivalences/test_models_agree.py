"""Two ways to the same numbers of a model, all along a trajectory."""

import helpers
import numpy as np
import pytest
import trajectories
from trajectories import assert_same, run, trainer

from kerasrlhf.models import lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic


def differences(trajectory, before):
    """Largest gaps of sampled log-probabilities and values to those that weights give to them.

    Args:
        trajectory: of an actor as `helpers.actor` makes it.
        before: maps an iteration to the number of iterations that made the weights.
    """
    actor = helpers.actor(num_layers=2)
    for iteration, rollout in enumerate(trajectory.rollouts):
        for variable, value in zip(
            actor.trainable_variables, trajectory.weights[before(iteration)], strict=True
        ):
            variable.assign(value)
        stats = actor.token_stats(rollout.token_ids, rollout.padding_mask, temperature=0.8)
        inside = np.array(rollout.response_mask)
        yield tuple(
            np.abs(np.array(getattr(rollout, name)) - getattr(stats, name))[inside].max()
            for name in ("logprobs", "values")
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "compiled"])
def test_cached_sampling_is_teacher_forcing_whatever_was_learned(request, case):
    """N10; with the weights of the moment, and not with those of the iteration before."""
    trajectory = request.getfixturevalue(case)
    assert np.max([*differences(trajectory, lambda iteration: iteration)]) < 1e-5
    assert np.min([*differences(trajectory, lambda iteration: iteration + 1)]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "compiled", "everything"])
def test_the_first_update_of_an_iteration_sees_the_policy_that_sampled(request, case):
    """Ratio 1, approxkl 0, clipfrac 0, also when the policy is far from the first one."""
    trajectory = request.getfixturevalue(case)
    for first, *later in trajectory.updates:
        assert first["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert first["policy/ratio_error"] < 1e-5
        assert first["policy/approxkl"] < 1e-10
        assert first["policy/clipfrac"] == first["value/clipfrac"] == 0.0
        assert len(later) == 3 and min(log["policy/approxkl"] for log in later) > 1e-6
    for entry, (first, *_) in zip(trajectory.statistics, trajectory.updates, strict=True):
        assert entry["policy/ratio_error"] == first["policy/ratio_error"]


def test_some_update_is_clipped(plain):
    assert max(entry["policy/clipfrac"] for entry in plain.statistics) > 0


def with_adapters():
    acting = helpers.actor(num_layers=2)
    acting.causal_lm.backbone.enable_lora(2)
    return acting


@pytest.mark.slow
def test_adapters_off_are_a_frozen_copy():
    """The reference without a second copy, against a model that nothing can change."""
    switched = run(trainer(with_adapters))
    assert switched.trainer.reference.causal_lm is switched.trainer.actor.causal_lm
    copied = run(trainer(with_adapters, reference=helpers.lm(num_layers=2)))
    assert_same(switched, copied)
    for ours, theirs in zip(switched.rollouts, copied.rollouts, strict=True):
        np.testing.assert_allclose(ours.ref_logprobs, theirs.ref_logprobs, atol=1e-5)
    gap = np.array(switched.rollouts[-1].logprobs - switched.rollouts[-1].ref_logprobs)
    assert np.abs(gap).max() > 0.05, "the actor has moved away from its reference"


def with_copied_critic(trainable=True):
    model = helpers.lm(num_layers=2)
    acting = ActorCritic(model, lm_adapter.copy(model))
    acting.critic.trainable = trainable
    return frozen_trunk(acting, trainable)


def frozen_trunk(acting, trainable):
    helpers.filled(acting.value_head, seed=7)
    acting.causal_lm.trainable = trainable
    return acting


@pytest.mark.slow
def test_a_copied_critic_is_the_shared_trunk_while_neither_moves():
    """With both trunks frozen the value head alone learns, in the same way for good."""
    shared = run(trainer(lambda: frozen_trunk(helpers.actor(num_layers=2), trainable=False)))
    copied = run(trainer(lambda: with_copied_critic(trainable=False)))
    assert len(shared.weights[0]) == 2
    assert_same(copied, shared)
    for ours, theirs in zip(copied.rollouts, shared.rollouts, strict=True):
        np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5)


@pytest.mark.slow
def test_a_copied_critic_is_the_shared_trunk_until_the_trunk_moves(plain):
    """The first rollout and the first update; then the policy's gradient moves the trunk alone."""
    copied = run(trainer(with_copied_critic))
    fresh = [rollout[0]._replace(drift=0.0) for rollout in (copied.rollouts, plain.rollouts)]
    for ours, theirs in zip(*fresh, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    first, expected = ({**found.updates[0][0]} for found in (copied, plain))
    # Two trunks get two gradients, and one trunk gets their sum.
    assert first.pop("policy/grad_norm") != expected.pop("policy/grad_norm")
    trajectories.assert_same_statistics([first], [expected])
    gap = np.array(copied.rollouts[-1].values) - np.array(plain.rollouts[-1].values)
    assert np.abs(gap).max() > 1e-2, "two networks of their own afterward"
