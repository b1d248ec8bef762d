"""A `tf.data.Dataset` of rows that are token ids already."""

import functools
import itertools
import warnings

import keras_hub
import tensorflow as tf

from kerasrlhf.data import kinds, training
from kerasrlhf.data.passes import Passes
from kerasrlhf.types import require_bool, require_int, require_seed

# Keras gives this advice at every `fit` on a dataset that does not say `shuffle=False`. Datasets
# have an order of their own here, and `fit`, also that of keras-hub's models, stays as it is.
warnings.filterwarnings(
    "ignore",
    message=r"`shuffle=True` was passed, but will be ignored .* as a tf\.data\.Dataset",
    category=UserWarning,
)

_EACH = ("take", "skip", "shard")  # transformations of every pass
_WHOLE = ("prefetch", "with_options")  # of the passes as they come
_FIXED = ("shuffle", "cache")  # what follows keeps no order but its own


class TokenizedDataset(tf.data.Dataset):
    """A dataset that a keras-hub task takes as it is.

    `fit` and `evaluate` of a keras-hub task map the task's preprocessor, which expects strings,
    over any dataset. This one gives its batches as they are to that one `map`, so that
    `causal_lm.fit(demos)` works with a preprocessor attached. It stays what it is under `take`,
    `skip`, `shuffle`, `repeat`, `cache`, `prefetch`, `shard` and `with_options`; other
    transformations give an ordinary dataset.

    Whoever iterates over it gets its orders one after the other. A model that is trained on it gets
    the order that belongs to the steps of its optimizer, so that a run that was interrupted goes on
    in another process as it would have.

    Args:
        dataset: A `tf.data.Dataset` of batched rows, or `kerasrlhf.data.passes.Passes`.
        report: A `kerasrlhf.data.Report`.
        tokenizer: What made the token ids, a keras-hub tokenizer, or `None`.

    Attributes:
        report, tokenizer: As given.

    Example:

    >>> import tensorflow as tf
    >>> dataset = TokenizedDataset(tf.data.Dataset.range(4), report=None)
    >>> type(dataset.take(2)).__name__, len(dataset.take(2))
    ('TokenizedDataset', 2)
    """

    def __init__(self, dataset, report, tokenizer=None, *, _position=None, _around=(), _begun=None):
        is_passes = isinstance(dataset, Passes)
        self._passes = dataset if is_passes else Passes.fixed(dataset)
        self._position, self._around = _position, _around
        self._begun = itertools.count() if _begun is None else _begun
        if is_passes:
            dataset = dataset.read(_position or self._next)
            for transform in _around:
                dataset = transform(dataset)
        self._dataset = dataset
        self.report, self.tokenizer = report, tokenizer
        super().__init__(tf.data.experimental.to_variant(dataset))

    def _inputs(self):
        return [self._dataset]

    @property
    def element_spec(self):
        return self._dataset.element_spec

    def _with(self, passes, **changes):
        changes = {"_position": self._position, "_around": self._around, **changes}
        # Passes over a part count as passes over the whole.
        return TokenizedDataset(passes, self.report, self.tokenizer, _begun=self._begun, **changes)

    def _next(self):
        """The batches before a pass, where every pass is the next one."""
        return next(self._begun) * self._passes.unit

    def in_step_with(self, position):
        """The same batches, every pass in the order that belongs to a number of batches before it.

        Args:
            position: Function without arguments that returns how many batches were read before, an
                `int`. It is asked at the beginning of every pass, in a thread of `tf.data`.

        Returns:
            A `TokenizedDataset`.
        """
        return self if self._passes.is_fixed else self._with(self._passes, _position=position)

    def repeat(self, count=None):
        """As `tf.data.Dataset.repeat`; every repetition has an order of its own."""
        return self._with(self._passes.repeat(count))

    def map(self, map_func, *args, **kwargs):
        """As `tf.data.Dataset.map`, but the preprocessing of a keras-hub task changes nothing."""
        if _is_task_preprocessing(map_func):
            kinds.check_kind("x", self, "demonstrations")
            return training.prepared(map_func.__self__, self)
        return super().map(map_func, *args, **kwargs)


def _is_task_preprocessing(function):
    task = getattr(function, "__self__", None)
    return isinstance(task, keras_hub.models.Task) and function.__name__ == "preprocess_samples"


def _keep(name):
    transform = getattr(tf.data.Dataset, name)

    @functools.wraps(transform)
    def method(self, *args, **kwargs):
        def change(dataset):
            return transform(dataset, *args, **kwargs)

        if name in _WHOLE:
            return self._with(self._passes, _around=(*self._around, change))
        if name in _EACH:
            return self._with(self._passes.then(change))
        return TokenizedDataset(change(self._dataset), self.report, self.tokenizer)

    return method


for _name in (*_EACH, *_WHOLE, *_FIXED):
    setattr(TokenizedDataset, _name, _keep(_name))


def check_batching(batch_size, rows, *, seed=0, drop_remainder=False):
    """Raises a `ValueError` for what `batches` could not do.

    Args:
        batch_size: `int`, rows per batch.
        rows: `int`, how many there are.
        seed: `int`.
        drop_remainder: `bool`.

    Raises:
        ValueError: A `batch_size` below 1, a negative `seed`, or no batch at all.

    Example:

    >>> check_batching(2, 3)
    """
    require_int("batch_size", batch_size, minimum=1)
    require_seed(seed)
    require_bool("drop_remainder", drop_remainder)
    if drop_remainder and rows < batch_size:
        raise ValueError(
            f"`batch_size` is {batch_size} but there are only {rows} rows, so that with "
            "`drop_remainder=True` no batch is left."
        )


def batches(
    columns,
    rows,
    batch_size,
    *,
    shuffle=True,
    seed=0,
    drop_remainder=False,
    report=None,
    tokenizer=None,
):
    """Batches arrays that share their first dimension.

    Args:
        columns: A structure of arrays `(rows, ...)`.
        rows: `int`, their first dimension.
        batch_size: `int`, rows per batch.
        shuffle: Whether every pass has an order of its own, drawn from all rows.
        seed: `int`; the order of pass n is a function of `seed` and n.
        drop_remainder: Whether a last batch of fewer rows is left out.
        report, tokenizer: See `TokenizedDataset`.

    Returns:
        A `TokenizedDataset`.

    Example:

    >>> dataset = batches({"x": [1, 2, 3]}, 3, 2, shuffle=False)
    >>> [batch["x"].tolist() for batch in dataset.as_numpy_iterator()]
    [[1, 2], [3]]
    """
    require_bool("shuffle", shuffle)
    # Without a remainder to drop this only makes the batch dimension static.
    whole = drop_remainder or rows % batch_size == 0
    if shuffle:
        batched = Passes.shuffled(columns, rows, batch_size, seed, whole)
    else:
        batched = tf.data.Dataset.from_tensor_slices(columns)
        batched = batched.batch(batch_size, drop_remainder=whole)
    return TokenizedDataset(batched, report, tokenizer).prefetch(tf.data.AUTOTUNE)
