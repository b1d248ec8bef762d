"""`causal_lm.fit(demos)` as written, and what stays a `TokenizedDataset`."""

import subprocess
import sys
import types

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import data

DEMOS = [{"prompt": "ab" * (i % 3 + 1), "response": "c" * (i % 4 + 1)} for i in range(8)]


@pytest.fixture
def lm(gpt2):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=gpt2.tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=1,
        hidden_dim=8,
        intermediate_dim=8,
        dropout=0.0,
        max_sequence_length=32,
    )
    lm = keras_hub.models.GPT2CausalLM(backbone, preprocessor=gpt2)
    return lm


@pytest.fixture
def demos(gpt2):
    return data.demonstrations(DEMOS, gpt2, batch_size=2)


def nats_per_response_token(lm, dataset):
    total, count = 0.0, 0.0
    for x, y, weight in dataset:
        logprobs = keras.ops.log_softmax(lm(x), axis=-1)
        chosen = np.take_along_axis(np.array(logprobs), np.array(y)[..., None], axis=-1)[..., 0]
        total -= (chosen * np.array(weight)).sum()
        count += np.array(weight).sum()
    return total / count


def test_fit_as_written(lm, demos):
    before = [np.array(w) for w in lm.weights]
    history = lm.fit(demos, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert int(lm.optimizer.iterations) == 4
    assert any((np.array(w) != b).any() for w, b in zip(lm.weights, before, strict=True))


def test_fit_on_a_part_with_validation(lm, demos):
    lm.compile(jit_compile=False)
    history = lm.fit(demos.take(2), epochs=2, validation_data=demos.skip(2), verbose=0)
    assert int(lm.optimizer.iterations) == 4
    assert len(history.history["val_loss"]) == 2


def test_evaluate_is_the_loss_of_response_tokens(lm, demos):
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    lm.compile(loss=loss, jit_compile=False)
    one_batch = demos.take(1).cache()
    expected = nats_per_response_token(lm, one_batch)
    assert lm.evaluate(one_batch, verbose=0)[0] == pytest.approx(expected, rel=1e-5)


def test_training_learns_the_responses(lm, gpt2):
    demos = data.demonstrations([{"prompt": "ab", "response": "c"}] * 8, gpt2, batch_size=4)
    lm.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    lm.fit(demos, epochs=20, verbose=0)
    assert nats_per_response_token(lm, demos) < 0.1


def test_a_model_without_preprocessor_sees_the_same(lm, gpt2):
    demos = data.demonstrations(DEMOS, gpt2, batch_size=2, shuffle=False)
    lm.preprocessor = None
    assert demos.map(lm.preprocess_samples) is demos


def test_what_keeps_the_kind(demos):
    kept = [
        demos.take(1),
        demos.skip(1),
        demos.shuffle(2),
        demos.repeat(2),
        demos.cache(),
        demos.prefetch(1),
        demos.shard(2, 0),
        demos.with_options(tf.data.Options()),
        demos.take(3).repeat().skip(1).take(2),
    ]
    for dataset in kept:
        assert isinstance(dataset, data.TokenizedDataset)
        assert dataset.report is demos.report
        assert dataset.element_spec == demos.element_spec
    assert [len(dataset) for dataset in kept] == [1, 3, 4, 8, 4, 4, 2, 4, 2]


def test_other_functions_are_mapped(demos):
    lengths = demos.map(lambda x, y, weight: tf.reduce_sum(weight))
    assert not isinstance(lengths, data.TokenizedDataset)
    assert sum(lengths.as_numpy_iterator()) == sum(len(d["response"]) + 1 for d in DEMOS)
    other = types.SimpleNamespace(preprocess_samples=lambda x, y, weight: y)
    assert not isinstance(demos.map(other.preprocess_samples), data.TokenizedDataset)


def test_options_are_kept(demos):
    options = tf.data.Options()
    options.deterministic = False
    assert demos.with_options(options).take(1).options().deterministic is False


def test_it_is_distributed_like_any_dataset(gpt2):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    demos = data.demonstrations(DEMOS, gpt2, batch_size=4, shuffle=False)
    rows = [
        strategy.experimental_local_results(x["token_ids"])
        for x, _, _ in strategy.experimental_distribute_dataset(demos)
    ]
    assert [[len(part) for part in parts] for parts in rows] == [[2, 2], [2, 2]]
    whole = np.concatenate([x["token_ids"] for x, _, _ in demos.as_numpy_iterator()])
    assert np.array_equal(np.concatenate([part for parts in rows for part in parts]), whole)


def test_shuffled_rows_are_distributed(gpt2):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    texts = list("abcdefgh")
    dataset = data.prompts(texts, gpt2, 4)
    seen = [
        text.decode()
        for batch in strategy.experimental_distribute_dataset(dataset)
        for part in strategy.experimental_local_results(batch["prompt"])
        for text in part.numpy()
    ]
    assert sorted(seen) == texts


FITTED = """
import keras, numpy as np, kerasrlhf as rlhf, keras_hub
actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
lm, options = actor.causal_lm, {"batch_size": 2, "max_length": 8}
pairs = [{"prompt": "Tom", "chosen": " ran", "rejected": " sat"}] * 2
lm.compile(jit_compile=False)
lm.fit(rlhf.data.demonstrations([{"prompt": "Tom", "response": " ran"}] * 2, lm.preprocessor,
                                **options), verbose=0)
reward = rlhf.RewardModel.from_causal_lm(lm)
reward.compile(jit_compile=False)
reward.fit(rlhf.data.preferences(pairs, lm.preprocessor, **options), verbose=0)
"""


@pytest.mark.slow
def test_fit_gives_no_advice_about_shuffling():
    # In a process of its own, because pytest has filters that stand before those of the package.
    arguments = [sys.executable, "-W", "default::UserWarning", "-c", FITTED]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stderr
    assert "shuffle=True" not in output and "Gradients do not exist" not in output, output
