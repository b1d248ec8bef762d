"""The frozen reference, copies of models, and LoRA adapters switched off."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import tokens
from kerasrlhf.models import lm_adapter, lora
from kerasrlhf.models.windows import Reference
from kerasrlhf.trainers.dpo import DPO

BATCH = helpers.prompts([6, 3, 2])
INPUTS = {"token_ids": BATCH["token_ids"], "padding_mask": BATCH["padding_mask"].astype("int32")}
WINDOW = (np.array([2, 1, 1], "int32"), 4)


def logprobs(reference):
    return np.array(reference.logprobs(BATCH["token_ids"], BATCH["padding_mask"], *WINDOW))


def train(model, steps=3):
    """A few steps away from where the model is."""
    model.compile(
        keras.optimizers.Adam(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(INPUTS, BATCH["token_ids"], epochs=steps, verbose=0)


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_the_frozen_copy_stays_while_the_model_is_trained(family):
    model = helpers.lm(family)
    reference = Reference.of(model)
    before, logits = logprobs(reference), np.array(model(INPUTS))
    stats = helpers.ActorCritic(model).token_stats(
        BATCH["token_ids"], BATCH["padding_mask"], *WINDOW
    )
    np.testing.assert_allclose(before, stats.logprobs, atol=1e-5)
    assert before.any()
    train(model)
    np.testing.assert_array_equal(logprobs(reference), before)
    assert np.abs(np.array(model(INPUTS)) - logits).max() > 0.1
    assert not reference.causal_lm.trainable_variables
    assert model.trainable_variables


def test_the_temperature_counts_in_the_reference_too():
    """N10."""
    model = helpers.lm()
    actor = helpers.ActorCritic(model)
    ids, mask = BATCH["token_ids"], BATCH["padding_mask"]
    for temperature in (0.5, 2.0):
        found = Reference.of(model).logprobs(ids, mask, *WINDOW, temperature)
        expected = actor.token_stats(ids, mask, *WINDOW, temperature).logprobs
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_adapters_off_are_a_frozen_copy_of_the_original(family):
    model = helpers.lm(family)
    frozen = Reference.of(model)
    model.backbone.enable_lora(2)
    reference = Reference.of(model)
    assert reference.causal_lm is model, "no second copy"
    before = np.array(model(INPUTS))
    np.testing.assert_allclose(logprobs(reference), logprobs(frozen), atol=1e-6)
    train(model)
    assert np.abs(np.array(model(INPUTS)) - before).max() > 0.05
    np.testing.assert_allclose(logprobs(reference), logprobs(frozen), atol=1e-6)
    # Switched on again afterward, also in what is traced.
    after = np.array(model(INPUTS))
    traced = tf.function(
        lambda: reference.logprobs(BATCH["token_ids"], BATCH["padding_mask"], *WINDOW)
    )
    np.testing.assert_allclose(traced(), logprobs(frozen), atol=1e-5)
    np.testing.assert_array_equal(model(INPUTS), after)


def test_adapters_come_back_after_an_error():
    model = helpers.lm()
    model.backbone.enable_lora(2)
    layers = lora.adapted_layers(model.backbone)
    assert layers
    with pytest.raises(RuntimeError), lora.adapters_off(model.backbone):
        assert not lora.adapted_layers(model.backbone)
        raise RuntimeError
    assert lora.adapted_layers(model.backbone) == layers


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize(
    ("family", "mode"), [("gpt2", None), ("llama", None), ("gpt2", "int8"), ("llama", "int4")]
)
def test_trained_adapters_are_a_reference_of_their_own_values(family, mode):
    """As after supervised fine-tuning with LoRA: no second copy, and nothing of it moves."""
    model = helpers.lm(family)
    if mode:
        model.backbone.quantize(mode)
    model.backbone.enable_lora(2)
    base = logprobs(Reference.of(model))
    moved(model, seed=0)
    assert not lora.is_untrained(model.backbone)
    reference = Reference.of(model)
    assert reference.causal_lm is model, "no second copy"
    before, logits = logprobs(reference), np.array(model(INPUTS))
    assert np.abs(before - base).max() > 0.05
    stats = helpers.ActorCritic(model).token_stats(
        BATCH["token_ids"], BATCH["padding_mask"], *WINDOW
    )
    np.testing.assert_allclose(before, stats.logprobs, atol=1e-5)
    moved(model, seed=1)
    after = np.array(model(INPUTS))
    assert np.abs(after - logits).max() > 0.05
    np.testing.assert_allclose(logprobs(reference), before, atol=1e-6)
    np.testing.assert_array_equal(model(INPUTS), after)


def moved(model, seed):
    """Trainable variables, adapters and biases, somewhere else."""
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign_add(generator.normal(0, 0.2, variable.shape))


def tuned():
    """A model whose adapters have been trained."""
    model = helpers.lm()
    model.backbone.enable_lora(2)
    train(model, steps=2)
    assert not lora.is_untrained(model.backbone)
    return model


def test_ppo_starts_at_a_kl_of_zero_from_adapters_that_were_trained():
    """The compiled collector reads the reference while the actor's adapters are trained."""
    actor = helpers.ActorCritic(tuned())
    made = helpers.ppo(actor, update_epochs=2)
    made.compile(keras.optimizers.Adam(0.05))
    ids, mask = BATCH["token_ids"], BATCH["padding_mask"]
    before = logprobs(made.reference)
    first = made.iterate({"token_ids": ids, "padding_mask": mask})
    rollout = made.last.rollout
    inside = np.asarray(rollout.response_mask)
    np.testing.assert_allclose(
        np.asarray(rollout.logprobs)[inside], np.asarray(rollout.ref_logprobs)[inside], atol=1e-5
    )
    assert abs(first["objective/kl"]) < 1e-4
    second = made.iterate({"token_ids": ids, "padding_mask": mask})
    assert abs(second["objective/kl"]) > 1e-3
    np.testing.assert_allclose(logprobs(made.reference), before, atol=1e-6)
    # What the rollout recorded is what the frozen values give.
    rollout = made.last.rollout
    inside = np.asarray(rollout.response_mask)
    found = made.reference.logprobs(
        rollout.token_ids,
        rollout.padding_mask,
        np.ones(len(inside), "int32"),
        inside.shape[1] - 1,
    )
    np.testing.assert_allclose(
        np.asarray(found)[inside], np.asarray(rollout.ref_logprobs)[inside], atol=1e-5
    )
    fresh = helpers.ppo(helpers.ActorCritic(helpers.lm()))
    assert len(made.variables) - len(fresh.variables) == 2 * 2, "adapters, and no reference"


