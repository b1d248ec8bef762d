"""Reverse language modeling: predicting the prompt from the response.

Each row is reordered so that the response precedes the prompt, and the model predicts the prompt
given the response. A leading start token of the prompt then separates the two.
"""

from __future__ import annotations

import keras
from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.models import windows
from kerasrlhf.types import Tensor


def turned(
    token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Reorders rows so that the response precedes the prompt.

    Args:
        token_ids: int32, `(batch, length)`: prompt, response, padding.
        padding_mask: bool, `(batch, length)`, true on prompt and response.
        prompt_lengths: int32, `(batch,)`.

    Returns:
        Token ids int32 `(batch, length)`, with as much padding as before, and the lengths of the
        responses int32 `(batch,)`, after which the prompts follow.

    Example:
        >>> ids, lengths = turned(
        ...     ops.convert_to_tensor([[7, 8, 1, 2, 3, 0]]),
        ...     ops.convert_to_tensor([[True, True, True, True, True, False]]), [2])
        >>> ids[:, :5].numpy().tolist(), lengths.numpy().tolist()
        ([[1, 2, 3, 7, 8]], [3])
    """
    length = token_ids.shape[1]
    # Lengths as columns `(batch, 1)`, to compare them with column numbers.
    prompts = ops.cast(prompt_lengths, "int32")[:, None]
    responses = ops.sum(ops.cast(padding_mask, "int32"), axis=-1, keepdims=True) - prompts
    column = ops.arange(length, dtype="int32")[None]
    # The response moves to the left by the prompt's length, the prompt to the right. Ids beyond
    # both are arbitrary: `padding_mask` masks them out, as rows keep their lengths.
    source = ops.where(column < responses, column + prompts, column - responses)
    return windows.columns_of_rows(token_ids, ops.clip(source, 0, length - 1)), responses[:, 0]


def prompt_logprobs(
    causal_lm: keras.Model,
    token_ids: Tensor,
    padding_mask: Tensor,
    prompt_lengths: Tensor,
    prompt_columns: int,
) -> tuple[Tensor, Tensor]:
    """Computes log-probabilities of each prompt token given the response and earlier prompt tokens.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32, `(batch, length)`: prompt, response of at least one token, padding.
        padding_mask: bool, `(batch, length)`, true on prompt and response.
        prompt_lengths: int32, `(batch,)`.
        prompt_columns: int, tokens of the longest prompt.

    Returns:
        Float32 `(batch, length)` in nats and the mask of the prompt's tokens, bool, both in the
        order of `turned`.
    """
    ids, lengths = turned(token_ids, padding_mask, prompt_lengths)
    logprobs = windows.window_logprobs(causal_lm, ids, padding_mask, lengths, prompt_columns)
    # Windows are as wide as the longest prompt; what follows a shorter one is padding.
    inside = masking.response_mask(lengths, prompt_lengths, token_ids.shape[1])
    return masking.zero_outside(logprobs, inside), inside
