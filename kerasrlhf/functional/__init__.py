"""Pure functions on `keras.ops`: no state, nothing reduced unless the name says so, float32.

Per-token tensors are `(batch, length)`; masks are true where something counts.
"""

from kerasrlhf.functional import (
    baselines,
    direct_losses,
    kl,
    logprobs,
    masking,
    policy_losses,
    preferences,
    returns,
    value_losses,
)

__all__ = [
    "baselines",
    "direct_losses",
    "kl",
    "logprobs",
    "masking",
    "policy_losses",
    "preferences",
    "returns",
    "value_losses",
]
