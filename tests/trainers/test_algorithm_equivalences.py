"""Algorithms as special cases of each other, and groups that stay together.

Gradients are compared with one forward pass over whole rows, written apart from the trainers.
"""

import pathlib
import re

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
import trajectories

import kerasrlhf as rlhf
from kerasrlhf.functional import baselines
from kerasrlhf.models import lm_adapter
from kerasrlhf.trainers.update_step import permutations
from kerasrlhf.types import Sampler

RLOO_PAGE = pathlib.Path(__file__).parents[2] / "docs/pages/algorithms/rloo.md"
COEF = 0.3
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4, 9, 13))
BATCH = helpers.prompts([1, 3, 6, 2])


def learner(algorithm, optimizer=None, jit_compile=None, strategy=None, **options):
    """A trainer of an actor of its own, compiled: XLA, graphs or line by line (None)."""
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        options = {
            "group_size": 2,
            "sampler": SAMPLER,
            "kl": rlhf.FixedKL(COEF),
            "reference": helpers.lm(seed=5),
            **options,
        }
        made = algorithm(helpers.actor(), helpers.token_reward, **options)
        optimizer = optimizer or trajectories.adam()
        made.compile(optimizer, jit_compile=bool(jit_compile), run_eagerly=jit_compile is None)
    return made


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_groups_stay_together(updates):
    order = permutations(3, 1, 60, 2, updates, 3)
    assert order.shape == (2 * updates, 60 // updates)
    groups = order.reshape(-1, 3)
    assert (groups % 3 == np.arange(3)).all()
    assert (groups // 3 == groups[:, :1] // 3).all()
    for epoch in np.split(groups[:, 0] // 3, 2):
        assert sorted(epoch) == list(range(20)) and sorted(epoch) != list(epoch)


def first_update(made, moved=False):
    """The rollout and the gradient of an iteration's first update, or of a later one (`moved`)."""
    rollout = made.collect(BATCH).rollout
    experience = made.estimate(rollout)
    if moved:
        helpers.filled(made.actor.causal_lm, seed=1)
    return rollout, tiny.gradients(made, experience)[0]


def policy_gradient(made, rollout, advantages, divisor):
    """`-sum of A grad log p / divisor` by one forward pass over whole rows."""
    lm, inside = made.actor.causal_lm, np.asarray(rollout.response_mask)
    variables = [v.value for v in made.trainable_variables]
    with tf.GradientTape() as tape:
        logits = lm({"token_ids": rollout.token_ids, "padding_mask": rollout.padding_mask})
        logprobs = tf.nn.log_softmax(tf.cast(logits, tf.float32) / SAMPLER.temperature)[:, :-1]
        chosen = tf.gather(logprobs, rollout.token_ids[:, 1:], batch_dims=2)
        weights = np.where(inside, advantages, 0.0)[:, 1:].astype("float32")
        loss = -tf.reduce_sum(chosen * weights) / divisor
    gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [np.asarray(tf.convert_to_tensor(g)) for g in gradients]


def assert_same_gradients(found, expected, factor=1.0):
    biggest = max(np.abs(g).max() for g in expected)
    assert biggest > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, factor * theirs, atol=2e-5 * biggest, rtol=1e-3)


def to_come(rollout):
    """Rewards from each token on, by loops."""
    inside, kl = (np.asarray(x) for x in (rollout.response_mask, rollout.logprobs))
    kl = kl - np.asarray(rollout.ref_logprobs)
    totals = np.zeros(inside.shape)
    for row, mask in enumerate(inside):
        running = float(rollout.scores[row])
        for t in np.flatnonzero(mask)[::-1]:
            running -= COEF * kl[row, t]
            totals[row, t] = running
    return totals


@pytest.mark.parametrize("critic", ["zero", "random"])
def test_ppo_that_clips_and_whitens_nothing_is_reinforce(critic):
    """With what the critic says as baseline."""
    made = learner(
        rlhf.PPO, lam=1.0, cliprange=1e6, vf_coef=0.0, whiten_advantages=False, update_epochs=1
    )
    if critic == "zero":
        for variable in made.actor.value_head.weights:
            variable.assign(keras.ops.zeros_like(variable))
    rollout, gradients = first_update(made)
    values = np.asarray(rollout.values)
    assert (np.abs(values).max() > 0.1) == (critic == "random")
    tokens = np.asarray(rollout.response_mask).sum()
    assert tokens < len(values) * SAMPLER.length, "one ends early"
    expected = policy_gradient(made, rollout, to_come(rollout) - values, tokens)
    assert_same_gradients(gradients, expected)


def test_rloo_and_dr_grpo_are_reinforce_with_a_baseline():
    """Of the same samples, Dr. GRPO `(group - 1) / group` of RLOO: half of it in pairs."""
    rloo = learner(rlhf.RLOO)
    rollout, gradients = first_update(rloo)
    inside = np.asarray(rollout.response_mask)
    first = inside.argmax(axis=1)
    worth = to_come(rollout)[np.arange(len(first)), first].reshape(-1, 2)
    advantages = (worth - worth[:, ::-1]).reshape(-1, 1)
    assert inside.sum() < worth.size * SAMPLER.length, "the number of tokens is another divisor"
    expected = policy_gradient(rloo, rollout, advantages, worth.size * SAMPLER.length)
    assert_same_gradients(gradients, expected)
    dr_grpo = learner(rlhf.GRPO, variant="dr_grpo")
    same, halves = first_update(dr_grpo)
    np.testing.assert_array_equal(same.token_ids, rollout.token_ids)
    assert_same_gradients(halves, expected, factor=0.5)


@pytest.mark.parametrize("constant", [0.0, 1.5])
def test_rloo_with_a_constant_baseline_is_reinforce(monkeypatch, constant):
    """Any number taken off all returns, in place of the mean of the others to the prompt."""
    monkeypatch.setattr(baselines, "leave_one_out", lambda worth, group_size: worth - constant)
    made = learner(rlhf.RLOO)
    rollout, gradients = first_update(made)
    first = np.asarray(rollout.response_mask).argmax(axis=1)
    worth = to_come(rollout)[np.arange(len(first)), first] - constant
    expected = policy_gradient(made, rollout, worth[:, None], worth.size * SAMPLER.length)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("options", [{}, {"update_epochs": 3, "cliprange": 0.1}], ids=str)
def test_rloo_is_what_its_page_shows(options):
    """The class on the page: the same weights after two iterations."""
    page = RLOO_PAGE.read_text("utf-8")
    (shown,) = re.findall(r"```python\n(from keras.*?class LeaveOneOut.*?)```", page, re.DOTALL)
    names = {}
    exec(shown.split("trainer = ")[0], names)
    weights = []
    for algorithm in (rlhf.RLOO, names["LeaveOneOut"]):
        made = learner(algorithm, **options)
        before = [np.array(v) for v in made.trainable_variables]
        steps = [made.iterate(BATCH)["policy/updates"] for _ in range(2)]
        weights.append([np.array(v) for v in made.trainable_variables])
        assert steps == [options.get("update_epochs", 1)] * 2
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
    moved = [np.abs(a - b).max() for a, b in zip(weights[0], before, strict=True)]
    assert max(moved) > 1e-3


def test_a_group_reads_its_prompt_once(monkeypatch):
    """Rows that the network reads: prompts, then one token of every response."""
    made, rows = learner(rlhf.RLOO, group_size=3), []
    step = lm_adapter.step

    def counted(causal_lm, token_ids, cache, index):
        rows.append(tuple(token_ids.shape))
        return step(causal_lm, token_ids, cache, index)

    monkeypatch.setattr(lm_adapter, "step", counted)
    made.collect(BATCH)
    assert rows[0] == BATCH["token_ids"].shape
    assert set(rows[1:]) == {(3 * 4, 1)}


def test_a_group_is_the_prompt_repeated():
    """It shares the prompt's forward pass and samples what repeated prompts would sample."""
    grouped = learner(rlhf.PPO).collect(BATCH)
    repeated = learner(rlhf.PPO, group_size=1).collect(
        {name: np.repeat(x, 2, axis=0) for name, x in BATCH.items()}
    )
    ours, theirs = helpers.arrays(grouped.rollout), helpers.arrays(repeated.rollout)
    for name in ("token_ids", "response_mask", "padding_mask", "prompt_lengths", "ended"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    for name in ("logprobs", "ref_logprobs", "values", "scores"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    pairs = ours["token_ids"].reshape(len(BATCH["token_ids"]), 2, -1)
    assert (pairs[:, 0] != pairs[:, 1]).any(axis=1).all(), "two responses are two samples"


def test_minibatches_are_of_whole_groups_and_leave_out_what_did_not_end():
    """The others to its prompt are still compared with it (`mask_overlong`)."""
    seen = {}
    for overlong in (False, True):
        made = learner(
            rlhf.RLOO,
            num_minibatches=2,
            mask_overlong=overlong,
            optimizer=keras.optimizers.SGD(0.0),
        )
        seen[overlong] = batches = []
        made.train_step = lambda batch, made=made, batches=batches: (
            batches.append(batch.minibatch) or type(made).train_step(made, batch)
        )
        made.iterate(BATCH)
        ended = made.last.rollout.ended.numpy()
    assert 0 < ended.sum() < len(ended)
    for plain, masked in zip(*seen.values(), strict=True):
        worth = np.abs(plain.advantages).max(axis=1) * np.sign(np.sum(plain.advantages, axis=1))
        assert np.abs(worth).max() > 0.1
        np.testing.assert_allclose(worth[::2], -worth[1::2], atol=1e-5)
        np.testing.assert_array_equal(masked.advantages, plain.advantages)
    kept = [np.asarray(b.response_mask).any(axis=1) for b in seen[True]]
    assert np.sum(kept) == ended.sum()
    assert all(np.asarray(b.response_mask).any(axis=1).all() for b in seen[False])


@pytest.mark.parametrize("algorithm", [rlhf.RLOO, rlhf.GRPO, rlhf.OnlineDPO])
def test_micro_batches_have_the_gradient_of_the_whole(algorithm):
    """The sums are divided by counts over all of them, and groups stay together."""
    _, whole = first_update(learner(algorithm), moved=True)
    _, parts = first_update(learner(algorithm, micro_batches=2), moved=True)
    assert_same_gradients(parts, whole)


@pytest.fixture(scope="module")
def eager():
    """Three iterations of pairs that an update must not divide, eagerly."""
    return trajectories.run(learner(rlhf.OnlineDPO, update_epochs=2, num_minibatches=2))


@pytest.mark.slow
def test_xla_is_eager(eager):
    made = learner(
        rlhf.OnlineDPO, jit_compile=True, update_epochs=2, num_minibatches=2, micro_batches=2
    )
    trajectories.assert_same(trajectories.run(made), eager)


@pytest.mark.slow
def test_two_replicas_are_one(eager):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    made = learner(
        rlhf.OnlineDPO, jit_compile=False, strategy=strategy, update_epochs=2, num_minibatches=2
    )
    trajectories.assert_same(trajectories.run(made), eager)
