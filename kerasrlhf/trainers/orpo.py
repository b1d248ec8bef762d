"""Odds ratio preference optimization: fine-tuning and preferences in one loss, no reference."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.losses import ORPOLoss
from kerasrlhf.trainers.direct import DirectTrainer
from kerasrlhf.types import Tensor, require_number


class ORPO(DirectTrainer):
    """Trains a policy to imitate chosen responses and to disfavor rejected ones.

    This is odds ratio preference optimization. The score of a response is the mean log-probability
    of its tokens, `m`. The loss is `-m[0]`, as in supervised fine-tuning, and `coef` times `-log
    sigmoid` of the log odds ratio `log(p[0] / (1 - p[0])) - log(p[1] / (1 - p[1]))` with `p =
    exp(m)`. There is no reference and no KL: start from a pretrained model instead of a fine-tuned
    one.

    Args:
        causal_lm: keras-hub `CausalLM` of a text family.
        coef: float, at least 0. Weight of the odds ratio, the paper's lambda. Defaults to 0.1.
        **kwargs: `response_length` of `DirectTrainer`, and arguments of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are nats per token.

    Raises:
        ValueError: If `coef` is negative, or batches have no `response_mask`.

    Example:
        >>> import kerasrlhf as rlhf
        >>> lm = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES).causal_lm
        >>> pair = {"prompt": "Tom was", "chosen": " glad.", "rejected": " sad."}
        >>> pairs = rlhf.data.preferences([pair] * 2, lm.preprocessor, batch_size=2)
        >>> orpo = rlhf.ORPO(lm)
        >>> orpo.compile("adam", jit_compile=False)
        >>> sorted(orpo.evaluate(pairs, verbose=0, return_dict=True))
        ['accuracy', 'loss']

    Reference:
        Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv
        2403.07691, eq. 6.
    """

    def __init__(self, causal_lm: keras.Model, coef: float = 0.1, **kwargs: Any) -> None:
        super().__init__(causal_lm, **kwargs)
        self.coef = require_number("coef", coef, minimum=0.0)

    def scores(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes the mean log-probability of each response."""
        return self.logprobs(inputs, average=True)

    def default_loss(self) -> keras.losses.Loss:
        """Returns the loss of fine-tuning with the odds ratio."""
        return ORPOLoss(self.coef)
