"""Rows of the datasets of Hugging Face, without importing their package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Rows that are decoded at a time: one by one takes ten times as long.
_BATCH = 1000


def is_one(source: object) -> bool:
    """Returns whether a source is a dataset of Hugging Face, or a dict of its splits."""
    return hasattr(source, "with_format") and hasattr(source, "column_names")


def rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Returns the rows of a dataset as dictionaries of Python values.

    Args:
        dataset: `datasets.Dataset` or `datasets.IterableDataset`. A format such as `"torch"` is
            set aside; a transformation that was set is applied.

    Returns:
        Iterator of dict.

    Raises:
        ValueError: If it is a dict of splits.
    """
    if isinstance(dataset, Mapping):
        splits = [*dataset]
        name = type(dataset).__name__
        raise ValueError(
            f"`source` must be one dataset. Received a {name} of Hugging Face with the splits "
            f"{splits}. Pass one of them" + (f": `dataset[{splits[0]!r}]`." if splits else ".")
        )
    return _rows(dataset)


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    chosen = getattr(dataset, "format", None) or {}
    # A function of the user makes the rows: let it.
    if chosen.get("type") == "custom":
        yield from dataset
        return
    # Columns that the user chose with a format are those of the rows.
    columns = {"columns": chosen["columns"]} if chosen.get("columns") else {}
    for batch in dataset.with_format(None, **columns).iter(batch_size=_BATCH):
        names = [*batch]
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(names, cells, strict=True))
