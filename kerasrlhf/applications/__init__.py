"""A task from start to end: fine-tuning, reinforcement, and a table of what each has changed."""

from kerasrlhf.applications.tables import Stage, Table
from kerasrlhf.applications.task_run import TaskRun, read_records

__all__ = ["Stage", "Table", "TaskRun", "read_records"]
