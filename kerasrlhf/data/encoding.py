"""What the loaders of `kerasrlhf.data` find in records, and how it becomes token ids."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from kerasrlhf import tokens
from kerasrlhf.data import dialogue
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.dialogue import Template

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor, Tokenizer


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

    def without_first(self) -> Texts:
        """Returns the texts and columns of all rows but the first."""
        return Texts(
            self.prompts[1:],
            [column[1:] for column in self.candidates],
            None if self.ended is None else [column[1:] for column in self.ended],
            {name: column[1:] for name, column in self.columns.items()},
        )


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

    @property
    def limit(self) -> int:
        """How many tokens a row has at most."""
        return rows_lib.limit_of(self.preprocessor, self.max_length)

    def encode(self, texts: Texts, warns: bool = True) -> rows_lib.Rows:
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
            warns=warns,
        )
