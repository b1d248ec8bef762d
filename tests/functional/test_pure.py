"""What every pure function promises: one result in eager, graph and XLA; float32; inert padding."""

import inspect
import sys

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import functional
from kerasrlhf.functional import (
    direct_losses,
    kl,
    logprobs,
    masking,
    policy_losses,
    preferences,
    returns,
    value_losses,
)

BATCH, LENGTH, VOCAB = 3, 6, 5
# One response in the middle, one that reaches the end, one row without any.
MASK = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool)


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


A, B, C = (normal(BATCH, LENGTH, seed=seed) for seed in range(3))
LOGITS = normal(BATCH, LENGTH, VOCAB, seed=3)
IDS = np.random.default_rng(4).integers(0, VOCAB, (BATCH, LENGTH)).astype("int32")
SCORES, CANDIDATES = normal(BATCH, seed=5), normal(BATCH, 4, seed=6)

# name -> (function, float arguments, other arguments)
MASKED = {
    "zero_outside": (masking.zero_outside, [A], [MASK]),
    "masked_sum": (masking.masked_sum, [A], [MASK]),
    "masked_mean": (masking.masked_mean, [A], [MASK]),
    "masked_variance": (masking.masked_variance, [A], [MASK]),
    "whiten": (masking.whiten, [A], [MASK]),
    "whiten_keeping_the_mean": (lambda x, m: masking.whiten(x, m, center=False), [A], [MASK]),
    "response_logprobs": (direct_losses.response_logprobs, [A], [MASK]),
    "response_means": (lambda x, m: direct_losses.response_logprobs(x, m, True), [A], [MASK]),
    "last_true": (masking.last_true, [A], [MASK]),
    "explained_variance": (value_losses.explained_variance, [A, B], [MASK]),
    "gae": (lambda r, v, m: returns.gae(r, v, m, 0.9, 0.8), [A, B], [MASK]),
    "token_rewards": (
        lambda p, q, s, m: returns.token_rewards(s, p, q, m, 0.3),
        [A, B],
        [SCORES, MASK],
    ),
}
UNMASKED = {
    "k1": (kl.k1, [A, B], []),
    "k2": (kl.k2, [A, B], []),
    "k3": (kl.k3, [A, B], []),
    "clipped_policy_loss": (
        lambda p, q, a: policy_losses.clipped_policy_loss(p, q, a, 0.2),
        [A, B, C],
        [],
    ),
    "clipped_value_loss": (
        lambda v, o, r: value_losses.clipped_value_loss(v, o, r, 0.2),
        [A, B, C],
        [],
    ),
    "discounted_sums": (lambda x: returns.discounted_sums(x, 0.7), [A], []),
    "token_logprobs": (lambda x, i: logprobs.token_logprobs(x, i, 0.7), [LOGITS], [IDS]),
    "token_entropy": (lambda x: logprobs.token_entropy(x, 0.7), [LOGITS], []),
    "bradley_terry": (preferences.bradley_terry, [CANDIDATES], []),
    "bradley_terry_margin": (preferences.bradley_terry, [CANDIDATES], [SCORES]),
    "best_of_k": (preferences.best_of_k, [CANDIDATES], []),
    "bradley_terry_smoothed": (
        lambda x: preferences.bradley_terry(x, label_smoothing=0.2),
        [CANDIDATES],
        [],
    ),
    "implicit_reward": (lambda p, q: direct_losses.implicit_reward(p, q, 0.3, 0.1), [A, B], []),
    "ipo": (lambda x: direct_losses.ipo(x, 0.5), [CANDIDATES], []),
    "kto": (lambda x: direct_losses.kto(x, 1.5, 0.5), [CANDIDATES], []),
    "log_odds": (lambda x: direct_losses.log_odds(-abs(x)), [CANDIDATES], []),
    "orpo": (lambda x: direct_losses.orpo(-abs(x)), [CANDIDATES], []),
    "accuracy": (preferences.accuracy, [CANDIDATES], []),
    "lead": (preferences.lead, [CANDIDATES], []),
}
EVERY = {**MASKED, **UNMASKED}


