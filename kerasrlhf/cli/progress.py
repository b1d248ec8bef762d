"""The folder of a run, with one layout for all recipes, and the messages of a run."""

import os
import pathlib
import shutil
import sys
import time
from typing import Any

from kerasrlhf import files

_CONTENTS = {
    "model": "the trained model, a keras-hub preset",
    "report.json": "settings, figures and samples",
    "samples.jsonl": "responses at every validation",
    "winners.jsonl": "the best responses, demonstrations for SFT",
    "curves.png": "the course of the training",
    "logs": "curves: tensorboard --logdir {output}",
    "state": "what --resume continues from",
}
_TRIALS = "smoke"
_MEMBERS = "member_*"  # of an ensemble, each with its logs and state


class Progress:
    """Announces the steps of a run, and looks after the folder of its results.

    Every recipe uses the same names in it, such as `model`, `report.json`, `logs` and `state`. Of
    several workers the first announces and writes.

    Args:
        output: str or path. The folder.
        resume: bool or None. Whether to continue the run in the folder; None if the recipe cannot.
            Defaults to None.
        overwrite: bool. Whether to remove the results of an earlier run, at the first `step`: the
            models and data of this run are loaded by then. The results of trials, in a subfolder
            of `smoke`, are always replaced. Defaults to False.

    Raises:
        ValueError: If the folder holds a run that is neither continued nor overwritten.

    Example:
        >>> import tempfile
        >>> output = tempfile.mkdtemp()
        >>> rlhf.cli.Progress(output).finish({"score": 1.0})  # doctest: +ELLIPSIS
        <BLANKLINE>
        Done after 0 s. Results in ...
          report.json    settings, figures and samples
        >>> rlhf.cli.Progress(output, overwrite=True).finish({"score": 2.0})  # doctest: +ELLIPSIS
        <BLANKLINE>
        Done after 0 s. Results in ...
          report.json    settings, figures and samples
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        resume: bool | None = None,
        overwrite: bool = False,
    ) -> None:
        self.output = pathlib.Path(output)
        self._start = time.perf_counter()
        self._replaces = not resume and (overwrite or self.output.parent.name == _TRIALS)
        if resume or self._replaces:
            return
        if any((self.output / name).exists() for name in ("report.json", "state")):
            mend = "continue it with --resume, " if resume is not None else ""
            raise ValueError(
                f"{self.output} holds a run: {mend}replace it with --overwrite, or change --output."
            )

    @property
    def verbose(self) -> int:
        """How Keras shows its progress: a bar on a terminal, or else a line an epoch."""
        if not files.writes():
            return 0
        return 1 if sys.stdout.isatty() else 2

    def step(self, text: str) -> None:
        """Prints a heading with the seconds since the run began."""
        self._clear()
        self._write(f"\n[{time.perf_counter() - self._start:4.0f} s] {text}")

    def finish(self, report: dict[str, Any]) -> None:
        """Writes `report.json`, and prints what the folder holds."""
        if not files.writes():
            return
        self._clear()
        files.write_json(self.output / "report.json", report)
        seconds = time.perf_counter() - self._start
        self._write(f"\nDone after {seconds:.0f} s. Results in {self.output}")
        for name, text in _CONTENTS.items():
            path = self.output / name
            if path.exists():
                shown = f"{name}/" if path.is_dir() else name
                self._write(f"  {shown:<15}{text.format(output=self.output)}")

    def _clear(self) -> None:
        """Removes what recipes wrote before this run, once, and nothing else."""
        if not self._replaces or not files.writes():
            return
        self._replaces = False
        for path in [self.output / name for name in _CONTENTS] + [*self.output.glob(_MEMBERS)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        if not files.writes():
            return
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
