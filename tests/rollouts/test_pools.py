"""Slow reward functions are called in parts, in time, and again after a failure."""

import asyncio
import contextvars
import threading
import time

import helpers
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.rollouts import scoring
from kerasrlhf.trainers import settings
from kerasrlhf.types import Responses

ROWS = 5
RESPONSES = Responses(*[np.ones((ROWS, 3), "int32")] * len(Responses._fields))
EPISODES = scoring.Episodes([*"abcde"], [*"vwxyz"], {"target": [*"vvxxz"]})


def called(function, log=None, **options):
    options = {"wait": 0.0, "retries": 0, **options}
    return scoring.call_reward(rlhf.RewardPool(function, **options), EPISODES, RESPONSES, log=log)


def exact(completions, target, **kwargs):
    return [float(c == t) for c, t in zip(completions, target, strict=True)]


async def exact_async(completions, target, **kwargs):
    await asyncio.sleep(0.001)
    return exact(completions, target)


@pytest.mark.parametrize("function", [exact, exact_async])
@pytest.mark.parametrize("rows", [1, 2, ROWS, 9])
def test_parts_have_the_scores_of_the_whole(function, rows):
    scores = called(function, rows=rows, workers=3, timeout=20.0)
    np.testing.assert_array_equal(scores, [1, 0, 1, 0, 1])


def test_calls_get_the_rows_of_every_argument():
    seen = []

    def record(prompts, responses, target, response_ids, trainer_state):
        seen.append((prompts, responses, target, len(response_ids), trainer_state.global_step))
        return [None if p == "c" else 1.0 for p in prompts]

    scores = called(record, rows=2, workers=1)
    np.testing.assert_array_equal(scores, [1, 1, np.nan, 1, 1])
    assert seen == [
        (["a", "b"], ["v", "w"], ["v", "v"], 2, 0),
        (["c", "d"], ["x", "y"], ["x", "x"], 2, 0),
        (["e"], ["z"], ["z"], 1, 0),
    ]


def test_functions_of_prompts_and_responses_by_position():
    assert called(lambda question, answer: [float(len(question))], rows=1).tolist() == [1.0] * ROWS


def test_workers_call_at_the_same_time_and_not_more_of_them():
    barrier, running, most = threading.Barrier(2), [], []

    def waits(responses):
        running.append(1)
        most.append(len(running))
        barrier.wait(20)
        running.pop()
        return [0.0]

    # Each call waits for another one: with a single worker the first would never return.
    episodes = EPISODES._replace(prompts=[*"abcd"], responses=[*"vwxy"], columns={})
    samples = Responses(*[x[:4] for x in RESPONSES])
    scoring.call_reward(rlhf.RewardPool(waits, workers=2, retries=0), episodes, samples)
    assert len(most) == 4 and max(most) == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failed_call_is_repeated_with_its_own_rows(is_async):
    calls = {}

    def flaky(responses, log_metric):
        key = "".join(responses)
        calls[key] = calls.get(key, 0) + 1
        log_metric("calls", calls[key])
        if key == "xy" and calls[key] < 3:
            raise ConnectionError("busy")
        return [float(calls[key])] * len(responses)

    async def flaky_async(responses, log_metric):
        return flaky(responses, log_metric)

    log = scoring.RewardLog(ROWS)
    function = flaky_async if is_async else flaky
    scores = called(function, log, rows=2, retries=2)
    assert scores.tolist() == [1, 1, 3, 3, 1] and calls == {"vw": 1, "xy": 3, "z": 1}
    # What a failed call logged is dropped.
    assert log.metrics == {"calls": [1.0, 3.0, 1.0]}


def test_pauses_grow():
    times = []

    def fails(responses):
        times.append(time.perf_counter())
        raise OSError

    with pytest.raises(RuntimeError):
        called(fails, rows=ROWS, retries=2, wait=0.1)
    first, second = np.diff(times)
    assert 0.1 <= first < second and second >= 0.2


def hangs(responses):
    if "x" in responses:
        threading.Event().wait(20)
    return [0.0] * len(responses)


async def hangs_async(responses):
    if "x" in responses:
        await asyncio.sleep(20)
    return [0.0] * len(responses)


@pytest.mark.parametrize("function", [hangs, hangs_async])
def test_a_call_that_hangs_names_function_and_rows(function):
    start = time.perf_counter()
    message = rf"`{function.__name__}` failed for rows 2 to 3 of 5 in 2 calls: .*timeout=0\.1"
    with pytest.raises(TimeoutError, match=message):
        called(function, rows=2, timeout=0.1, retries=1)
    assert time.perf_counter() - start < 10


def test_an_error_names_function_and_row_and_keeps_its_cause():
    def judge(responses):
        if responses == ["y"]:
            raise KeyError("verdict")
        return [0.0]

    with pytest.raises(
        RuntimeError, match=r"`judge` failed for row 3 of 5 in 1 call: KeyError"
    ) as e:
        called(judge)
    assert isinstance(e.value.__cause__, KeyError)


def test_a_wrong_number_of_scores_is_not_tried_again():
    calls = []

    def short(responses):
        calls.append(responses)
        return [0.0]

    with pytest.raises(ValueError, match=r"`short`.*Expected 2 for rows 0 to 1 of 5, received 1"):
        called(short, rows=2, workers=1, retries=3)
    assert calls == [["v", "w"]]


def test_columns_that_calls_log_are_those_of_the_batch():
    def verdicts(responses, log_extra):
        if "x" not in responses:
            log_extra("verdict", [r.upper() for r in responses])
        return [0.0] * len(responses)

    log = scoring.RewardLog(ROWS)
    called(verdicts, log, rows=2)
    assert log.columns == {"verdict": ["V", "W", None, None, "Z"]}


def test_calls_have_the_context_of_the_caller():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    assert called(lambda responses: [variable.get()], timeout=20.0).tolist() == [7] * ROWS


def test_a_trainer_takes_it_like_its_function():
    def judge(completions, **kwargs):
        return [float(len(text)) for text in completions]

    pool = rlhf.RewardPool(judge, workers=2)
    made = helpers.ppo(helpers.actor(texts=True), [pool, (judge, 0.5)])
    made.compile("sgd", run_eagerly=True)
    parts = made.collect(helpers.prompts([2, 4, 3, 1])).part_scores
    assert [*parts] == ["judge", "judge_2"]
    np.testing.assert_array_equal(parts["judge"], parts["judge_2"])
    assert parts["judge"].sum() > 0


def test_a_resumed_run_may_have_other_workers_but_not_another_function():
    pool = rlhf.RewardPool(exact, workers=2)
    assert settings.describe(pool) == settings.describe(
        rlhf.RewardPool(exact, workers=4, retries=9)
    )
    assert settings.describe(pool) != settings.describe(rlhf.RewardPool(exact_async))
    assert settings.describe(pool) != settings.describe(rlhf.RewardPool(exact, rows=3))
    assert (
        repr(rlhf.RewardPool(len, rows=2)) == "RewardPool(function=<built-in function len>, rows=2)"
    )


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"rows": 0}, {"timeout": 0.0}, {"retries": -1}, {"wait": -1.0}],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rlhf.RewardPool(exact, **options)


def test_what_is_no_function():
    with pytest.raises(ValueError, match=r"`function` must be a reward function.*'judge'"):
        rlhf.RewardPool("judge")


def test_a_function_without_rows():
    with pytest.raises(ValueError, match="take `responses`"):
        called(lambda trainer_state: [0.0])
