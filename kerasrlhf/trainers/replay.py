"""Passing over iterations that were done before a run was interrupted."""

from __future__ import annotations


class Replay:
    """The shown statistics of every iteration so far, and how many are still to pass over.

    A resumed `fit` reads its data from the beginning: for iterations that are done already it
    only draws the batch and shows the recorded numbers again. So data order, epochs, history and
    schedules are those of a run that was never interrupted, for any dataset that is itself
    reproducible. Validations that were done are shown again in the same way.

    Attributes:
        records: the shown statistics of every iteration, oldest first.
        validations: results of validation, by the number of iterations they came after.
    """

    def __init__(self):
        self.records: list[dict[str, float]] = []
        self.validations: dict[int, dict[str, float]] = {}
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
    def validation(self) -> dict[str, float] | None:
        """The recorded validation that belongs here, or None where one is to be done."""
        return None if self._position is None else self.validations.get(self._position)

    def start(
        self,
        records: list[dict[str, float]],
        validations: dict[int, dict[str, float]] | None = None,
    ) -> None:
        """Begins to pass over the iterations with these records."""
        self.records = [dict(record) for record in records]
        self.validations = dict(validations or {})
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

    def record(self, shown: dict[str, float]) -> None:
        """Adds the record of an iteration that was done."""
        self.records.append(shown)

    def record_validation(self, result: dict[str, float]) -> None:
        """Adds the result of a validation that was done after the last iteration."""
        if not self.active:
            self.validations[len(self.records)] = dict(result)
