"""What options change in an iteration: its end, rows in the loss, temperature, texts, scores."""

import dataclasses

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers.language_modeling import LanguageModeling, TextBatches
from kerasrlhf.trainers.options import PromptPrediction
from kerasrlhf.types import Sampler

BATCH = helpers.prompts([2, 4, 3, 1])
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4, 7, 9))


def make(acting=None, compiled=True, run_eagerly=False, **options):
    options = {"sampler": SAMPLER, "update_epochs": 2, "num_minibatches": 2, **options}
    made = helpers.ppo(helpers.actor() if acting is None else acting, **options)
    if compiled:
        made.compile(keras.optimizers.SGD(0.01), jit_compile=False, run_eagerly=run_eagerly)
    return made


def weights(made):
    return [np.array(v) for v in made.trainable_variables]


def scripted(made, moved=()):
    """What `made` is going to update on; nothing is updated, and `approxkl` is given."""
    seen, changes = [], iter(moved)

    def train_step(batch):
        seen.append(batch)
        logs = dict.fromkeys(("policy/ratio_error", "policy/skipped", "loss/total"), 0.0)
        return {**logs, "policy/approxkl": next(changes, 0.0)}

    made.train_step = train_step
    return seen


@pytest.fixture(scope="module")
def acting():
    return helpers.actor()


@pytest.mark.parametrize(
    ("target", "moved", "expected"),
    [
        (0.2, [0.0, 0.1, 0.1, 0.31, 9.0, 9.0], 4),  # means 0.05 and 0.205
        (0.2, [0.0, 0.1, 0.3, 0.1, 0.3, 0.1], 6),  # exactly 0.2 is not above it
        (0.2, [0.3, 0.3], 2),
        (0.2, [0.0, 0.3, 0.5, 0.0, 9.0, 9.0], 4),  # the whole epoch counts, not its end
        (None, [9.0] * 6, 6),
    ],
)
def test_an_iteration_stops_after_the_epoch_that_goes_too_far(acting, target, moved, expected):
    """And then does not learn from older rollouts either."""
    memory = RolloutMemory(1)
    made = make(acting, run_eagerly=True, update_epochs=3, target_kl=target, memory=memory)
    seen = scripted(made, [0.0] * 6 + moved)
    assert made.iterate(BATCH)["policy/updates"] == 6
    found = made.iterate(BATCH)
    is_far = target is not None and expected in (2, 4)
    assert found["policy/updates"] == len(seen) - 6 == expected + (0 if is_far else 6)
    assert found["policy/approxkl"] == pytest.approx(np.mean(moved[:expected]))


def test_responses_without_a_stop_token_are_not_in_the_loss(acting):
    seen = {}
    for mask_overlong in (False, True):
        made = make(acting, run_eagerly=True, mask_overlong=mask_overlong, num_minibatches=1)
        batches = scripted(made)
        made.iterate(BATCH)
        minibatch = batches[0].minibatch
        order = np.argsort(np.array(minibatch.prompt_lengths))
        fields = ("response_mask", "advantages")
        seen[mask_overlong] = [np.array(getattr(minibatch, name))[order] for name in fields]
    rollout = made.last.rollout
    order = np.argsort(np.array(rollout.prompt_lengths))
    inside, ended = (np.array(x)[order] for x in (rollout.response_mask, rollout.ended))
    assert 0 < ended.sum() < len(ended)
    np.testing.assert_array_equal(seen[False][0], inside)
    np.testing.assert_array_equal(seen[True][0], inside & ended[:, None])
    np.testing.assert_array_equal(seen[True][1], seen[False][1])
    with pytest.raises(ValueError, match=r"`mask_overlong` .* no stop tokens"):
        make(acting, False, mask_overlong=True, sampler=Sampler(length=4))


def ramp(iteration):
    return (0.8, 1.5, 0.0)[iteration]


