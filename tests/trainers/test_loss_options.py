"""What options put into the loss, against derivatives by hand: KL, weights, entropy, reversal."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tiny import ADVANTAGES, IDS, MASK, NOISE, PADDING, PROMPT_LENGTHS, SIZES

from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL
from kerasrlhf.trainers.language_modeling import LanguageModeling
from kerasrlhf.trainers.options import PromptPrediction
from kerasrlhf.trainers.rloo import RLOO
from kerasrlhf.types import Sampler

WEIGHTS = {
    "token": np.full(MASK.shape, 1 / 10),
    "sequence": np.repeat(1 / (4 * SIZES)[:, None], MASK.shape[1], axis=1),
    "fixed": np.full(MASK.shape, 1 / (4 * 4)),
}


@pytest.fixture(scope="module")
def acting():
    return helpers.actor()


@pytest.fixture(scope="module")
def make(acting):
    """A trainer whose own loss is `-advantage * ratio`, with the gradient `-advantage`."""

    def made(**options):
        options = {"loss_reduction": "token", "group_size": 2, **options}
        options = {"sampler": tiny.SAMPLER, "kl": FixedKL(0.3), **options}
        return RLOO(acting, helpers.token_reward, **options)

    return made


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("reduction", [*WEIGHTS])
def test_tokens_are_weighted_as_asked(acting, make, reduction, micro_batches):
    made = make(loss_reduction=reduction, micro_batches=micro_batches)
    found, sums = tiny.gradients(made, tiny.experience(acting))
    tiny.assert_close(found, tiny.of_logprobs(acting, -ADVANTAGES * WEIGHTS[reduction]))
    total = -(ADVANTAGES * WEIGHTS[reduction])[MASK].sum()
    assert sums["loss/total"] == pytest.approx(total, abs=1e-5)
    assert sums["loss/policy"] == pytest.approx(-ADVANTAGES[MASK].mean(), abs=1e-5)


@pytest.mark.parametrize("reduction", [*WEIGHTS])
def test_two_replicas_weigh_as_one(acting, reduction):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = helpers.actor()
        made = RLOO(
            mirrored,
            helpers.token_reward,
            sampler=tiny.SAMPLER,
            kl=FixedKL(0.3),
            group_size=2,
            loss_reduction=reduction,
        )
        made.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    before = [np.array(v) for v in mirrored.trainable_variables]
    made.train_step(tiny.update_batch(made, tiny.experience(acting)))
    after = [np.array(v) for v in mirrored.trainable_variables]
    steps = [a - b for a, b in zip(before, after, strict=True)]
    tiny.assert_close(steps, tiny.of_logprobs(acting, -ADVANTAGES * WEIGHTS[reduction]))


# Value and slope of each estimator at d = logprobs - ref_logprobs.
ESTIMATORS = {
    "k2": lambda d: (d**2 / 2, d),
    "k3": lambda d: (np.exp(-d) - 1 + d, 1 - np.exp(-d)),
}


@pytest.mark.parametrize("name", [None, "k2", "k3"])
def test_the_kl_in_the_loss(acting, make, name):
    made = make(kl=FixedKL(0.3, place="loss", estimator=name))
    weights = (0.3 * np.exp(ADVANTAGES)).astype("float32")
    found, sums = tiny.gradients(made, tiny.experience(acting, kl_weights=weights))
    value, slope = ESTIMATORS[name or "k2"](NOISE.astype("float64"))
    tiny.assert_close(found, tiny.of_logprobs(acting, (weights * slope - ADVANTAGES) / 10))
    assert sums["loss/kl"] == pytest.approx((weights * value)[MASK].mean(), abs=1e-5)
    total = (weights * value - ADVANTAGES)[MASK].mean()
    assert sums["loss/total"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("name", [None, "k1", "k2", "k3"])
def test_the_kl_in_the_reward_is_not_in_the_loss(acting, make, name):
    rollout, d = tiny.rollout(acting), NOISE.astype("float64")
    estimates = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}
    expected = tiny.inside(-0.3 * estimates[name or "k1"])
    expected[np.arange(4), PROMPT_LENGTHS + SIZES - 1] += rollout.scores
    made = make(kl=FixedKL(0.3, estimator=name))
    np.testing.assert_allclose(made.rewards(rollout), expected, atol=1e-5)
    assert made.estimate(rollout).kl_weights is None


def test_the_kl_in_the_loss_is_not_in_the_reward(acting, make):
    rollout, made = tiny.rollout(acting), make(kl=FixedKL(0.3, place="loss"))
    expected = np.zeros(MASK.shape)
    expected[np.arange(4), PROMPT_LENGTHS + SIZES - 1] = rollout.scores
    np.testing.assert_array_equal(made.rewards(rollout), expected)
    np.testing.assert_allclose(made.estimate(rollout).kl_weights, np.full(MASK.shape, 0.3))


def entropy(acting):
    """Of the whole distributions, float32 `(batch, length)`, at the tokens that they chose."""
    logits = acting({"token_ids": IDS, "padding_mask": PADDING})["logits"] / 0.8
    logprobs = tf.nn.log_softmax(logits)
    each = -tf.reduce_sum(tf.exp(logprobs) * logprobs, axis=-1)
    return tf.where(MASK, tf.pad(each[:, :-1], [[0, 0], [1, 0]]), 0.0)


def test_the_entropy_bonus_is_the_gradient_of_the_entropy(acting, make):
    minibatch = tiny.experience(acting)
    minibatch = minibatch._replace(advantages=np.zeros_like(ADVANTAGES))
    nothing, plain = tiny.gradients(make(), minibatch)
    found, sums = tiny.gradients(make(entropy_coef=0.5), minibatch)
    bonus = tiny.gradients_of(
        lambda: -0.5 * tf.reduce_sum(entropy(acting)) / 10, acting.trainable_variables
    )
    tiny.assert_close(found, bonus)
    assert not any(x.any() for x in nothing)
    mean = np.array(entropy(acting))[MASK].mean()
    assert sums["policy/entropy"] == pytest.approx(mean, rel=1e-4)
    assert plain["policy/entropy"] == pytest.approx(mean, rel=1e-4)
    assert sums["loss/total"] == pytest.approx(-0.5 * mean, rel=1e-4)


def reversed_rows():
    """The response and then the prompt of each row."""
    rows = np.zeros_like(IDS)
    for row, (start, size) in enumerate(zip(PROMPT_LENGTHS, SIZES, strict=True)):
        rows[row, : start + size] = [*IDS[row, start : start + size], *IDS[row, :start]]
    return rows


def test_a_response_that_teaches_nothing_does_not_teach_its_prompt(acting, make):
    """`mask_overlong` leaves no token of it; the others count by their own prompts' tokens."""
    kept = np.arange(len(MASK)) % 2 == 0
    minibatch = tiny.experience(acting)
    minibatch = minibatch._replace(
        advantages=np.zeros_like(ADVANTAGES), response_mask=MASK & kept[:, None]
    )
    prompts = (SIZES[:, None] <= tiny.COLUMN) & PADDING & kept[:, None]

    def expected():
        found = acting.token_stats(reversed_rows(), PADDING, SIZES, helpers.COLUMNS, 1.0)
        return -tf.reduce_sum(tf.where(prompts, found.logprobs, 0.0)) / PROMPT_LENGTHS[kept].sum()

    found, sums = tiny.gradients(make(prompt_prediction=PromptPrediction(coef=0.7)), minibatch)
    tiny.assert_close(
        found, tiny.gradients_of(lambda: 0.7 * expected(), acting.trainable_variables)
    )
    assert sums["loss/reverse"] == pytest.approx(float(expected()), rel=1e-4)


