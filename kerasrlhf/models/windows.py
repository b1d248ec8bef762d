"""Reading a model at response positions only.

The projection to the vocabulary is the dearest part of a small model's forward pass, and a
response is part of a row. A window is `width` consecutive tokens of each row, beginning at the
row's own `starts`; what is computed inside is laid back into `(batch, length)`.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import logprobs
from kerasrlhf.models import lm_adapter


def positions(starts: Any, width: int) -> Any:
    """Int32 `(batch, width)`: `starts`, `starts + 1`, …"""
    return ops.cast(starts, "int32")[:, None] + ops.arange(width, dtype="int32")[None]


def states_before(hidden: Any, starts: Any, width: int) -> Any:
    """The states that chose the window's tokens: `(batch, width, units)`.

    This is the one shift by a token: token `t` is chosen in state `t - 1`.
    """
    return ops.take_along_axis(hidden, positions(starts, width)[:, :, None] - 1, axis=1)


def lay_back(x: Any, starts: Any, length: int) -> Any:
    """Puts window values `(batch, width)` at their tokens of `(batch, length)`, zero elsewhere."""
    width = ops.shape(x)[1]
    offset = ops.arange(length, dtype="int32")[None] - ops.cast(starts, "int32")[:, None]
    inside = ops.logical_and(offset >= 0, offset < width)
    return ops.where(inside, ops.take_along_axis(x, ops.clip(offset, 0, width - 1), axis=1), 0.0)


def window_logits(
    causal_lm: Any, token_ids: Any, padding_mask: Any, starts: Any, width: int
) -> tuple[Any, Any, Any]:
    """Logits `(batch, width, vocab)`, states `(batch, width, units)` and tokens of a window."""
    hidden = lm_adapter.hidden_states(causal_lm, token_ids, padding_mask)
    states = states_before(hidden, starts, width)
    tokens = ops.take_along_axis(token_ids, positions(starts, width), axis=1)
    return lm_adapter.head(causal_lm)(states), states, tokens


def window_logprobs(
    causal_lm: Any,
    token_ids: Any,
    padding_mask: Any,
    starts: Any,
    width: int,
    temperature: float = 1.0,
) -> Any:
    """Log-probabilities float32 `(batch, length)` of the window's tokens, zero elsewhere."""
    logits, _, tokens = window_logits(causal_lm, token_ids, padding_mask, starts, width)
    chosen = logprobs.token_logprobs(logits, tokens, temperature)
    return lay_back(chosen, starts, ops.shape(token_ids)[1])
