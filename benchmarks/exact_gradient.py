"""Gradient ascent on the exact objective, to compare PPO with.

No sampling, no critic, no clipping: E[r] - b KL over the list of all responses is differentiated.
Responses share the work for common prefixes: from one token to the next the cache of each prefix is
repeated for all its continuations.
"""

import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf import replica
from kerasrlhf.models import lm_adapter


@tf.RegisterGradient("XlaDynamicUpdateSlice")
def _update_slice_gradient(op, gradient):
    """Computes the gradient, which TensorFlow lacks, of the operation that writes into a cache."""
    # Overwritten values have no gradient; the update gets the gradient of its place.
    _, update, start = op.inputs
    kept = ops.slice_update(gradient, start, ops.zeros_like(update))
    return kept, tf.slice(gradient, start, tf.shape(update)), None


def tree_logprobs(causal_lm, prompts, responses):
    """Computes log-probabilities float32 `(prompts, responses)`, differentiable.

    Args:
        causal_lm: keras-hub `CausalLM`.
        prompts: int32 `(prompts, columns)`.
        responses: `Responses`.
    """
    vocab, (rows, columns) = lm_adapter.vocabulary_size(causal_lm), prompts.shape
    length = responses.token_ids.shape[1]
    cache = lm_adapter.empty_cache(causal_lm, rows, columns + length - 1)
    logits, _, cache = lm_adapter.step(causal_lm, prompts, cache, 0)
    places, sums = np.zeros(len(responses.token_ids), "int32"), 0.0
    for t in range(length):
        # (prompts, prefixes of t tokens * tokens); a prefix's number has its tokens as digits.
        table = ops.reshape(ops.log_softmax(logits[:, -1], axis=-1), (rows, -1))
        # Each response looks up its prefix with its next token.
        places = places * vocab + responses.token_ids[:, t]
        sums += ops.where(responses.mask[:, t], ops.take(table, places, axis=1), 0.0)
        if t < length - 1:
            # Every prefix continues with every token.
            cache = tf.nest.map_structure(lambda x: ops.repeat(x, vocab, axis=0), cache)
            tokens = np.tile(np.arange(vocab, dtype="int32"), rows * vocab**t)[:, None]
            logits, _, cache = lm_adapter.step(causal_lm, tokens, cache, columns + t)
    return sums


class ExactTrainer:
    """Adam on the exact objective of one model.

    Args:
        causal_lm: the model that is changed.
        prompts: int32 `(prompts, columns)`.
        responses: `Responses`.
        optimizer: Keras optimizer.
    """

    def __init__(self, causal_lm, prompts, responses, optimizer):
        self.optimizer, self.variables = optimizer, causal_lm.trainable_variables
        optimizer.build(self.variables)

        def gradients_and_sums(batch):
            ref_logprobs, scores, coef = batch
            values = [v.value for v in self.variables]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                logprobs = tree_logprobs(causal_lm, prompts, responses)
                gain = scores - coef * (logprobs - ref_logprobs)
                # The expectation over all responses, exactly.
                loss = -ops.mean(ops.sum(ops.exp(logprobs) * gain, axis=1))
            return replica.dense_gradients(tape, loss, values), {"loss/total": loss}

        execution = replica.Execution(tf.distribute.get_strategy(), jit_compile=True)
        self._step = replica.update(gradients_and_sums, optimizer, self.variables, execution)
        self._read = replica.compiled(lambda: tree_logprobs(causal_lm, prompts, responses))

    def logprobs(self):
        """Returns log-probabilities of the present model, float64 `(prompts, responses)`."""
        return np.asarray(self._read(), "float64")

    def run(self, ref_logprobs, scores, coef, steps, marks):
        """Makes steps, and yields `(step, seconds, logprobs)` at every mark."""
        batch = tuple(ops.cast(x, "float32") for x in (ref_logprobs, scores, coef))
        seconds = 0.0
        for step in range(1, steps + 1):
            start = time.perf_counter()
            self._step(batch)
            # Wait for the step, so that its time is measured.
            keras.ops.convert_to_numpy(self.optimizer.iterations)
            seconds += time.perf_counter() - start
            if step in marks:
                yield step, seconds, self.logprobs()
