"""M13: an option that is read and never used. Every one of PPO and of its parts does something."""

import dataclasses
import functools
import inspect

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.shaping import ScoreRules
from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import Sampler

BATCH = helpers.prompts([6, 4, 1, 3, 2, 5, 4, 6])
SAMPLER = Sampler(length=5, stop_token_ids=(0, 4, 7))


def text():
    """Text for the language-modeling loss: token 5 over and over."""
    ids, ones = np.full((2, 4), 5, "int32"), np.ones((2, 4), "float32")
    return tf.data.Dataset.from_tensors(({"token_ids": ids, "padding_mask": ones > 0}, ids, ones))


OPTIONS = {
    "reference": lambda: {"reference": helpers.lm(seed=6, num_layers=1)},
    "sampler": lambda: {"sampler": Sampler(length=4, temperature=0.5)},
    "kl": lambda: {"kl": FixedKL(0.9)},
    "gamma": lambda: {"gamma": 0.5},
    "lam": lambda: {"lam": 0.1},
    "cliprange": lambda: {"cliprange": 0.01},
    "cliprange_high": lambda: {"cliprange_high": 0.01},
    "dual_clip": lambda: {"dual_clip": 1.01},
    "cliprange_value": lambda: {"cliprange_value": 5.0},
    "vf_coef": lambda: {"vf_coef": 2.0},
    "critic_warmup": lambda: {"critic_warmup": 1},
    "critic_warmup_kl": lambda: {"critic_warmup": 1, "critic_warmup_kl": 0.1},
    "whiten_rewards": lambda: {"whiten_rewards": True},
    "whiten_advantages": lambda: {"whiten_advantages": False},
    "group_size": lambda: {"group_size": 2},
    "update_epochs": lambda: {"update_epochs": 3},
    "num_minibatches": lambda: {"num_minibatches": 4},
    "micro_batches": lambda: {"micro_batches": 2},
    "kl_in": lambda: {"kl_in": "loss"},
    "kl_estimator": lambda: {"kl_in": "loss", "kl_estimator": "k3"},
    "loss_reduction": lambda: {"loss_reduction": "sequence"},
    "entropy_coef": lambda: {"entropy_coef": 0.5},
    "target_kl": lambda: {"target_kl": 1e-4},
    "importance_cap": lambda: {"importance_cap": 0.5},
    "mask_overlong": lambda: {"mask_overlong": True},
    "temperature_schedule": lambda: {"temperature_schedule": lambda iteration: 0.5},
    "ptx_coef": lambda: {"ptx_coef": 0.5, "ptx_data": text()},
    "lm_every": lambda: {"lm_every": 2, "ptx_data": text()},
    "lm_steps": lambda: {"lm_every": 2, "lm_steps": 2, "ptx_data": text()},
    "reverse_coef": lambda: {"reverse_coef": 0.5},
    "reverse_reward": lambda: {"reverse_reward": 0.5},
    "memory": lambda: {"memory": RolloutMemory(2)},
    "memory_reuse": lambda: {"memory": RolloutMemory(2), "memory_reuse": 0},
    "score_scale": lambda: {"score_scale": 0.5},
    "score_clip": lambda: {"score_clip": 0.2},
    "score_running_scale": lambda: {"score_running_scale": True},
    "score_per_token": lambda: {"score_per_token": True},
    "repetition_penalty": lambda: {"repetition_penalty": 5.0, "repetition_ngram": 1},
    "repetition_ngram": lambda: {"repetition_penalty": 5.0, "repetition_ngram": 2},
    "overlong_buffer": lambda: {"overlong_buffer": 3},
    "overlong_penalty": lambda: {"overlong_buffer": 3, "overlong_penalty": 5.0},
    "missing_end_score": lambda: {"missing_end_score": -3.0},
    "missing_end_penalty": lambda: {"missing_end_penalty": 3.0},
    "seed": lambda: {"seed": 1},
}
# What works only beside another option is compared with that option alone.
BESIDE = {
    "critic_warmup_kl": "critic_warmup",
    "kl_estimator": "kl_in",
    "lm_steps": "lm_every",
    "memory_reuse": "memory",
    "overlong_penalty": "overlong_buffer",
    "repetition_ngram": "repetition_penalty",
}


