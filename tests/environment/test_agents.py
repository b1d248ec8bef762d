"""Agents of other libraries act in the environments, and learn in them."""

import collections
import itertools

import gymnasium
import helpers
import numpy as np
import pytest
import worlds

import kerasrlhf as rlhf

VOCAB, LENGTH = 4, 3
# The score of each token in its place; token 0 ends a response and so forgoes what follows.
TABLE = np.array([[0.5, 0.0, 1.0, 0.2], [0.1, 0.6, 0.0, 0.9], [0.0, 0.3, 0.2, -1.0]])


def of_table(response_ids):
    # A pair is worth more than the best tokens apart, which begin with another one.
    return [
        2.0 * (row[:2] == [1, 1]) + sum(TABLE[i][t] for i, t in enumerate(row))
        for row in response_ids
    ]


def toy():
    return gymnasium.make(
        "kerasrlhf/Token-v0",
        prompts=worlds.bare((2, 3), vocab=VOCAB),
        reward=of_table,
        causal_lm=helpers.lm(vocab=VOCAB),
        sampler=rlhf.Sampler(LENGTH, stop_token_ids=[0]),
    )


def all_responses():
    for length in range(1, LENGTH + 1):
        for row in itertools.product(range(VOCAB), repeat=length):
            if 0 not in row[:-1] and (row[-1] == 0 or length == LENGTH):
                yield list(row)


OPTIMUM = max(of_table([row])[0] for row in all_responses())


@pytest.mark.parametrize("name", worlds.MAKERS)
def test_a_random_agent_acts(name):
    environment = worlds.MAKERS[name]()
    environment.action_space.seed(0)
    for _ in range(20):
        rewards, steps = worlds.episode(environment, lambda _: environment.action_space.sample())
        assert all(reward == 0.0 for reward in rewards[:-1])
        for observation, *_ in steps:
            assert environment.observation_space.contains(observation)


def test_a_tabular_agent_learns_the_optimum():
    """Q-learning over the tokens so far, without a network."""
    environment, generator = toy(), np.random.default_rng(0)
    values = collections.defaultdict(lambda: np.zeros(VOCAB))
    key = lambda observation: tuple(worlds.tokens_of(observation))  # noqa: E731
    for number in range(1500):
        observation, _ = environment.reset(seed=0 if number == 0 else None)
        done = False
        while not done:
            state = key(observation)
            explores = generator.random() < 0.5
            action = generator.integers(VOCAB) if explores else int(values[state].argmax())
            observation, reward, terminated, truncated, _ = environment.step(action)
            done = terminated or truncated
            target = reward + (0.0 if done else values[key(observation)].max())
            values[state][action] += 0.5 * (target - values[state][action])
    for number in range(2):
        rewards, _ = worlds.episode(
            environment, lambda x: int(values[key(x)].argmax()), options={"prompt": number}
        )
        assert sum(rewards) == pytest.approx(OPTIMUM)
    assert pytest.approx(2.0 + 0.0 + 0.6 + 0.3) == OPTIMUM
