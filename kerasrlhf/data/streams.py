"""Sources that are read as they come, because they are larger than memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kerasrlhf.checks import require_int
from kerasrlhf.data import sources
from kerasrlhf.data.places import Broken
from kerasrlhf.data.renaming import Renaming
from kerasrlhf.data.sources import Opened, Source


@dataclasses.dataclass(frozen=True)
class Stream:
    """A source that is read from its start in every pass, and never held in memory.

    The loaders of `kerasrlhf.data`, such as `preferences`, read a stream once before anything is
    trained: they check every row as they check those in memory, with the same errors, warnings and
    counts in `.report`, and learn the number and the length of the rows. Then each pass reads it
    again. So the dataset has a length, its batches one static shape, and it can be repeated, cut,
    and resumed like any other. Everything else that takes a source reads all of a stream.

    A pass is shuffled in a buffer: the next row is one of `buffer_size` rows, chosen at random by
    the seed of the loader and the number of the pass, and is replaced by the row that follows in
    the source. If rows of one kind follow each other in the source, make the buffer larger than
    their number, or shuffle the file once.

    Args:
        source: What `kerasrlhf.data.read` accepts and can be read several times; or a function
            without arguments that returns an iterator. Of a `.json` file one record at a time is
            in memory too.
        split: str. As in `kerasrlhf.data.read`. Defaults to `"train"`.
        data_dir: str, path or None. As in `kerasrlhf.data.read`. Defaults to None.
        columns: dict or None. As in `kerasrlhf.data.read`. Defaults to None.
        buffer_size: int, at least 1. Rows that are held to shuffle them. Defaults to 10,000.

    Raises:
        ValueError: If an argument is of another type or outside its range, or `source` can be read
            only once.

    Example:
        >>> stream = rlhf.data.Stream(lambda: ({"prompt": text} for text in "abc"))
        >>> [row["prompt"] for row in stream], len(list(stream))
        (['a', 'b', 'c'], 3)
    """

    source: Source | Callable[[], Any]
    _: dataclasses.KW_ONLY
    split: str = "train"
    data_dir: str | os.PathLike[str] | None = None
    columns: Mapping[str, str] | None = None
    buffer_size: int = 10_000

    def __post_init__(self) -> None:
        require_int("buffer_size", self.buffer_size, minimum=1)
        Renaming(self.columns)
        if isinstance(self.source, list | tuple):
            sources.refuse_file_names(self.source)
        if hasattr(self.source, "__next__"):
            raise ValueError(
                "A stream is read several times, and an iterator only once. Pass a function that "
                "returns a new one, such as `lambda: read_rows(path)`. Received: "
                f"{self.source!r}."
            )

    def open(self) -> Opened:
        """Begins to read the source from its start, see `kerasrlhf.data.sources.open_source`."""
        source: Any = self.source() if callable(self.source) else self.source
        path, rows = sources.open_source(source, self.split, self.data_dir)
        return Opened(path, self._renamed(rows, str(path or "the source")))

    def _renamed(
        self, rows: Iterator[tuple[int | None, Any]], name: str
    ) -> Iterator[tuple[int | None, Any]]:
        renaming = Renaming(self.columns)
        for line, row in rows:
            yield line, renaming(row)
        renaming.check(name)

    def __iter__(self) -> Iterator[Any]:
        """Yields the rows; one that cannot be read is a `ValueError`."""
        for _, row in self.open().rows:
            if isinstance(row, Broken):
                raise ValueError(row.reason)
            yield row
