"""Reading the rows of a `.csv` file."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from kerasrlhf.data.places import Broken, encoding_fault

# No cell is longer: the largest limit that the csv module takes on every platform.
_LONGEST_CELL = 2**31 - 1
_HINT = (
    "A cell with commas, quotes or line breaks needs quotes around it, and each quote inside it is "
    'written twice: "".'
)


def rows(file: IO[str], path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    r"""Yields the rows of a CSV file, whose first row has the names of the columns.

    Args:
        file: A text file, at its start.
        path: `pathlib.Path`. Its name, for messages.

    Yields:
        The line where a row begins, and the row: a dictionary, or `Broken` if it cannot be read.

    Raises:
        ValueError: If the first row cannot be read, two columns have one name, or a quotation mark
            that is missing would hide rows.

    Example:
        >>> import io, pathlib
        >>> list(rows(io.StringIO("prompt,label\nHi,1\n\nHo,0\n"), pathlib.Path("a.csv")))
        [(2, {'prompt': 'Hi', 'label': '1'}), (4, {'prompt': 'Ho', 'label': '0'})]
    """
    names: list[str] | None = None
    for line, cells in _cells(file, path):
        if names is None:
            # Without the names of the columns no row can be read.
            if isinstance(cells, Broken):
                raise ValueError(cells.reason)
            names = cells
            check_header(names, f"{path}, line {line}")
            row = _row(names, names, f"{path}, line {line}")
            if isinstance(row, Broken):
                raise ValueError(row.reason)
        elif isinstance(cells, Broken):
            yield line, cells
        else:
            yield line, _row(names, cells, f"{path}, line {line}")


def check_header(names: Sequence[str], place: str) -> None:
    """Raises a `ValueError` for columns of the same name."""
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(
            f"{place}: {names.count(double)} columns have the name {double!r}, and only the "
            f"last one would be read. Rename or remove the others. Columns: {names}."
        )


def _cells(file: IO[str], path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Yields the line where a row begins, and its cells or `Broken`; blank lines are none."""
    reader = csv.reader(file, strict=True)
    while True:
        line = reader.line_num + 1
        # The limit is global: set it for this row alone.
        limit = csv.field_size_limit(_LONGEST_CELL)
        try:
            cells: Any = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = _fault(f"{path}, line {line}", str(error), line, reader.line_num)
        finally:
            csv.field_size_limit(limit)
        if cells:
            yield line, cells


def _fault(place: str, message: str, first: int, last: int) -> Broken:
    fault = f"{place}: not CSV ({message}). {_HINT}"
    # An open quotation mark takes whole rows for a part of its cell.
    if last > first:
        raise ValueError(
            f"{fault} The cell goes on to line {last} and may hold the rows in between."
        )
    return Broken(fault)


def _row(names: list[str], cells: list[str], place: str) -> Any:
    # First the bytes: of another encoding, commas may be no commas.
    for number, cell in enumerate(cells):
        fault = None if cell.isascii() else encoding_fault(cell)
        if fault:
            column = f", column {names[number]!a}" if number < len(names) else ""
            return Broken(f"{place}{column}: {fault[1]}")
    if len(cells) != len(names):
        missing = f", and none for {names[len(cells) :]}" if len(cells) < len(names) else ""
        return Broken(
            f"{place}: expected {len(names)} cells ({names}). Received {len(cells)}{missing}."
        )
    return dict(zip(names, cells, strict=True))
