"""The loss of a minibatch and its gradient: an algorithm's objective and what is added to it."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from kerasrlhf import replica
from kerasrlhf.functional import kl as kl_estimators
from kerasrlhf.functional import masking
from kerasrlhf.models import reverse
from kerasrlhf.rollouts import minibatches
from kerasrlhf.types import Experience, TokenStats


class Counts(NamedTuple):
    """What sums over rows are divided by: taken over the whole minibatch of all replicas.

    weights: float32 `(batch, length)`, of the tokens in the loss.
    tokens, prompt_tokens: float32 scalars, response tokens and those of their prompts.
    """

    weights: Any
    tokens: Any
    prompt_tokens: Any

    @classmethod
    def of(cls, minibatch: Experience, reduction: str, length: int) -> Counts:
        """The counts of a whole minibatch; `length` is what `"fixed"` divides by."""
        mask = minibatch.response_mask
        told = ops.where(ops.any(mask, axis=-1), minibatch.prompt_lengths, 0)
        return cls(
            masking.loss_weights(mask, reduction, length),
            ops.maximum(ops.sum(ops.cast(mask, "float32")), 1.0),
            ops.maximum(ops.sum(ops.cast(told, "float32")), 1.0),
        )


class Gradients:
    """Gradients of a trainer's loss on the rows of a replica.

    The loss is the sum over tokens of `weight * (objective + KL term - entropy bonus)`, plus
    `ptx_coef` times the cross-entropy of a batch of text, plus `reverse_coef` times that of the
    prompts given their responses.

    Args:
        trainer: `OnPolicyTrainer`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def counted(self, minibatch, text, temperature):
        """A whole minibatch with its counts: the arguments of `of_minibatch`."""
        trainer = self.trainer
        counts = Counts.of(minibatch, trainer.loss_reduction, trainer.sampler.length)
        return minibatch, counts, text, temperature

    def of_minibatch(self, minibatch, counts, text, temperature):
        """Gradients and logged sums of a minibatch, in micro-batches, all divided by `counts`."""
        trainer = self.trainer
        variables, parts = trainer.trainable_variables, trainer.micro_batches
        weights, *totals = counts

        def part(index):
            rows, shares = minibatches.part((minibatch, weights), index, parts)
            found = replica.dense_gradients(
                lambda: self._loss(Experience(*rows), Counts(shares, *totals), temperature),
                variables,
            )
            if text is None:
                return found
            *batch, weight_sum = text
            lines = minibatches.part(batch, index, parts)
            return _added(found, trainer.ptx_coef, self._of_text(lines, weight_sum))

        return replica.accumulated(part, parts)

    def of_text(self, inputs, targets, weights, weight_sum):
        """Gradients and the loss of language modeling alone."""

        def part(index):
            lines = minibatches.part([inputs, targets, weights], index, self.trainer.micro_batches)
            gradients, loss = self._of_text(lines, weight_sum)
            return gradients, {"loss/ptx": loss}

        return replica.accumulated(part, self.trainer.micro_batches)

    def _of_text(self, lines, weight_sum):
        """Of the cross-entropy of a batch of text, in nats per counted token."""
        inputs, targets, weights = lines

        def loss():
            logits = self.trainer.actor(inputs)["logits"]
            losses = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
            total = ops.sum(losses * ops.cast(weights, "float32")) / weight_sum
            return total, total

        return replica.dense_gradients(loss, self.trainer.trainable_variables)

    def _loss(self, minibatch, counts, temperature):
        trainer, mask = self.trainer, minibatch.response_mask
        stats = trainer.actor.token_stats(
            minibatch.token_ids,
            minibatch.padding_mask,
            minibatch.prompt_lengths,
            trainer.sampler.length,
            trainer.sampler.temperature if temperature is None else temperature,
            entropy_gradient=trainer.entropy_coef > 0,
        )
        loss, logs = trainer.objective(stats, minibatch)
        if minibatch.kl_weights is not None:
            # Elsewhere k3 could overflow, and nothing times infinity is no number.
            counts_here = ops.logical_and(mask, minibatch.kl_weights != 0)
            pair = (stats.logprobs, minibatch.ref_logprobs)
            kl = kl_estimators.ESTIMATORS[trainer.kl_estimator](
                *(masking.zero_outside(x, counts_here) for x in pair)
            )
            logs = {**logs, "loss/kl": minibatch.kl_weights * kl}
            loss = loss + logs["loss/kl"]
        if trainer.entropy_coef > 0:
            loss = loss - trainer.entropy_coef * stats.entropy
        logs = {**policy_logs(stats, minibatch), **logs}
        sums = {name: masking.masked_sum(x, mask) / counts.tokens for name, x in logs.items()}
        total = ops.sum(masking.zero_outside(loss, mask) * counts.weights)
        if trainer.reverse_coef > 0:
            sums["loss/reverse"] = self._reverse_loss(minibatch, counts)
            total = total + trainer.reverse_coef * sums["loss/reverse"]
        return total, {"loss/total": total, **sums}

    def _reverse_loss(self, minibatch, counts):
        """Cross-entropy of the prompts given their responses, in nats per prompt token."""
        columns = minibatch.token_ids.shape[1] - self.trainer.sampler.length
        logprobs, _ = reverse.prompt_logprobs(
            self.trainer.actor.causal_lm,
            minibatch.token_ids,
            minibatch.padding_mask,
            minibatch.prompt_lengths,
            columns,
        )
        taught = ops.any(minibatch.response_mask, axis=-1, keepdims=True)
        return -ops.sum(ops.where(taught, logprobs, 0.0)) / counts.prompt_tokens


def policy_logs(stats: TokenStats, minibatch: Experience) -> dict[str, Any]:
    """Per token, float32 `(batch, length)`: how far the policy has moved since it sampled (S1)."""
    ratio = ops.exp(stats.logprobs - minibatch.logprobs)
    return {
        "policy/entropy": stats.entropy,
        "policy/approxkl": kl_estimators.k2(stats.logprobs, minibatch.logprobs),
        "policy/ratio": ratio,
        "policy/ratio_error": ops.abs(ratio - 1.0),
    }


def _added(found, coef, text):
    """Gradients and sums with `coef` times those of a text."""
    (gradients, sums), (more, loss) = found, text
    gradients = [a + coef * b for a, b in zip(gradients, more, strict=True)]
    total = sums["loss/total"] + coef * loss
    return gradients, {**sums, "loss/ptx": loss, "loss/total": total}