def flat(results):
    return [np.asarray(part) for part in tf.nest.flatten(results)]


def evaluate(name, floats=None, others=None):
    function, own_floats, own_others = EVERY[name]
    return flat(function(*(floats or own_floats), *(others or own_others)))


@pytest.fixture(scope="module")
def compiled():
    """All functions in one graph and in one XLA program: two traces serve every test."""
    arguments = {
        name: [tf.constant(x) for x in (*floats, *others)]
        for name, (_, floats, others) in EVERY.items()
    }

    def run(arguments):
        return {name: EVERY[name][0](*given) for name, given in arguments.items()}

    return {
        mode: tf.function(run, jit_compile=mode == "xla")(arguments) for mode in ("graph", "xla")
    }


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("name", EVERY)
def test_compiled_equals_eager(compiled, name, mode):
    for eager, other in zip(evaluate(name), flat(compiled[mode][name]), strict=True):
        assert eager.dtype == other.dtype
        np.testing.assert_allclose(eager, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", EVERY)
def test_results_are_float32_whatever_comes_in(name, dtype):
    floats = [tf.cast(x, dtype) for x in EVERY[name][1]]
    rounded = [tf.cast(x, "float32") for x in floats]
    for result, expected in zip(evaluate(name, floats), evaluate(name, rounded), strict=True):
        assert result.dtype in (np.float32, np.bool_)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("garbage", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("name", MASKED)
def test_garbage_outside_the_mask_changes_neither_results_nor_gradients(name, garbage):
    function, floats, others = MASKED[name]
    dirty = [np.where(MASK, x, np.float32(garbage)) for x in floats]
    results = []
    for given in (floats, dirty):
        given = [tf.constant(x) for x in given]
        with tf.GradientTape() as tape:
            tape.watch(given)
            parts = tf.nest.flatten(function(*given, *others))
            total = tf.add_n([tf.reduce_sum(tf.sin(part)) for part in parts])
        results.append([*parts, *tape.gradient(total, given)])
    for clean, other in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, other)


@pytest.mark.parametrize("name", MASKED)
def test_an_all_false_mask_gives_zeros_and_zero_gradients(name):
    function, floats, others = MASKED[name]
    given = [tf.constant(np.full_like(x, np.nan)) for x in floats]
    with tf.GradientTape() as tape:
        tape.watch(given)
        parts = tf.nest.flatten(function(*given, *others[:-1], np.zeros_like(MASK)))
        total = tf.add_n([tf.reduce_sum(part) for part in parts])
    for result in [*parts, *tape.gradient(total, given)]:
        np.testing.assert_array_equal(result, np.zeros_like(result))


@pytest.mark.parametrize("name", MASKED)
def test_extra_right_padding_changes_nothing(name):
    def widen(x, filler):
        x = np.asarray(x)
        if x.ndim < 2:
            return x
        return np.concatenate([x, np.full((BATCH, 3), filler, x.dtype)], axis=1)

    _, floats, others = MASKED[name]
    wide = evaluate(name, [widen(x, 7.0) for x in floats], [widen(x, 0) for x in others])
    for narrow, padded in zip(evaluate(name), wide, strict=True):
        if padded.ndim == 2:
            np.testing.assert_array_equal(padded[:, LENGTH:], 0.0)
            padded = padded[:, :LENGTH]
        np.testing.assert_allclose(narrow, padded, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MASKED)
def test_tensors_of_a_value_per_position_are_zero_outside_the_mask(name):
    for result in evaluate(name):
        if result.shape == MASK.shape:
            np.testing.assert_array_equal(result[~MASK], 0.0)
            assert np.count_nonzero(result[MASK]) > 0


MODULES = [module for _, module in inspect.getmembers(functional, inspect.ismodule)]
PUBLIC = [
    pytest.param(function, id=f"{module.__name__.rsplit('.', 1)[-1]}.{name}")
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if not module.__name__.endswith("._inputs")
    and not name.startswith("_")
    and function.__module__ == module.__name__
]


@pytest.mark.parametrize("function", PUBLIC)
def test_docstrings_have_arguments_results_and_an_example(function):
    text = inspect.getdoc(function)
    for part in ("Args:", "Returns:", "Example:", ">>> ", f"rlhf.functional.{function.__name__}("):
        assert part in text, f"{function.__name__} has no {part}"
    # The errors that all functions of a module share are described once, in the module.
    assert "`ValueError`" in sys.modules[function.__module__].__doc__
    for argument in inspect.signature(function).parameters:
        assert f"    {argument}: " in text


WRONG = {
    "gamma": (lambda: returns.gae(A, B, MASK, gamma=1.5), "`gamma` is 1.5"),
    "lam": (lambda: returns.gae(A, B, MASK, lam=-0.1), "`lam` is -0.1"),
    "lam_nan": (lambda: returns.gae(A, B, MASK, lam=float("nan")), "`lam` is nan"),
    "discount": (lambda: returns.discounted_sums(A, 2.0), "`discount` is 2.0"),
    "cliprange": (lambda: policy_losses.clipped_policy_loss(A, B, C, 0.0), "`cliprange` is 0.0"),
    "cliprange_value": (
        lambda: value_losses.clipped_value_loss(A, B, C, -1.0),
        "`cliprange_value` is -1.0",
    ),
    "temperature": (lambda: logprobs.token_logprobs(LOGITS, IDS, 0.0), "`temperature` is 0.0"),
    "entropy_temperature": (lambda: logprobs.token_entropy(LOGITS, 0), "`temperature` is 0"),
    "ids_of_another_length": (lambda: logprobs.token_logprobs(LOGITS, IDS[:, 1:]), "`token_ids`"),
    "mask_of_another_length": (lambda: masking.masked_mean(A, MASK[:, 1:]), "`mask`"),
    "ref_logprobs": (lambda: kl.k1(A, B[:1]), "`ref_logprobs`"),
    "advantages": (lambda: policy_losses.clipped_policy_loss(A, B, C[:, :1], 0.2), "`advantages`"),
    "old_values": (lambda: value_losses.clipped_value_loss(A, B[:1], C, 0.2), "`old_values`"),
    "gae_values": (lambda: returns.gae(A[:, 1:], B, MASK[:, 1:]), "`mask`"),
    "scores_of_other_rows": (
        lambda: returns.token_rewards(SCORES[1:], A, B, MASK, 0.1),
        "`scores`",
    ),
    "scores_as_column": (
        lambda: returns.token_rewards(SCORES[:, None], A, B, MASK, 0.1),
        "both must have the same",
    ),
    "one_candidate": (lambda: preferences.bradley_terry(CANDIDATES[:, :1]), "at least 2"),
    "scores_without_candidates": (lambda: preferences.best_of_k(SCORES), "batch, candidates"),
    "margin_of_other_rows": (
        lambda: preferences.bradley_terry(CANDIDATES, SCORES[1:]),
        "`margin`",
    ),
    "lengths": (lambda: masking.response_mask([1, 2], [1], 4), "`response_lengths`"),
    "flat_mask": (lambda: masking.last_true_mask(MASK[0]), "batch, length"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named_in_the_error(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_sizes_pass_the_shape_check_and_a_dynamic_length_compiles():
    signature = [tf.TensorSpec([None, None])] * 2 + [tf.TensorSpec([None, None], tf.bool)]

    @tf.function(jit_compile=True, input_signature=signature)
    def run(rewards, values, mask):
        rewards = returns.token_rewards(rewards[:, 0], rewards, values, mask, 0.1)
        return returns.gae(rewards, values, masking.last_true_mask(mask))

    for width in (LENGTH, LENGTH - 1):
        advantages, _ = run(A[:, :width], B[:, :width], MASK[:, :width])
        assert advantages.shape == (BATCH, width)
