"""Weights with LoRA adapters are saved and loaded without being merged."""

import helpers
import keras
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.models import lora
from kerasrlhf.models.windows import Reference

BATCH = helpers.prompts([3, 5])
PAIRS = [{"prompt": "bc", "chosen": "de", "rejected": "fg"}] * 2


def adapted(**options):
    causal_lm = helpers.lm(**options)
    causal_lm.backbone.enable_lora(2)
    return causal_lm


def moved(causal_lm):
    """The model with adapters that have learned something."""
    for layer in lora.adapted_layers(causal_lm.backbone):
        layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.1))
    return causal_lm


def trainer():
    made = helpers.ppo(rlhf.ActorCritic(adapted()))
    made.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    return made


def wrapped(kind):
    """What saves weights, and its language model."""
    if kind == "ppo":
        made = helpers.ppo(rlhf.ActorCritic(adapted()))
        return made, made.actor.causal_lm
    causal_lm = adapted()
    made = {"actor": rlhf.ActorCritic, "dpo": rlhf.DPO, "reward": rlhf.RewardModel}[kind](causal_lm)
    return made, causal_lm


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["ppo", "actor", "dpo", "reward"])
def test_weights_come_back_as_they_were(kind, tmp_path):
    model, causal_lm = wrapped(kind)
    moved(causal_lm)
    before = causal_lm.get_weights()
    model.save_weights(tmp_path / "model.weights.h5")
    assert same(causal_lm.get_weights(), before)
    other, loaded = wrapped(kind)
    other.load_weights(tmp_path / "model.weights.h5")
    assert same(loaded.get_weights(), before)
    # Afterwards the layers save themselves as Keras does: for presets, which merge.
    assert not any("save_own_variables" in vars(x) for x in lora.adapted_layers(causal_lm))


def test_a_model_that_was_wrapped_keeps_its_adapters_apart_too(tmp_path):
    causal_lm = moved(adapted())
    rlhf.ActorCritic(causal_lm)
    causal_lm.save_weights(tmp_path / "lm.weights.h5")
    other = adapted()
    rlhf.DPO(other).causal_lm.load_weights(tmp_path / "lm.weights.h5")
    assert same(other.get_weights(), causal_lm.get_weights())


def test_the_reference_stays_the_start(tmp_path):
    """With merged weights in it the reference would be the policy, at a KL of 0."""
    first, again = trainer(), trainer()
    moved(first.actor.causal_lm)
    first.save_weights(tmp_path / "ppo.weights.h5")
    again.load_weights(tmp_path / "ppo.weights.h5")
    ids, mask = (keras.ops.convert_to_tensor(BATCH[k]) for k in ("token_ids", "padding_mask"))
    read = ids, mask, np.ones(2, "int32"), 4
    policy, start = (
        [np.array(model.logprobs(*read)) for model in models]
        for models in (
            [Reference(made.actor.causal_lm) for made in (first, again)],
            [made.reference for made in (first, again)],
        )
    )
    assert np.array_equal(*policy) and np.array_equal(*start)
    assert np.abs(policy[1] - start[1]).max() > 0.01


@pytest.mark.parametrize("kind", ["ppo", "dpo"])
def test_a_file_with_merged_adapters_is_refused(kind, tmp_path):
    model, causal_lm = wrapped(kind)
    moved(causal_lm)
    for saved in (model, causal_lm):
        keras.Model.save_weights(saved, tmp_path / "merged.weights.h5")
        with pytest.raises(ValueError, match=r"has a LoRA adapter.*save_to_preset"):
            saved.load_weights(tmp_path / "merged.weights.h5")


def test_checkpoints_of_weights_keep_adapters_apart(tmp_path):
    model = rlhf.DPO(adapted(texts=True))
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    pairs = rlhf.data.preferences(PAIRS, model.causal_lm.preprocessor, 2)
    path = tmp_path / "dpo.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    model.fit(pairs, verbose=0, callbacks=[checkpoint])
    other = rlhf.DPO(adapted(texts=True))
    other.load_weights(path)
    assert same(other.get_weights(), model.get_weights())
    assert not lora.is_untrained(other.causal_lm.backbone)
