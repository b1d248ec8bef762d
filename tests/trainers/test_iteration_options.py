"""What options change in an iteration: its end, the rows that teach, temperature, text, scores."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny import MASK

from kerasrlhf.callbacks import resume
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers import updates
from kerasrlhf.types import Sampler

BATCH = helpers.prompts([2, 4, 3, 1])
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4, 7, 9))


def make(acting=None, compiled=True, **options):
    options = {"sampler": SAMPLER, "update_epochs": 2, "num_minibatches": 2, **options}
    made = helpers.ppo(helpers.actor(num_layers=1) if acting is None else acting, **options)
    if compiled:
        made.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    return made


def weights(made):
    return [np.array(v) for v in made.trainable_variables]


def scripted(made, moved=()):
    """Minibatches that `made` is going to update on; `approxkl` of its updates is given."""
    seen, changes = [], iter(moved)

    def train_step(minibatch, *_):
        seen.append(minibatch)
        logs = dict.fromkeys(("policy/ratio_error", "policy/skipped", "loss/total"), 0.0)
        return {**logs, "policy/approxkl": next(changes, 0.0)}

    made.train_step = train_step
    return seen


@pytest.fixture(scope="module")
def acting():
    return helpers.actor(num_layers=1)


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
    made = make(acting, update_epochs=3, target_kl=target)
    seen = scripted(made, moved)
    found, far = updates.learn(made, tiny.rollout(acting), iteration=0)
    assert len(seen) == expected == found["policy/updates"]
    assert far == (target is not None and expected in (2, 4))
    assert found["policy/approxkl"] == pytest.approx(np.mean(moved[:expected]))


def test_responses_without_a_stop_token_teach_nothing(acting):
    rollout = tiny.rollout(acting)
    seen = {}
    for mask_overlong in (False, True):
        made = make(acting, mask_overlong=mask_overlong, num_minibatches=1)
        batches = scripted(made)
        updates.learn(made, rollout, iteration=0)
        order = np.argsort(np.array(batches[0].prompt_lengths))
        fields = ("response_mask", "advantages")
        seen[mask_overlong] = [np.array(getattr(batches[0], name))[order] for name in fields]
    order = np.argsort(rollout.prompt_lengths)
    np.testing.assert_array_equal(seen[False][0], MASK[order])
    np.testing.assert_array_equal(seen[True][0], (MASK & rollout.ended[:, None])[order])
    np.testing.assert_array_equal(seen[True][1], seen[False][1])
    with pytest.raises(ValueError, match=r"`mask_overlong` .* no stop tokens"):
        make(acting, False, mask_overlong=True, sampler=Sampler(length=4))


def ramp(iteration):
    return (0.8, 1.5)[iteration]


def test_the_temperature_follows_its_schedule():
    plain, made = make(), make(temperature_schedule=ramp)
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
    made.temperature_schedule = lambda iteration: 0.0
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
    made = make(lm_every=2, lm_steps=3, ptx_data=numbered(), vf_coef=0.0)
    taken, original = [], made._parts.learn_text

    def learn_text(*text):
        token = int(text[1][0, 0])
        expected = tiny.gradients_of(lambda: cross_entropy(made, token), made.trainable_variables)
        loss, before = float(cross_entropy(made, token)), weights(made)
        found = original(*text)
        taken.append((token, loss, float(found["loss/ptx"])))
        steps = [a - b for a, b in zip(before, weights(made), strict=True)]
        tiny.assert_close([s / 0.01 for s in steps], expected, atol=1e-4)
        return found

    made._parts.learn_text = learn_text
    steps, logs = [], []
    for _ in range(4):
        logs.append(made.iterate(BATCH))
        steps.append(int(made.optimizer.iterations.numpy()))
    assert steps == [4, 11, 15, 22] == [made.updates_in(n) for n in range(1, 5)]
    assert [token for token, _, _ in taken] == [0, 1, 2, 3, 4, 5]
    for _, expected, found in taken:
        assert found == pytest.approx(expected, rel=1e-4)
    assert ["loss/lm" in x for x in logs] == [False, True, False, True]
    assert logs[1]["loss/lm"] == pytest.approx(np.mean([x[2] for x in taken[:3]]))


def test_passing_over_iterations_reads_the_text_that_they_read(acting):
    """Two updates with text each, and three texts more after every second iteration."""
    options = {"update_epochs": 2, "num_minibatches": 1, "ptx_coef": 0.5}
    for done, following in ((1, 2), (2, 7), (3, 9), (4, 2)):
        made = make(acting, False, **options, lm_every=2, lm_steps=3, ptx_data=numbered())
        for iteration in range(done):
            made.pass_over(iteration)
        (text,) = made._parts.ptx_batches(1, 1, 1)
        assert int(text[1][0, 0]) == following


def test_text_beside_the_updates_is_a_term_of_the_loss(acting):
    made = make(acting, False, ptx_coef=0.5, ptx_data=numbered())
    (text,) = made._parts.ptx_batches(1, 1, 1)
    minibatch = tiny.experience(acting)
    counts = tiny.Counts.of(minibatch, made.loss_reduction, made.sampler.length)
    gradients = tiny.Gradients(made)
    plain, _ = gradients.of_minibatch(minibatch, counts, None, None)
    found, _ = gradients.of_minibatch(minibatch, counts, text, None)
    alone, _ = gradients.of_text(*text)
    for with_text, without, of_text in zip(found, plain, alone, strict=True):
        np.testing.assert_allclose(with_text - without, 0.5 * of_text, atol=2e-5)


def test_where_training_and_sampling_agree_the_cap_is_without_effect(acting):
    made = make(acting, importance_cap=5.0)
    rollout = made.collect(BATCH).rollout
    found, plain = made.estimate(rollout), make(acting, False).estimate(rollout)
    np.testing.assert_allclose(found.advantages, plain.advantages, atol=1e-5)
    drawn = helpers.arrays(rollout)
    np.testing.assert_allclose(drawn["logprobs"], drawn["behavior_logprobs"], atol=1e-5)


def test_a_sampler_that_disagrees_is_corrected(monkeypatch):
    """It reports half a nat too much: weights `exp(-0.5)`, and training sees its own numbers."""
    original = ActorCritic.sample

    def sample(self, *args):
        drawn = original(self, *args)
        shifted = drawn.logprobs + tf.where(drawn.response_mask, 0.5, 0.0)
        return drawn._replace(logprobs=shifted, behavior_logprobs=shifted)

    monkeypatch.setattr(ActorCritic, "sample", sample)
    made = make(importance_cap=5.0)
    assert made.iterate(BATCH)["policy/ratio_error"] < 1e-5
    rollout = made.collect(BATCH).rollout
    found = made.estimate(rollout).advantages
    agreeing = made.estimate(rollout._replace(behavior_logprobs=rollout.logprobs)).advantages
    np.testing.assert_allclose(found, np.exp(-0.5) * agreeing, rtol=1e-3, atol=1e-5)
    with pytest.warns(RuntimeWarning, match="must see the policy that sampled"):
        make().iterate(BATCH)


def test_the_reverse_reward_is_what_the_response_tells_the_reference_of_its_prompt():
    plain, made = make(), make(reverse_reward=0.5)
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


def test_scores_are_divided_by_the_running_deviation_of_the_run(tmp_path):
    made = make(score_running_scale=True, update_epochs=1, num_minibatches=1)
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
    assert any(v is made.score_moments for v in resume._variables(made))
    made.save_weights(tmp_path / "run.weights.h5")
    made.score_moments.assign(np.zeros(3))
    made.load_weights(tmp_path / "run.weights.h5")
    np.testing.assert_array_equal(made.score_moments, moments)
