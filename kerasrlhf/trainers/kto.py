"""Kahneman-Tversky optimization: good and bad responses without pairs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kerasrlhf import replica
from kerasrlhf.functional import direct_losses
from kerasrlhf.losses import KTOLoss
from kerasrlhf.models.windows import Reference
from kerasrlhf.trainers.direct import DirectTrainer
from kerasrlhf.types import Tensor, require_number


class KTO(DirectTrainer):
    """Trains a policy to score chosen responses above a reference point and others below it.

    This is Kahneman-Tversky optimization. The score of a response is `beta (log pi - log ref -
    z0)`; the loss is `lambda_D sigmoid(-score)` for a chosen response and `lambda_U
    sigmoid(score)` for a rejected one. Unlike the loss of DPO, it does not compare the two, and it
    saturates for responses far on either side, wrong labels included. So it also accepts single
    responses with a label (`data.unpaired_preferences`); the accuracy is then the fraction of
    responses on the correct side of the reference point.

    The reference point `z0 = max(0, mean of log pi - log ref)` over the batch estimates the KL
    divergence from mismatched responses: the prompt of each row with the responses of the next. It
    has no gradient and is one number for the batch of all replicas. Mismatched responses are
    truncated to the length of a row. A last batch of one row has no other response; its `z0` is
    0.

    Args:
        causal_lm: as in `DPO`.
        reference: as in `DPO`. Defaults to None.
        beta: float, above 0, units of score per nat. Defaults to 0.1.
        desirable_weight: float, at least 0. `lambda_D`. Defaults to 1.
        undesirable_weight: float, at least 0. `lambda_U`. Defaults to 1.
        **kwargs: `response_length` of `DirectTrainer`, and arguments of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are implicit rewards above `z0`.

    Raises:
        ValueError: As in `DPO`, or if a weight is negative or a batch has one row.

    Example:
        >>> import kerasrlhf as rlhf
        >>> lm = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES).causal_lm
        >>> pair = {"prompt": "Tom was", "chosen": " glad.", "rejected": " sad."}
        >>> pairs = rlhf.data.preferences([pair] * 2, lm.preprocessor, batch_size=2)
        >>> kto = rlhf.KTO(lm, undesirable_weight=3.0)
        >>> kto.compile("adam", jit_compile=False)
        >>> round(kto.evaluate(pairs, verbose=0)[0], 4)  # (1 / 2 + 3 / 2) / 2
        1.0

    Reference:
        Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv
        2402.01306, eq. 8.
    """

    trains_on: tuple[str, ...] = ("preferences", "unpaired_preferences")

    def __init__(
        self,
        causal_lm: keras.Model,
        reference: Any = None,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(causal_lm, **kwargs)
        self.beta = require_number("beta", beta, above=0.0)
        self.desirable_weight = require_number("desirable_weight", desirable_weight, minimum=0.0)
        self.undesirable_weight = require_number(
            "undesirable_weight", undesirable_weight, minimum=0.0
        )
        self.reference = Reference.of(causal_lm, reference)

    def scores(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes `beta (log pi - log ref - z0)`."""
        return self._rewards(inputs, self.beta, self._reference_point(inputs))

    def default_loss(self) -> keras.losses.Loss:
        """Returns the Kahneman-Tversky loss."""
        return KTOLoss(self.desirable_weight, self.undesirable_weight)

    def _rewards(
        self, inputs: dict[str, Tensor], beta: float = 1.0, reference_point: Tensor | float = 0.0
    ) -> Tensor:
        logprobs, ref_logprobs = self.logprobs(inputs), self.ref_logprobs(inputs)
        return direct_losses.implicit_reward(logprobs, ref_logprobs, beta, reference_point)

    def _reference_point(self, inputs: dict[str, Tensor]) -> Tensor:
        """Returns `z0`, float32 scalar, in nats."""
        # With one replica the batch size is known while tracing, and can be checked.
        alone = replica.replicas(self.distribute_strategy) == 1
        if alone and inputs["token_ids"].shape[0] == 1:
            raise ValueError(
                "KTO estimates a KL divergence from a prompt with the response of another row, and "
                "received a batch of one row. Use a batch size of at least 2."
            )
        # Mean over all replicas, without a gradient.
        kl = replica.batch_mean(self._rewards(mismatched(inputs)))
        # A single row would be compared with its own response.
        others = replica.batch_rows(inputs["token_ids"]) > 1
        return ops.where(others, ops.maximum(kl, 0.0), 0.0)


def mismatched(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Combines the prompt of each row with the responses of the next row.

    Args:
        inputs: dict of `token_ids` int32, `padding_mask` and `response_mask` bool, all `(batch,
            candidates, length)`, as in batches of `rlhf.data.preferences`.

    Returns:
        A dict of the same form. Responses are truncated to the length of a row.

    Example:
        >>> batch = {
        ...     "token_ids": ops.convert_to_tensor([[[1, 2, 8, 0]], [[3, 6, 7, 0]]]),
        ...     "padding_mask": ops.convert_to_tensor([[[1, 1, 1, 0]], [[1, 1, 1, 0]]]),
        ...     "response_mask": ops.convert_to_tensor([[[0, 0, 1, 0]], [[0, 1, 1, 0]]]),
        ... }
        >>> mismatched(batch)["token_ids"].numpy().tolist()
        [[[1, 2, 6, 7]], [[3, 8, 0, 0]]]
    """
    names = ("token_ids", "padding_mask", "response_mask")
    # Stack the three columns, `(batch, candidates, 3, length)`, to move them together.
    own = ops.stack([ops.cast(inputs[name], "int32") for name in names], axis=-2)
    other = replica.next_rows(own)
    length = ops.shape(own)[-1]
    # Column `t` of the result takes column `t - own prompt + other prompt` of the other row.
    columns = ops.arange(length, dtype="int32")
    start = _prompt_lengths(own)
    source = columns - start + _prompt_lengths(other)
    # Zeros from beyond the other row; the prompt remains the row's own.
    index = ops.clip(source, 0, length - 1)[..., None, :]
    moved = ops.take_along_axis(other, ops.repeat(index, len(names), axis=-2), axis=-1)
    moved = ops.where((source < length)[..., None, :], moved, 0)
    rows = ops.where((columns < start)[..., None, :], own, moved)
    ids, padding, response = ops.unstack(rows, axis=-2)
    return dict(zip(names, (ids, padding > 0, response > 0), strict=True))


def _prompt_lengths(rows: Tensor) -> Tensor:
    """Int32 `(batch, candidates, 1)`: real tokens before the first one of the response."""
    padding, response = rows[..., 1, :], rows[..., 2, :]
    before = ops.cumsum(response, axis=-1) == 0
    return ops.sum(ops.where(before, padding, 0), axis=-1, keepdims=True)
