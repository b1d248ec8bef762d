"""A bounded memory of recent rollouts, for reuse with importance weights and for inspection."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasrlhf import files
from kerasrlhf.types import Rollout, require_int

_NAME = "rollout-{iteration:06d}.npz"


@keras.saving.register_keras_serializable("kerasrlhf")
class RolloutMemory:
    """The rollouts of the last iterations, in memory or as one `.npz` file each.

    A trainer with a memory adds every rollout, and trains on `reuse` older ones after the fresh
    one. Their log-probabilities and values are recomputed, and each response is weighted by
    `min(1, p_now / p_then)`, probabilities of the whole response
    (`functional.on_policy_losses.response_weights`). The weight applies to advantages, to the KL of
    the loss, and to the step of the values toward the returns.

    Args:
        capacity: int, at least 1. Number of most recent rollouts to sample from.
        directory: path or None. Where to write them; None keeps them in memory. `callbacks.Resume`
            saves them with its state either way. Of several workers the first writes, and the
            others keep them in memory. Defaults to None.
        reuse: int, at least 0. Older rollouts that an iteration trains on, after the fresh one; 0
            keeps them for inspection only. Defaults to 1.

    Raises:
        ValueError: If `capacity` is below 1 or `reuse` below 0.

    Example:
        >>> memory = rlhf.RolloutMemory(capacity=2)
        >>> for iteration in range(3):
        ...     memory.add(iteration, Rollout(*[tf.zeros((1, 2))] * 10))
        >>> memory.iterations(before=3)
        [1, 2]

    Reference:
        Espeholt et al. 2018, arXiv 1802.01561: old experience with truncated importance weights.
    """

    def __init__(
        self, capacity: int, directory: str | pathlib.Path | None = None, reuse: int = 1
    ) -> None:
        self.capacity = require_int("capacity", capacity, minimum=1)
        self.reuse = require_int("reuse", reuse, minimum=0)
        self.directory = pathlib.Path(directory) if directory is not None else None
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._has_read = False

    def add(self, iteration: int, rollout: Rollout) -> None:
        """Stores the rollout of an iteration and drops those that are too old to be sampled.

        Args:
            iteration: int, at least 0.
            rollout: `Rollout`.
        """
        # Store NumPy arrays: device memory is free for the next iteration.
        arrays = {name: np.asarray(x) for name, x in rollout._asdict().items() if x is not None}
        self._store(iteration, arrays)
        for old in self._all():
            if old <= iteration - self.capacity:
                self._drop(old)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all stored arrays by `iteration/field`."""
        return {f"{i}/{name}": x for i in self._all() for name, x in self._load(i).items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Stores what `arrays` returned, and drops everything else.

        Args:
            arrays: dict from `iteration/field` to array.
        """
        if self.directory is not None:
            # Files of a write that was cut off have temporary names.
            files.remove_leftovers(self.directory, "rollout-*.npz")
        rollouts: dict[int, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            iteration, name = key.split("/")
            rollouts.setdefault(int(iteration), {})[name] = array
        # Write before dropping, so that a crash in between loses nothing.
        for stored, fields in rollouts.items():
            self._store(stored, fields)
        for other in set(self._all()) - set(rollouts):
            self._drop(other)

    def iterations(self, before: int) -> list[int]:
        """Returns the iterations that iteration `before` samples from, oldest first.

        Args:
            before: int, at least 0.
        """
        return [i for i in self._all() if i < before][-self.capacity :]

    def __getitem__(self, iteration: int) -> Rollout:
        """Returns the rollout of an iteration, as tensors.

        Raises:
            ValueError: If it is not stored.
        """
        if iteration not in self._all():
            raise ValueError(
                f"The memory holds no rollout of iteration {iteration}. It has {self._all()}."
            )
        return Rollout(**{name: tf.constant(x) for name, x in self._load(iteration).items()})

    def __iter__(self) -> Iterator[Rollout]:
        """Yields all stored rollouts, oldest first."""
        return (self[i] for i in self._all())

    def __len__(self) -> int:
        return len(self._all())

    def reused_in(self, iteration: int) -> int:
        """Returns the largest number of older rollouts that an iteration trains on.

        Args:
            iteration: int, at least 0.
        """
        return min(self.reuse, self.capacity, iteration)

    def sample(self, seed: int, iteration: int) -> list[Rollout]:
        """Returns `reuse` rollouts of earlier iterations, or as many as there are.

        Args:
            seed: int, at least 0. Seed and iteration determine the choice.
            iteration: int, at least 0.
        """
        known = self.iterations(before=iteration)
        # A function of seed and iteration: a resumed run makes the same choice.
        generator = np.random.default_rng((seed, iteration, len(known)))
        chosen = generator.choice(known, size=min(self.reuse, len(known)), replace=False)
        return [self[int(i)] for i in chosen]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, without the rollouts."""
        directory = None if self.directory is None else str(self.directory)
        return {"capacity": self.capacity, "directory": directory, "reuse": self.reuse}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RolloutMemory:
        """Returns an empty memory with the arguments of `get_config`.

        Args:
            config: dict.
        """
        return cls(**config)

    def __repr__(self) -> str:
        where = "" if self.directory is None else f", directory={str(self.directory)!r}"
        return f"RolloutMemory(capacity={self.capacity}{where}, reuse={self.reuse})"

    def _store(self, iteration: int, arrays: dict[str, Any]) -> None:
        folder = self._folder()
        if folder is None:
            self._kept[iteration] = arrays
            return
        # Replace the file as a whole, so that a reader never sees half of it.
        with files.replacing(folder / _NAME.format(iteration=iteration)) as temporary:
            np.savez(temporary, **arrays)

    def _load(self, iteration: int) -> dict[str, np.ndarray]:
        folder = self._folder()
        if folder is None:
            return self._kept[iteration]
        return _read(folder / _NAME.format(iteration=iteration))

    def _all(self) -> list[int]:
        folder = self._folder()
        return sorted(self._kept) if folder is None else _stored(folder)

    def _drop(self, iteration: int) -> None:
        folder = self._folder()
        if folder is None:
            del self._kept[iteration]
        else:
            (folder / _NAME.format(iteration=iteration)).unlink()

    def _folder(self) -> pathlib.Path | None:
        """Returns where this process keeps rollouts, or None for in memory."""
        if self.directory is None or files.writes():
            return self.directory
        # A worker that does not write starts with what is there.
        if not self._has_read:
            self._has_read = True
            for iteration in _stored(self.directory):
                self._kept[iteration] = _read(self.directory / _NAME.format(iteration=iteration))
        return None


def _stored(folder: pathlib.Path) -> list[int]:
    found = (re.fullmatch(r"rollout-(\d+)\.npz", path.name) for path in folder.glob("*.npz"))
    return sorted(int(match[1]) for match in found if match)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
