"""The texts of records, as the checks of an audit read them."""

from __future__ import annotations

import array
import collections
import dataclasses
import functools
import itertools
import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.records import Records
from kerasrlhf.data.sources import Source

KINDS = ("preferences", "unpaired_preferences", "demonstrations", "prompts")
_MARKS = {
    "preferences": ("chosen", "responses"),
    "demonstrations": ("response", "completion", "text", "messages"),
    "prompts": ("prompt",),
}
# Characters of scripts that write no spaces are words by themselves.
_ALONE = "\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
# The same for ASCII, several times as fast: word characters in lower case, all others as a space.
_ASCII = {
    code: chr(code).lower() if chr(code).isalnum() or chr(code) == "_" else " "
    for code in range(128)
}


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of some texts as numbers, one text after the other.

    Attributes:
        ids: int32 array `(words,)`.
        starts: int64 array `(texts + 1,)`. Text `i` is `ids[starts[i]:starts[i + 1]]`.
    """

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.starts[row] : self.starts[row + 1]]

    @property
    def counts(self) -> np.ndarray:
        """The words of each text, int64 `(texts,)`."""
        return np.diff(self.starts)

    @property
    def rows(self) -> np.ndarray:
        """The text that each word is in, int64 `(words,)`."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, rows: np.ndarray) -> Words:
        """Returns the words of some of the texts."""
        counts = self.counts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(starts[-1]) + np.repeat(self.starts[:-1][rows] - starts[:-1], counts)
        return Words(self.ids[places], starts)

    def followed_by(self, other: Words) -> Words:
        """Returns these texts and then those of another one."""
        starts = np.concatenate([self.starts, self.starts[-1] + other.starts[1:]])
        return Words(np.concatenate([self.ids, other.ids]), starts)


class Numbering:
    """Numbers texts and words in the order in which they are first seen.

    What is compared with each other must be numbered by one object.
    """

    def __init__(self) -> None:
        self._texts: dict[str, int] = collections.defaultdict(itertools.count().__next__)
        self._words: dict[str, int] = collections.defaultdict(itertools.count().__next__)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns a number per text, int64; texts that differ in case or white space have one."""
        return np.fromiter(
            map(self._texts.__getitem__, map(normalized, texts)), "int64", len(texts)
        )

    def words(self, texts: Sequence[str]) -> Words:
        """Returns the words of texts in lower case."""
        ids, starts = array.array("i"), [0]
        for text in texts:
            ids.extend(map(self._words.__getitem__, words_of(text)))
            starts.append(len(ids))
        return Words(np.array(ids, "int32"), np.array(starts, "int64"))


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation.

    Example:
        >>> words_of("Tom's dog, Übermut: 你好")
        ['tom', 's', 'dog', 'übermut', '你', '好']
    """
    if text.isascii():
        return text.translate(_ASCII).split()
    return _WORD.findall(text.lower())


