"""Where algorithms without a critic end, on a task of which everything can be computed.

A response has at most three of six tokens, and a stop token may end it early. Every token scores a
random number that depends on its place and on the prompt; all responses are listed, so nothing here
is estimated from samples but the gradients of the trainers.
"""

import functools

import helpers
import keras
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.evaluation import grpo_optimum, optimum

VOCAB, STOP, LENGTH, COEF = 6, 0, 3, 0.5
PROMPTS = [[2], [4]]
ROWS, ITERATIONS, RATE = 256, 200, 3e-3
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


@functools.cache
def reference():
    """Log-probabilities of the model before training, of sum 1 in float64."""
    read = optimum.ResponseLogprobs(rlhf.ActorCritic(model()), PROMPTS, RESPONSES)()
    return read - np.log(np.exp(read).sum(axis=1, keepdims=True))


def model():
    shape = {"num_layers": 2, "hidden_dim": 32, "intermediate_dim": 64, "stddev": 0.2}
    return helpers.lm(vocab=VOCAB, positions=8, **shape)


def trained(algorithm, epsilon=0.0, place=None, **options):
    """Log-probabilities of the policy after training; one setting for all algorithms."""
    keras.utils.set_random_seed(0)
    sampler = rlhf.Sampler(length=LENGTH, stop_token_ids=[STOP], epsilon=epsilon)
    actor, kl = rlhf.ActorCritic(model()), rlhf.FixedKL(COEF, place=place)
    trainer = algorithm(actor, reward, sampler=sampler, kl=kl, update_epochs=1, **options)
    rate = keras.optimizers.schedules.PolynomialDecay(RATE, ITERATIONS, 0.0)  # N5
    trainer.compile(keras.optimizers.Adam(rate, epsilon=1e-5))
    repeats = ROWS // trainer.group_size // len(PROMPTS)
    ids = np.tile(np.array(PROMPTS, "int32"), (repeats, 1))
    for _ in range(ITERATIONS):
        trainer.iterate({"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)})
    return optimum.ResponseLogprobs(actor, PROMPTS, RESPONSES)()


def regret(logprobs, coef=COEF):
    return optimum.regret(logprobs, reference(), SCORES, coef)


REACHING = {
    "rloo": (rlhf.RLOO, {"group_size": 4}),
    "rloo_exploring": (rlhf.RLOO, {"group_size": 4, "epsilon": 0.2}),
    "dr_grpo": (rlhf.GRPO, {"variant": "dr_grpo", "group_size": 4}),
    "reinforce++": (rlhf.REINFORCEPlusPlus, {}),
    # At the best policy all responses are worth the same, so that there is nothing to divide.
    "grpo_kl_in_reward": (rlhf.GRPO, {"place": "reward", "group_size": 8}),
    "online_dpo": (rlhf.OnlineDPO, {"group_size": 2, "labels": "soft"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REACHING)
def test_the_best_policy_is_reached(case):
    """And it is the one of this coefficient, not of half or twice as much."""
    algorithm, options = REACHING[case]
    after = trained(algorithm, **options)
    assert 0.0 <= regret(after) <= 0.05
    for factor in (0.5, 2.0):
        other = optimum.optimal_logprobs(reference(), SCORES, factor * COEF)
        assert regret(after) < 0.5 * regret(other)
        assert regret(after, factor * COEF) > 2 * regret(after)


@pytest.mark.slow
def test_grpo_comes_to_rest_where_its_own_objective_says():
    """Which is far from the best policy, because of the division and of k3."""
    own = grpo_optimum.resting_logprobs(reference(), SCORES, RESPONSES, COEF, group_size=8)
    best = optimum.optimal_logprobs(reference(), SCORES, COEF)
    after = trained(rlhf.GRPO, group_size=8)
    assert 0.0 <= grpo_optimum.relative_divergence(after, reference(), own) <= 0.05
    assert grpo_optimum.relative_divergence(best, reference(), own) > 0.2
    assert regret(own) > 0.15
    assert regret(after) == pytest.approx(regret(own), abs=0.03)
