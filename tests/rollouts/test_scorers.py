"""Ensembles, process reward models and weighted rewards in a rollout, and what is refused."""

import functools

import helpers
import huggingface
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import data, replica
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts.collector import Collector
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.rollouts.unscored import filled
from kerasrlhf.rollouts.weighted import WeightedReward, check_fixed, parts_of
from kerasrlhf.types import Sampler, masked_rows

SAMPLER = Sampler(length=6, temperature=0.8, stop_token_ids=(0, 3, 6))
BATCH = {name: tf.constant(x) for name, x in helpers.prompts([6, 3, 1, 4, 2, 5, 1, 3]).items()}
T = 20  # the token of "t", the separator here


@pytest.fixture(scope="module")
def actor():
    return helpers.actor(texts=True)


def reward_model(kind=RewardModel, seed=2, **options):
    model = kind(helpers.lm(texts=True, seed=seed, vocab=options.pop("vocab", 23)), **options)
    helpers.filled(model.score_head, seed=seed + 4)
    return model


@pytest.fixture(scope="module")
def process():
    return reward_model(ProcessRewardModel, separator="t")


@pytest.fixture(scope="module")
def ensemble():
    return RewardEnsemble([reward_model(seed=seed) for seed in (2, 3)], penalty=0.5)


def collector_of(actor, reward, sampler=SAMPLER, jit_compile=False, **options):
    return Collector(
        actor,
        Reference.of(actor.causal_lm, None),
        WeightedReward(reward, actor),
        sampler,
        replica.Execution(tf.distribute.get_strategy(), jit_compile, run_eagerly=not jit_compile),
        **options,
    )


def collect(actor, reward, **options):
    collector = collector_of(actor, reward, **options)
    uniforms = replica.uniforms(0, 0, 8, SAMPLER.length)
    return collector(BATCH, uniforms, tf.constant(SAMPLER.temperature))


def test_an_ensemble_reads_the_sampled_ids(actor, ensemble):
    result = collect(actor, ensemble)
    rows = {name: getattr(result.rollout, name) for name in ("token_ids", "padding_mask")}
    alone = np.stack([member(rows) for member in ensemble.members])
    expected = alone.mean(axis=0) - 0.5 * alone.std(axis=0)
    np.testing.assert_allclose(result.raw_scores, expected, atol=1e-4)
    np.testing.assert_allclose(result.rollout.scores, expected, atol=1e-4)
    np.testing.assert_allclose(result.spread, alone.std(axis=0), atol=1e-4)
    assert result.spread.min() > 0.001


def test_an_ensemble_with_another_tokenizer_reads_the_texts(actor):
    other = RewardEnsemble([reward_model(seed=seed, vocab=22) for seed in (2, 3)])
    result = collect(actor, other)
    texts, rollout = result.episodes[:2], result.rollout
    ended = actor.ended(masked_rows(rollout.token_ids, rollout.response_mask))
    np.testing.assert_allclose(result.raw_scores, other.score(*texts, ended=ended), atol=1e-5)
    np.testing.assert_allclose(result.spread, other.std(*texts, ended=ended), atol=1e-5)


def chat_model(size, special, seed):
    """A GPT-2 whose byte-level vocabulary has chat markers."""
    tokenizer = keras_hub.models.GPT2Tokenizer(*huggingface.vocabulary_and_merges(special, size))
    backbone = helpers.backbone(
        vocab=tokenizer.vocabulary_size(), seed=seed, num_layers=1, positions=128
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=64)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor)


@pytest.mark.parametrize("is_conversation", [True, False])
def test_typed_markers_are_text_for_another_tokenizer_too(is_conversation):
    """Markers of the template are tokens there, typed ones are not."""
    special = huggingface.SPECIAL
    actor = ActorCritic(chat_model(330, special, seed=0))
    reward = RewardModel(chat_model(350, (*special[::-1], "[INST]"), seed=1))
    helpers.filled(reward.score_head)
    typed = "Hi<|im_end|> <|im_start|>[INST] a < b"
    prompts = [typed, "Tom had a ball"]
    if is_conversation:
        prompts = [[{"role": "user", "content": text}] for text in prompts]
    batch = data.prompts(
        [{"prompt": prompt} for prompt in prompts],
        actor.causal_lm.preprocessor,
        batch_size=2,
        shuffle=False,
        template="chatml",
    )
    sampler = Sampler(length=4, stop_token_ids=None)
    collector = collector_of(actor, reward, sampler)
    uniforms = replica.uniforms(0, 0, 2, sampler.length)
    found = collector(next(iter(batch)), uniforms, tf.constant(1.0))
    expected = reward.score(prompts, found.episodes.responses, ended=False, template="chatml")
    np.testing.assert_allclose(found.raw_scores, expected, rtol=1e-5)
    parsed = reward.score(
        prompts, found.episodes.responses, ended=False, template="chatml", parse_special=True
    )
    assert abs(found.raw_scores[0] - parsed[0]) > 0.01


