"""The report of an audit as lines of text, and as one HTML page with plots drawn in SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kerasrlhf.data.auditing.findings import Example, Finding, number_of

if TYPE_CHECKING:
    from kerasrlhf.data.auditing.report import AuditReport

_SHOWN_ROWS = 200
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .detail { min-width: 14rem; }
.error { color: #b3261e; } .warning { color: #8a5300; } .note { color: #33658a; }
section { margin: 2rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .5rem;
  margin: .2rem 0; }
figure { display: inline-block; margin: .5rem; max-width: 100%; }
figcaption { font-size: .9rem; } svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #444; }
"""


def counted(severities: dict[str, int]) -> str:
    """Returns how many findings there are.

    Example:
        >>> counted({"error": 1, "warning": 0, "note": 2})
        '1 error, 2 notes'
    """
    parts = [number_of(n, name) for name, n in severities.items() if n]
    return ", ".join(parts) or "nothing found"


def length_lines(statistics: dict[str, Any]) -> list[str]:
    """Returns a table of lengths as lines of text."""
    rows = _length_rows(statistics)
    if not rows:
        return []
    form = "{:<12}{:<12}{:>9}{:>9}{:>9}{:>9}{:>9}"
    return [form.format(*row) for row in (_LENGTH_HEAD, *rows)]


_LENGTH_HEAD = ("column", "length in", "min", "mean", "median", "95%", "max")


def _length_rows(statistics: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (column, unit, *(f"{summary[name]:.0f}" for name in _LENGTH_HEAD[2:]))
        for column, units in statistics["lengths"].items()
        for unit, summary in units.items()
    ]


def bias_lines(statistics: dict[str, Any]) -> list[str]:
    """Returns the accuracies of simple rules as lines of text."""
    rows = _bias_rows(statistics)
    if not rows:
        return []
    form = "{:<42}{:>8}{:>26}"
    return ["", *(form.format(*row) for row in (_BIAS_HEAD, *rows))]


_BIAS_HEAD = ("rule", "pairs", "accuracy [95 % interval]")


def _bias_rows(statistics: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, str(pairs), f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        for name, pairs, mean, low, high in _accuracies(statistics)
    ]


_RULES = {
    "length": "choose the longer response",
    "overlap": "choose more words of the prompt",
}


def _accuracies(statistics: dict[str, Any]) -> list[tuple[str, int, float, float, float]]:
    found = [
        (
            _RULES.get(feature, f"choose more {feature} marks"),
            bias["pairs"],
            bias["accuracy"],
            bias["low"],
            bias["high"],
        )
        for feature, bias in statistics.get("biases", {}).items()
    ]
    noise = statistics.get("margins")
    if noise:
        name = "words (cross-fitted)" if noise["model"] == "built-in" else "margins"
        rows = sum(noise["histogram"]["counts"])
        found.append((f"model: {name}", rows, noise["accuracy"], noise["low"], noise["high"]))
    return found


def render(report: AuditReport) -> str:
    """Returns the page as HTML."""
    statistics = report.statistics
    title = f"Audit of {report.rows} records of {report.kind}"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{counted(report.severities)}.</p>",
        *(f"<p>Not looked for: {html.escape(reason)}</p>" for reason in report.omitted),
        _summary(report.findings),
        *map(_section, report.findings),
        "<h2>Lengths</h2>",
        _table(_LENGTH_HEAD, _length_rows(statistics)),
        *(
            _figure(f"{column}, {unit}", histogram_svg(summary["histogram"]))
            for column, units in statistics["lengths"].items()
            for unit, summary in units.items()
        ),
    ]
    accuracies = _accuracies(statistics)
    if accuracies:
        parts += [
            "<h2>How well simple rules predict the choice</h2>",
            "<p>Of the pairs in which a rule decides, with 95 % intervals. A reward model has to "
            "be better than a rule in the pairs of the rule.</p>",
            _figure("accuracy", intervals_svg(accuracies)),
            _table(_BIAS_HEAD, _bias_rows(statistics)),
        ]
    if statistics.get("margins"):
        caption = "margins of the labels; below 0 the model contradicts"
        parts.append(_figure(caption, histogram_svg(statistics["margins"]["histogram"])))
    for name, counts in (("Labels", "labels"), ("Positions", "positions"), ("Scripts", "scripts")):
        if statistics.get(counts):
            rows = [(key, str(value)) for key, value in statistics[counts].items()]
            parts += [f"<h2>{name}</h2>", _table((counts, "count"), rows)]
    settings = [(key, str(value)) for key, value in report.settings.items()]
    parts += ["<h2>Settings</h2>", _table(("option", "value"), settings)]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width"/>\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _summary(findings: Sequence[Finding]) -> str:
    rows = "".join(
        f'<tr><td class="{f.severity}">{f.severity}</td><td><a href="#{f.name}">{f.name}</a></td>'
        f'<td class="number">{f.count}</td><td class="detail">{html.escape(f.detail)}</td></tr>\n'
        for f in findings
    )
    head = "".join(f"<th>{name}</th>" for name in ("severity", "finding", "rows", "detail"))
    table = f'<div class="wide"><table>\n<tr>{head}</tr>\n{rows}</table></div>'
    return table if findings else ""


