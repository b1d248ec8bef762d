"""Algorithms without a critic: estimates and losses against loops from their papers."""

import itertools

import helpers
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.types import Rollout, Sampler, TokenStats

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
SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0, 4))


@pytest.fixture(scope="module")
def acting():
    """Shared by whatever learns nothing."""
    return helpers.actor()


@pytest.fixture(scope="module")
def make(acting):
    """Trainers of the shared actor in groups of three, not compiled."""

    def made(algorithm, **options):
        options = {"group_size": GROUP, "sampler": SAMPLER, "kl": rlhf.FixedKL(COEF), **options}
        return algorithm(acting, helpers.token_reward, **options)

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
    "grpo_kl_in_reward": (rlhf.GRPO, {"kl": rlhf.FixedKL(COEF, place="reward")}, WORTH, normalized),
    # Liu et al. 2025, section 3.2.
    "dr_grpo": (
        rlhf.GRPO,
        {"variant": "dr_grpo", "kl": rlhf.FixedKL(COEF, place="loss")},
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


PLUS_PLUS = [(1.0, False, None), (0.8, False, None), (1.0, True, None), (1.0, True, "reward")]


@pytest.mark.parametrize(("gamma", "group_baseline", "place"), PLUS_PLUS)
def test_reinforce_plus_plus_against_loops(make, gamma, group_baseline, place):
    """Hu et al. 2025: rewards to come, whitened over all tokens of the batch.

    With a baseline from the group the KL is a term of the loss, by k2.
    """
    scores = ROLLOUT.scores
    if group_baseline:
        scores = of_groups(scores, lambda one, _, everyone: one - mean(everyone))
    rewards, expected = per_token_rewards(scores), np.zeros(SHAPE)
    if group_baseline and place is None:
        rewards = per_token_rewards(scores, coef=0.0)
    for row in range(ROWS):
        places = np.flatnonzero(MASK[row])
        for t in places:
            expected[row, t] = sum(gamma ** (s - t) * rewards[row, s] for s in places if s >= t)
    inside = expected[MASK]
    expected[MASK] = (inside - inside.mean()) / np.sqrt(inside.var() + 1e-8)
    kl = rlhf.FixedKL(COEF, place=place)
    trainer = make(rlhf.REINFORCEPlusPlus, gamma=gamma, group_baseline=group_baseline, kl=kl)
    place = place or ("loss" if group_baseline else "reward")
    assert (trainer.kl_place, trainer.kl_estimator) == (place, "k2" if place == "loss" else "k1")
    np.testing.assert_allclose(trainer.estimate(ROLLOUT).advantages, expected, atol=1e-5)


def test_rloo_is_unbiased_and_a_division_by_the_standard_deviation_is_not(make):
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


def clipped(ratio, advantage, low, high, dual):
    """The loss of one token: the worse of two, for bad responses at most `dual` times as bad."""
    inside = min(max(ratio, 1 - low), 1 + high)
    loss = max(-advantage * ratio, -advantage * inside)
    return min(loss, -dual * advantage) if advantage < 0 else loss


NEW, ADVANTAGES = noise(), np.where(MASK, RNG.normal(0, 1.5, SHAPE), 0.0).astype("float32")
CLIPPING = {
    "rloo": (rlhf.RLOO, {}, (np.inf, np.inf, np.inf)),
    "rloo clipped": (rlhf.RLOO, {"cliprange": 0.15}, (0.15, 0.15, np.inf)),
    "grpo": (rlhf.GRPO, {}, (0.2, 0.2, np.inf)),
    "grpo higher": (rlhf.GRPO, {"cliprange": 0.1, "cliprange_high": 0.4}, (0.1, 0.4, np.inf)),
    "dr_grpo": (rlhf.GRPO, {"variant": "dr_grpo", "cliprange": 0.3}, (0.3, 0.3, np.inf)),
    "reinforce++": (rlhf.REINFORCEPlusPlus, {"cliprange": 0.1}, (0.1, 0.1, np.inf)),
    "reinforce++ higher": (rlhf.REINFORCEPlusPlus, {"cliprange_high": 0.4}, (0.2, 0.4, np.inf)),
    "ppo": (rlhf.PPO, {"cliprange": 0.1}, (0.1, 0.1, np.inf)),
    "ppo higher": (rlhf.PPO, {"cliprange_high": 0.5}, (0.2, 0.5, np.inf)),
    "ppo dual": (rlhf.PPO, {"dual_clip": 1.3}, (0.2, 0.2, 1.3)),
}


@pytest.mark.parametrize("case", CLIPPING)
def test_clipping_against_loops(make, case):
    """The loss of the policy is clipped as asked; what else PPO adds does not change."""
    algorithm, options, bounds = CLIPPING[case]
    made = make(algorithm, **options)
    minibatch = made.experience(ROLLOUT, ADVANTAGES, np.zeros(SHAPE, "float32"))
    stats = TokenStats(NEW, np.zeros(SHAPE, "float32"), NEW + 1)
    loss, logs = made.objective(stats, minibatch)
    expected = np.zeros(SHAPE)
    for place in zip(*np.nonzero(MASK), strict=True):
        ratio = np.exp(NEW[place] - ROLLOUT.logprobs[place])
        expected[place] = clipped(ratio, ADVANTAGES[place], *bounds)
    found = np.where(MASK, logs["loss/policy"], 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    rest = np.where(MASK, loss - logs["loss/policy"], 0.0)
    if algorithm is not rlhf.PPO:
        assert not rest.any()
        return
    plain, plain_logs = make(rlhf.PPO).objective(stats, minibatch)
    critic = np.where(MASK, plain - plain_logs["loss/policy"], 0.0)
    np.testing.assert_allclose(rest, critic, atol=1e-5)
    assert np.abs(critic).max() > 0.01


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
        expected[[best, worst]] = pair * GROUP / 2  # the mean over the group is the pair's
    np.testing.assert_allclose(np.where(MASK, loss, 0.0), np.where(MASK, expected, 0.0), atol=1e-5)
    assert np.count_nonzero(expected) < expected.size, "one of three is in no pair"


TIED = [[2.0] * ROWS, [1.0, 1.0, 1.0, 0.0, 3.0, 0.0]]


def online_loss(make, labels, scores):
    """Log-probabilities of a policy, and the loss of OnlineDPO on them."""
    trainer = make(rlhf.OnlineDPO, labels=labels)
    batch = trainer.estimate(ROLLOUT._replace(scores=np.array(scores, "float32")))
    new = noise()
    return new, np.asarray(trainer.objective(TokenStats(new, 0 * new, 0 * new), batch)[0])


@pytest.mark.parametrize("scores", TIED)
def test_ties_make_no_pair_of_hard_labels(make, scores):
    _, loss = online_loss(make, "hard", scores)
    paired = np.abs(loss).max(axis=1) > 0
    assert paired.tolist() == (sides(scores) != 0).tolist()


@pytest.mark.parametrize("scores", TIED)
def test_with_soft_labels_equally_good_responses_deserve_the_same_log_ratio(make, scores):
    new, loss = online_loss(make, "soft", scores)
    ratios = np.where(MASK, new - ROLLOUT.ref_logprobs, 0.0).sum(axis=1)
    h = COEF * (ratios[0] - ratios[1])  # the first group's scores are equal in both cases
    expected = 0.5 * np.log1p(np.exp(-h)) + 0.5 * np.log1p(np.exp(h))
    found = np.where(MASK, loss, 0.0)[:GROUP].max(axis=1)
    scaled = expected * GROUP / 2
    np.testing.assert_allclose(found, [scaled, scaled, 0.0], rtol=1e-5)
    assert expected > np.log(2.0)


def test_accuracy_counts_pairs_that_agree_and_half_of_what_says_nothing(make):
    for labels, scores in itertools.product(
        ("soft", "hard"), (ROLLOUT.scores, np.full(ROWS, 2.0, "float32"))
    ):
        trainer = make(rlhf.OnlineDPO, labels=labels)
        batch = trainer.estimate(ROLLOUT._replace(scores=scores))
        for sign in (-1, 0, 1):
            new = ROLLOUT.ref_logprobs + sign * 0.1 * sides(scores)[:, None]
            _, found = trainer.objective(TokenStats(new, 0 * new, 0 * new), batch)
            paired = np.repeat(np.abs(sides(scores)).reshape(-1, GROUP).max(axis=1), GROUP)
            expected = 0.5 + 0.5 * sign * paired
            np.testing.assert_allclose(found["policy/accuracy"][:, 0], expected)


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
    "k1_in_the_loss": (
        rlhf.GRPO,
        {"kl": rlhf.FixedKL(COEF, estimator="k1")},
        "k1 in the loss does nothing",
    ),
    "reduction": (rlhf.RLOO, {"loss_reduction": "mean"}, "`loss_reduction` must be one of"),
    "cliprange": (rlhf.RLOO, {"cliprange": 0.0}, "`cliprange`"),
    "gamma": (rlhf.REINFORCEPlusPlus, {"gamma": 1.5}, "`gamma`"),
    "kl_place_of_dpo": (
        rlhf.OnlineDPO,
        {"kl": rlhf.FixedKL(COEF, place="loss")},
        "Leave out `place` and `estimator`",
    ),
    "kl_estimator_of_dpo": (
        rlhf.OnlineDPO,
        {"kl": rlhf.FixedKL(COEF, estimator="k2")},
        "Leave out `place` and `estimator`",
    ),
    "nothing_to_learn": (rlhf.OnlineDPO, {"kl": rlhf.FixedKL(0.0)}, "with 0 nothing is learned"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(make, case):
    algorithm, options, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        make(algorithm, **options)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (rlhf.OnlineDPO, "importance_cap"),
        (rlhf.OnlineDPO, "loss_reduction"),
        (rlhf.OnlineDPO, "cliprange"),
        (rlhf.RLOO, "warmup"),
        (rlhf.GRPO, "gamma"),
        (rlhf.REINFORCEPlusPlus, "vf_coef"),
    ],
)
def test_arguments_of_other_algorithms_are_refused(make, algorithm, name):
    with pytest.raises(TypeError, match=f"`{algorithm.__name__}` has no argument `{name}`"):
        make(algorithm, **{name: 2.0})


@pytest.mark.parametrize(
    "algorithm", [rlhf.RLOO, rlhf.GRPO, rlhf.REINFORCEPlusPlus, rlhf.OnlineDPO]
)
def test_a_critic_that_would_not_be_used_is_refused(algorithm):
    acting = helpers.actor(critic=helpers.backbone())
    options = {"group_size": 2, "sampler": SAMPLER, "kl": rlhf.FixedKL(COEF)}
    with pytest.raises(ValueError, match=f"{algorithm.__name__} learns without a critic"):
        algorithm(acting, helpers.token_reward, **options)
