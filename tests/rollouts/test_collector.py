"""From a prompt batch to a rollout; which network reads what; which rows an update reads."""

import helpers
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf import replica
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts.collector import Collector
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.rollouts.weighted import reward_of
from kerasrlhf.trainers import update_step
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.statistics import reward_statistics
from kerasrlhf.types import Sampler, masked_rows

SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(3, 6))
BATCH = {name: tf.constant(x) for name, x in helpers.prompts([6, 3, 1, 4, 2, 5, 1, 3]).items()}


# To trace what runs once takes longer than to run it.
EXECUTION = replica.Execution(tf.distribute.get_strategy(), run_eagerly=True)
TEMPERATURE = tf.constant(SAMPLER.temperature)


def collect(actor, reward, reference=None, **options):
    reference = Reference.of(actor.causal_lm, reference)
    reward = reward_of(reward, actor)
    collector = Collector(actor, reference, reward, SAMPLER, EXECUTION, **options)
    return collector(BATCH, replica.uniforms(0, 0, 8, SAMPLER.length), TEMPERATURE)


def shaped(acting, reward, **shaping):
    """What a trainer collects with a `RewardShaping`; two of the eight responses end."""
    options = {"sampler": SAMPLER, "kl": FixedKL(0.25), "shaping": RewardShaping(**shaping)}
    trainer = helpers.ppo(acting, reward, **options)
    trainer.compile(run_eagerly=True)
    return trainer.collect(BATCH, index=6)


def half_longer(response_ids):
    return [len(row) + 0.5 for row in response_ids]


@pytest.fixture(scope="module")
def collected():
    """A reward function of ids, a reference and a critic of their own."""
    actor = helpers.actor(critic=helpers.backbone("llama", seed=3))
    reference = helpers.lm(seed=5)
    return actor, reference, collect(actor, half_longer, reference)


def test_reference_and_critic_read_the_responses(collected):
    """N10: the reference at the sampler's temperature too; zero outside the response."""
    actor, reference, result = collected
    rollout = result.rollout
    stats = actor.token_stats(rollout.token_ids, rollout.padding_mask, temperature=0.8)
    ref = helpers.ActorCritic(reference).token_stats(
        rollout.token_ids, rollout.padding_mask, temperature=0.8
    )
    inside = np.array(rollout.response_mask)
    for found, expected in (
        (rollout.logprobs, stats.logprobs),
        (rollout.values, stats.values),
        (rollout.ref_logprobs, ref.logprobs),
    ):
        np.testing.assert_allclose(found, np.where(inside, expected, 0.0), atol=1e-4)
        assert np.all(np.array(found)[inside] != 0)


def test_a_collector_returns_scores_as_they_are(collected):
    _, _, result = collected
    counts = np.sum(result.rollout.response_mask, axis=1)
    np.testing.assert_allclose(result.raw_scores, counts + 0.5)
    np.testing.assert_array_equal(result.rollout.scores, result.raw_scores)
    assert float(result.rollout.kl_coef) == 0.0
    assert {*result.seconds} == {"rollout", "score"}


def test_a_trainer_collects_shaped_scores_and_its_coefficient(collected):
    actor, _, _ = collected
    result = shaped(actor, half_longer, scale=2.0, missing_end_score=-1.0)
    counts = np.sum(result.rollout.response_mask, axis=1)
    ended = np.array(result.rollout.ended)
    assert ended.any() and not ended.all()
    np.testing.assert_allclose(result.raw_scores, counts + 0.5)
    np.testing.assert_allclose(result.rollout.scores, np.where(ended, 2 * counts + 1, -1.0))
    assert float(result.rollout.kl_coef) == 0.25
    assert {*result.seconds} == {"rollout", "score"}


ROWS = {
    "repetition_penalty": lambda row: (
        -0.5 * sum(t in row[:i] for i, t in enumerate(row)) / len(row)
    ),
    "overlong_buffer": lambda row: -2.0 * max(len(row) - 2, 0) / 2,
    "per_token": lambda row: 7.0 / len(row) - 7.0,
}
SHAPINGS = {
    "repetition_penalty": {"repetition_penalty": 0.5, "repetition_ngram": 1},
    "overlong_buffer": {"overlong_buffer": 2, "overlong_penalty": 2.0},
    "per_token": {"per_token": True},
}