def test_the_loss_of_predicting_the_prompt(acting, make):
    prompts = (SIZES[:, None] <= tiny.COLUMN) & PADDING

    def expected():
        found = acting.token_stats(reversed_rows(), PADDING, SIZES, helpers.COLUMNS, 1.0)
        return -tf.reduce_sum(tf.where(prompts, found.logprobs, 0.0)) / PROMPT_LENGTHS.sum()

    minibatch = tiny.experience(acting)
    minibatch = minibatch._replace(advantages=np.zeros_like(ADVANTAGES))
    bonus = tiny.gradients_of(lambda: 0.7 * expected(), acting.trainable_variables)
    for micro_batches in (1, 2):
        made = make(prompt_prediction=PromptPrediction(coef=0.7), micro_batches=micro_batches)
        found, sums = tiny.gradients(made, minibatch)
        tiny.assert_close(found, bonus)
        assert sums["loss/reverse"] == pytest.approx(float(expected()), rel=1e-4)
        assert sums["loss/total"] == pytest.approx(0.7 * float(expected()), rel=1e-4)


BEHAVIOR = NOISE[::-1].copy()


@pytest.mark.parametrize(
    ("cap", "weights"),
    [
        (None, np.ones(MASK.shape)),
        (1.5, np.minimum(np.exp(-BEHAVIOR), 1.5)),
        (100.0, np.exp(-BEHAVIOR)),
    ],
)
def test_importance_weights_multiply_advantages_and_kl(acting, make, cap, weights):
    rollout = tiny.rollout(acting)
    shifted = rollout._replace(behavior_logprobs=rollout.logprobs + BEHAVIOR)
    made = make(kl=FixedKL(0.3, place="loss"), importance_cap=cap)
    found = made.experience(shifted, np.array([1.0, 2.0, -1.0, 0.5], "float32"))
    advantages = np.array([1.0, 2.0, -1.0, 0.5])[:, None] * weights
    np.testing.assert_allclose(found.advantages, tiny.inside(advantages), atol=1e-5)
    np.testing.assert_allclose(
        np.array(found.kl_weights)[MASK], (0.3 * weights)[MASK], rtol=1e-5, atol=1e-6
    )
    agreeing = made.experience(rollout, np.ones(4, "float32"))
    np.testing.assert_allclose(agreeing.advantages, MASK, atol=1e-6)


