"""The texts of a record that rules change, and the record with other texts."""

from __future__ import annotations

from typing import NamedTuple

from kerasrlhf.data import dialogue
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.records import Record, Records, Text

_RESPONSES = ("response", "completion", "text", "messages")
_OF_PAIRS = ("chosen", "rejected")


class Parts(NamedTuple):
    """The texts of a record, as strings or messages.

    Attributes:
        prompt: str, list of messages, or None if there is none.
        responses: list of str or of lists of messages, best first. Empty for prompts.
    """

    prompt: Text | None
    responses: list[Text]


class Reader:
    """Takes records of one kind apart and puts them together again.

    Args:
        kind: str. `"preferences"`, `"unpaired_preferences"`, `"demonstrations"` or `"prompts"`.
        records: list of dict. All records, whose columns say where the responses are.

    Example:
        >>> record = {"messages": [{"role": "user", "content": "Hi"},
        ...                        {"role": "assistant", "content": "Yes?"}]}
        >>> reader = Reader("demonstrations", [record])
        >>> parts = reader.parts(record)
        >>> parts.prompt
        [{'role': 'user', 'content': 'Hi'}]
        >>> reader.record(record, parts) == record
        True
    """

    def __init__(self, kind: str, records: Records) -> None:
        self.kind = kind
        self._column: str | None = None
        if kind == "preferences":
            is_ranking = not any("chosen" in row for row in records)
            self._column = "responses" if is_ranking else None
        elif kind != "prompts":
            # The column that the loader of demonstrations reads in all rows.
            self._column = next(
                (name for name in _RESPONSES if any(name in row for row in records)), "response"
            )

    @property
    def is_ranking(self) -> bool:
        """Whether the records have a list of `responses`."""
        return self._column == "responses"

    def all_parts(self, records: Records) -> list[Parts]:
        """Returns the texts of all records.

        Raises:
            ValueError: If a record lacks a text; the rows are named.
        """
        pairs = [(row, self._tried(row)) for row in records]
        # The message shows the first row with the reason.
        records_lib.refuse(
            pairs, lambda pair: isinstance(pair[1], str), f"have not the texts of {self.kind}"
        )
        return [parts for _, parts in pairs if not isinstance(parts, str)]

    def _tried(self, record: Record) -> Parts | str:
        """Returns the texts of a record, or why it has none."""
        try:
            parts = self.parts(record)
        except KeyError as error:
            return f"there is no column {error}"
        except (ValueError, TypeError, AttributeError) as error:
            return str(error)
        texts = [*parts.responses] if parts.prompt is None else [parts.prompt, *parts.responses]
        if not all(map(records_lib.is_text, texts)):
            return "a text is neither a string nor a list of messages"
        return parts

    def parts(self, record: Record) -> Parts:
        """Returns the texts of a record."""
        if self.kind == "prompts":
            return Parts(record["prompt"], [])
        if self.is_ranking:
            return Parts(record["prompt"], [*record["responses"]])
        if self.kind == "preferences":
            prompt, chosen, rejected, _ = records_lib.split_pair(record)
            return Parts(prompt, [chosen, rejected])
        value = record[self._column]
        if self._has_dialogue(record):
            return Parts(value[:-1], [value[-1:]])
        return Parts(None if self._column == "text" else record["prompt"], [value])

    def _has_dialogue(self, record: Record) -> bool:
        """Returns whether the column of a demonstration holds its prompt, too."""
        value = record[self._column]
        return not isinstance(value, str) and (
            self._column in ("text", "messages") or dialogue.is_dialogue(value)
        )

    def record(self, record: Record, parts: Parts) -> Record:
        """Returns a copy of a record with other texts."""
        if self.kind == "prompts":
            return {**record, "prompt": parts.prompt}
        if self.is_ranking:
            return {**record, "prompt": parts.prompt, "responses": [*parts.responses]}
        if self.kind == "preferences":
            texts = dict(zip(_OF_PAIRS, parts.responses, strict=True))
            return {**record, "prompt": parts.prompt, **texts}
        (response,) = parts.responses
        column = str(self._column)
        if self._has_dialogue(record):
            return {**record, column: [*(parts.prompt or ()), *response]}
        prompt = {} if parts.prompt is None else {"prompt": parts.prompt}
        return {**record, **prompt, column: response}
