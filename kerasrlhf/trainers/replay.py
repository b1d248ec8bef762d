"""Passing over iterations that were done before a run was interrupted."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np


class Replay:
    """The shown statistics of every iteration so far, and how many are still to pass over.

    A resumed `fit` reads its data from the beginning: for iterations that are done already it
    only draws the batch and shows the recorded numbers again. So data order, epochs, history and
    schedules are those of a run that was never interrupted, for any dataset that is itself
    reproducible. Validations that were done are shown again in the same way.

    The first batches leave checksums of their prompts, which those that are passed over are
    compared with.

    Attributes:
        records: the shown statistics of every iteration, oldest first.
        validations: results of validation, by the number of iterations they came after.
        prompts: checksums of the rows of the first `COMPARED` batches.
    """

    COMPARED = 16

    def __init__(self):
        self.records: list[dict[str, float]] = []
        self.validations: dict[int, dict[str, float]] = {}
        self.prompts: list[list[int]] = []
        self._on_others: Callable[[int, list[int], list[int]], None] | None = None
        self._position: int | None = None
        self._until = 0

    @property
    def active(self) -> bool:
        """Whether recorded iterations are still being passed over."""
        return self._position is not None and self._position < self._until

    @property
    def position(self) -> int:
        """How many recorded iterations have been passed over."""
        return self._position or 0

    @property
    def remaining(self) -> int:
        """How many recorded iterations are still to be passed over."""
        return self._until - self._position if self.active else 0

    @property
    def validation(self) -> dict[str, float] | None:
        """The recorded validation that belongs here, or None where one is to be done."""
        return None if self._position is None else self.validations.get(self._position)

    def start(
        self,
        records: list[dict[str, float]],
        validations: dict[int, dict[str, float]] | None = None,
        prompts: list[list[int]] | None = None,
        on_others: Callable[[int, list[int], list[int]], None] | None = None,
    ) -> None:
        """Begins to pass over the iterations with these records.

        Args:
            records, validations, prompts: as the attributes.
            on_others: called with the number of an iteration, from 1, and the checksums of its
                prompts as recorded and as they are, where these differ.
        """
        self.records = [dict(record) for record in records]
        self.validations = dict(validations or {})
        self.prompts = [list(rows) for rows in prompts or []]
        self._on_others = on_others
        self._position, self._until = 0, len(records)

    def stop(self) -> None:
        """Ends passing over: what follows is done."""
        self._position = None

    def next(self) -> dict[str, float] | None:
        """The record of the iteration to pass over, or None when it is to be done."""
        if not self.active:
            self.stop()
            return None
        self._position += 1
        return self.records[self._position - 1]

    def compare(self, batch: dict) -> None:
        """Reports prompts of a passed-over iteration that are not those it was done on."""
        if self._on_others is not None and self.position <= len(self.prompts):
            rows, recorded = row_checksums(batch), self.prompts[self.position - 1]
            if rows != recorded:
                self._on_others(self.position, recorded, rows)
                self.prompts[self.position - 1] = rows

    def record(self, shown: dict[str, float], batch: dict) -> None:
        """Adds the record of an iteration that was done on a batch of prompts."""
        if len(self.records) == len(self.prompts) < self.COMPARED:
            self.prompts.append(row_checksums(batch))
        self.records.append(shown)

    def record_validation(self, result: dict[str, float]) -> None:
        """Adds the result of a validation that was done after the last iteration."""
        if not self.active:
            self.validations[len(self.records)] = dict(result)


def row_checksums(batch: dict) -> list[int]:
    """Returns a number for each prompt of a batch, the same with more or less padding.

    Example:
        >>> batch = {"token_ids": np.array([[5, 6, 0]]), "padding_mask": np.array([[1, 1, 0]])}
        >>> row_checksums(batch) == row_checksums({name: x[:, :2] for name, x in batch.items()})
        True
    """
    ids = np.asarray(batch["token_ids"]).astype("int32")
    inside = np.asarray(batch["padding_mask"]).astype(bool)
    return [zlib.crc32(row[real].tobytes()) for row, real in zip(ids, inside, strict=True)]
