"""Shaping of scores, against the formulas of their papers and by hand."""

import numpy as np
import pytest

from kerasrlhf.rollouts.shaping import RewardShaping, RunningMoments, repetition

RESPONSES = [[5, 5, 5, 5], [1, 2], [3, 4, 3, 4, 3], [9, 8, 7, 6, 5, 4]]
SCORES = np.array([1.0, -2.0, 0.5, 3.0])
ENDED = np.array([True, True, False, False])


def shaped(scores=SCORES, responses=RESPONSES, last=None, length=6, std=1.0, **fields):
    shaping = RewardShaping(**fields)
    shaping.check_sampler(length, can_end=True)
    return shaping.apply(scores, ENDED[: len(scores)], last, responses, length, std)


def test_without_options_scores_stay():
    np.testing.assert_array_equal(shaped(), SCORES.astype("float32"))
    assert not RewardShaping().counts_tokens


def test_the_running_deviation_divides_before_scale_and_clip():
    found = shaped(std=4.0, running_scale=True, scale=2.0, clip=0.9)
    np.testing.assert_allclose(found, [0.5, -0.9, 0.25, 0.9])


def test_a_per_token_is_divided_by_the_response():
    np.testing.assert_allclose(shaped(per_token=True), SCORES / [4, 2, 5, 6], rtol=1e-6)
    assert shaped(SCORES[:1], [[]], per_token=True)[0] == 1.0


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_the_share_of_repeated_pieces_is_subtracted(ngram):
    expected = []
    for score, tokens in zip(SCORES, RESPONSES, strict=True):
        pieces = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) + 1 - ngram)]
        again = sum(piece in pieces[:i] for i, piece in enumerate(pieces))
        expected.append(score - 0.7 * (again / len(pieces) if pieces else 0.0))
    found = shaped(repetition_penalty=0.7, repetition_ngram=ngram)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_repetition_by_hand():
    assert repetition([5, 5, 5, 5], 1) == 0.75  # the second to the fourth stood there before
    assert repetition([3, 4, 3, 4, 3], 2) == 0.5  # 34 43 34 43
    assert repetition([1, 2], 3) == repetition([], 1) == 0.0


@pytest.mark.parametrize("buffer", [1, 2, 4, 6])
def test_the_overlong_punishment_is_equation_13_of_dapo(buffer):
    """`R(y)` with `L_max = 6` and `L_cache = buffer`."""

    def punishment(tokens):
        if tokens <= 6 - buffer:
            return 0.0
        return ((6 - buffer) - tokens) / buffer if tokens <= 6 else -1.0

    responses = [[1] * n for n in (1, 3, 5, 6)]
    found = shaped(responses=responses, overlong_buffer=buffer, overlong_penalty=0.5)
    expected = [s + 0.5 * punishment(len(r)) for s, r in zip(SCORES, responses, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[-1] == pytest.approx(SCORES[-1] - 0.5)


def test_penalties_add_up_and_a_missing_end_replaces_them():
    penalties = {"repetition_penalty": 1.0, "repetition_ngram": 1, "overlong_buffer": 2}
    # Repeated 3/4, 0, 3/5, 0; the last one or two tokens of six: 0, 0, 1/2, 1.
    expected = SCORES - [0.75, 0.0, 0.6 + 0.5, 1.0]
    np.testing.assert_allclose(shaped(**penalties), expected, rtol=1e-6)
    lowered = shaped(**penalties, missing_end_penalty=2.0)
    np.testing.assert_allclose(lowered, expected - [0, 0, 2, 2], rtol=1e-6)
    replaced = shaped(**penalties, missing_end_score=-4.0)
    np.testing.assert_allclose(replaced, [*expected[:2], -4, -4], rtol=1e-6)


def test_scores_of_steps_are_scaled_each_and_punished_at_the_end():
    scores = np.array([[0.0, 2.0, 4.0, 0.0], [0.0, -6.0, 1.0, 2.0]])
    last = np.array([[False, False, True, False], [False, False, False, True]])
    responses = [[5, 5], [1, 2, 3]]
    found = shaped(
        scores,
        responses,
        last,
        scale=0.5,
        clip=1.5,
        per_token=True,
        repetition_penalty=1.0,
        repetition_ngram=1,
    )
    # Halved, cut at 1.5, divided by two and three tokens; half of the first row is repeated.
    expected = [[0, 0.5, 0.75 - 0.5, 0], [0, -0.5, 0.5 / 3, 1 / 3]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_moments_are_those_of_all_scores_so_far():
    generator, moments, so_far = np.random.default_rng(2), RunningMoments(), []
    assert moments.std == 1.0
    for size in (1, 7, 3, 12):
        scores = generator.normal(50, 3, size)
        moments, so_far = moments.including(scores), [*so_far, *scores]
        assert moments.size == len(so_far)
        assert moments.mean == pytest.approx(np.mean(so_far))
        assert moments.std == pytest.approx(np.std(so_far) if size > 1 else 1.0)


def test_equal_scores_are_not_divided_by_nothing():
    assert RunningMoments().including(np.full(5, 0.1)).std == 1.0
