"""The files of a saved run: two generations, each complete or not there."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
import uuid
import warnings
from typing import Any

import keras
import numpy as np

from kerasrlhf import files

VERSION = 3

_NEWEST, _FORMER = "resume.json", "resume-former.json"
_WEIGHTS = "resume-{iteration:08d}{again}.npz"


class StateFiles:
    """Writes states of a run to a folder, and returns the newest one that is whole.

    A state is a JSON file with everything that is not an array and an `.npz` file that it names,
    both with checksums. The JSON file is written last, so that the state before counts until the
    new one is complete and on the disk. The state before stays as
    `resume-former.json` with its arrays.

    Args:
        directory: str or path. Folder; need not exist. Other files in it stay.

    Example:
        >>> states = StateFiles(tempfile.mkdtemp())
        >>> states.write({"iteration": 1}, {"x": np.ones(2)})
        >>> states.write({"iteration": 2}, {"x": np.ones(3)})
        >>> state, arrays = states.read()
        >>> state["iteration"], arrays["x"].tolist()
        (2, [1.0, 1.0, 1.0])
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = pathlib.Path(directory)
        # States that are known to be whole, the newest last.
        self._kept: list[dict[str, Any]] = []

    @property
    def exists(self) -> bool:
        """Whether there is a state, whole or not."""
        return any((self.directory / name).exists() for name in (_NEWEST, _FORMER))

    @property
    def path(self) -> pathlib.Path:
        """The file that the newest state is in."""
        return self.directory / _NEWEST

    def check_writable(self) -> None:
        """Raises a `ValueError` if nothing can be written; removes what killed processes left."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory) as file:
                file.write(b"a state goes here")
                file.flush()
                os.fsync(file.fileno())
            files.remove_leftovers(self.directory, "resume*")
        except OSError as error:
            raise ValueError(
                f"The state of the run cannot be written to {str(self.directory)!r}: {error}. Make "
                "it a folder that this user may write to, on a disk with space, or pass another."
            ) from error

    def mark(self) -> str:
        """Writes an empty file with a new name; returns its name."""
        name = f".shared-{uuid.uuid4().hex}"
        (self.directory / name).touch()
        return name

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the newest state that is whole, and its arrays; warns where one is damaged.

        Raises:
            ValueError: If no state is whole, or it is of another version.
        """
        try:
            state, arrays = self._read(_NEWEST)
        except _Damage as damage:
            if not (self.directory / _FORMER).exists():
                raise ValueError(str(damage)) from damage
            try:
                state, arrays = self._read(_FORMER)
            except _Damage as other:
                raise ValueError(f"{damage} The state before is no help: {other}") from other
            warnings.warn(
                f"{damage} Going on from the state before, of iteration {state['iteration']}.",
                RuntimeWarning,
                stacklevel=2,
            )
        self._kept = [state]
        return state, arrays

    def write(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Writes a state; the one that was the newest becomes the one before.

        Args:
            state: dict of what JSON can express, `iteration` among it.
            arrays: dict from name to array.
        """
        # 1. Arrays, under a name that the newest state does not use.
        name = _WEIGHTS.format(iteration=state["iteration"], again="")
        if any(kept["arrays"]["file"] == name for kept in self._kept[-1:]):
            name = _WEIGHTS.format(iteration=state["iteration"], again="-again")
        with files.replacing(self.directory / name) as temporary:
            np.savez(temporary, **arrays)
            checksum = _file_checksum(temporary)
        # 2. The newest state becomes the former one.
        for former in self._kept[-1:]:
            files.write_json(self.directory / _FORMER, former)
        # 3. The new state counts from here on: its JSON file names the arrays.
        state = _signed({**state, "arrays": {"file": name, "checksum": checksum}})
        files.write_json(self.path, state)
        self._kept = [*self._kept[-1:], state]
        # 4. Remove arrays that neither of the two states names.
        used = {kept["arrays"]["file"] for kept in self._kept}
        for path in self.directory.glob("resume-*.npz"):
            if path.name not in used:
                path.unlink()

    def rewrite(self, state: dict[str, Any]) -> None:
        """Writes a state again whose arrays are those of the newest.

        Args:
            state: as in `write`.
        """
        self._kept[-1] = _signed({**state, "arrays": self._kept[-1]["arrays"]})
        files.write_json(self.path, self._kept[-1])

    def holds(self, arrays: dict[str, np.ndarray]) -> bool:
        """Returns whether these are the arrays of the newest state that was read or written here.

        Args:
            arrays: as in `write`.
        """
        with np.load(self.directory / self._kept[-1]["arrays"]["file"]) as stored:
            return set(stored.files) == set(arrays) and all(
                np.array_equal(stored[name], np.asarray(array)) for name, array in arrays.items()
            )

    def _read(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        path = self.directory / name
        try:
            state = files.read_json(path)
        except FileNotFoundError as error:
            raise _Damage(path, "it is missing") from error
        except (OSError, ValueError) as error:
            raise _Damage(path, f"it cannot be read: {error}") from error
        state = state if isinstance(state, dict) else {}
        # Files of other versions have no checksum.
        if "checksum" not in state and "version" in state:
            raise ValueError(
                f"The state in {str(path)!r} is of version {state['version']!r}, and this package "
                f"writes and reads version {VERSION}. Finish the run with the package that it was "
                "started with, or start over in another directory."
            )
        if state.get("checksum") != _signed(state)["checksum"]:
            raise _Damage(path, "its contents do not have the checksum that was written with them")
        return state, self._read_arrays(path, state["arrays"])

    def _read_arrays(self, path: pathlib.Path, described: dict[str, str]) -> dict[str, np.ndarray]:
        weights = self.directory / described["file"]
        if not weights.is_file():
            raise _Damage(path, f"it needs {weights.name!r} in the same folder, and it is missing")
        try:
            checksum = _file_checksum(weights)
        except OSError as error:
            raise _Damage(weights, f"it cannot be read: {error}") from error
        if checksum != described["checksum"]:
            raise _Damage(
                weights,
                f"it does not have the checksum that {path.name!r} has of it, or is of another run",
            )
        with np.load(weights) as stored:
            return {name: stored[name] for name in stored.files}


class _Damage(Exception):
    def __init__(self, path: pathlib.Path, what: str) -> None:
        super().__init__(
            f"The state of the run in {str(path)!r} is damaged: {what}. Put the file back from a "
            "copy, or start over in another directory."
        )


def as_array(variable: keras.Variable) -> np.ndarray:
    """Returns the value; small floats as float32, which is exact and which NumPy can write.

    Args:
        variable: `keras.Variable`.

    Example:
        >>> as_array(keras.Variable([1.5], dtype="bfloat16"))
        array([1.5], dtype=float32)
    """
    array = keras.ops.convert_to_numpy(variable)
    return array if array.dtype.kind in "biuf" else array.astype("float32")


def _signed(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a state as its file is read back, with a checksum of everything else in it."""
    text = json.dumps({k: v for k, v in state.items() if k != "checksum"}, default=os.fspath)
    # As it is read back: keys are strings, tuples are lists.
    content = json.loads(text)
    ordered = json.dumps(content, sort_keys=True)
    return {**content, "checksum": hashlib.sha256(ordered.encode()).hexdigest()}


def _file_checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
