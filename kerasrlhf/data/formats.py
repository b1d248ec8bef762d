"""Reading rows from `.jsonl`, `.json`, `.csv` and `.parquet` files."""

from __future__ import annotations

import difflib
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from kerasrlhf.data import csv_files, json_lists, parquet
from kerasrlhf.data.places import Broken, encoding_fault

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# The first characters of files that are no UTF-8 text, decoded with "surrogateescape".
_SIGNATURES = (
    ("\udcff\udcfe", "The file looks like UTF-16."),
    ("\udcfe\udcff", "The file looks like UTF-16."),
    ("\x1f\udc8b", "The file is a gzip archive, whose name must end with '.gz'."),
    ("PK\x03\x04", "The file is a zip archive. Unpack it first."),
    ("PAR1", "The file is in the Parquet format, whose name must end with '.parquet'."),
)


def suffix(name: str | os.PathLike[str]) -> str:
    """Returns the file ending of a name without a trailing `.gz`.

    Example:
        >>> suffix("runs/pairs.v2.jsonl.gz")
        '.jsonl'
    """
    return pathlib.PurePath(str(name).removesuffix(".gz")).suffix


def rows(path: pathlib.Path) -> Iterator[tuple[int | None, Any]]:
    r"""Yields the rows of a file as they come.

    Args:
        path: `pathlib.Path` of an existing file. Its name ends with one of `SUFFIXES`, optionally
            followed by `.gz` (but for `.parquet`, which is compressed by itself).

    Yields:
        The line where a row begins, or None for `.parquet`; and the row: a dictionary, what else
        a JSON file holds, or `kerasrlhf.data.places.Broken` if the row cannot be read, but those
        after it can.

    Raises:
        ValueError: If the file cannot be opened or unpacked, or what follows cannot be read. The
            message names the file and, where there is one, the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pairs.csv"
        >>> _ = path.write_text("prompt,response\nTom was sad.,He cried.\n")
        >>> list(rows(path))
        [(2, {'prompt': 'Tom was sad.', 'response': 'He cried.'})]
    """
    ending = suffix(path.name)
    if ending not in SUFFIXES:
        raise ValueError(
            f"Cannot tell the format of {str(path)!r}. Expected a name that ends with one of "
            f"{SUFFIXES}, optionally followed by '.gz'."
        )
    if path.suffix == ".parquet":
        yield from parquet.rows(path)
        return
    if ending == ".parquet":
        raise ValueError(
            f"{path} is a compressed Parquet file, which cannot be read. Unpack it: the format is "
            "compressed by itself."
        )
    # The format follows from the name; the contents are checked against it.
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    read = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": csv_files.rows}[ending]
    line: int | None = None
    try:
        # Bytes that are not UTF-8 become surrogates, so that their place can be named.
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            _check_signature(file, path)
            for line, row in read(file, path):
                yield line, row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        after = "" if line is None else f", after line {line}"
        raise ValueError(
            f"{path}{after}: cannot be unpacked ({error}). A damaged or incomplete archive must be "
            "copied or downloaded again; the name of a plain file must not end with '.gz'."
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _check_signature(file: IO[str], path: pathlib.Path) -> None:
    """Raises an error for a file of another format than its name promises."""
    start = file.read(4)
    file.seek(0)
    hints = [hint for signature, hint in _SIGNATURES if start.startswith(signature)]
    # UTF-16 without a mark has a zero byte in each Latin character.
    if not hints and "\0" in start:
        hints = ["The file looks like UTF-16."]
    if hints:
        raise ValueError(f"{path}, line 1: not UTF-8. {hints[0]} Expected a UTF-8 text file.")


def _jsonl_rows(file: IO[str], path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _row_of(line.rstrip("\r\n"), path, number)


def _json_rows(file: IO[str], path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    for line, text, row in json_lists.items(file, path):
        yield line, row if isinstance(row, Broken) else _checked(row, text, f"{path}, line {line}")


def _row_of(text: str, path: pathlib.Path, line: int) -> Any:
    """Returns the value of a line of JSON, or `Broken`."""
    place = f"{path}, line {line}"
    # First the bytes: a text that is not UTF-8 may be well-formed JSON.
    fault = encoding_fault(text)
    if fault:
        return Broken(f"{place}, column {fault[0] + 1}: {fault[1]}")
    try:
        # The hooks raise errors that name double keys and integers that are too long.
        value = json.loads(
            text, object_pairs_hook=json_lists.object_of, parse_int=json_lists.integer_of
        )
    except json.JSONDecodeError as error:
        hint = ""
        if text.strip() in ("[", "[{"):
            hint = " The name of a file with one list of records must end with '.json'."
        return Broken(f"{place}, column {error.colno}: not JSON ({error.msg}).{hint}")
    except RecursionError:
        return Broken(
            f"{place}: nested too deeply. Expected a record, such as "
            '{"prompt": "...", "response": "..."}.'
        )
    except ValueError as error:
        return Broken(f"{place}: {error}")
    return _checked(value, text, place)


def _checked(value: Any, text: str, place: str) -> Any:
    """Returns a value, or `Broken` if its text is not UTF-8 or writes half a character."""
    fault = encoding_fault(text)
    if fault:
        return Broken(f"{place}: {fault[1]}")
    # Only an escape can make a lone surrogate, since the bytes are UTF-8.
    if "\\ud" in text or "\\uD" in text:
        return _without_surrogates(value, place)
    return value


def _without_surrogates(value: Any, place: str) -> Any:
    """Returns a value, or `Broken` if it has half of a UTF-16 pair, which no tokenizer accepts."""
    columns = value.items() if isinstance(value, dict) else [(None, value)]
    for name, cell in columns:
        try:
            json.dumps([name, cell], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            around = error.object[max(error.start - 20, 0) : error.start]
            column = "" if name is None else f", column {name!a}"
            return Broken(
                f"{place}{column}: \\u{ord(half):04x} after {around!r} is half of a character (a "
                "lone surrogate), probably of a text that was cut inside an emoji. Remove it, or "
                "write the whole character."
            )
    return value


def similar_file(path: pathlib.Path) -> tuple[pathlib.Path | None, bool]:
    """Returns the file of a known format in the same folder whose name is most like `path`'s.

    Args:
        path: `pathlib.Path` that does not exist.

    Returns:
        A pair of a `pathlib.Path` and whether only the ending differs; `(None, False)` if there
        is none.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "pairs.jsonl").write_text("")
        >>> found, same = similar_file(folder / "pairs")
        >>> found.name, same
        ('pairs.jsonl', True)
    """
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return None, False
    readable = [name for name in names if suffix(name) in SUFFIXES]
    # Reversed, so that the first name in order wins where stems are equal.
    by_stem = {_stem(name): name for name in reversed(readable)}
    if _stem(path.name) in by_stem:
        return path.with_name(by_stem[_stem(path.name)]), True
    known = {**by_stem, **{name: name for name in readable}}
    found = difflib.get_close_matches(path.name, known, n=1, cutoff=0.75)
    return (path.with_name(known[found[0]]), False) if found else (None, False)


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(suffix(name))
