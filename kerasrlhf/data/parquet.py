"""Reading the rows of a `.parquet` file."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from kerasrlhf.data.csv_files import check_header
from kerasrlhf.data.places import Broken

_BATCH = 1000


def rows(path: pathlib.Path) -> Iterator[tuple[None, Any]]:
    """Yields the rows of a Parquet file, of which a part at a time is in memory.

    Args:
        path: `pathlib.Path` of an existing file.

    Yields:
        None, as the format has no lines; and the row: a dictionary, or `Broken` if a text is not
        UTF-8.

    Raises:
        ValueError: If the file is damaged, or two columns have one name.

    Example:
        >>> import pathlib, tempfile
        >>> import pyarrow, pyarrow.parquet
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Hi"]}), path)
        >>> list(rows(path))
        [(None, {'prompt': 'Hi'})]
    """
    # An import of half a second that the other formats do not need.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_header(file.schema_arrow.names, str(path))
            first = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in _python_rows(batch, path, first):
                    yield None, row
                first += batch.num_rows
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}). A damaged or "
            "incomplete file must be copied or downloaded again."
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _python_rows(batch: Any, path: pathlib.Path, first: int) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # Cell by cell, to find the row and the column.
        for number in range(batch.num_rows):
            yield _python_row(batch, number, f"{path}, row {first + number} (counted from 0)")


def _python_row(batch: Any, number: int, place: str) -> Any:
    row = {}
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[number].as_py()
        except UnicodeDecodeError as error:
            return Broken(f"{place}, column {name!r}: a text that is not UTF-8 ({error}).")
    return row
