"""Columns beside the texts: margins of pairs, labels of responses, steps and their labels."""

import math

import numpy as np

from kerasrlhf.data import records as records_lib


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
        records: List of `dict` with a column `label`: booleans, or 1 and 0.

    Returns:
        A float32 array `(rows,)` of 1 and 0.

    Raises:
        ValueError: A row without such a label.

    Example:

    >>> labels([{"label": True}, {"label": 0}]).tolist()
    [1.0, 0.0]
    """
    records_lib.refuse(
        records,
        lambda row: row.get("label") not in (0, 1),
        "have no 'label' that is true (1: wanted) or false (0: unwanted)",
    )
    return np.array([float(row["label"]) for row in records], "float32")


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
    rows = []
    for index, record in enumerate(records):
        value = record.get("ended")
        value = True if value is None else value
        row = [value] * candidates if isinstance(value, bool | np.bool_) else list(np.ravel(value))
        if len(row) != candidates or not all(isinstance(x, bool | np.bool_) for x in row):
            raise ValueError(
                "The column `ended` says whether responses are whole: True or False, or a list of "
                f"{candidates} of them. Received {value!r} in row {index}. Rename a column that "
                "means something else."
            )
        rows.append([bool(x) for x in row])
    return [list(column) for column in zip(*rows, strict=True)]
