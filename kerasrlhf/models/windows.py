"""Heads at response positions only: logits, log-probabilities, values, and the frozen reference.

The projection to the vocabulary is the most expensive part of a small model's forward pass, and a
response is part of a row. A window is `width` consecutive tokens of each row, from the row's own
`prompt_lengths` on; results of a window are laid back into `(batch, length)`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kerasrlhf import adapters as adapters_lib
from kerasrlhf.functional import logprobs
from kerasrlhf.models import lm_adapter, lora
from kerasrlhf.types import Tensor


def positions(prompt_lengths: Tensor, width: int) -> Tensor:
    """Returns the columns of windows, int32 `(batch, width)`.

    Args:
        prompt_lengths: int32, `(batch,)`. First column of each window.
        width: int, at least 1. Columns of a window.

    Example:
        >>> positions([3, 1], 2).numpy().tolist()
        [[3, 4], [1, 2]]
    """
    return ops.cast(prompt_lengths, "int32")[:, None] + ops.arange(width, dtype="int32")[None]


def columns_of_rows(x: Tensor, columns: Tensor) -> Tensor:
    """Returns `x[b, columns[b]]` for every row `b`.

    This is one operation, whose gradient is in slices. `ops.take_along_axis` needs thirty for the
    same result, and moves every number of a slice by itself.

    Args:
        x: `(batch, length, ...)`.
        columns: int32, `(batch, ...)`, from 0 to `length - 1`. Columns of each row.

    Returns:
        The dtype of `x`, `(batch, ...)`: the shape of `columns`, then that of a column.

    Example:
        >>> columns_of_rows([[1, 2, 3], [4, 5, 6]], [2, 0]).numpy().tolist()
        [3, 4]
    """
    return tf.gather(x, columns, batch_dims=1)


def states_before(hidden: Tensor, prompt_lengths: Tensor, width: int) -> Tensor:
    """Returns the states in which a window's tokens were chosen, `(batch, width, units)`.

    This is the only shift by a token: token `t` is chosen in state `t - 1`.

    Args:
        hidden: `(batch, length, units)`. States of whole rows.
        prompt_lengths: int32, `(batch,)`, at least 1. First token of each window.
        width: int, at least 1. Tokens of a window.
    """
    return columns_of_rows(hidden, positions(prompt_lengths, width) - 1)


def lay_back(x: Tensor, prompt_lengths: Tensor, length: int) -> Tensor:
    """Lays values of windows back into whole rows, `(batch, length)`, zero elsewhere.

    Args:
        x: float, `(batch, width)`. Values of windows.
        prompt_lengths: int32, `(batch,)`. First token of each window.
        length: int, tokens of a row.

    Example:
        >>> lay_back(ops.convert_to_tensor([[5.0, 6.0]]), [1], 4).numpy().tolist()
        [[0.0, 5.0, 6.0, 0.0]]
    """
    # Index of each column in its row's window, `(batch, length)`; clipped where it is outside.
    width = ops.shape(x)[1]
    offset = ops.arange(length, dtype="int32")[None] - ops.cast(prompt_lengths, "int32")[:, None]
    inside = ops.logical_and(offset >= 0, offset < width)
    return ops.where(inside, columns_of_rows(x, ops.clip(offset, 0, width - 1)), 0.0)


@keras.saving.register_keras_serializable("kerasrlhf")
class ScalarHead(keras.layers.Layer):
    """Maps hidden states linearly to one number each (detail N1).

    Args:
        stddev: float, at least 0, or `"score"`. Standard deviation of the initial kernel; 0 starts
            at zero, as a value head does (N11), and `"score"` is 1 / sqrt(width + 1), as for a
            reward head (N8). Defaults to 0.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        hidden: `(..., width)`, any float dtype.

    Returns:
        Float32 `(...)`.

    Example:
        >>> import numpy as np
        >>> head = ScalarHead()
        >>> head(np.ones((2, 3, 8), "float32")).shape
        TensorShape([2, 3])
    """

    def __init__(self, stddev: float | str = 0.0, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.stddev = stddev

    def build(self, input_shape: tuple) -> None:
        """Creates kernel and bias."""
        width = int(input_shape[-1])
        stddev = (width + 1) ** -0.5 if self.stddev == "score" else self.stddev
        initializer = keras.initializers.RandomNormal(stddev=stddev) if stddev else "zeros"
        self.kernel = self.add_weight(shape=(width,), initializer=initializer, name="kernel")
        self.bias = self.add_weight(shape=(), initializer="zeros", name="bias")

    def call(self, hidden: Tensor) -> Tensor:
        """Computes one number per hidden state."""
        # In float32 whatever the trunk computes in: bfloat16 has too few digits for scores.
        hidden = ops.cast(hidden, "float32")
        return ops.matmul(hidden, self.kernel) + self.bias

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the hidden states without their last axis."""
        return input_shape[:-1]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "stddev": self.stddev}


