"""Reading the records of a `.json` file one by one, without holding the file in memory."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from kerasrlhf.data.places import Broken

_BLOCK = 1 << 16
# Errors within so many characters of the end of what was read may come from what was not.
_NEAR = 16
_BLANKS = " \t\n\r"


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of some pairs; a key that occurs twice is a `ValueError`."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in record if keys.count(key) > 1)
        values = " and ".join(repr(value)[:20] for key, value in pairs if key == double)
        raise ValueError(
            f"the key {double!r} has several values, {values}, and only the last one would be "
            "read. Rename or remove the others."
        )
    return record


def integer_of(text: str) -> int:
    """Returns the integer that a text writes; one that Python refuses is a `ValueError`."""
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"an integer of {len(text)} digits, {text[:10]}..., is too long to be read. Write it "
            "as a string."
        ) from error


# One reads values and checks them; the other only finds where a value ends.
_CHECKING = json.JSONDecoder(object_pairs_hook=object_of, parse_int=integer_of)
_FINDING = json.JSONDecoder(parse_int=len)


class _Text:
    """The part of a file that is being read, and the line it begins with."""

    def __init__(self, file: IO[str], path: pathlib.Path) -> None:
        self._file, self._path = file, path
        self.text, self.at, self.line, self._column = "", 0, 1, 0
        self.is_whole = False

    def more(self) -> None:
        """Drops what was read before `at`, and reads as much again as is left."""
        read = self.text[: self.at]
        self.line += read.count("\n")
        self._column = len(read) - read.rfind("\n") - 1 + self._column * ("\n" not in read)
        rest = self.text[self.at :]
        block = self._file.read(max(_BLOCK, len(rest)))
        self.text, self.at, self.is_whole = rest + block, 0, not block

    def place(self, at: int) -> str:
        """Returns file, line and column of a position."""
        read = self.text[:at]
        column = len(read) - read.rfind("\n") + self._column * ("\n" not in read)
        return f"{self._path}, line {self.line_of(at)}, column {column}"

    def line_of(self, at: int) -> int:
        return self.line + self.text.count("\n", 0, at)

    def peek(self) -> str:
        """Returns the next character that is not blank, or an empty text at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self.text) or self.is_whole:
                return self.text[self.at : self.at + 1]
            self.more()

    def value(self) -> tuple[int, str, Any]:
        """Returns the line of the next value, its text, and the value or `Broken`."""
        while True:
            try:
                value, end = self._decoded()
                # The end of what was read may be inside a number.
                if end < len(self.text) or self.is_whole:
                    break
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.text) - _NEAR or "Unterminated" in error.msg
                if self.is_whole or not is_cut:
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise ValueError(
                    f"{self._path}: nested too deeply. Expected a list of records, such as "
                    '[{"prompt": "...", "response": "..."}].'
                ) from error
            self.more()
        line, text = self.line_of(self.at), self.text[self.at : end]
        self.at = end
        return line, text, value

    def _decoded(self) -> tuple[Any, int]:
        try:
            return _CHECKING.raw_decode(self.text, self.at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            # What a hook refuses is one record; the next begins where this one ends.
            _, end = _FINDING.raw_decode(self.text, self.at)
            return Broken(f"{self._path}, line {self.line_of(self.at)}: {error}"), end

    def error(self, message: str, at: int) -> ValueError:
        """Returns an error that names the file, the line and the column."""
        is_cut = "Unterminated" in message or not self.text[at:].strip(_BLANKS)
        cut = " The file ends inside the list: copy or download it again." if is_cut else ""
        return ValueError(f"{self.place(at)}: not JSON ({message}).{cut}")


def items(file: IO[str], path: pathlib.Path) -> Iterator[tuple[int, str, Any]]:
    r"""Yields the values of the list that a JSON file holds.

    Args:
        file: A text file, at its start.
        path: `pathlib.Path`. Its name, for messages.

    Yields:
        The line where a value begins, its text, and the value, or `Broken` if it is well formed
        but cannot be used.

    Raises:
        ValueError: If the file is no JSON or no list. The message names the file, the line and
            the column.

    Example:
        >>> import io, pathlib
        >>> list(items(io.StringIO('[1,\n{"prompt": "a"}]'), pathlib.Path("a.json")))
        [(1, '1', 1), (2, '{"prompt": "a"}', {'prompt': 'a'})]
    """
    text = _Text(file, path)
    if text.peek() != "[":
        raise _no_list(text, path)
    text.at += 1
    is_more = text.peek() != "]"
    while is_more:
        yield text.value()
        is_more = text.peek() == ","
        if not is_more and text.peek() != "]":
            raise text.error("Expecting ',' delimiter", text.at)
        if is_more:
            text.at += 1
            if text.peek() == "]":
                raise text.error("Illegal trailing comma", text.at)
    text.at += 1
    if text.peek():
        raise text.error("Extra data", text.at)


def _no_list(text: _Text, path: pathlib.Path) -> ValueError:
    """Returns the error for a file that holds something else than a list."""
    if not text.peek():
        return text.error("Expecting value", text.at)
    _, _, value = text.value()
    # One record per line is another format.
    if text.peek():
        hint = " The name of a file with one record per line must end with '.jsonl'."
        return ValueError(f"{text.error('Extra data', text.at)}{hint}")
    kind = type(value).__name__
    return ValueError(f"{path} must hold a list of records. Received a JSON {kind}.")
