"""A TFDS builder of records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kerasrlhf.data.schema import MESSAGES, Schema

Examples = Callable[[], Iterator[dict[str, Any]]]


class RecordsBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Builds a dataset from records, in their order.

    Args:
        name: str. The name of the dataset.
        version: str of three numbers, such as "1.0.0".
        schema: `kerasrlhf.data.schema.Schema` of the records.
        splits: dict from str to functions without arguments that return iterators of records.
        data_dir: str, path or None. Where TFDS keeps its prepared datasets. Defaults to None: the
            directory that TFDS uses.
        description: str. What the dataset is. Defaults to `""`.
    """

    def __init__(
        self,
        name: str,
        version: str,
        schema: Schema,
        splits: Mapping[str, Examples],
        data_dir: str | os.PathLike[str] | None = None,
        description: str = "",
    ) -> None:
        # TFDS reads the name and the version from the class of a builder, before its constructor.
        self.name = name
        self.VERSION = tfds.core.Version(version)
        self._schema, self._splits, self._description = schema, splits, description
        super().__init__(data_dir=data_dir, version=version)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: _feature(kind) for name, kind in self._schema.kinds.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description or f"Records that kerasrlhf has written as {self.name}.",
            features=tfds.features.FeaturesDict(features),
            # Rows stay in the order of the source.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        return {split: self._generate_examples(rows) for split, rows in self._splits.items()}

    def _generate_examples(self, rows: Examples) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows())


def _feature(kind: str) -> Any:
    """Returns the TFDS feature of a kind of column."""
    inner = kind.removeprefix("list of ")
    if inner != kind:
        return tfds.features.Sequence(_feature(inner))
    # A list that is empty in all rows is read as one, whatever it would hold.
    if kind in MESSAGES or kind == "list":
        keys = MESSAGES.get(kind, MESSAGES["messages"])
        return tfds.features.Sequence({key: tfds.features.Text() for key in keys})
    scalars = {"integer": np.int64, "number": np.float64, "boolean": np.bool_}
    return tfds.features.Scalar(scalars[kind]) if kind in scalars else tfds.features.Text()