def test_dpo_starts_at_scores_of_zero_from_adapters_that_were_trained():
    model = tuned()
    dpo = DPO(model)
    dpo.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    generator = np.random.default_rng(0)
    ids = generator.integers(1, helpers.VOCAB, (4, 2, 6)).astype("int32")
    rows = {"token_ids": ids, "padding_mask": ids > 0, "response_mask": np.arange(6) > ids * 0 + 1}
    np.testing.assert_allclose(dpo(rows), np.zeros((4, 2)), atol=1e-5)
    before = np.array(dpo.ref_logprobs(rows))
    dpo.fit(tf.data.Dataset.from_tensors((rows, np.zeros(4, "float32"))).repeat(3), verbose=0)
    assert np.abs(np.array(dpo(rows))).max() > 0.01
    np.testing.assert_allclose(dpo.ref_logprobs(rows), before, atol=1e-6)


def test_a_given_reference_is_used_as_it_is():
    model, other = helpers.lm(seed=0), helpers.lm(seed=1)
    assert Reference.of(model, other).causal_lm is other
    assert Reference.of(model, helpers.ActorCritic(other)).causal_lm is other
    with pytest.raises(ValueError, match="actor with 23 entries and a reference with 25"):
        Reference.of(model, helpers.lm(vocab=25))
    with pytest.raises(ValueError, match="CausalLM"):
        Reference.of(model, "frozen")


