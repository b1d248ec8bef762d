"""Details N10 to N22: temperature, stop tokens, rewards, losses, the KL coefficient, Adam."""

import math

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf.functional import masking, policy_losses, returns, value_losses
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers import update_step
from kerasrlhf.trainers.kl_control import AdaptiveKL
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats

BATCH = helpers.prompts([6, 4, 1, 3, 2, 5, 4, 6])
STOPS = (0, 4, 7, 9, 12)


def small(**options):
    return helpers.actor(**options)


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_n10_one_temperature_divides_every_logit(temperature):
    """Sampled, new and reference log-probabilities against a softmax in NumPy."""
    actor = small()
    reference = Reference.of(actor.causal_lm)
    sampler = Sampler(length=5, temperature=temperature)
    drawn = helpers.draw_eagerly(actor, BATCH, sampler)
    samples = helpers.arrays(drawn)
    ids, mask, inside = (samples[k] for k in ("token_ids", "padding_mask", "response_mask"))
    expected = by_softmax(actor, samples, temperature)
    window = (samples["prompt_lengths"], 5, temperature)
    new = np.where(inside, actor.token_stats(ids, mask, *window).logprobs, 0)
    frozen = np.where(inside, reference.logprobs(ids, mask, *window), 0)
    for found in (samples["logprobs"], new, frozen):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_n10_a_trainer_samples_and_reads_both_networks_at_its_temperature():
    """The cooler, the likelier are the draws; at 0.001 they are the likeliest tokens."""
    for temperature in (0.6, 0.001):
        made = helpers.ppo(small(), sampler=Sampler(length=5, temperature=temperature))
        made.compile(jit_compile=False)
        helpers.filled(made.reference.causal_lm, seed=3)
        rollout = helpers.arrays(made.collect(BATCH).rollout)
        for name, model in (("logprobs", made.actor), ("ref_logprobs", made.reference.causal_lm)):
            expected = by_softmax(model, rollout, temperature)
            np.testing.assert_allclose(rollout[name], expected, rtol=1e-4, atol=1e-4)
    assert rollout["logprobs"].min() > -1e-3 and rollout["ref_logprobs"].min() < -1.0


def by_softmax(model, rows, temperature):
    """Log-probabilities of the response tokens, `(rows, columns)`, by NumPy."""
    logits = model({name: rows[name] for name in ("token_ids", "padding_mask")})
    table = log_softmax((logits["logits"] if isinstance(logits, dict) else logits) / temperature)
    expected = np.zeros(rows["token_ids"].shape)
    for row, t in zip(*np.nonzero(rows["response_mask"]), strict=True):
        expected[row, t] = table[row, t - 1, rows["token_ids"][row, t]]
    return expected


def test_n11_the_value_head_begins_at_zero():
    for critic in (None, helpers.backbone(seed=4)):
        actor = ActorCritic(helpers.lm(), critic=critic)
        assert not np.any(actor.value_head.kernel) and float(actor.value_head.bias) == 0.0
        assert not np.any(actor(BATCH)["values"])


def test_n13_dropout_is_off_in_every_network():
    actor = small(dropout=0.5, critic=helpers.backbone(dropout=0.5))
    reward = RewardModel(helpers.lm(dropout=0.5))
    reference = Reference.of(actor.causal_lm)
    ids, mask = BATCH["token_ids"], BATCH["padding_mask"]
    for read in (
        lambda: np.array(actor(BATCH, training=True)["logits"]),
        lambda: np.array(actor(BATCH, training=True)["values"]),
        lambda: np.array(actor.token_stats(ids, mask).values),
        lambda: np.array(reference.logprobs(ids, mask, np.ones(8, "int32"), 5)),
        lambda: np.array(reward(BATCH, training=True)),
    ):
        np.testing.assert_array_equal(read(), read())
    with_dropout = actor.causal_lm.backbone
    inputs = {"token_ids": ids, "padding_mask": mask.astype("int32")}
    assert np.any(with_dropout(inputs, training=True) != with_dropout(inputs, training=True))


