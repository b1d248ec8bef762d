"""M13: an option that is read and never used. Each one of PPO and of its objects does something."""

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
from kerasrlhf.rollouts.shaping import RewardShaping
from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL
from kerasrlhf.trainers.language_modeling import LanguageModeling
from kerasrlhf.trainers.options import CriticWarmup, PromptPrediction
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import Sampler

BATCH = helpers.prompts([6, 4, 1, 3, 2, 5, 4, 6])
SAMPLER = Sampler(length=5, stop_token_ids=(0, 4, 7))


def text(token=5):
    """Text for the language-modeling loss: one token over and over."""
    ids, ones = np.full((2, 4), token, "int32"), np.ones((2, 4), "float32")
    return tf.data.Dataset.from_tensors(({"token_ids": ids, "padding_mask": ones > 0}, ids, ones))


def shaping(**fields):
    return lambda: {"shaping": RewardShaping(**fields)}


def texts(token=5, **fields):
    return lambda: {"texts": LanguageModeling(text(token), **fields)}


def kl(*args, **fields):
    return lambda: {"kl": FixedKL(*args, **fields)}


OPTIONS = {
    "reference": lambda: {"reference": helpers.lm(seed=6)},
    "sampler": lambda: {"sampler": Sampler(length=4, temperature=0.5)},
    "sampler.schedule": lambda: {
        "sampler": dataclasses.replace(SAMPLER, temperature=lambda iteration: 0.5)
    },
    "kl.coef": kl(0.9),
    "kl.place": kl(0.2, place="loss"),
    "kl.estimator": kl(0.2, place="loss", estimator="k3"),
    "gamma": lambda: {"gamma": 0.5},
    "lam": lambda: {"lam": 0.1},
    "cliprange": lambda: {"cliprange": 0.01},
    "cliprange_high": lambda: {"cliprange_high": 0.01},
    "dual_clip": lambda: {"dual_clip": 1.01},
    "cliprange_value": lambda: {"cliprange_value": 5.0},
    "vf_coef": lambda: {"vf_coef": 2.0},
    "warmup.iterations": lambda: {"warmup": CriticWarmup(1)},
    "warmup.kl_coef": lambda: {"warmup": CriticWarmup(1, kl_coef=0.1)},
    "whiten_rewards": lambda: {"whiten_rewards": True},
    "whiten_advantages": lambda: {"whiten_advantages": False},
    "group_size": lambda: {"group_size": 2},
    "update_epochs": lambda: {"update_epochs": 3},
    "num_minibatches": lambda: {"num_minibatches": 4},
    "micro_batches": lambda: {"micro_batches": 2},
    "loss_reduction": lambda: {"loss_reduction": "sequence"},
    "entropy_coef": lambda: {"entropy_coef": 0.5},
    "target_kl": lambda: {"target_kl": 1e-4},
    "importance_cap": lambda: {"importance_cap": 0.5},
    "mask_overlong": lambda: {"mask_overlong": True},
    "texts.coef": texts(coef=0.5),
    "texts.data": texts(token=6, coef=0.5),
    "texts.every": texts(every=2),
    "texts.steps": texts(every=2, steps=2),
    "prompt_prediction.coef": lambda: {"prompt_prediction": PromptPrediction(coef=0.5)},
    "prompt_prediction.reward": lambda: {"prompt_prediction": PromptPrediction(reward=0.5)},
    "memory": lambda: {"memory": RolloutMemory(2)},
    "memory.reuse": lambda: {"memory": RolloutMemory(2, reuse=0)},
    "shaping.scale": shaping(scale=0.5),
    "shaping.clip": shaping(clip=0.2),
    "shaping.running_scale": shaping(running_scale=True),
    "shaping.per_token": shaping(per_token=True),
    "shaping.repetition_penalty": shaping(repetition_penalty=5.0, repetition_ngram=1),
    "shaping.repetition_ngram": shaping(repetition_penalty=5.0, repetition_ngram=2),
    "shaping.overlong_buffer": shaping(overlong_buffer=3),
    "shaping.overlong_penalty": shaping(overlong_buffer=3, overlong_penalty=5.0),
    "shaping.missing_end_score": shaping(missing_end_score=-3.0),
    "shaping.missing_end_penalty": shaping(missing_end_penalty=3.0),
    "seed": lambda: {"seed": 1},
}
# What works only with another option is compared with that option alone.
BESIDE = {
    "warmup.kl_coef": "warmup.iterations",
    "kl.estimator": "kl.place",
    "texts.data": "texts.coef",
    "texts.steps": "texts.every",
    "memory.reuse": "memory",
    "shaping.overlong_penalty": "shaping.overlong_buffer",
    "shaping.repetition_ngram": "shaping.repetition_penalty",
}
OBJECTS = {
    "kl": FixedKL,
    "warmup": CriticWarmup,
    "texts": LanguageModeling,
    "prompt_prediction": PromptPrediction,
    "shaping": RewardShaping,
}


@functools.cache
def outcome(name=None):
    """All weights after two iterations, and how often the actor was read in their updates."""
    options = {
        "reference": helpers.lm(seed=5),
        "sampler": SAMPLER,
        "kl": FixedKL(0.2),
        "update_epochs": 2,
        "num_minibatches": 2,
        **(OPTIONS[name]() if name else {}),
    }
    made = helpers.ppo(helpers.actor(), **options)
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


def parameters(kind):
    return {
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def test_m13_the_list_of_options_is_complete():
    fields = {f"{name}.{field}" for name, kind in OBJECTS.items() for field in parameters(kind)}
    # Two iterations reuse one rollout whatever the capacity: tests/rollouts/test_memory.py.
    further = {"sampler.schedule", "memory.reuse"}
    alone = parameters(PPO) - {"actor", "reward", *OBJECTS}
    assert alone | fields | further == {*OPTIONS} | {"reward_timeout"}, (
        "a time-out changes no weights: tests/rollouts/test_timeouts.py"
    )


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
    "stop_strings": {"stop_strings": [*"abcdefgh"]},
}


def test_m13_every_field_of_a_sampler_changes_the_samples():
    assert {*SAMPLERS} == {field.name for field in dataclasses.fields(Sampler)}
    actor = helpers.actor(texts=True)

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
