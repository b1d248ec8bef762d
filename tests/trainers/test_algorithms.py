"""Algorithms without a critic, against loops from their papers and against each other."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import trajectories

import kerasrlhf as rlhf
from kerasrlhf.rollouts import minibatches
from kerasrlhf.trainers.gradients import Counts, Gradients
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats

GROUP, ROWS, LENGTH, COEF = 3, 6, 7, 0.3
SHAPE = (ROWS, LENGTH)
RNG = np.random.default_rng(5)
MASK = np.array([[1 <= t < end for t in range(LENGTH)] for end in (7, 4, 2, 6, 3, 5)])


def noise():
    return np.where(MASK, RNG.normal(0, 0.6, SHAPE), 0.0).astype("float32")


ROLLOUT = Rollout(
    token_ids=np.zeros(SHAPE, "int32"),
    padding_mask=MASK,
    response_mask=MASK,
    prompt_lengths=np.ones(ROWS, "int32"),
    ended=np.ones(ROWS, bool),
    logprobs=noise(),
    values=noise(),
    ref_logprobs=noise(),
    scores=np.array([1.0, -0.5, 2.5, 0.25, -3.0, 0.5], "float32"),
    kl_coef=np.float32(COEF),
)
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4, 9, 13))
BATCH = helpers.prompts([1, 3, 6, 2])


@pytest.fixture(scope="module")
def acting():
    """Shared by whatever learns nothing."""
    return helpers.actor(num_layers=1)


@pytest.fixture(scope="module")
def make(acting):
    """Trainers of the shared actor in groups of three, not compiled."""

    def made(algorithm, **options):
        options = {"group_size": GROUP, "sampler": SAMPLER, "kl": rlhf.FixedKL(COEF), **options}
        return algorithm(acting, helpers.token_reward, **options)

    return made


def learner(algorithm, optimizer=None, jit_compile=None, strategy=None, **options):
    """A trainer of an actor of its own, compiled: XLA, graphs or line by line (None)."""
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        options = {
            "group_size": 2,
            "sampler": SAMPLER,
            "kl": rlhf.FixedKL(COEF),
            "reference": helpers.lm(seed=5, num_layers=1),
            **options,
        }
        made = algorithm(helpers.actor(num_layers=1), helpers.token_reward, **options)
        optimizer = optimizer or trajectories.adam()
        made.compile(optimizer, jit_compile=bool(jit_compile), run_eagerly=jit_compile is None)
    return made


def per_token_rewards(scores=ROLLOUT.scores, coef=COEF):
    """N18 as a loop."""
    rewards = np.zeros(SHAPE)
    for row in range(ROWS):
        places = np.flatnonzero(MASK[row])
        for t in places:
            rewards[row, t] = -coef * (ROLLOUT.logprobs[row, t] - ROLLOUT.ref_logprobs[row, t])
        rewards[row, places[-1]] += scores[row]
    return rewards


def of_groups(worth, advantage):
    """`advantage(one, others, all)` of each row, given what its group is worth."""
    results = []
    for row in range(ROWS):
        first = row - row % GROUP
        everyone = [float(worth[i]) for i in range(first, first + GROUP)]
        others = [x for i, x in enumerate(everyone) if i != row - first]
        results.append(advantage(everyone[row - first], others, everyone))
    return np.array(results)


def mean(xs):
    return sum(xs) / len(xs)


def deviation(xs):
    return (sum((x - mean(xs)) ** 2 for x in xs) / len(xs)) ** 0.5


def normalized(one, others, everyone):
    return (one - mean(everyone)) / (deviation(everyone) + 1e-4)


WORTH = per_token_rewards().sum(axis=1)
GROUPED = {
    # Ahmadian et al. 2024, eq. 7.
    "rloo": (rlhf.RLOO, {}, WORTH, lambda one, others, _: one - mean(others)),
    # Shao et al. 2024, section 4.1.2.
    "grpo": (rlhf.GRPO, {}, ROLLOUT.scores, normalized),
    "grpo_kl_in_reward": (rlhf.GRPO, {"kl_in": "reward"}, WORTH, normalized),
    # Liu et al. 2025, section 3.2.
    "dr_grpo": (
        rlhf.GRPO,
        {"variant": "dr_grpo", "kl_in": "loss"},
        ROLLOUT.scores,
        lambda one, _, everyone: one - mean(everyone),
    ),
}


@pytest.mark.parametrize("case", GROUPED)
def test_advantages_of_groups_against_loops(make, case):
    algorithm, options, worth, advantage = GROUPED[case]
    found = make(algorithm, **options).estimate(ROLLOUT)
    expected = np.where(MASK, of_groups(worth, advantage)[:, None], 0.0)
    np.testing.assert_allclose(found.advantages, expected, atol=1e-5)


@pytest.mark.parametrize("gamma, group_baseline", [(1.0, False), (0.8, False), (1.0, True)])
def test_reinforce_plus_plus_against_loops(make, gamma, group_baseline):
    """Hu et al. 2025: rewards to come, whitened over all tokens of the batch."""
    scores = ROLLOUT.scores
    if group_baseline:
        scores = of_groups(scores, lambda one, _, everyone: one - mean(everyone))
    rewards, expected = per_token_rewards(scores), np.zeros(SHAPE)
    for row in range(ROWS):
        places = np.flatnonzero(MASK[row])
        for t in places:
            expected[row, t] = sum(gamma ** (s - t) * rewards[row, s] for s in places if s >= t)
    inside = expected[MASK]
    expected[MASK] = (inside - inside.mean()) / np.sqrt(inside.var() + 1e-8)
    trainer = make(rlhf.REINFORCEPlusPlus, gamma=gamma, group_baseline=group_baseline)
    np.testing.assert_allclose(trainer.estimate(ROLLOUT).advantages, expected, atol=1e-5)


def test_rloo_is_unbiased_and_a_division_by_the_deviation_is_not(make):
    """All pairs of three one-token answers: the mean gradient is `p (r - E r)` of a softmax."""
    p, r = np.array([0.5, 0.3, 0.2]), np.array([0.5, -1.0, 4.0])
    pairs = [(i, j) for i in range(3) for j in range(3)]
    answers = np.array(pairs).ravel()
    inside = np.ones((len(answers), 1), bool)
    zeros = np.zeros(inside.shape, "float32")
    rollout = ROLLOUT._replace(
        response_mask=inside,
        logprobs=zeros,
        values=zeros,
        ref_logprobs=zeros,
        scores=r[answers].astype("float32"),
    )
    score_gradients = np.eye(3) - p
    likelihood = np.repeat([p[i] * p[j] for i, j in pairs], 2)

    def mean_gradient(algorithm, **options):
        found = make(algorithm, group_size=2, **options).estimate(rollout).advantages
        weighted = likelihood * np.asarray(found)[:, 0]
        return weighted @ score_gradients[answers] / 2

    exact = p * (r - p @ r)
    np.testing.assert_allclose(mean_gradient(rlhf.RLOO), exact, atol=1e-6)
    np.testing.assert_allclose(mean_gradient(rlhf.GRPO, variant="dr_grpo"), exact / 2, atol=1e-6)
    # In pairs the divided difference is a sign: what grows is the chance to beat another answer.
    wins = np.sign(r[:, None] - r[None]) @ p
    divided = mean_gradient(rlhf.GRPO)
    np.testing.assert_allclose(divided, p * wins, atol=1e-3)
    assert np.abs(divided / exact - 1).max() > 0.5


def sides(scores):
    """Guo et al. 2024: +1 for the best, -1 for the worst, of every group."""
    found = np.zeros(len(scores))
    for first in range(0, len(scores), GROUP):
        group = list(scores[first : first + GROUP])
        if max(group) > min(group):
            found[first + group.index(max(group))] = 1.0
            found[first + group.index(min(group))] = -1.0
    return found


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_online_dpo_against_the_formula(make, labels):
    trainer = make(rlhf.OnlineDPO, labels=labels)
    batch = trainer.estimate(ROLLOUT)
    new = noise()
    loss, _ = trainer.objective(TokenStats(new, 0 * new, 0 * new), batch)
    signs, expected = sides(ROLLOUT.scores), np.zeros(SHAPE)
    ratios = np.where(MASK, new - ROLLOUT.ref_logprobs, 0.0).sum(axis=1)
    for first in range(0, ROWS, GROUP):
        rows = range(first, first + GROUP)
        (best,) = (i for i in rows if signs[i] > 0)
        (worst,) = (i for i in rows if signs[i] < 0)
        h = COEF * (ratios[best] - ratios[worst])
        q = 1.0
        if labels == "soft":
            q = 1 / (1 + np.exp(float(ROLLOUT.scores[worst] - ROLLOUT.scores[best])))
        pair = -q * np.log(1 / (1 + np.exp(-h))) - (1 - q) * np.log(1 / (1 + np.exp(h)))
        expected[[best, worst]] = pair
    np.testing.assert_allclose(np.where(MASK, loss, 0.0), np.where(MASK, expected, 0.0), atol=1e-5)
    assert np.count_nonzero(expected) < expected.size, "one of three is in no pair"


@pytest.mark.parametrize("scores", [[2.0] * ROWS, [1.0, 1.0, 1.0, 0.0, 3.0, 0.0]])
def test_ties_make_no_pair(make, scores):
    trainer = make(rlhf.OnlineDPO)
    batch = trainer.estimate(ROLLOUT._replace(scores=np.array(scores, "float32")))
    new = noise()
    loss, _ = trainer.objective(TokenStats(new, 0 * new, 0 * new), batch)
    paired = np.abs(np.asarray(loss)).max(axis=1) > 0
    assert paired.tolist() == (sides(scores) != 0).tolist()


def test_a_response_without_end_is_in_no_pair(make):
    """What `mask_overlong` leaves out takes its partner with it, and its group keeps its score."""
    trainer = make(rlhf.OnlineDPO, mask_overlong=True)
    batch = trainer.estimate(ROLLOUT)
    kept = MASK & (np.arange(ROWS) != 2)[:, None]  # the best of the first group
    new = noise()
    loss, _ = trainer.objective(
        TokenStats(new, 0 * new, 0 * new), batch._replace(response_mask=kept)
    )
    assert (np.abs(np.where(kept, loss, 0.0)).max(axis=1) > 0).tolist() == (
        [False] * 3 + [abs(side) > 0 for side in sides(ROLLOUT.scores)[3:]]
    )


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_groups_stay_together(updates):
    order = minibatches.permutations(3, 1, 20 * GROUP, 2, updates, GROUP)
    assert order.shape == (2 * updates, 20 * GROUP // updates)
    groups = order.reshape(-1, GROUP)
    assert (groups % GROUP == np.arange(GROUP)).all()
    assert (groups // GROUP == groups[:, :1] // GROUP).all()
    for epoch in np.split(groups[:, 0] // GROUP, 2):
        assert sorted(epoch) == list(range(20)) and sorted(epoch) != list(epoch)


def first_update(made, moved=False):
    """The rollout and the gradient of an iteration's first update, or of a later one (`moved`)."""
    rollout = made.collect(BATCH).rollout
    batch = Experience(*made.estimate(rollout))
    if moved:
        helpers.filled(made.actor.causal_lm, seed=1)
    counts = Counts.of(batch, made.loss_reduction, made.sampler.length)
    gradients, _ = Gradients(made).of_minibatch(batch, counts, None, None)
    return rollout, [np.asarray(g) for g in gradients]