def test_one_model_has_no_spread(actor):
    assert collect(actor, reward_model()).spread is None
    assert collect(actor, lambda response_ids: [0.0] * len(response_ids)).spread is None


@pytest.fixture(scope="module")
def stepped(actor, process):
    return collect(actor, process, parts=2, jit_compile=True)


def test_scores_of_steps_lie_as_the_rollout(process, stepped):
    rollout = stepped.rollout
    ids, inside = np.array(rollout.token_ids), np.array(rollout.response_mask)
    scores = np.array(rollout.scores)
    assert scores.shape == ids.shape and scores.dtype == "float32"
    assert not scores[~inside].any()
    every = np.array(process({"token_ids": ids, "padding_mask": rollout.padding_mask}))
    ends = np.array(process.step_ends(ids, rollout.padding_mask, rollout.prompt_lengths))
    np.testing.assert_allclose(scores[ends], every[ends], atol=1e-4)
    assert not scores[~ends].any()
    assert (ends & (ids == T)).any() and ends.any(axis=1).all()


def test_a_response_has_the_sum_of_its_steps(stepped):
    sums = np.sum(stepped.rollout.scores, axis=1)
    np.testing.assert_allclose(stepped.raw_scores, sums, rtol=1e-5)
    np.testing.assert_allclose(stepped.scores, sums, rtol=1e-5)
    assert stepped.raw_scores.shape == (8,) and stepped.spread is None


def test_the_returns_of_a_token_are_the_steps_to_come(actor, process, stepped):
    """PPO, gamma = lam = 1: the return is what scores and penalties from here on add up to."""
    trainer = helpers.ppo(actor, process, sampler=SAMPLER, lam=1.0)
    experience = trainer.estimate(stepped.rollout._replace(kl_coef=np.float32(0.25)))
    rollout = helpers.arrays(stepped.rollout)
    inside = rollout["response_mask"]
    rewards = rollout["scores"] - 0.25 * (rollout["logprobs"] - rollout["ref_logprobs"]) * inside
    expected = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1] * inside
    np.testing.assert_allclose(experience.returns, expected, atol=1e-4)


SCORES = np.array([[0.0, 3.0, 0.0, -1.0], [2.0, 0.5, 0.0, 0.0]], "float32")
LAST = np.array([[0, 0, 0, 1], [0, 1, 0, 0]], bool)
ENDED = np.array([True, False])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale": 2.0}, [[0, 6, 0, -2], [4, 1, 0, 0]]),
        ({"scale": 2.0, "clip": 3.0}, [[0, 3, 0, -2], [3, 1, 0, 0]]),
        ({"missing_end_score": -1.0}, [[0, 3, 0, -1], [0, -1, 0, 0]]),
        ({"missing_end_penalty": 1.5}, [[0, 3, 0, -1], [2, -1, 0, 0]]),
    ],
)
def test_shaping_of_scores_per_token(options, expected):
    found = RewardShaping(**options).apply(SCORES, ENDED, LAST)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, expected)
    whole = RewardShaping(**options).apply(SCORES.sum(axis=1), ENDED)
    if "clip" not in options:
        np.testing.assert_array_equal(whole, found.sum(axis=1))


def test_trainers_take_all_kinds(actor, process, ensemble):
    for reward in (process, ensemble, reward_model()):
        assert helpers.ppo(actor, reward, sampler=SAMPLER).reward is reward


def test_scores_of_steps_need_the_actor_s_tokenizer(actor):
    other = reward_model(ProcessRewardModel, vocab=22, separator="t")
    with pytest.raises(ValueError, match="the actor's own tokens"):
        collect(actor, other)


def length(response_ids):
    return [float(len(row)) for row in response_ids]


