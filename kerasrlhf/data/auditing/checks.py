"""All checks of an audit, by the names of their findings, and the audit itself."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras

from kerasrlhf.data.auditing import (
    biases,
    contents,
    contradictions,
    duplicates,
    lengths,
    noise,
)
from kerasrlhf.data.auditing import near as near_lib
from kerasrlhf.data.auditing.corpus import Corpus, Numbering, read
from kerasrlhf.data.auditing.findings import SEVERITIES, Finding
from kerasrlhf.data.auditing.options import Options
from kerasrlhf.data.auditing.report import AuditReport
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.sources import Source

Check = Callable[[Corpus, Options], list[Finding]]
# A bar for what takes longer than a few seconds.
_MANY_ROWS = 20_000

CHECKS: dict[str, Check] = {
    **{name: functools.partial(contents.find_fault, name) for name in contents.FAULTS},
    "other_script": contents.find_other_scripts,
    "identical_responses": contradictions.find_identical,
    "contradictory_pairs": contradictions.find_contradictory,
    "preference_cycles": contradictions.find_cycles,
    "contradictory_labels": contradictions.find_contradictory_labels,
    "class_imbalance": contradictions.find_imbalance,
    "duplicate_records": duplicates.find_records,
    **{
        f"duplicate_{texts}": functools.partial(duplicates.find_texts, texts)
        for texts in duplicates.COLUMNS
    },
    "leaked_prompts": duplicates.find_leaked_prompts,
    "leaked_responses": duplicates.find_leaked_responses,
    "cut_prompts": lengths.find_cut_prompts,
    "cut_responses": lengths.find_cut_responses,
    "identical_after_truncation": lengths.find_identical_after_truncation,
    **{
        f"{feature}_bias": functools.partial(biases.find_bias, feature)
        for feature in biases.FEATURES
    },
    "position_bias": biases.find_position_bias,
    "label_noise": noise.find_noise,
    "near_duplicate_records": near_lib.find_records,
    **{
        f"near_duplicate_{texts}": functools.partial(near_lib.find_texts, texts)
        for texts in duplicates.COLUMNS
    },
    "near_leaked_prompts": near_lib.find_leaked_prompts,
    "near_leaked_responses": near_lib.find_leaked_responses,
}


def needs_minhash(name: str) -> bool:
    """Returns whether a check compares texts by MinHash."""
    return name.startswith("near_")


def audit(
    records: Source,
    against: Source | None = None,
    *,
    kind: str = "auto",
    tokenizer: Any = None,
    prompt_length: int | None = None,
    response_length: int | None = None,
    margins: Any = None,
    near: float | None = 0.8,
    position: str | None = "auto",
    template: Template = "plain",
    seed: int = 0,
    verbose: bool | str = "auto",
) -> AuditReport:
    """Looks for what is wrong with records before a model learns from them.

    It finds repeated and nearly repeated texts, rows that are also held out, texts that are empty
    or damaged or would be cut, contradictory and circular preferences, features that tell which
    response is chosen without regard to quality, and labels that are probably wrong. Every finding
    has row numbers, and most are rules of `kerasrlhf.data.clean`.

    Args:
        records: What `kerasrlhf.data.read` accepts or returns: preferences, unpaired preferences,
            demonstrations or prompts, with the columns that the loaders of this module read.
        against: Held-out records of any kind, or None. Rows that share a prompt or a response with
            them are found. Defaults to None.
        kind: str. `"preferences"`, `"unpaired_preferences"`, `"demonstrations"`, `"prompts"`, or
            `"auto"`: what the columns say. Defaults to `"auto"`.
        tokenizer: A keras-hub tokenizer or preprocessor, or None. With it lengths are in tokens
            too, of each text by itself. Defaults to None.
        prompt_length: int, in tokens, or None. Longer prompts are found. Defaults to None.
        response_length: int, in tokens, or None. Longer responses are found, and responses that
            differ only beyond it. Defaults to None.
        margins: What labels are judged by. An array `(rows,)` in nats, as `kerasrlhf.data.
            label_noise` takes it, of a model that was not trained on the rows; or a function of
            `(prompts, responses)` that returns a score per response, such as `reward.score`.
            Defaults to None: a logistic regression on words, trained on four of five folds at a
            time, whose findings count if it is right in 70 % of the rows or more.
        near: float, in (0, 1], or None. The least similarity of near duplicates: the number of
            words and pairs of words that two texts share, divided by that of all they have. None
            omits them. Defaults to 0.8.
        position: str or None. The column that says where the chosen response was shown, in two
            values. Defaults to `"auto"`: `position`, `order`, `chosen_position` or
            `chosen_index`, if there is one.
        template: str or callable. How messages become a text, see `kerasrlhf.data.dialogue`.
            Defaults to `"plain"`.
        seed: int, at least 0. Of hashes and folds. Defaults to 0.
        verbose: bool or `"auto"`. Whether to show a progress bar. Defaults to `"auto"`: for 20,000
            rows or more.

    Returns:
        `AuditReport`. `print(report)` is a summary, `report.save("audit.html")` writes a page,
        `report.to_dict()` is for JSON.

    Raises:
        ValueError: If a row has not the columns of its kind or no text in one of them, or an
            argument is out of its range. Texts that are empty are found, not refused.

    Example:
        >>> records = [
        ...     {"prompt": "Where is Tom?", "chosen": "In the park.", "rejected": "No."},
        ...     {"prompt": "where is  Tom?", "chosen": "No.", "rejected": "In the park."},
        ...     {"prompt": "Who is Mia?", "chosen": " ", "rejected": "A girl."}]
        >>> report = rlhf.data.audit(records)
        >>> report
        AuditReport(kind='preferences', rows=3, errors=2, warnings=0, notes=1)
        >>> report["contradictory_pairs"].rows, report["empty_texts"].rows
        ((0, 1), (2,))
    """
    corpus, options = prepared(
        records,
        against,
        kind=kind,
        tokenizer=tokenizer,
        prompt_length=prompt_length,
        response_length=response_length,
        margins=margins,
        near=near,
        position=position,
        template=template,
        seed=seed,
    )
    # 1. What cannot be looked for.
    names, omitted = [*CHECKS], []
    if near is not None and not near_lib.is_available():
        warnings.warn(near_lib.MISSING, stacklevel=2)
        names, omitted = [name for name in names if not needs_minhash(name)], [near_lib.MISSING]
    # 2. Findings.
    is_shown = len(corpus) >= _MANY_ROWS if verbose == "auto" else bool(verbose)
    bar = keras.utils.Progbar(len(names), unit_name="check") if is_shown else None
    found: list[Finding] = []
    for number, name in enumerate(names, 1):
        found += CHECKS[name](corpus, options)
        if bar is not None:
            bar.update(number)
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    # 3. Statistics.
    return AuditReport(
        corpus.kind,
        len(corpus),
        tuple(found),
        _statistics(corpus, options),
        _settings(options),
        tuple(omitted),
    )


def prepared(records: Source, against: Source | None, **options: Any) -> tuple[Corpus, Options]:
    """Reads records and held-out records, and checks options, before anything takes long.

    Args:
        records: As in `audit`.
        against: As in `audit`.
        **options: The other arguments of `audit`, without `verbose`.

    Returns:
        `Corpus` and `Options`.
    """
    margins = options.pop("margins")
    checked = Options(**options)
    numbering = Numbering()
    corpus = read(records, checked.kind, checked.template, numbering, margins)
    biases.positions(corpus, checked)
    if against is None:
        return corpus, checked
    try:
        held_out = read(against, "auto", checked.template, numbering)
    except ValueError as error:
        raise ValueError(f"`against`: {error}") from error
    return corpus, dataclasses.replace(checked, held_out=held_out)


def _statistics(corpus: Corpus, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lengths": lengths.statistics(corpus, options),
        "scripts": contents.script_counts(corpus),
    }
    if corpus.kind == "preferences":
        found["biases"] = biases.statistics(corpus)
        column, counts = biases.positions(corpus, options)
        if len(counts) == 2:
            found["positions"] = {f"{column}={name}": count for name, count in counts.items()}
    if corpus.labels is not None:
        wanted = int(corpus.labels.sum())
        found["labels"] = {"wanted": wanted, "unwanted": len(corpus) - wanted}
    margins = noise.statistics(corpus, options)
    if margins:
        found["margins"] = margins
    return found


def _settings(options: Options) -> dict[str, Any]:
    template = options.template if isinstance(options.template, str) else repr(options.template)
    tokenizer = options.tokenizer
    return {
        "near": options.near,
        "tokenizer": None if tokenizer is None else type(tokenizer).__name__,
        "prompt_length": options.prompt_length,
        "response_length": options.response_length,
        "template": template,
        "seed": options.seed,
        "held_out_rows": None if options.held_out is None else len(options.held_out),
    }