def window_logits(
    causal_lm: keras.Model,
    token_ids: Tensor,
    padding_mask: Tensor,
    prompt_lengths: Tensor,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the logits of windows.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32, `(batch, length)`, right-padded.
        padding_mask: bool, `(batch, length)`.
        prompt_lengths: int32, `(batch,)`, at least 1. First token of each window.
        width: int, at least 1. Tokens of a window.

    Returns:
        Logits float32 `(batch, width, vocab)`, states `(batch, width, units)` and tokens int32
        `(batch, width)`.
    """
    # Project `(batch, width, units)` alone, not whole rows.
    hidden = lm_adapter.hidden_states(causal_lm, token_ids, padding_mask)
    states = states_before(hidden, prompt_lengths, width)
    tokens = columns_of_rows(token_ids, positions(prompt_lengths, width))
    return lm_adapter.head(causal_lm)(states), states, tokens


def window_logprobs(
    causal_lm: keras.Model,
    token_ids: Tensor,
    padding_mask: Tensor,
    prompt_lengths: Tensor,
    width: int,
    temperature: Tensor | float = 1.0,
) -> Tensor:
    """Computes log-probabilities of the tokens in windows.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32, `(batch, length)`, right-padded.
        padding_mask: bool, `(batch, length)`.
        prompt_lengths: int32, `(batch,)`, at least 1. First token of each window.
        width: int, at least 1. Tokens of a window.
        temperature: float or float32 scalar, above 0. Logits are divided by it. Defaults to 1.

    Returns:
        Float32 `(batch, length)`, in nats, zero outside the windows.
    """
    logits, _, tokens = window_logits(causal_lm, token_ids, padding_mask, prompt_lengths, width)
    chosen = logprobs.token_logprobs(logits, tokens, temperature)
    return lay_back(chosen, prompt_lengths, ops.shape(token_ids)[1])


class Reference:
    """A frozen language model: log-probabilities only, never part of a checkpoint.

    It is a plain object on purpose: Keras tracks models that are set on a model, and every
    checkpoint of a trainer would contain the frozen weights.

    Args:
        causal_lm: keras-hub `CausalLM`. It is used as it is; a model that will be trained has to
            be copied first, as `Reference.of` does.
        adapters: bool. Whether its LoRA adapters are active. Defaults to True.
        frozen: bool. Whether copies of the present values of its trainable variables are used, so
            that it may be trained afterward. Always so without adapters. Defaults to False.
    """

    def __init__(self, causal_lm: keras.Model, adapters: bool = True, frozen: bool = False) -> None:
        self.causal_lm = causal_lm
        self._adapters = adapters
        # Without adapters, what else was trained must be restored too, such as biases.
        self._values: list[tuple[keras.Variable, Tensor]] = []
        if not adapters:
            self._values = lora.other_trainable_values(causal_lm.backbone)
        elif frozen:
            self._values = lora.trainable_values(causal_lm.backbone)

    @classmethod
    def of(cls, causal_lm: keras.Model, reference: Any = None) -> Reference:
        """Returns the reference for training `causal_lm`.

        Args:
            causal_lm: keras-hub `CausalLM` that will be trained.
            reference: CausalLM or an object with a `causal_lm`, of the same vocabulary. Defaults
                to None, the model as it is now: a frozen copy or, if it has LoRA adapters, the
                same weights without a second copy. Adapters that are still zero are switched off;
                those that have been trained, for example by supervised fine-tuning, keep copies
                of their present values.

        Raises:
            ValueError: If the vocabularies differ, or `enable_lora` adapted no layer.
        """
        lm_adapter.check_adapted(causal_lm.backbone)
        if reference is not None:
            other = getattr(reference, "causal_lm", reference)
            lm_adapter.check(other)
            if other is causal_lm:
                raise ValueError(
                    "`reference` is the model that is trained, so the KL to it would stay 0. Pass "
                    "`reference=None` for a frozen copy of it as it is now, or another model."
                )
            theirs, ours = (lm_adapter.vocabulary_size(m) for m in (other, causal_lm))
            if theirs != ours:
                raise ValueError(
                    "Actor and reference share token ids and need one vocabulary. Received an "
                    f"actor with {ours} entries and a reference with {theirs}."
                )
            return cls(other)
        # Full fine-tuning changes every weight, so only a second copy keeps the old ones.
        if not adapters_lib.adapted_layers(causal_lm.backbone):
            return cls(lm_adapter.copy(causal_lm))
        # Adapters that are zero can be switched off; trained ones are part of the reference.
        if lora.is_untrained(causal_lm.backbone):
            return cls(causal_lm, adapters=False)
        return cls(causal_lm, frozen=True)

    def logprobs(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        prompt_lengths: Tensor,
        width: int,
        temperature: Tensor | float = 1.0,
    ) -> Tensor:
        """Computes log-probabilities of the tokens in a window of each row.

        Args:
            token_ids: int32, `(batch, length)`, right-padded.
            padding_mask: bool, `(batch, length)`.
            prompt_lengths: int32, `(batch,)`, at least 1. First token of each row's window.
            width: int, at least 1. Tokens of a window.
            temperature: float or float32 scalar, above 0. Logits are divided by it. Defaults to 1.

        Returns:
            Float32 `(batch, length)`, in nats, zero outside the window.
        """
        with self.frozen():
            return window_logprobs(
                self.causal_lm, token_ids, padding_mask, prompt_lengths, width, temperature
            )

    def frozen_values(self) -> list[Tensor]:
        """Returns the values that log-probabilities depend on, copies of trained ones included."""
        copies = {id(variable): value for variable, value in self._values}
        # The trained model's own variables count only as copies; of another model, all count.
        is_trained_too = bool(copies) or not self._adapters
        return [
            copies.get(id(variable), variable)
            for variable in self.causal_lm.weights
            if id(variable) in copies or not (is_trained_too and variable.trainable)
        ]

    def frozen(self) -> contextlib.AbstractContextManager:
        """Returns a context in which `causal_lm` computes what the reference computes."""
        if self._adapters:
            return lora.with_values(self._values) if self._values else contextlib.nullcontext()
        return lora.adapters_off(self.causal_lm.backbone, self._values)
