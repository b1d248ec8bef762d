"""What a model can process, checked in one place for `fit`, sampling and scoring."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasrlhf.types import Tensor

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor, Tokenizer

    from kerasrlhf.data.tokenized import TokenizedDataset


def token_count(tokenizer: Tokenizer) -> int:
    """Returns how many ids a tokenizer uses, gaps included; 0 where it has no vocabulary."""
    vocabulary = getattr(tokenizer, "vocabulary", None)
    if isinstance(vocabulary, dict):
        return max(vocabulary.values(), default=-1) + 1
    has_one = vocabulary is not None or getattr(tokenizer, "proto", None) is not None
    return int(tokenizer.vocabulary_size()) if has_one else 0


def same_tokenizer(one: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Returns whether two tokenizers have the same tokens with the same ids."""
    return one is other or (type(one) is type(other) and _vocabulary(one) == _vocabulary(other))


def has_tokens_of(one: Tokenizer, other: Tokenizer) -> bool:
    """Returns whether a tokenizer has all tokens of another one, with the same ids."""
    if one is other or type(one) is not type(other):
        return one is other
    ours, theirs = _vocabulary(one), _vocabulary(other)
    if isinstance(ours, dict):
        return theirs.items() <= ours.items()
    return {*theirs} <= {*ours} if isinstance(ours, set) else ours[: len(theirs)] == theirs


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """Returns tokens with their ids; those of some byte-pair tokenizers are a set without ids."""
    return getattr(tokenizer, "vocabulary", None) or tokenizer.get_vocabulary()


