"""What the processes of one training tell each other."""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from kerasrlhf import cluster, replica

T = TypeVar("T")
# What TensorFlow raises where another process is no longer there.
_GONE = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


class Workers:
    """The processes that train together, and their exchange of Python values.

    With a single process every method does at once what it describes. With several, each method is
    to be called by all of them, in the same order.

    Args:
        strategy: `tf.distribute.Strategy`.

    Attributes:
        index: int, from 0. The number of this process.
        count: int, at least 1. How many there are.

    Example:
        >>> alone = Workers(tf.distribute.get_strategy())
        >>> alone.is_chief, alone.exchange("mine"), alone.own_part(3)
        (True, ['mine'], slice(0, 3, None))
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        place = cluster.worker(strategy)
        self.index, self.count, self.is_chief = place.index, place.count, place.is_chief
        self._exchange = _exchange_of(strategy) if self.count > 1 else None

    def exchange(self, value: T) -> list[T]:
        """Returns the values of all workers, in their order.

        Args:
            value: what `pickle` can write.
        """
        if self._exchange is None:
            return [value]
        return [pickle.loads(x) for x in self._exchange(pickle.dumps(value))]

    def together(self, what: str, function: Callable[[], T]) -> list[T]:
        """Calls a function in every worker; returns the results of all. An error is one of all.

        Args:
            what: str. What the function does, for the error of the other workers.
            function: callable without arguments.

        Raises:
            RuntimeError: If the function raised an error in another worker.
        """
        if self._exchange is None:
            return [function()]
        failure, content = None, b""
        try:
            content = pickle.dumps(function())
        except Exception as error:
            # The others wait for a result: tell them first.
            failure = error
        said = None if failure is None else f"{type(failure).__name__}: {failure}"
        answers = self.exchange((said, content))
        if failure is not None:
            raise failure
        for index, (problem, _) in enumerate(answers):
            if problem is not None:
                raise RuntimeError(f"Worker {index} failed while {what}: {problem}")
        return [pickle.loads(answer) for _, answer in answers]

    def by_chief(self, what: str, function: Callable[[], T]) -> T:
        """Calls a function in the chief alone, and returns its result in every worker.

        Args:
            what: str, as in `together`.
            function: callable without arguments.
        """
        if self._exchange is None:
            return function()
        chosen: Callable[[], Any] = function if self.is_chief else lambda: None
        return self.together(what, chosen)[0]

    def own_part(self, units: int) -> slice:
        """Returns which units of work belong to this worker; none if there are too few.

        Args:
            units: int, at least 0.
        """
        return slice(units * self.index // self.count, units * (self.index + 1) // self.count)

    def check_same(self, **values: Any) -> None:
        """Raises a `RuntimeError` where values differ between workers.

        Args:
            **values: by what they are: arrays or tensors, or what `json` can write.
        """
        if self._exchange is None:
            return
        answers = self.exchange({name: _checksum(value) for name, value in values.items()})
        for name, first in answers[0].items():
            others = [index for index, answer in enumerate(answers) if answer[name] != first]
            if others:
                raise RuntimeError(
                    f"Workers must compute the same, but {name.replace('_', ' ')} of worker "
                    f"{others[0]} differ from those of worker 0. Run the same program with the "
                    "same settings, files and seeds everywhere, and shuffle data with a seed."
                )

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Raises a `RuntimeError` for an error of TensorFlow that another worker has caused."""
        try:
            yield
        except _GONE as error:
            if self.count == 1:
                raise
            raise RuntimeError(
                f"Worker {self.index} of {self.count} has lost another worker, which was ended or "
                "cannot be reached; its own output says why. Start all of them again: "
                "`rlhf.callbacks.Resume` continues from its last state. (TensorFlow: "
                f"{' '.join(str(error.message).split())[:300]})"
            ) from error


@functools.lru_cache(maxsize=1)
def _exchange_of(strategy: tf.distribute.Strategy) -> Callable[[bytes], list[bytes]]:
    return replica.bytes_of_all(strategy)


def _checksum(value: Any) -> int:
    if isinstance(value, (list, tuple, dict, str, int, float)) or value is None:
        return zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode())
    array = np.ascontiguousarray(np.asarray(value))
    return zlib.crc32(array.tobytes(), zlib.crc32(f"{array.dtype} {array.shape}".encode()))
