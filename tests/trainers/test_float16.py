"""float16: losses are scaled, overflows are skipped, and the scale is part of the run."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import trajectories

import kerasrlhf as rlhf
from kerasrlhf.trainers.loss_scale import LossScale

BATCHES = trajectories.BATCHES


def half_actor():
    return helpers.actor(num_layers=2, dtype="mixed_float16")


def made(scale=2.0**10, **options):
    """A trainer whose scale is one at which none of these gradients overflows."""
    trainer = trajectories.trainer(half_actor, **options)
    trainer.loss_scale.scale.assign(scale)
    return trainer


@pytest.fixture(scope="module")
def run():
    return trajectories.run(made())


def test_statistics_are_float32_and_the_first_ratio_is_near_one(run):
    backbone = run.trainer.actor.causal_lm.backbone
    assert (backbone.compute_dtype, backbone.variable_dtype) == ("float16", "float32")
    for rollout in run.rollouts:
        floats = (rollout.logprobs, rollout.values, rollout.ref_logprobs)
        assert {x.dtype.name for x in floats} == {"float32"}
    for entry, (first, *_) in zip(run.statistics, run.updates, strict=True):
        assert np.isfinite([*entry.values()]).all()
        assert first["policy/ratio_error"] < 0.02
        assert entry["policy/skipped_updates"] == 0 and entry["policy/loss_scale"] == 2.0**10


def test_it_learns_what_float32_learns(run, plain):
    """From the same start: weights differ by less than they moved."""
    moved, apart = (
        np.concatenate([np.abs(a - b).ravel() for a, b in zip(x, y, strict=True)])
        for x, y in ((plain.weights[1], plain.weights[0]), (run.weights[1], plain.weights[1]))
    )
    assert apart.sum() < 0.2 * moved.sum()


def test_the_scale_changes_no_gradient():
    """Powers of two, where nothing overflows and little vanishes: the same step."""
    found, sgd = [], lambda: keras.optimizers.SGD(0.1)
    for initial in (2.0**7, 2.0**10):
        trainer = made(initial, optimizer=sgd, update_epochs=1, num_minibatches=1)
        start = trajectories.weights(trainer)
        trainer.iterate(dict(BATCHES[0]))
        found.append(trajectories.weights(trainer))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert max(np.abs(a - b).max() for a, b in zip(start, found[0], strict=True)) > 1e-2


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_overflow_is_skipped_and_lowers_the_scale(replicas):
    """Until gradients are finite; no weight moves meanwhile, and the run goes on."""
    strategy = None
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    trainer = made(2.0**30, strategy=strategy, update_epochs=3)
    before = trajectories.weights(trainer)
    first = trainer.iterate(dict(BATCHES[0]))
    assert (first["policy/updates"], first["policy/skipped_updates"]) == (0, 6)
    assert first["policy/loss_scale"] == 2.0**24
    trajectories.assert_same_weights(trajectories.weights(trainer), before, atol=0)
    assert int(trainer.optimizer.iterations.numpy()) == 0
    later = [trainer.iterate(dict(BATCHES[0])) for _ in range(3)]
    assert later[-1]["policy/updates"] >= 4 and later[-1]["policy/loss_scale"] < 2.0**20
    assert any((a != b).any() for a, b in zip(trajectories.weights(trainer), before, strict=True))


def test_what_no_scale_mends_ends_the_run():
    """Gradients that are not a number: the scale falls to 1, then the run ends."""
    trainer = made(2.0, update_epochs=6)
    trainer._update = lambda batch: {"policy/skipped": 1.0, "loss/total": float("nan")}
    with pytest.raises(FloatingPointError, match="3 updates in a row were skipped"):
        trainer.iterate(dict(BATCHES[0]))
    assert float(trainer.loss_scale.scale.numpy()) == 1.0


def test_two_replicas_learn_what_one_device_learns(run):
    """Up to the rounding of sums in float16, relative to how far the weights moved."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    divided = trajectories.run(made(strategy=strategy, jit_compile=True), BATCHES[:1])
    moved, apart = (
        sum(np.abs(a - b).sum() for a, b in zip(x, y, strict=True))
        for x, y in ((run.weights[1], run.weights[0]), (divided.weights[1], run.weights[1]))
    )
    assert apart < 0.1 * moved


def test_the_scale_is_resumed(tmp_path):
    prompts = tf.data.Dataset.from_tensors(BATCHES[0]).repeat(2)
    trainer = made(2.0**8)
    trainer.loss_scale.made.assign(1999)
    trainer.fit(prompts, verbose=0, callbacks=[rlhf.callbacks.Resume(tmp_path)])
    assert float(trainer.loss_scale.scale.numpy()) == 2.0**9
    again = made()
    again.fit(prompts, verbose=0, callbacks=[rlhf.callbacks.Resume(tmp_path)])
    assert float(again.loss_scale.scale.numpy()) == 2.0**9
    assert int(again.loss_scale.made.numpy()) == int(trainer.loss_scale.made.numpy()) == 7


def test_other_dtypes_have_no_scale(plain):
    assert plain.trainer.loss_scale is None
    assert "policy/loss_scale" not in plain.statistics[0]


def test_a_global_policy_changes_no_optimizer():
    """Keras would wrap it to scale losses, and no update would work on several devices."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        trainer = helpers.ppo(helpers.actor())
        trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(trainer.optimizer) is keras.optimizers.SGD
    assert trainer.loss_scale is not None


def test_a_scale_stays_within_its_range():
    scale = LossScale(initial=LossScale.LARGEST, interval=1)
    assert not scale.update(is_sound=True)
    assert float(scale.scale.numpy()) == LossScale.LARGEST
    scale.scale.assign(1.5)
    assert scale.update(is_sound=False) and not scale.update(is_sound=False)
    assert float(scale.scale.numpy()) == 1.0
    copy = LossScale.from_config(scale.get_config())
    assert (copy.initial, copy.interval) == (LossScale.LARGEST, 1)
