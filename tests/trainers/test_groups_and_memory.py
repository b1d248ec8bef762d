"""What an iteration with groups, a memory and an adaptive coefficient hands on."""

import json

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf import replica

GROUP = 2
BATCH = helpers.prompts([2, 4, 3, 1])
SAMPLER = rlhf.Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4, 7, 9))


class Labels:
    """A reward that keeps the column of its last call."""

    def __call__(self, response_ids, label):
        self.label = list(label)
        return helpers.token_reward(response_ids)


class Watched(rlhf.PPO):
    """PPO that reports the coefficient and the iteration of every rollout that it learns from."""

    def report(self, coef, iteration):
        """Replaced by the test that reads the values."""

    def estimate(self, rollout):
        self.report(float(rollout.kl_coef), int(rollout.iteration))
        return super().estimate(rollout)


@pytest.fixture(scope="module")
def grouped():
    ppo = Watched(
        helpers.actor(),
        Labels(),
        sampler=SAMPLER,
        kl=rlhf.AdaptiveKL(0.15, target=1e-3, horizon=100),
        group_size=GROUP,
        update_epochs=1,
        memory=rlhf.RolloutMemory(2),
    )
    ppo.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    return ppo


@pytest.fixture
def batch():
    records = [json.dumps({"label": label}) for label in "abcd"]
    return {**BATCH, "record": np.array(records)}


def test_columns_of_a_record_go_to_every_response_of_its_prompt(grouped, batch):
    grouped.iterate(batch)
    assert grouped.reward.label == list("aabbccdd")
    ids = np.array(grouped.last.rollout.token_ids)
    prompt_lengths = np.repeat(BATCH["padding_mask"].sum(axis=1), GROUP)
    for row, size in enumerate(prompt_lengths):
        np.testing.assert_array_equal(ids[row, :size], BATCH["token_ids"][row // GROUP, :size])


def test_the_coefficient_counts_episodes_and_not_prompts(grouped, batch):
    """The KL is above its target by more than the limit of the error."""
    grouped.iterate(batch)
    before = float(grouped.kl.coef)
    statistics = grouped.iterate(batch)
    assert statistics["objective/kl"] > 1.2e-3
    assert float(grouped.kl.coef) == pytest.approx(before * (1 + 0.2 * 4 * GROUP / 100), rel=1e-5)


def test_older_rollouts_are_learned_from_with_the_coefficient_of_the_iteration(
    grouped, batch, monkeypatch
):
    grouped.iterate(batch)
    seen = []
    monkeypatch.setattr(Watched, "report", lambda self, *values: seen.append(values))
    coef, iteration = float(grouped.kl.coef), int(grouped.iteration)
    stored = [float(rollout.kl_coef) for rollout in grouped.memory]
    grouped.iterate(batch)
    assert seen == [(pytest.approx(coef), iteration)] * 2
    assert coef not in stored


def test_validation_samples_with_numbers_of_its_own(grouped, batch, monkeypatch):
    """Neither those of any training iteration, nor twice the same for two batches."""
    sampled, uniforms = [], replica.uniforms

    def spy(*args):
        sampled.append(uniforms(*args))
        return sampled[-1]

    monkeypatch.setattr(replica, "uniforms", spy)
    grouped.iteration.assign(0)
    data = tf.data.Dataset.from_tensor_slices(batch).batch(4).repeat(2)
    grouped.fit(data, validation_data=data, verbose=0)
    assert len(sampled) == 4
    assert len({numbers.numpy().tobytes() for numbers in sampled}) == 4