def policy_gradient(made, rollout, advantages, divisor):
    """`-sum of A grad log p / divisor` by one forward pass over whole rows."""
    lm, inside = made.actor.causal_lm, np.asarray(rollout.response_mask)
    variables = [v.value for v in made.trainable_variables]
    with tf.GradientTape() as tape:
        logits = lm({"token_ids": rollout.token_ids, "padding_mask": rollout.padding_mask})
        logprobs = tf.nn.log_softmax(tf.cast(logits, tf.float32) / SAMPLER.temperature)[:, :-1]
        chosen = tf.gather(logprobs, rollout.token_ids[:, 1:], batch_dims=2)
        weights = np.where(inside, advantages, 0.0)[:, 1:].astype("float32")
        loss = -tf.reduce_sum(chosen * weights) / divisor
    gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [np.asarray(tf.convert_to_tensor(g)) for g in gradients]


def assert_same_gradients(found, expected, factor=1.0):
    biggest = max(np.abs(g).max() for g in expected)
    assert biggest > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, factor * theirs, atol=2e-5 * biggest, rtol=1e-3)


def to_come(rollout):
    """Rewards from each token on, by loops."""
    inside, kl = (np.asarray(x) for x in (rollout.response_mask, rollout.logprobs))
    kl = kl - np.asarray(rollout.ref_logprobs)
    totals = np.zeros(inside.shape)
    for row, mask in enumerate(inside):
        running = float(rollout.scores[row])
        for t in np.flatnonzero(mask)[::-1]:
            running -= COEF * kl[row, t]
            totals[row, t] = running
    return totals


