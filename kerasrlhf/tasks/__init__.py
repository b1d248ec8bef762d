"""Tasks: prompts, a measure of what is wanted, and people who can be simulated."""

from kerasrlhf.tasks import sentiment, stories

__all__ = ["sentiment", "stories"]
