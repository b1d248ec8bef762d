"""Dialogue: the next turn of an assistant, scored by a model of people's preferences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasrlhf.data.records import Record, Records
from kerasrlhf.tasks import rules
from kerasrlhf.tasks.task import Prompt, Task, column


class Dialogue(Task):
    r"""Replies in a dialogue, with a reward model that has learned from pairs.

    Records have `prompt`, a text that ends with the name of the assistant or a list of messages,
    and `chosen` and `rejected` replies. `preferences` returns the pairs for a reward model.

    A policy that is trained against a reward model finds its errors. So the metrics come from
    another one, the `judge`: it should have learned from other pairs.

    Args:
        reward: `RewardModel`, or a function of prompts and responses. Defaults to None: none yet,
            as long as only demonstrations and preferences are needed.
        judge: the same, for `metrics`. Defaults to None: `reward`.
        repetition_weight: float. Weight of the fraction of repeated pairs of words, not above 0.
            Defaults to -0.5.
        stop_strings: tuple of str. Texts that end a reply. Defaults to `("\n\nHuman:",)`, the next
            turn of the template `"plain"`.
        length: int. Most tokens of a response. Defaults to 64.

    Example:
        >>> def brevity(prompts, responses):
        ...     return [-len(text.split()) for text in responses]
        >>> task = rlhf.tasks.Dialogue(brevity)
        >>> record = {"prompt": "Human: Hi!\n\nAssistant:", "chosen": "Hello.", "rejected": "No."}
        >>> task.demonstrations([record])[0]["response"]
        ' Hello.'
        >>> task.preferences([record])[0]["rejected"]
        ' No.'
    """

    def __init__(
        self,
        reward: Any = None,
        judge: Any = None,
        repetition_weight: float = -0.5,
        stop_strings: tuple[str, ...] = ("\n\nHuman:",),
        length: int = 64,
    ) -> None:
        self.reward, self.judge = reward, reward if judge is None else judge
        self.repetition_weight, self.length = repetition_weight, length
        self.stop_strings = tuple(stop_strings)

    def prompt(self, record: Record) -> Prompt:
        """Returns the prompt of the record."""
        return column(record, "prompt")

    def target(self, record: Record) -> str | None:
        """Returns the reply that was chosen; None if there is none."""
        chosen = record.get("chosen")
        return None if chosen is None else reply(record["prompt"], chosen)

    def preferences(self, records: Records) -> Records:
        """Returns records with `prompt`, `chosen` and `rejected`, for `rlhf.data.preferences`.

        Args:
            records: list of dict.
        """
        return [
            {
                "prompt": self.prompt(record),
                "chosen": reply(record["prompt"], column(record, "chosen")),
                "rejected": reply(record["prompt"], column(record, "rejected")),
            }
            for record in records
        ]

    def rewards(self) -> dict[str, Any]:
        """Returns `preference` and `repetition`."""
        repetition = rules.repetition, self.repetition_weight
        return {"preference": self.reward, "repetition": repetition}

    def metrics(self) -> dict[str, Callable]:
        """Returns `judge`, `win` (against the chosen reply), `words` and `repetition`."""
        return {
            "judge": Judged(self.judge),
            "win": Judged(self.judge, against_target=True),
            "words": rules.words,
            "repetition": rules.repetition,
        }


@dataclasses.dataclass(frozen=True)
class Judged:
    """Scores responses with a reward model or function, as a metric.

    Args:
        judge: `RewardModel`, or a function of prompts and responses.
        against_target: bool. Whether to return 1 where the response has a higher score than the
            target, and 0 where it does not, instead of scores. Defaults to False.

    Example:
        >>> def brevity(prompts, responses):
        ...     return [-len(text) for text in responses]
        >>> rlhf.tasks.dialogue.Judged(brevity)(["?", "?"], ["ab", "a"], target=["", "abc"])
        [-2.0, -1.0]
        >>> win = rlhf.tasks.dialogue.Judged(brevity, against_target=True)
        >>> win(["?", "?"], ["ab", "a"], target=["", "abc"])
        [0.0, 1.0]
    """

    judge: Any
    against_target: bool = False

    def __call__(
        self, prompts: list[Any], responses: list[str], target: list[str] | None = None
    ) -> list[float]:
        """Returns one number per response."""
        scores = self._scores(prompts, responses)
        if self.against_target:
            scores = (scores > self._scores(prompts, target or [])).astype("float64")
        return scores.tolist()

    def _scores(self, prompts: list[Any], responses: list[str]) -> np.ndarray:
        # A reward model, which also has other uses of a call, or a function.
        function = getattr(self.judge, "score", self.judge)
        return np.asarray(function(prompts, responses), "float64")


def reply(prompt: Prompt, text: str) -> str:
    """Returns a reply as it follows a prompt: after a blank if the prompt is a text without one.

    Args:
        prompt: str or list of messages.
        text: str.

    Example:
        >>> rlhf.tasks.dialogue.reply("Assistant:", "Hello.")
        ' Hello.'
    """
    needs_blank = isinstance(prompt, str) and prompt and not prompt[-1].isspace()
    return f" {text}" if needs_blank and text[:1] and not text[0].isspace() else text
