"""Summaries of documents, compared with reference summaries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kerasrlhf.data.records import Record
from kerasrlhf.tasks import libraries, rules
from kerasrlhf.tasks.task import Task, column

_KINDS = ("rouge1", "rouge2", "rougeL")


class Summarization(Task):
    r"""Short summaries, scored by ROUGE and by rules.

    Records have `document`, and `summaries` (a list) or `summary`. With several references the
    best score counts. The reward has three parts: `rouge` (the F score of the longest common
    subsequence), `length` (a rule that leaves a range of words free) and `repetition` (the fraction
    of repeated pairs of words, with a negative weight), so that a summary gains nothing from
    repeated or many words.

    Args:
        template: str. The prompt, with `{document}`. Defaults to
            `"Text: {document}\nSummary:"`.
        document_words: int or None. Words of a document that are kept. Defaults to None: all.
        words: tuple of two ints. Fewest and most words of a summary without a penalty. Defaults to
            `(8, 40)`.
        length_weight: float. Weight of `length`. Defaults to 0.5.
        repetition_weight: float. Weight of `repetition`, not above 0. Defaults to -0.5.
        length: int. Most tokens of a response. Defaults to 64.

    Raises:
        ValueError: If `words` is no range.

    Example:
        >>> task = rlhf.tasks.Summarization(document_words=4)
        >>> record = {"document": "The cat sat on the mat all day.", "summary": "A cat sat."}
        >>> task.demonstrations([record])
        [{'prompt': 'Text: The cat sat on\nSummary:', 'response': ' A cat sat.'}]
        >>> list(task.rewards())
        ['rouge', 'length', 'repetition']
    """

    stop_strings = ("\n",)

    def __init__(
        self,
        template: str = "Text: {document}\nSummary:",
        document_words: int | None = None,
        words: tuple[int, int] = (8, 40),
        length_weight: float = 0.5,
        repetition_weight: float = -0.5,
        length: int = 64,
    ) -> None:
        self.template, self.document_words, self.length = template, document_words, length
        self.rule = rules.length_rule(*words)
        self.length_weight, self.repetition_weight = length_weight, repetition_weight

    def prompt(self, record: Record) -> str:
        """Returns the template with the document, or as many words of it as are kept."""
        document = column(record, "document")
        if self.document_words is not None:
            document = " ".join(document.split()[: self.document_words])
        return self.template.format(document=document)

    def target(self, record: Record) -> str | None:
        """Returns a blank and the first reference; None without references."""
        found = references(record)
        return f" {found[0].strip()}" if found else None

    def prompts(self, records: Any) -> list[Record]:
        """Returns records as `Task.prompts` does, with the column `references`."""
        records = [*records]
        made = zip(super().prompts(records), records, strict=True)
        return [{**prompt, "references": references(record)} for prompt, record in made]

    def rewards(self) -> dict[str, Any]:
        """Returns `rouge`, `length` and `repetition`."""
        return {
            "rouge": functools.partial(rouge, kind="rougeL"),
            "length": (self.rule, self.length_weight),
            "repetition": (rules.repetition, self.repetition_weight),
        }

    def metrics(self) -> dict[str, Callable]:
        """Returns `rouge1`, `rouge2`, `rougeL`, `words` and `repetition`."""
        scores = {kind: functools.partial(rouge, kind=kind) for kind in _KINDS}
        return {**scores, "words": rules.words, "repetition": rules.repetition}


def references(record: Record) -> list[str]:
    """Returns the reference summaries of a record, maybe none.

    Args:
        record: dict with `summaries` or `summary`.

    Example:
        >>> rlhf.tasks.summarization.references({"summary": "Short."})
        ['Short.']
    """
    found = record.get("summaries") or record.get("summary") or []
    return [found] if isinstance(found, str) else [*found]


def rouge(responses: list[str], references: list[list[str]], kind: str = "rougeL") -> list[float]:
    """Computes the ROUGE F score of each response, with its best reference.

    Words are stemmed, as in most publications.

    Args:
        responses: list of str.
        references: list of lists of str.
        kind: `"rouge1"`, `"rouge2"` or `"rougeL"`. Defaults to `"rougeL"`.

    Returns:
        List of float, in [0, 1].

    Raises:
        ValueError: If the package `rouge-score` is not installed, or a response has no reference.

    Example:
        >>> rlhf.tasks.summarization.rouge(["the cat sat"], [["the cat", "a dog"]])
        [0.8]

    Reference:
        Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    if not all(references):
        raise ValueError("ROUGE needs at least one reference summary of every response.")
    scorer = _scorer(kind)
    return [
        max(scorer.score(reference, response)[kind].fmeasure for reference in wanted)
        for response, wanted in zip(responses, references, strict=True)
    ]


@functools.cache
def _scorer(kind: str) -> Any:
    module = libraries.load("rouge_score.rouge_scorer", "rouge-score", "Scoring summaries")
    return module.RougeScorer([kind], use_stemmer=True)
