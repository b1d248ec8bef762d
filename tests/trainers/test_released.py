"""Models that are gone leave nothing in memory: no graphs, and no weights."""

import gc

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

import kerasrlhf as rlhf


def ppo():
    trainer = helpers.ppo()
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    data = tf.data.Dataset.from_tensors(helpers.prompts([1, 2, 3, 4]))
    trainer.fit(data, validation_data=data, verbose=0)


def dpo():
    trainer = rlhf.DPO(helpers.lm(), response_length=2)
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    mask = np.array([[[False, False, True, True]] * 2] * 2)
    x = {
        "token_ids": np.arange(16, dtype="int32").reshape(2, 2, 4),
        "padding_mask": np.ones_like(mask),
        "response_mask": mask,
    }
    data = tf.data.Dataset.from_tensors((x, np.zeros(2, "float32")))
    trainer.fit(data, verbose=0)
    trainer.evaluate(data, verbose=0)
    trainer.predict(data, verbose=0)


def shuffled_ppo():
    """Each pass over shuffled data asks the trainer for its steps."""
    trainer = helpers.ppo(helpers.actor(texts=True))
    trainer.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    texts = ["a", "b", "c", "d"]
    prompts = rlhf.data.prompts(texts, trainer.actor.causal_lm.preprocessor, 2, max_length=4)
    trainer.fit(prompts, epochs=2, verbose=0)


def stock():
    lm = helpers.lm("llama", texts=True)
    lm.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    demos = rlhf.data.demonstrations(rows, lm.preprocessor, 2, max_length=6)
    lm.fit(demos, epochs=2, validation_data=demos, verbose=0)


def alive():
    gc.collect()
    return {id(x) for x in gc.get_objects() if isinstance(x, FuncGraph | keras.Model)}


@pytest.mark.parametrize("train", [ppo, shuffled_ppo, dpo, stock])
def test_models_and_their_graphs_are_freed(train):
    gc.unfreeze()
    before = alive()
    train()
    assert not alive() - before


def test_a_dataset_keeps_the_counter_of_its_passes():
    """Also where nothing but an iterator or another dataset refers to it."""
    rows = [{"prompt": letter, "response": letter} for letter in "abcdefgh"]
    demos = rlhf.data.demonstrations(rows, helpers.preprocessor(), 2, max_length=6)
    changed = [demos.repeat(2).prefetch(1), demos.shuffle(4), demos.map(lambda *batch: batch[0])]
    batches = iter(demos)
    del demos
    gc.collect()
    assert len(list(batches)) == 4
    assert [len(list(dataset)) for dataset in changed] == [8, 4, 4]
