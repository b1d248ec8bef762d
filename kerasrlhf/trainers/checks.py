"""What a trainer refuses or warns of, with how to mend it."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kerasrlhf import replica
from kerasrlhf.data import kinds
from kerasrlhf.functional import masking
from kerasrlhf.functional.kl import ESTIMATORS
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.scorer import Scorer
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.tokens import check_right_padded
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.types import Sampler, require_int, require_number

# Mean |ratio - 1| of a first update that is arithmetic and not a mistake.
_RATIO_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def check_parts(actor: Any, reward: Any, sampler: Any, kl: Any) -> None:
    """Raises a `ValueError` for what a trainer cannot be made of, greedy samplers too (M10)."""
    if not isinstance(actor, ActorCritic):
        raise ValueError(
            "`actor` must be an ActorCritic, for example `ActorCritic.from_causal_lm(lm)`. "
            f"Received: {actor!r} of type {type(actor).__name__}."
        )
    weighted.parts_of(reward)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"`sampler` must be a `Sampler(length=...)`. Received: {sampler!r}.")
    if not isinstance(kl, FixedKL):
        raise ValueError(f"`kl` must be a FixedKL or an AdaptiveKL. Received: {kl!r}.")
    if not sampler.matches_policy:
        raise ValueError(
            "Training samples from the model's own distribution: the temperature must be above 0, "
            "without `top_k` and `top_p`. Otherwise what is sampled and what is trained differ and "
            f"the KL turns negative. Received: {sampler}."
        )


def check_no_critic(actor: ActorCritic, algorithm: str) -> None:
    """Raises a `ValueError` for a second network that the algorithm would never read."""
    if actor.critic is not None:
        raise ValueError(
            f"{algorithm} learns without a critic, and the actor has one of its own, which would "
            "only cost memory. Build it with `ActorCritic(causal_lm)`."
        )


def checked_kl(kl_in: str, kl_estimator: str | None) -> tuple[str, str]:
    """Where the KL goes and by which estimator.

    Raises:
        ValueError: an unknown place or estimator, or k1 in the loss.
    """
    if kl_in not in ("reward", "loss"):
        raise ValueError(f'`kl_in` must be "reward" or "loss". Received: {kl_in!r}.')
    estimator = kl_estimator or {"reward": "k1", "loss": "k2"}[kl_in]
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"`kl_estimator` must be one of {sorted(ESTIMATORS)}. Received: {kl_estimator!r}."
        )
    if kl_in == "loss" and estimator == "k1":
        raise ValueError(
            "k1 in the loss does nothing: its gradient is 0 on average. Use "
            '`kl_estimator="k2"` or `"k3"`, or `kl_in="reward"`.'
        )
    return kl_in, estimator


def checked_reduction(loss_reduction: str) -> str:
    """`loss_reduction`, or a `ValueError` that names the possible ones."""
    if loss_reduction not in masking.REDUCTIONS:
        raise ValueError(
            f"`loss_reduction` must be one of {masking.REDUCTIONS}. Received: {loss_reduction!r}."
        )
    return loss_reduction


def optional(name: str, value: Any, above: float = 0.0) -> float | None:
    """None as it is, a number checked to be above `above`."""
    return None if value is None else require_number(name, value, above=above)


def unit_interval(name: str, value: Any) -> float:
    """Returns a number checked to lie in [0, 1]."""
    return require_number(name, value, minimum=0.0, maximum=1.0)


def check_group(group_size: int) -> None:
    """Raises a `ValueError` for an algorithm that compares responses to one prompt and has one."""
    if require_int("group_size", group_size) < 2:
        raise ValueError(
            "The algorithm compares responses to the same prompt: `group_size` must be at least 2. "
            f"Received: {group_size}."
        )


def check_overlong(mask_overlong: bool, can_end: bool) -> None:
    """Raises a `ValueError` for leaving out what did not end, where nothing can end."""
    if mask_overlong and not can_end:
        raise ValueError(
            "`mask_overlong` leaves out responses without a stop token, and the sampler has no "
            "stop tokens. Set `Sampler(stop_token_ids=...)` or `mask_overlong=False`."
        )


def _is_of_demonstrations(dataset: Any) -> bool:
    spec = getattr(dataset, "element_spec", None)
    return (
        isinstance(dataset, tf.data.Dataset)
        and isinstance(spec, tuple)
        and len(spec) == 3
        and isinstance(spec[0], dict)
        and {"token_ids", "padding_mask"} <= set(spec[0])
    )


def check_text(ptx_coef: float, ptx_data: Any, lm_every: int | None) -> None:
    """Raises a `ValueError` for language modeling without text, or text without a use."""
    if ptx_data is not None and not _is_of_demonstrations(ptx_data):
        raise ValueError(
            "`ptx_data` must be a dataset as `rlhf.data.demonstrations` gives it: inputs with "
            f"`token_ids` and `padding_mask`, targets, weights. Received: {ptx_data!r} of type "
            f"{type(ptx_data).__name__}."
        )
    if (ptx_coef > 0 or lm_every is not None) != (ptx_data is not None):
        raise ValueError(
            "Language modeling beside RL needs `ptx_data`, and `ptx_coef` above 0 or `lm_every`. "
            f"Received: ptx_coef={ptx_coef}, lm_every={lm_every}, ptx_data={ptx_data!r}."
        )


def check_extras(memory: Any, temperature_schedule: Any) -> None:
    """Raises a `ValueError` for optional parts of another kind than a trainer asks for."""
    if memory is not None and not isinstance(memory, RolloutMemory):
        raise ValueError(
            "`memory` must be a `RolloutMemory(capacity)`. "
            f"Received: {memory!r} of type {type(memory).__name__}."
        )
    if temperature_schedule is not None and not callable(temperature_schedule):
        raise ValueError(
            "`temperature_schedule` must be a function of the iteration; a constant temperature "
            f"is the sampler's. Received: {temperature_schedule!r}."
        )


def check_precision(causal_lm: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Raises a `ValueError` for a dtype that fails under the strategy."""
    policy = keras.dtype_policies.get(causal_lm.backbone.dtype_policy)
    if replica.is_distributed(strategy) and policy.compute_dtype == "float16":
        raise ValueError(
            "float16 does not work under a distribution strategy with XLA. Load the model with "
            '`dtype="mixed_bfloat16"`.'
        )


