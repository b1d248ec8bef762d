"""Optimizers whose averages do not move in few bits are refused where training is set up."""

import contextlib

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf.models.precision import check_optimizer, check_replicated
from kerasrlhf.models.reward_model import RewardModel


def test_adam_on_bfloat16_weights_moves_nothing():
    """Why it is refused: 0.999 has no neighbor below 1 closer than 0.996 in eight bits."""
    variable = keras.Variable(np.ones(3), dtype="bfloat16")
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.apply([keras.ops.ones(3, "bfloat16")], [variable])
    np.testing.assert_array_equal(keras.ops.cast(variable, "float32"), np.ones(3))
    with pytest.raises(ValueError, match=r"Adam cannot train weights in bfloat16.*mixed_bfloat16"):
        check_optimizer(optimizer, [variable])


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        (keras.optimizers.SGD(0.1), "bfloat16"),
        (keras.optimizers.Adam(0.1, beta_2=0.9), "bfloat16"),
        (keras.optimizers.Adam(0.1), "float32"),
    ],
)
def test_what_moves_passes(optimizer, dtype):
    check_optimizer(optimizer, [keras.Variable(np.ones(3), dtype=dtype)])


def test_trainers_and_reward_models_refuse_it_at_compile():
    low = helpers.lm(dtype="bfloat16")
    with pytest.raises(ValueError, match="bfloat16"):
        RewardModel(low).compile("adam")
    acting = helpers.ActorCritic(helpers.lm(dtype="bfloat16"))
    with pytest.raises(ValueError, match="bfloat16"):
        helpers.ppo(acting).compile(jit_compile=False)


@pytest.mark.parametrize(
    ("dtype", "jit_compile", "works"),
    [
        ("float16", False, False),
        ("float16", True, False),
        ("mixed_float16", True, False),
        ("mixed_float16", False, True),
        ("mixed_bfloat16", True, True),
    ],
)
def test_float16_on_replicas_needs_float32_weights_and_no_xla(dtype, jit_compile, works):
    networks = [helpers.backbone(), helpers.backbone(dtype=dtype)]
    error = pytest.raises(ValueError, match="float16 does not work under a distribution")
    with contextlib.nullcontext() if works else error:
        check_replicated(networks, jit_compile)
