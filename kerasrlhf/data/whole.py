"""Datasets whose batches Keras passes on whole."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class WholeBatches(tf.data.Dataset, tf.distribute.DistributedDataset):
    """The batches of a dataset, which Keras does not divide between replicas.

    Keras takes it for a dataset that is distributed already.

    Args:
        dataset: `tf.data.Dataset`.

    Example:
        >>> dataset = WholeBatches(tf.data.Dataset.range(3).batch(2))
        >>> [batch.numpy().tolist() for batch in dataset]
        [[0, 1], [2]]
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._dataset = dataset
        super().__init__(tf.data.experimental.to_variant(dataset))

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> Any:
        """The structure of a batch, as `tf.data.Dataset.element_spec`."""
        return self._dataset.element_spec