@pytest.mark.parametrize("minimum", [1, 3])
def test_n14_cut_after_the_first_stop_token_from_an_index_on(minimum):
    """The full-length draw with the same random numbers, cut in NumPy, is the oracle."""
    actor = small()
    length = 8
    whole = helpers.arrays(
        helpers.draw_eagerly(actor, BATCH, Sampler(length=length, stop_token_ids=None))
    )
    cut = helpers.draw_eagerly(
        actor, BATCH, Sampler(length=length, stop_token_ids=STOPS, min_length=minimum)
    )
    cut = helpers.arrays(cut)
    counts, passed_over = [], 0
    for row, start in enumerate(whole["prompt_lengths"]):
        response = whole["token_ids"][row, start : start + length].tolist()
        stops = [i for i, t in enumerate(response) if t in STOPS and i + 1 >= minimum]
        counts.append(stops[0] + 1 if stops else length)
        passed_over += sum(t in STOPS for t in response[: minimum - 1])
        assert cut["ended"][row] == bool(stops)
        kept = cut["token_ids"][row][cut["response_mask"][row]].tolist()
        assert kept == response[: counts[-1]]
    assert len(set(counts)) > 2 and (passed_over > 0) == (minimum > 1)


def test_n14_the_reward_model_scores_the_cut_text():
    reward = RewardModel(helpers.lm(seed=2))
    helpers.filled(reward.score_head, seed=6)
    made = helpers.ppo(small(), reward, sampler=Sampler(length=8, stop_token_ids=STOPS))
    made.compile(jit_compile=False)
    rollout = made.collect(BATCH).rollout
    ids, mask = np.array(rollout.token_ids), np.array(rollout.padding_mask)
    assert mask[:, -1].sum() < 8, "some responses end early"
    for row in range(8):
        alone = {
            "token_ids": ids[row : row + 1, mask[row]],
            "padding_mask": mask[row : row + 1, mask[row]],
        }
        assert float(rollout.scores[row]) == pytest.approx(float(reward(alone)[0]), abs=1e-4)


def test_n15_without_a_stop_token_the_score_is_replaced_or_lowered():
    scores, ended = np.array([2.0, 3.0, -4.0]), np.array([True, False, False])
    replaced = RewardShaping(missing_end_score=-1.0).apply(scores, ended)
    lowered = RewardShaping(missing_end_penalty=1.5).apply(scores, ended)
    assert replaced.tolist() == [2.0, -1.0, -1.0] and lowered.tolist() == [2.0, 1.5, -5.5]
    with pytest.raises(ValueError, match="pass one of them"):
        RewardShaping(missing_end_score=-1.0, missing_end_penalty=1.0)
    for shaping in (RewardShaping(missing_end_score=-1.0), RewardShaping(missing_end_penalty=2.0)):
        sampler = Sampler(length=4, stop_token_ids=STOPS)
        made = helpers.ppo(small(), sampler=sampler, shaping=shaping)
        made.compile(jit_compile=False)
        collected = made.collect(BATCH)
        ended = np.array(collected.rollout.ended)
        assert 0 < ended.sum() < 8
        otherwise = -1.0 if shaping.missing_end_score else collected.raw_scores - 2.0
        expected = np.where(ended, collected.raw_scores, otherwise)
        np.testing.assert_allclose(collected.rollout.scores, expected, rtol=1e-6)


