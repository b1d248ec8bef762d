"""How reward functions are called, what they may return, and how scores are shaped."""

import asyncio
import functools
import json

import helpers
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts import scoring, weighted
from kerasrlhf.rollouts.scoring import Episodes, RewardLog, TrainerState
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.types import Responses

PROMPTS, RESPONSES = ["p0", "p1", "p2"], ["r0", "r1", "r2"]
EPISODES = Episodes(PROMPTS, RESPONSES, {"label": [10, 20, None]})
LENGTHS, COUNTS = np.array([1, 2, 3]), np.array([2, 1, 0])
COLUMNS = np.arange(5)[None]
PADDING = (LENGTHS + COUNTS)[:, None] > COLUMNS
SAMPLED = Responses(
    token_ids=np.arange(15, dtype="int32").reshape(3, 5),
    padding_mask=PADDING,
    response_mask=PADDING & (LENGTHS[:, None] <= COLUMNS),
    prompt_lengths=LENGTHS.astype("int32"),
    ended=np.array([True, False, True]),
    logprobs=np.zeros((3, 5), "float32"),
    values=np.zeros((3, 5), "float32"),
    behavior_logprobs=np.zeros((3, 5), "float32"),
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
    "prompt_texts": PROMPTS,
    "trainer_state": TrainerState(),
}


def called(wrap, episodes=EPISODES):
    """The arguments that a function gets, made by `wrap` around a recorder."""
    received = []

    def record(*args, **kwargs):
        received.append((args, kwargs))
        return [0.0, 0.0, 0.0]

    scoring.call_reward(wrap(record), episodes, SAMPLED)
    ((args, kwargs),) = received
    loggers = {name: kwargs.pop(name) for name in ("log_metric", "log_extra") if name in kwargs}
    assert all(map(callable, loggers.values()))
    return args, kwargs


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


class Opaque:
    __signature__ = "none"

    def __call__(self, *args):
        assert args == (PROMPTS, RESPONSES)
        return [1.0, 2.0, 3.0]


def test_a_builtin_without_a_signature_is_called_by_position():
    assert scoring.call_reward(Opaque(), EPISODES, SAMPLED).tolist() == [1.0, 2.0, 3.0]


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
        scoring.call_reward(function, EPISODES, SAMPLED)


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
        "trainer_state",
    }
    for function in (lambda responses: [], lambda x, y: [], lambda *args: [], Opaque()):
        with pytest.raises(ValueError, match="response_ids"):
            scoring.call_reward(function, episodes, SAMPLED)


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
    scores = scoring.call_reward(lambda responses: result, EPISODES, SAMPLED)
    assert scores.dtype == "float32" and scores.tolist() == [0.25, -1.5, 3.0]


def test_truth_values_are_numbers():
    scores = scoring.call_reward(lambda responses: [True, False, True], EPISODES, SAMPLED)
    assert scores.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "7", [1.0, 2.0], object()])
def test_what_is_no_finite_number_is_named_with_its_row(bad):
    def my_reward(responses):
        return [1.0, bad, 2.0]

    with pytest.raises(ValueError, match=r"`my_reward`.*1 of 3 rows are neither: row 1"):
        scoring.call_reward(my_reward, EPISODES, SAMPLED)


@pytest.mark.parametrize(
    "result",
    [
        *([1.0], [1.0] * 4, [], 1.0, np.float32(1.0), None),
        *({1: 0.0, 2: 0.0, 3: 0.0}, {1.0, 2.0, 3.0}, {1: 0, 2: 0, 3: 0}.keys(), "123", b"123"),
    ],
)
def test_one_number_per_response(result):
    """Mappings, sets and strings too: their keys and letters are no scores."""
    with pytest.raises(ValueError, match=r"one number per response\. Expected 3"):
        scoring.call_reward(lambda responses: result, EPISODES, SAMPLED)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "bool"])
def test_tensors_of_any_number_type(dtype):
    result = tf.cast([1, 0, 1], dtype)
    scores = scoring.call_reward(lambda responses: result, EPISODES, SAMPLED)
    assert scores.tolist() == [1.0, 0.0, 1.0]