@pytest.mark.parametrize("name", SHAPINGS)
def test_shaping_that_counts_tokens_counts_those_of_the_response(collected, name):
    """Behind prompts of other lengths, whose tokens repeat too."""
    actor, _, _ = collected
    result = shaped(actor, lambda response_ids: [7.0] * 8, **SHAPINGS[name])
    mask = np.array(result.rollout.response_mask)
    rows = [list(r) for r in masked_rows(np.array(result.rollout.token_ids), mask)]
    expected = [7.0 + ROWS[name](row) for row in rows]
    assert len({len(row) for row in rows}) > 1 and len(set(expected)) > 1
    np.testing.assert_allclose(result.rollout.scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(result.raw_scores, np.full(8, 7.0))


def test_parts_change_nothing(collected):
    actor, reference, result = collected
    parts = collect(actor, lambda response_ids: [0.0] * 8, reference, parts=2).rollout
    for name in ("token_ids", "ref_logprobs", "values"):
        np.testing.assert_allclose(getattr(parts, name), getattr(result.rollout, name), atol=1e-5)


@pytest.mark.parametrize("same", [True, False])
def test_a_reward_model_reads_ids_of_its_own_tokenizer_and_texts_otherwise(same, monkeypatch):
    """Token in, token out; the policy's ids never reach a model with another tokenizer."""
    actor = helpers.actor(texts=True)
    reward = RewardModel(helpers.lm(texts=True, vocab=23 if same else 20, seed=2))
    helpers.filled(reward.score_head, seed=6)
    texts = []
    original = reward.read_texts

    def read_texts(prompts, responses, ended, parse_special):
        texts.append((prompts, responses, ended.tolist()))
        return original(prompts, responses, ended=ended, parse_special=parse_special)

    monkeypatch.setattr(reward, "read_texts", read_texts)
    result = collect(actor, reward)
    rollout = result.rollout
    if same:
        assert not texts
        expected = reward({"token_ids": rollout.token_ids, "padding_mask": rollout.padding_mask})
    else:
        rows = masked_rows(rollout.token_ids, rollout.response_mask)
        ended = [row[-1] == 0 for row in rows]  # the tokenizer's end, not any stop token
        assert texts == [(result.episodes.prompts, result.episodes.responses, ended)]
        expected = original(*texts[0][:2], ended=ended).scores
    np.testing.assert_allclose(result.raw_scores, expected, atol=1e-4)
    assert np.std(result.raw_scores) > 0.01


def every_third(response_ids):
    return [None if i % 3 else len(row) + 1.0 for i, row in enumerate(response_ids)]


def never(response_ids):
    return [None] * len(response_ids)


def half(response_ids):
    return [0.5] * (len(response_ids) // 2) + [None] * (len(response_ids) // 2)


@pytest.fixture(scope="module")
def rewarded():
    """A function from rewards to the collector of groups of two with them, traced once."""
    actor = helpers.actor()
    reference = Reference.of(actor.causal_lm, None)
    reward = reward_of(never, actor, group_size=2)
    collector = Collector(actor, reference, reward, SAMPLER, EXECUTION)

    def exchange(reward):
        collector.reward = reward_of(reward, actor, group_size=2)
        return collector

    return exchange


UNIFORMS = replica.uniforms(0, 0, 16, SAMPLER.length)


def test_a_response_that_no_reward_applies_to_is_neither_good_nor_bad(rewarded):
    collector = rewarded(every_third)
    with pytest.warns(UserWarning, match="10 of 16 responses have no score: `every_third`"):
        result = collector(BATCH, UNIFORMS, TEMPERATURE)
    lengths = np.sum(result.rollout.response_mask, axis=1) + 1.0
    applies = np.arange(16) % 3 == 0
    np.testing.assert_array_equal(result.unscored, ~applies)
    groups = np.where(applies, lengths, np.nan).reshape(8, 2)
    empty = np.isnan(groups).all(axis=1)
    assert empty.any() and not empty.all()
    means = np.where(empty, lengths[applies].mean(), np.nansum(groups, axis=1))
    expected = np.where(np.isnan(groups), means[:, None], groups).reshape(-1)
    np.testing.assert_allclose(result.raw_scores, expected, rtol=1e-6)
    assert reward_statistics(result) == {"objective/unscored": 10 / 16}
    # The warning appears once: another one would be an error.
    collector(BATCH, UNIFORMS, TEMPERATURE)


def test_parts_that_do_not_apply_add_nothing(rewarded):
    """No warning: another part has a score for every response."""
    parts = {"half": (half, 4.0), "ones": lambda response_ids: [1] * len(response_ids)}
    result = rewarded({**parts, "never": never})(BATCH, UNIFORMS, TEMPERATURE)
    assert result.raw_scores.tolist() == [3.0] * 8 + [1.0] * 8 and result.unscored is None
    assert reward_statistics(result) == {"reward/half": 0.5, "reward/ones": 1.0}


def test_without_any_score_all_are_zero(rewarded):
    """A part of weight 0 is watched only: that it applies is no score."""
    ones = (lambda response_ids: [1] * len(response_ids), 0.0)
    with pytest.warns(UserWarning, match="no score: `never`, `never` returned None"):
        result = rewarded([never, ones, never])(BATCH, UNIFORMS, TEMPERATURE)
    assert not result.raw_scores.any() and result.unscored.all()
    assert reward_statistics(result) == {"reward/lambda": 1.0, "objective/unscored": 1.0}


@pytest.mark.filterwarnings("ignore:.*responses have no score")
@pytest.mark.parametrize("function", [half_longer, every_third, never])
def test_a_function_alone_scores_as_the_only_part_of_a_sum_does(rewarded, function):
    alone, part = (rewarded(x)(BATCH, UNIFORMS, TEMPERATURE) for x in (function, [function]))
    np.testing.assert_array_equal(alone.raw_scores, part.raw_scores)
    assert alone.raw_scores.dtype == part.raw_scores.dtype == "float32"
    np.testing.assert_array_equal(alone.unscored, part.unscored)
    assert alone.part_scores is None and [*part.part_scores] == [function.__name__]


def test_functions_know_the_iteration_and_log(rewarded):
    def logs(response_ids, trainer_state, log_metric, log_extra):
        log_metric("step", trainer_state.global_step)
        log_metric("step", trainer_state.episodes)
        log_extra("length", [len(row) for row in response_ids])
        return [0.0] * len(response_ids)

    result = rewarded(logs)(BATCH, UNIFORMS, TEMPERATURE, iteration=3)
    assert reward_statistics(result) == {"reward/step": (3 + 3 * 16) / 2}
    counts = np.sum(result.rollout.response_mask, axis=1)
    assert result.episodes.columns == {"length": counts.tolist()}
    with pytest.raises(ValueError, match=r"metrics \['step'\], which are names of parts"):
        rewarded({"step": logs})(BATCH, UNIFORMS, TEMPERATURE)


def test_an_epoch_reads_every_row_once():
    """N17: a fresh permutation each epoch."""
    order = update_step.permutations(3, 5, rows=24, update_epochs=4, num_minibatches=6)
    assert order.shape == (24, 4) and order.dtype == "int32"
    epochs = order.reshape(4, 24)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(24))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not any((epoch == np.arange(24)).all() for epoch in epochs)


def test_permutations_follow_seed_and_iteration():
    def order(seed, iteration):
        return update_step.permutations(seed, iteration, 24, 2, 2).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({str(order(s, i)) for s in range(3) for i in range(3)}) == 9


def test_rows_are_taken_from_every_tensor():
    experience = (tf.range(4), tf.reshape(tf.range(8), (4, 2)))
    first, second = update_step.take(experience, np.array([2, 0], "int32"))
    assert first.numpy().tolist() == [2, 0]
    assert second.numpy().tolist() == [[4, 5], [0, 1]]


def test_a_part_that_is_only_logged_decides_nothing():
    """A score per token with weight 0, next to a function that does not apply to all responses."""
    steps = rlhf.ProcessRewardModel.from_causal_lm(helpers.lm(texts=True), separator="a")
    parts = {"steps": (steps, 0.0), "style": lambda responses: [1.0, None, 3.0, None]}
    ppo = helpers.ppo(helpers.actor(texts=True), parts)
    ppo.compile(run_eagerly=True)
    with pytest.warns(UserWarning, match="2 of 4 responses have no score: `lambda`"):
        collected = ppo.collect(helpers.prompts([2, 3, 2, 3]))
    np.testing.assert_allclose(collected.raw_scores, [1.0, 2.0, 3.0, 2.0])
