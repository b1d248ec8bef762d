"""The base of tasks: what a model reads, what it should answer, and how answers are judged."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from kerasrlhf.data.records import Record, Records
from kerasrlhf.types import Sampler

Prompt: TypeAlias = str | list[dict[str, Any]]


class Task(abc.ABC):
    """A task with a prompt, a target, rewards, metrics and an end; abstract.

    A task of your own defines `prompt`, `target`, `rewards` and `metrics` of records of your own.
    Everything else follows from them: demonstrations for fine-tuning, prompts for reinforcement
    learning, and the samplers of both training and validation.

    Functions in `rewards` and `metrics` are called as every reward function: with what their
    signatures name. That may be `prompts`, `responses`, `target`, and every column of a record.

    Attributes:
        length: int. Most tokens of a response. Defaults to 32.
        stop_strings: tuple of str. Texts that end a response. Defaults to none.

    Example:
        >>> class Shout(rlhf.tasks.Task):
        ...     '''Answers in capital letters.'''
        ...     length = 8
        ...     stop_strings = (".",)
        ...     def prompt(self, record):
        ...         return f"{record['word']}:"
        ...     def target(self, record):
        ...         return f" {record['word'].upper()}"
        ...     def rewards(self):
        ...         return {"exact": exact, "capitals": (capitals, 0.5)}
        ...     def metrics(self):
        ...         return {"accuracy": exact}
        >>> def exact(responses, target):
        ...     return [float(r == t) for r, t in zip(responses, target)]
        >>> def capitals(responses):
        ...     return [float(r.isupper()) for r in responses]
        >>> task, records = Shout(), [{"word": "fun"}]
        >>> task.demonstrations(records)
        [{'prompt': 'fun:', 'response': ' FUN'}]
        >>> task.prompts(records)
        [{'word': 'fun', 'target': ' FUN', 'prompt': 'fun:'}]
        >>> task.decoder()
        Sampler(length=8, temperature=0.0, stop_strings=('.',))
    """

    length: int = 32
    stop_strings: tuple[str, ...] = ()

    @abc.abstractmethod
    def prompt(self, record: Record) -> Prompt:
        """Returns what the model reads: a text or a list of messages.

        Args:
            record: dict.
        """

    @abc.abstractmethod
    def target(self, record: Record) -> str | None:
        """Returns the response that is wanted; None if the record does not have one.

        Args:
            record: dict.
        """

    @abc.abstractmethod
    def rewards(self) -> dict[str, Any]:
        """Returns the parts of the reward by name, as a trainer takes them.

        Each is a function, a reward model, or a tuple of one of these and its weight.
        """

    @abc.abstractmethod
    def metrics(self) -> dict[str, Callable]:
        """Returns the metrics by name, as `compile(metrics=...)` of a trainer takes them."""

    def demonstrations(self, records: Iterable[Record]) -> Records:
        """Returns records with `prompt` and `response`, for `rlhf.data.demonstrations`.

        Args:
            records: list of dict.

        Raises:
            ValueError: If a record has no target.
        """
        made = [{"prompt": self.prompt(r), "response": self.target(r)} for r in records]
        missing = [row for row, demonstration in enumerate(made) if not demonstration["response"]]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(made)} records have no target to imitate: rows "
                f"{missing[:5]}. Leave them out of the demonstrations."
            )
        return made

    def prompts(self, records: Iterable[Record]) -> Records:
        """Returns records with `prompt`, `target` and all other columns, for `rlhf.data.prompts`.

        Args:
            records: list of dict.
        """
        return [{**r, "target": self.target(r), "prompt": self.prompt(r)} for r in records]

    def sampler(self, **options: Any) -> Sampler:
        """Returns the sampler of training.

        Args:
            **options: of `Sampler`, such as `temperature`.
        """
        return Sampler(**{"length": self.length, "stop_strings": self.stop_strings, **options})

    def decoder(self) -> Sampler:
        """Returns the sampler that takes the most likely token, for `validation_sampler`."""
        return self.sampler(temperature=0.0)


def filled(template: str, record: Record) -> str:
    """Returns a template with the columns of a record in the places of their names.

    Args:
        template: str, with names of columns in braces.
        record: dict.

    Raises:
        ValueError: If the record does not have a column.

    Example:
        >>> filled("Text: {text}", {"text": "Hi."})
        'Text: Hi.'
    """
    try:
        return template.format(**record)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"The template {template!r} does not fit a record with the columns "
            f"{sorted(map(str, record))}: {error!r}."
        ) from error


def column(record: Record, *names: str) -> Any:
    """Returns the value of the first of several columns that a record has.

    Args:
        record: dict.
        *names: str.

    Raises:
        ValueError: If it has none of them.

    Example:
        >>> column({"summary": "Short."}, "summaries", "summary")
        'Short.'
    """
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise ValueError(
        f"A record of this task needs a column {' or '.join(map(repr, names))}. Found: "
        f"{sorted(map(str, record))}."
    )