def test_none_is_where_a_function_does_not_apply():
    scores = scoring.call_reward(lambda responses: [None, 2.0, None], EPISODES, SAMPLED)
    np.testing.assert_array_equal(scores, np.float32([np.nan, 2.0, np.nan]))


def test_one_response_without_a_score_is_not_a_function_without_a_return():
    one = Responses(*(None if x is None else x[:1] for x in SAMPLED))
    episodes = Episodes(["p"], ["r"], {})
    assert np.isnan(scoring.call_reward(lambda responses: [None], episodes, one))
    with pytest.raises(ValueError, match="received None of type NoneType"):
        scoring.call_reward(lambda responses: None, episodes, one)


ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "p1"}]
DIALOGUE = EPISODES._replace(conversations=[None, ASKED, None])


def test_a_dialogue_is_seen_as_messages():
    """Only where the prompt is one; `responses` and `prompt_texts` are texts always."""
    replies = ["r0", [{"role": "assistant", "content": "r1"}], "r2"]
    expected = {**EVERYTHING, "prompts": ["p0", ASKED, "p2"], "completions": replies}
    assert called(lambda f: lambda **kwargs: f(**kwargs), DIALOGUE) == ((), expected)
    by_position = called(lambda f: lambda x, y: f(x, y), DIALOGUE)
    assert by_position == ((["p0", ASKED, "p2"], RESPONSES), {})


def test_a_function_may_change_the_messages_it_gets():
    def careless(prompts, completions):
        prompts[1].pop()["content"] = ""
        completions[1][0]["content"] = ""
        return [0.0] * 3

    before = [{**message} for message in ASKED]
    scoring.call_reward(careless, DIALOGUE, SAMPLED)
    assert before == ASKED and DIALOGUE.responses == RESPONSES


async def slowly(responses, label, **kwargs):
    await asyncio.sleep(0.01)
    return [float(x or 5) for x in label]


class SlowJudge:
    async def __call__(self, responses, label):
        return await slowly(responses, label)

    async def method(self, responses, label):
        return await slowly(responses, label)


def later(responses, label):
    """No `async def` itself."""
    return slowly(responses, label)


ASYNCHRONOUS = [slowly, SlowJudge(), SlowJudge().method, functools.partial(slowly, scale=1), later]


@pytest.mark.parametrize("function", ASYNCHRONOUS)
def test_asynchronous_functions_run_to_completion(function):
    assert scoring.call_reward(function, EPISODES, SAMPLED).tolist() == [10.0, 20.0, 5.0]


def test_asynchronous_functions_run_where_a_loop_runs_already():
    async def notebook():
        return scoring.call_reward(slowly, EPISODES, SAMPLED)

    assert asyncio.run(notebook()).tolist() == [10.0, 20.0, 5.0]


def test_asynchronous_functions_wait_together_and_keep_their_places():
    async def meet(responses, barrier):
        await asyncio.wait_for(barrier(), timeout=10)
        return [1.0, 2.0, None]

    met = []

    async def both():
        met.append(1)
        while len(met) < 2:
            await asyncio.sleep(0)

    first, last = (functools.partial(meet, barrier=both) for _ in range(2))
    scores = scoring.call_rewards([first, lambda responses: [7] * 3, last], EPISODES, SAMPLED)
    expected = [[1.0, 2.0, np.nan], [7.0] * 3, [1.0, 2.0, np.nan]]
    np.testing.assert_array_equal(scores, np.float32(expected))


def test_asynchronous_functions_share_one_loop():
    """A client that a function keeps open belongs to the loop that it was made in."""
    loops = []

    async def remembers(responses):
        loops.append(asyncio.get_running_loop())
        return [0.0] * 3

    for _ in range(2):
        scoring.call_reward(remembers, EPISODES, SAMPLED)
    assert loops[0] is loops[1]


def test_errors_of_asynchronous_functions_are_seen():
    async def fails(responses):
        raise KeyError("no such judge")

    def broken(responses):
        raise OSError("disk")

    with pytest.raises(KeyError, match="no such judge"):
        scoring.call_rewards([slowly, fails], EPISODES, SAMPLED)
    with pytest.raises(OSError, match="disk"):  # and no warning of what was never awaited
        scoring.call_rewards([slowly, broken], EPISODES, SAMPLED)


