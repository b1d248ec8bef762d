"""A bounded memory of recent rollouts, for reuse with importance weights and for inspection."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kerasrlhf import files
from kerasrlhf.types import Rollout, require_int

_NAME = "rollout-{iteration:06d}.npz"


class RolloutMemory:
    """The rollouts of the last iterations, in memory or as one `.npz` file each.

    A trainer that is given one (`memory=`) adds every rollout, and learns from older ones again:
    their log-probabilities and values are computed again, and a response counts as much as the
    policy still has in common with the one that sampled it
    (`functional.policy_losses.response_weights`).

    Args:
        capacity: int, at least 1. Rollouts that are drawn from.
        directory: where to write them, or None to keep them in memory. `callbacks.Resume` keeps
            them with its state either way.

    Raises:
        ValueError: a capacity below 1.

    Example:
        >>> memory = RolloutMemory(capacity=2)
        >>> for iteration in range(3):
        ...     memory.add(iteration, Rollout(*[tf.zeros((1, 2))] * 10))
        >>> memory.iterations(before=3)
        [1, 2]

    Reference:
        Espeholt et al. 2018, arXiv 1802.01561: old experience with truncated importance weights.
    """

    def __init__(self, capacity: int, directory: str | pathlib.Path | None = None):
        self.capacity = require_int("capacity", capacity, minimum=1)
        self.directory = pathlib.Path(directory) if directory is not None else None
        self._kept: dict[int, dict[str, np.ndarray]] = {}

    def add(self, iteration: int, rollout: Rollout) -> None:
        """Stores the rollout of an iteration and drops what is too old to be drawn again."""
        arrays = {name: np.asarray(x) for name, x in rollout._asdict().items() if x is not None}
        self._store(iteration, arrays)
        for old in self._all():
            if old <= iteration - self.capacity:
                self._drop(old)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is there, by `iteration/field`."""
        return {f"{i}/{name}": x for i in self._all() for name, x in self._load(i).items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what `arrays` gave, and drops everything else."""
        if self.directory is not None:
            files.remove_leftovers(self.directory, "rollout-*.npz")
        rollouts: dict[int, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            iteration, name = key.split("/")
            rollouts.setdefault(int(iteration), {})[name] = array
        for iteration, fields in rollouts.items():
            self._store(iteration, fields)
        for other in set(self._all()) - set(rollouts):
            self._drop(other)

    def iterations(self, before: int) -> list[int]:
        """The iterations whose rollouts are drawn from in iteration `before`, oldest first."""
        return [i for i in self._all() if i < before][-self.capacity :]

    def __getitem__(self, iteration: int) -> Rollout:
        """The rollout of an iteration, as tensors.

        Raises:
            ValueError: it is not there.
        """
        if iteration not in self._all():
            raise ValueError(
                f"The memory holds no rollout of iteration {iteration}. It has {self._all()}."
            )
        return Rollout(**{name: tf.constant(x) for name, x in self._load(iteration).items()})

    def __iter__(self) -> Iterator[Rollout]:
        """All rollouts that are there, oldest first."""
        return (self[i] for i in self._all())

    def __len__(self) -> int:
        return len(self._all())

    def draw(self, seed: int, iteration: int, count: int) -> list[Rollout]:
        """Rollouts of earlier iterations, drawn without replacement; fewer when there are fewer."""
        known = self.iterations(before=iteration)
        generator = np.random.default_rng((seed, iteration, len(known)))
        chosen = generator.choice(known, size=min(count, len(known)), replace=False)
        return [self[int(i)] for i in chosen]

    def _store(self, iteration: int, arrays: dict[str, np.ndarray]) -> None:
        if self.directory is None:
            self._kept[iteration] = arrays
            return
        with files.replacing(self.directory / _NAME.format(iteration=iteration)) as temporary:
            np.savez(temporary, **arrays)

    def _load(self, iteration: int) -> dict[str, np.ndarray]:
        if self.directory is None:
            return self._kept[iteration]
        with np.load(self.directory / _NAME.format(iteration=iteration)) as stored:
            return {name: stored[name] for name in stored.files}

    def _all(self) -> list[int]:
        if self.directory is None:
            return sorted(self._kept)
        found = (re.fullmatch(r"rollout-(\d+)\.npz", p.name) for p in self.directory.glob("*.npz"))
        return sorted(int(match[1]) for match in found if match)

    def _drop(self, iteration: int) -> None:
        if self.directory is None:
            del self._kept[iteration]
        else:
            (self.directory / _NAME.format(iteration=iteration)).unlink()
