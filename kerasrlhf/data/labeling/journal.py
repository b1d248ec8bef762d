"""A file of JSON lines that grows by one line at a time and is on disk after each."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from kerasrlhf import files


class Journal:
    r"""Rows of a file of JSON lines, to which rows are added at the end.

    A last line that is not whole, as a crash of the machine leaves it, is no row; the next row
    takes its place.

    Args:
        path: str or path. The file need not exist; it is made by the first row.
        columns: names that every row of the file must have, so that nothing is added to the file
            of another program.

    Raises:
        ValueError: If a line is not JSON, or is not a row with these columns.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> Journal(path, ["n"]).append({"n": 1})
        >>> with path.open("a") as file:
        ...     _ = file.write('{"n": ')
        >>> journal = Journal(path, ["n"])
        >>> journal.append({"n": 2})
        >>> path.read_text()
        '{"n": 1}\n{"n": 2}\n'
    """

    def __init__(self, path: str | os.PathLike[str], columns: list[str]) -> None:
        self.path = pathlib.Path(path)
        self.rows: list[dict[str, Any]] = []
        # Where each row begins, and where the last whole one ends, in bytes.
        self._starts: list[int] = []
        self._end = 0
        content = self.path.read_bytes() if self.path.exists() else b""
        self._size = len(content)
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            row = self._parsed(line, number, columns, is_last=self._end + len(line) == self._size)
            if row is not None:
                self.rows.append(row)
                self._starts.append(self._end)
                self._end += len(line)
        self._is_ended = self._end == 0 or content[self._end - 1 : self._end] == b"\n"

    def _parsed(
        self, line: bytes, number: int, columns: list[str], is_last: bool
    ) -> dict[str, Any] | None:
        """Returns the row of a line, or None for a line that was not written to its end."""
        try:
            row = json.loads(line)
        except ValueError as error:
            if is_last and not line.endswith(b"\n"):
                return None
            raise ValueError(f"{self.path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict) or not {*columns} <= row.keys():
            raise ValueError(
                f"{self.path}, line {number}: no label. Expected a file that `rlhf.data.label` has "
                f"written, with the columns {columns}. Choose another `path`."
            )
        return row

    def append(self, row: dict[str, Any]) -> None:
        """Writes a row, which is on disk when this returns.

        Raises:
            ValueError: If another program has changed the file.
        """
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        start = self._end + (not self._is_ended)
        self._write(b"" if self._is_ended else b"\n", line)
        self.rows.append(row)
        self._starts.append(start)
        self._end, self._is_ended = start + len(line), True
        self._size = self._end

    def pop(self) -> dict[str, Any]:
        """Removes the last row and returns it."""
        self._end = self._starts.pop()
        self._is_ended = True
        self._write()
        self._size = self._end
        return self.rows.pop()

    def _write(self, *parts: bytes) -> None:
        """Writes after the last whole row, in place of what follows it."""
        is_new = not self.path.exists()
        if (0 if is_new else self.path.stat().st_size) != self._size:
            raise ValueError(
                f"Another program has changed {self.path} meanwhile. Nothing was written; call "
                "`rlhf.data.label` again to go on from what is there."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab" if is_new else "r+b") as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(b"".join(parts))
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            files.sync(self.path.parent)
