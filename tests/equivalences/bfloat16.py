"""Run by `test_bfloat16.py`: trajectories in a process that compiles as those of users do.

Seven bits of fraction let equal things differ by a little, and by more the less XLA optimizes.
"""

import warnings

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import trajectories
from trajectories import run, trainer

from kerasrlhf.trainers import soundness

# In bfloat16 weights Keras's Adam would stand still: there its `beta_2` of 0.999 is 1.
OPTIMIZERS = {
    "bfloat16": lambda: keras.optimizers.SGD(0.02),
    "mixed_bfloat16": trajectories.adam,
}


def made(dtype, **options):
    return trainer(
        lambda: helpers.actor(num_layers=2, dtype=dtype), optimizer=OPTIMIZERS[dtype], **options
    )


@pytest.fixture(scope="module", autouse=True)
def graphs_are_optimized_as_for_users():
    """Other tests do without; where graphs are rounded in another way, bfloat16 shows it."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(scope="module", params=OPTIMIZERS)
def graph(request):
    """Without XLA."""
    return request.param, run(made(request.param))


@pytest.mark.slow
def test_statistics_are_finite_and_the_first_ratio_is_near_one(graph):
    dtype, trajectory = graph
    backbone = trajectory.trainer.actor.causal_lm.backbone
    assert backbone.compute_dtype == "bfloat16"
    assert backbone.variable_dtype == ("float32" if "mixed" in dtype else "bfloat16")
    assert all(np.isfinite(w).all() for w in trajectory.weights[-1])
    for entry, (first, *_) in zip(trajectory.statistics, trajectory.updates, strict=True):
        assert np.isfinite([*entry.values()]).all()
        assert first["policy/ratio_error"] < 0.1
        with warnings.catch_warnings(action="error"):
            soundness.check_first_ratio(first, backbone.compute_dtype, iteration=0)
    assert abs(trajectory.statistics[-1]["objective/kl"]) > 0.01, "the policy has moved"


def moved(before, after):
    return sum(np.abs(a - b).sum() for a, b in zip(after, before, strict=True))


@pytest.mark.slow
def test_xla_is_eager_up_to_rounding(graph):
    """Of the same rollouts: a token sampled near a boundary would make two trajectories of one."""
    dtype, expected = graph
    compiled = made(dtype, jit_compile=True)
    collector, given, own = compiled.collector, iter(expected.rollouts), []

    def collect_again(*args, **kwargs):
        collected = collector(*args, **kwargs)
        own.append(collected.rollout)
        return collected._replace(rollout=next(given))

    compiled.collector = collect_again
    found = run(compiled)
    for number, (ours, theirs) in enumerate(zip(found.updates, expected.updates, strict=True)):
        # Rounding grows, and a token at the edge of its clip range changes the norm at once.
        late = {"policy/grad_norm"} if number == 2 else set()
        for log, other in zip(ours, theirs, strict=True):
            for name in log.keys() - late:
                assert log[name] == pytest.approx(other[name], rel=0.15, abs=0.15), name
    for before, ours, theirs in zip(
        expected.weights[:1] * 3, found.weights[1:], expected.weights[1:], strict=True
    ):
        assert moved(ours, theirs) < 0.3 * moved(before, theirs)
    for ours, theirs in zip(own, expected.rollouts, strict=True):
        same = np.all(np.array(ours.token_ids) == theirs.token_ids, axis=1)
        assert same.sum() >= trajectories.ROWS / 2
        np.testing.assert_allclose(ours.logprobs[same], theirs.logprobs[same], atol=0.1)
