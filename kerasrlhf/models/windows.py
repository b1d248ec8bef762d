"""Evaluating a model at response positions only.

The projection to the vocabulary is the most expensive part of a small model's forward pass, and a
response is part of a row. A window is `width` consecutive tokens of each row, from the row's own
`prompt_lengths` on; results of a window are laid back into `(batch, length)`.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from kerasrlhf.functional import logprobs
from kerasrlhf.models import lm_adapter
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
