"""The best of several responses: which it is, what becomes of it, how far it is from a sample."""

import dataclasses
import itertools
import math

import helpers
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf import data
from kerasrlhf.types import Sampler

SAMPLER = Sampler(length=3)
PROMPTS = ["a", "bcd", "ef", "g", "hi"]
N = 3

FOUND = rlhf.BestOfN(
    ["p", "q", "r"],
    [["one", "two", "three"], ["four", "five", "six"], ["seven", "eight", "nine"]],
    np.array([[0.0, 2.0, 1.0], [3.0, -1.0, 3.0], [5.0, 5.0, 5.0]], "float32"),
)


def test_the_highest_score_wins_and_the_first_of_equals():
    assert FOUND.winners == ["two", "four", "seven"]


def test_demonstrations_are_the_winners():
    assert FOUND.demonstrations() == [
        {"prompt": "p", "response": "two"},
        {"prompt": "q", "response": "four"},
        {"prompt": "r", "response": "seven"},
    ]


def test_demonstrations_say_which_responses_were_cut_off():
    """The end token is learned where it was drawn."""
    ended = np.array([[True, False, True], [True, False, False], [False, True, True]])
    records = FOUND._replace(ended=ended).demonstrations()
    assert [record["ended"] for record in records] == [False, True, False]
    pairs = FOUND._replace(ended=ended).preferences()
    assert [pair["ended"] for pair in pairs] == [[False, True], [True, False]]


def test_a_stop_token_of_ones_own_is_no_end_token(acting):
    """What was drawn is taught: token 4, and no end token behind it."""
    sampler = Sampler(length=6, stop_token_ids=(4, 5, 6, 7, 8))
    found = rlhf.best_of_n(
        acting, lambda responses: [0.0] * len(responses), PROMPTS, N, sampler, jit_compile=False
    )
    assert min(len(r) for row in found.responses for r in row) < 6 and not found.ended.any()


def test_preferences_are_best_and_worst_without_ties():
    assert FOUND.preferences() == [
        {"prompt": "p", "chosen": "two", "rejected": "one"},
        {"prompt": "q", "chosen": "four", "rejected": "five"},
    ]


def test_pairs_with_an_empty_response_are_left_out():
    found = rlhf.BestOfN(["p", "q"], [["", "b"], ["c", "d"]], np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert found.preferences() == [{"prompt": "q", "chosen": "c", "rejected": "d"}]


@pytest.fixture(scope="module")
def acting():
    return helpers.actor(texts=True)


def worth(prompt, response):
    """Short ones, which have ended, are worth more."""
    return sum(map(ord, response)) % 17 + len(prompt) / 10 + 20 * (len(response) < 3)


@pytest.fixture(scope="module")
def drawn(acting):
    """Three responses to five prompts, two prompts at once, and what the reward was asked."""
    asked = []

    def reward(prompts, responses):
        asked.append((list(prompts), list(responses)))
        return [worth(p, r) for p, r in zip(prompts, responses, strict=True)]

    options = {"batch_size": 2, "seed": 4, "jit_compile": False}
    return rlhf.best_of_n(acting, reward, PROMPTS, N, SAMPLER, **options), asked


def test_every_score_stands_at_its_response(drawn):
    found, _ = drawn
    assert found.prompts == PROMPTS
    assert [len(row) for row in found.responses] == [N] * len(PROMPTS)
    expected = [[worth(p, r) for r in row] for p, row in zip(PROMPTS, found.responses, strict=True)]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)
    assert any(len(set(row)) > 1 for row in found.responses), "samples differ"
    for row, scores, winner in zip(found.responses, expected, found.winners, strict=True):
        assert scores[row.index(winner)] == max(scores)


def test_the_last_batch_is_filled_with_its_first_prompt_and_cut_off(drawn):
    """One shape for all batches; what fills the last is no result."""
    found, asked = drawn
    repeated = [
        list(itertools.chain(*([p] * N for p in pair)))
        for pair in (
            PROMPTS[:2],
            PROMPTS[2:4],
            [PROMPTS[4], PROMPTS[4]],
        )
    ]
    assert [prompts for prompts, _ in asked] == repeated
    flat = [r for row in found.responses for r in row]
    assert flat == [r for _, responses in asked for r in responses][: len(flat)]
    assert found.scores.shape == (len(PROMPTS), N)


def test_samples_are_a_function_of_the_seed(acting, drawn):
    def again(seed):
        options = {"batch_size": 2, "seed": seed, "jit_compile": False}
        reward = lambda prompts, responses: [0.0] * len(responses)  # noqa: E731
        return rlhf.best_of_n(acting, reward, PROMPTS[:2], N, SAMPLER, **options).responses

    assert again(4) == drawn[0].responses[:2]
    assert again(5) != drawn[0].responses[:2]


