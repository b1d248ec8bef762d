"""Adding records that named rules make from those that are there, with an account of each row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kerasrlhf.checks import require_choice
from kerasrlhf.cli.kinds import nearest
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.auditing.corpus import KINDS, kind_of
from kerasrlhf.data.augmenting.parts import Parts, Reader
from kerasrlhf.data.augmenting.report import Augmented, AugmentReport
from kerasrlhf.data.augmenting.rules import (
    NEEDS,
    PAIR_RULES,
    PROMPT_RULES,
    RULES,
    TEXT_RULES,
    Options,
    rule_of,
)
from kerasrlhf.data.records import Records
from kerasrlhf.data.sources import Source

RULE_COLUMN, ROW_COLUMN = "augmented_by", "augmented_from"
_NO_ORDER = (
    "A reward model and DPO score each response by itself: a pair in the other order is the same "
    "pair, and a pair with its labels swapped is a wrong one. For a model that reads both "
    "responses in one text, `rlhf.data.comparisons(pairs)` writes each pair in both orders."
)


def augment(
    records: Source,
    rules: Iterable[str],
    *,
    kind: str = "auto",
    texts: str = "auto",
    rate: float = 0.1,
    synonyms: str | Mapping[str, Sequence[str]] | Callable[[str], Iterable[str]] | None = None,
    templates: Sequence[str] | None = None,
    sample: Callable[[list], Any] | None = None,
    copies: int = 1,
    seed: int = 0,
) -> Augmented:
    """Adds records that named rules make from those that are there.

    Rules of words, which change about `rate` of the words of a text and at least one; marks of
    templates, numbers and words next to brackets stay:

    - `delete_words` deletes some.
    - `swap_words` lets some change places with the next one.
    - `replace_words` replaces some by one of their `synonyms`.

    Rules of prompts:

    - `wrap_prompts` puts one of `templates` around what the user says last.
    - `cut_prompts` removes the first turns of a dialogue. A text without turns loses at most half
      of its words, at the end if the records are prompts, otherwise at the start.

    Rules of preferences:

    - `unrelated_response` makes the chosen response to another prompt the rejected one.
    - `best_against_worst` takes the best and the worst of several responses of `sample`.

    There is no rule that swaps the order of a pair. A reward model, DPO and its relatives score
    each response by itself, so the other order is the same pair, and swapped labels would be
    noise. For a model that reads both responses, see `kerasrlhf.data.comparisons`.

    Split first: what is made from a record belongs on its side of a split. What a rule makes from a
    row depends on the seed, the number of the row and its record; for the rules of preferences
    also on the other rows.

    Args:
        records: What `kerasrlhf.data.read` accepts or returns: preferences, unpaired preferences,
            demonstrations or prompts, of strings or of messages.
        rules: list of str. Each applies to the original records.
        kind: str. As in `kerasrlhf.data.audit`. Defaults to `"auto"`: what the columns say.
        texts: str. Where rules of words apply: `"prompts"`, `"responses"`, `"all"`, or `"auto"`:
            to all texts of preferences, where chosen and rejected responses suffer alike, otherwise
            to prompts, because a damaged response would be imitated. Defaults to `"auto"`.
        rate: float, in (0, 1). The fraction of words. Defaults to 0.1.
        synonyms: dict from words in lower case to lists of str; a function of a word that returns
            a list; or `"wordnet"`: the package `wn` (extra `augment`) with an English lexicon,
            which it downloads once (`python -m wn download oewn:2024`). `replace_words` needs it.
        templates: list of str with `{prompt}`. `wrap_prompts` needs it.
        sample: Function of a list of prompts that returns a `kerasrlhf.BestOfN`, or a list of pairs
            with the columns `prompt`, `chosen` and `rejected`. `best_against_worst` needs it:
            `lambda prompts: rlhf.best_of_n(actor, reward, prompts, 4, sampler)`.
        copies: int, at least 1. How many records each rule adds for a row; fewer where they would
            be equal. Defaults to 1.
        seed: int, at least 0. Defaults to 0.

    Returns:
        `Augmented(records, report)`. Columns that a rule does not change are copied.

    Raises:
        ValueError: If a rule is unknown, does not fit the kind, or lacks the argument that it
            needs; if an argument is out of its range, or a row has not the texts of its kind.
        ImportError: If `synonyms="wordnet"` and `wn` is not installed.

    Example:
        >>> pairs = [{"prompt": "Who is Tom?", "chosen": "A very kind boy.", "rejected": "No."},
        ...          {"prompt": "Who is Mia?", "chosen": "She likes to sing.", "rejected": "Hm."}]
        >>> augmented = rlhf.data.augment(pairs, ["unrelated_response", "delete_words"])
        >>> augmented.records[2]["rejected"], augmented.records[2]["augmented_by"]
        ('She likes to sing.', 'unrelated_response')
        >>> print(augmented.report)
        2 records became 6.
          unrelated_response: 2 added
          delete_words: 2 added

    Reference:
        Wei and Zou 2019, "EDA" (arXiv 1901.11196), for the rules of words.
    """
    # 1. Arguments, before anything is read.
    names = _checked(rules)
    require_choice("kind", kind, ("auto", *KINDS))
    options = Options(texts, rate, synonyms, templates, sample, copies, seed)
    for rule in names:
        if rule in NEEDS and getattr(options, NEEDS[rule]) is None:
            raise ValueError(f"The rule {rule!r} needs `{NEEDS[rule]}`.")
    # 2. Records, and the texts in them.
    rows = records_lib.load(records, text_column="prompt" if kind == "prompts" else "text")
    reader = Reader(kind_of(rows) if kind == "auto" else kind, rows)
    all_parts = reader.all_parts(rows)
    _check_fit(names, reader, all_parts, options)
    # 3. Each rule makes records from all rows.
    records_added: Records = []
    report = AugmentReport(len(rows), {}, {})
    for rule in names:
        make, numbers = rule_of(rule, options, reader, rows, all_parts), []
        for row, record in enumerate(rows):
            seen = {_key(all_parts[row])}
            for copy in range(copies):
                parts, columns = make(row, copy)
                # What is equal to the record or to an earlier copy is nothing new.
                if _key(parts) in seen:
                    continue
                seen.add(_key(parts))
                new = {**reader.record(record, parts), **columns}
                records_added.append({**new, RULE_COLUMN: rule, ROW_COLUMN: row})
                numbers.append(row)
        report.added[rule] = tuple(numbers)
        report.unchanged[rule] = tuple(sorted({*range(len(rows))} - {*numbers}))
    return Augmented([*rows, *records_added], report)


def _key(parts: Parts) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def _checked(rules: Iterable[str]) -> list[str]:
    if isinstance(rules, str):
        raise ValueError(f"`rules` must be a list of names. Received: {rules!r}. Use [{rules!r}].")
    names = [*dict.fromkeys(rules)]
    if not names:
        raise ValueError(f"`rules` names no rule. Rules: {', '.join(RULES)}.")
    for name in names:
        if name in ("swapped_order", "swap_order"):
            raise ValueError(f"{name!r} is no rule. {_NO_ORDER}")
        if name not in RULES:
            raise ValueError(
                f"Unknown rule {name!r}.{nearest(str(name), RULES)} Rules: {', '.join(RULES)}."
            )
    return names


def _check_fit(names: list[str], reader: Reader, all_parts: list[Parts], options: Options) -> None:
    """Raises a `ValueError` for a rule that can do nothing with records of this kind."""
    has_prompts = any(parts.prompt is not None for parts in all_parts)
    of_prompts, of_responses = options.places(reader.kind)
    for rule in names:
        if rule in PAIR_RULES and reader.kind != "preferences":
            raise ValueError(f"The rule {rule!r} is for preferences. Received {reader.kind}.")
        if rule == "best_against_worst" and reader.is_ranking:
            raise ValueError(
                "The rule 'best_against_worst' makes pairs, and the records have rankings in "
                "'responses'. Make records with 'chosen' and 'rejected' first."
            )
        if rule in PROMPT_RULES and not has_prompts:
            raise ValueError(f"The rule {rule!r} changes prompts, and the records have none.")
        if rule in TEXT_RULES and not of_responses and not has_prompts:
            raise ValueError(
                f"The rule {rule!r} changes prompts, and the records have none, only whole texts. "
                'Pass `texts="responses"` to change those.'
            )
        if rule in TEXT_RULES and not of_prompts and reader.kind == "prompts":
            raise ValueError('Prompts have no responses. `texts="responses"` changes nothing.')
