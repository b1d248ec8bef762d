"""Stock `fit` on two replicas learns what one device learns, with any last batch."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf

# Responses of many lengths: shares of a batch differ in the tokens that count.
PAIRS = [
    {"prompt": "bcd" + "e" * n, "chosen": "fg" * (n % 3 + 1), "rejected": "h" * (5 - n)}
    for n in range(5)
]
STEPS = [{"prompt": "bc", "steps": ["d"] * (n + 1), "labels": [1] * n + [0]} for n in range(5)]


def process_reward_model(causal_lm):
    return rlhf.ProcessRewardModel(causal_lm, separator="k")


def stepwise(source, preprocessor, batch_size):
    return rlhf.data.stepwise(source, preprocessor, batch_size, separator="k")


MODELS = {
    "reward": (rlhf.RewardModel, rlhf.data.preferences, PAIRS),
    "process": (process_reward_model, stepwise, STEPS),
    "dpo": (rlhf.DPO, rlhf.data.preferences, PAIRS),
    "kto": (rlhf.KTO, rlhf.data.preferences, PAIRS),
    "lm": (
        lambda causal_lm: causal_lm,
        rlhf.data.demonstrations,
        [{"prompt": p["prompt"], "response": p["chosen"]} for p in PAIRS],
    ),
}


def trained(kind, strategy, reduction="mean_with_sample_weight"):
    make, load, records = MODELS[kind]
    keras.utils.set_random_seed(0)  # heads begin alike
    with strategy.scope():
        causal_lm = helpers.lm(texts=True, stddev=0.2)
        model = make(causal_lm)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        options = {"loss": loss} if kind == "lm" else {}
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False, **options)
    dataset = load(records, causal_lm.preprocessor, 4)
    history = model.fit(dataset, epochs=2, validation_data=dataset, verbose=0).history
    return history, model.get_weights()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("reward", {}),
        ("process", {}),
        ("dpo", {}),
        ("kto", {}),
        ("lm", {}),
        ("lm", {"reduction": "sum_over_batch_size"}),
        ("lm", {"reduction": "sum"}),
    ],
    ids=["reward", "process", "dpo", "kto", "lm", "lm-rows", "lm-sum"],
)
def test_two_replicas_learn_what_one_device_learns(kind, options):
    (history, weights), (shared, others) = (
        trained(kind, strategy, **options)
        for strategy in (
            tf.distribute.get_strategy(),
            tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        )
    )
    assert {*history} == {*shared}
    for name, values in history.items():
        np.testing.assert_allclose(shared[name], values, rtol=2e-5, atol=1e-6)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-6)
