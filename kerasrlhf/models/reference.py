"""The frozen model that a policy is kept close to."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from kerasrlhf import adapters as adapters_lib
from kerasrlhf.models import lm_adapter, lora
from kerasrlhf.models.reverse import prompt_logprobs
from kerasrlhf.models.windows import window_logprobs
from kerasrlhf.types import Tensor


class Reference:
    """A frozen language model: log-probabilities only, never part of a checkpoint.

    It is a plain object on purpose: Keras tracks models that are set on a model, and every
    checkpoint of a trainer would contain the frozen weights.

    Args:
        causal_lm: keras-hub `CausalLM`. It is used as it is; a model that will be trained has to
            be copied first, as `Reference.of` does.
        adapters: bool. Whether its LoRA adapters are active. Defaults to True.
        frozen: bool. Whether copies of the present values of its trainable variables are used, so
            that it may be trained afterward. Always so without adapters. Defaults to False.
    """

    def __init__(self, causal_lm: keras.Model, adapters: bool = True, frozen: bool = False) -> None:
        self.causal_lm = causal_lm
        self._adapters = adapters
        # Without adapters, what else was trained must be restored too, such as biases.
        self._values: list[tuple[keras.Variable, Tensor]] = []
        if not adapters:
            self._values = lora.other_trainable_values(causal_lm.backbone)
        elif frozen:
            self._values = lora.trainable_values(causal_lm.backbone)

    @classmethod
    def of(cls, causal_lm: keras.Model, reference: Any = None) -> Reference:
        """Returns the reference for training `causal_lm`.

        Args:
            causal_lm: keras-hub `CausalLM` that will be trained.
            reference: CausalLM or an object with a `causal_lm`, of the same vocabulary. Defaults
                to None, the model as it is now: a frozen copy or, if it has LoRA adapters, the
                same weights without a second copy. Adapters that are still zero are switched off;
                those that have been trained, for example by supervised fine-tuning, keep copies
                of their present values.

        Raises:
            ValueError: If the vocabularies differ, or `enable_lora` adapted no layer.
        """
        lm_adapter.check_adapted(causal_lm.backbone)
        if reference is not None:
            other = getattr(reference, "causal_lm", reference)
            lm_adapter.check(other)
            if other is causal_lm:
                raise ValueError(
                    "`reference` is the model that is trained, so the KL to it would stay 0. Pass "
                    "`reference=None` for a frozen copy of it as it is now, or another model."
                )
            theirs, ours = (lm_adapter.vocabulary_size(m) for m in (other, causal_lm))
            if theirs != ours:
                raise ValueError(
                    "Actor and reference share token ids and need one vocabulary. Received an "
                    f"actor with {ours} entries and a reference with {theirs}."
                )
            return cls(other)
        # Full fine-tuning changes every weight, so only a second copy keeps the old ones.
        if not adapters_lib.adapted_layers(causal_lm.backbone):
            return cls(lm_adapter.copy(causal_lm))
        # Adapters that are zero can be switched off; trained ones are part of the reference.
        if lora.is_untrained(causal_lm.backbone):
            return cls(causal_lm, adapters=False)
        return cls(causal_lm, frozen=True)

    def logprobs(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        prompt_lengths: Tensor,
        width: int,
        temperature: Tensor | float = 1.0,
    ) -> Tensor:
        """Computes log-probabilities of the tokens in a window of each row.

        Args:
            token_ids: int32, `(batch, length)`, right-padded.
            padding_mask: bool, `(batch, length)`.
            prompt_lengths: int32, `(batch,)`, at least 1. First token of each row's window.
            width: int, at least 1. Tokens of a window.
            temperature: float or float32 scalar, above 0. Logits are divided by it. Defaults to 1.

        Returns:
            Float32 `(batch, length)`, in nats, zero outside the window.
        """
        with self._frozen():
            return window_logprobs(
                self.causal_lm, token_ids, padding_mask, prompt_lengths, width, temperature
            )

    def prompt_logprobs(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        prompt_lengths: Tensor,
        prompt_columns: int,
    ) -> tuple[Tensor, Tensor]:
        """Computes `reverse.prompt_logprobs` of this model.

        Args:
            token_ids: int32, `(batch, length)`: prompt, response, padding.
            padding_mask: bool, `(batch, length)`.
            prompt_lengths: int32, `(batch,)`.
            prompt_columns: int, tokens of the longest prompt.

        Returns:
            As `reverse.prompt_logprobs`.
        """
        with self._frozen():
            return prompt_logprobs(
                self.causal_lm, token_ids, padding_mask, prompt_lengths, prompt_columns
            )

    def frozen_values(self) -> list[Tensor]:
        """Returns the values that log-probabilities depend on, copies of trained ones included."""
        copies = {id(variable): value for variable, value in self._values}
        # The trained model's own variables count only as copies; of another model, all count.
        is_trained_too = bool(copies) or not self._adapters
        return [
            copies.get(id(variable), variable)
            for variable in self.causal_lm.weights
            if id(variable) in copies or not (is_trained_too and variable.trainable)
        ]

    def _frozen(self) -> contextlib.AbstractContextManager:
        if self._adapters:
            return lora.with_values(self._values) if self._values else contextlib.nullcontext()
        return lora.adapters_off(self.causal_lm.backbone, self._values)
