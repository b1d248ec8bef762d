"""Rows of tokens that were not sampled, and the gradients that a trainer computes of them.

Nothing is traced: gradients are taken eagerly, and compared with those of a sum over tokens whose
coefficients are derived by hand.
"""

import helpers
import numpy as np
import tensorflow as tf

from kerasrlhf.types import Experience, Rollout, Sampler

SAMPLER = Sampler(length=4, temperature=0.8, stop_token_ids=(0,))
RNG = np.random.default_rng(3)
PROMPT_LENGTHS = np.array([2, 5, 3, 1], "int32")
SIZES = np.array([4, 1, 3, 2], "int32")
COLUMN = np.arange(helpers.COLUMNS + SAMPLER.length)[None]
ENDS = (PROMPT_LENGTHS + SIZES)[:, None]
PADDING = COLUMN < ENDS
MASK = PADDING & (PROMPT_LENGTHS[:, None] <= COLUMN)
IDS = np.where(PADDING, RNG.integers(1, helpers.VOCAB, MASK.shape), 0).astype("int32")
ADVANTAGES, NOISE, TARGETS = (
    np.where(MASK, RNG.normal(0, 0.7, MASK.shape), 0.0).astype("float32") for _ in range(3)
)


def stats(acting, temperature=0.8, **options):
    return acting.token_stats(IDS, PADDING, PROMPT_LENGTHS, SAMPLER.length, temperature, **options)


def inside(x):
    return np.where(MASK, np.asarray(x), 0.0).astype("float32")


def rollout(acting, **changes):
    """The rows as a rollout of the actor, whose reference differs by `NOISE`."""
    found = stats(acting)
    logprobs = inside(found.logprobs)
    fields = {
        "token_ids": IDS,
        "padding_mask": PADDING,
        "response_mask": MASK,
        "prompt_lengths": PROMPT_LENGTHS,
        "ended": np.array([True, False, True, True]),
        "logprobs": logprobs,
        "values": inside(found.values),
        "ref_logprobs": logprobs - NOISE,
        "scores": np.array([1.0, -0.5, 2.0, 0.25], "float32"),
        "kl_coef": np.float32(0.3),
        "behavior_logprobs": logprobs,
        "iteration": np.int32(0),
    }
    return Rollout(**{**fields, **changes})


def experience(acting, **changes):
    """The rows as an update takes them."""
    rows = rollout(acting)
    fields = {name: getattr(rows, name) for name in Experience._fields[:7]}
    return Experience(**{**fields, "advantages": ADVANTAGES, "returns": TARGETS, **changes})


def update_batch(trainer, minibatch, text=None):
    """What `train_step` takes: all rows of a minibatch in one update."""
    rows = np.arange(len(minibatch.token_ids))
    temperature = tf.constant(trainer.sampler.temperature, tf.float32)
    return trainer.update_step().batch(minibatch, rows, text, temperature)


def gradients(trainer, minibatch, text=None):
    """Arrays, one a variable, and the logged numbers."""
    found, sums = trainer.update_step().gradients(update_batch(trainer, minibatch, text))
    return [np.array(g) for g in found], {name: float(x) for name, x in sums.items()}


def gradients_of(scalar, variables):
    """Those of a function without arguments."""
    with tf.GradientTape() as tape:
        total = scalar()
    values = [v.value for v in variables]
    found = tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [np.array(tf.convert_to_tensor(g)) for g in found]


def of_logprobs(acting, coefficients):
    """Gradients of `sum coefficients * logprobs`: those of any policy loss by the chain rule."""
    chosen = inside(coefficients)
    return gradients_of(
        lambda: tf.reduce_sum(chosen * stats(acting).logprobs), acting.trainable_variables
    )


def assert_close(found, expected, atol=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=atol)
    assert max(np.abs(x).max() for x in expected) > 100 * atol