def test_the_state_of_training_says_what_it_has():
    state = TrainerState(global_step=3, episodes=12)
    scores = scoring.call_reward(
        lambda trainer_state: [trainer_state.global_step, trainer_state.episodes, 0],
        *(EPISODES, SAMPLED, state),
    )
    assert scores.tolist() == [3.0, 12.0, 0.0]
    with pytest.raises(AttributeError, match=r"no 'max_steps'.*global_step.*episodes"):
        scoring.call_reward(lambda trainer_state: trainer_state.max_steps, EPISODES, SAMPLED)
    with pytest.raises(AttributeError):
        state.global_step = 4


def test_what_functions_log():
    def logs(responses, log_metric, log_extra):
        log_metric("accuracy", 1)
        log_metric("accuracy", tf.constant(0.5))
        log_extra("verdict", (r.upper() for r in responses))
        return [0.0] * 3

    log = RewardLog(3)
    scoring.call_reward(logs, EPISODES, SAMPLED, log=log)
    assert log.metrics == {"accuracy": [1.0, 0.5]} and log.columns == {
        "verdict": ["R0", "R1", "R2"]
    }
    scoring.call_reward(logs, EPISODES, SAMPLED)
    with pytest.raises(ValueError, match=r"one entry per response. Expected 3 .*'x', received 2"):
        log.extra("x", [1, 2])
    with pytest.raises(ValueError, match=r"a name and a number. Received: 'x', 'high'"):
        log.metric("x", "high")


ENDED = np.array([True, False, True, False])


@pytest.mark.parametrize(
    ("options", "expected"),
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
def test_shaping_has_an_order(options, expected):
    """N15 in both published forms; the penalty is neither scaled nor clipped."""
    scores = RewardShaping(**options).apply(np.array([0.5, 4.0, -3.25, -0.5]), ENDED)
    assert scores.dtype == "float32" and scores.tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing_end_score": -1.0, "missing_end_penalty": 1.0}, "pass one of them"),
        ({"clip": 0.0}, "`clip`"),
        ({"scale": "big"}, "`scale`"),
        ({"missing_end_score": float("nan")}, "`missing_end_score`"),
        ({"missing_end_penalty": "1"}, "`missing_end_penalty`"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RewardShaping(**options)


@pytest.mark.parametrize("options", [{"missing_end_score": -1.0}, {"missing_end_penalty": 0.0}])
def test_missing_ends_need_stop_tokens(options):
    with pytest.raises(ValueError, match="need stop tokens"):
        RewardShaping(**options).check_sampler(length=4, can_end=False)


def test_options_that_make_sense_pass():
    RewardShaping(missing_end_score=-1.0, clip=2.0).check_sampler(length=4, can_end=True)
    RewardShaping().check_sampler(length=4, can_end=False)


def test_texts_and_columns_are_read_off_a_batch():
    preprocessor = helpers.preprocessor()
    samples = SAMPLED._replace(token_ids=SAMPLED.token_ids % 5 + 1)  # letters a to e
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
    assert episodes.conversations == [None] * 3 and decoded.conversations is None
    messages = [{"role": "user", "content": "two"}]
    batch["record"] = [json.dumps({"prompt": x}) for x in ("one", messages, "three")]
    dialogue = scoring.read_episodes(samples, batch, preprocessor)
    assert dialogue.conversations == [None, messages, None]
    assert dialogue.prompts == ["é one", "two", "three"]
    bare = scoring.read_episodes(samples, {}, None)
    assert (bare.prompts, bare.responses) == (None, None)


def test_who_shares_token_ids():
    ours = helpers.lm(texts=True)
    same = RewardModel(helpers.lm(texts=True, seed=4))
    other = RewardModel(helpers.lm(texts=True, vocab=20))
    bare, narrow = RewardModel(helpers.backbone()), RewardModel(helpers.backbone(vocab=20))
    assert weighted.shares_tokens(RewardModel.from_causal_lm(ours), ours)
    assert weighted.shares_tokens(same, ours)
    assert not weighted.shares_tokens(other, ours)
    assert weighted.shares_tokens(bare, ours)
    with pytest.raises(ValueError, match="actor with 23 entries and a reward model with 20"):
        weighted.shares_tokens(narrow, ours)
