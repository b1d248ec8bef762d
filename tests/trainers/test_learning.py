"""A task whose best policy can be computed: PPO must come close to it (DETAILS, part 3).

Every response over a vocabulary of six with at most three tokens is listed: those that end with
the stop token and those of full length. With reference p, score r and coefficient b the best
value of E[r] - b KL is b log E_p[exp(r / b)], and that of a policy is a sum over the list.
"""

import itertools

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.types import Sampler

VOCAB, STOP, LENGTH, COEF = 6, 0, 3, 0.5
OTHERS = range(1, VOCAB)
RESPONSES = [
    *((*head, STOP) for n in range(LENGTH) for head in itertools.product(OTHERS, repeat=n)),
    *itertools.product(OTHERS, repeat=LENGTH),
]
SCORES = dict(zip(RESPONSES, np.random.default_rng(4).uniform(-1, 1, len(RESPONSES)), strict=True))
PROMPT, ITERATIONS = 2, 150


def reward(response_ids):
    return [SCORES[tuple(row)] for row in response_ids]


def log_probabilities(read):
    """Of every response, from a function of ids and mask that gives `(rows, length)`."""
    ids = np.zeros((len(RESPONSES), 1 + LENGTH), "int32")
    ids[:, 0] = PROMPT
    for row, response in zip(ids, RESPONSES, strict=True):
        row[1 : 1 + len(response)] = response
    mask = np.arange(1 + LENGTH)[None] <= np.array([len(r) for r in RESPONSES])[:, None]
    return np.sum(np.where(mask, read(ids, mask), 0.0), axis=1, dtype="float64")


def value(log_policy, log_reference):
    """J = E[r] - b KL, exactly."""
    policy = np.exp(log_policy)
    scores = np.array([SCORES[r] for r in RESPONSES])
    return policy @ (scores - COEF * (log_policy - log_reference))


def make_regret(trainer):
    starts = np.ones(len(RESPONSES), "int32")
    log_reference = log_probabilities(
        lambda ids, mask: trainer.reference.logprobs(ids, mask, starts, LENGTH)
    )
    assert np.exp(log_reference).sum() == pytest.approx(1.0, abs=1e-4)
    scores = np.array([SCORES[r] for r in RESPONSES])
    best = COEF * np.log(np.exp(log_reference) @ np.exp(scores / COEF))
    gap = best - value(log_reference, log_reference)
    assert gap > 0.2, "there must be something to learn"

    def regret():
        log_policy = log_probabilities(
            lambda ids, mask: trainer.actor.token_stats(ids, mask).logprobs
        )
        assert np.exp(log_policy).sum() == pytest.approx(1.0, abs=1e-4)
        return (best - value(log_policy, log_reference)) / gap

    return regret


@pytest.mark.slow
def test_ppo_comes_close_to_the_best_policy():
    trainer = helpers.ppo(
        ActorCritic(helpers.lm(vocab=VOCAB, positions=8, stddev=0.25)),
        reward,
        sampler=Sampler(length=LENGTH, stop_token_ids=[STOP]),
        kl=FixedKL(COEF),
        update_epochs=2,
        num_minibatches=2,
    )
    rate = keras.optimizers.schedules.PolynomialDecay(3e-3, 4 * ITERATIONS, 0.0)  # N5
    trainer.compile(keras.optimizers.Adam(rate, epsilon=1e-5))
    regret = make_regret(trainer)
    assert regret() == pytest.approx(1.0, abs=1e-3)
    batch = {"token_ids": np.full((128, 1), PROMPT), "padding_mask": np.ones((128, 1), bool)}
    for _ in range(ITERATIONS):
        trainer.iterate(batch)
    assert 0.0 <= regret() < 0.1
    assert trainer.statistics["objective/ended"] < 1.0
