"""A reward function that hangs ends with an error that names it."""

import asyncio
import threading
import time

import helpers
import numpy as np
import pytest

from kerasrlhf.rollouts import scoring
from kerasrlhf.types import Responses

RESPONSES = Responses(*[np.ones((2, 3), "int32")] * len(Responses._fields))
EPISODES = scoring.Episodes(["a", "b"], ["c", "d"], {})


def call(*functions, timeout=0.2):
    return scoring.call_rewards(functions, EPISODES, RESPONSES, timeout=timeout)


def quick(responses):
    return [1.0, 2.0]


async def quick_async(responses):
    await asyncio.sleep(0)
    return [3.0, 4.0]


def hangs(responses):
    threading.Event().wait(20)


async def hangs_async(responses):
    await asyncio.sleep(20)


async def blocks_the_loop(responses):
    time.sleep(3)


@pytest.mark.parametrize("function", [hangs, hangs_async, blocks_the_loop])
def test_a_function_that_hangs_is_named(function):
    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=rf"`{function.__name__}` .*reward_timeout=0\.2"):
        call(quick, quick_async, function) if function is not blocks_the_loop else call(function)
    assert time.perf_counter() - start < 10
    # What comes afterward is not held up by it.
    for scores, expected in zip(call(quick, quick_async, timeout=9), (1, 3), strict=True):
        assert scores[0] == expected


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
def test_errors_of_a_function_are_its_own(kind):
    def fails(responses):
        raise kind("of its own")

    async def fails_async(responses):
        raise kind("of its own")

    for function in (fails, fails_async):
        with pytest.raises(kind, match="of its own"):
            call(function)


def test_functions_stay_in_the_thread_of_training_without_a_time_out():
    threads = []

    def where(responses):
        threads.append(threading.current_thread())
        return [0.0, 0.0]

    call(where, timeout=None)
    call(where)
    assert threads[0] is threading.main_thread() is not threads[1]


def test_a_trainer_has_the_time_out():
    made = helpers.ppo(reward=lambda response_ids: hangs(None), reward_timeout=0.2)
    made.compile("sgd", run_eagerly=True)
    with pytest.raises(TimeoutError, match="`lambda`"):
        made.collect(helpers.prompts([2, 4]))
    with pytest.raises(ValueError, match="reward_timeout"):
        helpers.ppo(reward_timeout=0)
