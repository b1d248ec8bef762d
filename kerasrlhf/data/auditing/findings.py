"""Findings of an audit: what they are called, what they mean and what to do about them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kerasrlhf.data.auditing.corpus import Corpus

SEVERITIES = ("error", "warning", "note")
_EXAMPLES = 3
_SHOWN = 160
# Neither a terminal nor a page shows these; HTML forbids most of them.
_HIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Meaning(NamedTuple):
    """What all findings of a name have in common.

    Attributes:
        severity: str. `"error"` for what breaks training or its evaluation, `"warning"` for what
            probably harms, `"note"` for what is worth knowing.
        meaning: str. What is the case, and why it matters.
        advice: str. What to do.
        is_rule: bool. Whether `kerasrlhf.data.clean` can remove the rows.
    """

    severity: str
    meaning: str
    advice: str
    is_rule: bool = True


class Example(NamedTuple):
    """A row of a finding.

    Attributes:
        row: int. Its number.
        texts: dict from str, the name of a column, to str, its text, shortened.
        related_row: int or None. The row that it repeats; a held-out one for leaks.
    """

    row: int
    texts: dict[str, str]
    related_row: int | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        name: str. Also the name of the rule that removes the rows, if there is one.
        severity: str. `"error"`, `"warning"` or `"note"`.
        rows: tuple of int. The rows, counted from 0.
        related: tuple of int. For each of `rows` the row that it repeats; a row of the held-out
            records for leaks. Empty where there is none.
        detail: str. Figures of this finding.
        meaning: str. What it means.
        advice: str. What to do.
        is_rule: bool. Whether `kerasrlhf.data.clean` has a rule of this name.
        examples: tuple of `Example`. The first rows.
    """

    name: str
    severity: str
    rows: tuple[int, ...]
    related: tuple[int, ...] = dataclasses.field(repr=False)
    detail: str
    meaning: str = dataclasses.field(repr=False)
    advice: str = dataclasses.field(repr=False)
    is_rule: bool = dataclasses.field(repr=False)
    examples: tuple[Example, ...] = dataclasses.field(repr=False)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Finding({self.name!r}, {self.severity!r}, count={self.count})"

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as values that JSON can express."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["rows"], fields["related"] = list(self.rows), list(self.related)
        fields["examples"] = [example._asdict() for example in self.examples]
        return {"count": self.count, **fields}


def finding(
    name: str,
    corpus: Corpus,
    rows: Sequence[int] | np.ndarray,
    related: Sequence[int] | np.ndarray = (),
    detail: str = "",
) -> list[Finding]:
    """Returns a list of the finding of a name, or an empty one if there are no rows.

    Args:
        name: str, one of `MEANINGS`.
        corpus: `Corpus` that the rows are of.
        rows: int array or list.
        related: int array or list, as in `Finding`. Defaults to none.
        detail: str. Defaults to none.

    Returns:
        list of at most one `Finding`.
    """
    numbers, others = tuple(map(int, rows)), tuple(map(int, related))
    if not numbers:
        return []
    examples = tuple(
        Example(
            row,
            {column: shown(texts[row]) for column, texts in corpus.columns.items()},
            others[place] if others else None,
        )
        for place, row in enumerate(numbers[:_EXAMPLES])
    )
    severity, meaning, advice, is_rule = MEANINGS[name]
    return [Finding(name, severity, numbers, others, detail, meaning, advice, is_rule, examples)]


def number_of(count: int, name: str) -> str:
    """Returns how many things of a name there are.

    Example:
        >>> number_of(1, "row"), number_of(2, "row")
        ('1 row', '2 rows')
    """
    return f"{count} {name}{'s' * (count != 1)}"


def shown(text: str, size: int = _SHOWN) -> str:
    r"""Returns a text as people can see it: shortened, with hidden characters written out.

    Example:
        >>> shown("Tom\x00 was sad.", 8)
        'Tom\\x00 was...'
    """
    short = text if len(text) <= size else f"{text[:size]}..."
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], short)


_REPEATED = "Repeated texts count several times in training and make a set look larger than it is."
_LEAKED = "What is measured on the held-out records is then partly memory, and too good."
_TEXT = "Look at the rows; mend the texts where they come from, or remove the rows."
_BIASED = (
    "A reward model can learn this feature instead of quality, and a policy then produces it. This "
    "accuracy is what a reward model has to beat."
)
_BALANCE = (
    "Compare a reward model with this accuracy, also on the pairs in which the rule is wrong; "
    "collect or sample pairs that break the rule. The rows are the pairs that follow it."
)


def _bias(feature: str) -> Meaning:
    meaning = f"{feature} tells which response is chosen. {_BIASED}"
    return Meaning("warning", meaning, _BALANCE, is_rule=False)


