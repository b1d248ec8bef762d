"""Records as a prepared dataset of TFDS."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kerasrlhf.data.places import Broken, Located
from kerasrlhf.data.schema import Schema
from kerasrlhf.data.sources import Source
from kerasrlhf.data.streams import Stream


def to_tfds(
    source: Source | Mapping[str, Source],
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    version: str = "1.0.0",
    columns: Mapping[str, str] | None = None,
    description: str = "",
) -> str:
    """Writes records as a prepared dataset of TFDS, without a network.

    Afterwards `tfds.load(name, data_dir=data_dir)` and `rlhf.data.read(name, data_dir=data_dir)`
    read it, also in programs without this package. Rows keep their order. Rows are read as they
    come, twice, so that a file may be larger than memory.

    Args:
        source: What `kerasrlhf.data.read` accepts, which becomes the split "train"; or a dict from
            the names of splits to such sources. Every row has the same columns: texts, numbers,
            booleans, lists of these, or messages.
        name: str of lowercase letters, digits and underscores. The name of the dataset.
        data_dir: str, path or None. Where TFDS keeps its prepared datasets. Defaults to None: the
            directory that TFDS uses.
        version: str of three numbers. Defaults to `"1.0.0"`.
        columns: dict or None. As in `kerasrlhf.data.read`. Defaults to None.
        description: str. What the dataset is. Defaults to `""`.

    Returns:
        str, the folder that was written.

    Raises:
        ValueError: If a source cannot be read, a row does not fit the rows before it (place and
            column are named), an argument has another form, or the version exists already.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> pairs = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}]
        >>> written = rlhf.data.to_tfds({"test": pairs}, "greetings", folder)
        >>> rlhf.data.read("greetings", split="test", data_dir=folder) == pairs
        True
    """
    _check_names(name, version)
    sources = dict(source) if isinstance(source, Mapping) else {"train": source}
    if not sources or not all(isinstance(x, str) and x.isidentifier() for x in sources):
        raise ValueError(
            "`source` must be one source, or a dict from the names of splits, such as 'train', to "
            f"sources. Received a dict of {[*sources]}."
        )
    streams = {split: _stream(one, columns) for split, one in sources.items()}
    # 1. The columns of all splits, before anything is written.
    schema = Schema()
    for split, stream in streams.items():
        count = 0
        for count, (place, row) in enumerate(_rows(stream), 1):
            schema.add(row, place or f"row {count - 1} of {split!r} (counted from 0)")
        if not count:
            raise ValueError(f"The source of the split {split!r} has no rows.")
    # 2. The rows. An import of seconds that reading a file does not need.
    from kerasrlhf.data.tfds_builder import RecordsBuilder

    splits = {
        split: lambda stream=stream: (row for _, row in _rows(stream))
        for split, stream in streams.items()
    }
    builder = RecordsBuilder(name, version, schema, splits, data_dir, description)
    if builder.is_prepared():
        raise ValueError(
            f"The version {version} of {name!r} is in {str(builder.data_dir)!r} already. Pass "
            "another `version`, or delete the folder."
        )
    # TFDS prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return str(builder.data_dir)


def _check_names(name: Any, version: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            "`name` must be of lowercase letters, digits and underscores, such as 'my_pairs'. "
            f"Received: {name!r}."
        )
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(
            f"`version` must be three numbers, such as '1.0.0'. Received: {version!r}."
        )


def _stream(source: Any, columns: Mapping[str, str] | None) -> Stream:
    if isinstance(source, Stream):
        return source
    # It is read twice: hold what can be read only once.
    return Stream(list(source) if hasattr(source, "__next__") else source, columns=columns)


def _rows(stream: Stream) -> Iterator[tuple[str, Any]]:
    """Yields the place of each row, or an empty text, and the row; strings become texts."""
    path, rows = stream.open()
    for line, row in rows:
        if isinstance(row, Broken):
            raise ValueError(row.reason)
        place = Located([row], path, [line]).place(0) if path and line else ""
        yield place.removesuffix(": "), {"text": row} if isinstance(row, str) else row
