"""One update: its rows, the loss of a minibatch, and the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf import replica
from kerasrlhf.functional import masking
from kerasrlhf.functional.logprobs import ESTIMATORS, k2
from kerasrlhf.models import reverse
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.trainers.language_modeling import TextBatch
from kerasrlhf.types import Experience, Tensor, TokenStats


class Counts(NamedTuple):
    """The denominators of sums over rows, over the whole minibatch of all replicas.

    weights: float32 `(batch, length)`, weights of the tokens in the loss.
    tokens: float32 scalar, number of response tokens.
    prompt_tokens: float32 scalar, number of prompt tokens, in rows whose response counts.
    """

    weights: Tensor
    tokens: Tensor
    prompt_tokens: Tensor


class UpdateBatch(NamedTuple):
    """The inputs of one update.

    minibatch: `Experience` of its rows.
    counts: `Counts` of the whole minibatch.
    text: `TextBatch` of language modeling, or None.
    temperature: float32 scalar, of the sampler in this iteration.
    loss_scale: float32 scalar. The loss is multiplied by it, and its gradients are divided by it,
        so that they do not vanish in float16; None for 1.
    """

    minibatch: Experience
    counts: Counts
    text: TextBatch | None
    temperature: Tensor
    loss_scale: Tensor | None = None


class UpdateStep:
    """The loss of a minibatch and its gradient: an algorithm's objective and the added terms.

    The loss is the sum over tokens of `weight * (objective + KL term - entropy bonus)`, plus
    `text_coef` times the cross-entropy of a batch of text, plus `prompt_coef` times that of the
    prompts given their responses. Everything is divided by counts over the whole minibatch, so
    that micro-batches, replicas and padding do not change the gradient (M3).

    Args:
        actor: `ActorCritic`.
        objective: an algorithm's loss per token and logged tensors, from `TokenStats` and
            `Experience`.
        variables: list of Keras variables to train.
        length: int. Maximum number of tokens of a response.
        columns: int. Maximum number of tokens after a prompt: in a dialogue more than `length`.
        micro_batches: int. Parts of a minibatch, computed one after the other.
        loss_reduction: str, as in `functional.masking.loss_weights`.
        kl_estimator: str, of the KL term of the loss.
        entropy_coef: float.
        text_coef: float.
        prompt_coef: float.
    """

    def __init__(
        self,
        actor: ActorCritic,
        objective: Callable[[TokenStats, Experience], tuple[Tensor, dict[str, Tensor]]],
        variables: list[keras.Variable],
        *,
        length: int,
        columns: int,
        micro_batches: int,
        loss_reduction: str,
        kl_estimator: str,
        entropy_coef: float,
        text_coef: float,
        prompt_coef: float,
    ) -> None:
        self.actor, self.objective, self.variables = actor, objective, variables
        self.length, self.columns, self.micro_batches = length, columns, micro_batches
        self.loss_reduction, self.kl_estimator = loss_reduction, kl_estimator
        self.entropy_coef, self.text_coef, self.prompt_coef = entropy_coef, text_coef, prompt_coef

    def batch(
        self,
        experience: Experience,
        rows: Tensor,
        text: TextBatch | None,
        temperature: Tensor,
        loss_scale: Tensor | None = None,
    ) -> UpdateBatch:
        """Returns rows of an experience as an `UpdateBatch`.

        Args:
            experience: `Experience`.
            rows: int32 `(minibatch,)`. Negative numbers are padding, which changes nothing.
            text: `TextBatch` or None.
            temperature: float32 scalar.
            loss_scale: float32 scalar. Defaults to None: 1.
        """
        # Count before rows are divided into micro-batches and replicas (M3).
        is_real = rows >= 0
        minibatch = take(experience, ops.maximum(rows, 0))
        mask = ops.logical_and(minibatch.response_mask, is_real[:, None])
        minibatch = minibatch._replace(response_mask=mask)
        counts = self.counts(minibatch, is_real)
        return UpdateBatch(minibatch, counts, text, temperature, loss_scale)

    def counts(self, minibatch: Experience, is_real: Tensor | None = None) -> Counts:
        """Returns the counts of a whole minibatch.

        Args:
            minibatch: `Experience`.
            is_real: bool `(minibatch,)`. False for padding. Defaults to None: no row is.
        """
        mask = minibatch.response_mask
        weights = masking.loss_weights(mask, self.loss_reduction, self.length)
        # Two of the reductions divide by the number of rows, and padding is none.
        if is_real is not None and self.loss_reduction != "token":
            weights = weights * (mask.shape[0] / ops.sum(ops.cast(is_real, "float32")))
        # Rows that `mask_overlong` emptied have no prompt in the loss either.
        counted = ops.where(ops.any(mask, axis=-1), minibatch.prompt_lengths, 0)
        return Counts(
            weights=weights,
            tokens=ops.maximum(ops.sum(ops.cast(mask, "float32")), 1.0),
            prompt_tokens=ops.maximum(ops.sum(ops.cast(counted, "float32")), 1.0),
        )

    def gradients(
        self, batch: UpdateBatch, index: Tensor | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns gradients and logged sums of a batch, or of one of its micro-batches.

        Args:
            batch: `UpdateBatch`, or a replica's share of its rows.
            index: int32 scalar, which micro-batch. Defaults to None: all, one after the other.
        """
        if index is None and self.micro_batches > 1:
            # Denominators are those of the whole minibatch: gradients of parts add up.
            return replica.accumulated(lambda i: self.gradients(batch, i), self.micro_batches)
        part = batch if index is None else _part(batch, index, self.micro_batches)
        values = [v.value for v in self.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            # Watch only the variables to train; frozen networks need no gradient.
            tape.watch(values)
            loss, sums = self.loss(part)
            scaled = _scaled(loss, part.loss_scale)
        gradients = _unscaled(replica.dense_gradients(tape, scaled, values), part.loss_scale)
        if part.text is None:
            return gradients, sums
        # Use a second tape, so that the activations of both are never in memory together.
        more, text_sums = self._text_part_gradients(part.text)
        total = sums["loss/total"] + self.text_coef * text_sums["loss/ptx"]
        gradients = [a + self.text_coef * b for a, b in zip(gradients, more, strict=True)]
        return gradients, {**sums, **text_sums, "loss/total": total}

    def loss(self, batch: UpdateBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of a (micro-)batch without its text, and the logged sums."""
        minibatch, counts = batch.minibatch, batch.counts
        mask = minibatch.response_mask
        # Evaluate the response tokens with current weights; each result is `(batch, length)`.
        stats = self.actor.token_stats(
            minibatch.token_ids,
            minibatch.padding_mask,
            minibatch.prompt_lengths,
            self.columns,
            batch.temperature,
            entropy_gradient=self.entropy_coef > 0,
        )
        # Add the terms per token: objective, KL, entropy bonus.
        loss, logs = self.objective(stats, minibatch)
        if minibatch.kl_weights is not None:
            logs = {**logs, "loss/kl": self._kl(stats, minibatch)}
            loss = loss + logs["loss/kl"]
        if self.entropy_coef > 0:
            loss = loss - self.entropy_coef * stats.entropy
        logs = {**policy_logs(stats, minibatch), **logs}
        # Reduce once, over response tokens (M3, M9).
        sums = {name: masking.masked_sum(x, mask) / counts.tokens for name, x in logs.items()}
        total = ops.sum(masking.zero_outside(loss, mask) * counts.weights)
        if self.prompt_coef > 0:
            sums["loss/reverse"] = self._prompt_loss(minibatch, counts)
            total = total + self.prompt_coef * sums["loss/reverse"]
        return total, {"loss/total": total, **sums}

    def text_gradients(self, text: TextBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns the gradients of the cross-entropy of a text, and its value.

        Args:
            text: `TextBatch`, or a replica's share of its rows. The loss is in nats per counted
                token of the whole batch.
        """

        def gradients(index: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
            return self._text_part_gradients(_part(text, index, self.micro_batches))

        return replica.accumulated(gradients, self.micro_batches)

    def _text_part_gradients(self, part: TextBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
        values = [v.value for v in self.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = self.actor(part.inputs)["logits"]
            # `targets` are shifted by the data: `logits[:, t]` predict `targets[:, t]`.
            losses = ops.sparse_categorical_crossentropy(part.targets, logits, from_logits=True)
            loss = ops.sum(losses * ops.cast(part.weights, "float32")) / part.weight_sum
            scaled = _scaled(loss, part.loss_scale)
        gradients = _unscaled(replica.dense_gradients(tape, scaled, values), part.loss_scale)
        return gradients, {"loss/ptx": loss}

    def _kl(self, stats: TokenStats, minibatch: Experience) -> Tensor:
        """The KL term of the loss, float32 `(batch, length)`."""
        counts_here = ops.logical_and(minibatch.response_mask, minibatch.kl_weights != 0)
        # Elsewhere k3 could overflow, and 0 times infinity is NaN.
        pair = (stats.logprobs, minibatch.ref_logprobs)
        estimate = ESTIMATORS[self.kl_estimator]
        return minibatch.kl_weights * estimate(
            *(masking.zero_outside(x, counts_here) for x in pair)
        )

    def _prompt_loss(self, minibatch: Experience, counts: Counts) -> Tensor:
        """Cross-entropy of the prompts given their responses, in nats per prompt token."""
        logprobs, _ = reverse.prompt_logprobs(
            self.actor.causal_lm,
            minibatch.token_ids,
            minibatch.padding_mask,
            minibatch.prompt_lengths,
            minibatch.token_ids.shape[1] - self.columns,
        )
        # `(batch, 1)`: false for rows without a response in the loss.
        counted = ops.any(minibatch.response_mask, axis=-1, keepdims=True)
        return -ops.sum(ops.where(counted, logprobs, 0.0)) / counts.prompt_tokens


def policy_logs(stats: TokenStats, minibatch: Experience) -> dict[str, Tensor]:
    """Returns how far the policy has moved since sampling, float32 `(batch, length)` (S1)."""
    ratio = ops.exp(stats.logprobs - minibatch.logprobs)
    return {
        "policy/entropy": stats.entropy,
        "policy/approxkl": k2(stats.logprobs, minibatch.logprobs),
        "policy/ratio": ratio,
        "policy/ratio_error": ops.abs(ratio - 1.0),
    }


def permutations(
    seed: int,
    iteration: int,
    rows: int,
    update_epochs: int,
    num_minibatches: int,
    group_size: int = 1,
    reuse: int = 0,
    parts: int = 1,
) -> np.ndarray:
    """Returns the rows of every update of a rollout: a fresh permutation each epoch (detail N17).

    The rows of a group stay together, in their order. Updates of fewer groups than others, or of a
    number that `parts` does not divide, are filled up with -1.

    Args:
        seed: int, of the run.
        iteration: int.
        rows: int, divisible by `group_size`, of at least `num_minibatches` groups.
        update_epochs: int. Passes over the rows.
        num_minibatches: int. Updates per pass.
        group_size: int. Consecutive rows that belong together. Defaults to 1.
        reuse: int. Index of the rollout in the iteration; 0 is the fresh one. Defaults to 0.
        parts: int. Parts of equal size that an update is divided into. Defaults to 1.

    Returns:
        Int32 `(update_epochs * num_minibatches, rows of an update)`, determined by the arguments;
        the order does not depend on `parts`.

    Example:
        >>> order = permutations(0, 1, rows=6, update_epochs=2, num_minibatches=3)
        >>> order.shape, sorted(order[:3].ravel().tolist())
        ((6, 2), [0, 1, 2, 3, 4, 5])
    """
    generator = np.random.default_rng((seed, iteration, reuse) if reuse else (seed, iteration))
    # Permute groups and divide them, `(updates, groups of an update)`, filled up with -1.
    groups = rows // group_size
    size = -(-groups // num_minibatches)
    size = -(-size // parts) * parts
    order = np.full((update_epochs * num_minibatches, size), -1)
    for epoch in range(update_epochs):
        for part, chosen in enumerate(
            np.array_split(generator.permutation(groups), num_minibatches)
        ):
            order[epoch * num_minibatches + part, : len(chosen)] = chosen
    # The rows of each group.
    listed = order[:, :, None] * group_size + np.arange(group_size)
    listed = np.where(order[:, :, None] < 0, -1, listed)
    return listed.reshape(len(order), -1).astype("int32")


def take(experience: Experience, rows: Tensor) -> Experience:
    """Returns the given rows of every tensor of an experience."""
    return tf.nest.map_structure(lambda x: None if x is None else tf.gather(x, rows), experience)


def _scaled(loss: Tensor, scale: Tensor | None) -> Tensor:
    return loss if scale is None else loss * scale


def _unscaled(gradients: list[Tensor], scale: Tensor | None) -> list[Tensor]:
    # Gradients have the dtype of the weights, which is float32 in mixed precision.
    return gradients if scale is None else [g / ops.cast(scale, g.dtype) for g in gradients]


def _part(batch: Any, index: Tensor, parts: int) -> Any:
    """Returns the `index`-th of `parts` equal shares of all rows, in the same structure."""
    if parts == 1:
        return batch

    def share(x: Tensor) -> Tensor:
        # Scalars are counts of the whole minibatch and remain.
        if x is None or len(x.shape) == 0:
            return x
        size = x.shape[0] // parts
        return ops.slice(x, (index * size, *[0] * (len(x.shape) - 1)), (size, *x.shape[1:]))

    return tf.nest.map_structure(share, batch)
