"""Metrics of responses to held-out prompts, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data import dialogue, inputs
from kerasrlhf.data import records as records_lib
from kerasrlhf.intervals import Interval, bootstrap_interval, fraction_interval, mean_interval
from kerasrlhf.rollouts import measuring
from kerasrlhf.rollouts.scoring import Episodes
from kerasrlhf.types import require_seed


def measure(
    metrics: dict[str, Callable] | list[Callable],
    prompts: list[Any],
    responses: list[str],
    *,
    template: dialogue.Template = "plain",
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Interval]:
    """Computes metrics of responses, each with its 95 % interval.

    Metrics are those of `compile(metrics=...)` of a trainer. The interval of a metric with one
    number per response is Wilson's if the numbers are 0 or 1, and otherwise that of a mean; that of
    a number of all responses is from bootstrap samples of the responses.

    Args:
        metrics: dict from names to functions, or list of functions.
        prompts: list of strings, of lists of messages, or of records with a column `prompt`.
        responses: list of str, one for each prompt.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.
        resamples: int, at least 2. Bootstrap samples. Defaults to 200.
        seed: int, at least 0. Seed of the bootstrap. Defaults to 0.

    Returns:
        Dict from names to `Interval`.

    Raises:
        ValueError: If there are fewer than two responses, or not as many as prompts, or a metric
            cannot be computed.

    Example:
        >>> def exact(responses, target):
        ...     return [float(r.strip() == t) for r, t in zip(responses, target)]
        >>> records = [{"prompt": "2 + 2 =", "target": "4"}, {"prompt": "1 + 2 =", "target": "3"}]
        >>> found = rlhf.evaluation.measure({"accuracy": exact}, records, [" 4", " 4"])
        >>> found["accuracy"].mean
        0.5
    """
    require_seed(seed)
    functions = measuring.metrics_of(metrics)
    episodes = episodes_of(prompts, responses, template)
    count = len(responses)
    found = {}
    for name, values in measuring.measure(functions, episodes).items():
        if not isinstance(values, np.ndarray):
            statistic = _Statistic(name, functions[name], episodes)
            found[name] = bootstrap_interval(statistic, count, resamples, seed)
        elif count > 1 and np.isin(values, (0.0, 1.0)).all():
            found[name] = fraction_interval(float(values.mean()), count)
        else:
            found[name] = mean_interval(values)
    return found


def episodes_of(
    prompts: list[Any], responses: list[str], template: dialogue.Template = "plain"
) -> Episodes:
    """Returns prompts and responses in the form that metrics and rewards are called with.

    Args:
        prompts: as in `measure`.
        responses: as in `measure`.
        template: as in `measure`. Defaults to `"plain"`.
    """
    prompts, responses = (
        tokens.text_list(x, name) for x, name in ((prompts, "prompts"), (responses, "responses"))
    )
    if len(prompts) != len(responses):
        raise ValueError(
            f"Expected as many responses as prompts. Received {len(prompts)} prompts and "
            f"{len(responses)} responses."
        )
    records = [row if isinstance(row, dict) else {"prompt": row} for row in prompts]
    texts = records_lib.prompt_texts(records, template)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    conversations = [
        record["prompt"] if inputs.is_conversation(record["prompt"]) else None for record in records
    ]
    return Episodes(texts, responses, columns, conversations)


@dataclasses.dataclass(frozen=True)
class _Statistic:
    """A metric of all responses, as a function of row numbers."""

    name: str
    function: Callable
    episodes: Episodes

    def __call__(self, rows: np.ndarray) -> float:
        def take(column: list | None) -> Any:
            return None if column is None else [column[i] for i in rows]

        taken = Episodes(
            take(self.episodes.prompts),
            take(self.episodes.responses),
            {name: take(column) for name, column in self.episodes.columns.items()},
            take(self.episodes.conversations),
        )
        found = measuring.measure({self.name: self.function}, taken)[self.name]
        return float(np.mean(found))
