"""Where the batches of one worker begin and end among the rows of all workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kerasrlhf.checks import require_int


def check_shard(shard: Any) -> None:
    """Raises a `ValueError` for what is neither None nor `(index, count)`."""
    if shard is None:
        return
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise ValueError(
            "`shard` must be the number of a worker and how many there are, such as (0, 4). "
            f"Received: shard={shard!r}."
        )
    index, count = shard
    require_int("shard[1]", count, minimum=1)
    if require_int("shard[0]", index, minimum=0) >= count:
        raise ValueError(
            f"`shard` counts workers from 0: with {count} of them the last is ({count - 1}, "
            f"{count}). Received: shard={shard!r}."
        )


class Edges(NamedTuple):
    """The rows of each batch of a worker, as positions in the order of a pass.

    The workers' batches of one number are next to each other, so that together they are one batch
    of a single worker with `count` times the rows. Every worker has as many batches. Rows behind
    the last whole batches are divided evenly among all workers; if these rows are fewer than the
    workers, together with the batch before.

    Attributes:
        batch_size: int. Rows of a batch of one worker.
        drop_remainder: bool. Whether rows that fill no batch on every worker are left out.
        shard: tuple of int, `(index, count)`. The worker.

    Example:
        >>> [list(Edges(2, False, (worker, 2)).of(7)) for worker in (0, 1)]
        [[(0, 2), (4, 5)], [(2, 4), (5, 7)]]
    """

    batch_size: int
    drop_remainder: bool
    shard: tuple[int, int]

    @property
    def together(self) -> int:
        """Rows of a batch of all workers."""
        return self.batch_size * self.shard[1]

    def count(self, rows: int) -> int:
        """Returns how many batches a worker has of some rows."""
        return rows // self.together if self.drop_remainder else -(-rows // self.together)

    def check_rows(self, rows: int) -> None:
        """Raises a `ValueError` if a worker is left without a batch, or with an empty one.

        Args:
            rows: int. How many there are for all workers.
        """
        workers = self.shard[1]
        if self.drop_remainder and rows < self.together:
            on = "" if workers == 1 else f" on each of {workers} workers"
            raise ValueError(
                f"`batch_size` is {self.batch_size}{on} but there are only {rows} rows, so that "
                "with `drop_remainder=True` no batch is left."
            )
        # Batches of at least one row, as many on every worker.
        if not self.drop_remainder and rows < workers * self.count(rows):
            raise ValueError(
                f"{rows} rows cannot be divided into batches of at most {self.batch_size} so that "
                f"each of {workers} workers has as many and none is empty. Pass "
                "`drop_remainder=True`, or another `batch_size`."
            )

    def of(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yields where each batch begins and ends.

        Args:
            rows: int. How many there are for all workers, see `check_rows`.
        """
        index, workers = self.shard
        whole, rest = divmod(rows, self.together)
        # Batches that the remaining rows are divided into.
        last = 0 if self.drop_remainder or not rest else 1 + (rest < workers)
        whole -= last == 2
        for number in range(whole):
            first = number * self.together + index * self.batch_size
            yield first, first + self.batch_size
        first, left, parts = whole * self.together, rows - whole * self.together, last * workers
        for part in range(index, parts, workers):
            yield first + left * part // parts, first + left * (part + 1) // parts
