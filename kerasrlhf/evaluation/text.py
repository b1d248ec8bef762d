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
from kerasrlhf.types import Tensor, require_int


def negative_log_likelihood(
    causal_lm: Any, texts: list[str], max_length: int | None = None, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the negative log-likelihood of each text under a language model.

    Args:
        causal_lm: keras-hub `CausalLM` with a preprocessor.
        texts: list of str. The start token of the model is prepended, if it has one.
        max_length: int, at least 2, in tokens. Longer texts are truncated, with a warning. Defaults
            to None: the maximum of the model.
        batch_size: int, at least 1. Rows per forward pass. Defaults to 16.

    Returns:
        Tuple `(nats, counts)`, each `(texts,)`: nats summed over the predicted tokens of each text,
        and their number. The first token of a row, usually the start token, is not predicted.

    Raises:
        ValueError: If there are no texts, an entry is not a string, or the model has no
            preprocessor.

    Example:
        >>> import keras_hub
        >>> lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
        >>> texts = ["Once upon a time, there was a little girl."]
        >>> nats, counts = rlhf.evaluation.negative_log_likelihood(lm, texts)
        >>> bool(nats[0] / counts[0] < 3)
        True
    """
    lm_adapter.check(causal_lm)
    require_int("batch_size", batch_size, minimum=1)
    if max_length is not None:
        require_int("max_length", max_length, minimum=2)
    limits = Limits.of([causal_lm.backbone], causal_lm.preprocessor)
    # The smaller limit of the two, or None if the model has any length.
    limit = min(filter(None, (max_length, limits.positions)), default=None)
    rows = tokens.encode(texts, causal_lm.preprocessor)
    long = sum(limit is not None and len(row) > limit for row in rows)
    if long:
        warnings.warn(
            f"{long} of {len(rows)} texts have more than {limit} tokens; only their first {limit} "
            "count. Split them to measure whole texts.",
            stacklevel=2,
        )
    rows = [row[:limit] for row in rows]
    # Pad all rows to one length, so that one compiled function serves all batches.
    token_ids, mask = tokens.padded(rows, tokens.padded_length(max(map(len, rows)), limit))
    limits.check_ids(token_ids, mask)

    def nats_of(ids: Tensor, mask: Tensor) -> Tensor:
        # A prompt of one token: every later token of the row is predicted.
        prompt_lengths = ops.ones((ids.shape[0],), "int32")
        logprobs = window_logprobs(causal_lm, ids, mask, prompt_lengths, ids.shape[1] - 1)
        return masking.masked_sum(-logprobs, mask, axis=-1)

    nats = replica.in_batches(replica.compiled(nats_of), (token_ids, mask), batch_size)
    return nats, mask.sum(axis=1) - 1


def perplexity(causal_lm: Any, texts: list[str], **kwargs: Any) -> float:
    """Computes the perplexity over all texts: exp of the nats per predicted token.

    Args:
        causal_lm: keras-hub `CausalLM` with a preprocessor.
        texts: list of str.
        **kwargs: `max_length` and `batch_size` of `negative_log_likelihood`.

    Returns:
        float, at least 1.

    Raises:
        ValueError: If an argument is not as in `negative_log_likelihood`, or no text has a second
            token.

    Example:
        >>> import keras_hub
        >>> lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
        >>> rlhf.evaluation.perplexity(lm, ["Once upon a time, there was a little girl."]) < 20
        True
    """
    nats, counts = negative_log_likelihood(causal_lm, texts, **kwargs)
    if not counts.any():
        raise ValueError(
            f"Each of the {len(texts)} texts is a single token, which nothing predicts. Pass "
            "longer texts."
        )
    return math.exp(float(nats.sum() / counts.sum()))


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Computes the number of distinct word n-grams divided by the number of all n-grams.

    Args:
        texts: list of str, counted together. Split at whitespace, in lower case.
        n: int, at least 1. Words per n-gram. Defaults to 2.

    Returns:
        float, in [0, 1]; 0 without any n-gram.

    Raises:
        ValueError: If an entry is not a string, or `n` is below 1.

    Example:
        >>> rlhf.evaluation.distinct_n(["a b a b"], n=2)  # a b, b a, a b
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
