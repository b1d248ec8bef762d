"""Gradient ascent on the exact objective, to set beside PPO.

No sampling, no critic, no clipping: E[r] - b KL over the list of all responses is differentiated
as it stands. Responses that differ in their last token alone share a row, so one gradient reads
`vocab^(length - 1)` rows a prompt.
"""

import itertools
import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf import replica
from kerasrlhf.models import lm_adapter


def tree_logprobs(causal_lm, prompts, responses):
    """Log-probabilities float32 `(prompts, responses)`, differentiable.

    Args:
        causal_lm: keras-hub `CausalLM`.
        prompts: int32 `(prompts, columns)`.
        responses: `Responses`.
    """
    vocab, (rows, columns) = lm_adapter.vocabulary_size(causal_lm), prompts.shape
    length = responses.token_ids.shape[1]
    beginnings = np.array(list(itertools.product(range(vocab), repeat=length - 1)), "int32")
    count = len(beginnings)
    ids = np.concatenate(
        [np.repeat(prompts, count, axis=0), np.tile(beginnings, (rows, 1))], axis=1
    )
    hidden = lm_adapter.hidden_states(causal_lm, ids, np.ones(ids.shape, bool))
    logits = lm_adapter.head(causal_lm)(hidden[:, columns - 1 :])
    table = ops.reshape(ops.log_softmax(logits, axis=-1), (rows, -1))
    chosen = ops.take(table, _places(responses.token_ids, vocab), axis=1)
    return ops.sum(ops.where(responses.mask[None], chosen, 0.0), axis=-1)


def _places(token_ids, vocab):
    """Where each token of a response stands in the table `(beginnings, length, vocab)`.

    Row `i` of the beginnings spells `i` in base `vocab`; what follows a token does not matter.
    """
    length = token_ids.shape[1]
    places = np.zeros(token_ids.shape, "int32")
    for step in range(length):
        digits = [*range(length - 2, length - 2 - step, -1)]
        beginning = token_ids[:, :step] @ (vocab ** np.array(digits, "int64"))
        places[:, step] = (beginning * length + step) * vocab + token_ids[:, step]
    return places


class ExactTrainer:
    """Adam on the exact objective of one model.

    Args:
        causal_lm: the model that is changed.
        prompts: int32 `(prompts, columns)`.
        responses: `Responses`.
        optimizer: Keras optimiser.
    """

    def __init__(self, causal_lm, prompts, responses, optimizer):
        self.optimizer, self.variables = optimizer, causal_lm.trainable_variables
        optimizer.build(self.variables)

        def loss_and_sums(ref_logprobs, scores, coef):
            logprobs = tree_logprobs(causal_lm, prompts, responses)
            gain = scores - coef * (logprobs - ref_logprobs)
            values = ops.sum(ops.exp(logprobs) * gain, axis=1)
            return -ops.mean(values), logprobs

        def gradients_and_sums(*args):
            return replica.dense_gradients(lambda: loss_and_sums(*args), self.variables)

        strategy = tf.distribute.get_strategy()
        self._step = replica.update(gradients_and_sums, optimizer, self.variables, strategy, True)
        self._read = replica.compiled(lambda: tree_logprobs(causal_lm, prompts, responses))

    def logprobs(self):
        """As the model is now, float64 `(prompts, responses)`."""
        return np.asarray(self._read(), "float64")

    def run(self, ref_logprobs, scores, coef, steps, marks):
        """Steps, and `(step, seconds, logprobs)` at every mark."""
        arrays = [ops.cast(x, "float32") for x in (ref_logprobs, scores, coef)]
        seconds = 0.0
        for step in range(1, steps + 1):
            start = time.perf_counter()
            self._step(*arrays)
            keras.ops.convert_to_numpy(self.optimizer.iterations)
            seconds += time.perf_counter() - start
            if step in marks:
                yield step, seconds, self.logprobs()