MEANINGS = {
    # Texts
    "empty_texts": Meaning(
        "error", "A text is empty or white space. The loaders refuse such rows.", _TEXT
    ),
    "lone_surrogates": Meaning(
        "error",
        "A text has half of a character (a lone surrogate), as texts have that were cut in the "
        "middle of an emoji. The loaders refuse such rows.",
        _TEXT,
    ),
    "replacement_characters": Meaning(
        "warning",
        "A text has the character U+FFFD, which replaces bytes that could not be decoded: "
        "something was lost.",
        _TEXT,
    ),
    "mojibake": Meaning(
        "warning",
        "UTF-8 was decoded as another encoding, so that an apostrophe became 'â€™'. A policy "
        "learns to write such characters.",
        "Mend the texts (`text.encode('cp1252').decode('utf-8')`), or remove the rows.",
    ),
    "control_characters": Meaning(
        "warning",
        "A text has control characters other than tabs and line breaks, remains of a terminal or "
        "of another encoding.",
        _TEXT,
    ),
    "html_entities": Meaning(
        "note",
        "A text has HTML entities such as '&amp;' outside of code: it was taken from a page and "
        "not unescaped.",
        "Mend the texts with `html.unescape`.",
    ),
    "other_script": Meaning(
        "note",
        "Most letters of a text are of another script than those of nearly all others. That may be "
        "intended, as in translations, or rows of another language.",
        "Look at the rows, and remove those of languages that the model is not meant for.",
    ),
    # Repetition
    "duplicate_records": Meaning(
        "warning",
        "All texts of a row are the same as those of an earlier row, but for case and white space. "
        + _REPEATED,
        "Remove them: the first of each is kept. Keep them if several people judged each pair.",
    ),
    "near_duplicate_records": Meaning(
        "warning",
        "All texts of a row are nearly those of an earlier row. " + _REPEATED,
        "Look at some, and remove them if they say the same: the first of each is kept.",
    ),
    **{
        f"duplicate_{texts}": Meaning(
            "note",
            f"The {text} of a row is the same as that of an earlier row, but for case and white "
            f"space. {why}",
            "Look at the most frequent ones. Removing the rows keeps the first of each.",
        )
        for texts, text, why in (
            (
                "prompts",
                "prompt",
                "Rows of one prompt belong on one side of a split.",
            ),
            ("chosen", "chosen response", "A phrase that is always chosen becomes a habit."),
            ("rejected", "rejected response", "A phrase that is always rejected is easy to tell."),
            ("responses", "response", "A phrase that many rows have becomes a habit."),
        )
    },
    **{
        f"near_duplicate_{texts}": Meaning(
            "note",
            f"The {text} of a row has nearly the words of that of an earlier row.",
            "Look at some: texts made from one pattern teach less than their number suggests.",
        )
        for texts, text in (
            ("prompts", "prompt"),
            ("chosen", "chosen response"),
            ("rejected", "rejected response"),
            ("responses", "response"),
        )
    },
    # Leakage
    "leaked_prompts": Meaning(
        "error",
        "The prompt is one of the held-out records, but for case and white space. " + _LEAKED,
        "Remove the rows from the training records, or split by prompt.",
    ),
    "near_leaked_prompts": Meaning(
        "warning",
        "The prompt has nearly the words of a held-out one. " + _LEAKED,
        "Look at some. Remove the rows if the prompts ask for the same.",
    ),
    "leaked_responses": Meaning(
        "warning",
        "A response of five words or more is also in the held-out records. " + _LEAKED,
        "Look at some: set phrases, such as refusals, do no harm. Otherwise remove the rows.",
    ),
    "near_leaked_responses": Meaning(
        "note",
        "A response has nearly the words of a held-out one. " + _LEAKED,
        "Look at some: set phrases, such as refusals, do no harm. Otherwise remove the rows.",
    ),
    # Lengths
    "cut_prompts": Meaning(
        "warning",
        "The prompt has more than `prompt_length` tokens and would lose its first words.",
        "Raise `prompt_length`, shorten the prompts, or remove the rows.",
    ),
    "cut_responses": Meaning(
        "warning",
        "A response has more than `response_length` tokens and would lose its end.",
        "Raise `response_length`, or remove the rows.",
    ),
    "identical_after_truncation": Meaning(
        "error",
        "The responses differ only beyond `response_length` tokens, so that a pair of equal token "
        "ids has a preference.",
        "Raise `response_length`, or remove the rows.",
    ),
    # Preferences and labels
    "identical_responses": Meaning(
        "error",
        "Two responses of a row are the same text: there is nothing to prefer, and the pair adds "
        "noise only.",
        "Remove the rows.",
    ),
    "contradictory_pairs": Meaning(
        "error",
        "The same two responses to the same prompt are in the data in both orders: one of the "
        "labels is wrong, or they are a matter of taste.",
        "Remove both, or keep what the majority of several judges said.",
    ),
    "preference_cycles": Meaning(
        "warning",
        "Preferences over the responses of a prompt run in a circle (A over B, B over C, C over "
        "A), which no score can express.",
        "Look at the rows: one of them is wrong. Removing the rows removes the whole circle.",
    ),
    "contradictory_labels": Meaning(
        "error",
        "The same response to the same prompt is labeled wanted and unwanted.",
        "Remove both, or keep what the majority of several judges said.",
    ),
    "class_imbalance": Meaning(
        "warning",
        "One of the labels is rare. A loss that counts all rows alike hardly sees it.",
        "Weight the rare class, or collect more of it. The rows are those of the rare label.",
        False,
    ),
    "label_noise": Meaning(
        "warning",
        "A model that was not trained on the row contradicts its label with confidence. The row is "
        "mislabeled, or the model is wrong about it: the most suspicious rows come first.",
        "Look at the first rows, and relabel or remove the wrong ones.",
    ),
    "length_bias": _bias("Length"),
    "overlap_bias": _bias("How many of its words are in the prompt"),
    "list_bias": _bias("The number of list items"),
    "heading_bias": _bias("The number of headings"),
    "bold_bias": _bias("The number of bold passages"),
    "code_bias": _bias("The number of code passages"),
    "exclamation_bias": _bias("The number of exclamation marks"),
    "question_bias": _bias("The number of question marks"),
    "position_bias": Meaning(
        "warning",
        "Responses shown in one place are chosen more often than those in the other, whatever "
        "they say.",
        "Show each pair in both orders, or in a random one. The rows are those of the place that "
        "is chosen more often.",
        False,
    ),
}
RULES = tuple(name for name, meaning in MEANINGS.items() if meaning.is_rule)
