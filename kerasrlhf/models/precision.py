"""Checks for training in low precision."""

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
        optimizer: Keras optimizer, or what `keras.optimizers.get` accepts for one.
        variables: list of `keras.Variable`, which it should train.

    Raises:
        ValueError: If the moving averages of the optimizer cannot change in the variables' dtype,
            or `optimizer` is not an optimizer.

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
    # Only optimizers with a second moment have this rate.
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


def check_replicated(networks: list[keras.Model], jit_compile: Any) -> None:
    """Raises a `ValueError` for networks that Keras cannot train on several replicas.

    Args:
        networks: list of keras-hub backbones that `fit` trains under a distribution strategy.
        jit_compile: bool or `"auto"`, as `compile` takes it.
    """
    policies = [keras.dtype_policies.get(x.dtype_policy) for x in networks]
    # XLA fails on float16 computation, Keras without XLA on float16 variables.
    dtypes = {x.compute_dtype if jit_compile else x.variable_dtype for x in policies}
    if "float16" in dtypes:
        raise ValueError(
            "float16 does not work under a distribution strategy with XLA, and float16 weights do "
            'not without it. Load the model with `dtype="mixed_bfloat16"`, or with '
            '`dtype="mixed_float16"` and `compile(jit_compile=False)`.'
        )


def compute_dtypes(networks: list[keras.Model]) -> set[str]:
    """Returns the dtypes that networks compute in.

    Args:
        networks: list of keras-hub backbones.
    """
    return {keras.dtype_policies.get(x.dtype_policy).compute_dtype for x in networks}


def check_unscaled(networks: list[keras.Model], optimizer: Any) -> None:
    """Raises a `ValueError` for float16 weights, and for an optimizer that scales losses.

    Args:
        networks: list of backbones that are trained.
        optimizer: Keras optimizer.
    """
    dtypes = {keras.dtype_policies.get(x.dtype_policy).variable_dtype for x in networks}
    if "float16" in dtypes:
        raise ValueError(
            "Weights in float16 are too coarse for small steps. Received networks with weights in "
            f'{sorted(dtypes)}. Load the model with `dtype="mixed_float16"`, which computes in '
            'float16 and keeps weights in float32, or with "mixed_bfloat16".'
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "On-policy training scales losses itself where float16 needs it. Received a "
            "LossScaleOptimizer: pass its inner optimizer instead."
        )


def check_steps(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises a `ValueError` for an optimizer whose options would change its steps.

    Updates are counted, and the learning rate that falls to 0 is planned, as one optimizer step
    for each minibatch, of gradients that nothing has scaled.
    """
    steps = getattr(optimizer, "gradient_accumulation_steps", None)
    if steps is not None:
        raise ValueError(
            f"The optimizer accumulates gradients over {steps} steps, so that most updates would "
            "change nothing. Leave out `gradient_accumulation_steps`: the trainer accumulates "
            "itself, with `micro_batches` to save memory and fewer `num_minibatches` for larger "
            "steps."
        )
    factor = getattr(optimizer, "loss_scale_factor", None)
    if factor is not None:
        raise ValueError(
            f"The optimizer divides gradients by a `loss_scale_factor` of {factor}, and on-policy "
            "training undoes its own scaling of losses, so that updates would be too small by the "
            "factor. Leave it out."
        )
