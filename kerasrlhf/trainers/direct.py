"""The base of trainers that learn directly from preferences, without a reward model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasrlhf import adapters
from kerasrlhf.data.limits import Limits
from kerasrlhf.functional import direct_losses
from kerasrlhf.metrics import PreferenceAccuracy
from kerasrlhf.models import fitting, lm_adapter
from kerasrlhf.models.windows import Reference, window_logprobs
from kerasrlhf.types import Tensor, require_int

_KEYS = ("token_ids", "padding_mask", "response_mask")


class DirectTrainer(fitting.FittedModel):
    """Maps preference pairs to scores from the language model's own probabilities; abstract.

    A final class defines `scores` and `default_loss`; the rest is stock Keras: `compile`, `fit`,
    `evaluate`, and `predict`, which returns the scores. The language model runs without dropout.
    Training changes `causal_lm`, and `causal_lm.save_to_preset` saves it. Only response tokens
    count.

    Args:
        causal_lm: keras-hub `CausalLM` of a text family.
        response_length: int, at least 1, or None. Tokens of the longest response in the data
            (`pairs.report.longest_response`). Only that many positions of a row are then
            projected to the vocabulary, which saves time and memory if prompts are long. Data with
            a longer response raise a `ValueError`; in a call its score is NaN. Defaults to None,
            any length.
        **kwargs: of `keras.Model`.

    Attributes:
        reference: `Reference`, the frozen model that the policy is compared with, or None.

    Call arguments:
        inputs: dict as in batches of `rlhf.data.preferences`: `token_ids` int32, `padding_mask` and
            `response_mask` bool, all `(batch, candidates, length)`, right-padded, the preferred
            candidate first.

    Returns:
        Scores float32 `(batch, candidates)`.

    Raises:
        ValueError: If the model is not a text CausalLM, or a batch has another form.
    """

    reference: Reference | None = None
    trains_on: tuple[str, ...] = ("preferences",)

    def __init__(
        self, causal_lm: keras.Model, response_length: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        lm_adapter.check(causal_lm)
        adapters.keep_apart(causal_lm)
        self.causal_lm = causal_lm
        if response_length is not None:
            require_int("response_length", response_length, minimum=1)
        self.response_length = response_length
        self.built = True

    def scores(self, inputs: dict[str, Tensor]) -> Tensor:
        """Returns scores float32 `(batch, candidates)` of checked inputs.

        Args:
            inputs: dict, as in a call.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `scores`.")

    def default_loss(self) -> keras.losses.Loss:
        """Returns the default loss of the scores."""
        raise NotImplementedError(f"{type(self).__name__} must define `default_loss`.")

    def backbones(self) -> list[keras.Model]:
        """Returns a list with the backbone of the language model."""
        return [self.causal_lm.backbone]

    def fit_defaults(self) -> dict[str, Any]:
        """Returns the default loss and the metric, preference accuracy."""
        return {"loss": self.default_loss(), "metrics": [PreferenceAccuracy()]}

    def limits(self) -> Limits:
        """Returns the lengths and token ids that the language model can process."""
        causal_lm = self.causal_lm
        return Limits.of([causal_lm.backbone], causal_lm.preprocessor, self.response_length)

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes the scores of a batch."""
        return self.scores(checked(inputs))

    def compute_output_shape(self, input_shape: dict[str, tuple]) -> tuple:
        """Returns the shape of the scores."""
        return input_shape["token_ids"][:-1]

    def logprobs(self, inputs: dict[str, Tensor], average: bool = False) -> Tensor:
        """Returns log-probabilities float32 `(batch, candidates)` of responses under `causal_lm`.

        Args:
            inputs: dict, as in a call.
            average: bool. Whether to average over tokens instead of summing. Defaults to False.
        """
        read = functools.partial(window_logprobs, self.causal_lm)
        return _read_responses(read, inputs, average, self.response_length)

    def ref_logprobs(self, inputs: dict[str, Tensor], average: bool = False) -> Tensor:
        """Returns log-probabilities like `logprobs`, under the reference and without a gradient.

        Args:
            inputs: dict, as in a call.
            average: as in `logprobs`.
        """
        if self.reference is None:
            raise ValueError(f"{type(self).__name__} has no reference. Set `self.reference`.")
        logprobs = _read_responses(self.reference.logprobs, inputs, average, self.response_length)
        return ops.stop_gradient(logprobs)


def _read_responses(
    read: Callable, inputs: dict[str, Tensor], average: bool, width: int | None
) -> Tensor:
    """Returns log-probabilities `(batch, candidates)`; NaN for responses beyond `width` tokens."""
    # Fold candidates into rows: `(batch * candidates, length)`.
    shape = ops.shape(inputs["response_mask"])
    ids, padding, response = (ops.reshape(inputs[name], (-1, shape[-1])) for name in _KEYS)
    # An int, or a tensor where Keras traces batches of a second length with an unknown one.
    longest = shape[-1] - 1
    if width is None:
        width = longest
    else:
        width = min(width, longest) if isinstance(longest, int) else ops.minimum(width, longest)
    columns = ops.arange(shape[-1], dtype="int32")[None]
    # Nothing predicts the first token of a row.
    response = ops.logical_and(response, columns > 0)
    # Place the window of `width` tokens at the first response token, inside the row.
    first = ops.cast(ops.argmax(response, axis=-1), "int32")
    first = ops.clip(first, 1, shape[-1] - width)
    # NaN instead of a sum that silently misses tokens.
    beyond = ops.logical_and(response, columns >= first[:, None] + width)
    logprobs = direct_losses.response_logprobs(read(ids, padding, first, width), response, average)
    logprobs = ops.where(ops.any(beyond, axis=-1), math.nan, logprobs)
    # Back to `(batch, candidates)`.
    return ops.reshape(logprobs, shape[:-1])


def checked(inputs: Any) -> dict[str, Tensor]:
    """Returns a checked preference batch as int32 and bool tensors.

    Args:
        inputs: dict, a batch of `rlhf.data.preferences`.

    Raises:
        ValueError: If it is not a dict, a column is missing, or shapes differ.
    """
    found = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
    if not isinstance(inputs, dict) or not {*_KEYS} <= {*inputs}:
        raise ValueError(
            "Expected batches of `rlhf.data.preferences`, dicts with `token_ids`, "
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
