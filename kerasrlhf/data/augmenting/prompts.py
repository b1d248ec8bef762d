"""Changes of prompts: other words around what the user says, and less of what was said before."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasrlhf.data.augmenting.words import with_content
from kerasrlhf.data.records import Text

SLOT = "{prompt}"
# The last turn of the user in the form of hh-rlhf, between its mark and the start of the reply.
_LAST_TURN = re.compile(r"((?:.*\n\n|^)Human: ?)(.*?)(\n\nAssistant:\s*)", re.DOTALL)
_TURN = re.compile(r"(?:^|(?<=\n\n))Human:")
_SPACES = re.compile(r"(?<=\S)\s+(?=\S)")


def check_templates(templates: Any) -> list[str]:
    """Returns the list of templates.

    Raises:
        ValueError: If there is none, or one has not `{prompt}` in it.

    Example:
        >>> check_templates(["Please answer: {prompt}"])
        ['Please answer: {prompt}']
    """
    found = [templates] if isinstance(templates, str) else [*(templates or ())]
    if not found or not all(isinstance(text, str) and SLOT in text for text in found):
        raise ValueError(
            "The rule 'wrap_prompts' needs `templates`: texts with {prompt} in the place of the "
            f"prompt, such as 'Please answer: {{prompt}}'. Received: {templates!r}."
        )
    return found


def wrap(prompt: Text, template: str) -> Text:
    r"""Returns a prompt with a template around what the user says last.

    Args:
        prompt: str or list of messages.
        template: str with `{prompt}` in it.

    Returns:
        str or list of messages. In messages, and in texts in the form of hh-rlhf, the last turn
        of the user changes; otherwise the whole text does.

    Example:
        >>> wrap("Who is Tom?", "Please answer: {prompt}")
        'Please answer: Who is Tom?'
        >>> wrap("Human: Who is Tom?\n\nAssistant:", "Please answer: {prompt}")
        'Human: Please answer: Who is Tom?\n\nAssistant:'
    """

    def fill(text: str) -> str:
        return template.replace(SLOT, text)

    if isinstance(prompt, str):
        turn = _LAST_TURN.fullmatch(prompt)
        return turn[1] + fill(turn[2]) + turn[3] if turn else fill(prompt)
    users = _users(prompt)
    if not users:
        return prompt
    return [with_content(x, fill) if i == users[-1] else x for i, x in enumerate(prompt)]


def cut(prompt: Text, random: np.random.Generator, keep_start: bool = False) -> Text:
    r"""Returns a shorter prompt.

    Args:
        prompt: str or list of messages.
        random: NumPy generator.
        keep_start: bool. Whether a text without turns loses words at its end, not at its start,
            which a response does not follow on. Defaults to False.

    Returns:
        str or list of messages. Messages, and texts in the form of hh-rlhf, lose their first turns
        up to one of the user's; messages of the system, and what precedes the first turn of a
        text, stay. Of a text without turns at least half of the words stay. A dialogue of one turn
        and a single word are returned as they are.

    Example:
        >>> import numpy as np
        >>> cut("Human: Hi\n\nAssistant: Yes?\n\nHuman: Go on.\n\nAssistant:",
        ...     np.random.default_rng(0))
        'Human: Go on.\n\nAssistant:'
        >>> cut("Once upon a time", np.random.default_rng(0), keep_start=True)
        'Once upon a'
    """
    if not isinstance(prompt, str):
        users = _users(prompt)
        start = _one_of(users[1:], random, default=0)
        kept = [x for x in prompt[:start] if x.get("role") == "system"]
        return [*kept, *prompt[start:]]
    turns = [turn.start() for turn in _TURN.finditer(prompt)]
    if turns:
        return prompt[: turns[0]] + prompt[_one_of(turns[1:], random, default=turns[0]) :]
    gaps = [gap.span() for gap in _SPACES.finditer(prompt)]
    # Half of the words, rounded up, stay in any case.
    least = math.ceil((len(gaps) + 1) / 2)
    if keep_start:
        ends = [start for start, _ in gaps[least - 1 :]]
        return prompt[: _one_of(ends, random, default=len(prompt))]
    starts = [end for _, end in gaps[: len(gaps) + 1 - least]]
    return prompt[_one_of(starts, random, default=0) :]


def _one_of(places: Sequence[int], random: np.random.Generator, default: int) -> int:
    return places[int(random.integers(len(places)))] if places else default


def _users(messages: Sequence[dict[str, Any]]) -> list[int]:
    return [i for i, message in enumerate(messages) if message.get("role") == "user"]
