"""Writing files and folders so that none is ever left half written."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

# Everything that `save_to_preset` of keras-hub and of this package may write. What one save wrote
# and the next does not would be read as a part of the new preset.
_PRESET = (
    "*_converter.json",
    "actor_critic.json",
    "actor_critic.weights.h5",
    "assets/*/*",
    "config.json",
    "metadata.json",
    "model.weights.h5",
    "model.weights.json",
    "model_?????.weights.h5",
    "preprocessor.json",
    "process_reward_model.json",
    "quantized_adapters.npz",
    "reward_ensemble.json",
    "reward_model.json",
    "reward_model.weights.h5",
    "task.json",
    "task.weights.h5",
    "tokenizer.json",
)
_PRESETS_INSIDE = ("", "critic/", "member_*/")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`, for a file that takes its place at the end.

    The file is on the disk before it is renamed. What a process that was killed left under such
    a name is removed.

    Args:
        path: file that is to exist afterward; one that is there is replaced.

    Yields:
        The temporary path. The body creates a file there; when the body fails, what stood at
        `path` before still stands there.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("done")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('done', 1)
    """
    with _temporary(pathlib.Path(path)) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(temporary.parent)


@contextlib.contextmanager
def replacing_preset(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, whose files go to `folder` when all of them are there.

    In a folder that exists, only files of a preset are replaced: everything else stays. Files of
    an earlier preset that the new one does not have are removed. The JSON files, which loading
    begins with, go first and come last, so that no mixture of two presets can be loaded.

    Args:
        folder: preset folder that is to exist afterward.

    Yields:
        The temporary folder. When the body fails, `folder` stays as it is.

    Raises:
        ValueError: If there is a link or a file in the place of the folder, or of a folder or
            file in it.

    Example:
        >>> import tempfile
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (run / "notes.txt").write_text("mine")
        >>> with replacing_preset(run) as temporary:
        ...     _ = (temporary / "config.json").write_text("{}")
        >>> sorted(path.name for path in run.iterdir())
        ['config.json', 'notes.txt']
    """
    folder = pathlib.Path(os.path.abspath(folder))
    _check_place(folder, is_folder=True)
    # Inside a folder that exists, which may be a file system of its own.
    place = folder / folder.name if folder.exists() else folder
    with _temporary(place) as temporary:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path)
        if folder.exists():
            _move_files(temporary, folder)
        else:
            os.replace(temporary, folder)
        _sync(folder.parent)


def remove_leftovers(folder: str | os.PathLike, pattern: str) -> None:
    """Removes temporary files and folders of processes that ended before they could.

    Args:
        folder: where to look; need not exist.
        pattern: names that they were to get, as for `fnmatch`.
    """
    for path in pathlib.Path(folder).glob(".*"):
        match = re.fullmatch(r"\.(\d+)-[0-9a-f]{8}\.(.+)", path.name, re.DOTALL)
        if match and fnmatch.fnmatchcase(match[2], pattern) and not _runs_elsewhere(int(match[1])):
            _remove(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, in one piece; paths become strings."""
    text = json.dumps(value, indent=2, default=os.fspath, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def _temporary(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, _literal(path.name))
    # The temporary name keeps the endings, which some writers look at.
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
    finally:
        _remove(temporary)


def _literal(name):
    return re.sub(r"([*?[])", r"[\1]", name)


def _runs_elsewhere(pid):
    """Whether another process has this number, which may still write."""
    if pid == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # It is there and belongs to somebody else.
    return True


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path):
    """Waits until a file, or what a folder lists, is on the disk."""
    if os.name != "posix":
        return  # Windows flushes neither folders nor files that are open for reading.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_place(path, is_folder):
    """Raises a `ValueError` for what must not be replaced by a folder or a file."""
    if path.is_symlink():
        found = f"a link to {os.readlink(path)!r}"
    elif path.is_dir() and not is_folder:
        found = "a folder"
    elif path.exists() and not path.is_dir() and is_folder:
        found = "a file"
    else:
        return
    kind = "folder" if is_folder else "file"
    raise ValueError(
        f"Expected no {str(path)!r} or a {kind} of that name, which is to be written there. "
        f"Found {found}, and left it as it is. Move or remove it, or save under another name."
    )


def _move_files(temporary, folder):
    written = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
    for name in written:
        for parent in reversed(name.parents[:-1]):
            _check_place(folder / parent, is_folder=True)
        _check_place(folder / name, is_folder=False)
    patterns = [inside + name for inside in _PRESETS_INSIDE for name in _PRESET]
    former = {p.relative_to(folder) for pattern in patterns for p in folder.glob(pattern)}
    stale = [name for name in sorted(former - set(written)) if not (folder / name).is_dir()]
    described = [name for name in written if name.suffix == ".json"]
    for name in sorted([*described, *stale], key=lambda name: name.suffix != ".json"):
        (folder / name).unlink(missing_ok=True)
    for name in [*(name for name in written if name not in described), *described]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / name, folder / name)
    for parent in sorted({p for name in stale for p in name.parents[:-1]}, reverse=True):
        if not any((folder / parent).iterdir()):
            (folder / parent).rmdir()
    for parent in {folder / name.parent for name in written}:
        _sync(parent)