@pytest.mark.parametrize("family", helpers.FAMILIES)
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"dtype": "bfloat16"}])
def test_a_copy_computes_the_same_and_shares_nothing(family, options):
    if family == "gpt2" and "tie_word_embeddings" in options:
        pytest.skip("GPT-2 is always tied")
    model = helpers.lm(family, **options)
    twin = lm_adapter.copy(model)
    expected = np.array(keras.ops.cast(model(INPUTS), "float32"))
    np.testing.assert_array_equal(keras.ops.cast(twin(INPUTS), "float32"), expected)
    assert twin.backbone.compute_dtype == model.backbone.compute_dtype
    assert len(twin.weights) == len(model.weights)
    helpers.filled(model, seed=5)
    np.testing.assert_array_equal(keras.ops.cast(twin(INPUTS), "float32"), expected)
    alone = lm_adapter.copy(model.backbone)
    np.testing.assert_array_equal(alone(INPUTS), model.backbone(INPUTS))
    assert not twin.trainable_variables and not alone.trainable_variables


@pytest.mark.parametrize(
    ("family", "options", "adapted"),
    [
        ("gpt2", {}, None),
        ("llama", {}, None),
        ("llama", {"tie_word_embeddings": False}, ["token_embedding", "query"]),
    ],
)
def test_a_copy_of_trained_adapters_has_them_merged(family, options, adapted):
    model = helpers.lm(family, **options)
    base = np.array(model(INPUTS))
    model.backbone.enable_lora(2, adapted)
    for layer in lora.adapted_layers(model.backbone):
        for weight in layer.trainable_variables:
            if "lora" in weight.name:
                weight.assign(np.random.default_rng(0).normal(0, 0.4, weight.shape))
    expected = np.array(model(INPUTS))
    assert np.abs(expected - base).max() > 0.1
    twin = lm_adapter.copy(model)
    np.testing.assert_allclose(twin(INPUTS), expected, atol=1e-4)
    assert not lora.adapted_layers(twin.backbone)
    assert len(twin.weights) == len(helpers.lm(family, **options).weights)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")
def test_quantized_layers_with_adapters_cannot_be_copied():
    """Their merged kernel is no integer; a copy without its scale would be another network."""
    model = helpers.lm()
    model.backbone.quantize("int8")
    model.backbone.enable_lora(2)
    with pytest.raises(ValueError, match=r"quantized layer .* a copy cannot merge them"):
        lm_adapter.copy(model.backbone)


def test_only_text_models_with_both_inputs_pass():
    vision = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="which reads"):
        lm_adapter.check_backbone(vision)
    for family in helpers.FAMILIES:
        lm_adapter.check(helpers.lm(family))


def test_what_the_adapter_reads_off_a_model():
    gpt2, llama = helpers.lm(texts=True, num_layers=2), helpers.lm("llama", num_layers=2)
    assert lm_adapter.width(gpt2) == lm_adapter.width(llama.backbone) == 16
    assert lm_adapter.vocabulary_size(gpt2) == 23
    assert (lm_adapter.max_length(gpt2), lm_adapter.max_length(llama)) == (32, None)
    assert tokens.pad_id(llama.preprocessor) == 0
    for model, units in ((gpt2, 8), (llama, 4)):
        parts = tf.nest.flatten(lm_adapter.empty_cache(model, 3, 7))
        assert all(part.shape[0] == 3 and 7 in part.shape and not np.any(part) for part in parts)
        two_layers_of_keys_and_values = 2 * 2 * 3 * 7 * 2 * units
        assert sum(np.size(part) for part in parts) == two_layers_of_keys_and_values
