"""Details N1 to N6: what networks read, positions, sampling, learning rate, seeds."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import replica, tokens
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.types import Rollout, Sampler

BATCH = helpers.prompts([6, 4, 3])


@pytest.fixture(scope="module", params=helpers.FAMILIES)
def acting(request):
    return helpers.actor(request.param)


def values(actor, batch):
    return np.array(actor(batch)["values"])


def test_n1_heads_read_prompt_and_response_and_give_a_number_per_token(acting):
    """Row 0 is a prompt of two tokens and a response of four."""
    before = values(acting, BATCH)
    assert before.shape == BATCH["token_ids"].shape
    prompt = {**BATCH, "token_ids": BATCH["token_ids"].copy()}
    prompt["token_ids"][0, 0] += 1
    moved = np.abs(values(acting, prompt)[0] - before[0])
    assert (moved > 1e-4).all(), "every later state has read the prompt"
    later = {**BATCH, "token_ids": BATCH["token_ids"].copy()}
    later["token_ids"][0, 3] += 1
    moved = np.abs(values(acting, later)[0] - before[0])
    assert (moved[:3] == 0).all() and (moved[3:] > 1e-4).all()


def test_n1_only_selected_positions_are_used():
    mask = np.array([[False, True, True, False]])
    zeros = np.zeros((1, 4), "float32")

    def estimated(outside):
        rollout = Rollout(
            token_ids=zeros.astype("int32"),
            padding_mask=mask,
            response_mask=mask,
            prompt_lengths=np.ones(1, "int32"),
            ended=np.ones(1, bool),
            logprobs=zeros,
            values=np.where(mask, 0.5, outside).astype("float32"),
            ref_logprobs=zeros,
            scores=np.ones(1, "float32"),
            kl_coef=np.float32(0.1),
        )
        return helpers.ppo(whiten_advantages=False).estimate(rollout)

    for outside in (0.0, 1e9, np.inf, np.nan):
        found = estimated(outside)
        # lam 0.95: the last token's 1 - 0.5, and 0.95 times it before; returns add the value 0.5.
        np.testing.assert_allclose(found.advantages, [[0, 0.475, 0.5, 0]], rtol=1e-6)
        np.testing.assert_allclose(found.returns, [[0, 0.975, 1.0, 0]], rtol=1e-6)


def test_n2_padding_is_known_from_masks_and_not_from_a_token_id():
    """Id 0 is start, end and padding at once; only the mask tells what is read."""
    reward = RewardModel(helpers.lm(texts=True))
    helpers.filled(reward.score_head, seed=6)
    tokenizer = reward.preprocessor.tokenizer
    assert tokenizer.end_token_id == tokenizer.pad_token_id == 0
    ids = np.array([[3, 4, 0, 0, 0]], "int32")
    for count in range(1, 6):
        mask = np.arange(5)[None] < count
        alone = {"token_ids": ids[:, :count], "padding_mask": np.ones((1, count), bool)}
        score = float(reward({"token_ids": ids, "padding_mask": mask})[0])
        assert score == pytest.approx(float(reward(alone)[0]), abs=1e-5)
    with_end, without = (
        float(reward({"token_ids": ids, "padding_mask": np.arange(5)[None] < count})[0])
        for count in (3, 2)
    )
    assert abs(with_end - without) > 1e-3, "the end token is a token"


STOPS = (9, 4)


def test_n2_whatever_id_fills_rows_up_samples_and_what_is_read_of_them_are_the_same(monkeypatch):
    """As padding a stop token, a token of the prompts, and another."""
    found = []
    for pad in (STOPS[0], 3, 5):
        monkeypatch.setattr(tokens, "pad_id", lambda preprocessor, pad=pad: pad)
        made = helpers.ppo(
            helpers.actor(texts=True), sampler=Sampler(length=4, stop_token_ids=STOPS)
        )
        made.compile(run_eagerly=True)
        rollout = made.collect(helpers.prompts([6, 4, 3, 1, 2, 5])).rollout
        ids, mask = np.array(rollout.token_ids), np.array(rollout.padding_mask)
        ended = np.array(rollout.ended)
        assert not mask.all() and set(ids[~mask]) == {pad} and 0 < ended.sum() < len(ended)
        found.append([np.where(mask, ids, -1), *map(np.array, rollout._replace(drift=0.0)[1:])])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)


def test_n3_padding_leaves_the_logits_of_real_tokens_equal(acting):
    """Each row alone, without any padding, is the oracle: positions count from its first token."""
    wide = helpers.widened(BATCH, 4)
    logits = np.array(acting(wide)["logits"])
    for row, length in enumerate((6, 4, 3)):
        ids = BATCH["token_ids"][row : row + 1, :length]
        alone = acting({"token_ids": ids, "padding_mask": np.ones((1, length), bool)})["logits"]
        np.testing.assert_allclose(logits[row, :length], alone[0], atol=1e-5)


def test_n4_nothing_filters_by_default_and_training_refuses_filters():
    sampler = Sampler(length=4)
    assert sampler.top_k is None and sampler.top_p is None and sampler.matches_policy
    assert sampler.temperature == 1.0
    for options in ({"top_k": 5}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match="without `top_k` and `top_p`"):
            helpers.ppo(sampler=Sampler(length=4, **options))
    assert helpers.ppo(sampler=Sampler(length=4, top_p=1.0)).sampler.matches_policy


@pytest.mark.parametrize(("epochs", "minibatches"), [(4, 1), (2, 3)])
def test_n5_the_learning_rate_falls_linearly_to_zero(epochs, minibatches):
    """`lr * (1 - iteration / iterations)` at the first update of every iteration."""
    iterations, rate = 10, 3e-3
    made = helpers.ppo(update_epochs=epochs, num_minibatches=minibatches)
    assert made.updates_in(iterations) == iterations * epochs * minibatches
    made.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.PolynomialDecay(
                rate, made.updates_in(iterations), end_learning_rate=0.0
            )
        )
    )
    for iteration in range(iterations + 1):
        made.optimizer.iterations.assign(iteration * epochs * minibatches)
        expected = rate * (1 - iteration / iterations)
        assert float(made.optimizer.learning_rate) == pytest.approx(expected, abs=1e-8)


def test_n6_every_replica_draws_other_numbers():
    """The rows of two replicas that hold the same prompts get numbers of their own."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    actor = helpers.actor()
    prompt = {name: np.repeat(x[:1], 8, axis=0) for name, x in BATCH.items()}
    uniforms = replica.uniforms(seed=1, iteration=0, rows=8, length=6)
    sizes = []

    def seen(numbers):
        sizes.append(numbers.shape[0])
        return numbers

    tf.config.run_functions_eagerly(False)  # replicas share a graph
    whole = replica.rowwise(seen, replica.Execution(strategy, jit_compile=False))(uniforms)
    tf.config.run_functions_eagerly(True)
    np.testing.assert_array_equal(whole, uniforms)
    first, second = np.array(whole[:4]), np.array(whole[4:])
    assert set(sizes) == {4} and not np.isin(first, second).any()
    ids, mask = map(keras.ops.convert_to_tensor, (prompt["token_ids"], prompt["padding_mask"]))
    drawn = np.array(actor.sample(ids, mask, uniforms, Sampler(length=6), 1.0).token_ids)
    assert (drawn[:4] != drawn[4:]).any(axis=1).all()


def test_n6_seed_iteration_and_row_decide():
    """The row within the whole batch is what differs, so one seed serves any number of replicas."""
    numbers = np.array(replica.uniforms(3, 0, 6, 2))
    np.testing.assert_array_equal(numbers[:3], replica.uniforms(3, 0, 3, 2))
    for other in (replica.uniforms(4, 0, 6, 2), replica.uniforms(3, 1, 6, 2)):
        assert not np.isin(np.array(other), numbers).any()