def test_the_records_are_what_the_datasets_take(acting, drawn):
    found, _ = drawn
    preprocessor = acting.causal_lm.preprocessor
    rows = len(PROMPTS)
    demos = data.demonstrations(found.demonstrations(), preprocessor, rows, shuffle=False)
    (x, y, weights), *rest = demos.as_numpy_iterator()
    assert not rest and x["token_ids"].shape[0] == rows
    taught = [y[i][weights[i] > 0].tolist() for i in range(rows)]
    ended = [ids[-1] == 0 for ids in taught]  # what ends a response
    winners = found.scores.argmax(axis=1)
    assert ended == found.ended[np.arange(rows), winners].tolist() and 0 < sum(ended) < rows
    encoded = data.tokenize(found.winners, preprocessor)
    assert [row[: len(ids)] for row, ids in zip(taught, encoded, strict=True)] == encoded
    pairs = found.preferences()
    assert pairs, "of some prompt the responses differ"
    (x, _), *rest = data.preferences(
        pairs, preprocessor, len(pairs), shuffle=False
    ).as_numpy_iterator()
    assert not rest and x["token_ids"].shape[:2] == (len(pairs), 2)
    for side, name in enumerate(("chosen", "rejected")):
        texts = data.tokenize([pair[name] for pair in pairs], preprocessor)
        for row, ids in enumerate(texts):
            inside = x["token_ids"][row, side][x["response_mask"][row, side]]
            assert inside[: len(ids)].tolist() == ids


def kl_of_best(p, scores, n):
    """KL of best-of-n to p, by a list of all draws; of equal scores the first drawn wins."""
    best = np.zeros(len(p))
    for draw in itertools.product(range(len(p)), repeat=n):
        winner = max(draw, key=lambda y: scores[y])
        best[winner] += np.prod([p[y] for y in draw])
    assert best.sum() == pytest.approx(1.0)
    return float(np.sum(best * np.log(best / p)))


P = np.array([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("scores", [[1, 2, 3, 4], [4, 1, 3, 2], [0, 0, 1, 1], [0, 0, 0, 1]])
def test_the_kl_is_a_bound(n, scores):
    kl = kl_of_best(P, scores, n)
    assert kl <= rlhf.best_of_n_kl(n) + 1e-12
    # Of few likely responses two draws are often the same one, and the bound is loose.
    assert n == 1 or kl < rlhf.best_of_n_kl(n) - 1e-2


@pytest.mark.parametrize("n", [2, 3])
def test_the_bound_is_reached_when_no_two_draws_score_the_same(n):
    """120 equally likely responses with distinct scores: KL of `k^n - (k - 1)^n` of `120^n`."""
    count = 120
    k = np.arange(1, count + 1)
    best = (k**n - (k - 1) ** n) / count**n
    kl = float(np.sum(best * np.log(best * count)))
    assert kl == pytest.approx(rlhf.best_of_n_kl(n), abs=0.01) and kl <= rlhf.best_of_n_kl(n)
    # All draws of the same score: nothing is chosen.
    assert kl_of_best(P, [1, 1, 1, 1], n) == pytest.approx(0.0, abs=1e-12)


def test_the_bound_by_hand():
    assert rlhf.best_of_n_kl(1) == 0.0
    assert rlhf.best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)


WRONG = {
    "one": ({"n": 1}, "`n` must be at least 2"),
    "greedy": ({"sampler": Sampler(length=2, temperature=0)}, "temperature 0"),
    "schedule": ({"sampler": Sampler(length=2, temperature=lambda i: 1.0)}, "is a schedule"),
    "no_prompts": ({"prompts": []}, "at least one"),
    "no_strings": ({"prompts": [3]}, "list of strings"),
    "no_batch": ({"batch_size": 0}, "`batch_size`"),
    "too_long": ({"sampler": Sampler(length=40)}, "positions"),
    "reward": ({"reward": 3.0}, "`reward`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(acting, case):
    options, words = WRONG[case]
    given = {
        "reward": helpers.token_reward,
        "prompts": PROMPTS,
        "n": 2,
        "sampler": SAMPLER,
        **options,
    }
    with pytest.raises(ValueError, match=words):
        rlhf.best_of_n(acting, jit_compile=False, **given)


def test_the_bound_of_no_response_is_refused():
    with pytest.raises(ValueError, match="`n`"):
        rlhf.best_of_n_kl(0)


def test_responses_are_the_policys_even_where_training_explores(acting, drawn):
    exploring = dataclasses.replace(SAMPLER, epsilon=0.9)
    options = {"batch_size": 2, "seed": 4, "jit_compile": False}
    found = rlhf.best_of_n(
        acting, lambda responses: [0.0] * len(responses), PROMPTS[:2], N, exploring, **options
    )
    assert found.responses == drawn[0].responses[:2]
