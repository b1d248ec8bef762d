"""Every option of PPO changes what it says it changes; bad ones are refused before any work."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import masking
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers.dpo import DPO
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.language_modeling import LanguageModeling
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.trainers.update_step import policy_logs
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats

RNG = np.random.default_rng(5)
SHAPE = (4, 7)
MASK = np.array([[1 <= t < end for t in range(7)] for end in (7, 4, 2, 6)])
LOGPROBS, REFERENCE, VALUES, NEW, NEW_VALUES = (
    np.where(MASK, RNG.normal(0, 0.6, SHAPE), 0.0).astype("float32") for _ in range(5)
)
IDS = np.ones((2, 3), "int32")
TEXTS = tf.data.Dataset.from_tensors(({"token_ids": IDS, "padding_mask": IDS > 0}, IDS, IDS * 1.0))
ROLLOUT = Rollout(
    token_ids=np.zeros(SHAPE, "int32"),
    padding_mask=MASK,
    response_mask=MASK,
    prompt_lengths=np.ones(4, "int32"),
    ended=np.ones(4, bool),
    logprobs=LOGPROBS,
    values=VALUES,
    ref_logprobs=REFERENCE,
    scores=np.array([1.0, -0.5, 2.5, 0.25], "float32"),
    kl_coef=np.float32(0.3),
)
STATS = TokenStats(NEW, np.zeros(SHAPE, "float32"), NEW_VALUES)


@pytest.fixture(scope="module")
def acting():
    return helpers.actor()


@pytest.fixture(scope="module")
def make(acting):
    return lambda **options: helpers.ppo(acting, **options)


def loops(gamma, lam, whiten_rewards, whiten_advantages):
    """N16, N18, N19 as the papers print them."""
    rewards = np.where(MASK, -0.3 * (LOGPROBS - REFERENCE), 0.0)
    for row, mask in enumerate(MASK):
        rewards[row, np.flatnonzero(mask)[-1]] += ROLLOUT.scores[row]
    if whiten_rewards:
        rewards = np.where(MASK, rewards / np.sqrt(rewards[MASK].var() + 1e-8), 0.0)
        unmoved = np.where(MASK, -0.3 * (LOGPROBS - REFERENCE), 0.0)
        for row, mask in enumerate(MASK):
            unmoved[row, np.flatnonzero(mask)[-1]] += ROLLOUT.scores[row]
        rewards[MASK] += unmoved[MASK].mean() - rewards[MASK].mean()
    advantages = np.zeros(SHAPE)
    for row in range(4):
        following = running = 0.0
        for t in np.flatnonzero(MASK[row])[::-1]:
            delta = rewards[row, t] + gamma * following - VALUES[row, t]
            running = delta + gamma * lam * running
            advantages[row, t], following = running, VALUES[row, t]
    targets = np.where(MASK, advantages + VALUES, 0.0)
    if whiten_advantages:
        inside = advantages[MASK]
        advantages[MASK] = (inside - inside.mean()) / np.sqrt(inside.var() + 1e-8)
    return advantages, targets


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0.8},
        {"lam": 0.5},
        {"gamma": 0.9, "lam": 0.0},
        {"whiten_rewards": True},
        {"whiten_advantages": False},
        {"whiten_rewards": True, "whiten_advantages": False},
    ],
)
def test_advantages_and_returns_against_loops(make, options):
    defaults = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False, "whiten_advantages": True}
    advantages, targets = loops(**{**defaults, **options})
    experience = make(**options).estimate(ROLLOUT)
    np.testing.assert_allclose(experience.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(experience.returns, targets, rtol=1e-4, atol=1e-5)
    for name in ("token_ids", "response_mask", "prompt_lengths", "logprobs", "values"):
        assert getattr(experience, name) is getattr(ROLLOUT, name)
    if options:
        plain = make().estimate(ROLLOUT)
        assert np.abs(np.array(plain.advantages) - advantages).max() > 1e-2


def test_the_kl_coefficient_of_the_rollout_counts(make):
    free = make().estimate(ROLLOUT._replace(kl_coef=np.float32(0.0)))
    held = make().estimate(ROLLOUT)
    assert np.abs(np.array(free.returns) - np.array(held.returns)).max() > 0.01


def experience():
    advantages = np.where(MASK, RNG.normal(size=SHAPE), 0.0).astype("float32")
    return Experience(
        *(getattr(ROLLOUT, n) for n in ("token_ids", "padding_mask", "response_mask")),
        ROLLOUT.prompt_lengths,
        LOGPROBS,
        REFERENCE,
        VALUES,
        advantages,
        np.where(MASK, RNG.normal(size=SHAPE), 0.0).astype("float32"),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"cliprange": 0.05}, {"cliprange_value": 0.05}, {"vf_coef": 2.0}, {"vf_coef": 0.0}],
)
def test_the_loss_against_a_loop(make, options):
    """N20."""
    batch = experience()
    chosen = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1, **options}
    loss, _ = make(**options).objective(STATS, batch)
    logs = policy_logs(STATS, batch)
    for where in zip(*np.nonzero(MASK), strict=True):
        ratio = np.exp(float(NEW[where]) - float(LOGPROBS[where]))
        low, high = 1 - chosen["cliprange"], 1 + chosen["cliprange"]
        policy = max(
            -batch.advantages[where] * ratio, -batch.advantages[where] * np.clip(ratio, low, high)
        )
        reach = chosen["cliprange_value"]
        near = np.clip(NEW_VALUES[where], VALUES[where] - reach, VALUES[where] + reach)
        errors = [(v - batch.returns[where]) ** 2 for v in (NEW_VALUES[where], near)]
        expected = policy + chosen["vf_coef"] * 0.5 * max(errors)
        assert float(loss[where]) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
        assert float(logs["policy/ratio"][where]) == pytest.approx(ratio, rel=1e-4)
        assert float(logs["policy/approxkl"][where]) == pytest.approx(
            0.5 * (NEW[where] - LOGPROBS[where]) ** 2, rel=1e-3, abs=1e-6
        )
    if options:
        plain, _ = make().objective(STATS, batch)
        assert np.abs(np.array(plain - loss)[MASK]).max() > 1e-3


def test_padding_changes_no_estimate(make):
    """Statistics of whitening are over true positions only."""
    wide = {
        name: np.pad(x, [(0, 0), (0, 3)])
        for name, x in ROLLOUT._asdict().items()
        if np.ndim(x) == 2
    }
    trainer = make(whiten_rewards=True)
    ours, theirs = trainer.estimate(ROLLOUT), trainer.estimate(ROLLOUT._replace(**wide))
    for name in ("advantages", "returns"):
        np.testing.assert_allclose(getattr(theirs, name)[:, :7], getattr(ours, name), atol=1e-6)
        assert not np.any(getattr(theirs, name)[:, 7:])
    assert abs(float(masking.masked_mean(ours.advantages, MASK))) < 1e-6


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gamma": 1.1}, "gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"lam": 1.5}, "lam"),
        ({"lam": "high"}, "lam"),
        ({"cliprange": 0.0}, "cliprange"),
        ({"cliprange_value": -1.0}, "cliprange_value"),
        ({"vf_coef": -0.1}, "vf_coef"),
        ({"update_epochs": 0}, "update_epochs"),
        ({"update_epochs": 1.5}, "update_epochs"),
        ({"num_minibatches": 0}, "num_minibatches"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"seed": -1}, "seed"),
        ({"shaping": RewardShaping(missing_end_score=-1.0)}, "stop"),
        ({"shaping": RewardShaping(missing_end_penalty=1.0)}, "stop"),
        ({"texts": TEXTS}, "`texts` must be a LanguageModeling"),
        ({"sampler": Sampler(length=4, temperature=0)}, "temperature"),
        ({"sampler": Sampler(length=4, top_k=5)}, "top_k"),
        ({"sampler": Sampler(length=4, top_p=0.5)}, "top_p"),
        ({"sampler": 4}, "sampler"),
        ({"kl": 0.1}, "kl"),
        ({"reward": 3.0}, "reward"),
        ({"reward": keras.Sequential()}, "RewardModel"),
        ({"reference": "frozen"}, "CausalLM"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, options, named):
    with pytest.raises(ValueError, match=named):
        make(**options)


@pytest.mark.parametrize(
    ("make_option", "named"),
    [
        (lambda: LanguageModeling(TEXTS, coef=-1.0), "`coef` must be at least 0"),
        (lambda: LanguageModeling(None, coef=0.5), "`data` of `LanguageModeling`"),
        (
            lambda: LanguageModeling(tf.data.Dataset.range(3), coef=0.5),
            "must be a dataset as `rlhf.data.demonstrations`",
        ),
        (
            lambda: LanguageModeling(tf.data.Dataset.from_tensors((IDS, IDS, IDS)), coef=0.5),
            "inputs with `token_ids`",
        ),
        (lambda: LanguageModeling(TEXTS), "Set `coef` above 0, or `every`"),
        (lambda: RewardShaping(clip=0.0), "`clip` must be above 0"),
        (lambda: RewardShaping(scale=None), "`scale` must be a finite number"),
        (lambda: RewardShaping(overlong_penalty=2.0), "no effect without `overlong_buffer`"),
        (lambda: RewardShaping(repetition_ngram=2), "no effect without `repetition_penalty`"),
        (
            lambda: RewardShaping(missing_end_score=-1.0, missing_end_penalty=1.0),
            "pass one of them",
        ),
    ],
)
def test_bad_values_are_refused_by_the_option_that_holds_them(make_option, named):
    with pytest.raises(ValueError, match=named):
        make_option()


def test_a_response_has_one_token_at_least():
    with pytest.raises(ValueError, match="`length` must be at least 1"):
        Sampler(length=0)


def test_parts_of_the_wrong_kind_are_refused(make):
    for other in (None, helpers.lm(), "gpt2"):
        with pytest.raises(ValueError, match="`actor` must be an ActorCritic"):
            PPO(other, helpers.token_reward, sampler=Sampler(length=2), kl=FixedKL(0.1))
    with pytest.raises(ValueError, match="actor with 23 entries and a reference with 25"):
        make(reference=helpers.lm(vocab=25))
    with pytest.raises(TypeError, match="sampler"):
        PPO(helpers.actor(), helpers.token_reward, kl=FixedKL(0.1))
    with pytest.raises(ValueError, match="reward model with 20"):
        make(reward=RewardModel(helpers.backbone(vocab=20))).compile(jit_compile=False)


BATCH = helpers.prompts([1, 2, 3, 4, 5, 6])


@pytest.fixture(scope="module")
def untouched(acting):
    """A compiled trainer that must not start anything: sampling raises."""
    trainer = helpers.ppo(acting, num_minibatches=2, micro_batches=1)
    trainer.compile(jit_compile=False)

    def fail(*args, **kwargs):
        raise AssertionError("work was done before the check")

    trainer.collector = fail
    return trainer


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({k: x[:1] for k, x in BATCH.items()}, "1 prompts cannot be divided into 2 minibatches"),
        (helpers.prompts([1, 29], columns=29), "need 33 positions; the model has 32"),
        ({"token_ids": BATCH["token_ids"]}, "padding_mask"),
        ({**BATCH, "padding_mask": BATCH["padding_mask"][:, ::-1]}, r"Rows \[0, 1, 2, 3, 4\]"),
        (helpers.prompts([3, 0, 1, 2]), r"Rows \[1\] are empty"),
        ({name: x[0] for name, x in BATCH.items()}, r"shape \(rows, length\)"),
        ({**BATCH, "padding_mask": BATCH["padding_mask"][:3]}, "of one shape"),
        ((BATCH["token_ids"], BATCH["padding_mask"]), "Received: tuple"),
    ],
)
def test_bad_batches_are_refused_before_any_work(untouched, batch, message):
    with pytest.raises(ValueError, match=message):
        untouched.iterate(batch)
    if isinstance(batch, dict):
        with pytest.raises(ValueError, match=message):
            untouched.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    assert int(untouched.iteration.numpy()) == 0


def test_a_forgotten_compile_is_named(make):
    with pytest.raises(ValueError, match="compile"):
        make().iterate(BATCH)
    with pytest.raises(ValueError, match="compile"):
        make().fit(tf.data.Dataset.from_tensors(BATCH))


def test_float16_weights_are_refused():
    half = helpers.backbone(dtype="float16")
    for actor in (helpers.actor(dtype="float16"), helpers.actor(critic=half)):
        with pytest.raises(ValueError, match=r"Weights in float16.*'float16'.*mixed_float16"):
            helpers.ppo(actor).compile()


def test_an_optimizer_that_scales_is_refused(acting):
    made = helpers.ppo(acting)
    with pytest.raises(ValueError, match="Received a LossScaleOptimizer"):
        made.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))


def test_a_reward_that_training_would_change_is_refused():
    lm = helpers.lm()
    reward = RewardModel(helpers.backbone(seed=2))
    critic = ActorCritic(lm, critic=reward.backbone)
    for actor, shared in ((ActorCritic(lm), RewardModel(lm)), (critic, reward)):
        with pytest.raises(ValueError, match=r"`reward` shares \d+ weights .*from_causal_lm"):
            helpers.ppo(actor, shared)
    helpers.ppo(ActorCritic(lm), RewardModel.from_causal_lm(lm))
    helpers.ppo(ActorCritic(lm, critic=reward), reward)


def test_direct_methods_refuse_float16_on_replicas():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        trainer = helpers.ppo(num_minibatches=2)
        trainer.compile(jit_compile=False)
        with pytest.raises(ValueError, match="float16 does not work under a distribution"):
            DPO(helpers.lm(dtype="float16")).compile()


def test_the_skeleton_is_abstract(acting):
    skeleton = OnPolicyTrainer(
        acting, helpers.token_reward, sampler=Sampler(length=2), kl=FixedKL(0.1)
    )
    for call in (lambda: skeleton.estimate(ROLLOUT), lambda: skeleton.objective(STATS, None)):
        with pytest.raises(NotImplementedError):
            call()