TEXTS = tf.data.Dataset.from_tensors(({"token_ids": IDS, "padding_mask": PADDING}, IDS, IDS * 1.0))
WRONG = {
    "k1 in the loss": (
        lambda: {"kl": FixedKL(0.3, place="loss", estimator="k1")},
        "k1 in the loss does nothing",
    ),
    "place": (lambda: {"kl": FixedKL(0.3, "advantage")}, '`place` must be "reward" or "loss"'),
    "estimator": (lambda: {"kl": FixedKL(0.3, estimator="k4")}, "`estimator` must be one of"),
    "estimator of another": (
        lambda: {"kl": AdaptiveKL(0.3, 6.0, 100, estimator="k4")},
        "`estimator` must be one of",
    ),
    "loss_reduction": (lambda: {"loss_reduction": "mean"}, "`loss_reduction` must be one of"),
    "entropy_coef": (lambda: {"entropy_coef": -0.1}, "`entropy_coef` must be at least 0"),
    "importance_cap": (lambda: {"importance_cap": 0.0}, "`importance_cap` must be above 0"),
    "target_kl": (lambda: {"target_kl": 0.0}, "`target_kl` must be above 0"),
    "prompt coef": (lambda: PromptPrediction(coef=-1.0), "`coef` must be at least 0"),
    "prompt reward": (lambda: PromptPrediction(reward=-1.0), "`reward` must be at least 0"),
    "prompt nothing": (lambda: PromptPrediction(), "no effect with both weights 0"),
    "prompt number": (
        lambda: {"prompt_prediction": 0.5},
        "`prompt_prediction` must be a PromptPrediction",
    ),
    "no texts": (lambda: LanguageModeling(None, every=1), "`data` of `LanguageModeling` must be"),
    "every": (lambda: LanguageModeling(TEXTS, every=0), "`every` must be at least 1"),
    "steps": (lambda: LanguageModeling(TEXTS, every=1, steps=0), "`steps` must be at least 1"),
    "steps without every": (
        lambda: LanguageModeling(TEXTS, coef=1.0, steps=2),
        "`steps` has no effect without `every`",
    ),
    "texts as a list": (
        lambda: LanguageModeling(["a"], coef=0.1),
        "`data` of `LanguageModeling` must be a dataset",
    ),
    "texts as data": (lambda: {"texts": TEXTS}, "`texts` must be a LanguageModeling"),
    "reuse": (lambda: RolloutMemory(4, reuse=-1), "`reuse` must be at least 0"),
    "memory": (lambda: {"memory": 5}, "`memory` must be a RolloutMemory"),
    "temperature": (lambda: Sampler(length=4, temperature="low"), "`temperature` must be"),
    "group_size": (lambda: {"group_size": 1}, "`group_size` must be at least 2"),
    "repetition_penalty": (
        lambda: RewardShaping(repetition_penalty=-1.0),
        "`repetition_penalty` must be at least 0",
    ),
    "repetition_ngram": (
        lambda: RewardShaping(repetition_penalty=1.0, repetition_ngram=0),
        "`repetition_ngram` must be at least 1",
    ),
    "overlong_buffer": (
        lambda: {"shaping": RewardShaping(overlong_buffer=5)},
        "`overlong_buffer` counts the last tokens.*the sampler's length is 4",
    ),
    "overlong_penalty": (
        lambda: RewardShaping(overlong_buffer=2, overlong_penalty=-1.0),
        "`overlong_penalty` must be at least 0",
    ),
    "shaping": (lambda: {"shaping": {"clip": 1.0}}, "`shaping` must be a RewardShaping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_without_a_meaning_are_refused(make, case):
    """By the object that holds them, or by the trainer."""
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make(**options())


def test_an_unknown_argument_is_refused_with_the_nearest_name(make):
    with pytest.raises(TypeError, match=r"no argument `kl_target`\. Did you mean `target_kl`"):
        make(kl_target=1.0)
