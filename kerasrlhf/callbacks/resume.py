"""Going on with a run that was interrupted."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import numpy as np

from kerasrlhf import files
from kerasrlhf.callbacks import iterations
from kerasrlhf.trainers.on_policy import OnPolicyTrainer

_VERSION = 2
_STATE = "resume.json"
_WEIGHTS = "resume-{iteration:08d}.npz"
_MEMORY = "memory/"


class Resume(iterations.IterationCallback):
    """Saves an on-policy run after its iterations, and goes on from there.

    The same script, started again, ends with the same weights, optimiser slots, KL coefficient,
    remembered rollouts and history as a run that nothing interrupted: `fit` loads the last state,
    reads its data from the beginning, and passes over the iterations that are done already, showing
    their recorded statistics and validation results. With more `epochs` it then goes on; with the
    same it only passes over.

    What this asks of the caller: build model, trainer and a dataset anew, with the same seeds (a
    dataset object that was iterated over before may be at another of its orders). Other callbacks
    run during passed-over epochs too, and one that reads weights there sees those of the loaded
    state. The state keeps the optimiser's learning rate.

    Args:
        directory: where the state is kept: `resume.json`, and a file of weights that it names. A
            new state is complete before it takes the place of the previous one.
        every: int. Iterations between two states; the end of `fit` is always saved.

    Raises:
        ValueError: at the start of `fit`, a state of another trainer class, seed or shapes; or a
            model that is no on-policy trainer.

    Example:
        >>> import tempfile
        >>> callback = Resume(tempfile.mkdtemp(), every=5)
        >>> callback.has_state
        False
    """

    def __init__(self, directory: str | os.PathLike, every: int = 1):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.every = iterations.every("every", every)
        self._saved = None

    @property
    def has_state(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.directory / _STATE).is_file()

    def on_train_begin(self, logs=None):
        if self.trainer is None:
            raise ValueError(
                "`Resume` saves on-policy trainers such as `rlhf.PPO`. Received a model of type "
                f"{type(self.model).__name__}: use `keras.callbacks.BackupAndRestore` for it."
            )
        self._saved = None
        if not self.has_state:
            self.trainer.replay.start([])
            return
        state = files.read_json(self.directory / _STATE)
        self._load(state)
        validations = {int(after): result for after, result in state["validations"].items()}
        self.trainer.replay.start(state["records"], validations)
        self._saved = state["iteration"]

    def on_iteration_end(self, iteration: int) -> None:
        if iteration % self.every == 0:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        logs = iterations.scalars(logs)
        validated = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        if not validated or self.trainer.replay.active:
            return
        self.trainer.replay.record_validation(validated)
        if self._saved == int(self.trainer.iteration.numpy()):
            # The weights are saved already; only the validation is new.
            files.write_json(self.directory / _STATE, self._state())

    def on_train_end(self, logs=None):
        if self._saved != int(self.trainer.iteration.numpy()):
            self._save()
        self.trainer.replay.stop()

    def _state(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            **_identity(trainer),
            "iteration": int(trainer.iteration.numpy()),
            "records": trainer.replay.records,
            "validations": {str(k): v for k, v in trainer.replay.validations.items()},
        }

    def _save(self) -> None:
        state = self._state()
        weights = self.directory / _WEIGHTS.format(iteration=state["iteration"])
        arrays = {f"{i:05d}": _array(v) for i, v in enumerate(_variables(self.trainer))}
        if self.trainer.memory is not None:
            arrays |= {_MEMORY + name: x for name, x in self.trainer.memory.arrays().items()}
        with files.replacing(weights) as temporary:
            np.savez(temporary, **arrays)
        # From here on the new state counts; before, the previous one did.
        files.write_json(self.directory / _STATE, state)
        for former in self.directory.glob("resume-*.npz"):
            if former != weights:
                former.unlink()
        self._saved = state["iteration"]

    def _load(self, state: dict[str, Any]) -> None:
        trainer, path = self.trainer, self.directory / _STATE
        for name, ours in _identity(trainer).items():
            if state.get(name) != ours:
                raise ValueError(
                    f"The state in {str(path)!r} is of another run: "
                    f"{_difference(name, state.get(name), ours)} Build the trainer as in that run, "
                    "or give this one a directory of its own."
                )
        weights = self.directory / _WEIGHTS.format(iteration=state["iteration"])
        if not weights.is_file():
            raise ValueError(
                f"The state in {str(path)!r} needs {weights.name!r} beside it, which is missing. "
                "Put it back, or begin anew in another directory."
            )
        with np.load(weights) as arrays:
            for index, variable in enumerate(_variables(trainer)):
                variable.assign(arrays[f"{index:05d}"])
            if trainer.memory is not None:
                kept = [name for name in arrays.files if name.startswith(_MEMORY)]
                trainer.memory.restore({name.removeprefix(_MEMORY): arrays[name] for name in kept})


def _identity(trainer: OnPolicyTrainer) -> dict[str, Any]:
    """What a state and the trainer that goes on from it must have in common."""
    return {
        "version": _VERSION,
        "trainer": type(trainer).__name__,
        "seed": trainer.seed,
        "optimizer": type(trainer.optimizer).__name__,
        "memory": None if trainer.memory is None else trainer.memory.capacity,
        "variables": _descriptions(trainer),
    }


def _variables(trainer: OnPolicyTrainer) -> list[keras.Variable]:
    """Everything that training changes, in an order that rebuilding keeps.

    Not `save_weights`: it merges LoRA adapters, which the reference must do without.
    """
    return [*trainer.variables, *trainer.optimizer.variables]


def _descriptions(trainer: OnPolicyTrainer) -> list[list[Any]]:
    """Name, shape and dtype of each; names of optimiser slots hold counters of the process."""
    named = [(v.name, v) for v in trainer.variables]
    named += [("optimizer", v) for v in trainer.optimizer.variables]
    return [[name, list(v.shape), str(v.dtype)] for name, v in named]


def _array(variable: keras.Variable) -> np.ndarray:
    """The value; small floats as float32, which holds them exactly and NumPy can write."""
    array = keras.ops.convert_to_numpy(variable)
    return array if array.dtype.kind in "biuf" else array.astype("float32")


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if name != "variables":
        return f"its {name} is {theirs!r}, and here it is {ours!r}."
    if theirs is None or len(theirs) != len(ours):
        return f"it has {len(theirs or [])} variables, and here are {len(ours)}."
    for left, right in zip(theirs, ours, strict=True):
        if left != right:
            break
    return f"it has a variable {left[0]!r} {left[1:]}, where here is {right[0]!r} {right[1:]}."
