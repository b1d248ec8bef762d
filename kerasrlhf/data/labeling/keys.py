"""The keys of labeling, the same in a notebook and in a terminal."""

from __future__ import annotations

KEYS = {"l": "left", "r": "right", "t": "tie", "s": "skip", "u": "undo"}


def action_of(typed: str) -> str | None:
    """Returns the action of a key or of the start of a word.

    Args:
        typed: str.

    Returns:
        str, a verdict or `"undo"`; or None.

    Example:
        >>> action_of("L"), action_of("right"), action_of("x")
        ('left', 'right', None)
    """
    word = typed.strip().lower()
    action = KEYS.get(word[:1])
    return action if action is not None and action.startswith(word) else None
