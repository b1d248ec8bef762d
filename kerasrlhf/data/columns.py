"""Columns that go with texts: margins of pairs, labels of responses, steps and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasrlhf.data import records as records_lib
from kerasrlhf.data.records import Record, Records

_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_LARGEST = float(np.finfo("float32").max)


def margins(records: Records, column: str | None = "auto") -> np.ndarray | None:
    """Returns by how much the score of each chosen response should exceed the other.

    Args:
        records: list of dict.
        column: str or None. The name of the column; `"auto"` is `margin` if there is one; None
            means no column. Defaults to `"auto"`.

    Returns:
        float32 array `(rows,)`, or None without a column.

    Raises:
        ValueError: If the column is missing, or a row has no finite number in it.

    Example:
        >>> margins([{"margin": 1.5}, {"margin": "2"}]).tolist()
        [1.5, 2.0]
    """
    name = "margin" if column == "auto" else column
    if name is None or (column == "auto" and not any(name in row for row in records)):
        return None
    # A column that some rows have must be in all of them.
    hint = "add one to every row, or pass `margin=None`"
    records_lib.refuse(
        records,
        lambda row: not _is_number(row.get(name)),
        f"have no finite number in {name!r} ({hint})",
    )
    return np.array([float(row[name]) for row in records], "float32")


def labels(records: Records) -> np.ndarray:
    """Returns whether each response is wanted.

    Args:
        records: list of dict with a column `label`: booleans, or 1 and 0; or one of these as the
            text of a CSV cell, such as `"true"`.

    Returns:
        float32 array `(rows,)` of 1 and 0.

    Raises:
        ValueError: If a row has no such label.

    Example:
        >>> labels([{"label": True}, {"label": 0}, {"label": "False"}]).tolist()
        [1.0, 0.0, 0.0]
    """
    records_lib.refuse(
        records,
        lambda row: truth(row.get("label")) is None,
        "have no 'label' that is true (1: wanted) or false (0: unwanted)",
    )
    return np.array([float(truth(row["label"]) is True) for row in records], "float32")


def truth(value: Any) -> bool | None:
    """Returns the truth value that a cell holds, or None if it holds none.

    Args:
        value: bool, 1 or 0, or one of the texts "true", "false", "1" and "0" in any case.

    Returns:
        bool or None.

    Example:
        >>> truth("True"), truth(0), truth("maybe")
        (True, False, None)
    """
    if isinstance(value, str):
        return _TRUTH.get(value.strip().lower())
    # Other numbers, such as a rating of 5, do not say which side they are on.
    is_number = isinstance(value, bool | int | float | np.bool_ | np.number)
    return bool(value) if is_number and value in (0, 1) else None


def steps(records: Records, separator: str) -> tuple[list[list[str]], list[list[float]]]:
    r"""Returns the steps of each response, and whether each is right.

    Args:
        records: list of dict with `steps` (or `completions`), a list of strings, and `labels`, a
            list of as many numbers from 0 to 1 or booleans.
        separator: str. The text between steps; one at the end of a step is dropped.

    Returns:
        Two lists of lists: of str, and of float.

    Raises:
        ValueError: If a column is missing, a row has no steps, a step is empty or has a separator
            in it, or labels do not fit.

    Example:
        >>> steps([{"steps": ["1 + 1 = 2\n", "so 3"], "labels": [True, False]}], "\n")
        ([['1 + 1 = 2', 'so 3']], [[1.0, 0.0]])
    """
    # `completions` is the name of the column in published data of TRL's format.
    names = [name for name in ("steps", "completions") if any(name in row for row in records)]
    if not names or not any("labels" in row for row in records):
        found = sorted({str(key) for row in records for key in row})
        raise ValueError(f"Expected columns 'steps' or 'completions' and 'labels'. Found: {found}")
    name = names[0]

    def split(row: Record) -> list[str]:
        return [step.removesuffix(separator) for step in row[name]]

    def is_no_list(row: Record) -> bool:
        value = row.get(name)
        if not isinstance(value, list) or not value:
            return True
        return not all(isinstance(step, str) for step in value)

    # Each check relies on the one before it.
    records_lib.refuse(records, is_no_list, f"have no list of strings in {name!r}")
    records_lib.refuse(
        records,
        lambda row: not all(step.strip() and separator not in step for step in split(row)),
        f"have a step in {name!r} that is empty or holds the separator {separator!r}: split it",
    )
    records_lib.refuse(
        records,
        lambda row: not _are_labels(row.get("labels"), len(row[name])),
        f"have no list in 'labels' with a number from 0 to 1 for each of {name!r}",
    )
    return [split(row) for row in records], [[float(x) for x in row["labels"]] for row in records]


def _is_number(value: Any) -> bool:
    try:
        # Finite also as float32.
        return not isinstance(value, bool) and abs(float(value)) <= _LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def _are_labels(labels: object, count: int) -> bool:
    return (
        isinstance(labels, list)
        and len(labels) == count
        and all(isinstance(x, bool) or (_is_number(x) and 0 <= float(x) <= 1) for x in labels)
    )


def ended(records: Records, candidates: int = 1) -> list[list[bool]]:
    """Returns whether each response is complete: its column `ended`, True if there is none.

    Args:
        records: list of dict. `ended` is a bool, or one for each of several responses in a list, in
            their order (chosen, rejected; or best first); None means no column.
        candidates: int. Responses per record. Defaults to 1.

    Returns:
        list of `candidates` lists of bool, one per record.

    Raises:
        ValueError: If `ended` is something else.

    Example:
        >>> ended([{"text": "The end."}, {"text": "And then", "ended": False}])
        [[True, False]]
        >>> ended([{"chosen": "The end.", "rejected": "And", "ended": [True, False]}], candidates=2)
        [[True], [False]]
    """

    def flags(record: Record) -> list[bool | None]:
        value = record.get("ended")
        # An empty cell of a CSV file counts as no value.
        value = True if value is None or (isinstance(value, str) and not value) else value
        # One flag holds for all responses of the record.
        is_list = isinstance(value, list | tuple | np.ndarray)
        row = [*np.ravel(value)] if is_list else [value] * candidates
        return [truth(x) if isinstance(x, bool | np.bool_ | str) else None for x in row]

    def is_wrong(record: Record) -> bool:
        return len(flags(record)) != candidates or None in flags(record)

    records_lib.refuse(
        records,
        is_wrong,
        f"have a column 'ended' that is not True or False, or a list of {candidates} of them, "
        "which says whether responses are whole (rename a column that means something else)",
    )
    # From one list per record to one per candidate.
    return [list(column) for column in zip(*map(flags, records), strict=True)]
