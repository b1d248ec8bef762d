"""What trainers have in common that learn from preferences directly, without a reward model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasrlhf import adapters, replica
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import direct_losses
from kerasrlhf.metrics import PreferenceAccuracy
from kerasrlhf.models import fitting, lm_adapter
from kerasrlhf.models.precision import check_optimizer
from kerasrlhf.models.windows import window_logprobs
from kerasrlhf.trainers.checks import check_precision
from kerasrlhf.types import require_int

_KEYS = ("token_ids", "padding_mask", "response_mask")


class DirectTrainer(fitting.FittedModel):
    """Maps preference pairs to scores that the language model's own probabilities give; abstract.

    A final class says what `scores` are and which loss they are trained with; the rest is stock
    Keras: `compile`, `fit`, `evaluate`, and `predict`, which gives the scores. The language model
    is used as it is, without dropout; what training changes is `causal_lm`, and
    `causal_lm.save_to_preset` saves it. Only response tokens count.

    Args:
        causal_lm: keras-hub `CausalLM` of a text family.
        response_length: int, tokens of the longest response in the data (`pairs.report.
            longest_response`); None: any. With it only so many positions of a row are projected
            to the vocabulary, which saves much of time and memory where prompts are long. Data
            with a longer response are refused; in a call its score is NaN.
        **kwargs: of `keras.Model`.

    Attributes:
        reference: what the policy is compared with, a `Reference`; None where there is none.

    Call arguments:
        inputs: dict as `rlhf.data.preferences` gives it: `token_ids` int32, `padding_mask` and
            `response_mask` bool, all `(batch, candidates, length)`, right-padded, the preferred
            candidate first.

    Returns:
        Scores float32 `(batch, candidates)`.

    Raises:
        ValueError: not a text CausalLM, or batches of another form.
    """

    reference = None
    trains_on = ("preferences",)

    def __init__(self, causal_lm: keras.Model, response_length: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        lm_adapter.check(causal_lm)
        adapters.keep_apart(causal_lm)
        self.causal_lm = causal_lm
        if response_length is not None:
            require_int("response_length", response_length, minimum=1)
        self.response_length = response_length
        self.built = True

    def scores(self, inputs: dict) -> Any:
        """Scores float32 `(batch, candidates)` of checked inputs; a final class defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define `scores`.")

    def default_loss(self) -> keras.losses.Loss:
        """The loss of the scores; a final class defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define `default_loss`.")

    def compile(self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs):
        """`keras.Model.compile` with the method's own loss and the pair accuracy as defaults."""
        lm_adapter.check_adapters(self.causal_lm.backbone)
        check_precision(self.causal_lm, self.distribute_strategy)
        fitting.check_scope(self.distribute_strategy, type(self).__name__, self.causal_lm.variables)
        check_optimizer(optimizer, self.trainable_variables)
        if replica.is_distributed(self.distribute_strategy):
            # Keras would compile around the replicas, which XLA cannot.
            kwargs.setdefault("jit_compile", False)
        metrics = [PreferenceAccuracy()] if metrics is None else metrics
        super().compile(optimizer, loss=loss or self.default_loss(), metrics=metrics, **kwargs)

    def limits(self) -> Limits:
        causal_lm = self.causal_lm
        return Limits.of([causal_lm.backbone], causal_lm.preprocessor, self.response_length)

    def call(self, inputs):
        return self.scores(checked(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape["token_ids"][:-1]

    def logprobs(self, inputs: dict, average: bool = False) -> Any:
        """Log-probabilities float32 `(batch, candidates)` of the responses under `causal_lm`.

        Args:
            inputs: as in a call.
            average: per token instead of summed.
        """
        read = functools.partial(window_logprobs, self.causal_lm)
        return _read_responses(read, inputs, average, self.response_length)

    def ref_logprobs(self, inputs: dict, average: bool = False) -> Any:
        """As `logprobs`, under the reference; without a gradient."""
        logprobs = _read_responses(self.reference.logprobs, inputs, average, self.response_length)
        return ops.stop_gradient(logprobs)


def _read_responses(read: Callable, inputs: dict, average: bool, width: int | None) -> Any:
    """Log-probabilities float32 `(batch, candidates)`; NaN for a response beyond `width` tokens."""
    shape = ops.shape(inputs["response_mask"])
    ids, padding, response = (ops.reshape(inputs[name], (-1, shape[-1])) for name in _KEYS)
    # Keras traces batches of a second length with an unknown one: then this is a tensor.
    longest = shape[-1] - 1
    if width is None:
        width = longest
    else:
        width = min(width, longest) if isinstance(longest, int) else ops.minimum(width, longest)
    columns = ops.arange(shape[-1], dtype="int32")[None]
    response = ops.logical_and(response, columns > 0)  # nothing chose the first token of a row
    first = ops.cast(ops.argmax(response, axis=-1), "int32")
    starts = ops.clip(first, 1, shape[-1] - width)
    beyond = ops.logical_and(response, columns >= starts[:, None] + width)
    logprobs = direct_losses.response_logprobs(read(ids, padding, starts, width), response, average)
    logprobs = ops.where(ops.any(beyond, axis=-1), math.nan, logprobs)
    return ops.reshape(logprobs, shape[:-1])


def checked(inputs: Any) -> dict:
    """A preference batch as int32 and bool tensors.

    Raises:
        ValueError: not a dict, a column that is missing, or columns of another shape.
    """
    found = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
    if not isinstance(inputs, dict) or not {*_KEYS} <= {*inputs}:
        raise ValueError(
            "Expected batches as `rlhf.data.preferences` gives them, dicts with `token_ids`, "
            "`padding_mask` and `response_mask` (true at the tokens of the response: without it "
            f"prompts would be trained too). Received: {found}."
        )
    shapes = {name: tuple(inputs[name].shape) for name in _KEYS}
    if len({*shapes.values()}) > 1 or len(shapes["token_ids"]) != 3:
        raise ValueError(
            "Expected `token_ids`, `padding_mask` and `response_mask` of one shape (batch, "
            f"candidates, length), the preferred candidate first. Received: {shapes}."
        )
    dtypes = ("int32", "bool", "bool")
    return {name: ops.cast(inputs[name], kind) for name, kind in zip(_KEYS, dtypes, strict=True)}
