"""Details P2 to P25, of the reproduction over TL;DR (arXiv 2403.17031)."""

import importlib.util
import math
import pathlib
import sys

import helpers
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.types import Rollout, Sampler

RECIPE = pathlib.Path(__file__).parents[2] / "recipes/ppo.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("detail_recipe_ppo", RECIPE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def letters():
    """One token a character; start, end and padding are id 0."""
    characters = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ", "zz"]
    vocabulary = {"<|endoftext|>": 0} | {c: i for i, c in enumerate(characters, 1)}
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["z z"])
    return keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=64)


@pytest.fixture
def reward():
    made = RewardModel(helpers.lm(texts=True))
    helpers.filled(made.score_head, seed=6)
    return made


def test_p2_a_long_prompt_is_cut_where_a_turn_begins(letters):
    """Room for 40 characters: the first turn goes as a whole, the template stays one."""
    turns = ["What is a fox?", "An animal.", "And a hen?"]
    roles = ["user", "assistant", "user"]
    messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]
    kept = "Human: And a hen?\n\nAssistant:"
    with pytest.warns(UserWarning, match="1 prompts were cut at their front"):
        data = rlhf.data.prompts([{"prompt": messages}], letters, 1, max_length=41)
    batch = next(data.as_numpy_iterator())
    assert batch["prompt"].tolist() == [kept.encode()]
    assert batch["padding_mask"].sum() == 1 + len(kept)
    assert data.report.cut_prompts == 1


def test_p3_responses_end_with_the_end_token_and_padding_is_something_else(letters):
    """Even where both have one id: the end token is real and learned, padding neither."""
    records = [{"prompt": "ab", "response": "c"}, {"prompt": "ab", "response": "cdef"}]
    x, y, weight = next(
        rlhf.data.demonstrations(records, letters, 2, shuffle=False).as_numpy_iterator()
    )
    lengths = [1 + 2 + 1 + 1, 1 + 2 + 4 + 1]
    for row, length in enumerate(lengths):
        assert x["padding_mask"][row].tolist() == [True] * length + [False] * (8 - length)
        assert x["token_ids"][row, length - 1] == letters.tokenizer.end_token_id
        assert y[row, length - 2] == letters.tokenizer.end_token_id and weight[row, length - 2]
        assert not weight[row, length - 1 :].any()
    pairs = [{"prompt": "ab", "chosen": "c", "rejected": "cdef"}]
    x, _ = next(rlhf.data.preferences(pairs, letters, 1).as_numpy_iterator())
    assert x["padding_mask"].sum(axis=-1).tolist() == [lengths]


@pytest.mark.parametrize(("whole_row", "learned"), [(False, [3, 4]), (True, [1, 2, 3, 4])])
def test_p9_the_loss_is_on_response_tokens_or_on_the_whole_row(letters, whole_row, learned):
    """Tokens: start, a, b, c, end. The weight of token t stands at t - 1, where it is predicted."""
    record = [{"prompt": "ab", "response": "c"}]
    _, _, weight = next(
        rlhf.data.demonstrations(record, letters, 1, whole_row=whole_row).as_numpy_iterator()
    )
    assert (np.flatnonzero(weight[0]) + 1).tolist() == learned


def test_p11_the_reward_loss_is_minus_log_sigmoid_of_the_difference(reward):
    scores = [[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]]
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(2)), math.log(2)]
    found = rlhf.losses.BradleyTerry(reduction="none")([0, 0, 0], scores)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    reward.compile()
    assert isinstance(reward.loss, rlhf.losses.BradleyTerry)