def check_unscaled(actor: ActorCritic, optimizer: Any) -> None:
    """Raises a `ValueError` for float16: its gradients vanish unless a loss is scaled up first."""
    networks = [actor.causal_lm.backbone] + [actor.critic] * (actor.critic is not None)
    dtypes = {keras.dtype_policies.get(x.dtype_policy).compute_dtype for x in networks}
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if "float16" in dtypes or scales:
        raise ValueError(
            "On-policy training does not scale losses, which float16 needs. Received networks that "
            f"compute in {sorted(dtypes)} and an optimizer {type(optimizer).__name__} (a "
            'global policy "mixed_float16" makes it one). Load the model with '
            '`dtype="mixed_bfloat16"`, under a global policy of float32 or bfloat16.'
        )


def check_steps(optimizer: Any) -> None:
    """Raises a `ValueError` for an optimizer whose options would make its steps others.

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
            "training does not scale losses, so that updates would be too small by the factor. "
            "Leave it out."
        )


def check_reward_is_fixed(actor: ActorCritic, reward: Any) -> None:
    """Raises a `ValueError` for a reward model some of whose weights the trainer would change."""
    trained = {id(v) for v in actor.trainable_variables}
    models = [p.reward for p in weighted.parts_of(reward) if isinstance(p.reward, Scorer)]
    shared = [v.path for model in models for v in model.variables if id(v) in trained]
    if shared:
        raise ValueError(
            f"`reward` shares {len(shared)} weights with the actor, {shared[0]!r} for one, so "
            "training would change what is rewarded. `RewardModel.from_causal_lm(causal_lm)` "
            "copies the actor's backbone, and so does `ActorCritic(causal_lm, critic=reward)` with "
            "the reward model's."
        )


def checked_batch(batch: Any, strategy: tf.distribute.Strategy) -> dict:
    """A prompt batch as whole tensors on the host.

    Raises:
        ValueError: not a prompt batch, or rows that are not padded on the right.
    """
    batch = replica.gather(strategy, batch)
    kinds.check_batch(batch, "prompts")
    batch["token_ids"] = ops.cast(batch["token_ids"], "int32")
    batch["padding_mask"] = ops.cast(batch["padding_mask"], "bool")
    check_right_padded(batch["token_ids"], batch["padding_mask"])
    return batch


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
