"""Groups of options of on-policy trainers, as objects that check their values."""

from __future__ import annotations

import dataclasses

from kerasrlhf.types import require_int, require_number, serializable


@serializable
@dataclasses.dataclass(frozen=True)
class CriticWarmup:
    """Iterations at the start of `PPO` that fit the critic and keep the policy at the reference.

    Their loss is `(return - value)^2 + kl_coef * D(policy, reference)`, plus what `entropy_coef`,
    a KL in the loss, `texts` and `prompt_prediction` add.

    Args:
        iterations: int, at least 1.
        kl_coef: float, at least 0. Squared score units per nat. Defaults to 1.

    Raises:
        ValueError: If a value is outside its range.

    Example:
        >>> import kerasrlhf as rlhf
        >>> rlhf.CriticWarmup(iterations=4)
        CriticWarmup(iterations=4, kl_coef=1.0)
    """

    iterations: int
    kl_coef: float = 1.0

    def __post_init__(self) -> None:
        require_int("iterations", self.iterations, minimum=1)
        require_number("kl_coef", self.kl_coef, minimum=0.0)


@serializable
@dataclasses.dataclass(frozen=True)
class PromptPrediction:
    """Prediction of the prompt from the response: reverse language modeling.

    Args:
        coef: float, at least 0. Weight of the loss of predicting the prompt from the response.
            Defaults to 0.
        reward: float, at least 0. Weight in the score of the mean log-probability that the
            reference assigns to the prompt's tokens after the response. It favors responses from
            which the prompt can be recognized. Defaults to 0.

    Raises:
        ValueError: If a weight is below 0, or both are 0.

    Example:
        >>> import kerasrlhf as rlhf
        >>> rlhf.PromptPrediction(reward=0.1)
        PromptPrediction(coef=0.0, reward=0.1)
    """

    coef: float = 0.0
    reward: float = 0.0

    def __post_init__(self) -> None:
        require_number("coef", self.coef, minimum=0.0)
        require_number("reward", self.reward, minimum=0.0)
        if self.coef == 0 and self.reward == 0:
            raise ValueError(
                "`PromptPrediction` has no effect with both weights 0. Set `coef` or `reward`, or "
                "leave it out."
            )


def require_group(group_size: int) -> int:
    """Returns the group size of an algorithm that compares responses to the same prompt.

    Raises:
        ValueError: If it is below 2.
    """
    if require_int("group_size", group_size) < 2:
        raise ValueError(
            "The algorithm compares responses to the same prompt: `group_size` must be at least 2. "
            f"Received: {group_size}."
        )
    return group_size
