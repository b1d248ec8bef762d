"""From a frozen dataclass to a command line, for recipes.

One dataclass is the whole configuration of a recipe. `parse` turns its fields into options, its
docstring into the help text, and refuses what it does not know. `check_ranges` checks the values,
`run` adds one-line errors, and `load_function` takes Python functions from the command line.
"""

from kerasrlhf.cli.options import parse
from kerasrlhf.cli.ranges import check_ranges
from kerasrlhf.cli.running import load_function, run

__all__ = ["check_ranges", "load_function", "parse", "run"]
