"""Columns beside the texts: margins of pairs, labels of responses, steps and their labels."""

import math

import numpy as np

from kerasrlhf.data import records as records_lib

_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def margins(records, column="auto"):
    """By how much the score of the chosen response shall lead.

    Args:
        records: List of `dict`.
        column: Its name; `"auto"` is `margin` where there is one; `None` is none.

    Returns:
        A float32 array `(rows,)`, or `None` without a column.

    Raises:
        ValueError: A missing column, or a row without a finite number in it.

    Example:

    >>> margins([{"margin": 1.5}, {"margin": "2"}]).tolist()
    [1.5, 2.0]
    """
    name = "margin" if column == "auto" else column
    if name is None or (column == "auto" and not any(name in row for row in records)):
        return None
    hint = "give every row one, or pass `margin=None`"
    records_lib.refuse(
        records,
        lambda row: not _is_number(row.get(name)),
        f"have no finite number in {name!r} ({hint})",
    )
    return np.array([float(row[name]) for row in records], "float32")


def labels(records):
    """Whether each response is wanted.

    Args:
        records: List of `dict` with a column `label`: booleans, or 1 and 0; or one of these as the
            text of a CSV cell, such as `"true"`.

    Returns:
        A float32 array `(rows,)` of 1 and 0.

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
    return np.array([float(truth(row["label"])) for row in records], "float32")


def truth(value):
    """Returns the truth value that a cell holds, or `None` where it holds none.

    Args:
        value: A boolean, 1 or 0, or one of the texts "true", "false", "1" and "0" in any case.

    Example:

    >>> truth("True"), truth(0), truth("maybe")
    (True, False, None)
    """
    if isinstance(value, str):
        return _TRUTH.get(value.strip().lower())
    is_number = isinstance(value, bool | int | float | np.bool_ | np.number)
    return bool(value) if is_number and value in (0, 1) else None


def steps(records, separator):
    """The steps of each response, and whether each is right.

    Args:
        records: List of `dict` with `steps` (or `completions`), a list of strings, and `labels`, a
            list of as many numbers from 0 to 1 or booleans.
        separator: What stands between steps; one at the end of a step is dropped.

    Returns:
        Two lists of lists: of `str`, and of `float`.

    Raises:
        ValueError: Missing columns; rows without steps, with an empty step or one with a separator
            in it; labels that do not fit.

    Example:

    >>> steps([{"steps": ["1 + 1 = 2\\n", "so 3"], "labels": [True, False]}], "\\n")
    ([['1 + 1 = 2', 'so 3']], [[1.0, 0.0]])
    """
    names = [name for name in ("steps", "completions") if any(name in row for row in records)]
    if not names or not any("labels" in row for row in records):
        found = sorted({str(key) for row in records for key in row})
        raise ValueError(f"Expected columns 'steps' or 'completions' and 'labels'. Found: {found}")
    name = names[0]

    def split(row):
        return [step.removesuffix(separator) for step in row[name]]

    def is_no_list(row):
        value = row.get(name)
        is_list = isinstance(value, list) and len(value) > 0
        return not is_list or not all(isinstance(step, str) for step in value)

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


def _is_number(value):
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _are_labels(labels, count):
    return (
        isinstance(labels, list)
        and len(labels) == count
        and all(isinstance(x, bool) or (_is_number(x) and 0 <= float(x) <= 1) for x in labels)
    )


def ended(records, candidates=1):
    """Whether each response is whole: their column `ended`, true where there is none.

    Args:
        records: List of `dict`. `ended` is a `bool`, or one for each of several responses in a
            list, in their order (chosen, rejected; or best first); `None` is as none.
        candidates: `int`, responses of a record.

    Returns:
        List of `candidates` lists of `bool`, one a record.

    Raises:
        ValueError: Something else.

    Example:

    >>> ended([{"text": "The end."}, {"text": "And then", "ended": False}])
    [[True, False]]
    >>> ended([{"chosen": "The end.", "rejected": "And", "ended": [True, False]}], candidates=2)
    [[True], [False]]
    """

    def flags(record):
        value = record.get("ended")
        value = True if value is None or value == "" else value
        is_list = isinstance(value, list | tuple | np.ndarray)
        row = [*np.ravel(value)] if is_list else [value] * candidates
        return [truth(x) if isinstance(x, bool | np.bool_ | str) else None for x in row]

    def is_wrong(record):
        return len(flags(record)) != candidates or None in flags(record)

    records_lib.refuse(
        records,
        is_wrong,
        f"have a column 'ended' that is not True or False, or a list of {candidates} of them, "
        "which says whether responses are whole (rename a column that means something else)",
    )
    return [list(column) for column in zip(*map(flags, records), strict=True)]
