"""A `tf.data.Dataset` of rows that are token ids already, and how rows become its batches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras_hub
import numpy as np
import tensorflow as tf

from kerasrlhf.data import kinds, spans, training
from kerasrlhf.data.passes import Passes
from kerasrlhf.data.rows import Report
from kerasrlhf.types import require_bool, require_int, require_seed

if TYPE_CHECKING:
    from keras_hub.models import Tokenizer

# Keras warns so at every `fit` on a dataset without `shuffle=False`. Datasets shuffle themselves
# here, and `fit`, also that of keras-hub's models, stays as it is.
warnings.filterwarnings(
    "ignore",
    message=r"`shuffle=True` was passed, but will be ignored .* as a tf\.data\.Dataset",
    category=UserWarning,
)

_EACH = ("take", "skip", "shard")  # transformations of every pass
_WHOLE = ("prefetch", "with_options")  # of the passes as they come
_FIXED = ("shuffle", "cache")  # their result no longer follows the order of the passes


class TokenizedDataset(tf.data.Dataset):
    """A dataset that keras-hub tasks accept without preprocessing.

    `fit` and `evaluate` of a keras-hub task map the task's preprocessor, which expects strings,
    over any dataset. That one `map` leaves the batches of this dataset as they are, so that
    `causal_lm.fit(demos)` works with a preprocessor attached. `take`, `skip`, `shuffle`, `repeat`,
    `cache`, `prefetch`, `shard` and `with_options` return a `TokenizedDataset`; other
    transformations return an ordinary dataset.

    Each iteration over it has the next order. A model that is trained on it gets the order that
    belongs to the steps of its optimizer, so that an interrupted run continues in another process
    as it would have.

    Args:
        dataset: A `tf.data.Dataset` of batched rows, or `kerasrlhf.data.passes.Passes`.
        report: `kerasrlhf.data.Report` or None. How many rows of a source were used, cut or left
            out.
        tokenizer: The keras-hub tokenizer of the token ids, or None. Defaults to None.

    Attributes:
        report: The argument.
        tokenizer: The argument.

    Example:
        >>> import tensorflow as tf
        >>> dataset = rlhf.data.TokenizedDataset(tf.data.Dataset.range(4), report=None)
        >>> type(dataset.take(2)).__name__, len(dataset.take(2))
        ('TokenizedDataset', 2)
    """

    def __init__(
        self,
        dataset: tf.data.Dataset | Passes,
        report: Report | None,
        tokenizer: Tokenizer | None = None,
        *,
        _position: Callable[[], int] | None = None,
        _around: tuple[Callable[[tf.data.Dataset], tf.data.Dataset], ...] = (),
        _begun: Iterator[int] | None = None,
    ) -> None:
        is_passes = isinstance(dataset, Passes)
        self._passes = dataset if is_passes else Passes.fixed(dataset)
        self._position, self._around = _position, _around
        # Counts the passes of an unattached dataset; parts of a dataset share the counter.
        self._begun = itertools.count() if _begun is None else _begun
        if is_passes:
            dataset = dataset.read(_position or self._next)
            for transform in _around:
                dataset = transform(dataset)
        self._dataset: tf.data.Dataset = dataset
        self.report, self.tokenizer = report, tokenizer
        super().__init__(tf.data.experimental.to_variant(dataset))

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> Any:
        """The structure of a batch, as `tf.data.Dataset.element_spec`."""
        return self._dataset.element_spec

    def _with(self, passes: Passes, **changes: Any) -> TokenizedDataset:
        changes = {"_position": self._position, "_around": self._around, **changes}
        # Passes over a part count as passes over the whole.
        return TokenizedDataset(passes, self.report, self.tokenizer, _begun=self._begun, **changes)

    def _next(self) -> int:
        """Returns the batches before a pass, where every pass is the next one."""
        return next(self._begun) * self._passes.unit

    def in_step_with(self, position: Callable[[], int]) -> TokenizedDataset:
        """Returns the batches in orders that belong to the number of batches before each pass.

        Args:
            position: Function without arguments that returns how many batches were read before, an
                int. It is called when a pass begins, in a thread of `tf.data`.

        Returns:
            `TokenizedDataset`.
        """
        return self if self._passes.is_fixed else self._with(self._passes, _position=position)

    def repeat(self, count: int | None = None) -> TokenizedDataset:
        """Repeats as `tf.data.Dataset.repeat`; every repetition has a different order."""
        return self._with(self._passes.repeat(count))

    def map(self, map_func: Callable, *args: Any, **kwargs: Any) -> tf.data.Dataset:
        """Maps as `tf.data.Dataset.map`, but the preprocessing of a task changes nothing."""
        # `fit` of a task maps its preprocessor: the model is known here, so check the rows for it.
        task = _preprocessing_task(map_func)
        if task is not None:
            kinds.check_kind("x", self, "demonstrations")
            return training.prepared(task, self)
        return super().map(map_func, *args, **kwargs)


def _preprocessing_task(function: Callable) -> keras_hub.models.Task | None:
    """Returns the task whose preprocessing a function is, or None."""
    task = getattr(function, "__self__", None)
    is_task = isinstance(task, keras_hub.models.Task)
    return task if is_task and function.__name__ == "preprocess_samples" else None


def _keep(name: str) -> Callable[..., TokenizedDataset]:
    transform = getattr(tf.data.Dataset, name)

    @functools.wraps(transform)
    def method(self: TokenizedDataset, *args: Any, **kwargs: Any) -> TokenizedDataset:
        def change(dataset: tf.data.Dataset) -> tf.data.Dataset:
            return transform(dataset, *args, **kwargs)

        # Applied to the sequence of all passes, not inside each one.
        if name in _WHOLE:
            return self._with(self._passes, _around=(*self._around, change))
        if name in _EACH:
            return self._with(self._passes.then(change))
        return TokenizedDataset(change(self._dataset), self.report, self.tokenizer)

    return method


for _name in (*_EACH, *_WHOLE, *_FIXED):
    setattr(TokenizedDataset, _name, _keep(_name))


@dataclasses.dataclass(frozen=True)
class Batching:
    """How rows become the batches of a dataset.

    Args:
        batch_size: int, at least 1. Rows per batch.
        shuffle: bool. Whether every pass has a different order, sampled from all rows. Defaults
            to True.
        seed: int, at least 0. The order of pass n is a function of `seed` and n. Defaults to 0.
        drop_remainder: bool. Whether a last batch of fewer rows is left out. Defaults to False.
        shard: tuple of int, `(index, count)`, or None. Which of `count` workers the batches are
            for. Defaults to None: there is one.

    Raises:
        ValueError: If a value is of another type or outside its range.

    Example:
        >>> dataset = Batching(2, shuffle=False).batches({"x": [1, 2, 3]}, rows=3)
        >>> [batch["x"].tolist() for batch in dataset.as_numpy_iterator()]
        [[1, 2], [3]]
    """

    batch_size: int
    shuffle: bool = True
    seed: int = 0
    drop_remainder: bool = False
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require_int("batch_size", self.batch_size, minimum=1)
        require_bool("shuffle", self.shuffle)
        require_seed(self.seed)
        require_bool("drop_remainder", self.drop_remainder)
        spans.check_shard(self.shard)

    @property
    def edges(self) -> spans.Edges:
        """Where batches begin and end in a pass, as `kerasrlhf.data.spans.Edges`."""
        return spans.Edges(self.batch_size, self.drop_remainder, self.shard or (0, 1))

    def check_rows(self, rows: int) -> None:
        """Raises a `ValueError` if no batch is left of some rows.

        Args:
            rows: int. How many there are.
        """
        self.edges.check_rows(rows)

    def batches(
        self,
        columns: Any,
        rows: int,
        report: Report | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> TokenizedDataset:
        """Returns the batches of arrays.

        Args:
            columns: A structure of arrays `(rows, ...)`.
            rows: int. Their first dimension.
            report: `kerasrlhf.data.Report` or None. How many rows of a source were used, cut or
                left out.
            tokenizer: The keras-hub tokenizer of the token ids, or None.

        Returns:
            `TokenizedDataset`.
        """
        size = self.batch_size
        # Without a remainder to drop this only makes the batch dimension static.
        whole = self.drop_remainder or rows % size == 0
        batched: Passes | tf.data.Dataset
        if self.shard is not None:
            edges = np.array([*self.edges.of(rows)], "int64")
            batched = Passes.parts(columns, rows, edges, self.seed if self.shuffle else None)
        elif self.shuffle:
            batched = Passes.shuffled(columns, rows, size, self.seed, whole)
        else:
            batched = tf.data.Dataset.from_tensor_slices(columns)
            batched = batched.batch(size, drop_remainder=whole)
        return TokenizedDataset(batched, report, tokenizer).prefetch(tf.data.AUTOTUNE)
