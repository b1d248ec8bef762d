"""Changes of a few words of a text: deleting, swapping and replacing them by synonyms."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasrlhf.data.records import Text
from kerasrlhf.tokens import SampledText

# Letters between spaces and punctuation. The marks of templates (`<|user|>`, `[INST]`, `Human:`),
# code, addresses and numbers are no words.
_WORD = re.compile(
    r"(?<![\w<>|\[\]{}=/\\@#&.-])[^\W\d_]+(?:['\u2019-][^\W\d_]+)*(?![\w<>|\[\]{}=/\\@:]|['\u2019.-]\w)"
)
_FIXED_ROLES = ("system", "tool")
# Shorter words are mostly "a", "in" and "was", whose synonyms are other things.
_LEAST_LETTERS = 4

Change = Callable[[str, float, np.random.Generator], str]


def changed(value: Text, change: Callable[[str], str]) -> Text:
    """Returns a text with a change in it, of messages in all but those of systems and tools.

    Args:
        value: str or list of messages. The text of a sampled response stays as it is: its tokens
            are what was sampled.
        change: Function of a str that returns a str.

    Returns:
        str or list of messages; the argument is not modified.

    Example:
        >>> changed([{"role": "user", "content": "Hi"}], str.upper)
        [{'role': 'user', 'content': 'HI'}]
    """
    if isinstance(value, SampledText):
        return value
    if isinstance(value, str):
        return change(value)
    return [
        message if message.get("role") in _FIXED_ROLES else with_content(message, change)
        for message in value
    ]


def with_content(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Returns a message with a change in its content, which may be a list of parts."""

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [
                {**part, "text": of(part["text"])}
                if isinstance(part, dict) and "text" in part
                else part
                for part in value
            ]
        return value  # Calls of tools have no content.

    return {**message, "content": of(message.get("content"))}


def _count(rate: float, words: int) -> int:
    return max(1, round(rate * words))


def delete(text: str, rate: float, random: np.random.Generator) -> str:
    """Returns a text without some of its words; at least one is left.

    Args:
        text: str.
        rate: float, in (0, 1). The fraction of words, of which at least one is deleted.
        random: NumPy generator.

    Returns:
        str. The text itself if it has fewer than two words.

    Example:
        >>> import numpy as np
        >>> delete("Human: Tom was very sad.", 0.25, np.random.default_rng(0))
        'Human: Tom was very.'
    """
    words = [*_WORD.finditer(text)]
    count = min(_count(rate, len(words)), len(words) - 1)
    if count < 1:
        return text
    # From the last to the first, so that places stay valid.
    for i in sorted(random.choice(len(words), count, replace=False), reverse=True):
        start, end = words[i].span()
        before, after = text[:start], text[end:]
        # One of the two spaces around a word goes with it.
        if after.startswith(" "):
            after = after[1:]
        elif before.endswith(" "):
            before = before[:-1]
        text = before + after
    return text


def swap(text: str, rate: float, random: np.random.Generator) -> str:
    """Returns a text in which some words have changed places with the next one.

    Args:
        text: str.
        rate: float, in (0, 1). The fraction of words that do, at least one.
        random: NumPy generator.

    Returns:
        str. The text itself if no line has two words.

    Example:
        >>> import numpy as np
        >>> swap("Tom was very sad.", 0.25, np.random.default_rng(0))
        'Tom was sad very.'
    """
    words = [*_WORD.finditer(text)]
    # Words of two lines may be of two speakers.
    places = [
        i for i in range(len(words) - 1) if "\n" not in text[words[i].end() : words[i + 1].start()]
    ]
    if not places:
        return text
    written = [word[0] for word in words]
    for i in random.choice(places, min(_count(rate, len(words)), len(places)), replace=False):
        written[i], written[i + 1] = written[i + 1], written[i]
    return _rewritten(text, words, dict(enumerate(written)))


def replacing(synonyms: Callable[[str], Sequence[str]]) -> Change:
    """Returns the function that replaces some words of a text by synonyms.

    Args:
        synonyms: Function of a word in lower case that returns its synonyms, perhaps none.

    Returns:
        Function with the arguments and results of `delete`.

    Example:
        >>> import numpy as np
        >>> synonyms = {"very": ["really"]}
        >>> replace = replacing(lambda word: synonyms.get(word, []))
        >>> replace("Very sad.", 0.5, np.random.default_rng(0))
        'Really sad.'
    """

    def replace(text: str, rate: float, random: np.random.Generator) -> str:
        words = [*_WORD.finditer(text)]
        missing, found = _count(rate, len(words)), dict[int, str]()
        for i in random.permutation(len(words)).tolist():
            word = words[i][0]
            others = _others(word, synonyms)
            if others:
                found[i] = _as_written(others[random.integers(len(others))], word)
            if len(found) == missing:
                break
        return _rewritten(text, words, found)

    return replace


def _others(word: str, synonyms: Callable[[str], Sequence[str]]) -> list[str]:
    if len(word) < _LEAST_LETTERS:
        return []
    return [other for other in synonyms(word.lower()) if other.lower() != word.lower()]


def _as_written(synonym: str, word: str) -> str:
    """Returns a synonym with the capitals of the word that it replaces."""
    if word.isupper():
        return synonym.upper()
    return synonym[:1].upper() + synonym[1:] if word[0].isupper() else synonym


def _rewritten(text: str, words: list[re.Match[str]], other: dict[int, str]) -> str:
    parts, end = [], 0
    for i, word in enumerate(words):
        parts += [text[end : word.start()], other.get(i, word[0])]
        end = word.end()
    return "".join([*parts, text[end:]])
