"""The prompt read off its response: language modeling in the other direction.

A row is turned round, response first and prompt behind it, and the same kind of model reads the
prompt off the response. A prompt that begins with the start token has it as the seam.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.models import windows


def turned(token_ids: Any, padding_mask: Any, prompt_lengths: Any) -> tuple[Any, Any, Any]:
    """Rows with the response in front of the prompt.

    Args:
        token_ids: int32 `(batch, length)`: prompt, response, padding.
        padding_mask: bool `(batch, length)`, true on prompt and response.
        prompt_lengths: int32 `(batch,)`.

    Returns:
        Token ids int32 `(batch, length)`, of which as many count as before, and the lengths of the
        responses int32 `(batch,)`, where the prompts now begin.

    Example:
        >>> ids, starts = turned(
        ...     ops.convert_to_tensor([[7, 8, 1, 2, 3, 0]]),
        ...     ops.convert_to_tensor([[True, True, True, True, True, False]]), [2])
        >>> ids[:, :5].numpy().tolist(), starts.numpy().tolist()
        ([[1, 2, 3, 7, 8]], [3])
    """
    length = token_ids.shape[1]
    prompts = ops.cast(prompt_lengths, "int32")[:, None]
    responses = ops.sum(ops.cast(padding_mask, "int32"), axis=-1, keepdims=True) - prompts
    column = ops.arange(length, dtype="int32")[None]
    source = ops.where(column < responses, column + prompts, column - responses)
    return ops.take_along_axis(token_ids, ops.clip(source, 0, length - 1), axis=1), responses[:, 0]


def prompt_logprobs(
    causal_lm: Any, token_ids: Any, padding_mask: Any, prompt_lengths: Any, prompt_columns: int
) -> tuple[Any, Any]:
    """Log-probabilities of each prompt token given the response and the prompt before it.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids, padding_mask, prompt_lengths: as in `turned`; every response has a token.
        prompt_columns: int, tokens of the longest prompt.

    Returns:
        Float32 `(batch, length)` in nats and the mask of the prompt's tokens, bool, both laid out
        as `turned` lays the rows.
    """
    ids, starts = turned(token_ids, padding_mask, prompt_lengths)
    logprobs = windows.window_logprobs(causal_lm, ids, padding_mask, starts, prompt_columns)
    inside = masking.response_mask(starts, prompt_lengths, token_ids.shape[1])
    return masking.zero_outside(logprobs, inside), inside
