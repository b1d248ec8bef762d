"""A task whose best policy can be computed: PPO must come close to it.

A response has at most three of six tokens, and a stop token may end it early. Every token scores a
random number that depends on its place and on the prompt. `kerasrlhf.evaluation.optimum` lists all
responses, so the regret of what was learned is exact.
"""

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf.evaluation import optimum
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.types import Sampler

VOCAB, STOP, LENGTH, COEF = 6, 0, 3, 0.5
PROMPTS = [[2], [4]]
ROWS, ITERATIONS = 128, 200
RESPONSES = optimum.enumerate_responses(VOCAB, LENGTH, [STOP])
POINTS = np.random.default_rng(4).normal(size=(len(PROMPTS), LENGTH, VOCAB))
SCORES = np.array(
    [[sum(row[t, i] for t, i in enumerate(y)) for y in RESPONSES.tuples()] for row in POINTS]
)
TABLE = {
    (prompt, response): score
    for (prompt,), row in zip(PROMPTS, SCORES, strict=True)
    for response, score in zip(RESPONSES.tuples(), row, strict=True)
}


def reward(prompt_ids, response_ids):
    pairs = zip(prompt_ids, response_ids, strict=True)
    return [TABLE[prompt[0], tuple(response)] for prompt, response in pairs]


@pytest.fixture(scope="module")
def trained():
    """Log-probabilities of the reference and of the policy before and after PPO."""
    keras.utils.set_random_seed(0)
    trainer = helpers.ppo(
        ActorCritic(helpers.lm(vocab=VOCAB, positions=8, stddev=0.25, num_layers=2)),
        reward,
        sampler=Sampler(length=LENGTH, stop_token_ids=[STOP]),
        kl=FixedKL(COEF),
        num_minibatches=4,
    )
    updates = ITERATIONS * trainer.updates_per_iteration
    rate = keras.optimizers.schedules.PolynomialDecay(3e-3, updates, 0.0)  # N5
    trainer.compile(keras.optimizers.Adam(rate, epsilon=1e-5))
    read = optimum.ResponseLogprobs(trainer.actor, PROMPTS, RESPONSES)
    reference = optimum.ResponseLogprobs(trainer.reference, PROMPTS, RESPONSES)()
    before = read()
    ids = np.tile(np.array(PROMPTS, "int32"), (ROWS // len(PROMPTS), 1))
    for _ in range(ITERATIONS):
        trainer.iterate({"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)})
    return reference, before, read()


def regret(logprobs, reference, coef=COEF):
    return optimum.regret(logprobs, reference, SCORES, coef)


@pytest.mark.slow
def test_ppo_comes_close_to_the_best_policy(trained):
    reference, before, after = trained
    best = optimum.optimal_logprobs(reference, SCORES, COEF)
    kl = np.sum(np.exp(best) * (best - reference), axis=1)
    assert kl.min() > 0.5, "there must be something to learn"
    assert regret(before, reference) == pytest.approx(1.0, abs=1e-3)
    assert 0.0 <= regret(after, reference) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_what_is_learned_belongs_to_the_coefficient(trained, factor):
    """With half or twice the KL penalty the best policy is another one."""
    reference, _, after = trained
    other = optimum.optimal_logprobs(reference, SCORES, factor * COEF)
    assert regret(after, reference) < 0.5 * regret(other, reference)
    assert regret(after, reference, factor * COEF) > 2 * regret(after, reference)
