"""Turns a frozen dataclass into a command line, for recipes.

One dataclass is the whole configuration of a recipe. `parse` turns its fields into options and its
docstring into the help text, and rejects unknown options. `check_ranges` checks the values, `run`
reports wrong input in one line, `Progress` announces the steps of a run and looks after its folder,
`load_function` finds Python functions named on the command line, and `TaskConfig` has the options
that recipes of tasks share. A recipe imports these names
from `kerasrlhf.cli.recipe`, which delays Keras.
"""

from kerasrlhf.cli.options import parse
from kerasrlhf.cli.progress import Progress
from kerasrlhf.cli.ranges import check_ranges
from kerasrlhf.cli.running import load_function, run
from kerasrlhf.cli.task_config import TaskConfig

__all__ = ["Progress", "TaskConfig", "check_ranges", "load_function", "parse", "run"]
