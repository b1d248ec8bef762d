"""A task from start to end: fine-tuning, reinforcement, and a table of what each has changed."""

from kerasrlhf.applications.tables import Stage, Table
from kerasrlhf.applications.task_run import TaskRun

__all__ = ["Stage", "Table", "TaskRun"]