@functools.cache
def outcome(name=None):
    """All weights after two iterations, and how often the actor was read in their updates."""
    options = {
        "reference": helpers.lm(seed=5, num_layers=1),
        "sampler": SAMPLER,
        "kl": FixedKL(0.2),
        "update_epochs": 2,
        "num_minibatches": 2,
        **(OPTIONS[name]() if name else {}),
    }
    made = helpers.ppo(helpers.actor(num_layers=1), **options)
    made.compile(keras.optimizers.SGD(0.05), jit_compile=False)
    reads, original = [], ActorCritic.token_stats
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ActorCritic,
            "token_stats",
            lambda *args, **kwargs: reads.append(1) or original(*args, **kwargs),
        )
        for _ in range(2):
            made.iterate(BATCH)
    return np.concatenate([np.array(v).ravel() for v in made.actor.weights]), len(reads)


def parameters(function):
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    } - {"self", "actor", "reward", "name"}


def test_m13_the_list_of_options_is_complete():
    prefixed = {"scale", "clip", "running_scale", "per_token"}
    rules = {f"score_{name}" if name in prefixed else name for name in ScoreRules._fields}
    assert parameters(PPO.__init__) | parameters(OnPolicyTrainer.__init__) | rules == (
        {*OPTIONS} | {"ptx_data", "reward_timeout"}
    ), "a time-out changes no weights: tests/rollouts/test_timeouts.py"


@pytest.mark.parametrize("name", sorted({*OPTIONS} - {"micro_batches"}))
def test_m13_every_option_changes_what_is_learned(name):
    assert np.abs(outcome(name)[0] - outcome(BESIDE.get(name))[0]).max() > 1e-4


def test_m13_micro_batches_change_the_parts_and_nothing_else():
    (weights, reads), (expected, once) = outcome("micro_batches"), outcome()
    assert (once, reads) == (8, 16)
    np.testing.assert_allclose(weights, expected, atol=1e-4)


SAMPLERS = {
    "length": {"length": 3},
    "temperature": {"temperature": 0.3},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.3},
    "stop_token_ids": {"stop_token_ids": None},
    "min_length": {"min_length": 4},
    "epsilon": {"epsilon": 0.7},
}


def test_m13_every_field_of_a_sampler_changes_the_samples():
    assert {*SAMPLERS} == {field.name for field in dataclasses.fields(Sampler)}
    actor = helpers.actor(num_layers=1)

    def rows(sampler):
        samples = helpers.draw_eagerly(actor, BATCH, sampler)
        return [
            ids[mask].tolist()
            for ids, mask in zip(
                np.array(samples.token_ids), np.array(samples.response_mask), strict=True
            )
        ]

    expected = rows(SAMPLER)
    assert rows(dataclasses.replace(SAMPLER)) == expected
    for name, change in SAMPLERS.items():
        assert rows(dataclasses.replace(SAMPLER, **change)) != expected, name


@pytest.mark.parametrize("change", [{"coef": 0.3}, {"target": 9.0}, {"horizon": 50}])
def test_m13_every_argument_of_the_kl_control_changes_the_coefficient(change):
    options = {"coef": 0.2, "target": 8.0, "horizon": 100}
    plain, changed = AdaptiveKL(**options), AdaptiveKL(**{**options, **change})
    for control in (plain, changed):
        control.update(kl=8.8, episodes=8)
    assert float(plain.coef) == pytest.approx(0.2 * (1 + 0.1 * 0.08))
    assert abs(float(changed.coef) - float(plain.coef)) > 1e-3
