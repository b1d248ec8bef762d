"""What a trainer traced goes with it: graphs of trainers that are gone do not pile up."""

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


def graphs():
    gc.collect()
    return {id(x) for x in gc.get_objects() if isinstance(x, FuncGraph)}


@pytest.mark.parametrize("train", [ppo, dpo])
def test_the_graphs_of_a_trainer_go_with_it(train):
    gc.unfreeze()
    before = graphs()
    train()
    assert not graphs() - before
