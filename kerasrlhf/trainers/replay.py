"""Passing over iterations that were done before a run was interrupted."""

from __future__ import annotations


class Replay:
    """The shown statistics of every iteration so far, and how many are still to pass over.

    A resumed `fit` reads its data from the beginning: for iterations that are done already it
    only draws the batch and shows the recorded numbers again. So data order, epochs, history and
    schedules are those of a run that was never interrupted, for any dataset that is itself
    reproducible.
    """

    def __init__(self):
        self.records: list[dict[str, float]] = []
        self._position = 0
        self._until = 0

    @property
    def active(self) -> bool:
        """Whether recorded iterations are still being passed over."""
        return self._position < self._until

    def start(self, records: list[dict[str, float]]) -> None:
        """Begins to pass over the iterations with these records."""
        self.records = [dict(record) for record in records]
        self._position, self._until = 0, len(records)

    def next(self) -> dict[str, float] | None:
        """The record of the iteration to pass over, or None when it is to be done."""
        if not self.active:
            return None
        self._position += 1
        return self.records[self._position - 1]

    def record(self, shown: dict[str, float]) -> None:
        """Adds the record of an iteration that was done."""
        self.records.append(shown)
