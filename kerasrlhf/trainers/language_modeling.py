"""Language modeling during reinforcement learning: PPO-ptx, and steps between iterations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasrlhf import shares
from kerasrlhf.data.limits import Guard, Limits
from kerasrlhf.types import Tensor, require_int, require_number


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Language modeling during reinforcement learning, so that the policy keeps its fluency.

    Args:
        data: dataset as `data.demonstrations` returns it: inputs, targets, weights. Each step
            takes one batch and starts over after the last one. Micro-batches and replicas divide
            its rows too.
        coef: float, at least 0. Weight of the language-modeling loss that each update adds
            (PPO-ptx). Defaults to 0.
        every: int, at least 1, or None. Makes `steps` optimizer steps on the language-modeling loss
            alone after every `every` iterations. Defaults to None: never.
        steps: int, at least 1. Defaults to 1.

    Raises:
        ValueError: If a value is outside its range, `data` is not such a dataset, or an option has
            no effect.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> stories = rlhf.data.demonstrations(["Tom had a ball."], actor.causal_lm.preprocessor, 1)
        >>> rlhf.LanguageModeling(stories, every=4).steps
        1

    Reference:
        Ouyang et al. 2022, "Training Language Models to Follow Instructions with Human Feedback"
        (arXiv 2203.02155), eq. 2.
    """

    data: Any
    coef: float = 0.0
    every: int | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        if not _is_of_demonstrations(self.data):
            raise ValueError(
                "`data` of `LanguageModeling` must be a dataset as `rlhf.data.demonstrations` "
                "returns it: inputs with `token_ids` and `padding_mask`, targets, weights. "
                f"Received: {self.data!r} of type {type(self.data).__name__}."
            )
        require_number("coef", self.coef, minimum=0.0)
        if self.every is not None:
            require_int("every", self.every, minimum=1)
        require_int("steps", self.steps, minimum=1)
        # Refuse options without effect (M13).
        if self.coef == 0 and self.every is None:
            raise ValueError(
                "`LanguageModeling` has no effect with `coef=0` and `every=None`. Set `coef` above "
                "0, or `every`."
            )
        if self.steps != 1 and self.every is None:
            raise ValueError(
                f"`steps` has no effect without `every`. Received: steps={self.steps}. Set `every` "
                "too, or leave out `steps`."
            )

    def steps_after(self, iteration: int) -> int:
        """Returns the number of optimizer steps on text alone after an iteration."""
        due = self.every is not None and (iteration + 1) % self.every == 0
        return self.steps if due else 0


class TextBatch(NamedTuple):
    """A batch of text, and the denominator of its loss.

    inputs, targets, weights: as `data.demonstrations` returns them.
    weight_sum: float32 scalar, the sum of all weights, at least 1.
    loss_scale: float32 scalar, as in `update_step.UpdateBatch`; None for 1.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    weights: Tensor
    weight_sum: Tensor
    loss_scale: Tensor | None = None


class TextBatches:
    """The batches of text of a run in their order, repeated after the last one.

    Args:
        texts: `LanguageModeling`.
        limits: `Limits` of the actor. Texts beyond them raise a `ValueError`.
    """

    def __init__(self, texts: LanguageModeling, limits: Limits) -> None:
        self._batches: Iterator[Any] = Guard(limits).batches(texts.data.repeat())

    def next(self, count: int, micro_batches: int, replicas: int) -> list[TextBatch]:
        """Returns the next `count` batches.

        Args:
            count: int.
            micro_batches: int, at least 1. Divides the rows of every batch.
            replicas: int, at least 1. Divides them further.

        Raises:
            ValueError: If there are no texts.
        """
        return [self._padded(self._next(), micro_batches * replicas) for _ in range(count)]

    def _padded(self, batch: Any, parts: int) -> TextBatch:
        """Returns a batch whose rows can be divided; those that are added weigh nothing."""
        count = int(batch[-1].shape[0])
        # Sum the weights of the whole batch, before parts are taken (M3).
        weight_sum = tf.maximum(tf.reduce_sum(batch[-1]), 1.0)
        order = shares.padding(count, parts)
        if len(order) > count:
            batch = tf.nest.map_structure(lambda x: tf.gather(x, order), batch)
            is_real = tf.cast(np.arange(len(order)) < count, batch[-1].dtype)
            batch = (*batch[:-1], batch[-1] * is_real[:, None])
        inputs, targets, weights = batch
        return TextBatch(inputs, targets, weights, weight_sum)

    def skip(self, count: int) -> None:
        """Skips the batches of updates that were made before a resume."""
        for _ in range(count):
            self._next()

    def _next(self) -> tuple[Any, Tensor, Tensor]:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                "`data` of `LanguageModeling` has no batches. A batch size above the number of "
                "texts leaves none with `drop_remainder=True`."
            )
        return batch


def _is_of_demonstrations(dataset: Any) -> bool:
    spec = getattr(dataset, "element_spec", None)
    return (
        isinstance(dataset, tf.data.Dataset)
        and isinstance(spec, tuple)
        and len(spec) == 3
        and isinstance(spec[0], dict)
        and {"token_ids", "padding_mask"} <= set(spec[0])
    )
