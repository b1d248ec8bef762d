"""Datasets of a `kerasrlhf.data.Stream`: read once to check it, and again in every pass."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from kerasrlhf import replica
from kerasrlhf.data import notices
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.encoding import Encoding, Texts
from kerasrlhf.data.passes import Passes
from kerasrlhf.data.places import Broken, Located
from kerasrlhf.data.records import Record, Records, RowError
from kerasrlhf.data.rows import Report, Rows, TooLongError
from kerasrlhf.data.streams import Stream
from kerasrlhf.data.tokenized import Batching, TokenizedDataset

# Rows that are checked, and rows that are tokenized for a batch or several, at a time.
_CHUNK, _BLOCK = 1000, 256
_T = TypeVar("_T")


def load(
    stream: Stream,
    read: Callable[[Records], Texts],
    arrays: Callable[[Rows, dict[str, list]], Any],
    encoding: Encoding,
    batching: Batching,
    text_column: str = "text",
) -> TokenizedDataset:
    """Turns a stream into a dataset, as `kerasrlhf.data.loading.load` turns rows in memory.

    Args:
        stream: `kerasrlhf.data.Stream`.
        read: As in `kerasrlhf.data.loading.load`.
        arrays: As in `kerasrlhf.data.loading.load`.
        encoding: `Encoding`.
        batching: `Batching`.
        text_column: str. As in `kerasrlhf.data.loading.load`. Defaults to `"text"`.

    Returns:
        `TokenizedDataset`.

    Raises:
        ValueError: If the source or a row cannot be used, or no batch is left.
    """
    reader = _Reader(stream, read, arrays, encoding, text_column)
    report = reader.check()
    report.warn(encoding.limit, stacklevel=4)
    batching.check_rows(report.rows)
    count = batching.edges.count(report.rows)
    is_whole = batching.drop_remainder or report.rows % batching.edges.together == 0
    spec = reader.spec(batching.batch_size if is_whole else None)

    def generate(number: int) -> Iterator[Any]:
        generator = None
        if batching.shuffle:
            generator = np.random.default_rng([replica.stream(batching.seed, "data"), int(number)])
        return reader.batches(batching.edges.of(report.rows), generator)

    def make(step: Any) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_generator(
            generate, args=(step // max(count, 1),), output_signature=spec
        )
        return dataset.apply(tf.data.experimental.assert_cardinality(count))

    passes = Passes(make, count, is_fixed=not batching.shuffle)
    return TokenizedDataset(passes, report, encoding.tokenizer).prefetch(tf.data.AUTOTUNE)


class _Reader:
    """Reads the rows of a stream, first to check them and then for batches.

    Across rows, checks compare with the first good one: it is read together with every part.
    """

    def __init__(
        self,
        stream: Stream,
        read: Callable[[Records], Texts],
        arrays: Callable[[Rows, dict[str, list]], Any],
        encoding: Encoding,
        text_column: str,
    ) -> None:
        self._stream, self._encoding, self._text_column = stream, encoding, text_column
        self._read_all, self._arrays = read, arrays
        self._first: Record | None = None
        self._sample: Any = None
        self._left_out: frozenset[int] = frozenset()
        self._state: Any = None
        self._length = 0

    def check(self) -> Report:
        """Reads the whole stream once, and returns what was found; warns of rows left out."""
        self._state = _state_of(self._stream.source)
        report = Report(0, 0, 0, 0, 0)
        skipped: dict[int, str] = {}
        dropped: list[int] = []
        shortest: list[int] = []
        messages = _Messages()
        total = 0
        for rows in _chunks(self._stream.open()):
            with notices.collected() as found:
                # 1. The texts of the rows that can be used.
                texts, kept, odd = self._check(rows, total)
                skipped |= {total + number: why for number, why in sorted(odd.items())}
                # 2. Their token ids, without the rows that are too long.
                try:
                    if texts is not None:
                        encoded = self._encode(texts)
                        dropped += [total + kept[number] for number in encoded.report.dropped]
                        report = _sum(report, encoded.report)
                        self._sample = self._sample or rows[kept[encoded.kept[0]]]
                except TooLongError as error:
                    dropped += [total + number for number in kept]
                    shortest.append(error.shortest)
            messages.add(found, total, len(rows))
            total += len(rows)
        if not total:
            raise ValueError(f"The source has no rows. Received: {str(self._stream.source)[:200]}")
        if not report.rows and dropped:
            limit = self._encoding.drop_longer_than
            raise TooLongError(len(dropped), min(shortest), limit if limit else 0)
        if not report.rows:
            raise ValueError(f"No row can be used. The last reason: {[*skipped.values()][-1]}")
        # 3. What all of them have in common, and a warning of each kind.
        messages.warn()
        records_lib.warn_of_skipped(skipped, total)
        self._length, self._left_out = report.length, frozenset((*skipped, *dropped))
        return report._replace(dropped=tuple(dropped), skipped=tuple(skipped))

    def spec(self, batch_size: int | None) -> Any:
        """Returns the `tf.TensorSpec`s of a batch."""
        return tf.nest.map_structure(
            lambda x: tf.TensorSpec((batch_size, *x.shape[1:]), _dtype(x)),
            self._elements(Located([self._sample])),
        )

    def batches(
        self, edges: Iterable[tuple[int, int]], generator: np.random.Generator | None
    ) -> Iterator[Any]:
        """Yields the batches of a pass.

        Args:
            edges: Iterator of pairs of int, where batches begin and end in the order of the pass.
            generator: Generator of random numbers that the order is sampled with, or None for the
                order of the source.
        """
        rows = self._good_rows()
        if generator is not None:
            rows = _shuffled(rows, self._stream.buffer_size, generator)
        position = 0
        block: list[Any] = []
        sizes: list[int] = []
        for begin, end in edges:
            # Rows in between are those of other workers.
            taken = [*itertools.islice(rows, begin - position, end - position)]
            if len(taken) < end - begin:
                raise _changed(self._stream.source)
            position = end
            block += taken
            sizes.append(end - begin)
            if len(block) >= _BLOCK:
                yield from self._divided(block, sizes)
                block, sizes = [], []
        yield from self._divided(block, sizes)

    def _divided(self, rows: list[Any], sizes: list[int]) -> Iterator[Any]:
        if not rows:
            return
        elements = self._elements(Located(rows))
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            part = slice(int(end) - size, int(end))
            yield tf.nest.map_structure(lambda x, part=part: x[part], elements)

    def _good_rows(self) -> Iterator[Any]:
        if _state_of(self._stream.source) != self._state:
            raise _changed(self._stream.source)
        for number, (_, row) in enumerate(self._stream.open().rows):
            if number not in self._left_out:
                yield row

    def _records(self, rows: Located) -> Located:
        """Returns rows as records, with typed special tokens marked as text."""
        records = records_lib.prepared(rows, self._text_column, "skip")
        records_lib.warn_of_ignored_keys(records, self._encoding.template)
        if self._encoding.parse_special:
            return records
        marked = records_lib.guarded(records, self._encoding.tokenizer)
        return records.with_rows(marked)

    def _check(self, rows: Located, before: int) -> tuple[Texts | None, list[int], dict[int, str]]:
        """Returns the texts of a part, the numbers of their rows, and the rows left out."""
        records = self._records(rows)
        raises = self._encoding.on_error == "raise"
        texts: Texts | None = None
        kept: list[int] = []
        odd = records.broken
        # With rows that are no records, nothing else needs to be looked at.
        if not (raises and odd):
            texts, kept, odd = records_lib.sift(records, self._read)
        if odd and raises:
            number = min(odd)
            # A row that cannot be read has its place in the message.
            place = "" if number in rows.broken else rows.place(number)
            where = "" if number in rows.broken else f"row {before + number} (counted from 0): "
            others = f" ({len(odd)} such rows up to row {before + len(rows) - 1})"
            message = f"{place}{where}{odd[number]}{others * (len(odd) > 1)}"
            raise RowError(message, [before + number], odd[number])
        if self._first is None and kept:
            self._first = records[kept[0]]
        return texts, kept, odd

    def _read(self, records: Records) -> Texts:
        if self._first is None:
            return self._read_all(records)
        try:
            return self._read_all([self._first, *records]).without_first()
        except RowError as error:
            if 0 in error.numbers:
                raise ValueError(
                    f"rows have other columns than the first row of the stream: {error}"
                ) from error
            numbers = [number - 1 for number in error.numbers]
            raise RowError(str(error), numbers, error.reason) from error

    def _encode(self, texts: Texts) -> Rows:
        return self._encoding.encode(texts, warns=False)

    def _elements(self, rows: Located) -> Any:
        """Returns good rows as a structure of arrays `(rows, ...)`."""
        with notices.collected():
            encoded = self._encode(texts := self._read(self._records(rows)))
        # All batches have the length of the longest row of the stream.
        encoded = encoded._replace(report=encoded.report._replace(length=self._length))
        kept = encoded.kept
        columns = {name: [column[i] for i in kept] for name, column in texts.columns.items()}
        return _numpy(self._arrays(encoded, columns))


class _Messages:
    """Warnings of the parts of a stream, one of each kind."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._others: dict[str, int] = {}

    def add(self, messages: list[str], first: int, count: int) -> None:
        for message in messages:
            # Messages of one kind differ in their numbers.
            kind = re.sub(r"\d+", "#", message)
            if kind in self._first:
                self._others[kind] = self._others.get(kind, 0) + 1
            else:
                self._first[kind] = f"Rows {first} to {first + count - 1}: {message}"

    def warn(self) -> None:
        for kind, message in self._first.items():
            others = self._others.get(kind, 0)
            more = f" (And so in {others} other parts of the stream.)" if others else ""
            warnings.warn(f"{message}{more}", stacklevel=6)


