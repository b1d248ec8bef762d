"""What training in few bits cannot do."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops


def check_optimizer(optimizer: Any, variables: list[keras.Variable]) -> None:
    """Raises a `ValueError` for an optimizer that cannot train variables in their dtype.

    Keras keeps Adam's moments in the dtype of the weights. In bfloat16 a `beta_2` of 0.999 rounds
    to 1, the second moment never forms, and no weight moves.

    Args:
        optimizer: Keras optimizer, or what `keras.optimizers.get` takes for one.
        variables: what it is to train.

    Example:
        >>> check_optimizer(keras.optimizers.Adam(), [keras.Variable(0.0, dtype="float32")])
    """
    try:
        optimizer = keras.optimizers.get(optimizer)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`optimizer` must be a Keras optimizer, such as `keras.optimizers.Adam(1e-5)`, or the "
            f"name of one. Received: {optimizer!r} of type {type(optimizer).__name__}."
        ) from error
    rate = getattr(optimizer, "beta_2", None)
    if rate is None:
        return
    for variable in variables:
        if float(np.asarray(ops.cast(ops.cast(rate, variable.dtype), "float32"))) >= 1.0:
            raise ValueError(
                f"{type(optimizer).__name__} cannot train weights in {variable.dtype}: its beta_2 "
                f"of {rate} rounds to 1 there, and no weight would move. Load the model with "
                f'`dtype="mixed_{variable.dtype}"`, which computes in {variable.dtype} and keeps '
                "weights in float32, or train with an optimizer without moments, such as SGD."
            )
