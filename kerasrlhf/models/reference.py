"""The frozen model that a policy is kept close to."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.models import lm_adapter, lora
from kerasrlhf.models.reverse import prompt_logprobs
from kerasrlhf.models.windows import window_logprobs


class Reference:
    """A frozen language model: log-probabilities only, never part of a checkpoint.

    It is a plain object on purpose: Keras tracks models that are set on a model, and every
    checkpoint of a trainer would carry the frozen weights.

    Args:
        causal_lm: the model to read. It is used as it is; make a copy first where it is going to
            be trained (`Reference.of` does).
        adapters: whether its LoRA adapters take part.
        frozen: whether the model is read with copies of the values that its trainable variables
            have now, so that it may be trained afterward. Without adapters it always is.
    """

    def __init__(self, causal_lm: keras.Model, adapters: bool = True, frozen: bool = False):
        self.causal_lm = causal_lm
        self._adapters = adapters
        self._values = []
        if not adapters:
            self._values = lora.trained_beside(causal_lm.backbone)
        elif frozen:
            self._values = lora.trainable_values(causal_lm.backbone)

    @classmethod
    def of(cls, causal_lm: keras.Model, reference: Any = None) -> Reference:
        """The reference for training `causal_lm`.

        Args:
            causal_lm: the model that is going to be trained.
            reference: None for the model as it is now: a frozen copy or, where it carries LoRA
                adapters, the same weights without a second copy. Adapters that are still zero are
                switched off; those that have been trained, for example by supervised
                fine-tuning, keep copies of their present values. Otherwise a CausalLM or an
                object with a `causal_lm`, of the same vocabulary.

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
        if not lora.adapted_layers(causal_lm.backbone):
            return cls(lm_adapter.copy(causal_lm))
        if lora.is_untrained(causal_lm.backbone):
            return cls(causal_lm, adapters=False)
        return cls(causal_lm, frozen=True)

    def logprobs(
        self, token_ids: Any, padding_mask: Any, starts: Any, width: int, temperature: float = 1.0
    ) -> Any:
        """Log-probabilities float32 `(batch, length)` of the tokens at `starts .. starts+width`.

        Args and layout are those of `ActorCritic.token_stats`; zero outside the window.
        """
        with self._frozen():
            return window_logprobs(
                self.causal_lm, token_ids, padding_mask, starts, width, temperature
            )

    def prompt_logprobs(
        self, token_ids: Any, padding_mask: Any, prompt_lengths: Any, prompt_columns: int
    ) -> tuple[Any, Any]:
        """`reverse.prompt_logprobs`: what this model infers from the response about its prompt."""
        with self._frozen():
            return prompt_logprobs(
                self.causal_lm, token_ids, padding_mask, prompt_lengths, prompt_columns
            )

    def frozen_values(self) -> list[Any]:
        """Returns all that its log-probabilities depend on, the copies of trained values too."""
        copies = {id(variable): value for variable, value in self._values}
        is_trained_too = bool(copies) or not self._adapters
        return [
            copies.get(id(variable), variable)
            for variable in self.causal_lm.weights
            if id(variable) in copies or not (is_trained_too and variable.trainable)
        ]

    def _frozen(self):
        if self._adapters:
            return lora.with_values(self._values)
        return lora.adapters_off(self.causal_lm.backbone, self._values)