def test_p12_the_score_is_read_at_the_end_token(reward):
    """A tape finds what the score depends on: the state of the end token and no other."""
    ids = np.array([[0, 3, 4, 0, 9, 9], [0, 3, 4, 5, 6, 0]], "int32")
    mask = np.arange(6)[None] < np.array([[4], [6]])
    hidden = tf.Variable(np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32"))
    with pytest.MonkeyPatch.context() as patch, tf.GradientTape() as tape:
        patch.setattr(lm_adapter, "hidden_states", lambda *args: hidden * 1.0)
        scores = reward({"token_ids": ids, "padding_mask": mask})
    gradient = np.array(tape.gradient(scores, hidden))
    read = np.argwhere(gradient.any(axis=-1)).tolist()
    assert read == [[0, 3], [1, 5]] and (ids[0, 3], ids[1, 5]) == (0, 0)


def test_p13_outputs_at_other_tokens_mean_nothing(reward):
    """They differ from the score, vary from token to token, and nothing behind the end counts."""
    ids = np.array([[0, 3, 4, 5, 6, 0, 9, 9]], "int32")
    mask = np.arange(8)[None] < 6
    hidden = lm_adapter.hidden_states(reward.backbone, ids, mask)
    every_token = np.array(reward.score_head(hidden))[0]
    score = float(reward({"token_ids": ids, "padding_mask": mask})[0])
    assert score == pytest.approx(every_token[5], abs=1e-5)
    assert np.abs(np.delete(every_token, 5) - score).min() > 1e-3
    other = np.where(mask, ids, 17)
    assert float(reward({"token_ids": other, "padding_mask": mask})[0]) == score


def test_p15_reference_responses_score_mean_zero(reward):
    prompts, references = ["ab", "c", "defg"], ["h", "ijk", "lm"]
    before = reward.score(prompts, references)
    gain, bias = reward.normalize(prompts, std=None, responses=references)
    after = reward.score(prompts, references)
    assert gain == 1.0 and bias == pytest.approx(-before.mean(), rel=1e-5)
    assert after.mean() == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(after, before - before.mean(), atol=1e-6)


CHOSEN = np.array([2.0, 1.0, 0.0, 3.0, 5.0, 1.0])
REJECTED = np.array([1.0, 1.0, 4.0, 1.0, 1.0, 1.5])


def test_p16_accuracy_by_group():
    """Leads 1, 0 | -4, 2, 4 | -0.5; a tie is one half. Wilson's interval of 1 of 1 from 0.2065."""
    groups = ["a", "a", "b", "b", "b", "c"]
    found = rlhf.evaluation.accuracy_by_group(CHOSEN, REJECTED, groups)
    assert {name: group[:2] for name, group in found.items()} == {
        "a": (2, 0.75), "b": (3, pytest.approx(2 / 3)), "c": (1, 0.0),
    }  # fmt: skip
    assert found["c"].high == pytest.approx(1.96**2 / (1 + 1.96**2))
    assert rlhf.evaluation.preference_accuracy(CHOSEN, REJECTED).accuracy == pytest.approx(3.5 / 6)
    for bad in ((CHOSEN, REJECTED, groups[:5]), (CHOSEN, REJECTED[:3], groups), ([], [], [])):
        with pytest.raises(ValueError, match="Expected"):
            rlhf.evaluation.accuracy_by_group(*bad)
    with pytest.raises(ValueError, match="must be finite"):
        rlhf.evaluation.preference_accuracy([np.nan], [0.0])


def test_p18_calibration():
    """By size of the lead: 0 and -0.5, then 1 and 2, then -4 and 4."""
    table = rlhf.evaluation.calibration(CHOSEN, REJECTED, bins=3)
    assert [row.difference for row in table] == [0.25, 1.5, 4.0]
    assert [row.accuracy for row in table] == [0.25, 1.0, 0.5]
    assert [row.pairs for row in table] == [2, 2, 2]

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    promised = [(0.5 + sigmoid(0.5)) / 2, (sigmoid(1) + sigmoid(2)) / 2, sigmoid(4)]
    assert [row.promised for row in table] == pytest.approx(promised)
    assert len(rlhf.evaluation.calibration(CHOSEN, REJECTED, bins=50)) == 6


def test_p20_the_published_setting_is_a_preset(recipe):
    options = ["--preset", "tldr", "--prompts", "p.jsonl", "--reward", f"{RECIPE}:brevity"]
    config = rlhf.cli.parse(recipe.Config, options)
    assert 1_000_000 - 512 < config.iterations * config.batch_size <= 1_000_000
    made = recipe.build(config)
    assert config.batch_size == 512 and made.updates_per_iteration == 4
    assert (made.update_epochs, made.num_minibatches) == (4, 1)
    assert (made.gamma, made.lam, made.cliprange, made.cliprange_value) == (1.0, 0.95, 0.2, 0.2)
    assert made.vf_coef == 0.1 and type(made.kl) is rlhf.FixedKL
    assert float(made.kl.coef) == pytest.approx(0.05)
    assert (made.sampler.length, made.sampler.temperature) == (53, 0.7)
    assert float(made.optimizer.learning_rate) == pytest.approx(3e-6)
    assert made.optimizer.epsilon == 1e-5
    updates = config.iterations * 4
    for share in (0.5, 1.0):
        made.optimizer.iterations.assign(round(share * updates))
        assert float(made.optimizer.learning_rate) == pytest.approx(3e-6 * (1 - share), abs=1e-12)
    assert config.missing_end_score == -1.0 and not made.whiten_rewards


def test_p22_the_critic_is_a_network_of_its_own_that_begins_as_the_reward_model(reward):
    reward.gain.assign(0.5)
    reward.bias.assign(-0.25)
    model = helpers.lm(seed=3)
    actor = ActorCritic(model, critic=reward)
    batch = helpers.prompts([6, 4, 1])
    values, scores = np.array(actor(batch)["values"]), np.array(reward(batch))
    np.testing.assert_allclose(values[[0, 1, 2], [5, 3, 0]], scores, atol=1e-5)
    ours = {id(v) for v in actor.trainable_variables}
    assert {id(v) for v in actor.critic.trainable_variables} < ours
    for other in (model.backbone, reward.backbone):
        assert not {id(v) for v in actor.critic.weights} & {id(v) for v in other.weights}
    helpers.filled(model, seed=8)
    np.testing.assert_array_equal(actor(batch)["values"], values)


def test_p23_a_fixed_length_is_sampled_and_cut_after_the_end_token():
    """None found: the score is -1, whatever the reward says; a full row is as long as all."""
    sampler = Sampler(length=8, stop_token_ids=(0, 4, 7))
    shaping = rlhf.RewardShaping(missing_end_score=-1.0)
    made = helpers.ppo(helpers.actor(), sampler=sampler, shaping=shaping)
    made.compile(jit_compile=False)
    collected = made.collect(helpers.prompts([6, 4, 1, 3, 2, 5, 4, 6]))
    rollout = collected.rollout
    lengths, scores = np.sum(rollout.response_mask, axis=1), np.array(rollout.scores)
    assert rollout.token_ids.shape[1] == helpers.COLUMNS + 8
    for row in range(8):
        response = np.array(rollout.token_ids)[row][np.array(rollout.response_mask)[row]]
        ended = response[-1] in sampler.stop_token_ids
        assert not np.isin(response[:-1], sampler.stop_token_ids).any()
        assert ended or lengths[row] == 8
        assert scores[row] == pytest.approx(collected.raw_scores[row] if ended else -1.0)
    assert 0 < np.sum(scores == -1.0) < 8


def estimated(**options):
    """Two rows of two and one tokens without values; scores 1 and 5; the rest is garbage."""
    mask = np.array([[True, True, False], [True, False, False]])
    zeros = np.where(mask, 0.0, 9.0).astype("float32")
    rollout = Rollout(
        mask * 1, mask, mask, np.ones(2, "int32"), np.ones(2, bool), zeros, zeros, -zeros,
        np.array([1.0, 5.0], "float32"), np.float32(1.0),
    )  # fmt: skip
    return helpers.ppo(lam=1.0, **options).estimate(rollout)


def test_p24_reward_whitening_is_an_option_that_is_off():
    """Rewards 0, 1, 5: mean 2, variance 14/3; scaled about their mean, then summed."""
    assert not helpers.ppo().whiten_rewards
    np.testing.assert_allclose(estimated().returns, [[1, 1, 0], [5, 0, 0]], atol=1e-6)
    scale = math.sqrt(3 / 14)
    first, second, third = (2 + (r - 2) * scale for r in (0, 1, 5))
    expected = [[first + second, second, 0], [third, 0, 0]]
    np.testing.assert_allclose(estimated(whiten_rewards=True).returns, expected, rtol=1e-5)


def test_p25_advantage_whitening_is_on_and_masked():
    """Advantages 1, 1, 5: mean 7/3, variance 32/9."""
    assert helpers.ppo().whiten_advantages
    scale = 3 / math.sqrt(32)
    expected = [[-4 / 3 * scale] * 2 + [0], [8 / 3 * scale, 0, 0]]
    np.testing.assert_allclose(estimated().advantages, expected, rtol=1e-5)
    plain = estimated(whiten_advantages=False).advantages
    np.testing.assert_allclose(plain, [[1, 1, 0], [5, 0, 0]], atol=1e-6)