def _chunks(opened: Any) -> Iterator[Located]:
    """Yields the rows of a source, some at a time."""
    while chunk := [*itertools.islice(opened.rows, _CHUNK)]:
        lines, rows = zip(*chunk, strict=True)
        broken = {i: row.reason for i, row in enumerate(rows) if isinstance(row, Broken)}
        good = [{} if i in broken else row for i, row in enumerate(rows)]
        yield Located(good, opened.path, [*lines] if lines[0] else None, broken)


def _shuffled(rows: Iterator[_T], size: int, generator: np.random.Generator) -> Iterator[_T]:
    """Yields rows in a random order, each at most `size` rows before its turn."""
    held = [*itertools.islice(rows, size)]
    for row in rows:
        place = int(generator.integers(size))
        yield held[place]
        held[place] = row
    yield from (held[place] for place in generator.permutation(len(held)))


def _sum(one: Report, other: Report) -> Report:
    return Report(
        rows=one.rows + other.rows,
        length=max(one.length, other.length),
        longest=max(one.longest, other.longest),
        cut_prompts=one.cut_prompts + other.cut_prompts,
        cut_responses=one.cut_responses + other.cut_responses,
        longest_response=max(one.longest_response, other.longest_response),
        identical=one.identical + other.identical,
    )


def _state_of(source: Any) -> Any:
    """Returns what changes when a file does; None for other sources."""
    if not isinstance(source, str | os.PathLike) or not os.path.isfile(os.path.expanduser(source)):
        return None
    found = os.stat(os.path.expanduser(source))
    return found.st_size, found.st_mtime_ns


def _changed(source: Any) -> ValueError:
    return ValueError(
        f"The rows of the stream {str(source)[:200]!r} are no longer those that were checked when "
        "the dataset was made. Make the dataset again, of a source that does not change."
    )


def _numpy(value: Any) -> Any:
    """Returns a structure of arrays and lists as one of arrays; texts are bytes."""
    if isinstance(value, dict):
        return {name: _numpy(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_numpy, value))
    if isinstance(value, list) and value and isinstance(value[0], str):
        # NumPy's own arrays of texts lose zero bytes at their end.
        return np.array([text.encode("utf-8") for text in value], dtype=object)
    return np.asarray(value)


def _dtype(array: np.ndarray) -> Any:
    return tf.string if array.dtype == object else tf.as_dtype(array.dtype)
