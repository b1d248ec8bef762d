"""The report of an audit: findings and statistics, as text, as a dictionary and as a page."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import textwrap
from typing import Any

from kerasrlhf import files
from kerasrlhf.cli.kinds import nearest
from kerasrlhf.data.auditing import page
from kerasrlhf.data.auditing.findings import SEVERITIES, Finding, number_of

_WIDTH = 88
_SHOWN_ROWS = 10


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """What `kerasrlhf.data.audit` found.

    `print(report)` is a summary. `report["duplicate_records"]` is a `Finding`, whose `rows` are the
    numbers of the records; `"duplicate_records" in report` tells whether there is one.

    Attributes:
        kind: str. What the records are: `"preferences"`, `"unpaired_preferences"`,
            `"demonstrations"` or `"prompts"`.
        rows: int. How many records there are.
        findings: tuple of `Finding`, the most severe first.
        statistics: dict. Lengths, and of preferences the accuracies of simple rules and of the
            margins.
        settings: dict. The thresholds and options of the audit.
        omitted: tuple of str. What was not looked for, and why.
    """

    kind: str
    rows: int
    findings: tuple[Finding, ...]
    statistics: dict[str, Any]
    settings: dict[str, Any]
    omitted: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        names = [finding.name for finding in self.findings]
        raise KeyError(f"There is no finding {name!r}.{nearest(name, names)} Found: {names}")

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}s={count}" for name, count in self.severities.items())
        return f"AuditReport(kind={self.kind!r}, rows={self.rows}, {counts})"

    @property
    def severities(self) -> dict[str, int]:
        """How many findings there are of each severity."""
        counts = collections.Counter(finding.severity for finding in self.findings)
        return {name: counts[name] for name in SEVERITIES}

    def __str__(self) -> str:
        lines = [f"{self.rows} records of {self.kind}: {page.counted(self.severities)}."]
        for finding in self.findings:
            count = number_of(finding.count, "row")
            lines += ["", f"{finding.severity.upper()} {finding.name}: {count}"]
            lines += _wrapped(f"rows {_numbers(finding)}")
            lines += _wrapped(finding.detail) if finding.detail else []
            lines += [*_wrapped(finding.meaning), *_wrapped(f"-> {finding.advice}")]
        lines += ["", *page.length_lines(self.statistics)]
        lines += page.bias_lines(self.statistics)
        lines += [f"Not looked for: {reason}" for reason in self.omitted]
        return "\n".join(line.rstrip() for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything, with all row numbers, as values that JSON can express."""
        return {
            "kind": self.kind,
            "rows": self.rows,
            "findings": [finding.to_dict() for finding in self.findings],
            "statistics": self.statistics,
            "settings": self.settings,
            "omitted": list(self.omitted),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as one HTML page with plots, which needs no network.

        Args:
            path: str or path that ends with `.html`. An existing file is replaced, missing folders
                are made.

        Raises:
            ValueError: If the name ends differently.
        """
        target = pathlib.Path(path)
        if target.suffix != ".html":
            raise ValueError(f"`path` must end with '.html'. Received: {str(path)!r}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as temporary:
            temporary.write_text(page.render(self), encoding="utf-8")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _numbers(finding: Finding) -> str:
    """Returns the first row numbers, with the rows that they repeat."""
    shown = [str(row) for row in finding.rows[:_SHOWN_ROWS]]
    if finding.related:
        shown = [f"{row} (as {other})" for row, other in zip(shown, finding.related, strict=False)]
    return ", ".join(shown) + (", ..." if finding.count > _SHOWN_ROWS else "")
