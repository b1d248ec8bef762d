"""Trajectories: whatever only reorganises the computation leaves the numbers as they are."""

import h5py
import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models import lora
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts.collect import Collector
from kerasrlhf.trainers.kl_control import AdaptiveKL
from kerasrlhf.types import Sampler

BATCHES = [helpers.prompts([1, 2, 3, 4, 5, 6, 3, 2], seed=seed) for seed in range(3)]
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4))


def trainer(acting=None, jit_compile=False, optimizer=None, strategy=None, **options):
    options = {
        "sampler": SAMPLER,
        "kl": AdaptiveKL(0.2, target=1.0, horizon=100),
        "update_epochs": 2,
        "num_minibatches": 2,
        **options,
    }
    with (strategy or tf.distribute.get_strategy()).scope():
        made = helpers.ppo(acting() if acting else helpers.actor(), **options)
        made.compile(optimizer() if optimizer else adam(), jit_compile=jit_compile)
    return made


def adam(**options):
    return keras.optimizers.Adam(3e-3, epsilon=1e-5, **options)


def run(made, batches=BATCHES):
    """Weights and statistics after some iterations."""
    statistics = [made.iterate(dict(batch)) for batch in batches]
    weights = {v.path: np.array(v) for v in made.actor.trainable_variables}
    return [*weights.values()], statistics


def assert_same(found, expected, atol=1e-5):
    for weight, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(weight, other, atol=atol)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert {*ours} == {*theirs}
        for name in ours:
            if not name.startswith("time/"):
                assert ours[name] == pytest.approx(theirs[name], abs=20 * atol), name


@pytest.fixture(scope="module")
def plain():
    """The trajectory that others are compared with: no XLA, one part a minibatch."""
    keras.utils.set_random_seed(0)
    made = trainer()
    before = [np.array(v) for v in made.actor.trainable_variables]
    return made, before, run(made)


@pytest.fixture(scope="module")
def compiled():
    """The same under XLA with a minibatch in two parts."""
    made = trainer(jit_compile=True, micro_batches=2)
    return made, run(made)


def test_xla_and_micro_batches_change_nothing(plain, compiled):
    assert_same(compiled[1], plain[2])