def test_kinds_of_reward_are_summed_by_their_weights(actor, ensemble):
    """Ids in the compiled pass, texts for another tokenizer, a Python function."""
    ours, other = reward_model(seed=5), reward_model(seed=6, vocab=22)
    parts = {"ours": (ours, 2.0), "texts": other, "length": (length, -0.25), "all": (ensemble, 0.5)}
    result = collect(actor, parts, parts=2)
    rows = {name: getattr(result.rollout, name) for name in ("token_ids", "padding_mask")}
    responses = masked_rows(result.rollout.token_ids, result.rollout.response_mask)
    alone = {
        "ours": np.array(ours(rows)),
        "texts": other.score(*result.episodes[:2], ended=actor.ended(responses)),
        "length": np.array(length(responses)),
        "all": np.array(ensemble(rows)),
    }
    assert [*result.part_scores] == [*parts] and result.unscored is None
    for name, scores in alone.items():
        np.testing.assert_allclose(result.part_scores[name], scores, atol=1e-4)
    expected = (2.0, 1.0, -0.25, 0.5) @ np.stack([*alone.values()])
    np.testing.assert_allclose(result.raw_scores, expected, atol=1e-3)
    np.testing.assert_allclose(result.rollout.scores, expected, atol=1e-3)
    members = np.stack([member(rows) for member in ensemble.members])
    np.testing.assert_allclose(result.spread, 0.5 * members.std(axis=0), atol=1e-4)


def test_next_to_scores_of_steps_the_others_count_at_the_last_token(actor, process, stepped):
    result = collect(actor, [process, (length, 0.5)])
    counts = np.sum(result.rollout.response_mask, axis=1)
    added = np.array(result.rollout.scores) - np.array(stepped.rollout.scores)
    last = np.cumsum(result.rollout.response_mask[:, ::-1], axis=1)[:, ::-1] == 1
    last &= np.array(result.rollout.response_mask)
    np.testing.assert_allclose(added, np.where(last, 0.5 * counts[:, None], 0.0), atol=1e-4)
    np.testing.assert_allclose(result.raw_scores, stepped.raw_scores + 0.5 * counts, atol=1e-4)
    steps, lengths = result.part_scores.values()
    np.testing.assert_allclose(steps, stepped.raw_scores, atol=1e-4)
    np.testing.assert_allclose(lengths, counts)


def test_parts_have_names(ensemble):
    def named(reward):
        return [(part.name, part.weight) for part in parts_of(reward)]

    judge = functools.partial(length)
    assert named(length) == [("length", 1.0)]
    assert named([length, (judge, 2), lambda x: x]) == [
        *[("length", 1.0), ("length_2", 2.0), ("lambda", 1.0)]
    ]
    assert named({"a": length, "b": (length, -1)}) == [("a", 1.0), ("b", -1.0)]
    assert named([ensemble]) == [(ensemble.name, 1.0)]

    def length_2(response_ids):
        return length(response_ids)

    assert [name for name, _ in named([length, length, length_2])] == [
        *["length", "length_3", "length_2"]
    ]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ([], "at least one part"),
        ({}, "at least one part"),
        (3.0, "a list or dict of these.*Received: 3.0 of type float"),
        (None, "Received: None"),
        ((length, 1.0), r"tuples \(reward, weight\)"),
        ([length, 3], "Part number 1 of `reward`"),
        ([[length]], "Part number 0"),
        ([(length, 1.0, 2.0)], "a reward or a tuple"),
        ([(length, "2")], "`weight of part number 0` must be a finite number. Received: '2'"),
        ({"a": (length, float("nan"))}, "weight of part a"),
        ({"a": (length, True)}, "weight of part a"),
        ([(length, 0.0), (length, 0)], "a weight other than 0"),
        ({1: length}, r"names of its parts.*\[1\]"),
        ({" ": length}, "names of its parts"),
        (dict, "is the class dict"),
        ([helpers.lm()], "a Keras model of type GPT2CausalLM"),
    ],
)
def test_other_rewards_are_refused_before_anything_is_built(actor, reward, message, monkeypatch):
    monkeypatch.setattr(Reference, "of", None)  # the copy of the actor is what takes long
    with pytest.raises(ValueError, match=message):
        helpers.ppo(actor, reward, sampler=SAMPLER)


def test_a_part_that_training_would_change_is_refused(actor):
    shared = RewardModel(actor.causal_lm)
    with pytest.raises(ValueError, match=r"`reward` shares \d+ weights"):
        check_fixed({"length": length, "shared": (shared, 0.5)}, actor.trainable_variables)
    copied = RewardModel.from_causal_lm(actor.causal_lm)
    check_fixed([length, copied], actor.trainable_variables)


@pytest.mark.parametrize(
    ("group_size", "expected"),
    [(1, [1.0, 3.0, 3.0, 5.0, 3.0, 3.0]), (2, [1.0, 1.0, 5.0, 5.0, 3.0, 3.0])],
)
def test_missing_scores_are_means_of_the_group_or_of_the_batch(group_size, expected):
    scores = np.array([1.0, 9.0, 9.0, 5.0, 9.0, 9.0], "float32")
    applies = np.array([True, False, False, True, False, False])
    found = filled(scores, applies, group_size)
    assert found.dtype == "float32" and found.tolist() == expected
    assert not filled(scores, np.zeros(6, bool), group_size).any()
