"""How reward functions are called, what they may return, and the rules behind them."""

import functools

import helpers
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts import scoring
from kerasrlhf.rollouts.rules import ScoreRules
from kerasrlhf.rollouts.scoring import Episodes
from kerasrlhf.types import Samples

PROMPTS, RESPONSES = ["p0", "p1", "p2"], ["r0", "r1", "r2"]
EPISODES = Episodes(PROMPTS, RESPONSES, {"label": [10, 20, None]})
LENGTHS, COUNTS = np.array([1, 2, 3]), np.array([2, 1, 0])
COLUMNS = np.arange(5)[None]
PADDING = (LENGTHS + COUNTS)[:, None] > COLUMNS
SAMPLES = Samples(
    token_ids=np.arange(15, dtype="int32").reshape(3, 5),
    padding_mask=PADDING,
    response_mask=PADDING & (LENGTHS[:, None] <= COLUMNS),
    prompt_lengths=LENGTHS.astype("int32"),
    ended=np.array([True, False, True]),
    logprobs=np.zeros((3, 5), "float32"),
    values=np.zeros((3, 5), "float32"),
)
PROMPT_IDS, RESPONSE_IDS = [[0], [5, 6], [10, 11, 12]], [[1, 2], [7], []]
EVERYTHING = {
    "prompts": PROMPTS,
    "responses": RESPONSES,
    "completions": RESPONSES,
    "prompt_ids": PROMPT_IDS,
    "response_ids": RESPONSE_IDS,
    "completion_ids": RESPONSE_IDS,
    "label": [10, 20, None],
}


def called(wrap, episodes=EPISODES):
    """The arguments that a function gets, made by `wrap` around a recorder."""
    received = []

    def record(*args, **kwargs):
        received.append((args, kwargs))
        return [0.0, 0.0, 0.0]

    scoring.call_reward(wrap(record), episodes, SAMPLES)
    (found,) = received
    return found


class Judge:
    def __init__(self, record):
        self.record = record

    def __call__(self, responses, label):
        return self.record(responses=responses, label=label)

    def method(self, completions):
        return self.record(completions=completions)


def keyword_only(record):
    def reward(*, responses, label=None):
        return record(responses=responses, label=label)

    return reward


def trl_style(record):
    def reward(completions, **kwargs):
        return record(completions=completions, **kwargs)

    return reward


def positional_only(record):
    def reward(prompts, responses, /):
        return record(prompts, responses)

    return reward


def pick(*names):
    return {name: EVERYTHING[name] for name in names}


@pytest.mark.parametrize(
    ("wrap", "args", "kwargs"),
    [
        (lambda f: lambda responses: f(responses=responses), (), pick("responses")),
        (
            lambda f: lambda responses, prompts: f(responses=responses, prompts=prompts),
            (),
            pick("prompts", "responses"),
        ),
        (lambda f: lambda completions: f(completions=completions), (), pick("completions")),
        (
            lambda f: (
                lambda response_ids, completion_ids, prompt_ids: f(
                    response_ids=response_ids, completion_ids=completion_ids, prompt_ids=prompt_ids
                )
            ),
            (),
            pick("response_ids", "completion_ids", "prompt_ids"),
        ),
        (lambda f: lambda label, responses: f(label, responses), ([10, 20, None], RESPONSES), {}),
        (lambda f: lambda **kwargs: f(**kwargs), (), EVERYTHING),
        (trl_style, (), EVERYTHING),
        (lambda f: lambda x, y: f(x, y), (PROMPTS, RESPONSES), {}),
        (
            lambda f: lambda questions, answers, scale=2: f(questions, answers, scale),
            (PROMPTS, RESPONSES, 2),
            {},
        ),
        (lambda f: lambda *args: f(*args), (PROMPTS, RESPONSES), {}),
        (positional_only, (PROMPTS, RESPONSES), {}),
        (lambda f: lambda responses, weight=3.0: f(responses, weight), (RESPONSES, 3.0), {}),
        (lambda f: lambda responses, label=0: f(responses, label), (RESPONSES, [10, 20, None]), {}),
        (keyword_only, (), pick("responses", "label")),
        (Judge, (), pick("responses", "label")),
        (lambda f: Judge(f).method, (), pick("completions")),
        (
            lambda f: functools.partial(lambda scale, responses: f(scale, responses), 0.5),
            (0.5, RESPONSES),
            {},
        ),
    ],
)
def test_the_signature_decides(wrap, args, kwargs):
    assert called(wrap) == (args, kwargs)


def test_a_builtin_without_a_signature_is_called_by_position():
    class Opaque:
        __signature__ = "none"

        def __call__(self, *args):
            assert args == (PROMPTS, RESPONSES)
            return [1.0, 2.0, 3.0]

    assert scoring.call_reward(Opaque(), EPISODES, SAMPLES).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        (lambda responses, answer: [], "answer"),
        (lambda responses, answer, **kwargs: [], "answer"),
        (lambda a, b, c: [], r"'a', 'b', 'c'"),
        (lambda x: [], "x"),
    ],
)
def test_missing_columns_are_named_and_the_others_listed(function, missing):
    with pytest.raises(ValueError, match=f"{missing}.*completions.*label.*prompts"):
        scoring.call_reward(function, EPISODES, SAMPLES)


def test_without_a_tokenizer_there_are_token_ids():
    episodes = Episodes(None, None, {})
    assert called(lambda f: lambda response_ids: f(response_ids=response_ids), episodes) == (
        (),
        {"response_ids": RESPONSE_IDS},
    )
    assert {*called(lambda f: lambda **kwargs: f(**kwargs), episodes)[1]} == {
        "prompt_ids",
        "response_ids",
        "completion_ids",
    }
    for function in (lambda responses: [], lambda x, y: [], lambda *args: []):
        with pytest.raises(ValueError, match="response_ids"):
            scoring.call_reward(function, episodes, SAMPLES)


