"""From a source to a dataset: the steps that all loaders of `kerasrlhf.data` share."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from kerasrlhf import tokens
from kerasrlhf.data import dialogue
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.records import Records
from kerasrlhf.data.sources import Source
from kerasrlhf.data.tokenized import Batching, TokenizedDataset

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor, Tokenizer

_SHOWN = 5


class Texts(NamedTuple):
    """The texts and columns that a loader finds in records.

    Attributes:
        prompts: list of str.
        candidates: list of lists of str, or of token ids; see `rows.encode`.
        ended: lists of bool like the candidates, or None.
        columns: dict of lists or arrays `(rows, ...)` that go with the rows.
    """

    prompts: list[str]
    candidates: list[list[Any]]
    ended: list[list[bool]] | None
    columns: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How records become rows of token ids.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        max_length: int or None. Tokens per row at most. Defaults to the preprocessor's
            `sequence_length`.
        end_token_id: int, `"auto"` or None. See `kerasrlhf.tokens.end_ids`. Defaults to `"auto"`.
        template: str or callable. See `kerasrlhf.data.dialogue`. Defaults to `"plain"`.
        parse_special: bool. Whether special tokens that are written in a record become these
            tokens. Defaults to False.
        on_error: `"raise"` or `"skip"`. See `kerasrlhf.data.records.select`.
        drop_longer_than: int or None. Rows of more tokens are left out. Defaults to None.

    Raises:
        ValueError: If the template is unknown, or the preprocessor is something else or has no
            tokenizer.
    """

    preprocessor: CausalLMPreprocessor
    _: dataclasses.KW_ONLY
    max_length: int | None = None
    end_token_id: int | str | None = "auto"
    template: Template = "plain"
    parse_special: bool = False
    on_error: str = "raise"
    drop_longer_than: int | None = None

    def __post_init__(self) -> None:
        dialogue.check_template(self.template)
        if hasattr(self.preprocessor, "backbone") or hasattr(self.preprocessor, "causal_lm"):
            raise ValueError(
                "`preprocessor` must be a keras-hub `CausalLMPreprocessor`, such as "
                f"`causal_lm.preprocessor`. Received: a {type(self.preprocessor).__name__}."
            )
        tokens.tokenizer_of(self.preprocessor)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the preprocessor."""
        return tokens.tokenizer_of(self.preprocessor)

    def encode(self, texts: Texts) -> rows_lib.Rows:
        """Returns the token ids of texts, see `kerasrlhf.data.rows.encode`."""
        return rows_lib.encode(
            texts.prompts,
            texts.candidates,
            self.preprocessor,
            self.max_length,
            self.end_token_id,
            texts.ended,
            turn_end=dialogue.turn_end(self.template),
            drop_longer_than=self.drop_longer_than,
        )


def load(
    source: Source,
    read: Callable[[Records], Texts],
    arrays: Callable[[rows_lib.Rows, dict[str, list]], Any],
    encoding: Encoding,
    batching: Batching,
    text_column: str = "text",
) -> TokenizedDataset:
    """Turns a source into a dataset: reads, checks, selects, encodes and batches its rows.

    Args:
        source: What a loader accepts.
        read: Function of a list of records that returns `Texts`. Its errors name rows.
        arrays: Function of the encoded rows and the columns that go with them, which returns a
            structure of arrays `(rows, ...)`.
        encoding: `Encoding`.
        batching: `Batching`.
        text_column: str. The column that plain strings become. Defaults to `"text"`.

    Returns:
        `TokenizedDataset`.

    Raises:
        ValueError: If the source or a row cannot be used, or no batch is left.
    """
    # 1. Records, with typed special tokens marked as text.
    records = records_lib.load(source, text_column=text_column)
    batching.check_rows(len(records))
    records_lib.warn_of_ignored_keys(records, encoding.template)
    if not encoding.parse_special:
        records = records_lib.guarded(records, encoding.tokenizer)
    # 2. Their texts, without the rows that cannot be used.
    texts, skipped = records_lib.select(records, read, encoding.on_error)
    if skipped:
        reasons = "; ".join(f"row {row}: {why}" for row, why in [*skipped.items()][:_SHOWN])
        warnings.warn(
            f"{len(skipped)} of {len(records)} rows cannot be used and were left out ({reasons}"
            f"{'; ...' if len(skipped) > _SHOWN else ''}).",
            stacklevel=3,
        )
    # 3. Token ids, without the rows that are too long.
    rows = encoding.encode(texts)
    used = [number for number in range(len(records)) if number not in skipped]
    dropped = tuple(used[number] for number in rows.report.dropped)
    report = rows.report._replace(dropped=dropped, skipped=tuple(skipped))
    batching.check_rows(report.rows)
    # Encoding may leave out rows; their columns go with them.
    columns = {name: [column[i] for i in rows.kept] for name, column in texts.columns.items()}
    # 4. Arrays of one length, and their batches.
    return batching.batches(arrays(rows, columns), report.rows, report, encoding.tokenizer)
