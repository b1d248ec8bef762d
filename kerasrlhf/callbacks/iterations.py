"""What callbacks of on-policy trainers have in common."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from kerasrlhf.functional import kl as kl_estimators
from kerasrlhf.functional import masking
from kerasrlhf.rollouts.collector import Collected
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.types import require_int


class IterationCallback(keras.callbacks.Callback):
    """A Keras callback that is told of iterations that were done, and not of replayed ones.

    Final classes say what happens in `on_iteration_end`, and what is made ready in
    `on_first_iteration`. With a model that is no on-policy trainer nothing is called.
    """

    def __init__(self):
        super().__init__()
        self._before = None
        self._has_begun = False

    @property
    def trainer(self) -> OnPolicyTrainer | None:
        """The on-policy trainer that runs, or None for another Keras model."""
        return self.model if isinstance(self.model, OnPolicyTrainer) else None

    def on_iteration_end(self, iteration: int) -> None:
        """Called after an iteration, the first one being 1."""
        raise NotImplementedError

    def on_first_iteration(self, done: int) -> None:
        """Called before the first iteration of a `fit` that is not passed over.

        Args:
            done: int, how many iterations there were before it, those of an earlier run that is
                resumed included.
        """

    def on_train_begin(self, logs=None):
        self._has_begun = False

    def on_train_batch_begin(self, batch, logs=None):
        if self.trainer is None:
            return
        self._before = int(self.trainer.iteration.numpy())
        if not self._has_begun and not self.trainer.replay.active:
            self._has_begun = True
            self.on_first_iteration(self._before)

    def on_train_batch_end(self, batch, logs=None):
        if self.trainer is not None and self.was_done:
            self.on_iteration_end(int(self.trainer.iteration.numpy()))

    @property
    def was_done(self) -> bool:
        """Whether the last iteration was done here, and not passed over after a resume."""
        return self._before is not None and int(self.trainer.iteration.numpy()) > self._before


def every(name: str, value: int) -> int:
    """`value` as a number of iterations, or a `ValueError` that names the argument."""
    return require_int(name, value, minimum=1)


def sample_rows(collected: Collected, iteration: int, count: int) -> list[dict[str, Any]]:
    """The first responses of a batch, for people and files.

    Args:
        collected: prompts with their responses and scores.
        iteration: int, goes into every row.
        count: int, rows at most.

    Returns:
        List of dicts of `iteration`, `prompt`, `response` (texts, or token ids where the model
        has no tokenizer), `score`, `raw_score` (before the rules) and `kl` (nats, summed over the
        response).
    """
    rollout, episodes = collected.rollout, collected.episodes
    kl = masking.masked_sum(
        kl_estimators.k1(rollout.logprobs, rollout.ref_logprobs), rollout.response_mask, axis=-1
    )
    numbers = [np.asarray(x, "float64") for x in (collected.scores, collected.raw_scores, kl)]
    inside, real = (np.asarray(x) for x in (rollout.response_mask, rollout.padding_mask))
    ids = np.asarray(rollout.token_ids)
    rows = []
    for i in range(min(count, len(ids))):
        prompt = episodes.prompts[i] if episodes.prompts else ids[i][real[i] & ~inside[i]].tolist()
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
    """The entries of Keras logs that are one finite number."""
    numbers = {}
    for name, value in (logs or {}).items():
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "fiub" and math.isfinite(float(array)):
            numbers[name] = float(array)
    return numbers
