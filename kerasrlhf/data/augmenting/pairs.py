"""New pairs: a response to another prompt as the rejected one, and sampled responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.auditing.corpus import normalized
from kerasrlhf.data.augmenting.parts import Parts
from kerasrlhf.data.records import Record, Records, Text

# Of the other rows that are tried, some may have the same prompt or the same response.
_TRIES = 20


def key_of(text: Text | None) -> str:
    """Returns what is the same for texts that differ only in case and white space."""
    return normalized(text if isinstance(text, str) else _exact(text))


class Others:
    """Chosen responses to other prompts.

    Args:
        records: list of dict, pairs or rankings.
        all_parts: list of `Parts` of the records.
    """

    def __init__(self, records: Records, all_parts: Sequence[Parts]) -> None:
        self._parts = all_parts
        self._prompts = [key_of(parts.prompt) for parts in all_parts]
        has_flags = any(row.get("ended") is not None for row in records)
        count = len(all_parts[0].responses)
        self._ended = columns_lib.ended(records, count) if has_flags else None

    def replace_rejected(self, row: int, random: np.random.Generator) -> tuple[Parts, Record]:
        """Returns the texts of a row with the chosen response of another one as the rejected one.

        Args:
            row: int.
            random: NumPy generator.

        Returns:
            `Parts`, those of the row itself if no other one fits; and the columns that change.
        """
        parts = self._parts[row]
        prompt, responses = parts
        for other in random.integers(len(self._parts), size=_TRIES).tolist():
            response = self._parts[other].responses[0]
            # A string next to messages is another thing than a string that follows a text.
            is_alike = type(self._parts[other].prompt) is type(prompt)
            is_alike = is_alike and type(response) is type(responses[-1])
            is_new = key_of(response) not in map(key_of, responses)
            if is_alike and is_new and self._prompts[other] != self._prompts[row]:
                flags = {}
                if self._ended is not None:
                    own = [column[row] for column in self._ended[:-1]]
                    flags = {"ended": [*own, self._ended[0][other]]}
                return Parts(prompt, [*responses[:-1], response]), flags
        return parts, {}


def sampled(sample: Callable[[list], Any], all_parts: Sequence[Parts]) -> dict[int, Record]:
    """Returns sampled pairs, by the rows with their prompts.

    Args:
        sample: Function of a list of prompts, each of them once, that returns a
            `kerasrlhf.BestOfN`, or a list of pairs with the columns `prompt`, `chosen` and
            `rejected`.
        all_parts: list of `Parts`.

    Returns:
        dict from int, the first row with a prompt, to dict. A prompt whose responses have equal
        scores has none.

    Raises:
        ValueError: If `sample` returns something else, or a prompt that it did not receive.
    """
    rows: dict[str, int] = {}
    for row, parts in enumerate(all_parts):
        rows.setdefault(_exact(parts.prompt), row)
    found = sample([all_parts[row].prompt for row in rows.values()])
    pairs = found.preferences() if hasattr(found, "preferences") else found
    made: dict[int, Record] = {}
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        is_pair = isinstance(pair, dict) and {"prompt", "chosen", "rejected"} <= pair.keys()
        if not is_pair or not all(records_lib.is_text(pair[x]) for x in ("chosen", "rejected")):
            raise ValueError(
                "`sample` must return a `BestOfN`, or a list of pairs with the columns 'prompt', "
                f"'chosen' and 'rejected'. Received: {pair!r}."
            )
        key = _exact(pair["prompt"])
        if key not in rows:
            raise ValueError(
                "`sample` returned a pair with a prompt that it did not receive: "
                f"{pair['prompt']!r}."
            )
        made.setdefault(rows[key], pair)
    return made


def _exact(prompt: Text | None) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)
