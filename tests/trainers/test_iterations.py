"""What an iteration does to weights, statistics and coefficient, and what it leaves alone."""

import h5py
import helpers
import numpy as np
import pytest
from trajectories import BATCHES, TARGET, trainer

from kerasrlhf.models import lora
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts.collector import Collector
from kerasrlhf.trainers.kl_control import AdaptiveKL

# One update, line by line: to trace what runs a few times takes longer than to run it.
ONCE = {"jit_compile": None, "update_epochs": 1, "num_minibatches": 1}


def test_every_variable_moves_and_none_of_the_reference(plain):
    made, weights = plain.trainer, plain.weights
    assert all(np.any(a != b) for a, b in zip(weights[-1], weights[0], strict=True))
    fresh = helpers.lm(num_layers=2)
    for ours, theirs in zip(made.reference.causal_lm.weights, fresh.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_optimizer_steps_are_counted(plain):
    """`num_minibatches` that changes nothing is a known mistake."""
    made = plain.trainer
    assert made.updates_per_iteration == 4
    assert int(made.optimizer.iterations.numpy()) == 2 * 2 * 3
    assert int(made.iteration.numpy()) == 3


def test_statistics_are_those_of_the_rollout(plain):
    rollout, entry = plain.rollouts[-1], plain.statistics[-1]
    inside = np.array(rollout.response_mask)
    counts = inside.sum(axis=1)
    gap = np.where(inside, np.array(rollout.logprobs) - rollout.ref_logprobs, 0.0)
    surprise = np.where(inside, -np.array(rollout.logprobs), 0.0)
    responses = [
        np.array(row)[mask].tolist() for row, mask in zip(rollout.token_ids, inside, strict=True)
    ]
    scores = np.array(helpers.token_reward(responses))
    expected = {
        "score": scores.mean(),
        "score_std": scores.std(),
        "raw_score": scores.mean(),
        "kl": gap.sum(axis=1).mean(),
        "entropy": surprise.sum(axis=1).mean(),
        "length": counts.mean(),
        "ended": np.mean(np.array(rollout.ended)),
        "reward": scores.mean() - float(rollout.kl_coef) * gap.sum(axis=1).mean(),
        "kl_coef": float(rollout.kl_coef),
    }
    for name, value in expected.items():
        assert entry[f"objective/{name}"] == pytest.approx(value, abs=1e-4), name
    assert abs(entry["objective/kl"]) > 0.01


def test_the_coefficient_is_steered_by_the_kl_of_the_whole_batch(plain):
    """N21, and the rollout carries the coefficient from before the update."""
    coefficient = 0.2
    for entry in plain.statistics:
        assert entry["objective/kl_coef"] == pytest.approx(coefficient, rel=1e-5)
        error = np.clip(entry["objective/kl"] / TARGET - 1, -0.2, 0.2)
        coefficient *= 1 + error * 8 / 100
    assert float(plain.trainer.kl.coef) == pytest.approx(coefficient, rel=1e-5)
    assert -0.2 < error < 0.2, "of the last iteration: the KL itself decides"


def test_the_seed_decides(plain):
    again = trainer(**ONCE).iterate(dict(BATCHES[0]))
    other = trainer(**ONCE, seed=1).iterate(dict(BATCHES[0]))
    assert again["objective/score"] == plain.statistics[0]["objective/score"]
    assert other["objective/score"] != again["objective/score"]


def test_a_critic_and_a_reward_model_of_their_own():
    """P22; the reward model of the same tokens is read in the compiled part, and stays."""
    reward = RewardModel(helpers.lm(seed=2, num_layers=2))
    helpers.filled(reward.score_head, seed=6)
    before = [np.array(w) for w in reward.weights]
    made = trainer(
        lambda: helpers.actor(critic=helpers.backbone("llama", seed=3), num_layers=2), reward=reward
    )
    critic = [np.array(w) for w in made.actor.critic.trainable_variables]
    statistics = made.iterate(dict(BATCHES[0]))
    assert statistics["policy/ratio_error"] < 1e-4
    rollout = made.last.rollout
    scores = reward({"token_ids": rollout.token_ids, "padding_mask": rollout.padding_mask})
    np.testing.assert_allclose(made.last.raw_scores, scores, atol=1e-4)
    for weight, former in zip(reward.weights, before, strict=True):
        np.testing.assert_array_equal(weight, former)
    moved = [
        np.any(np.array(w) != f)
        for w, f in zip(made.actor.critic.trainable_variables, critic, strict=True)
    ]
    assert all(moved)


def test_adapters_are_trained_and_nothing_else():
    model = helpers.lm(num_layers=2)
    model.backbone.enable_lora(2)
    made = trainer(lambda: ActorCritic(model), kl=AdaptiveKL(0.2, 1.0, 100), **ONCE)
    frozen = [v for v in model.weights if not v.trainable]
    before = [np.array(v) for v in frozen]
    reference = helpers.lm(num_layers=2)
    for batch in BATCHES[:2]:
        made.iterate(dict(batch))
    assert not lora.is_untrained(model.backbone)
    for weight, former in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(weight, former)
    rollout = made.last.rollout
    expected = ActorCritic(reference).token_stats(
        rollout.token_ids, rollout.padding_mask, temperature=0.8
    )
    expected = np.where(rollout.response_mask, expected.logprobs, 0.0)
    np.testing.assert_allclose(rollout.ref_logprobs, expected, atol=1e-4)
    assert made.statistics["objective/kl"] != 0


def test_a_disagreement_of_sampling_and_training_is_loud(monkeypatch):
    original = Collector.__call__

    def corrupted(self, *args, **kwargs):
        collected = original(self, *args, **kwargs)
        logprobs = collected.rollout.logprobs * 0.9
        return collected._replace(rollout=collected.rollout._replace(logprobs=logprobs))

    monkeypatch.setattr(Collector, "__call__", corrupted)
    made = trainer(**ONCE)
    with pytest.warns(RuntimeWarning, match="ratio 1.*in iteration 0"):
        made.iterate(dict(BATCHES[0]))
    monkeypatch.setattr(Collector, "__call__", original)
    made.iterate(dict(BATCHES[0]))  # and silent again


def test_checkpoints_hold_what_is_trained_and_nothing_frozen(tmp_path):
    reward = RewardModel(helpers.lm(seed=2, num_layers=2))
    made = trainer(reward=reward, **ONCE)
    actor = len(made.actor.weights)
    control = {"iteration", "coef", "score_moments"}
    names = {v.name for v in made.weights} - {v.name for v in made.actor.weights}
    assert names == control and len(made.weights) == actor + 3
    made.iterate(dict(BATCHES[0]))
    made.save_weights(tmp_path / "ppo.weights.h5")
    fresh = trainer(lambda: helpers.actor(seed=9, num_layers=2), reward=reward)
    fresh.load_weights(tmp_path / "ppo.weights.h5")
    for ours, theirs in zip(fresh.weights, made.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(fresh.iteration.numpy()) == 1
    assert float(fresh.kl.coef) == float(made.kl.coef) != pytest.approx(0.2, abs=1e-6)
    stored = []
    with h5py.File(tmp_path / "ppo.weights.h5") as file:
        file.visititems(lambda name, x: stored.append((name, x)) if hasattr(x, "dtype") else None)
        networks = [name for name, x in stored if x.ndim and name.startswith("actor/")]
    assert {name.split("/")[0] for name, _ in stored} == {"actor", "kl", "optimizer", "vars"}
    assert len(networks) == sum(v.ndim > 0 for v in made.actor.weights)