def test_n16_gamma_one_lambda_095_and_no_value_after_the_last_token():
    """delta = 1 - 0.25 and 0 + 0.25 - 0.5; advantages 0.75 and -0.25 + 0.95 * 0.75."""
    made = helpers.ppo()
    assert (made.gamma, made.lam) == (1.0, 0.95)
    advantages, targets = returns.gae(
        [[0.0, 1.0, 9.0]], [[0.5, 0.25, 9.0]], [[True, True, False]], made.gamma, made.lam
    )
    np.testing.assert_allclose(advantages, [[0.4625, 0.75, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(targets, [[0.9625, 1.0, 0.0]], rtol=1e-6)


def test_n17_four_epochs_each_a_fresh_permutation():
    made = helpers.ppo(num_minibatches=2)
    assert made.update_epochs == 4 and made.updates_per_iteration == 8
    order = update_step.permutations(0, 0, rows=16, update_epochs=4, num_minibatches=2)
    epochs = order.reshape(4, 16)
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    following = update_step.permutations(0, 1, rows=16, update_epochs=4, num_minibatches=2)
    assert (following != order).any()
    made.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    seen, read, step = [], [], made.train_step
    made.train_step = lambda update: (
        seen.extend(np.array(update.minibatch.token_ids)) or step(update)
    )
    for _ in range(2):
        made.iterate(BATCH)
        rows = np.array(made.last.rollout.token_ids).tolist()
        read += [rows.index(ids.tolist()) for ids in seen]
        seen.clear()
    read = np.reshape(read, (2 * 4, 8))
    assert all(sorted(epoch) == list(range(8)) for epoch in read.tolist())
    assert len({tuple(epoch) for epoch in read.tolist()}) == 8


def test_n18_score_stands_on_the_end_token():
    """Not on the padding behind it; KL is charged on every token, the end token too."""
    rewards = returns.token_rewards(
        scores=[5.0, -2.0],
        logprobs=[[0.0, -1.0, -2.0, 0.0], [0.0, -1.0, -1.0, -3.0]],
        ref_logprobs=[[0.0, -2.0, -1.5, 7.0], [0.0, -1.0, -2.0, -1.0]],
        mask=[[False, True, True, False], [False, True, True, True]],
        kl_coef=0.5,
    )
    np.testing.assert_allclose(rewards, [[0, -0.5, 5.25, 0], [0, 0, -0.5, -1.0]])
    mask = np.array([[False, True, True, False], [False, True, True, True]])
    scored = rollout(np.array([5.0, -2.0], "float32"), np.zeros((2, 4), "float32"), mask)._replace(
        logprobs=np.array([[0, -1, -2, 0], [0, -1, -1, -3]], "float32"),
        ref_logprobs=np.array([[0, -2, -1.5, 7], [0, -1, -2, -1]], "float32"),
        kl_coef=np.float32(0.5),
    )
    np.testing.assert_allclose(helpers.ppo().rewards(scored), rewards)


def rollout(rewards, values, mask):
    """A rollout without KL whose only reward is the score."""
    zeros = np.zeros_like(values)
    lengths = np.ones(len(mask), "int32")
    return Rollout(
        zeros.astype("int32"),
        mask,
        mask,
        lengths,
        lengths > 0,
        zeros,
        values,
        zeros,
        rewards,
        np.float32(0.0),
    )


def test_n19_whitening_and_returns_from_before_it():
    """Values 0 and 4: mean 2, population variance 4."""
    mask = np.array([[True, True, False]])
    white = np.array(masking.whiten([[0.0, 4.0, 50.0]], mask))
    np.testing.assert_allclose(white, [[-1.0, 1.0, 0.0]], rtol=1e-6)
    kept = np.array(masking.whiten([[0.0, 4.0, 50.0]], mask, center=False))
    np.testing.assert_allclose(kept, [[1.0, 3.0, 0.0]], rtol=1e-6)
    # Variance 1e-8 and the epsilon of as much: 1e-4 / sqrt(2e-8).
    faint = np.array(masking.whiten([[0.0, 2e-4, 1.0]], mask))
    np.testing.assert_allclose(faint, [[-math.sqrt(0.5), math.sqrt(0.5), 0.0]], rtol=1e-4)
    # Score 3 on the second token, values 1 and 2, lam 1: advantages 2 and 1, returns 3 and 3.
    scored = rollout(np.array([3.0], "float32"), np.array([[1, 2, 9]], "float32"), mask)
    found = helpers.ppo(lam=1.0).estimate(scored)
    np.testing.assert_allclose(found.returns, [[3.0, 3.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found.advantages, [[1.0, -1.0, 0.0]], rtol=1e-6)


def test_n20_clipped_losses_and_their_weights():
    """Ratios 1.5 and 0.5 with advantages of both signs; a value that moved by 1."""
    ratios, advantages = [1.5, 1.5, 0.5, 0.5], [2.0, -2.0, 2.0, -2.0]
    loss, _ = policy_losses.clipped_policy_loss(
        [[math.log(r) for r in ratios]], [[0.0] * 4], [advantages], 0.2
    )
    np.testing.assert_allclose(loss, [[-2.4, 3.0, -1.0, 1.6]], rtol=1e-6)
    # V 1, old V 0, R 0: max(1, 0.2^2) / 2. V 1, old V 0, R 1: max(0, (0.2 - 1)^2) / 2.
    loss, _ = value_losses.clipped_value_loss([[1.0, 1.0]], [[0.0, 0.0]], [[0.0, 1.0]], 0.2)
    np.testing.assert_allclose(loss, [[0.5, 0.32]], rtol=1e-6)
    made = helpers.ppo()
    assert (made.cliprange, made.cliprange_value, made.vf_coef) == (0.2, 0.2, 0.1)
    one, zero = np.ones((1, 1), "float32"), np.zeros((1, 1), "float32")
    batch = Experience(zero, one, one, one[0], zero, zero, zero, 2 * one, one)
    stats = TokenStats(math.log(1.5) * one, zero, one)
    total, _ = made.objective(stats, batch)
    assert float(total[0, 0]) == pytest.approx(-2.4 + 0.1 * 0.32, rel=1e-6)


@pytest.mark.parametrize(
    ("kl", "factor"), [(60.0, 1.01024), (6.6, 1.00512), (6.0, 1.0), (5.4, 0.99488), (0.0, 0.98976)]
)
def test_n21_the_adaptive_coefficient_by_hand(kl, factor):
    """error * 512 / 10,000 with the error cut to 0.2: at most 0.01024."""
    control = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    control.update(kl, episodes=512)
    assert float(control.coef) == pytest.approx(0.15 * factor, rel=1e-6)


ADAM_GRADIENT, ADAM_EPSILON = 1e-5, 1e-5


def first_step(optimizer):
    """How far the first update moves a variable, in learning rates."""
    variable = keras.Variable(0.0)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(ADAM_GRADIENT)], [variable])
    return -float(variable) / float(optimizer.learning_rate)


def test_n22_adam_in_tensorflow_s_form_with_epsilon_1e5():
    """m = 0.1 g and v = 0.001 g^2 after one step, with a gradient as small as epsilon.

    TensorFlow: lr sqrt(0.001) / 0.1 * m / (sqrt(v) + eps) = lr g / (g + eps / sqrt(0.001)),
    1 / 32.62 of a step. PyTorch: lr (m / 0.1) / (sqrt(v / 0.001) + eps) = lr / 2.
    """
    tensorflow = 1 / (1 + 1 / math.sqrt(0.001))
    made = helpers.ppo(small())
    made.compile(None)
    assert made.optimizer.epsilon == ADAM_EPSILON
    for optimizer in (
        keras.optimizers.Adam(0.5, epsilon=ADAM_EPSILON),
        type(made.optimizer).from_config(made.optimizer.get_config()),
    ):
        assert first_step(optimizer) == pytest.approx(tensorflow, rel=1e-3)
    assert tensorflow == pytest.approx(0.0307, abs=1e-4)
    assert first_step(keras.optimizers.Adam(0.5, epsilon=1e-12)) == pytest.approx(1.0, rel=1e-3)
