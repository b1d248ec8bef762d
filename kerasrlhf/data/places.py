"""Rows that know the file and the line that they come from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Broken:
    """A row of a file that cannot be read.

    Args:
        reason: str. What is wrong, with the file, the line and the column.
    """

    reason: str


class Located(list):
    """A list of rows, with their places.

    Args:
        rows: Iterable of rows.
        path: path or None. The file that they come from. Defaults to None.
        lines: list of int, one per row, or None. The lines where they begin, counted from 1.
            Defaults to None.
        broken: dict from int, the rows that cannot be used whatever they are used for, to str,
            why. Defaults to none.

    Attributes:
        path: The argument.
        lines: The argument.
        broken: The argument.

    Example:
        >>> rows = Located([{"prompt": "a"}, {}], "pairs.jsonl", [1, 3])
        >>> rows.place(1), Located([{}]).place(0)
        ('pairs.jsonl, line 3: ', '')
    """

    def __init__(
        self,
        rows: Iterable[Any],
        path: pathlib.Path | str | None = None,
        lines: list[int] | None = None,
        broken: dict[int, str] | None = None,
    ) -> None:
        super().__init__(rows)
        self.path, self.lines, self.broken = path, lines, broken or {}

    def place(self, number: int | None = None) -> str:
        """Returns the start of a message: the file and, of a row that has one, the line.

        Args:
            number: int or None. Which row. Defaults to None: the file alone.
        """
        if self.path is None:
            return ""
        if number is None or self.lines is None:
            return f"{self.path}: "
        return f"{self.path}, line {self.lines[number]}: "

    def check(self) -> None:
        """Raises a `ValueError` for the first row that cannot be used."""
        if self.broken:
            _, reason = min(self.broken.items())
            others = f" ({len(self.broken)} of {len(self)} rows)" * (len(self.broken) > 1)
            raise ValueError(f"{reason}{others}")

    def with_rows(self, rows: Iterable[Any]) -> Located:
        """Returns other rows in the same places."""
        return Located(rows, self.path, self.lines, self.broken)


def encoding_fault(text: str) -> tuple[int, str] | None:
    """Returns where a text is not UTF-8, and what to say of it; None if all of it is.

    Args:
        text: str, decoded with "surrogateescape".
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A surrogate of "surrogateescape" has the byte as its last eight bits.
        byte = ord(text[error.start]) & 0xFF
        around = text[max(error.start - 20, 0) : error.start]
        message = f"not UTF-8 (byte 0x{byte:02x} after {around!r}). Save the file as UTF-8."
        return error.start, message
    return None
