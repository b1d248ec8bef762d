"""Odds ratio preference optimization: fine-tuning and preferences in one loss, no reference."""

from __future__ import annotations

from typing import Any

import keras

from kerasrlhf.losses import ORPO as ORPOLoss
from kerasrlhf.trainers.direct import DirectTrainer
from kerasrlhf.types import require_number


class ORPO(DirectTrainer):
    """Odds ratio preference optimization: imitates chosen responses and disfavors rejected ones.

    The score of a response is the mean log-probability of its tokens, `m`. The loss is `-m[0]`,
    as in supervised fine-tuning, and `coef` times `-log sigmoid` of the log odds ratio `log(p[0] /
    (1 - p[0])) - log(p[1] / (1 - p[1]))` with `p = exp(m)`. There is no reference and no KL: start
    from a pretrained model, not from a fine-tuned one.

    Args:
        causal_lm: keras-hub `CausalLM` of a text family.
        coef: weight of the odds ratio, at least 0; the paper's lambda.
        **kwargs: `response_length` of `DirectTrainer`, and those of `keras.Model`.

    Call arguments, Returns: as in `DirectTrainer`; the scores are nats per token.

    Raises:
        ValueError: a negative `coef`, or batches without `response_mask`.

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

    def __init__(self, causal_lm: keras.Model, coef: float = 0.1, **kwargs: Any):
        super().__init__(causal_lm, **kwargs)
        self.coef = require_number("coef", coef, minimum=0.0)

    def scores(self, inputs):
        return self.logprobs(inputs, average=True)

    def default_loss(self):
        return ORPOLoss(self.coef)
