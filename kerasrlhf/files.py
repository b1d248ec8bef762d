"""Writing files and folders so that none is ever left half written."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, for a file or folder that takes its place at the end.

    Args:
        path: what is to exist afterwards; a file or folder there is replaced.

    Yields:
        The temporary path. The body creates a file or a folder there; when the body fails, what
        stood at `path` before still stands there.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("done")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('done', 1)
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    # The temporary name keeps the endings, which some writers look at.
    temporary = path.with_name(f".{mark}.{path.name}")
    former = path.with_name(f".{mark}.former.{path.name}")
    try:
        yield temporary
        if path.is_dir():
            os.replace(path, former)
        os.replace(temporary, path)
    finally:
        for leftover in (temporary, former):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, in one piece; paths become strings."""
    text = json.dumps(value, indent=2, default=os.fspath, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