@pytest.mark.parametrize("critic", ["zero", "random"])
def test_ppo_that_clips_and_whitens_nothing_is_reinforce(critic):
    """With what the critic says as baseline."""
    made = learner(
        rlhf.PPO, lam=1.0, cliprange=1e6, vf_coef=0.0, whiten_advantages=False, update_epochs=1
    )
    if critic == "zero":
        for variable in made.actor.value_head.weights:
            variable.assign(keras.ops.zeros_like(variable))
    rollout, gradients = first_update(made)
    values = np.asarray(rollout.values)
    assert (np.abs(values).max() > 0.1) == (critic == "random")
    tokens = np.asarray(rollout.response_mask).sum()
    assert tokens < len(values) * SAMPLER.length, "one ends early"
    expected = policy_gradient(made, rollout, to_come(rollout) - values, tokens)
    assert_same_gradients(gradients, expected)


def test_rloo_and_dr_grpo_are_reinforce_with_a_baseline():
    """Of the same samples, Dr. GRPO `(group - 1) / group` of RLOO: half of it in pairs."""
    rloo = learner(rlhf.RLOO)
    rollout, gradients = first_update(rloo)
    inside = np.asarray(rollout.response_mask)
    first = inside.argmax(axis=1)
    worth = to_come(rollout)[np.arange(len(first)), first].reshape(-1, 2)
    advantages = (worth - worth[:, ::-1]).reshape(-1, 1)
    assert inside.sum() < worth.size * SAMPLER.length, "the number of tokens is another divisor"
    expected = policy_gradient(rloo, rollout, advantages, worth.size * SAMPLER.length)
    assert_same_gradients(gradients, expected)
    dr_grpo = learner(rlhf.GRPO, variant="dr_grpo")
    same, halves = first_update(dr_grpo)
    np.testing.assert_array_equal(same.token_ids, rollout.token_ids)
    assert_same_gradients(halves, expected, factor=0.5)


