"""Pure functions on `keras.ops`: stateless, float32, reduced only where the name says so.

Per-token tensors are `(batch, length)`; masks are true where something counts. Every function is
available both here and in its module: `rlhf.functional.gae` is `rlhf.functional.returns.gae`.
"""

from kerasrlhf.functional import (
    baselines,
    direct_losses,
    logprobs,
    masking,
    on_policy_losses,
    preferences,
    returns,
)
from kerasrlhf.functional.baselines import group_mean, group_normalized, leave_one_out
from kerasrlhf.functional.direct_losses import (
    implicit_reward,
    ipo,
    kto,
    log_odds,
    orpo,
    response_logprobs,
)
from kerasrlhf.functional.logprobs import k1, k2, k3, token_entropy, token_logprobs
from kerasrlhf.functional.masking import (
    last_true,
    last_true_mask,
    loss_weights,
    masked_mean,
    masked_sum,
    masked_variance,
    response_mask,
    whiten,
    zero_outside,
)
from kerasrlhf.functional.on_policy_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    critic_warmup_loss,
    explained_variance,
    importance_weights,
    policy_gradient_loss,
    response_weights,
)
from kerasrlhf.functional.preferences import (
    accuracy,
    agreement,
    best_of_k,
    bradley_terry,
    lead,
    plackett_luce,
    squared_sum,
)
from kerasrlhf.functional.returns import discounted_sums, gae, token_rewards

# Parts of a file that have names of their own: `rlhf.functional.kl.k1`.
kl = logprobs
policy_losses = value_losses = on_policy_losses

__all__ = [
    # Modules
    "baselines",
    "direct_losses",
    "kl",
    "logprobs",
    "masking",
    "on_policy_losses",
    "policy_losses",
    "preferences",
    "returns",
    "value_losses",
    # Masks, sums and means
    "zero_outside",
    "masked_sum",
    "masked_mean",
    "masked_variance",
    "whiten",
    "response_mask",
    "last_true_mask",
    "last_true",
    "loss_weights",
    # Log-probabilities and KL
    "token_logprobs",
    "token_entropy",
    "response_logprobs",
    "k1",
    "k2",
    "k3",
    # Rewards, returns and advantages
    "token_rewards",
    "discounted_sums",
    "gae",
    "leave_one_out",
    "group_mean",
    "group_normalized",
    # Losses of the policy and the critic
    "clipped_policy_loss",
    "policy_gradient_loss",
    "importance_weights",
    "response_weights",
    "clipped_value_loss",
    "critic_warmup_loss",
    "explained_variance",
    # Preferences
    "bradley_terry",
    "best_of_k",
    "plackett_luce",
    "squared_sum",
    "accuracy",
    "agreement",
    "lead",
    "implicit_reward",
    "ipo",
    "kto",
    "log_odds",
    "orpo",
]
