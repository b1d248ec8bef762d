"""The base of callbacks of on-policy trainers, and their common helpers."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from kerasrlhf.functional import masking
from kerasrlhf.functional.logprobs import k1
from kerasrlhf.rollouts.collector import Collected
from kerasrlhf.trainers import summaries
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import require_int
from kerasrlhf.workers import Workers


class IterationCallback(keras.callbacks.Callback):
    """Calls methods for iterations that were done, and not for replayed ones; abstract.

    Final classes define `on_iteration_end`, and prepare in `on_first_iteration`. Neither is called
    with a model that is not an on-policy trainer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: int | None = None
        self._has_started = False

    def __repr__(self) -> str:
        return summaries.described(self, {})

    @property
    def is_on_policy(self) -> bool:
        """Whether an on-policy trainer runs, and not another Keras model."""
        return isinstance(self.model, OnPolicyTrainer)

    @property
    def trainer(self) -> OnPolicyTrainer:
        """The on-policy trainer that runs.

        Raises:
            ValueError: If another Keras model runs.
        """
        if not isinstance(self.model, OnPolicyTrainer):
            raise ValueError(
                f"`{type(self).__name__}` expected an on-policy trainer such as `rlhf.PPO`. "
                f"Received a model of type {type(self.model).__name__}."
            )
        return self.model

    @property
    def workers(self) -> Workers:
        """The processes that train together."""
        return Workers(self.model.distribute_strategy)

    def on_iteration_end(self, iteration: int) -> None:
        """Handles the end of an iteration.

        Args:
            iteration: int, at least 1. How many iterations were done, this one included.
        """
        raise NotImplementedError

    def on_first_iteration(self, done: int) -> None:
        """Handles the start of the first iteration of a `fit` that is not passed over.

        Args:
            done: int, at least 0. How many iterations there were before it, those of an earlier
                run that is resumed included.
        """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prepares for the first iteration of this `fit`."""
        self._has_started = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls `on_first_iteration` where the iteration is the first one to be done."""
        if not self.is_on_policy:
            return
        # Only iterations that are done raise the trainer's counter, not those passed over.
        self._before = int(self.trainer.iteration.numpy())
        if not self._has_started and not self.trainer.replay.active:
            self._has_started = True
            self.on_first_iteration(self._before)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls `on_iteration_end` where the iteration was done."""
        if self.is_on_policy and self.was_done:
            self.on_iteration_end(int(self.trainer.iteration.numpy()))

    @property
    def was_done(self) -> bool:
        """Whether the last iteration was done here, and not passed over after a resume."""
        return self._before is not None and int(self.trainer.iteration.numpy()) > self._before


def every(name: str, value: int) -> int:
    """Returns `value` as a number of iterations, or raises a `ValueError` that names the argument.

    Args:
        name: str, of the argument.
        value: int, at least 1.

    Raises:
        ValueError: If it is no int or below 1.

    Example:
        >>> every("scalar_freq", 10)
        10
    """
    return require_int(name, value, minimum=1)


def sample_rows(
    collected: Collected, iteration: int, count: int, step: int = 1
) -> list[dict[str, Any]]:
    """Returns the first responses of a batch, for people and files.

    Args:
        collected: `Collected`.
        iteration: int, at least 0. What every row has as `iteration`.
        count: int, at least 0. Rows at most.
        step: int, at least 1. With the size of the groups, one response to each prompt. Defaults
            to 1: all.

    Returns:
        List of dicts of `iteration`, `prompt`, `response` (texts, or token ids where the model
        has no tokenizer), `score`, `raw_score` (before shaping) and `kl` (nats, summed over the
        response).
    """
    rollout, episodes = collected.rollout, collected.episodes
    # Nats of each response: k1, summed over its tokens (S2).
    kl = masking.masked_sum(
        k1(rollout.logprobs, rollout.ref_logprobs), rollout.response_mask, axis=-1
    )
    numbers = [np.asarray(x, "float64") for x in (collected.scores, collected.raw_scores, kl)]
    inside, lengths = (np.asarray(x) for x in (rollout.response_mask, rollout.prompt_lengths))
    ids = np.asarray(rollout.token_ids)
    rows = []
    for i in range(0, len(ids), step)[:count]:
        # Texts where there is a tokenizer, otherwise ids by the masks.
        prompt = episodes.prompts[i] if episodes.prompts else ids[i][: lengths[i]].tolist()
        response = episodes.responses[i] if episodes.responses else ids[i][inside[i]].tolist()
        score, raw_score, nats = (float(x[i]) for x in numbers)
        rows.append(
            {
                "iteration": iteration,
                "prompt": prompt,
                "response": response,
                "score": score,
                "raw_score": raw_score,
                "kl": nats,
            }
        )
    return rows


def scalars(logs: dict[str, Any] | None) -> dict[str, float]:
    """Returns the entries of Keras logs that are one finite number.

    Args:
        logs: dict from name to number or array, or None.

    Example:
        >>> scalars({"loss": 0.5, "confusion": np.zeros((2, 2)), "kl": float("nan")})
        {'loss': 0.5}
    """
    numbers = {}
    for name, value in (logs or {}).items():
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "fiub" and math.isfinite(float(array)):
            numbers[name] = float(array)
    return numbers


def validated(logs: dict[str, Any] | None) -> dict[str, float]:
    """Returns the results of a validation in Keras logs, by their names without `val_`.

    Args:
        logs: as in `scalars`.

    Example:
        >>> validated({"score": 0.5, "val_score": 0.25})
        {'score': 0.25}
    """
    results = scalars(logs)
    return {k.removeprefix("val_"): v for k, v in results.items() if k.startswith("val_")}