@pytest.mark.parametrize(
    "result",
    [
        [0.25, -1.5, 3],
        (0.25, -1.5, 3.0),
        np.array([0.25, -1.5, 3.0]),
        np.array([[0.25], [-1.5], [3.0]], "float16"),
        tf.constant([0.25, -1.5, 3.0]),
        [tf.constant(0.25), np.float64(-1.5), np.array([3])],
        (x for x in (0.25, -1.5, 3)),
    ],
)
def test_fractions_survive_in_any_container(result):
    """The mistake of an array made like the token ids, which cuts fractions off."""
    scores = scoring.call_reward(lambda responses: result, EPISODES, SAMPLES)
    assert scores.dtype == "float32" and scores.tolist() == [0.25, -1.5, 3.0]


def test_truth_values_are_numbers():
    scores = scoring.call_reward(lambda responses: [True, False, True], EPISODES, SAMPLES)
    assert scores.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "7", [1.0, 2.0], object()])
def test_what_is_no_finite_number_is_named_with_its_row(bad):
    def my_reward(responses):
        return [1.0, bad, 2.0]

    with pytest.raises(ValueError, match=r"`my_reward`.*1 of 3 rows are not: row 1"):
        scoring.call_reward(my_reward, EPISODES, SAMPLES)


@pytest.mark.parametrize("result", [[1.0], [1.0] * 4, [], 1.0, np.float32(1.0), None])
def test_one_number_per_response(result):
    with pytest.raises(ValueError, match=r"one number per response\. Expected 3"):
        scoring.call_reward(lambda responses: result, EPISODES, SAMPLES)


ENDED = np.array([True, False, True, False])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [0.5, 4.0, -3.25, -0.5]),
        ({"scale": 2.0}, [1.0, 8.0, -6.5, -1.0]),
        ({"clip": 1.0}, [0.5, 1.0, -1.0, -0.5]),
        ({"scale": 2.0, "clip": 3.0}, [1.0, 3.0, -3.0, -1.0]),
        ({"missing_end_score": -1.0}, [0.5, -1.0, -3.25, -1.0]),
        ({"missing_end_penalty": 1.5}, [0.5, 2.5, -3.25, -2.0]),
        ({"scale": 0.5, "clip": 1.0, "missing_end_score": -9.0}, [0.25, -9.0, -1.0, -9.0]),
        ({"scale": 0.5, "clip": 1.0, "missing_end_penalty": 5.0}, [0.25, -4.0, -1.0, -5.25]),
        ({"missing_end_score": 0.0}, [0.5, 0.0, -3.25, 0.0]),
    ],
)
def test_rules_in_their_order(rules, expected):
    """N15 in both published forms; the penalty is neither scaled nor clipped."""
    scores = ScoreRules(**rules).apply(np.array([0.5, 4.0, -3.25, -0.5]), ENDED)
    assert scores.dtype == "float32" and scores.tolist() == expected


@pytest.mark.parametrize(
    ("rules", "can_end", "message"),
    [
        ({"missing_end_score": -1.0, "missing_end_penalty": 1.0}, True, "give one of them"),
        ({"missing_end_score": -1.0}, False, "needs stop tokens"),
        ({"missing_end_penalty": 0.0}, False, "needs stop tokens"),
        ({"clip": 0.0}, True, "`score_clip`"),
        ({"scale": "big"}, True, "`score_scale`"),
        ({"missing_end_score": float("nan")}, True, "`missing_end_score`"),
        ({"missing_end_penalty": "1"}, True, "`missing_end_penalty`"),
    ],
)
def test_rules_that_contradict_are_refused(rules, can_end, message):
    with pytest.raises(ValueError, match=message):
        ScoreRules(**rules).check(can_end)


def test_rules_that_make_sense_pass():
    ScoreRules(missing_end_score=-1.0, clip=2.0).check(True)
    ScoreRules().check(False)


def test_texts_and_columns_are_read_off_a_batch():
    preprocessor = helpers.preprocessor()
    samples = SAMPLES._replace(token_ids=SAMPLES.token_ids % 5 + 1)  # letters a to e
    batch = {
        "prompt": tf.constant(["é one", "two", "three"]),
        "record": tf.constant(['{"prompt": "é one", "n": 1}', '{"n": 2, "m": "x"}', "{}"]),
    }
    episodes = scoring.read_episodes(samples, batch, preprocessor)
    assert episodes.prompts == ["é one", "two", "three"]
    assert episodes.responses == ["bc", "c", ""]
    assert episodes.columns == {
        "prompt": ["é one", None, None],
        "n": [1, 2, None],
        "m": [None, "x", None],
    }
    decoded = scoring.read_episodes(samples, {}, preprocessor)
    assert decoded.prompts == ["a", "ab", "abc"] and decoded.columns == {}
    bare = scoring.read_episodes(samples, {}, None)
    assert (bare.prompts, bare.responses) == (None, None)


def test_who_shares_token_ids():
    ours = helpers.lm(texts=True)
    same = RewardModel(helpers.lm(texts=True, seed=4))
    other = RewardModel(helpers.lm(texts=True, vocab=20))
    bare, narrow = RewardModel(helpers.backbone()), RewardModel(helpers.backbone(vocab=20))
    assert scoring.shares_tokens(RewardModel.from_causal_lm(ours), ours)
    assert scoring.shares_tokens(same, ours)
    assert not scoring.shares_tokens(other, ours)
    assert scoring.shares_tokens(bare, ours)
    with pytest.raises(ValueError, match="actor with 23 entries and a reward model with 20"):
        scoring.shares_tokens(narrow, ours)