def normalized(text: str) -> str:
    r"""Returns a text without differences of case, white space, quotation marks and Unicode form.

    Example:
        >>> normalized("Tom’s  dog\n was SAD. ")
        "tom's dog was sad."
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return " ".join(text.casefold().split())


class Corpus:
    """The texts of records in columns, numbered, each computed when it is first needed.

    Args:
        kind: str, one of `KINDS`.
        records: list of dict.
        columns: dict of lists of str: `prompt` if there is one; then `chosen`, of a ranking also
            `response 2` and so on, and `rejected`; or `response`.
        numbering: `Numbering`.
        labels: float32 array `(rows,)` of 1 and 0, or None.
        margins: array `(rows,)` of numbers, a callable, or None. See `kerasrlhf.data.audit`.
    """

    def __init__(
        self,
        kind: str,
        records: Records,
        columns: dict[str, list[str]],
        numbering: Numbering,
        labels: np.ndarray | None = None,
        margins: Any = None,
    ) -> None:
        self.kind, self.records, self.columns = kind, records, columns
        self.numbering, self.labels, self.margins = numbering, labels, margins
        # What checks compute once: scripts and token ids by column, leads by feature, margins.
        self.scripts: dict[str, list[str | None]] | None = None
        self.tokens: dict[str, list[list[int]]] | None = None
        self.leads: dict[str, np.ndarray] = {}
        self.computed_margins: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def responses(self) -> list[str]:
        """The names of the columns of responses, best first."""
        return [name for name in self.columns if name != "prompt"]

    @functools.cached_property
    def keys(self) -> dict[str, np.ndarray]:
        """Numbers of the texts by column: the same for texts that are alike when normalized."""
        return {name: self.numbering.texts(texts) for name, texts in self.columns.items()}

    @functools.cached_property
    def words(self) -> dict[str, Words]:
        """Words by column."""
        return {name: self.numbering.words(texts) for name, texts in self.columns.items()}

    @functools.cached_property
    def prompt_keys(self) -> np.ndarray:
        """Numbers of the prompts; without a column of prompts each row has its own."""
        return self.keys.get("prompt", np.arange(len(self)))

    @functools.cached_property
    def record_keys(self) -> np.ndarray:
        """Numbers of the records, which are alike if all their texts and labels are."""
        parts = [*self.keys.values()]
        if self.labels is not None:
            parts.append(self.labels.astype("int64"))
        return np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)[1].reshape(-1)

    def take(self, rows: np.ndarray) -> Corpus:
        """Returns the corpus of some of the rows, with what has been computed of it."""
        numbers = rows.tolist()
        kept = Corpus(
            self.kind,
            [self.records[i] for i in numbers],
            {name: [texts[i] for i in numbers] for name, texts in self.columns.items()},
            self.numbering,
            None if self.labels is None else self.labels[rows],
            self.margins if self.margins is None or callable(self.margins) else self.margins[rows],
        )
        if "keys" in vars(self):
            kept.keys = {name: keys[rows] for name, keys in self.keys.items()}
        if "words" in vars(self):
            kept.words = {name: words.take(rows) for name, words in self.words.items()}
        return kept


def read(
    source: Source,
    kind: str = "auto",
    template: Template = "plain",
    numbering: Numbering | None = None,
    margins: Any = None,
) -> Corpus:
    """Reads a source, and refuses records that have no texts to look at.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns.
        kind: str, one of `KINDS`, or `"auto"`: what the columns say. Defaults to `"auto"`.
        template: str or callable. See `kerasrlhf.data.dialogue`. Defaults to `"plain"`.
        numbering: `Numbering`, or None for a new one. Defaults to None.
        margins: As in `Corpus`.

    Returns:
        `Corpus`.

    Raises:
        ValueError: If a row has not the columns of its kind, or no text in one of them.
    """
    records = records_lib.load(source, text_column="prompt" if kind == "prompts" else "text")
    kind = kind_of(records) if kind == "auto" else kind
    labels = None
    with warnings.catch_warnings():
        # Loaders warn of pairs that part early when they are used.
        warnings.simplefilter("ignore")
        if kind == "preferences":
            prompts, *responses = records_lib.preference_texts(records, template, strict=False)
            between = [f"response {i}" for i in range(2, len(responses))]
            columns = dict(zip(["chosen", *between, "rejected"], responses, strict=True))
        elif kind == "prompts":
            prompts, columns = records_lib.prompt_texts(records, template, strict=False), {}
        else:
            if kind == "unpaired_preferences":
                labels = columns_lib.labels(records)
            prompts, texts = records_lib.demonstration_texts(records, template, strict=False)
            columns = {"response": texts}
    if any(prompts) or any("prompt" in row for row in records):
        columns = {"prompt": prompts, **columns}
    if margins is not None and not callable(margins):
        margins = _checked_margins(margins, len(records))
    return Corpus(kind, records, columns, numbering or Numbering(), labels, margins)


def kind_of(records: Records) -> str:
    """Returns the function of `kerasrlhf.data` that the columns of records are for.

    Raises:
        ValueError: If they are for none.

    Example:
        >>> kind_of([{"prompt": "a", "chosen": "b", "rejected": "c"}]), kind_of([{"prompt": "a"}])
        ('preferences', 'prompts')
    """
    names = {name for row in records for name in row}
    kind = next((kind for kind, marks in _MARKS.items() if names & {*marks}), None)
    if kind is None:
        raise ValueError(
            "Records need `prompt`, `chosen` and `rejected`; or `prompt` and `response`; or "
            f"`text`; or `messages`; or `prompt`. Found columns: {sorted(map(str, names))}."
        )
    if kind == "demonstrations" and "label" in names and names & {"response", "completion"}:
        return "unpaired_preferences"
    return kind


def _checked_margins(margins: Any, rows: int) -> np.ndarray:
    try:
        values = np.asarray(margins, "float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`margins` must be numbers, one per record: {error}.") from error
    if values.shape != (rows,):
        raise ValueError(
            f"`margins` must be one number per record, {rows} in all. Received an array of the "
            f"shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"`margins` must be finite. Row {np.argmin(np.isfinite(values))} is not.")
    return values
