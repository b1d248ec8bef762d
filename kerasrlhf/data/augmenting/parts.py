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
        self._column = ""
        if kind == "preferences":
            self._column = "chosen" if any("chosen" in row for row in records) else "responses"
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
            return self.parts(record)
        except ValueError as error:
            return str(error)

    def parts(self, record: Record) -> Parts:
        """Returns the texts of a record.

        Raises:
            ValueError: If one is missing, or is neither a string nor messages.
        """
        if self.kind == "prompts":
            return Parts(_text(record, "prompt"), [])
        if self.is_ranking:
            responses = record.get("responses")
            if not isinstance(responses, list) or not all(map(records_lib.is_text, responses)):
                raise ValueError("'responses' is not a list of texts")
            return Parts(_text(record, "prompt"), [*responses])
        if self.kind == "preferences":
            names = ["prompt"] if record.get("prompt") is not None else []
            for name in (*names, *_OF_PAIRS):
                _text(record, name)
            prompt, chosen, rejected, _ = records_lib.split_pair(record)
            return Parts(prompt, [chosen, rejected])
        value = _text(record, self._column)
        if self._has_dialogue(record):
            return Parts(value[:-1], [value[-1:]])
        return Parts(None if self._column == "text" else _text(record, "prompt"), [value])

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
        if self._has_dialogue(record):
            return {**record, self._column: [*(parts.prompt or ()), *response]}
        prompt = {} if parts.prompt is None else {"prompt": parts.prompt}
        return {**record, **prompt, self._column: response}


def _text(record: Record, name: str) -> Text:
    if not records_lib.is_text(record.get(name)):
        found = "there is no column" if name not in record else "no string and no messages in"
        raise ValueError(f"{found} {name!r}")
    return record[name]