def test_a_group_is_the_prompt_repeated():
    """It shares the prompt's forward pass and draws what repeated prompts would draw."""
    grouped = learner(rlhf.PPO).collect(BATCH)
    repeated = learner(rlhf.PPO, group_size=1).collect(
        {name: np.repeat(x, 2, axis=0) for name, x in BATCH.items()}
    )
    ours, theirs = helpers.arrays(grouped.rollout), helpers.arrays(repeated.rollout)
    for name in ("token_ids", "response_mask", "padding_mask", "prompt_lengths", "ended"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    for name in ("logprobs", "ref_logprobs", "values", "scores"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    pairs = ours["token_ids"].reshape(len(BATCH["token_ids"]), 2, -1)
    assert (pairs[:, 0] != pairs[:, 1]).any(axis=1).all(), "two responses are two samples"


def test_minibatches_are_of_whole_groups_and_leave_out_what_did_not_end():
    """The others to its prompt are still compared with it (`mask_overlong`)."""
    seen = {}
    for overlong in (False, True):
        made = learner(
            rlhf.RLOO,
            num_minibatches=2,
            mask_overlong=overlong,
            optimizer=keras.optimizers.SGD(0.0),
        )
        seen[overlong] = batches = []
        made.train_step = lambda batch, *rest, made=made, batches=batches: (
            batches.append(batch) or type(made).train_step(made, batch, *rest)
        )
        made.iterate(BATCH)
        ended = made.last.rollout.ended.numpy()
    assert 0 < ended.sum() < len(ended)
    for plain, masked in zip(*seen.values(), strict=True):
        worth = np.abs(plain.advantages).max(axis=1) * np.sign(np.sum(plain.advantages, axis=1))
        assert np.abs(worth).max() > 0.1
        np.testing.assert_allclose(worth[::2], -worth[1::2], atol=1e-5)
        np.testing.assert_array_equal(masked.advantages, plain.advantages)
    kept = [np.asarray(b.response_mask).any(axis=1) for b in seen[True]]
    assert np.sum(kept) == ended.sum()
    assert all(np.asarray(b.response_mask).any(axis=1).all() for b in seen[False])


@pytest.mark.parametrize("algorithm", [rlhf.RLOO, rlhf.GRPO, rlhf.OnlineDPO])
def test_micro_batches_have_the_gradient_of_the_whole(algorithm):
    """The sums are divided by counts over all of them, and no group is torn."""
    _, whole = first_update(learner(algorithm), moved=True)
    _, parts = first_update(learner(algorithm, micro_batches=2), moved=True)
    assert_same_gradients(parts, whole)


@pytest.fixture(scope="module")
def eager():
    """Three iterations of pairs that an update must not tear, line by line."""
    return trajectories.run(learner(rlhf.OnlineDPO, update_epochs=2, num_minibatches=2))


@pytest.mark.slow
def test_xla_is_eager(eager):
    made = learner(
        rlhf.OnlineDPO, jit_compile=True, update_epochs=2, num_minibatches=2, micro_batches=2
    )
    trajectories.assert_same(trajectories.run(made), eager)


@pytest.mark.slow
def test_two_replicas_are_one(eager):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    made = learner(
        rlhf.OnlineDPO, jit_compile=False, strategy=strategy, update_epochs=2, num_minibatches=2
    )
    trajectories.assert_same(trajectories.run(made), eager)


WRONG = {
    "rloo_alone": (rlhf.RLOO, {"group_size": 1}, "`group_size` must be at least 2"),
    "grpo_alone": (rlhf.GRPO, {"group_size": 1}, "`group_size` must be at least 2"),
    "dpo_alone": (rlhf.OnlineDPO, {"group_size": 1}, "`group_size` must be at least 2"),
    "baseline_alone": (
        rlhf.REINFORCEPlusPlus,
        {"group_size": 1, "group_baseline": True},
        "`group_size` must be at least 2",
    ),
    "no_group": (rlhf.RLOO, {"group_size": 0}, "`group_size`"),
    "variant": (rlhf.GRPO, {"variant": "drgrpo"}, "`variant` must be"),
    "labels": (rlhf.OnlineDPO, {"labels": "softer"}, "`labels` must be"),
    "estimator": (rlhf.RLOO, {"kl_estimator": "k4"}, "`kl_estimator` must be one of"),
    "place": (rlhf.RLOO, {"kl_in": "advantage"}, "`kl_in` must be"),
    "k1_in_the_loss": (rlhf.GRPO, {"kl_estimator": "k1"}, "k1 in the loss does nothing"),
    "reduction": (rlhf.RLOO, {"loss_reduction": "mean"}, "`loss_reduction` must be one of"),
    "cliprange": (rlhf.RLOO, {"cliprange": 0.0}, "`cliprange`"),
    "gamma": (rlhf.REINFORCEPlusPlus, {"gamma": 1.5}, "`gamma`"),
    "kl_of_dpo": (rlhf.OnlineDPO, {"kl_in": "loss"}, r"Leave out \['kl_in'\]"),
    "weights_of_dpo": (rlhf.OnlineDPO, {"importance_cap": 2.0}, "importance_cap"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(make, case):
    algorithm, options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        make(algorithm, **options)


@pytest.mark.parametrize(
    "algorithm", [rlhf.RLOO, rlhf.GRPO, rlhf.REINFORCEPlusPlus, rlhf.OnlineDPO]
)
def test_a_critic_that_nothing_would_read_is_refused(algorithm):
    acting = helpers.actor(num_layers=1, critic=helpers.backbone(num_layers=1))
    options = {"group_size": 2, "sampler": SAMPLER, "kl": rlhf.FixedKL(COEF)}
    with pytest.raises(ValueError, match=f"{algorithm.__name__} learns without a critic"):
        algorithm(acting, helpers.token_reward, **options)
