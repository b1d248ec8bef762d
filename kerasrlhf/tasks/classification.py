"""Text classification: the response is the word of a label."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kerasrlhf.data.records import Record
from kerasrlhf.tasks.task import Task, column, filled


class Classification(Task):
    r"""Labels of texts, answered with words.

    A response counts by its first line, in lower case and without punctuation at its ends. The
    reward has two parts: `correct`, and with a small weight `valid`, whether it is a label at all.

    With `choices` a model that may only answer with a label is measured, however it would write it:
    `rlhf.evaluation.choice_logprobs` scores them, and `chosen` makes responses of the scores.

    Args:
        labels: list of str, at least two; or dict from the values in the records to words.
        template: str. The prompt, with columns of the record in braces. Defaults to
            `"Text: {text}\nLabel:"`.
        label: str. The column of the label. Defaults to `"label"`.
        valid_weight: float. Weight of `valid`. Defaults to 0.1.
        length: int. Most tokens of a response. Defaults to 8.

    Raises:
        ValueError: If there are fewer than two labels, or two have one word.

    Example:
        >>> task = rlhf.tasks.Classification({1: "positive", 0: "negative"})
        >>> task.demonstrations([{"text": "Great food!", "label": 1}])
        [{'prompt': 'Text: Great food!\nLabel:', 'response': ' positive'}]
        >>> task.correct([" Positive.", " good"], target=[" positive", " positive"])
        [1.0, 0.0]
        >>> task.chosen([[-0.1, -2.3]])
        [' positive']
    """

    stop_strings = ("\n",)

    def __init__(
        self,
        labels: Sequence[str] | Mapping[Any, str],
        template: str = "Text: {text}\nLabel:",
        label: str = "label",
        valid_weight: float = 0.1,
        length: int = 8,
    ) -> None:
        self.words = dict(labels) if isinstance(labels, Mapping) else {x: x for x in labels}
        self.template, self.label, self.valid_weight = template, label, valid_weight
        self.length = length
        known = [self.read(word) for word in self.words.values()]
        if len(known) < 2 or len(set(known)) < len(known) or not all(known):
            raise ValueError(
                "`labels` must be two or more different words, which are not empty. Received: "
                f"{labels!r}."
            )

    def prompt(self, record: Record) -> str:
        """Returns the template with the columns of the record."""
        return filled(self.template, record)

    def target(self, record: Record) -> str | None:
        """Returns a blank and the word of the label; None without a label."""
        if record.get(self.label) is None:
            return None
        label = column(record, self.label)
        if label not in self.words:
            raise ValueError(f"Unknown label {label!r}. Expected one of {[*self.words]}.")
        return f" {self.words[label]}"

    def rewards(self) -> dict[str, Any]:
        """Returns `correct` and `valid`."""
        return {"correct": self.correct, "valid": (self.valid, self.valid_weight)}

    def metrics(self) -> dict[str, Callable]:
        """Returns `accuracy`, `macro_f1` and `valid`."""
        return {"accuracy": self.correct, "macro_f1": self.macro_f1, "valid": self.valid}

    @staticmethod
    def read(response: str) -> str:
        """Returns the answer in a response: its first line, lower case, without punctuation.

        Args:
            response: str.
        """
        line = response.strip().split("\n")[0].lower()
        return line.strip(string.punctuation + string.whitespace)

    @property
    def choices(self) -> list[str]:
        """The responses that are labels, in the order of `labels`."""
        return [f" {word}" for word in self.words.values()]

    def chosen(self, logprobs: npt.ArrayLike) -> list[str]:
        """Returns the most likely label of each row as a response.

        Args:
            logprobs: float `(prompts, labels)`, of `choices`.
        """
        return [self.choices[i] for i in np.asarray(logprobs).argmax(axis=1)]

    def correct(self, responses: list[str], target: list[str]) -> list[float]:
        """Returns 1 for responses whose answer is that of the target, and 0 for others."""
        pairs = zip(responses, target, strict=True)
        return [float(self.read(response) == self.read(wanted)) for response, wanted in pairs]

    def valid(self, responses: list[str]) -> list[float]:
        """Returns 1 for responses whose answer is a label, and 0 for others."""
        known = {self.read(word) for word in self.words.values()}
        return [float(self.read(response) in known) for response in responses]

    def macro_f1(self, responses: list[str], target: list[str]) -> float:
        """Computes the mean of the labels' F1 scores, over labels that are a target.

        Args:
            responses: list of str.
            target: list of str.
        """
        given, wanted = ([self.read(text) for text in texts] for texts in (responses, target))
        scores = []
        for label in dict.fromkeys(wanted):
            hits = sum(g == w == label for g, w in zip(given, wanted, strict=True))
            scores.append(2 * hits / (given.count(label) + wanted.count(label)))
        return float(np.mean(scores))
