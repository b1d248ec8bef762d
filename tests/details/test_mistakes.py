"""M1 to M12: mistakes of other systems, each shown not to be made here."""

import math
import string

import helpers
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import tokens
from kerasrlhf.functional import kl, logprobs, masking, policy_losses, returns
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL
from kerasrlhf.types import Sampler, masked_rows

BATCH = helpers.prompts([6, 4, 1, 3, 2, 5, 4, 6])
SAMPLER = Sampler(length=6, stop_token_ids=(0, 4, 7))


def trainer(acting=None, reward=helpers.token_reward, rate=0.05, **options):
    made = helpers.ppo(acting or helpers.actor(), reward, **{"sampler": SAMPLER, **options})
    made.compile(keras.optimizers.SGD(rate), jit_compile=False)
    return made


def test_m1_the_score_stands_on_the_end_token_and_custom_stop_tokens_count():
    """Token 5 ends a response here; the tokenizer's own end token 0 does not."""
    acting = helpers.actor(texts=True)
    sampler = Sampler(length=12, stop_token_ids=(5,))
    made = trainer(acting, sampler=sampler, shaping=RewardShaping(missing_end_score=-9.0))
    rollout = made.collect(helpers.prompts([1, 3, 2, 6] * 8)).rollout
    ids, mask, ended = (np.array(rollout[k]) for k in (0, 2, 4))
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    rows = np.arange(len(ids))
    np.testing.assert_array_equal(ended, ids[rows, last] == 5)
    assert (ids[~ended] == 0).any() and 0 < ended.sum() < len(ids)
    np.testing.assert_array_equal(np.array(rollout.scores) == -9.0, ~ended)
    zeros = np.zeros(mask.shape, "float32")
    rewards = np.array(returns.token_rewards(rollout.scores, zeros, zeros, mask, 0.1))
    np.testing.assert_allclose(rewards[rows, last], rollout.scores)
    rewards[rows, last] = 0.0
    assert not rewards.any()


@pytest.mark.parametrize(
    ("epochs", "parts", "micro", "steps"), [(2, 2, 1, 4), (2, 1, 4, 2), (1, 4, 2, 4), (3, 1, 1, 3)]
)
def test_m2_minibatches_and_epochs_are_optimiser_steps(epochs, parts, micro, steps):
    """Counted by the optimizer itself; micro-batches are no steps."""
    made = trainer(update_epochs=epochs, num_minibatches=parts, micro_batches=micro)
    assert made.updates_per_iteration == steps
    for iteration in (1, 2):
        made.iterate(BATCH)
        assert int(made.optimizer.iterations) == iteration * steps


def gradient(made, experience, rows):
    """What one step of plain descent at rate 1 takes off every weight; weights stay."""
    variables = made.actor.trainable_variables
    before = [np.array(v) for v in variables]
    one = tf.constant(1.0)
    made.train_step(made.update_step().batch(experience, np.array(rows), None, one))
    moved = [b - np.array(v) for b, v in zip(before, variables, strict=True)]
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return np.concatenate([x.ravel() for x in moved])


def test_m3_the_gradient_does_not_depend_on_the_micro_batching():
    """One division by all tokens: rows count by their tokens, not as means of their own."""
    acting = helpers.actor()
    whole, parts = (trainer(acting, rate=1.0, micro_batches=micro) for micro in (1, 4))
    experience = whole.estimate(whole.collect(BATCH).rollout)
    counts = np.sum(experience.response_mask, axis=1)
    assert len(set(counts)) > 2
    expected = gradient(whole, experience, range(8))
    np.testing.assert_allclose(gradient(parts, experience, range(8)), expected, atol=1e-5)
    single = np.stack([gradient(whole, experience, [row]) for row in range(8)])
    by_tokens = np.sum(single * (counts / counts.sum())[:, None], axis=0)
    np.testing.assert_allclose(by_tokens, expected, atol=1e-5)
    assert np.abs(single.mean(axis=0) - expected).max() > 1e-2, "a mean of means differs"