def test_the_temperature_follows_its_schedule():
    plain = make(run_eagerly=True)
    sampler = dataclasses.replace(SAMPLER, temperature=ramp)
    made = make(run_eagerly=True, sampler=sampler)
    plain.iterate(BATCH)
    made.iterate(BATCH)
    for ours, theirs in zip(weights(made), weights(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    rollout = made.collect(BATCH).rollout
    window = rollout.token_ids, rollout.padding_mask, rollout.prompt_lengths, 4
    inside = rollout.response_mask.numpy()
    expected = made.actor.token_stats(*window, temperature=1.5).logprobs
    np.testing.assert_allclose(rollout.logprobs, np.where(inside, expected, 0), atol=1e-5)
    expected = made.reference.logprobs(*window, 1.5)
    np.testing.assert_allclose(rollout.ref_logprobs, np.where(inside, expected, 0), atol=1e-5)
    assert made.iterate(BATCH)["policy/ratio_error"] < 1e-5
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        made.iterate(BATCH)


def numbered(count=12):
    """Batches of text, the k-th of which is token k over and over; some tokens do not count."""
    ids = np.repeat(np.arange(count, dtype="int32")[:, None, None], 4, axis=1).repeat(6, axis=2)
    counted = np.broadcast_to(np.arange(6) < np.arange(1, 5)[:, None], ids.shape)
    inputs = {"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)}
    return tf.data.Dataset.from_tensor_slices((inputs, ids, counted.astype("float32")))


def cross_entropy(made, token):
    """In nats per counted token: 1, 2, 3 and 4 of the four rows."""
    ids = np.full((4, 6), token)
    inputs = {"token_ids": ids, "padding_mask": np.ones((4, 6), bool)}
    logprobs = tf.nn.log_softmax(made.actor(inputs)["logits"])[..., token]
    return -tf.reduce_sum(logprobs * (np.arange(6) < np.arange(1, 5)[:, None])) / 10


def test_steps_of_language_modeling_come_every_so_many_iterations():
    made = make(texts=LanguageModeling(numbered(), every=2, steps=3), vf_coef=0.0)
    updated, original = [], made.train_step

    def train_step(batch):
        assert batch.text is None
        logs = original(batch)
        updated.append(weights(made))
        return logs

    made.train_step = train_step
    steps, logs, tokens = [], [], iter(range(6))
    for iteration in range(4):
        logs.append(made.iterate(BATCH))
        steps.append(int(made.optimizer.iterations.numpy()))
        if iteration % 2:
            check_text_steps(made, updated[-1], [next(tokens) for _ in range(3)], logs[-1])
        else:
            for ours, theirs in zip(weights(made), updated[-1], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert steps == [4, 11, 15, 22] == [made.updates_in(n) for n in range(1, 5)]
    assert ["loss/lm" in x for x in logs] == [False, True, False, True]


def check_text_steps(made, before, tokens, logs):
    """The last steps of `made` were those of SGD on the texts of these tokens, in order."""
    start, after, losses = before, weights(made), []
    for token in tokens:
        assign(made, before)
        losses.append(float(cross_entropy(made, token)))
        found = tiny.gradients_of(lambda t=token: cross_entropy(made, t), made.trainable_variables)
        before = [w - 0.01 * g for w, g in zip(before, found, strict=True)]
    steps, expected = (
        [(a - b) / 0.01 for a, b in zip(start, x, strict=True)] for x in (after, before)
    )
    tiny.assert_close(steps, expected, atol=1e-4)
    assert logs["loss/lm"] == pytest.approx(np.mean(losses), rel=1e-4)
    assign(made, after)


def assign(made, values):
    for variable, value in zip(made.trainable_variables, values, strict=True):
        variable.assign(value)


def test_passing_over_iterations_takes_the_texts_that_they_took(acting):
    """Two updates with text each, and three texts more after every second iteration."""
    for done, following in ((1, 2), (2, 7), (3, 9), (4, 2)):
        texts = LanguageModeling(numbered(), coef=0.5, every=2, steps=3)
        made = make(acting, run_eagerly=True, num_minibatches=1, texts=texts)
        seen = scripted(made)
        for iteration in range(done):
            made.pass_over(iteration)
        made.iterate(BATCH)
        tokens = [int(batch.text.targets[0, 0]) for batch in seen]
        assert tokens == [following, following + 1]


def test_a_text_of_an_update_is_a_term_of_the_loss(acting):
    made = make(acting, False, texts=LanguageModeling(numbered(), coef=0.5))
    (text,) = TextBatches(made.texts, acting.limits()).next(1, micro_batches=1, replicas=1)
    minibatch = tiny.experience(acting)
    plain, logs = tiny.gradients(made, minibatch)
    found, sums = tiny.gradients(made, minibatch, text)
    alone, loss = made.update_step().text_gradients(text)
    for with_text, without, of_text in zip(found, plain, alone, strict=True):
        np.testing.assert_allclose(with_text - without, 0.5 * of_text, atol=2e-5)
    assert sums["loss/ptx"] == pytest.approx(float(loss["loss/ptx"]), rel=1e-6)
    assert sums["loss/ptx"] == pytest.approx(float(cross_entropy(made, 0)), rel=1e-4)
    total = logs["loss/total"] + 0.5 * sums["loss/ptx"]
    assert sums["loss/total"] == pytest.approx(total, rel=1e-5)


def test_where_training_and_sampling_agree_the_cap_has_no_effect(acting):
    made = make(acting, run_eagerly=True, importance_cap=5.0)
    rollout = made.collect(BATCH).rollout
    found, plain = made.estimate(rollout), make(acting, False).estimate(rollout)
    np.testing.assert_allclose(found.advantages, plain.advantages, atol=1e-5)
    found = helpers.arrays(rollout)
    np.testing.assert_allclose(found["logprobs"], found["behavior_logprobs"], atol=1e-5)


def test_a_sampler_that_disagrees_is_corrected(monkeypatch):
    """It reports half a nat too much: weights `exp(-0.5)`, and training sees its own numbers."""
    original = ActorCritic.sample

    def sample(self, *args):
        sampled = original(self, *args)
        shifted = sampled.logprobs + tf.where(sampled.response_mask, 0.5, 0.0)
        return sampled._replace(logprobs=shifted, behavior_logprobs=shifted)

    monkeypatch.setattr(ActorCritic, "sample", sample)
    made = make(run_eagerly=True, importance_cap=5.0)
    assert made.iterate(BATCH)["policy/ratio_error"] < 1e-5
    rollout = made.collect(BATCH).rollout
    found = made.estimate(rollout).advantages
    agreeing = made.estimate(rollout._replace(behavior_logprobs=rollout.logprobs)).advantages
    np.testing.assert_allclose(found, np.exp(-0.5) * agreeing, rtol=1e-3, atol=1e-5)
    with pytest.warns(RuntimeWarning, match="must see the policy that sampled"):
        make(run_eagerly=True).iterate(BATCH)


def test_the_prompt_reward_is_the_log_probability_of_the_prompt_given_the_response():
    plain = make(run_eagerly=True)
    made = make(run_eagerly=True, prompt_prediction=PromptPrediction(reward=0.5))
    before, after = plain.collect(BATCH), made.collect(BATCH)
    rollout = after.rollout
    ids, inside = rollout.token_ids.numpy(), rollout.response_mask.numpy()
    rows, sizes = np.zeros_like(ids), inside.sum(axis=1)
    lengths = BATCH["padding_mask"].sum(axis=1)
    for row, (start, size) in enumerate(zip(lengths, sizes, strict=True)):
        rows[row, : start + size] = [*ids[row, start : start + size], *ids[row, :start]]
    read = made.actor.token_stats(rows, rollout.padding_mask, sizes, helpers.COLUMNS, 1.0).logprobs
    for row, (start, size) in enumerate(zip(lengths, sizes, strict=True)):
        expected = before.raw_scores[row] + 0.5 * np.array(read)[row, size : size + start].mean()
        assert after.raw_scores[row] == pytest.approx(expected, rel=1e-4)
    assert np.abs(after.raw_scores - before.raw_scores).min() > 0.01


def test_scores_are_divided_by_the_running_standard_deviation_of_the_run(tmp_path):
    shaping = RewardShaping(running_scale=True)
    made = make(run_eagerly=True, shaping=shaping, update_epochs=1, num_minibatches=1)
    so_far = []
    for seed in range(3):
        made.iterate(helpers.prompts([2, 4, 3, 1], seed=seed))
        so_far += made.last.raw_scores.tolist()
        expected = made.last.raw_scores / np.std(so_far)
        np.testing.assert_allclose(made.last.rollout.scores, expected, rtol=1e-5)
    moments = np.array(made.score_moments)
    squares = np.var(so_far) * 12
    np.testing.assert_allclose(moments, [12, np.mean(so_far), squares], rtol=1e-5)
    validated = made.collect(BATCH)
    np.testing.assert_allclose(validated.scores, validated.raw_scores / np.std(so_far), rtol=1e-5)
    np.testing.assert_array_equal(made.score_moments, moments)
    assert any(v is made.score_moments for v in made.variables), "`Resume` saves these"
    made.save_weights(tmp_path / "run.weights.h5")
    made.score_moments.assign(np.zeros(3))
    made.load_weights(tmp_path / "run.weights.h5")
    np.testing.assert_array_equal(made.score_moments, moments)
