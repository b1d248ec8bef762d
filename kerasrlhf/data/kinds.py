"""Which function of `kerasrlhf.data` a dataset comes from, and whether a model can train on it."""

from __future__ import annotations

import numbers
import os
from typing import Any

import numpy as np
import tensorflow as tf

_SHOWN = 80
_INPUTS = ("token_ids", "padding_mask")
_MISTAKEN = (str, bytes, os.PathLike, list, tuple, np.ndarray, tf.Tensor, numbers.Number)
# Of each function: what its batches look like, and who trains on them.
_TRAINS = {
    "prompts": "a dict with rows (batch, length), for `fit` of PPO and other on-policy trainers",
    "demonstrations": "rows (batch, length) with targets and weights, for `causal_lm.fit`",
    "preferences": "pairs (batch, candidates, length), for a RewardModel, DPO, IPO, ORPO or KTO",
    "unpaired_preferences": "single responses (batch, 1, length) with labels, for KTO",
    "stepwise": "rows (batch, length) with labels and weights, for a ProcessRewardModel",
}


def kind_of(batch: Any) -> str | None:
    """Returns the name of the function in `kerasrlhf.data` whose batches look like this one.

    Args:
        batch: A batch of tensors or arrays, or the `element_spec` of a dataset.

    Returns:
        str, or None if no function returns such batches.

    Example:
        >>> import numpy as np
        >>> rows = {"token_ids": np.ones((8, 5)), "padding_mask": np.ones((8, 5))}
        >>> kind_of(rows), kind_of((rows, np.ones((8, 5), "int32"), np.ones((8, 5))))
        ('prompts', 'demonstrations')
    """
    inputs, targets = _parts(batch)
    if not isinstance(inputs, dict) or not {*_INPUTS} <= {*inputs}:
        return None
    shape = _shape(inputs)
    # Three axes: rows of candidates; two: single rows.
    if len(shape) == 3:
        return "unpaired_preferences" if shape[1] == 1 else "preferences"
    if len(shape) != 2 or "response_mask" in inputs:
        return None
    # A target without weights fits no loader.
    if len(targets) < 2:
        return None if targets else "prompts"
    return "demonstrations" if tf.as_dtype(targets[0].dtype).is_integer else "stepwise"


def check_kind(name: str, data: Any, *expected: str) -> None:
    """Raises a `ValueError` for data of another kind than a model trains on; reads none of it.

    The kind of a generator or a `keras.utils.PyDataset` is not known before it is read: these
    pass.

    Args:
        name: str. The argument.
        data: What was passed: a `tf.data.Dataset`, a dictionary of arrays, or a tuple
            `(x, y, sample_weight)` of these.
        *expected: str. Names of functions in `kerasrlhf.data`, such as `"prompts"`.

    Raises:
        ValueError: If the data are of another kind.

    Example:
        >>> check_kind("x", ["Tom was sad."], "prompts")
        Traceback (most recent call last):
        ...
        ValueError: `x` must be a dataset as `rlhf.data.prompts(source, causal_lm.preprocessor, \
batch_size)` returns it. The source may be a list of texts or records, or a path. Received: \
['Tom was sad.'] of type list.
    """
    # Datasets are checked by their specification: nothing is read.
    is_arrays = isinstance(data, tuple) and data and isinstance(data[0], dict)
    if isinstance(data, tf.data.Dataset):
        check_batch(data.element_spec, *expected, where=f"`{name}` has other batches. ")
    elif isinstance(data, dict) or is_arrays:
        check_batch(data, *expected, where=f"`{name}` has other arrays. ")
    elif data is None or isinstance(data, _MISTAKEN):
        functions = " or ".join(
            f"`rlhf.data.{x}(source, causal_lm.preprocessor, batch_size)`" for x in expected
        )
        raise ValueError(
            f"`{name}` must be a dataset as {functions} returns it. The source may be a list of "
            f"texts or records, or a path. Received: {_short(data)} of type {type(data).__name__}."
        )


def check_batch(batch: Any, *expected: str, where: str = "") -> None:
    """Raises a `ValueError` for a batch, or an `element_spec`, of another kind than expected.

    Args:
        batch: As in `kind_of`.
        *expected: str. Names of functions in `kerasrlhf.data`.
        where: str. The start of the message. Defaults to none.

    Raises:
        ValueError: If the batch is of another kind.
    """
    found = kind_of(batch)
    if found in expected:
        return
    functions = " or ".join(f"`rlhf.data.{name}` ({_TRAINS[name]})" for name in expected)
    received = _described(batch)
    if found is not None:
        received += f", as from `rlhf.data.{found}` ({_TRAINS[found]})"
    raise ValueError(
        f"{where}Expected batches as from {functions}, with `token_ids` and `padding_mask`. "
        f"Received: {received}."
    )


def check_right_padded(token_ids: Any, padding_mask: Any) -> None:
    """Raises a `ValueError` for rows that are not real tokens followed by padding.

    Args:
        token_ids: int `(rows, length)`.
        padding_mask: bool `(rows, length)`, true at real tokens.

    Raises:
        ValueError: If the shapes differ, a row has no token, or padding precedes a token.

    Example:
        >>> check_right_padded([[5, 6, 0]], [[True, True, False]])
    """
    mask, shape = np.asarray(padding_mask, bool), np.asarray(token_ids).shape
    if mask.ndim != 2 or mask.shape != shape or not mask.size:
        raise ValueError(
            "Expected `token_ids` and `padding_mask` of one shape (rows, length). Received: "
            f"{shape} and {mask.shape}."
        )
    # Wrong: no token at the start, or a token after padding.
    bad = np.flatnonzero(~mask[:, 0] | (mask[:, 1:] & ~mask[:, :-1]).any(axis=1))
    if bad.size:
        raise ValueError(
            "Rows must begin with a real token and be padded on the right. Rows "
            f"{bad[:5].tolist()} are empty or have padding before a token (padding_mask "
            f"{mask[bad[0]].astype(int).tolist()})."
        )


def _parts(batch: Any) -> tuple[Any, list[Any]]:
    """Returns inputs, and targets and weights without None, which Keras writes for missing ones."""
    inputs, *targets = batch if isinstance(batch, tuple) and batch else (batch,)
    return inputs, [target for target in targets if target is not None]


def _described(batch: Any) -> str:
    inputs, targets = _parts(batch)
    if isinstance(batch, tuple) and not isinstance(inputs, dict):
        return f"tuple of {len(batch)}, {_short(batch)}"
    if not isinstance(inputs, dict):
        return f"{_short(batch)} of type {type(batch).__name__}"
    text = f"a dict of {sorted(inputs)}"
    if "token_ids" in inputs:
        text += f" with `token_ids` of the shape {_shape(inputs)}"
        if len(_shape(inputs)) == 1:
            text += " instead of the shape (rows, length): single rows need `.batch(batch_size)`"
    return text + f" and {len(targets)} targets" * bool(targets)


def _shape(inputs: dict[str, Any]) -> tuple[int, ...]:
    ids = inputs["token_ids"]
    return tuple(getattr(ids, "shape", None) or np.shape(ids))


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
