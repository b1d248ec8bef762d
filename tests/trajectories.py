"""A trainer, some iterations of it, and the comparison of two such trajectories."""

from typing import Any, NamedTuple

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.trainers.kl_control import AdaptiveKL
from kerasrlhf.trainers.language_modeling import LanguageModeling
from kerasrlhf.types import Rollout, Sampler

ROWS = 8
BATCHES = [helpers.prompts([1, 2, 3, 4, 5, 6, 3, 2], seed=seed) for seed in range(3)]
TARGET = 0.36  # near the KL of the third iteration, where the error of the coefficient is not cut
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4))


def adam(**options):
    return keras.optimizers.Adam(3e-3, epsilon=1e-5, **options)


def trainer(acting=None, optimizer=adam, strategy=None, jit_compile=False, **options):
    """A compiled trainer whose weights are a function of the arguments alone.

    Args:
        acting: makes the actor. None: a tiny GPT-2 with a value head that is not zero.
        optimizer: makes the optimizer.
        strategy: None or a `tf.distribute` strategy; all is made in its scope.
        jit_compile: True, False, or None to run eagerly.
        **options: of PPO; `reward_model` makes a reward model.
    """
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        if "reward_model" in options:
            options["reward"] = options.pop("reward_model")()
        options = {
            "sampler": SAMPLER,
            "kl": AdaptiveKL(0.2, target=TARGET, horizon=100),
            "update_epochs": 2,
            "num_minibatches": 2,
            **options,
        }
        made = helpers.ppo(acting() if acting else helpers.actor(num_layers=2), **options)
        made.compile(optimizer(), jit_compile=bool(jit_compile), run_eagerly=jit_compile is None)
    return made


class Trajectory(NamedTuple):
    """What happened in some iterations.

    trainer: as it is afterward.
    weights: trainable arrays before the first iteration and after each.
    statistics: of each iteration.
    rollouts: of each iteration.
    updates: for each iteration the logs of its updates, in order.
    """

    trainer: Any
    weights: list[list[np.ndarray]]
    statistics: list[dict[str, float]]
    rollouts: list[Rollout]
    updates: list[list[dict[str, float]]]


def weights(made):
    return [np.array(keras.ops.cast(v, "float32")) for v in made.trainable_variables]


def run(made, batches=BATCHES):
    """The trajectory of `made` over these batches of prompts."""
    trajectory = Trajectory(made, [weights(made)], [], [], [])
    original = made.train_step

    def train_step(*args):
        logs = original(*args)
        trajectory.updates[-1].append({name: float(x) for name, x in logs.items()})
        return logs

    made.train_step = train_step
    for batch in batches:
        trajectory.updates.append([])
        trajectory.statistics.append(made.iterate(dict(batch)))
        trajectory.weights.append(weights(made))
        trajectory.rollouts.append(made.last.rollout)
    made.train_step = original
    return trajectory


def assert_same_statistics(found, expected, atol=1e-5):
    """All statistics of all iterations but the times."""
    for ours, theirs in zip(found, expected, strict=True):
        assert {*ours} == {*theirs}
        for name in ours:
            if not name.startswith("time/"):
                assert ours[name] == pytest.approx(theirs[name], rel=atol, abs=atol), name


def assert_same_weights(found, expected, atol=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def assert_same(found, expected, atol=1e-5):
    """Weights and statistics agree after every iteration, and there was something to compare."""
    assert_same_statistics(found.statistics, expected.statistics, atol)
    for ours, theirs in zip(found.weights, expected.weights, strict=True):
        assert_same_weights(ours, theirs, atol)
    moved = [np.abs(b - a).max() for a, b in zip(*expected.weights[-2:], strict=True)]
    assert len(expected.statistics) >= 3 and max(moved) > 100 * atol


def texts(rows=4):
    """Text for PPO-ptx: five batches, each of another token; every row counts another number."""
    ids = np.repeat(np.arange(5, 10, dtype="int32"), rows * 6).reshape(5 * rows, 6)
    counted = np.arange(6)[None] < (np.arange(5 * rows) % rows)[:, None] + 1
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(counted)}
    dataset = tf.data.Dataset.from_tensor_slices((inputs, ids, counted.astype("float32")))
    return dataset.batch(rows)


def adapted_actor_with_critic():
    acting = helpers.actor(critic=helpers.backbone("llama", seed=3))
    acting.causal_lm.backbone.enable_lora(2)
    return acting


def reward_model():
    model = RewardModel(helpers.lm(seed=2))
    helpers.filled(model.score_head, seed=6)
    return model


def everything():
    """Adapters, a critic and a reward model of their own, text, clipping by the global norm.

    The last must see the gradient that is summed over replicas.
    """
    return {
        "acting": adapted_actor_with_critic,
        "reward_model": reward_model,
        "texts": LanguageModeling(texts(), coef=0.5),
        "optimizer": lambda: adam(global_clipnorm=0.1),
    }
