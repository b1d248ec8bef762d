"""The account of what was added to records."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from kerasrlhf.data.records import Record

_SHOWN_ROWS = 10


@dataclasses.dataclass(frozen=True)
class AugmentReport:
    """What `kerasrlhf.data.augment` made of each row.

    Attributes:
        rows: int. How many records there were.
        added: dict from str, a rule, to tuple of int: for each record that it added, the row that
            the record was made from, counted from 0.
        unchanged: dict from str, a rule, to tuple of int, the rows that it made nothing new from.
    """

    rows: int
    added: dict[str, tuple[int, ...]]
    unchanged: dict[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        """How many records there are with those that were added."""
        return self.rows + sum(map(len, self.added.values()))

    def __repr__(self) -> str:
        return f"AugmentReport(rows={self.rows}, total={self.total})"

    def __str__(self) -> str:
        lines = [f"{self.rows} records became {self.total}."]
        for rule, rows in self.added.items():
            missed = self.unchanged[rule]
            numbers = ", ".join(map(str, missed[:_SHOWN_ROWS]))
            more = ", ..." if len(missed) > _SHOWN_ROWS else ""
            nothing = f", nothing new from {len(missed)} rows ({numbers}{more})" * bool(missed)
            lines.append(f"  {rule}: {len(rows)} added{nothing}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as values that JSON can express."""
        parts = {"added": self.added, "unchanged": self.unchanged}
        listed = {name: {k: list(v) for k, v in value.items()} for name, value in parts.items()}
        return {"rows": self.rows, "total": self.total, **listed}


class Augmented(NamedTuple):
    """Records with those that were made from them, and an account of them.

    Attributes:
        records: list of dict. The records themselves, unchanged and in their order; then those
            that each rule added, which have two more columns: `augmented_by`, the rule, and
            `augmented_from`, the row.
        report: `AugmentReport`.
    """

    records: list[Record]
    report: AugmentReport
