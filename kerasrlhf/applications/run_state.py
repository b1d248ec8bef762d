"""What a run of a task has found so far, on disk, for a run that continues it."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import keras

from kerasrlhf import files
from kerasrlhf.applications.tables import Stage
from kerasrlhf.callbacks.state_files import StateFiles, as_array
from kerasrlhf.data.records import Records
from kerasrlhf.tokens import SampledText
from kerasrlhf.trainers import settings as plain

_SETTINGS, _STAGES = "settings.json", "stages.json"


class RunState:
    """Keeps the answers and the trained weights of a run, and returns those of the run before.

    Args:
        directory: str or path. Folder of the state; need not exist.
        settings: dict of what JSON can express. What a run that continues must have in common.
        resume: bool. Whether to continue from the state in the folder, if there is one. Defaults
            to False.
        overwrite: bool. Whether to remove a state that is not continued. Defaults to False.

    Raises:
        ValueError: If the run to continue has other settings, or its state cannot be read.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> state = RunState(folder, {"seed": 0})
        >>> state.begin()
        >>> state.keep_stages([Stage("start", [{}], ["A cat."], 8.0)])
        >>> RunState(folder, {"seed": 0}, resume=True).stage(0, "start", [{}])
        Stage(name='start', records=[{}], responses=['A cat.'], perplexity=8.0)
        >>> RunState(folder, {"seed": 1}, resume=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: The run in ... was started with other settings: seed was 0 and is 1. ...
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        settings: dict[str, Any],
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.directory, self._overwrites = pathlib.Path(directory), overwrite
        self._settings = plain.flat(json.loads(json.dumps(settings, default=os.fspath)))
        self._kept: list[dict[str, Any]] = []
        self._has_begun = resume and self._exists
        if self._has_begun:
            self._check_settings()
            if (self.directory / _STAGES).exists():
                self._kept = self._read(_STAGES)

    def begin(self) -> None:
        """Makes the folder that of this run; at its first step.

        Raises:
            ValueError: If it holds the state of a run that is neither continued nor overwritten.
        """
        if self._has_begun:
            return
        if self._exists:
            if not self._overwrites:
                raise ValueError(
                    f"{str(self.directory)!r} holds the state of a run: continue it with "
                    "`resume=True`, replace it with `overwrite=True`, or pass another `output`."
                )
            shutil.rmtree(self.directory)
        files.write_json(self.directory / _SETTINGS, self._settings)
        self._has_begun = True

    def stage(self, index: int, name: str, records: Records, tokenizer: Any = None) -> Stage | None:
        """Returns a stage of the run before; None if it is not kept.

        Args:
            index: int, at least 0. How many stages come before.
            name: str.
            records: list of dict, those of the responses.
            tokenizer: keras-hub tokenizer of the model that answered. Defaults to None.

        Raises:
            ValueError: If the run that is continued had another stage there.
        """
        if index >= len(self._kept):
            return None
        kept = self._kept[index]
        if kept["name"] != name:
            raise ValueError(
                f"The run in {str(self.directory)!r} had {kept['name']!r} as stage {index + 1}, "
                f"and here it is {name!r}. Continue it with the steps that it was started with, or "
                "start over."
            )
        # Reward models score the sampled tokens, which a text alone may not have.
        responses = [
            text if ids is None else SampledText(text, ids, tokenizer)
            for text, ids in zip(kept["responses"], kept["token_ids"], strict=True)
        ]
        return Stage(name, records, responses, kept["perplexity"])

    def keep_stages(self, stages: list[Stage]) -> None:
        """Writes the answers of all stages so far.

        Args:
            stages: list of `Stage`.
        """
        rows = [
            {
                "name": stage.name,
                "responses": stage.responses,
                "token_ids": [getattr(text, "token_ids", None) for text in stage.responses],
                "perplexity": stage.perplexity,
            }
            for stage in stages
        ]
        files.write_json(self.directory / _STAGES, rows)

    def load(self, name: str, model: keras.Model) -> bool:
        """Loads what `keep` has written of a model, and returns whether there is anything.

        Args:
            name: str, as in `keep`.
            model: `keras.Model`, as it was before training.

        Raises:
            ValueError: If the state is damaged, or is of a model with other variables.
        """
        states = StateFiles(self.directory / name)
        if not states.exists:
            return False
        state, arrays = states.read()
        if state["variables"] != _descriptions(model):
            raise ValueError(
                f"The state in {str(states.path)!r} is of a model with other variables than "
                f"{model.name!r}. Build the model as in that run, or start over."
            )
        for index, array in arrays.items():
            model.variables[int(index)].assign(array)
        return True

    def keep(self, name: str, model: keras.Model, before: list[str]) -> None:
        """Writes the trainable variables of a model, and others that training has changed.

        Args:
            name: str, of a folder.
            model: `keras.Model` after training.
            before: list of str, `checksums` before training.
        """
        after = checksums(model)
        arrays = {
            str(index): as_array(variable)
            for index, variable in enumerate(model.variables)
            if variable.trainable or after[index] != before[index]
        }
        state = {"iteration": 0, "variables": _descriptions(model)}
        StateFiles(self.directory / name).write(state, arrays)

    @property
    def _exists(self) -> bool:
        # It is written before everything else.
        return (self.directory / _SETTINGS).exists()

    def _check_settings(self) -> None:
        changed = plain.changes(self._read(_SETTINGS), self._settings)
        if changed:
            differences = (f"{n} was {a!r} and is {b!r}" for n, (a, b) in changed.items())
            raise ValueError(
                f"The run in {str(self.directory)!r} was started with other settings: "
                f"{'; '.join(differences)}. Set what it was, replace the run with `overwrite` "
                "instead of `resume`, or choose another `output`."
            )

    def _read(self, name: str) -> Any:
        path = self.directory / name
        try:
            return files.read_json(path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The state of the run in {str(path)!r} cannot be read: {error}. Put the file back "
                "from a copy, or start over."
            ) from error


def checksums(model: keras.Model) -> list[str]:
    """Returns a checksum of each variable of a model.

    Args:
        model: `keras.Model`.
    """
    return [plain.fingerprint([variable]) for variable in model.variables]


def checksum_of(records: Records) -> str:
    """Returns a short checksum of records.

    Args:
        records: list of dict.

    Example:
        >>> checksum_of([{"text": "a"}]) == checksum_of([{"text": "b"}])
        False
    """
    text = json.dumps(records, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _descriptions(model: keras.Model) -> list[list[Any]]:
    return [[list(v.shape), str(v.dtype)] for v in model.variables]
