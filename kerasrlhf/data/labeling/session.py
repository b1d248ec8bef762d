"""What has been chosen of some pairs, and what is to be chosen next: labeling without a screen."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from kerasrlhf.checks import require_choice, require_int
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.labeling.journal import Journal
from kerasrlhf.data.records import Record, Text
from kerasrlhf.data.sources import Source

VERDICTS = ("left", "right", "tie", "skip")
_PAIR, _NUMBER = "pair_id", "choice_number"
# Columns of an earlier choice, and those that a new one writes.
_DROPPED = ("chosen", "rejected", "responses", "ended", "margin", "verdict", "position")


class Shown(NamedTuple):
    """A pair as a person sees it.

    Attributes:
        prompt: str.
        left: str. One of the responses.
        right: str. The other one.
    """

    prompt: str
    left: str
    right: str


class _Pair(NamedTuple):
    """A pair of a source: what is shown of it, and what is saved."""

    key: str
    shown: Shown
    first_is_left: bool
    prompt: Text
    responses: tuple[Text, Text]
    ended: tuple[bool, bool] | None
    others: Record


class Labeling:
    """Pairs and the choices that a person has made, which are saved one by one.

    `kerasrlhf.data.label` makes one. Which response is on the left is a matter of chance, the same
    whenever the same pair is shown with the same seed. Each choice is on disk before the next pair
    is shown; a labeling of the same pairs and the same path goes on where the last one ended.

    Args:
        pairs: As in `kerasrlhf.data.label`.
        path: As in `kerasrlhf.data.label`.
        template: str or callable. Defaults to `"plain"`.
        seed: int, at least 0. Defaults to 0.

    Attributes:
        path: path. The file with the pairs that were decided.
        undecided_path: path. The file with ties and with pairs that were skipped.
        identical: int. Pairs of equal texts, which are not shown.

    Raises:
        ValueError: As in `kerasrlhf.data.label`.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels.jsonl"
        >>> pairs = [{"prompt": "Who is Tom?", "responses": ["A boy.", "No."]}]
        >>> labeling = rlhf.data.Labeling(pairs, path)
        >>> labeling.current
        Shown(prompt='Who is Tom?', left='No.', right='A boy.')
        >>> labeling.choose("right")
        >>> rlhf.data.read(path)[0]["chosen"], labeling.current
        ('A boy.', None)
    """

    def __init__(
        self,
        pairs: Source,
        path: str | os.PathLike[str],
        *,
        template: Template = "plain",
        seed: int = 0,
    ) -> None:
        self.path = pathlib.Path(path).expanduser()
        if self.path.suffix != ".jsonl":
            raise ValueError(f"`path` must end with '.jsonl'. Received: {str(path)!r}.")
        self.undecided_path = self.path.with_suffix(".undecided.jsonl")
        self._pairs = _read(pairs, template, require_int("seed", seed, minimum=0))
        self.identical = sum(not _differ(pair) for pair in self._pairs.values())
        self._queue = [key for key, pair in self._pairs.items() if _differ(pair)]
        columns = [_PAIR, _NUMBER]
        self._decided = Journal(self.path, [*columns, "chosen", "rejected"])
        self._undecided = Journal(self.undecided_path, [*columns, "verdict"])

    @property
    def current(self) -> Shown | None:
        """The pair to choose from, or None if all have been chosen from."""
        pair = self._current
        return None if pair is None else pair.shown

    @property
    def _current(self) -> _Pair | None:
        done = self._verdicts
        return next((self._pairs[key] for key in self._queue if key not in done), None)

    @property
    def _verdicts(self) -> dict[str, str]:
        """What was chosen, by pair."""
        decided = {row[_PAIR]: "decided" for row in self._decided.rows}
        return decided | {row[_PAIR]: row["verdict"] for row in self._undecided.rows}

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs there are: `total`, `done`, and of these `decided`, `tie` and `skip`."""
        verdicts = self._verdicts
        found = collections.Counter(verdicts[key] for key in self._queue if key in verdicts)
        kinds = {name: found[name] for name in ("decided", "tie", "skip")}
        return {"total": len(self._queue), "done": found.total(), **kinds}

    def __repr__(self) -> str:
        return f"Labeling({self.progress}; {str(self.path)!r})"

    @property
    def progress(self) -> str:
        """The counts as text."""
        counts = self.counts
        extra = "".join(
            f", {counts[name]} {word}"
            for name, word in (("tie", "tied"), ("skip", "skipped"))
            if counts[name]
        )
        return f"{counts['done']} of {counts['total']} pairs done{extra}"

    def choose(self, verdict: str) -> None:
        """Saves a choice from the current pair, which makes the next one current.

        Args:
            verdict: str. The better response, `"left"` or `"right"`; `"tie"` if neither is; or
                `"skip"`.

        Raises:
            ValueError: If it is something else, no pair is left, or another program has changed
                the file. Nothing is saved.
        """
        require_choice("verdict", verdict, VERDICTS)
        pair = self._current
        if pair is None:
            raise ValueError("All pairs have been chosen from. `undo()` takes the last one back.")
        marks = {_PAIR: pair.key, _NUMBER: self._last_number + 1}
        if verdict in ("tie", "skip"):
            texts = {"prompt": pair.prompt, "responses": [*pair.responses]}
            flags = {} if pair.ended is None else {"ended": [*pair.ended]}
            row = {**pair.others, **texts, **flags, "verdict": verdict, **marks}
            self._undecided.append(row)
            return
        best = 0 if (verdict == "left") == pair.first_is_left else 1
        chosen, rejected = pair.responses[best], pair.responses[1 - best]
        texts = {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
        flags = {} if pair.ended is None else {"ended": [pair.ended[best], pair.ended[1 - best]]}
        self._decided.append({**pair.others, **texts, **flags, "position": verdict, **marks})

    def undo(self) -> bool:
        """Takes the last choice back, also one of an earlier labeling.

        Returns:
            bool. Whether there was one, of these pairs.
        """
        journal = max(self._decided, self._undecided, key=_number)
        if not journal.rows or journal.rows[-1][_PAIR] not in self._pairs:
            return False
        journal.pop()
        return True

    @property
    def _last_number(self) -> int:
        return max(_number(self._decided), _number(self._undecided))


def _number(journal: Journal) -> int:
    return int(journal.rows[-1][_NUMBER]) if journal.rows else 0


def _differ(pair: _Pair) -> bool:
    return pair.shown.left != pair.shown.right


def _read(pairs: Source, template: Template, seed: int) -> dict[str, _Pair]:
    """Returns pairs by their keys, each of them once."""
    records = records_lib.load(pairs)
    prompts, *texts = records_lib.preference_texts(records, template)
    if len(texts) != 2:
        raise ValueError(
            f"A choice is between two responses. Received {len(texts)} in 'responses'."
        )
    has_flags = any(row.get("ended") is not None for row in records)
    flags = columns_lib.ended(records, candidates=2) if has_flags else None
    found: dict[str, _Pair] = {}
    for row, record in enumerate(records):
        if "chosen" in record:
            prompt, *originals, _ = records_lib.split_pair(record)
        else:
            prompt, originals = record["prompt"], record["responses"]
        key = _key(prompt, originals)
        first_is_left = bool(np.random.default_rng([seed, int(key, 16)]).integers(2))
        one, other = texts[0][row].strip(), texts[1][row].strip()
        sides = (one, other) if first_is_left else (other, one)
        others = {name: value for name, value in record.items() if name not in _DROPPED}
        pair = _Pair(
            key,
            Shown(prompts[row].strip(), *sides),
            first_is_left,
            prompt,
            (originals[0], originals[1]),
            None if flags is None else (flags[0][row], flags[1][row]),
            others,
        )
        found.setdefault(key, pair)
    return found


def _key(prompt: Any, responses: list[Any]) -> str:
    """Returns what is the same for a pair in both orders."""
    sides = sorted(json.dumps(text, sort_keys=True, default=str) for text in responses)
    text = json.dumps([prompt, sides], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
