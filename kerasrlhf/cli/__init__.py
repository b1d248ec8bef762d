"""Turns a frozen dataclass into a command line, for recipes.

One dataclass is the whole configuration of a recipe. `parse` turns its fields into options and its
docstring into the help text, and rejects unknown options. `check_ranges` checks the values, `run`
reports wrong input in one line, and `load_function` finds Python functions named on the command
line.
"""

from kerasrlhf.cli.options import parse
from kerasrlhf.cli.ranges import check_ranges
from kerasrlhf.cli.running import load_function, run

__all__ = ["check_ranges", "load_function", "parse", "run"]
