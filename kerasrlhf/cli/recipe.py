"""The names of the command line that a recipe uses; import them before Keras.

Keras and TensorFlow, which take seconds, are then loaded after the options are checked, and
`--help` does not load them at all.
"""

from kerasrlhf.cli.delay import delay_keras
from kerasrlhf.cli.progress import Progress
from kerasrlhf.cli.ranges import check_ranges
from kerasrlhf.cli.running import run
from kerasrlhf.cli.task_config import SMOKE, SMOLLM2, TaskConfig

__all__ = ["SMOKE", "SMOLLM2", "Progress", "TaskConfig", "check_ranges", "run"]

delay_keras()
