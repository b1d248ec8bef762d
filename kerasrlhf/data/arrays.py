"""Rows of token ids as arrays of one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data.rows import Rows

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor


def padded(
    rows: Rows,
    responses: Sequence[list[int]],
    preprocessor: CausalLMPreprocessor,
    multiple: int = 1,
) -> dict[str, np.ndarray]:
    """Returns prompts and what follows them as arrays, padded on the right.

    Args:
        rows: `kerasrlhf.data.rows.Rows`.
        responses: list of lists of int, one per row.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        multiple: int, at least 1. The length is rounded up to a multiple of it. Defaults to 1.

    Returns:
        dict of `token_ids`, int32, and `padding_mask`, bool, both `(rows, length)`.
    """
    joined = [p + r for p, r in zip(rows.prompt_ids, responses, strict=True)]
    # One length for the whole dataset, so that XLA compiles one shape.
    length = -(-rows.report.length // multiple) * multiple
    token_ids, mask = tokens.padded(joined, length, tokens.pad_id(preprocessor))
    return {"token_ids": token_ids, "padding_mask": mask}


def stacked(rows: Rows, preprocessor: CausalLMPreprocessor) -> dict[str, np.ndarray]:
    """Returns all candidates of each row as arrays, padded on the right.

    Args:
        rows: `kerasrlhf.data.rows.Rows`.
        preprocessor: A keras-hub `CausalLMPreprocessor`.

    Returns:
        dict of `token_ids`, int32, `padding_mask`, bool, and `response_mask`, bool, all
        `(rows, candidates, length)`.
    """
    # All candidates of a row follow the same prompt, so one length per row is enough.
    columns = [padded(rows, candidate, preprocessor) for candidate in rows.candidates]
    lengths = [len(ids) for ids in rows.prompt_ids]
    for column in columns:
        column["response_mask"] = tail(column["padding_mask"], lengths)
    return {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}


def tail(mask: np.ndarray, first: Sequence[int]) -> np.ndarray:
    """Returns the true positions of each row that are at or after its `first`.

    Args:
        mask: bool `(rows, length)`.
        first: list of int, one per row.

    Returns:
        bool array `(rows, length)`.

    Example:
        >>> tail(np.array([[True, True, True, False]]), [1]).tolist()
        [[False, True, True, False]]
    """
    return mask & (np.arange(mask.shape[1]) >= np.array(first)[:, None])
