"""Rewards and metrics that are rules about the form of a response, without a further package."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from kerasrlhf.types import require_int


def words(responses: list[str]) -> list[int]:
    """Returns the number of words of each response.

    Args:
        responses: list of str.

    Example:
        >>> rlhf.tasks.rules.words([" Tom ran.", ""])
        [2, 0]
    """
    return [len(text.split()) for text in responses]


def repetition(responses: list[str]) -> list[float]:
    """Computes the fraction of pairs of words in a response that repeat an earlier pair.

    Args:
        responses: list of str.

    Returns:
        List of float, in [0, 1]. 0 for a response of fewer than two words.

    Example:
        >>> rlhf.tasks.rules.repetition(["a b a b a", "a b c"])  # ab ba ab ba: two of four
        [0.5, 0.0]
    """
    found = []
    for text in responses:
        listed = text.lower().split()
        pairs = list(itertools.pairwise(listed))
        found.append(1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0)
    return found


def length_rule(low: int, high: int) -> Callable[[list[str]], list[float]]:
    """Returns a reward that is 0 for `low` to `high` words, and falls to -1 outside.

    It falls linearly: -1 at no words, and from twice `high` on.

    Args:
        low: int, at least 1.
        high: int, at least `low`.

    Raises:
        ValueError: If a number is outside its range.

    Example:
        >>> rule = rlhf.tasks.rules.length_rule(2, 4)
        >>> rule(["", "a", "a b", "a b c d e f", "a b c d e f g h i"])
        [-1.0, -0.5, 0.0, -0.5, -1.0]
    """
    require_int("low", low, minimum=1)
    require_int("high", high, minimum=low)

    def length(responses: list[str]) -> list[float]:
        counts = words(responses)
        return [
            -min(1.0, max((low - n) / low, (n - high) / high)) if n < low or n > high else 0.0
            for n in counts
        ]

    return length
