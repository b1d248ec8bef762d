"""What a model answers at several stages of its training, as a table with intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

from kerasrlhf.evaluation.measures import measure
from kerasrlhf.intervals import Interval
from kerasrlhf.tasks.task import Task

_WIDTH = 24


class Stage(NamedTuple):
    """The answers of a model at one stage.

    name: str.
    records: list of dict, the held-out records.
    responses: list of str, one for each record.
    perplexity: float, of other texts; None if it was not measured.
    """

    name: str
    records: list[dict[str, Any]]
    responses: list[str]
    perplexity: float | None = None


class Table:
    """Metrics of a task with 95 % intervals, a row for each stage.

    Args:
        task: `Task`. Its prompts and metrics.
        stages: list of `Stage`, in the order of the rows.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.

    Attributes:
        rows: dict from the name of a stage to a dict from metrics to `Interval`.

    Example:
        >>> task = rlhf.tasks.Classification(["cat", "dog"], template="{text}")
        >>> records = [{"text": "It barks.", "label": "dog"}] * 2
        >>> stages = [rlhf.applications.Stage("start", records, [" cat", " dog"], 8.0)]
        >>> table = rlhf.applications.Table(task, stages)
        >>> table.rows["start"]["accuracy"].mean
        0.5
        >>> print(table.text().splitlines()[0][:40].strip())
        accuracy
    """

    def __init__(self, task: Task, stages: list[Stage], template: Any = "plain") -> None:
        self.task, self.stages = task, stages
        self.rows: dict[str, dict[str, Interval]] = {
            stage.name: measure(
                task.metrics(), task.prompts(stage.records), stage.responses, template=template
            )
            for stage in stages
        }

    def text(self) -> str:
        """Returns the table as lines of text."""
        metrics = [*next(iter(self.rows.values()))]
        first = max([len(name) for name in self.rows] + [_WIDTH - 6]) + 2
        lines = [" " * first + "".join(f"{name:<{_WIDTH}}" for name in [*metrics, "perplexity"])]
        for stage in self.stages:
            cells = [str(self.rows[stage.name][name]) for name in metrics]
            cells.append("" if stage.perplexity is None else f"{stage.perplexity:.2f}")
            row = f"{stage.name:<{first}}" + "".join(f"{cell:<{_WIDTH}}" for cell in cells)
            lines.append(row.rstrip())
        return "\n".join(line.rstrip() for line in lines)

    def report(self, samples: int = 3) -> dict[str, Any]:
        """Returns the table and the first answers of each stage as plain values.

        Args:
            samples: int, at least 0. Defaults to 3.
        """
        table = {
            stage.name: {
                "responses": len(stage.responses),
                "perplexity": stage.perplexity,
                "metrics": {name: x._asdict() for name, x in self.rows[stage.name].items()},
            }
            for stage in self.stages
        }
        return {"table": table, "samples": self.samples(samples)}

    def samples(self, count: int = 3) -> list[dict[str, Any]]:
        """Returns the first prompts with their target and the answer of each stage.

        Args:
            count: int, at least 0. Defaults to 3.
        """
        prompts = self.task.prompts(self.stages[0].records[:count])
        return [
            {
                "prompt": prompt["prompt"],
                "target": prompt["target"],
                # Stages that answer fewer prompts answer the first ones.
                **{x.name: x.responses[i] for x in self.stages if i < len(x.responses)},
            }
            for i, prompt in enumerate(prompts)
        ]
