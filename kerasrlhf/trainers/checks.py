"""What a trainer refuses or warns of, with how to mend it."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kerasrlhf import replica
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.tokens import check_right_padded
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.types import Sampler

# Mean |ratio - 1| of a first update that is arithmetic and not a mistake.
_RATIO_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def check_parts(actor: Any, reward: Any, sampler: Any, kl: Any) -> None:
    """Raises a `ValueError` for what a trainer cannot be made of, greedy samplers too (M10)."""
    if not isinstance(actor, ActorCritic):
        raise ValueError(
            "`actor` must be an ActorCritic, for example `ActorCritic.from_causal_lm(lm)`. "
            f"Received: {actor!r} of type {type(actor).__name__}."
        )
    if not callable(reward):
        raise ValueError(
            "`reward` must be a RewardModel or a function of prompts and responses. "
            f"Received: {reward!r} of type {type(reward).__name__}."
        )
    if isinstance(reward, keras.Model) and not isinstance(reward, RewardModel):
        raise ValueError(
            f"`reward` is a Keras model of type {type(reward).__name__}, which is not a "
            "RewardModel. Wrap it in a function of prompts and responses, or use RewardModel."
        )
    if not isinstance(sampler, Sampler):
        raise ValueError(f"`sampler` must be a `Sampler(length=...)`. Received: {sampler!r}.")
    if not isinstance(kl, FixedKL):
        raise ValueError(f"`kl` must be a FixedKL or an AdaptiveKL. Received: {kl!r}.")
    if not sampler.trainable:
        raise ValueError(
            "Training samples from the model's own distribution: the temperature must be above 0, "
            "without `top_k` and `top_p`. Otherwise what is sampled and what is trained differ and "
            f"the KL turns negative. Received: {sampler}."
        )


def check_precision(causal_lm: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Raises a `ValueError` for a dtype that fails under the strategy."""
    policy = keras.dtype_policies.get(causal_lm.backbone.dtype_policy)
    if replica.is_distributed(strategy) and policy.compute_dtype == "float16":
        raise ValueError(
            "float16 does not work under a distribution strategy with XLA. Load the model with "
            '`dtype="bfloat16"` or `dtype="mixed_bfloat16"`.'
        )


def checked_batch(batch: Any, strategy: tf.distribute.Strategy) -> dict:
    """A prompt batch as whole tensors on the host.

    Raises:
        ValueError: not a prompt batch, or rows that are not padded on the right.
    """
    if not isinstance(batch, dict) or not {"token_ids", "padding_mask"} <= set(batch):
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            "Expected batches as `rlhf.data.prompts` gives them, dicts with `token_ids` and "
            f"`padding_mask`. Received: {found}."
        )
    batch = replica.gather(strategy, batch)
    batch["token_ids"] = ops.cast(batch["token_ids"], "int32")
    batch["padding_mask"] = ops.cast(batch["padding_mask"], "bool")
    check_right_padded(batch["token_ids"], batch["padding_mask"])
    return batch


def check_division(rows: int, minibatches: int, micro_batches: int, replicas: int) -> None:
    """Raises a `ValueError` when rows cannot be divided into parts of equal size."""
    multiple = minibatches * micro_batches * replicas
    if rows % multiple:
        raise ValueError(
            f"A batch of {rows} prompts cannot be divided into {minibatches} minibatches of "
            f"{micro_batches} micro-batches on {replicas} replicas. Use a batch size that is a "
            f"multiple of {multiple}."
        )


def check_first_ratio(error: float, dtype: str, iteration: int) -> None:
    """Warns when the first update of an iteration does not see the policy that sampled (S5).

    Args:
        error: float, mean |ratio - 1| of that update.
        dtype: what the actor computes in.
        iteration: int, for the message.
    """
    if not error <= _RATIO_TOLERANCE.get(dtype, 0.1):
        warnings.warn(
            "The first update of an iteration must see the policy that sampled: ratio 1. Its mean "
            f"|ratio - 1| is {error:.3g} in iteration {iteration}. Sampling and training disagree "
            "on log-probabilities; what is learned now is not the gradient of the objective.",
            RuntimeWarning,
            stacklevel=2,
        )
