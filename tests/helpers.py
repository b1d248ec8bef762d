"""Tiny language models whose weights are large enough to prefer some tokens to others."""

import string

import keras
import keras_hub
import numpy as np

from kerasrlhf import replica
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import Sampler

VOCAB = 23
COLUMNS = 6
FAMILIES = ("gpt2", "llama")


def preprocessor(vocab=VOCAB):
    """GPT-2's, one token per letter; start, end and padding are all id 0."""
    vocabulary = {"<|endoftext|>": 0} | {
        letter: i for i, letter in enumerate(string.ascii_letters[: vocab - 2], 1)
    }
    vocabulary["aa"] = vocab - 1
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
    return keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)


def filled(model, seed=0, stddev=0.4):
    """`model` with every weight sampled again, far from its near-uniform start."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        center = 1.0 if variable.name in ("gamma", "scale") else 0.0
        variable.assign(generator.normal(center, stddev, variable.shape))
    return model


def backbone(family="gpt2", vocab=VOCAB, seed=0, positions=32, stddev=0.4, **options):
    shape = {"vocabulary_size": vocab, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32}
    if family == "gpt2":
        own = {"num_heads": 2, "max_sequence_length": positions, "dropout": 0.0}
        make = keras_hub.models.GPT2Backbone
    else:
        own = {"num_query_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
        make = keras_hub.models.LlamaBackbone
    return filled(make(**{**shape, **own, **options}), seed, stddev)


def lm(family="gpt2", vocab=VOCAB, seed=0, texts=False, **options):
    """A CausalLM; with `texts` it has a tokenizer."""
    made = keras_hub.models.GPT2CausalLM if family == "gpt2" else keras_hub.models.LlamaCausalLM
    return made(
        backbone(family, vocab, seed, **options),
        preprocessor=preprocessor(vocab) if texts else None,
    )


def actor(*args, critic=None, **options):
    """An ActorCritic whose value head is not zero."""
    made = ActorCritic(lm(*args, **options), critic=critic)
    filled(made.value_head, seed=7)
    return made


def prompts(lengths, columns=COLUMNS, vocab=VOCAB, seed=0):
    """A prompt batch with prompts of these lengths."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab, (len(lengths), columns)).astype("int32")
    mask = np.arange(columns)[None] < np.asarray(lengths)[:, None]
    return {"token_ids": ids, "padding_mask": mask}


def widened(batch, columns, token=9):
    """The batch with further padding, of a token id that means something elsewhere."""
    pad = [(0, 0), (0, columns)]
    return {
        "token_ids": np.pad(batch["token_ids"], pad, constant_values=token),
        "padding_mask": np.pad(batch["padding_mask"], pad),
    }


def draw_eagerly(actor, batch, sampler, seed=0):
    """`actor.generate` without tracing anything."""
    ids, mask = (keras.ops.convert_to_tensor(batch[k]) for k in ("token_ids", "padding_mask"))
    uniforms = replica.uniforms(replica.stream(seed, "generate"), 0, len(ids), sampler.length)
    return actor.sample(ids, mask, uniforms, sampler, sampler.temperature)


def arrays(record):
    """A named tuple of tensors as a dict of arrays."""
    return {name: np.asarray(value) for name, value in record._asdict().items()}


def token_reward(response_ids):
    """A number that depends on every token of a response."""
    return [sum((7 * t + 3 * i) % 11 for i, t in enumerate(row)) / 5 - 2 for row in response_ids]


def ppo(acting=None, reward=token_reward, **options):
    """A PPO trainer of a tiny actor, not yet compiled."""
    options = {"sampler": Sampler(length=4), "kl": FixedKL(0.1), **options}
    return PPO(actor() if acting is None else acting, reward, **options)


class Crash(Exception):
    """What `CrashIn` raises: nothing else catches it."""


class CrashIn(keras.callbacks.Callback):
    """Raises at the end of the given iteration, before the callbacks behind it."""

    def __init__(self, iteration):
        super().__init__()
        self.iteration = iteration

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.iteration.numpy()) == self.iteration:
            raise Crash
