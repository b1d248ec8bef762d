"""Removing the rows that an audit finds, rule by rule, with an account of every row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kerasrlhf.cli.kinds import nearest
from kerasrlhf.data.auditing import near as near_lib
from kerasrlhf.data.auditing.checks import CHECKS, needs_minhash, prepared
from kerasrlhf.data.auditing.findings import MEANINGS, RULES
from kerasrlhf.data.auditing.options import Options
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.records import Record
from kerasrlhf.data.sources import Source

# What no trainer can learn from; then what is there twice, of which the first is kept.
SAFE_RULES = (
    "empty_texts",
    "lone_surrogates",
    "identical_responses",
    "contradictory_pairs",
    "contradictory_labels",
    "duplicate_records",
)
_SHOWN_ROWS = 10


@dataclasses.dataclass(frozen=True)
class CleanReport:
    """What `kerasrlhf.data.clean` did with each row.

    Attributes:
        rows: int. How many records there were.
        kept: tuple of int. The rows that are left, counted from 0, in their order.
        removed: dict from str, a rule, to tuple of int, the rows that it removed. A row is removed
            by one rule, the first that applies.
    """

    rows: int
    kept: tuple[int, ...]
    removed: dict[str, tuple[int, ...]]

    def __repr__(self) -> str:
        return f"CleanReport(rows={self.rows}, kept={len(self.kept)})"

    def __str__(self) -> str:
        lines = [f"{len(self.kept)} of {self.rows} records are left."]
        for rule, rows in self.removed.items():
            numbers = ", ".join(map(str, rows[:_SHOWN_ROWS]))
            more = ", ..." if len(rows) > _SHOWN_ROWS else ""
            lines.append(f"  {rule}: {len(rows)} removed" + f" (rows {numbers}{more})" * bool(rows))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as values that JSON can express."""
        removed = {rule: list(rows) for rule, rows in self.removed.items()}
        return {"rows": self.rows, "kept": list(self.kept), "removed": removed}


class Cleaned(NamedTuple):
    """Records that are left, and what became of the others.

    Attributes:
        records: list of dict. The records themselves, unchanged, in their order.
        report: `CleanReport`.
    """

    records: list[Record]
    report: CleanReport


def clean(
    records: Source,
    rules: Iterable[str] | None = None,
    against: Source | None = None,
    *,
    kind: str = "auto",
    tokenizer: Any = None,
    prompt_length: int | None = None,
    response_length: int | None = None,
    margins: Any = None,
    near: float = 0.8,
    template: Template = "plain",
    seed: int = 0,
) -> Cleaned:
    """Removes the rows that named rules find.

    A rule has the name of a finding of `kerasrlhf.data.audit` and removes its rows. Rules apply one
    after the other, each to the rows that those before it left. Of rows that repeat each other the
    first is kept; of contradictory ones all are removed.

    Args:
        records: As in `kerasrlhf.data.audit`.
        rules: iterable of str, or None. Defaults to None: `empty_texts`, `lone_surrogates`,
            `identical_responses`, `contradictory_pairs`, `contradictory_labels` and
            `duplicate_records`; with `against` also `leaked_prompts`, and with `response_length`
            also `identical_after_truncation`.
        against: Held-out records, or None. As in `kerasrlhf.data.audit`.
        kind: str. As in `kerasrlhf.data.audit`. Defaults to `"auto"`.
        tokenizer: As in `kerasrlhf.data.audit`. Defaults to None.
        prompt_length: int, in tokens, or None. Defaults to None.
        response_length: int, in tokens, or None. Defaults to None.
        margins: As in `kerasrlhf.data.audit`. Defaults to None.
        near: float, in (0, 1]. As in `kerasrlhf.data.audit`. Defaults to 0.8.
        template: str or callable. As in `kerasrlhf.data.audit`. Defaults to `"plain"`.
        seed: int, at least 0. Defaults to 0.

    Returns:
        `Cleaned(records, report)`.

    Raises:
        ValueError: If a rule is unknown, lacks the argument that it needs, or is about the whole
            set and not about rows, and as in `kerasrlhf.data.audit`.
        ImportError: If a rule is about near duplicates and neither `rensa` nor `datasketch` is
            installed.

    Example:
        >>> records = [{"prompt": "Who is Tom?"}, {"prompt": "who is Tom? "}, {"prompt": ""}]
        >>> cleaned = rlhf.data.clean(records)
        >>> cleaned.records
        [{'prompt': 'Who is Tom?'}]
        >>> print(rlhf.data.clean(records, ["duplicate_records"]).report)
        2 of 3 records are left.
          duplicate_records: 1 removed (rows 1)
    """
    chosen = None if rules is None else _checked(rules)
    corpus, options = prepared(
        records,
        against,
        kind=kind,
        tokenizer=tokenizer,
        prompt_length=prompt_length,
        response_length=response_length,
        margins=margins,
        near=near,
        position=None,
        template=template,
        seed=seed,
    )
    if chosen is None:
        chosen = [*SAFE_RULES]
        chosen += ["leaked_prompts"] if against is not None else []
        chosen += ["identical_after_truncation"] if response_length is not None else []
    _check_needs(chosen, options)
    left, part = np.arange(len(corpus)), corpus
    removed: dict[str, tuple[int, ...]] = {}
    for rule in chosen:
        rows = [row for found in CHECKS[rule](part, options) for row in found.rows]
        removed[rule] = tuple(sorted(left[rows].tolist()))
        if rows:
            places = np.setdiff1d(np.arange(len(left)), rows)
            left, part = left[places], part.take(places)
    report = CleanReport(len(corpus), tuple(left.tolist()), removed)
    return Cleaned(part.records, report)


def _checked(rules: Iterable[str]) -> list[str]:
    if isinstance(rules, str):
        raise ValueError(f"`rules` must be a list of names. Received: {rules!r}. Use [{rules!r}].")
    names = [*rules]
    for name in names:
        if isinstance(name, str) and name in MEANINGS and name not in RULES:
            raise ValueError(
                f"{name!r} is a property of all records, which no rows can be removed for. "
                f"{MEANINGS[name].advice}"
            )
        if name not in RULES:
            raise ValueError(
                f"Unknown rule {name!r}.{nearest(str(name), RULES)} Rules: {', '.join(RULES)}."
            )
    return [*dict.fromkeys(names)]


# The arguments that rules cannot do without.
_NEEDS = {
    "leaked_prompts": "held_out",
    "leaked_responses": "held_out",
    "near_leaked_prompts": "held_out",
    "near_leaked_responses": "held_out",
    "cut_prompts": "prompt_length",
    "cut_responses": "response_length",
    "identical_after_truncation": "response_length",
}


def _check_needs(rules: list[str], options: Options) -> None:
    for rule in rules:
        need = _NEEDS.get(rule)
        if need is not None and getattr(options, need) is None:
            name = "against" if need == "held_out" else need
            raise ValueError(f"The rule {rule!r} needs `{name}`.")
        if needs_minhash(rule):
            near_lib.minhash()