def test_every_variable_moves_and_none_of_the_reference(plain):
    made, before, (after, _) = plain
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))
    fresh = helpers.lm()
    for ours, theirs in zip(made.reference.causal_lm.weights, fresh.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_optimiser_steps_are_counted(plain, compiled):
    """`num_minibatches` that changes nothing is a known mistake; micro-batches are no steps."""
    for made in (plain[0], compiled[0]):
        assert made.updates_per_iteration == 4
        assert int(made.optimizer.iterations.numpy()) == 2 * 2 * 3
        assert int(made.iteration.numpy()) == 3


def test_the_first_update_sees_the_policy_that_sampled(compiled):
    """Ratio 1 under XLA, for iterations whose policy is far from the first one."""
    made, (_, statistics) = compiled
    for entry in statistics:
        assert entry["policy/ratio_error"] < 1e-5
    assert max(entry["policy/approxkl"] for entry in statistics) > 1e-4, "later updates move"
    assert max(entry["policy/clipfrac"] for entry in statistics) > 0
    last = made.last.rollout
    experience = made.estimate(last)
    stats = helpers.ActorCritic(made.reference.causal_lm).token_stats(
        last.token_ids, last.padding_mask, temperature=0.8
    )
    assert np.abs(np.where(last.response_mask, stats.logprobs - last.logprobs, 0)).max() > 0.05
    assert np.all(np.array(experience.advantages)[~np.array(last.response_mask)] == 0)


def test_one_update_has_ratio_one_everywhere():
    made = trainer(update_epochs=1, num_minibatches=1, acting=lambda: helpers.actor(dropout=0.5))
    for batch in BATCHES[:2]:
        statistics = made.iterate(dict(batch))
        assert statistics["policy/ratio_error"] < 1e-5  # N13: no dropout anywhere
        assert statistics["policy/approxkl"] < 1e-9
        assert statistics["policy/clipfrac"] == 0.0
        assert statistics["policy/ratio"] == pytest.approx(1.0, abs=1e-5)


def test_statistics_are_those_of_the_rollout(plain):
    made, _, (_, statistics) = plain
    rollout, entry = made.last.rollout, statistics[-1]
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
    made, _, (_, statistics) = plain
    coefficient = 0.2
    for entry in statistics:
        assert entry["objective/kl_coef"] == pytest.approx(coefficient, rel=1e-5)
        error = np.clip(entry["objective/kl"] / 1.0 - 1, -0.2, 0.2)
        coefficient *= 1 + error * 8 / 100
    assert float(made.kl.coef) == pytest.approx(coefficient, rel=1e-5)
    assert coefficient != 0.2


def test_padding_of_the_prompts_changes_nothing(plain):
    """N3, to the last digit of a trajectory."""
    wide = [helpers.widened(batch, 5) for batch in BATCHES]
    assert_same(run(trainer(), wide), plain[2])


def test_the_seed_decides(plain):
    again = run(trainer(), BATCHES[:1])
    other = run(trainer(seed=1), BATCHES[:1])
    assert again[1][0]["objective/score"] == plain[2][1][0]["objective/score"]
    assert other[1][0]["objective/score"] != again[1][0]["objective/score"]


def test_running_eagerly_gives_the_same_iteration(plain):
    made = helpers.ppo(
        sampler=SAMPLER,
        kl=AdaptiveKL(0.2, target=1.0, horizon=100),
        update_epochs=2,
        num_minibatches=2,
    )
    made.compile(adam(), run_eagerly=True)
    found = run(made, BATCHES[:1])
    expected = plain[2][1][0]
    for name, value in found[1][0].items():
        if not name.startswith("time/"):
            assert value == pytest.approx(expected[name], abs=1e-4), name


def test_a_critic_and_a_reward_model_of_their_own():
    """P22; the reward model of the same tokens is read in the compiled part, and stays."""
    reward = RewardModel(helpers.lm(seed=2))
    helpers.filled(reward.score_head, seed=6)
    before = [np.array(w) for w in reward.weights]
    made = trainer(lambda: helpers.actor(critic=helpers.backbone("llama", seed=3)), reward=reward)
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
    model = helpers.lm()
    model.backbone.enable_lora(2)
    made = trainer(lambda: ActorCritic(model), kl=AdaptiveKL(0.2, 1.0, 100))
    frozen = [v for v in model.weights if not v.trainable]
    before = [np.array(v) for v in frozen]
    reference = helpers.lm()
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

    def corrupted(self, *args):
        collected = original(self, *args)
        logprobs = collected.rollout.logprobs * 0.9
        return collected._replace(rollout=collected.rollout._replace(logprobs=logprobs))

    monkeypatch.setattr(Collector, "__call__", corrupted)
    made = trainer(update_epochs=1, num_minibatches=1)
    with pytest.warns(RuntimeWarning, match="ratio 1.*in iteration 0"):
        made.iterate(dict(BATCHES[0]))
    monkeypatch.setattr(Collector, "__call__", original)
    made.iterate(dict(BATCHES[0]))  # and silent again


def test_checkpoints_hold_what_is_trained_and_nothing_frozen(tmp_path):
    reward = RewardModel(helpers.lm(seed=2))
    made = trainer(reward=reward)
    actor = len(made.actor.weights)
    control = {"iteration", "coef"}
    names = {v.name for v in made.weights} - {v.name for v in made.actor.weights}
    assert names == control and len(made.weights) == actor + 2
    made.iterate(dict(BATCHES[0]))
    made.save_weights(tmp_path / "ppo.weights.h5")
    fresh = trainer(lambda: helpers.actor(seed=9), reward=reward)
    fresh.load_weights(tmp_path / "ppo.weights.h5")
    for ours, theirs in zip(fresh.weights, made.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(fresh.iteration.numpy()) == 1
    assert float(fresh.kl.coef) == float(made.kl.coef) != pytest.approx(0.2, abs=1e-6)
    stored = []
    with h5py.File(tmp_path / "ppo.weights.h5") as file:
        file.visititems(lambda name, x: stored.append((name, x)) if hasattr(x, "dtype") else None)
        networks = [name for name, x in stored if x.ndim and not name.startswith("optimizer/")]
    assert {name.split("/")[0] for name, _ in stored} == {"actor", "kl", "optimizer", "vars"}
    assert len(networks) == sum(v.ndim > 0 for v in made.actor.weights)


def texts(rows):
    """Text for PPO-ptx: token 5 over and over."""
    ids = np.full((rows, 6), 5, "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones((rows, 6), bool)}
    return tf.data.Dataset.from_tensors((inputs, ids, np.ones((rows, 6), "float32")))


def everything():
    """Adapters, a critic and a reward model of their own, text, clipping by the global norm.

    The last must see the gradient that is summed over replicas.
    """
    acting = helpers.actor(num_layers=1, critic=helpers.backbone("llama", seed=3, num_layers=1))
    acting.causal_lm.backbone.enable_lora(2)
    reward = RewardModel(helpers.lm(seed=2, num_layers=1))
    helpers.filled(reward.score_head, seed=6)
    return {
        "acting": lambda: acting,
        "reward": reward,
        "ptx_coef": 0.5,
        "ptx_data": texts(4),
        "optimizer": lambda: adam(global_clipnorm=0.1),
    }


@pytest.mark.slow
def test_two_replicas_are_as_good_as_none():
    keras.utils.set_random_seed(0)
    expected = run(trainer(jit_compile=True, **everything()))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    keras.utils.set_random_seed(0)
    with strategy.scope():
        options = everything()
    made = trainer(jit_compile=True, strategy=strategy, **options)
    assert_same(run(made), expected)
    assert int(made.optimizer.iterations.numpy()) == 12


@pytest.mark.slow
def test_one_mirrored_replica_is_as_good_as_none(plain):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert_same(run(trainer(strategy=strategy)), plain[2])


def test_replicas_must_divide_the_text_too():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    made = trainer(strategy=strategy, ptx_coef=0.5, ptx_data=texts(3))
    with pytest.raises(ValueError, match="3 rows cannot be divided between 2 replicas"):
        made.iterate(dict(BATCHES[0]))
