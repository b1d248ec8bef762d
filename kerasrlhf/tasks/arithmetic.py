"""Word problems with small numbers, in the style of GSM8K, whose answers can be verified."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasrlhf.data.records import Record, Records
from kerasrlhf.tasks.task import Task, column
from kerasrlhf.types import require_int

_NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim", "Lucy", "Jack", "Amy")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "shells", "stamps")
# How a number changes: the sentence, the sign, and the smallest and largest second number.
_CHANGES = (
    ("{name} gets {n} more.", "+", 2, 20),
    ("A friend gives {name} {n} {things}.", "+", 2, 20),
    ("{name} loses {n}.", "-", 2, 20),
    ("{name} gives away {n} {things}.", "-", 2, 20),
    ("Then the number becomes {n} times as large.", "*", 2, 5),
)
_ANSWER = re.compile(r"answer is\s*\$?\s*(-?\d[\d,]*)", re.IGNORECASE)

# So many problems in a row that are known: there are hardly any others.
_IN_VAIN = 10_000


class Arithmetic(Task):
    r"""Word problems, answered with a calculation and "The answer is 7".

    Records have `question`, `answer` (an int) and, for demonstrations, `solution`. The reward has
    two parts: `correct`, and with a small weight `format`, whether there is an answer at all.

    Args:
        template: str. The prompt, with `{question}`. Defaults to
            `"Question: {question}\nAnswer:"`.
        format_weight: float. Weight of `format`. Defaults to 0.1.
        length: int. Most tokens of a response. Defaults to 40.

    Example:
        >>> task = rlhf.tasks.Arithmetic()
        >>> record = {"question": "What is 3 + 4?", "answer": 7, "solution": "3 + 4 = 7."}
        >>> task.demonstrations([record])[0]["response"]
        ' 3 + 4 = 7. The answer is 7.'
        >>> task.correct([" The answer is 7.", " 7"], answer=[7, 7])
        [1.0, 0.0]
    """

    stop_strings = ("\n",)

    def __init__(
        self,
        template: str = "Question: {question}\nAnswer:",
        format_weight: float = 0.1,
        length: int = 40,
    ) -> None:
        self.template, self.format_weight, self.length = template, format_weight, length

    def prompt(self, record: Record) -> str:
        """Returns the template with the question."""
        return self.template.format(question=column(record, "question"))

    def target(self, record: Record) -> str | None:
        """Returns the solution and the answer; None without a solution."""
        if record.get("solution") is None:
            return None
        return f" {record['solution']} The answer is {column(record, 'answer')}."

    def rewards(self) -> dict[str, Any]:
        """Returns `correct` and `format`."""
        return {"correct": self.correct, "format": (self.is_answered, self.format_weight)}

    def metrics(self) -> dict[str, Callable]:
        """Returns `accuracy` and `format`."""
        return {"accuracy": self.correct, "format": self.is_answered}

    @staticmethod
    def read(response: str) -> int | None:
        """Returns the number of the last `answer is`, or None if there is none.

        Args:
            response: str.
        """
        found = _ANSWER.findall(response)
        return int(found[-1].replace(",", "")) if found else None

    def correct(self, responses: list[str], answer: list[int]) -> list[float]:
        """Returns 1 for responses with the right answer, and 0 for others."""
        pairs = zip(responses, answer, strict=True)
        return [float(self.read(response) == wanted) for response, wanted in pairs]

    def is_answered(self, responses: list[str]) -> list[float]:
        """Returns 1 for responses that have an answer, and 0 for others."""
        return [float(self.read(response) is not None) for response in responses]


def problems(count: int, steps: int = 2, largest: int = 20, seed: int = 0) -> Records:
    """Returns different word problems with their solutions.

    Args:
        count: int, at least 1.
        steps: int, at least 1. Calculations of a problem. Defaults to 2.
        largest: int, at least 5. Largest number at the start. Defaults to 20.
        seed: int, at least 0. Defaults to 0.

    Returns:
        List of dicts with `question`, `solution` and `answer`.

    Raises:
        ValueError: If a number is outside its range, or there are not so many problems.

    Example:
        >>> (record,) = rlhf.tasks.arithmetic.problems(1, steps=1)
        >>> sorted(record), type(record["answer"]).__name__
        (['answer', 'question', 'solution'], 'int')
    """
    require_int("count", count, minimum=1)
    require_int("steps", steps, minimum=1)
    require_int("largest", largest, minimum=5)
    generator = np.random.default_rng(require_int("seed", seed, minimum=0))
    found: dict[str, Record] = {}
    in_vain = 0
    while in_vain < _IN_VAIN:
        record = _problem(generator, steps, largest)
        in_vain += 1
        if record is not None and record["question"] not in found:
            found[record["question"]] = record
            in_vain = 0
        if len(found) == count:
            return [*found.values()]
    raise ValueError(
        f"Found only {len(found)} different problems with steps={steps} and largest={largest}. "
        f"Received: count={count}."
    )


def _problem(generator: np.random.Generator, steps: int, largest: int) -> Record | None:
    """Returns a problem, or None for one with a negative or a large number."""
    name, things = str(generator.choice(_NAMES)), str(generator.choice(_THINGS))
    number = int(generator.integers(2, largest + 1))
    sentences, calculations = [f"{name} has {number} {things}."], []
    for _ in range(steps):
        text, sign, low, high = _CHANGES[generator.integers(len(_CHANGES))]
        n = int(generator.integers(low, high + 1))
        after = {"+": number + n, "-": number - n, "*": number * n}[sign]
        if not 0 <= after <= 200:
            return None
        sentences.append(text.format(name=name, things=things, n=n))
        calculations.append(f"{number} {sign} {n} = {after}.")
        number = after
    question = " ".join([*sentences, f"How many {things} does {name} have at the end?"])
    return {"question": question, "solution": " ".join(calculations), "answer": number}
