"""Choosing one of given responses by its log-probability: constrained decoding of a label."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from kerasrlhf import replica, tokens
from kerasrlhf.data import inputs
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.limits import Limits
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.windows import window_logprobs
from kerasrlhf.types import Tensor, require_bool, require_int


def choice_logprobs(
    causal_lm: Any,
    prompts: list[Any],
    choices: list[str],
    *,
    ended: bool = True,
    batch_size: int = 32,
    template: Template = "plain",
    jit_compile: bool = True,
) -> np.ndarray:
    """Computes the log-probability of each of several responses to every prompt.

    The largest one of a row is what the model says if it may only answer with one of `choices`:

        labels[logprobs[i].argmax()]

    Args:
        causal_lm: keras-hub `CausalLM` with a preprocessor.
        prompts: list of strings or of lists of messages.
        choices: list of str, at least two, for example `[" positive", " negative"]`.
        ended: bool. Whether the end token counts as part of a response. Without it, a choice that
            another one begins with is never less likely. Defaults to True.
        batch_size: int, at least 1. Prompts per forward pass, with a row for each choice. Defaults
            to 32.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.
        jit_compile: bool. Whether to compile with XLA. Defaults to True.

    Returns:
        Float32 `(prompts, choices)`, in nats, summed over the tokens of a response.

    Raises:
        ValueError: If there are no prompts, fewer than two choices or equal ones, or a row does not
            fit the model.

    Example:
        >>> import keras_hub
        >>> lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
        >>> logprobs = rlhf.evaluation.choice_logprobs(
        ...     lm, ["Tom lost his ball. Tom was"], [" sad", " purple"], ended=False)
        >>> bool(logprobs[0, 0] > logprobs[0, 1])
        True
    """
    lm_adapter.check(causal_lm)
    require_int("batch_size", batch_size, minimum=1)
    require_bool("ended", ended)
    prompts, choices = tokens.text_list(prompts, "prompts"), tokens.text_list(choices, "choices")
    if len(set(choices)) < max(len(choices), 2):
        raise ValueError(f"`choices` must be two or more different texts. Received: {choices}.")
    limits = Limits.of([causal_lm.backbone], causal_lm.preprocessor)
    # A row for each choice; those of a prompt are adjacent.
    heads, tails = inputs.encode_pairs(
        [prompt for prompt in prompts for _ in choices],
        choices * len(prompts),
        causal_lm.preprocessor,
        limits.positions or 2**31,
        ended=ended,
        template=template,
    )
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    # Windows of one width: those of shorter choices end in padding, which does not count.
    width = max(map(len, tails))
    columns = max(map(len, heads)) + width
    limits.check_length(columns)
    token_ids, mask = tokens.padded(rows, tokens.padded_length(columns, limits.positions))
    limits.check_ids(token_ids, mask)

    def logprobs_of(ids: Tensor, inside: Tensor, lengths: Tensor) -> Tensor:
        found = window_logprobs(causal_lm, ids, inside, lengths, width)
        return ops.sum(ops.where(inside, found, 0.0), axis=-1)

    lengths = np.array([len(head) for head in heads], "int32")
    function = replica.compiled(logprobs_of, jit_compile)
    size = min(batch_size, len(prompts)) * len(choices)
    found = replica.in_batches(function, (token_ids, mask, lengths), size)
    return np.reshape(found, (len(prompts), len(choices)))
