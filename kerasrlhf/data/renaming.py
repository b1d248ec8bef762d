"""Columns of a source that have other names than those of the package."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any


class Renaming:
    """A function of rows that gives columns their names.

    Args:
        columns: dict from str, the name that a column gets, to str, its name in the source; or
            None, which changes nothing.

    Raises:
        ValueError: If `columns` is something else.

    Example:
        >>> renaming = Renaming({"prompt": "question"})
        >>> renaming({"question": "Who?", "id": 3}), renaming("Who?")
        ({'prompt': 'Who?', 'id': 3}, 'Who?')
    """

    def __init__(self, columns: Mapping[str, str] | None) -> None:
        columns = {} if columns is None else columns
        pairs = [*columns.items()] if isinstance(columns, Mapping) else [(None, None)]
        if not all(isinstance(name, str) for pair in pairs for name in pair):
            raise ValueError(
                "`columns` must be a dict from the names of this package to those of the source, "
                f'such as {{"prompt": "question"}}. Received: {columns!r}.'
            )
        self._columns = dict(pairs)
        self._missing = set(self._columns.values())
        self._found: dict[str, None] = {}

    def __call__(self, row: Any) -> Any:
        """Returns a row with its new names; what is no dictionary, as it is."""
        if not self._columns or not isinstance(row, dict):
            return row
        self._missing -= row.keys()
        if self._missing:
            self._found.update(dict.fromkeys(map(str, row)))
        old = {*self._columns.values()}
        rest = {name: cell for name, cell in row.items() if name not in old}
        taken = sorted(rest.keys() & self._columns.keys())
        if taken:
            raise ValueError(
                f"`columns` gives {taken} to other columns, but the source has columns of these "
                f"names too. Give them other names: `columns={{'other': {taken[0]!r}, ...}}`."
            )
        # A row that lacks the column lacks it under its new name: the loaders name such rows.
        named = {new: row[name] for new, name in self._columns.items() if name in row}
        return {**named, **rest}

    def check(self, source: str) -> None:
        """Raises a `ValueError` for a column that no row had.

        Args:
            source: str. What was read, for the message.
        """
        for name in sorted(self._missing):
            near = difflib.get_close_matches(name, self._found, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"No row of {source} has the column {name!r} that `columns` names. Found: "
                f"{[*self._found]}.{hint}"
            )
