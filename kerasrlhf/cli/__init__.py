"""Turns a frozen dataclass into a command line, for recipes.

One dataclass is the whole configuration of a recipe. `parse` turns its fields into options and its
docstring into the help text, and rejects unknown options. `check_ranges` checks the values, `run`
reports wrong input in one line, `Progress` announces the steps of a run and looks after its folder,
and `load_function` finds Python functions named on the command line. A recipe imports these names
from `kerasrlhf.cli.recipe`, which delays Keras.
"""

from kerasrlhf.cli.options import parse
from kerasrlhf.cli.progress import Progress
from kerasrlhf.cli.ranges import check_ranges
from kerasrlhf.cli.running import load_function, run

__all__ = ["Progress", "check_ranges", "load_function", "parse", "run"]
