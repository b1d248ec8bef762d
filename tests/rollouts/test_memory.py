"""A bounded memory of rollouts: what it keeps, what it samples, how old rollouts are learned."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import Rollout, Sampler


def numbered(iteration):
    """A rollout whose every number tells of its iteration."""
    shapes = dict.fromkeys(Rollout._fields, (2, 3))
    shapes |= {"prompt_lengths": (2,), "ended": (2,), "scores": (2,)}
    shapes |= {"kl_coef": (), "iteration": ()}
    dtypes = {"token_ids": "int32", "prompt_lengths": "int32", "iteration": "int32"}
    dtypes |= dict.fromkeys(("padding_mask", "response_mask", "ended"), "bool")
    return Rollout(
        **{
            name: tf.constant(np.full(shape, iteration).astype(dtypes.get(name, "float32")))
            for name, shape in shapes.items()
        }
    )


def filled(count, capacity=3, directory=None, reuse=2):
    memory = RolloutMemory(capacity, directory, reuse)
    for iteration in range(count):
        memory.add(iteration, numbered(iteration))
    return memory


def numbers(rollouts):
    return [int(rollout.iteration) for rollout in rollouts]


@pytest.mark.parametrize("on_disk", [False, True])
def test_it_is_bounded(tmp_path, on_disk):
    memory = filled(10, directory=tmp_path if on_disk else None)
    assert memory.iterations(before=10) == [7, 8, 9] == numbers(memory)
    assert memory.iterations(before=8) == [7]
    assert len(memory) == 3 and len([*tmp_path.iterdir()]) == (3 if on_disk else 0)
    with pytest.raises(ValueError, match=r"no rollout of iteration 6\. It has \[7, 8, 9\]"):
        memory[6]


@pytest.mark.parametrize("on_disk", [False, True])
def test_it_can_be_put_back(tmp_path, on_disk):
    kept = filled(5).arrays()
    memory = filled(9, directory=tmp_path if on_disk else None)
    memory.restore(kept)
    assert numbers(memory) == [2, 3, 4] and memory.iterations(before=5) == [2, 3, 4]
    for name, array in memory.arrays().items():
        np.testing.assert_array_equal(array, kept[name])
    memory.restore({})
    assert len(memory) == 0


def test_on_disk_is_as_in_memory(tmp_path):
    kept, written = filled(8), filled(8, directory=tmp_path / "new" / "folder")
    for iteration in range(8, 12):
        ours, theirs = (m.sample(5, iteration) for m in (kept, written))
        assert len(ours) == len(theirs) == 2
        for left, right in zip(ours, theirs, strict=True):
            for name in Rollout._fields:
                a, b = getattr(left, name), getattr(right, name)
                assert a.dtype == b.dtype == getattr(numbered(0), name).dtype
                np.testing.assert_array_equal(a, b)
        for memory in (kept, written):
            memory.add(iteration, numbered(iteration))
    again = RolloutMemory(3, tmp_path / "new" / "folder")
    assert numbers(again) == numbers(written)


def test_samples_are_of_the_past_without_repetition_and_follow_the_seed():
    memory = filled(6)
    assert memory.sample(0, 0) == []
    assert numbers(filled(1).sample(0, 1)) == [0]
    samples = [tuple(numbers(memory.sample(seed, 6))) for seed in range(40)]
    assert samples == [tuple(numbers(memory.sample(seed, 6))) for seed in range(40)]
    assert all(a != b for a, b in samples)
    assert {x for sample in samples for x in sample} == {3, 4, 5}
    assert sorted(numbers(filled(6, reuse=9).sample(0, 6))) == [3, 4, 5]
    assert filled(6, reuse=0).sample(0, 6) == []


def test_a_capacity_of_none_is_refused():
    with pytest.raises(ValueError, match="`capacity` must be at least 1"):
        RolloutMemory(0)
    with pytest.raises(ValueError, match="`reuse` must be at least 0"):
        RolloutMemory(1, reuse=-1)


BATCHES = [helpers.prompts([2, 4, 3, 1], seed=seed) for seed in range(4)]
SAMPLER = Sampler(length=3, temperature=0.8, stop_token_ids=(0, 4))


def make(memory, run_eagerly=False, **options):
    made = helpers.ppo(helpers.actor(), sampler=SAMPLER, update_epochs=1, memory=memory, **options)
    made.compile(keras.optimizers.SGD(0.02), jit_compile=False, run_eagerly=run_eagerly)
    return made


@pytest.fixture(scope="module")
def learned():
    """A trainer after three iterations, with every rollout that it learned from."""
    calls, original = [], PPO.estimate

    def estimate(trainer, rollout):
        calls.append((int(rollout.iteration), rollout, original(trainer, rollout)))
        return calls[-1][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "estimate", estimate)
        made = make(RolloutMemory(2, reuse=2), run_eagerly=True, importance_cap=1.1)
        for batch in BATCHES[:3]:
            made.iterate(batch)
    return made, calls


def test_older_rollouts_are_learned_after_the_fresh_one(learned):
    made, calls = learned
    assert [iteration for iteration, _, _ in calls] == [0, 1, 1, 2, 2, 2]
    assert int(made.optimizer.iterations.numpy()) == 6
    ids = [rollout.token_ids.numpy() for _, rollout, _ in calls]
    np.testing.assert_array_equal(ids[2], ids[0])
    assert {np.array_equal(ids[4], ids[0]), np.array_equal(ids[5], ids[0])} == {True, False}


def test_older_rollouts_are_seen_as_the_policy_is_now_and_weighted(learned):
    made, calls = learned
    _, fresh, _ = calls[0]
    iteration, old, experience = calls[2]
    inside = old.response_mask.numpy()
    np.testing.assert_array_equal(old.behavior_logprobs, fresh.behavior_logprobs)
    assert np.abs(old.logprobs - fresh.logprobs).max() > 1e-3
    assert int(old.iteration) == iteration == 1
    moved = np.where(inside, np.array(old.logprobs) - fresh.logprobs, 0.0)
    weights = np.minimum(np.exp(moved.sum(axis=1)), 1.0)[:, None]
    plain = made.estimate(old._replace(drift=None, behavior_logprobs=old.logprobs))
    expected = np.array(plain.advantages) * weights
    np.testing.assert_allclose(experience.advantages, np.where(inside, expected, 0), atol=1e-5)
    values = np.array(old.values)
    targets = values + weights * (np.array(plain.returns) - values)
    np.testing.assert_allclose(experience.returns, np.where(inside, targets, 0), atol=1e-5)
    assert weights.max() == 1.0 and weights.min() < 0.999
    # Advantages are whitened: what is left of them is not small by itself.
    assert np.abs(np.array(plain.advantages) * (1 - weights)).max() > 1e-3


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "reinforce++"])
def test_a_token_that_was_rare_and_is_likely_counts_once_at_most(algorithm):
    """1e-4 to 0.9 would be a weight of 9,000 by itself; and a response that is gone, nothing."""
    kl = rlhf.FixedKL(0.1, place="loss" if algorithm == "grpo" else None)
    options = {"sampler": SAMPLER, "kl": kl, "group_size": 2, "reference": None}
    made = {
        "rloo": rlhf.RLOO,
        "grpo": rlhf.GRPO,
        "reinforce++": rlhf.REINFORCEPlusPlus,
    }[algorithm](helpers.actor(), helpers.token_reward, memory=RolloutMemory(2), **options)
    mask = np.array([[False, True, True], [False, True, True]])
    then = np.where(mask, np.log([[1e-4, 1e-4, 0.5], [0.5, 0.5, 0.5]]), 0.0).astype("float32")
    now = np.where(mask, np.log([[1e-4, 0.9, 0.4], [0.5, 0.1, 0.25]]), 0.0).astype("float32")
    old = numbered(0)._replace(
        response_mask=mask,
        logprobs=now,
        ref_logprobs=now,
        behavior_logprobs=then,
        drift=now - then,
        scores=np.array([1.0, 0.0], "float32"),
        kl_coef=np.float32(0.1),
    )
    found, plain = made.estimate(old), made.estimate(old._replace(drift=None))
    weights = np.array([[1.0], [0.1]])  # min(1, 9000 * 0.8), 0.2 * 0.5
    expected = np.array(plain.advantages) * weights
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-5)
    assert np.abs(expected).min(where=mask, initial=9.0) > 0.01
    if found.kl_weights is not None:
        np.testing.assert_allclose(found.kl_weights, 0.1 * weights * np.ones(3), rtol=1e-5)


def test_the_memory_can_be_looked_at(learned):
    made, calls = learned
    memory = made.memory
    assert numbers(memory) == [1, 2]
    np.testing.assert_array_equal(memory[2].token_ids, calls[3][1].token_ids)
    rows, mask = memory[2].token_ids.numpy(), memory[2].response_mask.numpy()
    assert helpers.token_reward([r[m] for r, m in zip(rows, mask, strict=True)]) == pytest.approx(
        memory[2].scores.numpy().tolist()
    )


def data():
    """All batches, one after the other."""
    stacked = {name: np.concatenate([b[name] for b in BATCHES]) for name in BATCHES[0]}
    return tf.data.Dataset.from_tensor_slices(stacked).batch(4)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_resumed_run_draws_what_an_uninterrupted_one_does(tmp_path, on_disk):
    """The state is of two iterations before the end: the memory has gone on meanwhile."""

    def trainer(name):
        return make(RolloutMemory(1, tmp_path / name if on_disk else None, reuse=2))

    def run(made, directory, *callbacks):
        resume = rlhf.callbacks.Resume(tmp_path / directory, every=2)
        made.fit(data().repeat(), steps_per_epoch=6, callbacks=[*callbacks, resume], verbose=0)
        return [np.array(v) for v in made.trainable_variables]

    expected = run(trainer("whole memory"), "whole")
    with pytest.raises(helpers.Crash):
        run(trainer("memory"), "cut", helpers.CrashIn(5))
    resumed = trainer("memory")
    found = run(resumed, "cut")
    assert int(resumed.iteration.numpy()) == 6
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="its memory is 1, and here it is 2"):
        run(make(RolloutMemory(2, reuse=2)), "cut")


def test_text_goes_into_every_update_and_nothing_follows_the_last():
    """A language-modeling loss with older rollouts too; `target_kl` ends all of them."""
    text = tf.data.Dataset.from_tensors(
        (
            {"token_ids": np.ones((4, 3), "int32"), "padding_mask": np.ones((4, 3), bool)},
            np.ones((4, 3), "int32"),
            np.ones((4, 3), "float32"),
        )
    )
    memory = RolloutMemory(3, reuse=2)
    made, texts = make(memory, True, texts=rlhf.LanguageModeling(text, coef=0.1)), []
    original = made.train_step
    made.train_step = lambda batch: texts.append(batch.text) or original(batch)
    counts = [made.iterate(batch)["policy/updates"] for batch in BATCHES[:3]]
    assert counts == [1, 2, 3] and len(texts) == 6 == made.updates_in(3)
    assert None not in texts
    made.target_kl = -1.0  # every epoch goes further
    made.iterate(BATCHES[3])
    assert len(texts) == 7
    assert numbers(made.memory) == [1, 2, 3]


def test_an_older_rollout_is_read_at_the_temperature_of_now():
    def compiled(temperature):
        sampler = Sampler(length=4, temperature=temperature)
        made = helpers.ppo(sampler=sampler, memory=RolloutMemory(2, reuse=2))
        made.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        return made

    trainer = compiled(temperature=1.0)
    old = trainer.collect(helpers.prompts([2, 3, 6, 1])).rollout
    unchanged = trainer.collector.refreshed(old, tf.constant(1.0))
    np.testing.assert_array_equal(unchanged.ref_logprobs, old.ref_logprobs)
    trainer = compiled(temperature=lambda iteration: 0.5)
    cooler = trainer.collector.refreshed(old, tf.constant(0.5))
    rows = old.token_ids, old.padding_mask, old.prompt_lengths
    for name, model in (("logprobs", trainer.actor.token_stats), ("ref_logprobs", None)):
        read = model or trainer.reference.logprobs
        expected = read(*rows, 4, 0.5)
        expected = np.where(old.response_mask, getattr(expected, "logprobs", expected), 0.0)
        np.testing.assert_allclose(getattr(cooler, name), expected, atol=1e-5)
        assert np.abs(expected - np.asarray(getattr(old, name))).max() > 0.01


def test_rates_that_fall_count_the_updates_of_older_rollouts():
    trainer = helpers.ppo(memory=RolloutMemory(2, reuse=2), num_minibatches=2)
    trainer.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    for _ in range(3):
        trainer.iterate(helpers.prompts([1, 2, 3, 4]))
    assert trainer.updates_per_iteration == 3 * 8
    # The first iteration finds no older rollout, the second one.
    assert int(trainer.optimizer.iterations.numpy()) == 8 + 16 + 24 == trainer.updates_in(3)
