"""From a source to a dataset: the steps that all loaders of `kerasrlhf.data` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data import streaming
from kerasrlhf.data.encoding import Encoding, Texts
from kerasrlhf.data.records import Records
from kerasrlhf.data.sources import Source
from kerasrlhf.data.streams import Stream
from kerasrlhf.data.tokenized import Batching, TokenizedDataset


def load(
    source: Source,
    read: Callable[[Records], Texts],
    arrays: Callable[[rows_lib.Rows, dict[str, list]], Any],
    encoding: Encoding,
    batching: Batching,
    text_column: str = "text",
) -> TokenizedDataset:
    """Turns a source into a dataset: reads, checks, selects, encodes and batches its rows.

    Args:
        source: What a loader accepts.
        read: Function of a list of records that returns `Texts`. Its errors name rows.
        arrays: Function of the encoded rows and the columns that go with them, which returns a
            structure of arrays `(rows, ...)`.
        encoding: `Encoding`.
        batching: `Batching`.
        text_column: str. The column that plain strings become. Defaults to `"text"`.

    Returns:
        `TokenizedDataset`.

    Raises:
        ValueError: If the source or a row cannot be used, or no batch is left.
    """
    if isinstance(source, Stream):
        return streaming.load(source, read, arrays, encoding, batching, text_column)
    # 1. Records, with typed special tokens marked as text.
    records = records_lib.located(source, text_column=text_column, on_error=encoding.on_error)
    if batching.drop_remainder:
        batching.check_rows(len(records))
    records_lib.warn_of_ignored_keys(records, encoding.template)
    marked: Records = records
    if not encoding.parse_special:
        marked = records_lib.guarded(records, encoding.tokenizer)
    # 2. Their texts, without the rows that cannot be used.
    texts, skipped = records_lib.select(marked, read, encoding.on_error)
    records_lib.warn_of_skipped(skipped, len(records))
    # 3. Token ids, without the rows that are too long.
    rows = encoding.encode(texts)
    used = [number for number in range(len(records)) if number not in skipped]
    dropped = tuple(used[number] for number in rows.report.dropped)
    report = rows.report._replace(dropped=dropped, skipped=tuple(skipped))
    batching.check_rows(report.rows)
    # Encoding may leave out rows; their columns go with them.
    columns = {name: [column[i] for i in rows.kept] for name, column in texts.columns.items()}
    # 4. Arrays of one length, and their batches.
    return batching.batches(arrays(rows, columns), report.rows, report, encoding.tokenizer)
