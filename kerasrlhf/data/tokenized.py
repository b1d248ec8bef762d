"""A `tf.data.Dataset` of rows that are token ids already."""

import functools
import warnings

import keras_hub
import tensorflow as tf

from kerasrlhf.data import kinds
from kerasrlhf.types import require_bool, require_int

# Keras gives this advice at every `fit` on a dataset that does not say `shuffle=False`. Datasets
# have an order of their own here, and `fit`, also that of keras-hub's models, stays as it is.
warnings.filterwarnings(
    "ignore",
    message=r"`shuffle=True` was passed, but will be ignored .* as a tf\.data\.Dataset",
    category=UserWarning,
)

_KEPT = ("take", "skip", "shuffle", "repeat", "cache", "prefetch", "shard", "with_options")
_STREAM = 0x6B72_6C68  # any constant but 0: the pair (0, 0) means "no seed" to TensorFlow


class TokenizedDataset(tf.data.Dataset):
    """A dataset that a keras-hub task takes as it is.

    `fit` and `evaluate` of a keras-hub task map the task's preprocessor, which expects strings,
    over any dataset. This one returns itself from that one `map`, so that `causal_lm.fit(demos)`
    works with a preprocessor attached. It stays what it is under `take`, `skip`, `shuffle`,
    `repeat`, `cache`, `prefetch`, `shard` and `with_options`; other transformations give an
    ordinary dataset.

    Args:
        dataset: A `tf.data.Dataset` of batched rows.
        report: A `kerasrlhf.data.Report`.

    Attributes:
        report: As given.

    Example:

    >>> import tensorflow as tf
    >>> dataset = TokenizedDataset(tf.data.Dataset.range(4), report=None)
    >>> type(dataset.take(2)).__name__, len(dataset.take(2))
    ('TokenizedDataset', 2)
    """

    def __init__(self, dataset, report):
        self._dataset = dataset
        self.report = report
        super().__init__(tf.data.experimental.to_variant(dataset))

    def _inputs(self):
        return [self._dataset]

    @property
    def element_spec(self):
        return self._dataset.element_spec

    def map(self, map_func, *args, **kwargs):
        """As `tf.data.Dataset.map`, but the preprocessing of a keras-hub task changes nothing."""
        if _is_task_preprocessing(map_func):
            kinds.check_kind("x", self, "demonstrations")
            return self
        return super().map(map_func, *args, **kwargs)


def _is_task_preprocessing(function):
    task = getattr(function, "__self__", None)
    return isinstance(task, keras_hub.models.Task) and function.__name__ == "preprocess_samples"


def _keep(name):
    transform = getattr(tf.data.Dataset, name)

    @functools.wraps(transform)
    def method(self, *args, **kwargs):
        return TokenizedDataset(transform(self, *args, **kwargs), self.report)

    return method


for _name in _KEPT:
    setattr(TokenizedDataset, _name, _keep(_name))


class _Shuffled(tf.data.Dataset):
    """All elements in a new order at each pass, a function of the seed and of the pass alone.

    `tf.data.Dataset.shuffle` mixes the global seed into its own, so that the order would depend
    on `keras.utils.set_random_seed`.
    """

    def __init__(self, dataset, size, seed):
        self._dataset = dataset
        leaves = tf.nest.flatten(dataset.element_spec)
        variant = tf.raw_ops.ShuffleDatasetV3(
            input_dataset=tf.data.experimental.to_variant(dataset),
            buffer_size=tf.constant(size, tf.int64),
            seed=tf.constant(_STREAM, tf.int64),
            seed2=tf.constant(seed, tf.int64),
            seed_generator=tf.raw_ops.DummySeedGenerator(),
            output_types=[leaf.dtype for leaf in leaves],
            output_shapes=[leaf.shape for leaf in leaves],
            reshuffle_each_iteration=True,
        )
        super().__init__(variant)

    def _inputs(self):
        return [self._dataset]

    @property
    def element_spec(self):
        return self._dataset.element_spec


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
    require_int("seed", seed, minimum=0)
    require_bool("drop_remainder", drop_remainder)
    if drop_remainder and rows < batch_size:
        raise ValueError(
            f"`batch_size` is {batch_size} but there are only {rows} rows, so that with "
            "`drop_remainder=True` no batch is left."
        )


def batches(columns, rows, batch_size, *, shuffle=True, seed=0, drop_remainder=False):
    """Batches arrays that share their first dimension.

    Args:
        columns: A structure of arrays `(rows, ...)`.
        rows: `int`, their first dimension.
        batch_size: `int`, rows per batch.
        shuffle: Whether every pass has an order of its own, drawn from all rows.
        seed: `int`; the order of pass n is a function of `seed` and n.
        drop_remainder: Whether a last batch of fewer rows is left out.

    Returns:
        A `tf.data.Dataset`.

    Example:

    >>> dataset = batches({"x": [1, 2, 3]}, 3, 2, shuffle=False)
    >>> [batch["x"].tolist() for batch in dataset.as_numpy_iterator()]
    [[1, 2], [3]]
    """
    require_bool("shuffle", shuffle)
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    dataset = _Shuffled(dataset, rows, seed) if shuffle else dataset
    # Without a remainder to drop this only makes the batch dimension static.
    whole = drop_remainder or rows % batch_size == 0
    return dataset.batch(batch_size, drop_remainder=whole).prefetch(tf.data.AUTOTUNE)
