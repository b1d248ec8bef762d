"""Example tasks: prompts, a measure of what is wanted, and simulated annotators."""

from kerasrlhf.tasks import sentiment, stories

__all__ = ["sentiment", "stories"]
