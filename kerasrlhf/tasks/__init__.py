"""Tasks: prompts, targets, rewards and metrics; example data, and simulated annotators."""

from kerasrlhf.tasks import (
    arithmetic,
    classification,
    dialogue,
    ner,
    rules,
    sentiment,
    stories,
    summarization,
)
from kerasrlhf.tasks.arithmetic import Arithmetic
from kerasrlhf.tasks.classification import Classification
from kerasrlhf.tasks.dialogue import Dialogue
from kerasrlhf.tasks.ner import NER
from kerasrlhf.tasks.sentiment import Sentiment
from kerasrlhf.tasks.summarization import Summarization
from kerasrlhf.tasks.task import Task

__all__ = [
    "NER",
    "Arithmetic",
    "Classification",
    "Dialogue",
    "Sentiment",
    "Summarization",
    "Task",
    "arithmetic",
    "classification",
    "dialogue",
    "ner",
    "rules",
    "sentiment",
    "stories",
    "summarization",
]
