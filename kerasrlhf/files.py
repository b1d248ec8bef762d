"""Writes files and folders so that none is ever left half written.

Of several processes that train together the first alone writes: the others would write the same.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

# Everything that `save_to_preset` of keras-hub and of this package may write. A file of an earlier
# save that the new one does not write would be loaded as part of the new preset.
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
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path; the file written there replaces `path` at the end.

    The file is flushed to disk before it is renamed. Temporary files of processes that were killed
    are removed. In a worker that is not the chief, `path` stays as it is.

    Args:
        path: str or path. File to create or replace.

    Yields:
        The temporary path. The body creates a file there; if the body fails, `path` is unchanged.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> with rlhf.files.replacing(path) as temporary:
        ...     _ = temporary.write_text("done")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('done', 1)
    """
    if not writes():
        with _discarded(pathlib.Path(path)) as temporary:
            yield temporary
        return
    with _temporary(pathlib.Path(path)) as temporary:
        yield temporary
        # On disk before the rename: a crash leaves the old file or the whole new one.
        sync(temporary)
        os.replace(temporary, path)
        sync(temporary.parent)


@contextlib.contextmanager
def replacing_preset(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, whose files move to `folder` once all of them are there.

    In a folder that exists, only files of a preset are replaced: all others stay. Files of an
    earlier preset that the new one does not have are removed. The JSON files, which loading starts
    with, are removed first and moved last, so a mixture of two presets can never be loaded. In a
    worker that is not the chief, `folder` stays as it is.

    Args:
        folder: str or path. Preset folder to create or replace.

    Yields:
        The temporary folder. If the body fails, `folder` is unchanged.

    Raises:
        ValueError: If there is a link or a file in the place of the folder, or of a folder or file
            in it.

    Example:
        >>> import tempfile
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (run / "notes.txt").write_text("mine")
        >>> with rlhf.files.replacing_preset(run) as temporary:
        ...     _ = (temporary / "config.json").write_text("{}")
        >>> sorted(path.name for path in run.iterdir())
        ['config.json', 'notes.txt']
    """
    folder = pathlib.Path(os.path.abspath(folder))
    if not writes():
        with _discarded(folder) as temporary:
            temporary.mkdir()
            yield temporary
        return
    _check_place(folder, is_folder=True)
    # Inside an existing folder, which may be a separate file system: a rename cannot cross it.
    place = folder / folder.name if folder.exists() else folder
    with _temporary(place) as temporary:
        temporary.mkdir()
        yield temporary
        # All contents are on disk before any of them takes its place.
        for path in temporary.rglob("*"):
            sync(path)
        if folder.exists():
            _move_files(temporary, folder)
        else:
            os.replace(temporary, folder)
        sync(folder.parent)


def writes() -> bool:
    """Returns whether this process writes files: it is the first worker, or the only process."""
    # Without this module, which imports TensorFlow, there are no workers.
    cluster = sys.modules.get(f"{__package__}.cluster")
    return cluster is None or cluster.is_chief()


def remove_leftovers(folder: str | os.PathLike[str], pattern: str) -> None:
    """Removes temporary files and folders of processes that ended before they could do so.

    Args:
        folder: str or path. Where to look; need not exist.
        pattern: str. Final names of the files, as for `fnmatch`.
    """
    if not writes():
        return  # The chief, on another machine, may be writing them.
    for path in pathlib.Path(folder).glob(".*"):
        # Temporary names begin with the number of the process that made them.
        match = re.fullmatch(r"\.(\d+)-[0-9a-f]{8}\.(.+)", path.name, re.DOTALL)
        if match and fnmatch.fnmatchcase(match[2], pattern) and not _runs_elsewhere(int(match[1])):
            _remove(path)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, atomically; paths become strings.

    Args:
        path: str or path. File to create or replace.
        value: anything that JSON can hold.
    """
    text = json.dumps(value, indent=2, default=os.fspath, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value of a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[pathlib.Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, _literal(path.name))
    # The temporary name keeps the suffixes, which some writers check.
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextlib.contextmanager
def _discarded(path: pathlib.Path) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder) / path.name


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _runs_elsewhere(pid: int) -> bool:
    """Returns whether another process has this number; it may still be writing."""
    if pid == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # The process exists and belongs to another user.
    return True


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the list of files of a folder, is on disk."""
    if os.name != "posix":
        return  # Windows flushes neither folders nor files that are open for reading.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_place(path: pathlib.Path, is_folder: bool) -> None:
    """Raises a `ValueError` for a path that must not be replaced by a folder or a file."""
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
        f"Expected {str(path)!r} to be missing or a {kind}: a {kind} is to be written there. "
        f"Found {found}, and left it as it is. Move or remove it, or save under another name."
    )


def _move_files(temporary: pathlib.Path, folder: pathlib.Path) -> None:
    # 1. Check all places before anything changes.
    written = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
    for name in written:
        for parent in reversed(name.parents[:-1]):
            _check_place(folder / parent, is_folder=True)
        _check_place(folder / name, is_folder=False)
    # 2. Find the files of the preset that was there before.
    patterns = [inside + name for inside in _PRESETS_INSIDE for name in _PRESET]
    former = {p.relative_to(folder) for pattern in patterns for p in folder.glob(pattern)}
    stale = [name for name in sorted(former - set(written)) if not (folder / name).is_dir()]
    # 3. Remove JSON files first: without them, nothing can be loaded halfway.
    described = [name for name in written if name.suffix == ".json"]
    for name in sorted([*described, *stale], key=lambda name: name.suffix != ".json"):
        (folder / name).unlink(missing_ok=True)
    # 4. Move weights and vocabularies, and the JSON files last.
    for name in [*(name for name in written if name not in described), *described]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / name, folder / name)
    # 5. Remove folders that are empty; the deepest first.
    for parent in sorted({p for name in stale for p in name.parents[:-1]}, reverse=True):
        if not any((folder / parent).iterdir()):
            (folder / parent).rmdir()
    for parent in {folder / name.parent for name in written}:
        sync(parent)
