"""The updates of an iteration: of its own rollout, of older ones, of text."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf.functional import value_losses
from kerasrlhf.rollouts import minibatches
from kerasrlhf.trainers import checks
from kerasrlhf.types import Experience, Rollout


def learn(
    trainer: Any,
    rollout: Rollout,
    iteration: int,
    texts: list | None = None,
    temperature: Any = None,
    reuse: int = 0,
) -> dict[str, float]:
    """Estimates, and updates `update_epochs * num_minibatches` times.

    Args:
        trainer: `OnPolicyTrainer`.
        rollout: what to learn from.
        iteration: int.
        texts: batches of text, the first of them for the updates.
        temperature: float32 scalar in place of the sampler's, or None.
        reuse: int, which rollout of the iteration this is; 0 is the fresh one.

    Returns:
        Means over the updates by name.
    """
    experience = Experience(*trainer._parts.estimate(rollout))
    if trainer.mask_overlong:
        mask = ops.logical_and(rollout.response_mask, rollout.ended[:, None])
        experience = experience._replace(response_mask=mask)
    order = minibatches.permutations(
        trainer.seed,
        iteration,
        int(experience.token_ids.shape[0]),
        trainer.update_epochs,
        trainer.num_minibatches,
        trainer.group_size,
        reuse,
    )
    texts = (texts or [])[: _updates_with_text(trainer)] or [None] * len(order)
    logs = []
    for index, text in zip(order, texts, strict=True):
        minibatch = Experience(*trainer._parts.take(experience, tf.constant(index)))
        logs.append(trainer.train_step(minibatch, text, temperature))
        if _has_gone_far(trainer, logs):
            break
    statistics = _means(trainer, logs, iteration)
    if trainer.learns_values:
        explained = value_losses.explained_variance(
            experience.values, experience.returns, experience.response_mask
        )
        statistics["value/explained_variance"] = float(explained)
    return statistics


def _means(trainer, logs, iteration):
    logs = [{name: float(value) for name, value in log.items()} for log in logs]
    dtype = trainer.actor.causal_lm.backbone.compute_dtype
    checks.check_first_ratio(logs[0]["policy/ratio_error"], dtype, iteration)
    statistics = {name: float(np.mean([log[name] for log in logs])) for name in logs[0]}
    # Of the first update only: afterwards the policy has moved and the error means nothing.
    statistics["policy/ratio_error"] = logs[0]["policy/ratio_error"]
    return {**statistics, "policy/updates": float(len(logs))}


def _has_gone_far(trainer, logs):
    """At the end of an epoch, whether its updates went further than `target_kl`."""
    if trainer.target_kl is None or len(logs) % trainer.num_minibatches:
        return False
    epoch = [float(log["policy/approxkl"]) for log in logs[-trainer.num_minibatches :]]
    return float(np.mean(epoch)) > trainer.target_kl


def reuse(trainer: Any, rollout: Rollout, iteration: int, temperature: Any) -> None:
    """Learns from older rollouts as the actor sees them now, and keeps the new one."""
    memory = trainer._parts.memory
    if memory is None:
        return
    older = memory.draw(trainer.seed, iteration, trainer.memory_reuse)
    for count, old in enumerate(older, 1):
        old = trainer._parts.collect.refreshed(old, temperature)
        old = old._replace(kl_coef=rollout.kl_coef, iteration=rollout.iteration)
        learn(trainer, old, iteration, None, temperature, reuse=count)
    memory.add(iteration, rollout)


def learn_texts(trainer: Any, texts: list) -> dict[str, float]:
    """The language-modelling steps of an iteration: batches behind those of the updates."""
    losses = [
        float(trainer._parts.learn_text(*text)["loss/ptx"])
        for text in texts[_updates_with_text(trainer) :]
    ]
    return {"loss/lm": float(np.mean(losses))} if losses else {}


def texts_of(trainer: Any, iteration: int) -> int:
    """How many batches of text an iteration reads."""
    due = trainer.lm_every is not None and (iteration + 1) % trainer.lm_every == 0
    return _updates_with_text(trainer) + (trainer.lm_steps if due else 0)


def _updates_with_text(trainer):
    return trainer.update_epochs * trainer.num_minibatches if trainer.ptx_coef > 0 else 0