class Limits(NamedTuple):
    """Lengths and token ids that a model can process.

    Attributes:
        network: str. The name of the network, for messages.
        positions: int or None. Tokens of a row at most; None if any length can be processed.
        vocabulary: int or None. Token ids that the model has embeddings for; None if its backbone
            does not say.
        tokenizer: The model's keras-hub tokenizer, or None. Defaults to None.
        response: int or None. Tokens of a response that are read at most. Defaults to None: all.
        sampled: int. Tokens that are sampled after a row. Defaults to 0.
    """

    network: str
    positions: int | None
    vocabulary: int | None
    tokenizer: Tokenizer | None = None
    response: int | None = None
    sampled: int = 0

    @classmethod
    def of(
        cls,
        backbones: Sequence[keras.Model],
        preprocessor: CausalLMPreprocessor | None = None,
        response: int | None = None,
    ) -> Limits:
        """Returns the limits of networks that process the same rows."""
        sizes = [getattr(backbone, "max_sequence_length", None) for backbone in backbones]
        # The smallest network decides, as all of them read the same rows.
        positions = min((int(size) for size in sizes if size), default=None)
        entries = [getattr(backbone, "vocabulary_size", None) for backbone in backbones]
        counts = [int(count) for count in entries if count is not None]
        return cls(
            type(backbones[0]).__name__,
            positions,
            min(counts, default=None),
            getattr(preprocessor, "tokenizer", None),
            response,
        )

    def check_length(self, length: int | None) -> None:
        """Raises a `ValueError` for rows that the model has no positions for.

        Args:
            length: int or None. Tokens of a row without those to sample; None if unknown.
        """
        sampled = self.sampled
        if length is None or self.positions is None or length + sampled <= self.positions:
            return
        if sampled:
            raise ValueError(
                f"Prompts of {length} tokens and responses of {sampled} need {length + sampled} "
                f"positions; the model has {self.positions}. Shorten the prompts "
                f"(`max_length={max(self.positions - sampled, 1)}` in `data.prompts`) or the "
                "responses (`Sampler(length=...)`)."
            )
        error = ValueError(
            f"Rows of {length} tokens do not fit the {self.positions} positions of {self.network}. "
            f"Shorten them where the data are made, with `max_length={self.positions}` or less."
        )
        # Keras puts the arguments of every layer on the way into a message, unless it has done so.
        vars(error)["_keras_call_info_injected"] = True
        raise error

    def check_ids(
        self, token_ids: Tensor, padding_mask: Tensor | None = None, name: str = "Token ids"
    ) -> None:
        """Raises a `ValueError` for ids that are not in the vocabulary, padding aside.

        Compiled code would clamp them, with wrong numbers as the only sign.

        Args:
            token_ids: int array of any shape.
            padding_mask: bool array of the same shape, true at real tokens, or None. Defaults to
                None: all are.
            name: str. What they are, for the message. Defaults to `"Token ids"`.
        """
        if self.vocabulary is None:
            return
        ids = np.asarray(token_ids)
        bad = (ids < 0) | (ids >= self.vocabulary)
        if padding_mask is not None:
            # Padding may have any id: masks keep it out of every result.
            bad &= np.asarray(padding_mask).astype(bool)
        if bad.any():
            raise ValueError(
                f"{name} must be at least 0 and below {self.vocabulary}, the vocabulary of "
                f"{self.network}. Received: {sorted({*ids[bad].ravel().tolist()})[:5]}. Use the "
                "tokenizer that the model was trained with."
            )

    def check_response(self, longest: int) -> None:
        """Raises a `ValueError` for responses that are longer than what is read of them."""
        if self.response is not None and longest > self.response:
            raise ValueError(
                f"`response_length={self.response}` is less than the longest response of the data, "
                f"{longest} tokens: what is beyond would have no score. Pass "
                f"`response_length={longest}`, or None for any; of a dataset it is "
                "`.report.longest_response`."
            )

    def check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Raises a `ValueError` for data whose token ids mean other tokens to the model."""
        if tokenizer is None:
            return
        if self.tokenizer is None:
            # Without a tokenizer of the model, only the number of tokens can be compared.
            found = token_count(tokenizer)
            if self.vocabulary is not None and found > self.vocabulary:
                raise ValueError(
                    f"The data's tokenizer has {found} tokens, and {self.network} has embeddings "
                    f"for {self.vocabulary}. Make the data with the model's own preprocessor."
                )
        elif not has_tokens_of(self.tokenizer, tokenizer):
            sizes = [token_count(x) for x in (tokenizer, self.tokenizer)]
            raise ValueError(
                f"The data's token ids are of another vocabulary ({type(tokenizer).__name__} with "
                f"{sizes[0]} tokens) than the model's ({type(self.tokenizer).__name__} with "
                f"{sizes[1]} tokens). Make the data with `causal_lm.preprocessor` of the model "
                "that is trained on them."
            )

    def check_dataset(self, dataset: TokenizedDataset) -> None:
        """Raises a `ValueError` if a `TokenizedDataset` does not fit; reads none of it."""
        self.check_tokenizer(dataset.tokenizer)
        self.check_length(_row_length(dataset.element_spec))
        if self.response is not None and dataset.report is not None:
            self.check_response(dataset.report.longest_response)

    def check_batch(self, batch: Any) -> None:
        """Raises a `ValueError` if a batch of arrays does not fit.

        Args:
            batch: dict with `token_ids` and `padding_mask`, or a tuple that begins with one.
        """
        inputs = _inputs(batch)
        if not isinstance(inputs, dict) or "token_ids" not in inputs:
            return
        ids = np.asarray(inputs["token_ids"])
        self.check_length(ids.shape[-1])
        self.check_ids(ids, inputs.get("padding_mask"))
        if self.response is not None and "response_mask" in inputs:
            # The width of each row's response, from its first to its last token.
            response = np.asarray(inputs["response_mask"]).astype(bool)
            if response.any():
                columns = np.arange(response.shape[-1])
                # What is before the first token of a row is never read, so that token 0 is none.
                response = response & (columns > 0)
                last = np.where(response, columns + 1, 0).max(axis=-1)
                first = np.where(response, columns, response.shape[-1]).min(axis=-1)
                self.check_response(int(np.maximum(last - first, 0).max()))


class Guard:
    """Checks data of any kind against the limits of a model, at once or batch by batch.

    Args:
        limits: `Limits`.

    Example:
        >>> import numpy as np
        >>> guard = Guard(Limits("GPT2Backbone", positions=4, vocabulary=10))
        >>> rows = [{"token_ids": np.array([[1, 2, 11]]), "padding_mask": np.array([[1, 1, 0]])}]
        >>> [batch["token_ids"].shape for batch in guard.checked(x for x in rows)]
        [(1, 3)]
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._error: ValueError | None = None

    def checked(self, data: Any) -> Any:
        """Returns data that raise a `ValueError` where they do not fit, if possible at once."""
        # A `TokenizedDataset` carries its tokenizer and lengths: checked once, not by batch.
        if hasattr(data, "in_step_with"):
            self.limits.check_dataset(data)
        elif isinstance(data, tf.data.Dataset):
            self.limits.check_length(_row_length(data.element_spec))
            return data.map(self._checked_tensors)
        elif isinstance(data, keras.utils.PyDataset):
            return _CheckedPyDataset(data, self._checked_batch)
        elif isinstance(data, types.GeneratorType):
            return (self._checked_batch(batch) for batch in data)
        elif isinstance(data, dict | tuple):
            self.limits.check_batch(data)
        return data

    def batches(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """Returns an iterator over the batches of a dataset, checked as `checked` does."""
        if hasattr(dataset, "in_step_with"):
            self.limits.check_dataset(dataset)
            return iter(dataset)
        self.limits.check_length(_row_length(dataset.element_spec))
        return (self._checked_batch(batch) for batch in dataset)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raises the `ValueError` of a batch in place of TensorFlow's error around it."""
        try:
            yield
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise

    def _checked_batch(self, batch: Any) -> Any:
        try:
            self.limits.check_batch(batch)
        except ValueError as error:
            self._error = error
            raise
        return batch

    def _checked_tensors(self, *batch: Tensor) -> Any:
        inputs = _inputs(batch)
        if not isinstance(inputs, dict):
            return batch if len(batch) > 1 else batch[0]
        # Only what the checks need leaves the graph.
        names = [x for x in ("token_ids", "padding_mask", "response_mask") if x in inputs]

        def check(*arrays: np.ndarray) -> bool:
            self._checked_batch(dict(zip(names, arrays, strict=True)))
            return True

        fits = tf.numpy_function(check, [inputs[name] for name in names], tf.bool)
        # The batch leaves only after the check.
        with tf.control_dependencies([fits]):
            batch = tf.nest.map_structure(tf.identity, batch)
        return batch if len(batch) > 1 else batch[0]


class _CheckedPyDataset(keras.utils.PyDataset):
    """The batches of another `PyDataset`, each checked."""

    def __init__(self, inner: keras.utils.PyDataset, check: Callable[[Any], Any]) -> None:
        super().__init__(inner.workers, inner.use_multiprocessing, inner.max_queue_size)
        self._inner, self._check = inner, check

    @property
    def num_batches(self) -> int | None:
        return self._inner.num_batches

    def __getitem__(self, index: int) -> Any:
        return self._check(self._inner[index])

    def on_epoch_begin(self) -> None:
        self._inner.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._inner.on_epoch_end()


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) and batch else batch


def _row_length(spec: Any) -> int | None:
    """Returns the columns of the token ids in an `element_spec`, or None."""
    inputs = _inputs(spec)
    shape = getattr(inputs.get("token_ids"), "shape", None) if isinstance(inputs, dict) else None
    return shape[-1] if shape is not None and shape.rank else None
