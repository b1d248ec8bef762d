"""What kinds of values the columns of records hold."""

from __future__ import annotations

from typing import Any

# Messages have these keys, all of them texts; TFDS keeps them as one list for each key.
MESSAGES = {"messages": ("role", "content"), "conversations": ("from", "value")}
_INTEGERS = range(-(2**63), 2**63)


class Schema:
    """The kinds of the columns of records that were seen.

    A kind is "text", "integer", "number", "boolean", "messages" (`role` and `content`),
    "conversations" (`from` and `value`), "list" (an empty one), or "list of " and another one.

    Attributes:
        kinds: dict from str, the columns, to str, their kinds.

    Example:
        >>> schema = Schema()
        >>> schema.add({"prompt": "a", "score": 1, "tags": []}, "row 0")
        >>> schema.add({"prompt": "b", "score": 0.5, "tags": ["x"]}, "row 1")
        >>> schema.kinds
        {'prompt': 'text', 'score': 'number', 'tags': 'list of text'}
    """

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self._is_empty = True

    def add(self, row: Any, place: str) -> None:
        """Adds a record.

        Args:
            row: dict.
            place: str. Where it is from, for messages.

        Raises:
            ValueError: If it is no dictionary, has other columns than the records before, or a
                value that has no kind, or another one than those before it.
        """
        if not isinstance(row, dict) or not row or not all(isinstance(key, str) for key in row):
            raise ValueError(f"{place}: expected a dict of named columns. Received: {row!r:.200}.")
        if not self._is_empty and row.keys() != self.kinds.keys():
            odd = sorted(row.keys() ^ self.kinds.keys())
            raise ValueError(
                f"{place}: has other columns than the rows before, {odd}. A TFDS dataset has the "
                "same columns in every row: add them to the rows that lack them."
            )
        self._is_empty = False
        for name, value in row.items():
            where = f"{place}, column {name!r}"
            kind = _kind(value, where)
            self.kinds[name] = _common(self.kinds.get(name, kind), kind, where)


def _kind(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        if value not in _INTEGERS:
            raise ValueError(f"{where}: {value} has more than 64 bits. Write it as a text.")
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: has a lone surrogate, half of a character.") from error
        return "text"
    if isinstance(value, list | tuple):
        return _kind_of_list(value, where)
    if value is None:
        raise ValueError(
            f"{where}: is null, and a TFDS dataset has no missing values. Write an empty text or a "
            "number, or leave the column out of all rows."
        )
    raise ValueError(
        f"{where}: a value of type {type(value).__name__} cannot be a column of a TFDS dataset. "
        "Write it as JSON text, or as columns of its own."
    )


def _kind_of_list(values: list | tuple, where: str) -> str:
    if not values:
        return "list"
    if isinstance(values[0], dict):
        for kind, keys in MESSAGES.items():
            if all(isinstance(x, dict) and x.keys() == {*keys} for x in values):
                for message in values:
                    for key in keys:
                        if _kind(message[key], f"{where}, {key!r}") != "text":
                            raise ValueError(f"{where}: a message has no text in {key!r}.")
                return kind
        raise ValueError(
            f"{where}: a list of dicts must be messages of 'role' and 'content', or of 'from' and "
            f"'value', and nothing else. Received: {values!r:.200}. Write it as JSON text."
        )
    kind = _kind(values[0], where)
    for value in values[1:]:
        kind = _common(kind, _kind(value, where), where)
    return f"list of {kind}"


def _common(one: str, other: str, where: str) -> str:
    """Returns the kind that holds the values of both."""
    if one == other:
        return one
    if {one, other} == {"integer", "number"}:
        return "number"
    # An empty list may be one of anything.
    for empty, kind in ((one, other), (other, one)):
        if empty == "list" and (kind.startswith("list") or kind in MESSAGES):
            return kind
    if one.startswith("list of ") and other.startswith("list of "):
        inner = _common(one.removeprefix("list of "), other.removeprefix("list of "), where)
        return f"list of {inner}"
    raise ValueError(
        f"{where}: holds values of different kinds, {one} and {other}. A column of a TFDS dataset "
        "has one kind: change the others, or write all as texts."
    )
