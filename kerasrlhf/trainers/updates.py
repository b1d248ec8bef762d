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


def learn_all(
    trainer: Any, rollout: Rollout, iteration: int, texts: list, temperature: Any = None
) -> dict[str, float]:
    """Updates on the rollout of an iteration, then on older ones as the actor sees them now.

    Once the policy has moved as far as `target_kl`, there are no more of them.

    Args:
        trainer: `OnPolicyTrainer`.
        rollout: of the iteration. The memory, where there is one, keeps it.
        iteration: int.
        texts: batches of text, as `texts_of` counts them.
        temperature: float32 scalar in place of the sampler's, or None.

    Returns:
        Means over the updates on the iteration's own rollout by name; `policy/updates` and
        `policy/skipped_updates` count all.
    """
    memory, share = trainer.memory, _updates_with_text(trainer)
    statistics, far = learn(trainer, rollout, iteration, texts[:share], temperature)
    if memory is None:
        return statistics
    older = memory.draw(trainer.seed, iteration, trainer.memory_reuse)
    for count, old in enumerate(older, 1):
        if far:
            break
        old = trainer._parts.collect.refreshed(old, temperature)
        old = old._replace(kl_coef=rollout.kl_coef, iteration=rollout.iteration)
        share_texts = texts[count * share : (count + 1) * share]
        found, far = learn(trainer, old, iteration, share_texts, temperature, reuse=count)
        for name in ("policy/updates", "policy/skipped_updates"):
            statistics[name] += found[name]
    memory.add(iteration, rollout)
    return statistics


def learn(
    trainer: Any,
    rollout: Rollout,
    iteration: int,
    texts: list | None = None,
    temperature: Any = None,
    reuse: int = 0,
) -> tuple[dict[str, float], bool]:
    """Estimates, and updates `update_epochs * num_minibatches` times.

    Args:
        trainer: `OnPolicyTrainer`.
        rollout: what to learn from.
        iteration: int.
        texts: a batch of text for every update, or none.
        temperature: float32 scalar in place of the sampler's, or None.
        reuse: int, which rollout of the iteration this is; 0 is the fresh one.

    Returns:
        Means over the updates by name, and whether the last epoch went beyond `target_kl`.
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
    logs, far = [], False
    for index, text in zip(order, texts or [None] * len(order), strict=True):
        minibatch = Experience(*trainer._parts.take(experience, tf.constant(index)))
        logs.append(trainer.train_step(minibatch, text, temperature))
        trainer._parts.skipped.after(logs[-1], iteration)
        far = _has_gone_far(trainer, logs)
        if far:
            break
    statistics = _means(trainer, logs, iteration)
    if trainer.learns_values:
        explained = value_losses.explained_variance(
            experience.values, experience.returns, experience.response_mask
        )
        statistics["value/explained_variance"] = float(explained)
    return statistics, far


def _means(trainer, logs, iteration):
    logs = [{name: float(value) for name, value in log.items()} for log in logs]
    done = [log for log in logs if not log["policy/skipped"]]
    if not logs[0]["policy/skipped"]:
        dtype = trainer.actor.causal_lm.backbone.compute_dtype
        checks.check_first_ratio(logs[0]["policy/ratio_error"], dtype, iteration)
    statistics = {name: float(np.mean([log[name] for log in done or logs])) for name in logs[0]}
    # With the skipped ones, so that `TerminateOnNaN` and people see them.
    statistics["loss/total"] = float(np.mean([log["loss/total"] for log in logs]))
    # Of the first update only: afterward the policy has moved and the error means nothing.
    statistics["policy/ratio_error"] = logs[0]["policy/ratio_error"]
    del statistics["policy/skipped"]
    counts = {"policy/updates": len(done), "policy/skipped_updates": len(logs) - len(done)}
    return {**statistics, **{name: float(count) for name, count in counts.items()}}


def _has_gone_far(trainer, logs):
    """At the end of an epoch, whether its updates went further than `target_kl`."""
    if trainer.target_kl is None or len(logs) % trainer.num_minibatches:
        return False
    epoch = [float(log["policy/approxkl"]) for log in logs[-trainer.num_minibatches :]]
    return float(np.mean(epoch)) > trainer.target_kl


def learn_texts(trainer: Any, iteration: int, texts: list) -> dict[str, float]:
    """The language-modeling steps of an iteration: batches behind those of the updates."""
    steps = texts[_updates_with_text(trainer) * _rollouts_of(trainer, iteration) :]
    losses = []
    for text in steps:
        logs = trainer._parts.learn_text(*text)
        trainer._parts.skipped.after(logs, iteration)
        losses.append(float(logs["loss/ptx"]))
    return {"loss/lm": float(np.mean(losses))} if losses else {}


def steps_of(trainer: Any, iteration: int) -> int:
    """How many optimizer steps an iteration takes at most."""
    each = trainer.update_epochs * trainer.num_minibatches
    return each * _rollouts_of(trainer, iteration) + _steps_on_text(trainer, iteration)


def texts_of(trainer: Any, iteration: int) -> int:
    """How many batches of text an iteration reads."""
    updates = _updates_with_text(trainer) * _rollouts_of(trainer, iteration)
    return updates + _steps_on_text(trainer, iteration)


def _steps_on_text(trainer, iteration):
    """Of language modeling alone."""
    due = trainer.lm_every is not None and (iteration + 1) % trainer.lm_every == 0
    return trainer.lm_steps if due else 0


def _updates_with_text(trainer):
    """Of one rollout."""
    return trainer.update_epochs * trainer.num_minibatches if trainer.ptx_coef > 0 else 0


def _rollouts_of(trainer, iteration):
    """How many rollouts an iteration learns from at most: its own and older ones."""
    memory = trainer.memory
    older = min(trainer.memory_reuse, memory.capacity, iteration) if memory is not None else 0
    return 1 + older
