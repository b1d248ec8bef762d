"""From a source to encoded rows: what all loaders of `kerasrlhf.data` have in common."""

import warnings
from typing import Any, NamedTuple

from kerasrlhf import tokens
from kerasrlhf.data import dialogue
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.tokenized import check_batching


class Texts(NamedTuple):
    """What a loader reads from records.

    Attributes:
        prompts: List of `str`.
        candidates: List of lists of `str`, or of token ids; see `rows.encode`.
        ended: Lists of `bool` like the candidates, or `None`.
        columns: Dict of lists or arrays `(rows, ...)` that go with the rows.
    """

    prompts: list
    candidates: list
    ended: list | None
    columns: dict


class Loaded(NamedTuple):
    """Encoded rows and what goes with them.

    Attributes:
        rows: `kerasrlhf.data.rows.Rows`.
        columns: Dict of lists, of the rows that are left.
    """

    rows: Any
    columns: dict


def load(
    source,
    read,
    preprocessor,
    *,
    batch_size,
    seed,
    drop_remainder,
    split,
    data_dir,
    max_length,
    template,
    on_error,
    parse_special,
    drop_longer_than,
    end_token_id=None,
    text_column="text",
):
    """Reads, checks, selects and encodes the rows of a source.

    Args:
        source: As the loaders take it.
        read: Function of a list of records that returns `Texts`; its errors name rows.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size, seed, drop_remainder: See `kerasrlhf.data.tokenized.check_batching`.
        split, data_dir, text_column: See `kerasrlhf.data.records.load`.
        max_length, template, on_error, parse_special, drop_longer_than: As the loaders take them.
        end_token_id: As `kerasrlhf.data.rows.encode`.

    Returns:
        `Loaded`.

    Raises:
        ValueError: If an argument, the source or a row cannot be used.
    """
    dialogue.check_template(template)
    if hasattr(preprocessor, "backbone") or hasattr(preprocessor, "causal_lm"):
        raise ValueError(
            "`preprocessor` must be a keras-hub `CausalLMPreprocessor`, such as "
            f"`causal_lm.preprocessor`. Received: a {type(preprocessor).__name__}."
        )
    tokenizer = tokens.tokenizer_of(preprocessor)
    records = records_lib.load(source, split=split, data_dir=data_dir, text_column=text_column)
    check_batching(batch_size, len(records), seed=seed, drop_remainder=drop_remainder)
    records_lib.warn_of_ignored_keys(records, template)
    if not parse_special:
        records = records_lib.guarded(records, tokenizer)
    texts, skipped = records_lib.select(records, read, on_error)
    if skipped:
        reasons = "; ".join(f"row {row}: {why}" for row, why in [*skipped.items()][:5])
        warnings.warn(
            f"{len(skipped)} of {len(records)} rows cannot be used and were left out ({reasons}"
            f"{'; ...' if len(skipped) > 5 else ''}).",
            stacklevel=3,
        )
    rows = rows_lib.encode(
        texts.prompts,
        texts.candidates,
        preprocessor,
        max_length,
        end_token_id,
        texts.ended,
        turn_end=turn_end(template),
        drop_longer_than=drop_longer_than,
    )
    rows = rows._replace(report=rows.report._replace(skipped=tuple(skipped)))
    check_batching(batch_size, rows.report.rows, seed=seed, drop_remainder=drop_remainder)
    columns = {name: [column[i] for i in rows.kept] for name, column in texts.columns.items()}
    return Loaded(rows, columns)


def turn_end(template):
    """The special token that a template ends a turn with, or `None`."""
    return None if callable(template) else dialogue.TURN_ENDS.get(template)