def _section(finding: Finding) -> str:
    numbers = ", ".join(map(str, finding.rows[:_SHOWN_ROWS]))
    more = finding.count - _SHOWN_ROWS
    numbers += f" and {more} more (`to_dict()` has all)" if more > 0 else ""
    rule = f'<p>Rule: <code>rlhf.data.clean(records, ["{finding.name}"])</code></p>\n'
    return (
        f'<section id="{finding.name}">\n<h2 class="{finding.severity}">{finding.name}: '
        f"{number_of(finding.count, 'row')}</h2>\n<p>{html.escape(finding.detail)}</p>\n"
        f"<p>{html.escape(finding.meaning)}</p>\n<p><b>{html.escape(finding.advice)}</b></p>\n"
        f"{rule if finding.is_rule else ''}<p>Rows: {numbers}</p>\n"
        f"{''.join(_example(example, finding.name) for example in finding.examples)}</section>"
    )


def _example(example: Example, name: str) -> str:
    kind = "held-out row" if "leaked" in name else "row"
    related = "" if example.related_row is None else f" (repeats {kind} {example.related_row})"
    texts = "".join(
        f"<div>{html.escape(name)}<pre>{html.escape(text)}</pre></div>\n"
        for name, text in example.texts.items()
    )
    return f"<h3>Row {example.row}{related}</h3>\n{texts}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Columns of numbers are aligned at their last digits.
    marks = [
        ' class="number"' if column and all(map(_is_count, column)) else ""
        for column in zip(*rows, strict=True)
    ] or [""] * len(head)
    cells = "".join(
        f"<th{mark}>{html.escape(name)}</th>" for name, mark in zip(head, marks, strict=True)
    )
    lines = "".join(
        "<tr>"
        + "".join(f"<td{m}>{html.escape(cell)}</td>" for cell, m in zip(row, marks, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{cells}</tr>\n{lines}</table></div>'


def _is_count(cell: str) -> bool:
    return cell.isdecimal()


def _figure(caption: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def histogram_svg(histogram: dict[str, list[float]], width: int = 280, height: int = 120) -> str:
    """Returns a histogram as SVG.

    Args:
        histogram: dict of `edges`, a list of n + 1 numbers, and `counts`, a list of n.
        width: int, in pixels. Defaults to 280.
        height: int, in pixels. Defaults to 120.

    Returns:
        str.
    """
    counts, edges = histogram["counts"], histogram["edges"]
    step, top = width / len(counts), max(max(counts), 1)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{(1 - n / top) * height:.1f}" width="{step * 0.9:.1f}" '
        f'height="{n / top * height:.1f}" fill="#33658a"><title>{edges[i]:g} to {edges[i + 1]:g}: '
        f"{n:g}</title></rect>"
        for i, n in enumerate(counts)
    )
    return (
        f"{_svg(width, height + 20)}{bars}"
        f'<text x="0" y="{height + 14}">{_short(edges[0])}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{_short(edges[-1])}</text></svg>'
    )


def _svg(width: int, height: int) -> str:
    """Returns the start of a picture that shrinks with the page."""
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">'


def _short(value: float) -> str:
    """Returns a number with three digits, or as a whole number if it has more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def intervals_svg(rows: Sequence[tuple[str, int, float, float, float]]) -> str:
    """Returns accuracies with their intervals as SVG, on an axis from 0 to 1.

    Args:
        rows: list of `(name, pairs, mean, low, high)`.

    Returns:
        str.
    """
    left, width, line = 260, 380, 24
    height = line * len(rows)

    def x(value: float) -> str:
        return f"{left + value * width:.1f}"

    marks = "".join(
        f'<text x="0" y="{y + 4}">{html.escape(name)}</text>'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="#33658a" '
        f'stroke-width="3"/><circle cx="{x(mean)}" cy="{y}" r="4" fill="#33658a">'
        f"<title>{mean:.3f} [{low:.3f}, {high:.3f}], {pairs} pairs</title></circle>"
        for y, (name, pairs, mean, low, high) in zip(
            range(line // 2, height, line), rows, strict=True
        )
    )
    axis = "".join(
        f'<line x1="{x(value)}" x2="{x(value)}" y1="0" y2="{height}" stroke="#bbb" '
        f'stroke-dasharray="{dash}"/><text x="{x(value)}" y="{height + 14}" '
        f'text-anchor="middle">{value:g}</text>'
        for value, dash in (
            (0.0, "none"),
            (0.25, "2 4"),
            (0.5, "none"),
            (0.75, "2 4"),
            (1.0, "none"),
        )
    )
    return f"{_svg(left + width + 20, height + 20)}{axis}{marks}</svg>"
