"""Perplexity and diversity of text."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from keras import ops

from kerasrlhf import replica, tokens
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import masking
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.windows import window_logprobs
from kerasrlhf.types import require_int


def negative_log_likelihood(
    causal_lm: Any, texts: list[str], max_length: int | None = None, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """How badly a language model predicts each text.

    Args:
        causal_lm: keras-hub `CausalLM` with a preprocessor.
        texts: list of strings. Each begins with the model's start token, where it has one.
        max_length: int, tokens of a text that are read at most, with a warning where a text is
            longer; default: all the model can.
        batch_size: int, rows that are read at once.

    Returns:
        Nats `(texts,)` summed over each text's predicted tokens, and their number `(texts,)`. The
        first token of a row, usually the start token, is not predicted.

    Raises:
        ValueError: no texts, entries that are no strings, or a model without a preprocessor.
    """
    lm_adapter.check(causal_lm)
    require_int("batch_size", batch_size, minimum=1)
    if max_length is not None:
        require_int("max_length", max_length, minimum=2)
    limits = Limits.of([causal_lm.backbone], causal_lm.preprocessor)
    limit = min(filter(None, (max_length, limits.positions)), default=None)
    rows = tokens.encode(texts, causal_lm.preprocessor)
    long = sum(limit is not None and len(row) > limit for row in rows)
    if long:
        warnings.warn(
            f"{long} of {len(rows)} texts have more than {limit} tokens; only their first {limit} "
            "are read. Split them to measure all of it.",
            stacklevel=2,
        )
    rows = [row[:limit] for row in rows]
    token_ids, mask = tokens.padded(rows, tokens.padded_length(max(map(len, rows)), limit))
    limits.check_ids(token_ids, mask)

    def read(ids, mask):
        starts = ops.ones((ids.shape[0],), "int32")
        logprobs = window_logprobs(causal_lm, ids, mask, starts, ids.shape[1] - 1)
        return masking.masked_sum(-logprobs, mask, axis=-1)

    read = replica.compiled(read)
    filled = np.arange(-(-len(rows) // batch_size) * batch_size) % len(rows)
    nats = [
        np.asarray(read(ops.convert_to_tensor(token_ids[part]), ops.convert_to_tensor(mask[part])))
        for part in filled.reshape(-1, batch_size)
    ]
    return np.concatenate(nats)[: len(rows)], mask.sum(axis=1) - 1


def perplexity(causal_lm: Any, texts: list[str], **kwargs: Any) -> float:
    """exp of the nats per predicted token over all texts; arguments as above.

    Example:
        >>> import keras_hub, kerasrlhf as rlhf
        >>> lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
        >>> perplexity(lm, ["Once upon a time, there was a little girl."]) < 20
        True
    """
    nats, counts = negative_log_likelihood(causal_lm, texts, **kwargs)
    return math.exp(float(nats.sum() / counts.sum()))


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Distinct word n-grams over all texts, divided by the number of n-grams.

    Example:
        >>> distinct_n(["a b a b"], n=2)  # a b, b a, a b
        0.6666666666666666

    Reference:
        Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models".
    """
    texts = tokens.text_list(texts, "texts")
    require_int("n", n, minimum=1)
    grams = [
        tuple(words[i : i + n])
        for words in (text.lower().split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
