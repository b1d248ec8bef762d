"""Pairs as texts for a model that reads both responses and names the better one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from kerasrlhf.checks import require_choice, require_int
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.records import Record
from kerasrlhf.data.sources import Source

LAYOUT = (
    "{prompt}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\nThe better response is Response"
)
_SLOTS = ("{prompt}", "{first}", "{second}")
_TEXTS = ("chosen", "rejected", "ended")


def comparisons(
    pairs: Source,
    *,
    order: str = "both",
    layout: str = LAYOUT,
    answers: Sequence[str] = (" A", " B"),
    template: Template = "plain",
    seed: int = 0,
) -> list[Record]:
    """Writes pairs as demonstrations of a comparison, in both orders.

    A model that reads both responses in one text may prefer a place to a response. In both orders,
    each place is right as often as the other one, so there is nothing to learn from it.

    Args:
        pairs: What `kerasrlhf.data.read` accepts or returns, of the columns that
            `kerasrlhf.data.preferences` reads: `chosen`, `rejected` and perhaps `prompt`.
        order: str. `"both"`: each pair twice; or `"random"`: once, with the chosen response first
            in half of the cases on average. Defaults to `"both"`.
        layout: str with `{prompt}`, `{first}` and `{second}`. Defaults to "Response A: ...".
        answers: two str. The response to imitate if the first is better, and if the second is.
            Defaults to `(" A", " B")`.
        template: str or callable. How messages become a text, see `kerasrlhf.data.dialogue`.
            Defaults to `"plain"`.
        seed: int, at least 0. Defaults to 0.

    Returns:
        list of dict with the columns `prompt` and `response`, for `kerasrlhf.data.demonstrations`;
        `position`, `"first"` or `"second"`, the place of the chosen response; and the other
        columns of the pair.

    Raises:
        ValueError: If an argument is out of its range, or a row has not the columns of a pair.

    Example:
        >>> pairs = [{"prompt": "Who is Tom?", "chosen": "A boy.", "rejected": "No."}]
        >>> one, other = rlhf.data.comparisons(pairs, layout="{prompt} 1) {first} 2) {second}")
        >>> one["prompt"], one["response"]
        ('Who is Tom? 1) A boy. 2) No.', ' A')
        >>> other["prompt"], other["response"]
        ('Who is Tom? 1) No. 2) A boy.', ' B')

    Reference:
        Zheng et al. 2023 (arXiv 2306.05685), section 3.4: position bias.
    """
    require_choice("order", order, ("both", "random"))
    require_int("seed", seed, minimum=0)
    missing = [slot for slot in _SLOTS if not isinstance(layout, str) or slot not in layout]
    if missing:
        raise ValueError(f"`layout` must have {', '.join(missing)} in it. Received: {layout!r}.")
    is_two = isinstance(answers, list | tuple) and len(answers) == 2 and answers[0] != answers[1]
    if not is_two or not all(isinstance(text, str) and text.strip() for text in answers):
        raise ValueError(f"`answers` must be two different texts. Received: {answers!r}.")
    records = records_lib.load(pairs)
    prompts, chosen, *rest = records_lib.preference_texts(records, template)
    if len(rest) != 1:
        raise ValueError("Comparisons are of two responses. Received rankings in 'responses'.")
    found: list[Record] = []
    for row, (prompt, better, worse) in enumerate(zip(prompts, chosen, rest[0], strict=True)):
        places = [0, 1]
        if order == "random":
            places = [int(np.random.default_rng([seed, row]).integers(2))]
        others = {k: v for k, v in records[row].items() if k not in _TEXTS}
        for place in places:
            first, second = (worse, better) if place else (better, worse)
            filled = _filled(layout, prompt.strip(), first.strip(), second.strip())
            answer = {"response": answers[place], "position": ("first", "second")[place]}
            found.append({**others, "prompt": filled, **answer})
    return found


def _filled(layout: str, *texts: str) -> str:
    """Returns a layout with texts in its slots, in one pass: slots in the texts stay."""
    slots = dict(zip(_SLOTS, texts, strict=True))
    return re.sub("|".join(map(re.escape, _SLOTS)), lambda slot: slots[slot[0]], layout)
