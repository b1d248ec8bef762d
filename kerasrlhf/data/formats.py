"""Reading rows from `.jsonl`, `.json`, `.csv` and `.parquet` files."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# No cell is longer: the largest limit that the csv module takes on every platform.
_LONGEST_CELL = 2**31 - 1
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


def read_file(path: pathlib.Path) -> list[Any]:
    r"""Reads all rows of a file.

    Args:
        path: `pathlib.Path` of an existing file. Its name ends with one of `SUFFIXES`, optionally
            followed by `.gz` (but for `.parquet`, which is compressed by itself).

    Returns:
        list of rows: dictionaries, or what else the lines of a JSON file hold.

    Raises:
        ValueError: If the file cannot be opened or unpacked, is not UTF-8, or is malformed. The
            message names the file and, where there is one, the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pairs.csv"
        >>> _ = path.write_text("prompt,response\nTom was sad.,He cried.\n")
        >>> read_file(path)
        [{'prompt': 'Tom was sad.', 'response': 'He cried.'}]
    """
    ending = suffix(path.name)
    if ending not in SUFFIXES:
        raise ValueError(
            f"Cannot tell the format of {str(path)!r}. Expected a name that ends with one of "
            f"{SUFFIXES}, optionally followed by '.gz'."
        )
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if ending == ".parquet":
        raise ValueError(
            f"{path} is a compressed Parquet file, which cannot be read. Unpack it: the format is "
            "compressed by itself."
        )
    # The format follows from the name; the contents are checked against it.
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    read = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}[ending]
    try:
        # Bytes that are not UTF-8 become surrogates, so that `_lines` can name their line.
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return read(_lines(file, path), path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be unpacked ({error}). A damaged or incomplete archive must be copied "
            "or downloaded again; the name of a plain file must not end with '.gz'."
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_parquet(path: pathlib.Path) -> list[Any]:
    # An import of half a second that the other formats do not need.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_header(file.schema_arrow.names, str(path))
            return file.read().to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has a text that is not UTF-8 ({error}).") from error
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}). A damaged or "
            "incomplete file must be copied or downloaded again."
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _lines(file: IO[str], path: pathlib.Path) -> Iterator[str]:
    """Yields the lines of a file, which must be UTF-8."""
    for number, line in enumerate(file, 1):
        if number == 1:
            _check_signature(line, path)
        try:
            line.encode("utf-8")
        except UnicodeEncodeError as error:
            # A surrogate of "surrogateescape" has the byte as its last eight bits.
            byte = ord(line[error.start]) & 0xFF
            raise ValueError(
                f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x} after "
                f"{line[max(error.start - 20, 0) : error.start]!r}). Save the file as UTF-8."
            ) from error
        yield line


def _check_signature(line: str, path: pathlib.Path) -> None:
    hints = [hint for signature, hint in _SIGNATURES if line.startswith(signature)]
    # UTF-16 without a mark has a zero byte in each Latin character.
    if not hints and "\0" in line[:4]:
        hints = ["The file looks like UTF-16."]
    if hints:
        raise ValueError(f"{path}, line 1: not UTF-8. {hints[0]} Expected a UTF-8 text file.")


def _read_jsonl(lines: Iterable[str], path: pathlib.Path) -> list[Any]:
    return [_parse(line, path, n) for n, line in enumerate(lines, 1) if line.strip()]


def _read_json(lines: Iterable[str], path: pathlib.Path) -> list[Any]:
    rows = _parse("".join(lines), path)
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} must hold a list of records. Received a JSON {type(rows).__name__}."
        )
    return rows


def _parse(text: str, path: pathlib.Path, line: int | None = None) -> Any:
    """Returns the value of JSON text: a line of a file, or with `line=None` the whole file."""
    place = f"{path}, line {line}" if line else f"{path}"
    try:
        # The hooks raise errors that name double keys and integers that are too long.
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line or error.lineno}"
        raise ValueError(f"{place}: not JSON ({error}).{_hint(text, error, line)}") from error
    except RecursionError as error:
        raise ValueError(
            f"{place}: nested too deeply. Expected a record, such as "
            '{"prompt": "...", "response": "..."}.'
        ) from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    # Only an escape can make a lone surrogate, since `_lines` has checked the bytes.
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value, place)
    return value


def _hint(text: str, error: json.JSONDecodeError, line: int | None) -> str:
    """Returns what a file may be that is not the JSON that its name promises."""
    if line is None and error.msg == "Extra data":
        return " The name of a file with one record per line must end with '.jsonl'."
    if line is not None and text.strip() in ("[", "[{"):
        return " The name of a file with one list of records must end with '.json'."
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"an integer of {len(text)} digits, {text[:10]}..., is too long to be read. Write it "
            "as a string."
        ) from error


def _check_surrogates(value: object, place: str) -> None:
    """Raises an error for halves of UTF-16 pairs, which no tokenizer and no file accepts."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        around = error.object[max(error.start - 20, 0) : error.start]
        raise ValueError(
            f"{place}: \\u{ord(half):04x} after {around!r} is half of a character (a lone "
            "surrogate), probably of a text that was cut inside an emoji. Remove it, or write "
            "the whole character."
        ) from error


def _read_csv(lines: Iterable[str], path: pathlib.Path) -> list[Any]:
    # The limit is global: set it for this file alone.
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        return _csv_rows(csv.DictReader(lines, strict=True), path)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(reader: csv.DictReader, path: pathlib.Path) -> list[Any]:
    rows: list[Any] = []
    try:
        names = reader.fieldnames or []
        _check_header(names, f"{path}, line 1")
        for row in reader:
            # `DictReader` puts surplus cells under None, and None in place of missing ones.
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(names)} cells ({names})."
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num + 1}: not CSV ({error}). A cell with commas, quotes or "
            'line breaks needs quotes around it, and each quote inside it is written twice: "".'
        ) from error
    return rows


def _check_header(names: Sequence[str], place: str) -> None:
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(
            f"{place}: {names.count(double)} columns have the name {double!r}, and only the "
            f"last one would be read. Rename or remove the others. Columns: {names}."
        )


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
