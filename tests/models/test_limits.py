"""Rows that are longer than a model, and tokenizers that are larger: errors before any training."""

import helpers
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models import lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.trainers.dpo import DPO
from kerasrlhf.trainers.orpo import ORPO


def pairs(length, rows=2):
    ids = np.random.default_rng(0).integers(1, helpers.VOCAB, (rows, 2, length)).astype("int32")
    inputs = {
        "token_ids": ids,
        "padding_mask": np.ones(ids.shape, bool),
        "response_mask": np.ones(ids.shape, bool) & (np.arange(length) > 1),
    }
    return tf.data.Dataset.from_tensors((inputs, np.zeros(rows, "float32")))


def short(**options):
    return helpers.lm(positions=8, **options)


def complaint(run):
    """The message that `run` ends with."""
    with pytest.raises(ValueError, match="12 tokens do not fit the 8 positions") as found:
        run()
    message = str(found.value)
    assert "`max_length=8`" in message and len(message.splitlines()) < 4
    return message


@pytest.mark.parametrize("make", [RewardModel, DPO, ORPO])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_says_how_long_rows_may_be(make, jit_compile):
    model = make(short())
    model.compile("sgd", jit_compile=jit_compile)
    complaint(lambda: model.fit(pairs(12), verbose=0))


def test_it_says_so_of_later_data_too():
    """Keras builds a model once; data of another length are traced in the training step."""
    model = DPO(short())
    model.compile("sgd", jit_compile=False)
    model.fit(pairs(8), verbose=0)
    complaint(lambda: model.fit(pairs(12), verbose=0))
    complaint(lambda: model.evaluate(pairs(12), verbose=0))
    model.fit(pairs(8), verbose=0)


def test_calls_and_other_paths_say_so():
    ids = np.ones((2, 12), "int32")
    inputs = {"token_ids": ids, "padding_mask": ids > 0}
    complaint(lambda: ActorCritic(short())(inputs))
    complaint(lambda: ActorCritic(helpers.lm("llama"), critic=short())(inputs))
    complaint(lambda: ActorCritic(short()).token_stats(ids, ids > 0))
    complaint(lambda: RewardModel(short())(inputs))


def test_models_without_a_limit_read_any_length():
    model = helpers.lm("llama")
    assert lm_adapter.positions(model.backbone) is None
    assert RewardModel(model)({"token_ids": np.ones((1, 99)), "padding_mask": np.ones((1, 99))})


def with_tokens(preprocessor_vocab, vocab):
    model = helpers.lm(vocab=vocab)
    model.preprocessor = helpers.preprocessor(preprocessor_vocab)
    return model


@pytest.mark.parametrize("wrap", [ActorCritic, RewardModel, DPO, RewardModel.from_causal_lm])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(wrap):
    with pytest.raises(ValueError, match=r"has 25 tokens.* embeddings for 20.*=25"):
        wrap(with_tokens(25, 20))
    wrap(with_tokens(20, 25))
    wrap(with_tokens(20, 20))


def test_a_preprocessor_that_is_passed_on_its_own_is_checked():
    backbone = helpers.backbone(vocab=20)
    with pytest.raises(ValueError, match="has 25 tokens"):
        RewardModel(backbone, preprocessor=helpers.preprocessor(25))


def test_gaps_between_ids_count():
    """What matters is the largest id."""
    vocabulary = {"<|endoftext|>": 0, "a": 1, "aa": 30}
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    with pytest.raises(ValueError, match="has 31 tokens"):
        lm_adapter.check_preprocessor(helpers.backbone(vocab=23), preprocessor)
    lm_adapter.check_preprocessor(helpers.backbone(vocab=31), preprocessor)