def test_m4_whitening_with_the_mean_moved_has_mean_zero():
    mask = [[True, True, True, False]]
    white = np.array(masking.whiten([[10.0, 12.0, 14.0, 99.0]], mask))[0]
    deviation = math.sqrt(8 / 3)
    np.testing.assert_allclose(white, [-2 / deviation, 0.0, 2 / deviation, 0.0], atol=1e-5)
    kept = np.array(masking.whiten([[10.0, 12.0, 14.0, 99.0]], mask, center=False))[0]
    np.testing.assert_allclose(kept[:3] - white[:3], 12.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_m5_fractional_scores_survive_integer_arrays(dtype):
    zeros = np.zeros((1, 3), dtype)
    rewards = returns.token_rewards([0.75], zeros, zeros, [[0, 1, 1]], kl_coef=0)
    assert rewards.dtype == "float32"
    np.testing.assert_array_equal(rewards, [[0.0, 0.0, 0.75]])
    advantages, _ = returns.gae(rewards, zeros, [[0, 1, 1]], 1.0, 0.5)
    np.testing.assert_array_equal(advantages, [[0.0, 0.375, 0.75]])


def test_m6_the_kl_in_the_reward_has_the_gradient_of_the_reverse_kl():
    """Five tokens, each a response of one token, weighted by its exact probability.

    With k1 the surrogate's gradient is that of KL(p || q). With k3 that of KL(p || q) less that
    of KL(q || p) comes out: where p is near q almost nothing is left.
    """
    generator = np.random.default_rng(3)
    parameters, reference = generator.normal(size=(2, 5))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (parameters, reference))
    log_ratio = np.log(p / q)
    reverse = p * (log_ratio - np.sum(p * log_ratio))  # gradient of KL(p || q), by the softmax
    forward = p - q  # gradient of KL(q || p)

    def surrogate(rewards):
        x = tf.constant(parameters, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            new = tf.nn.log_softmax(x)[:, None]
            loss, _ = policy_losses.clipped_policy_loss(new, np.log(p)[:, None], rewards, 0.2)
            total = tf.reduce_sum(tf.constant(p, tf.float32) * loss[:, 0])
        return np.array(tape.gradient(total, x))

    logs = np.log(p)[:, None], np.log(q)[:, None]
    ours = returns.token_rewards(np.zeros(5), *logs, np.ones((5, 1), bool), kl_coef=1.0)
    np.testing.assert_allclose(surrogate(ours), reverse, atol=1e-6)
    with_k3 = surrogate(-kl.k3(*logs))
    np.testing.assert_allclose(with_k3, reverse - forward, atol=1e-6)
    assert np.abs(with_k3 - reverse).max() > 0.1


def expected_k1(policy, reference, temperature, sampled_at):
    """Exact expectation of k1 at one temperature over tokens sampled at another."""
    ids = np.arange(len(policy))
    new, old = (
        np.array(logprobs.token_logprobs(np.tile(x, (len(x), 1)), ids, temperature))
        for x in (policy, reference)
    )
    probability = np.exp(policy / sampled_at) / np.exp(policy / sampled_at).sum()
    return float(np.sum(probability * np.array(kl.k1(new[None], old[None]))[0]))


def test_m7_the_kl_is_not_negative_because_sampling_and_logprobs_agree():
    """Over exact probabilities: at one temperature never below 0, at two of them often."""
    pairs = np.random.default_rng(0).normal(size=(40, 2, 6)).astype("float32")
    same = [expected_k1(*pair, 0.7, sampled_at=0.7) for pair in pairs]
    mixed = [expected_k1(*pair, 1.0, sampled_at=3.0) for pair in pairs]
    assert min(same) > -1e-6 and max(same) > 0.1
    assert min(mixed) < -0.1
    for options in ({"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="the KL can turn negative"):
            helpers.ppo(sampler=Sampler(length=4, **options))


def test_m7_nor_does_exploration_make_the_kl_negative():
    """Against the KL of the policy's distributions after each beginning that was drawn.

    The controller is told the same number. `collect`, which validation uses, does not explore.
    """
    acting = helpers.actor(stddev=0.6)
    other = helpers.lm(seed=5, stddev=0.01)
    sampler, control = Sampler(length=4, epsilon=0.5), AdaptiveKL(0.1, target=1.0, horizon=1000)
    made = trainer(acting, rate=0.0, sampler=sampler, reference=other, kl=control, vf_coef=0.0)
    statistics = made.iterate(helpers.prompts([6, 4, 1, 3] * 64))
    rollout = made.last.rollout
    inputs = {"token_ids": rollout.token_ids, "padding_mask": rollout.padding_mask}
    p, q = (tf.nn.log_softmax(model(inputs)["logits"]) for model in (acting, ActorCritic(other)))
    exact = tf.reduce_sum(tf.exp(p) * (p - q), axis=-1).numpy()
    inside = np.array(rollout.response_mask)
    expected = np.where(inside[:, 1:], exact[:, :-1], 0.0).sum(axis=1).mean()
    plain = np.array(rollout.logprobs - rollout.ref_logprobs)[inside].sum() / len(inside)
    assert statistics["objective/kl"] == pytest.approx(expected, rel=0.15)
    assert plain < 0.5 * expected
    assert float(control.coef) == pytest.approx(0.1 * (1 + 0.2 * 256 / 1000))
    assert statistics["policy/ratio_error"] < 1e-5
    batch = helpers.prompts([6, 4, 1, 3])
    unexplored = trainer(acting, sampler=Sampler(length=4), reference=other)
    one, two = (x.collect(batch).rollout for x in (made, unexplored))
    np.testing.assert_array_equal(one.token_ids, two.token_ids)
    np.testing.assert_array_equal(one.behavior_logprobs, one.logprobs)


def test_m8_what_was_sampled_is_what_is_trained_on():
    """`a a` and `aa` read alike; only one of them is what a tokenizer would give."""
    seen = []

    def reward(response_ids, responses):
        seen.append((response_ids, responses))
        return [0.0] * len(responses)

    made = trainer(helpers.actor(texts=True, stddev=0.1), reward)
    rollout = made.collect(helpers.prompts([2] * 64)).rollout
    ((ids, texts),) = seen
    again = tokens.tokenize(texts, made.actor.causal_lm.preprocessor)
    without_end = [[t for t in row if t] for row in ids]
    changed = [row for row in range(64) if again[row] != without_end[row]]
    assert changed, "some responses do not survive the way through text"
    experience = made.estimate(rollout)
    kept = masked_rows(experience.token_ids, experience.response_mask)
    assert [list(row) for row in kept] == [list(row) for row in ids]
    stats = made.actor.token_stats(experience.token_ids, experience.padding_mask)
    forced = np.where(experience.response_mask, stats.logprobs, 0.0)
    np.testing.assert_allclose(rollout.logprobs, forced, atol=1e-4)


def test_m9_statistics_are_over_real_tokens_alone():
    """The entropy of the update against one computed from the softmax of the start."""
    made = trainer(update_epochs=1)
    statistics = made.iterate(BATCH)
    rollout = made.last.rollout
    ids, mask, inside = (np.array(rollout[k]) for k in range(3))
    start = helpers.actor()
    logits = np.array(start({"token_ids": ids, "padding_mask": mask})["logits"], "float64")
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    entropy = np.pad(-np.sum(p * np.log(p), axis=-1)[:, :-1], [(0, 0), (1, 0)])
    assert statistics["policy/entropy"] == pytest.approx(entropy[inside].mean(), abs=1e-4)
    assert abs(entropy.mean() - entropy[inside].mean()) > 1e-2
    surprise = np.where(inside, -np.array(rollout.logprobs), 0).sum(axis=1)
    assert statistics["objective/entropy"] == pytest.approx(surprise.mean(), abs=1e-4)


@pytest.mark.parametrize("sampler", [Sampler(4, temperature=0.0), Sampler(4, top_k=1)])
def test_m10_rollouts_without_randomness_are_refused(sampler):
    assert not sampler.matches_policy
    with pytest.raises(ValueError, match="temperature must be above 0"):
        helpers.ppo(sampler=sampler)


def test_m11_the_adaptive_coefficient_moves_and_a_checkpoint_keeps_it(tmp_path):
    """KL 0 in the first iteration, so the factor is 1 - 0.2 * 8 / 16."""
    adaptive, fixed = trainer(kl=AdaptiveKL(0.5, 1.0, horizon=16)), trainer(kl=FixedKL(0.5))
    for made in (adaptive, fixed):
        assert made.iterate(BATCH)["objective/kl_coef"] == pytest.approx(0.5)
    assert float(fixed.kl.coef) == 0.5 and float(adaptive.kl.coef) == pytest.approx(0.45)
    assert adaptive.iterate(BATCH)["objective/kl_coef"] == pytest.approx(0.45)
    # The KL is a sum over each response: near the target its own size decides, not the cut of 0.2.
    target = 1.1 * adaptive.statistics["objective/kl"]
    near = trainer(kl=AdaptiveKL(0.5, target, horizon=16))
    for _ in range(2):
        near.iterate(BATCH)
    rollout = near.last.rollout
    gaps = np.where(rollout.response_mask, rollout.logprobs - rollout.ref_logprobs, 0.0)
    error = gaps.sum(axis=1).mean() / target - 1
    assert -0.2 < error < 0
    assert float(near.kl.coef) == pytest.approx(0.45 * (1 + error * 8 / 16), rel=1e-4)
    adaptive.save_weights(tmp_path / "state.weights.h5")
    fresh = trainer(kl=AdaptiveKL(0.5, 1.0, horizon=16))
    fresh.load_weights(tmp_path / "state.weights.h5")
    assert float(fresh.kl.coef) == float(adaptive.kl.coef) != pytest.approx(0.45)


def test_m12_a_reward_model_with_another_tokenizer_gets_the_texts():
    """Its tokenizer numbers the letters backwards, so the policy's ids would mean other texts."""
    vocabulary = {"<|endoftext|>": 0} | {
        letter: i for i, letter in enumerate(reversed(string.ascii_letters[:21]), 1)
    }
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary | {"aa": 22}, merges=["a a"])
    theirs = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)
    reward = RewardModel(helpers.backbone(seed=2), preprocessor=theirs)
    helpers.filled(reward.score_head, seed=6)
    acting = helpers.actor(texts=True)
    assert not weighted.shares_tokens(reward, acting.causal_lm)
    collected = trainer(acting, reward).collect(BATCH)
    episodes, rollout = collected.episodes, collected.rollout
    ended = acting.ended(masked_rows(rollout.token_ids, rollout.response_mask))
    expected = reward.score(episodes.prompts, episodes.responses, ended=ended)
    np.testing.assert_allclose(rollout.scores, expected, atol=1e-5)
    ids = {"token_ids": rollout.token_ids, "padding_mask": rollout.padding_mask}
    assert np.abs(np.array(reward(ids)) - expected).max() > 0.1
