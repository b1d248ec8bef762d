"""Continuing a run that was interrupted."""

from __future__ import annotations

import os
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasrlhf.callbacks import iterations, state_files
from kerasrlhf.trainers import settings
from kerasrlhf.trainers.on_policy import OnPolicyTrainer

_MEMORY = "memory/"
_RATE = "optimizer.learning_rate"


class Resume(iterations.IterationCallback):
    """Saves an on-policy run after its iterations, and continues it from there.

    The same script, started again, ends with the same weights, optimizer slots, KL coefficient,
    remembered rollouts and history as a run that nothing interrupted: `fit` loads the last state,
    reads its data from the start, and passes over the iterations that are done already, showing
    their recorded statistics and validation results. With more `epochs` it then continues; with
    the same number it only passes over.

    Build model, trainer and dataset with the same seeds. Datasets of `kerasrlhf.data` may have been
    read before; build any other one again. Other callbacks run during passed-over epochs too, and
    the weights that they find there are those of the loaded state.

    The settings of the run are saved with it and compared: the trainer's arguments, the KL
    controller, the optimizer with its learning rate, the reward's and the reference's code or
    weights, and the prompts of the first 16 batches with their size. `on_change` determines what
    happens if something differs.

    SIGTERM, SIGHUP and Ctrl-C save the last finished iteration, also between two states, and end
    the program with one line and the status 128 + signal (143, 129, 130). In a notebook Ctrl-C
    ends `fit` alone: the trainer is then as after its last finished iteration. A signal that
    arrives during updates waits for their end, unless nothing would be lost; a second one does not
    wait.

    Of several workers the first writes, and all read the state in a folder that they share. They
    may be more or fewer than before, or one process.

    Args:
        directory: str or path. Where the state is kept: `resume.json` and a file of arrays that it
            names, and the state before it, `resume-former.json`. A new state is complete and on
            the disk before it takes the place of the previous one. A damaged state is passed over
            with a warning for the one before. Other files in the folder stay.
        every: int, at least 1. Iterations between two states; the end of `fit` is always saved.
            Defaults to 1.
        on_change: `"refuse"` or `"warn"`. With `"refuse"`, settings, reward, reference or prompts
            that differ from those of the saved run are a `ValueError` that names them. With
            `"warn"` they are a warning, and the new ones hold from here on, the learning rate and
            the KL coefficient included. Defaults to `"refuse"`.

    Raises:
        ValueError: If, at the start of `fit`, the folder cannot be written to, the state is damaged
            or of another trainer class, seed or shapes, settings differ with
            `on_change="refuse"`, or the model is no on-policy trainer.

    Example:
        >>> import tempfile
        >>> callback = rlhf.callbacks.Resume(tempfile.mkdtemp(), every=5)
        >>> callback.has_state
        False
    """

    # After the callbacks that write about an iteration: a saved iteration is written by all.
    runs_last = True

    def __init__(
        self, directory: str | os.PathLike, every: int = 1, on_change: str = "refuse"
    ) -> None:
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.every = iterations.every("every", every)
        if on_change not in ("refuse", "warn"):
            raise ValueError(
                f'`on_change` must be "refuse" or "warn". Received: on_change={on_change!r}.'
            )
        self.on_change = on_change
        self._files = state_files.StateFiles(self.directory)
        self._saved: int | None = None
        self._has_other_prompts = False
        self._settings: dict[str, Any] = {}

    @property
    def has_state(self) -> bool:
        """Whether there is a state to continue from."""
        return self._files.exists

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Loads the last state, if there is one."""
        super().on_train_begin(logs)
        if not self.is_on_policy:
            raise ValueError(
                "`Resume` saves on-policy trainers such as `rlhf.PPO`. Received a model of type "
                f"{type(self.model).__name__}: use `keras.callbacks.BackupAndRestore` for it."
            )
        # Before hours of training, not after them.
        self.workers.by_chief("opening the folder of its state", self._files.check_writable)
        self._check_shared()
        self._saved, self._has_other_prompts = None, False
        self._settings = self.trainer.settings()
        if self.workers.by_chief("looking for a state", lambda: self.has_state):
            self._load(*self._files.read())
        else:
            self.trainer.replay.start([])
        # No state is replaced before all have read it.
        self.workers.check_same(iteration_of_the_state=int(self.trainer.iteration.numpy()))
        self.trainer.interruption.save_with(self._save_last, self._is_saved)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves a state where it is due, then lets a signal that has waited end the program."""
        super().on_train_batch_end(batch, logs)
        self.trainer.interruption.release()

    def on_iteration_end(self, iteration: int) -> None:
        """Saves a state where it is due."""
        if iteration % self.every == 0:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the results of a validation, to show them again after a resume."""
        validated = iterations.validated(logs)
        if not validated or self.trainer.replay.active:
            return
        self.trainer.replay.record_validation(validated)
        if self._is_saved() and self.workers.is_chief:
            # The weights are saved already; only the validation is new.
            self._files.rewrite(self._state())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Saves the end of the run."""
        # Other callbacks may change weights at the end, as early stopping does.
        if self.workers.is_chief and not (self._is_saved() and self._files.holds(self._arrays())):
            self._save()
        self.trainer.replay.stop()

    def _check_shared(self) -> None:
        """Raises a `ValueError` if workers do not see what the first one writes."""
        if self.workers.count == 1:
            return
        name = self.workers.by_chief("writing to the folder of its state", self._files.mark)
        sees = self.workers.exchange((self.directory / name).exists())
        if self.workers.is_chief:
            (self.directory / name).unlink()
        if not all(sees):
            raise ValueError(
                f"Worker {sees.index(False)} does not see the files that worker 0 writes to "
                f"{str(self.directory)!r}. All workers need one folder for the state: pass one on "
                "a file system that they share."
            )

    def _is_saved(self) -> bool:
        # A signal may arrive while a graph is traced, where variables have no values.
        with tf.init_scope():
            return self._saved == int(self.trainer.iteration.numpy())

    def _save_last(self) -> str:
        """Saves what is not saved yet, and says where the state is."""
        if self.trainer.replay.records and not self.trainer.replay.active and not self._is_saved():
            self._save()
        if self._saved is None:
            return "No iteration was finished, and there is no state."
        return (
            f"The state after iteration {self._saved} is in {str(self._files.path)!r}: start the "
            "run again to go on from it."
        )

    def _state(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            **_identity(trainer),
            "iteration": int(trainer.iteration.numpy()),
            "settings": self._settings,
            "learning_rate": _learning_rate(trainer),
            "prompts": trainer.replay.prompts,
            "records": trainer.replay.records,
            "validations": {str(k): v for k, v in trainer.replay.validations.items()},
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        variables = _variables(self.trainer)
        arrays = {f"{i:05d}": state_files.as_array(v) for i, v in enumerate(variables)}
        if self.trainer.memory is not None:
            arrays |= {_MEMORY + name: x for name, x in self.trainer.memory.arrays().items()}
        return arrays

    def _save(self) -> None:
        state = self._state()
        if self.workers.is_chief:
            self._files.write(state, self._arrays())
        self._saved = state["iteration"]

    def _load(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        # 1. The state must be of this trainer: same class, seed, optimizer and shapes.
        trainer, path = self.trainer, self._files.path
        for name, ours in _identity(trainer).items():
            if state.get(name) != ours:
                raise ValueError(
                    f"The state in {str(path)!r} is of another run: "
                    f"{_difference(name, state.get(name), ours)} Build the trainer as in that run, "
                    "or pass this one a directory of its own."
                )
        # 2. Settings must be equal, or change on purpose.
        changed = settings.changes(state["settings"], self._settings)
        if changed.get(_RATE, (None, None))[1] == state["learning_rate"]:
            # Another callback has changed it, and the same trainer continues.
            changed.pop(_RATE, None)
        if changed:
            self._differs("; ".join(f"{n} was {a!r} and is {b!r}" for n, (a, b) in changed.items()))
        else:
            self._settings = state["settings"]
        # 3. Load everything, and keep the values of settings that were changed on purpose.
        chosen = [(variable, variable.numpy()) for variable in _chosen(trainer, changed)]
        for index, variable in enumerate(_variables(trainer)):
            variable.assign(arrays[f"{index:05d}"])
        for variable, value in chosen:
            variable.assign(value)
        if trainer.memory is not None:
            kept = [name for name in arrays if name.startswith(_MEMORY)]
            trainer.memory.restore({name.removeprefix(_MEMORY): arrays[name] for name in kept})
        # 4. Replay the logs of the iterations that are done.
        validations = {int(after): result for after, result in state["validations"].items()}
        trainer.replay.start(state["records"], validations, state["prompts"], self._other_prompts)
        self._saved = state["iteration"]

    def _other_prompts(self, iteration: int, recorded: list[int], found: list[int]) -> None:
        if self._has_other_prompts:
            return
        self._has_other_prompts = True
        if len(recorded) == len(found):
            self._differs(
                f"the prompts of iteration {iteration} are others, or in another order. (A "
                "`tf.data.Dataset` that was read before may be at another order: build it again.)"
            )
        else:
            self._differs(f"batch_size was {len(recorded)} and is {len(found)}")

    def _differs(self, what: str) -> None:
        message = f"The run in {str(self._files.path)!r} was saved with other settings: {what}."
        if self.on_change == "refuse":
            raise ValueError(
                f"{message} Set what it was, pass this run a directory of its own, or pass "
                '`Resume(..., on_change="warn")` to go on with what is new.'
            )
        warnings.warn(f"{message} It goes on with what is new.", UserWarning, stacklevel=2)


def _identity(model: OnPolicyTrainer) -> dict[str, Any]:
    """Returns what a state and the trainer that continues from it must have in common."""
    return {
        "version": state_files.VERSION,
        "trainer": type(model).__name__,
        "seed": model.seed,
        "optimizer": type(model.optimizer).__name__,
        "memory": None if model.memory is None else model.memory.capacity,
        "variables": _descriptions(model),
    }


def _variables(model: OnPolicyTrainer) -> list[keras.Variable]:
    """Returns everything that training changes, in an order that rebuilding keeps.

    This is not `save_weights`, which merges LoRA adapters: the reference is the weights without
    them.
    """
    return [*model.variables, *model.optimizer.variables]


def _descriptions(model: OnPolicyTrainer) -> list[list[Any]]:
    """Returns name, shape and dtype of each; optimizer slots have counters in their names."""
    named = [(v.name, v) for v in model.variables]
    named += [("optimizer", v) for v in model.optimizer.variables]
    return [[name, list(v.shape), str(v.dtype)] for name, v in named]


def _learning_rate(model: OnPolicyTrainer) -> float | None:
    """Returns the current learning rate, or None with a schedule."""
    rate = model.optimizer.learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else None


def _chosen(model: OnPolicyTrainer, changed: dict[str, Any]) -> list[keras.Variable]:
    """Returns the variables of a state whose values are settings that have changed."""
    chosen = []
    if _RATE in changed:
        chosen.append(model.optimizer.learning_rate)
    if {"kl.class", "kl.coef"} & set(changed):
        chosen.append(model.kl.coef)
    return chosen


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if name != "variables":
        return f"its {name} is {theirs!r}, and here it is {ours!r}."
    if theirs is None or len(theirs) != len(ours):
        return f"it has {len(theirs or [])} variables, and here are {len(ours)}."
    for left, right in zip(theirs, ours, strict=True):
        if left != right:
            break
    return f"it has a variable {left[0]!r} {left[1:]}, where here is {right[0]!r} {right[1:]}."
