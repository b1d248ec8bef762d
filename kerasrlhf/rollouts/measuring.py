"""Metrics of responses: means over responses, and numbers of whole sets of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from kerasrlhf.rollouts import calling, scoring
from kerasrlhf.rollouts.scoring import Episodes

Metrics: TypeAlias = dict[str, Callable]


def metrics_of(metrics: Any, taken: Sequence[str] = ()) -> Metrics:
    """Returns functions by name, or raises a `ValueError` for what are no metrics.

    Args:
        metrics: dict from names to functions, list of functions, which are named after themselves,
            one function, or None.
        taken: names that no metric may have. Defaults to none.

    Example:
        >>> def words(responses):
        ...     return [len(text.split()) for text in responses]
        >>> list(metrics_of([words]))
        ['words']
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, dict):
        listed = [metrics] if callable(metrics) else metrics
        if not isinstance(listed, list | tuple):
            raise ValueError(_wrong(metrics))
        names = [calling.name_of(function) for function in listed]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Two metrics have one name: {names}. Pass a dict from names to functions."
            )
        metrics = dict(zip(names, listed, strict=True))
    for name, function in metrics.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            raise ValueError(
                "The name of a metric must be a word, and none that `evaluate` returns anyway "
                f"({', '.join(taken)}). Received: {name!r}."
            )
        if not callable(function) or isinstance(function, type) or calling.takes_nothing(function):
            raise ValueError(_wrong(function))
    return dict(metrics)


def _wrong(value: Any) -> str:
    return (
        "A metric must be a function of arguments such as `prompts`, `responses` or a column of "
        "the records, which returns one number per response or one number for all of them. "
        f"Received: {value!r} of type {type(value).__name__}."
    )


def measure(metrics: Metrics, episodes: Episodes) -> dict[str, float | np.ndarray]:
    """Computes metrics of responses.

    A metric is called as a reward function is, with the texts and columns that its signature names.

    Args:
        metrics: dict from names to functions.
        episodes: `Episodes`.

    Returns:
        Dict from names to float64 `(responses,)`, or to a float where a function returns one
        number for all responses, such as an F1 score.

    Raises:
        ValueError: If a function asks for what there is not, or returns anything else.

    Example:
        >>> episodes = Episodes(["2 + 2 =", "1 + 2 ="], [" 4", " 4"], {"target": ["4", "3"]})
        >>> def exact(responses, target):
        ...     return [float(r.strip() == t) for r, t in zip(responses, target)]
        >>> measured = measure({"accuracy": exact, "kinds": lambda responses: len({*responses})},
        ...                    episodes)
        >>> measured["accuracy"].tolist(), measured["kinds"]
        ([1.0, 0.0], 1.0)
    """
    rows = len(episodes.texts[1])
    columns = scoring.text_columns(episodes)
    results = scoring.call_all([*metrics.values()], columns, kind="metric")
    return {
        name: _checked(name, result, rows) for name, result in zip(metrics, results, strict=True)
    }


def _checked(name: str, result: Any, rows: int) -> float | np.ndarray:
    try:
        values = np.asarray(result, "float64")
    except (TypeError, ValueError):
        values = np.zeros((0, 0))
    if values.shape not in ((), (rows,)) or not np.isfinite(values).all():
        raise ValueError(
            f"The metric `{name}` must return one finite number for each of {rows} responses, or "
            f"one for all of them. Received: {_shortened(result)} of type {type(result).__name__}."
        )
    return values if values.ndim else float(values)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class Measurement:
    """Collects the responses of several batches, and measures them together.

    Args:
        metrics: dict from names to functions.

    Example:
        >>> kinds = Measurement({"kinds": lambda responses: len({*responses})})
        >>> for text in ("a", "b", "a"):
        ...     kinds.add(Episodes(["?"], [text], {}))
        >>> kinds.results()
        {'kinds': 2.0}
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.reset()

    def reset(self) -> None:
        """Drops what was collected."""
        self._parts: list[Episodes] = []
        self._results: dict[str, float] | None = None

    def add(self, episodes: Episodes) -> None:
        """Adds the responses of a batch."""
        self._parts.append(episodes)
        self._results = None

    def results(self) -> dict[str, float]:
        """Returns each metric of all responses by name, as a mean where it has one per response."""
        # Computed once: the progress bar and `evaluate` both ask.
        if self._results is None:
            found = measure(self.metrics, joined(self._parts)) if self._parts else {}
            self._results = {name: float(np.mean(values)) for name, values in found.items()}
        return dict(self._results)


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Returns the episodes of several batches as one.

    Args:
        parts: list of `Episodes` with texts, at least one.

    Example:
        >>> one, two = Episodes(["a"], ["b"], {"n": [1]}), Episodes(["c"], ["d"], {})
        >>> joined([one, two]).responses, joined([one, two]).columns
        (['b', 'd'], {'n': [1, None]})
    """
    texts = [part.texts for part in parts]
    prompts, responses = (list(itertools.chain(*column)) for column in zip(*texts, strict=True))
    # A column that is missing in a batch has None there.
    names = dict.fromkeys(name for part in parts for name in part.columns)
    columns: dict[str, list] = {name: [] for name in names}
    conversations: list[list[dict] | None] = []
    dialogues: list[list[dict]] = []
    for part, (_, own) in zip(parts, texts, strict=True):
        conversations += part.conversations or [None] * len(own)
        dialogues += part.dialogues or []
        for name in names:
            columns[name] += part.columns.get(name, [None] * len(own))
    return Episodes(prompts, responses, columns, conversations, dialogues=dialogues or None)
