"""Statistics of an iteration, for logs, history and progress bar."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from kerasrlhf.functional import masking, on_policy_losses
from kerasrlhf.functional.logprobs import k1
from kerasrlhf.rollouts.collector import Collected
from kerasrlhf.types import Experience

SHOWN = {
    "score": "objective/score",
    "kl": "objective/kl",
    "kl_coef": "objective/kl_coef",
    "length": "objective/length",
    "clipfrac": "policy/clipfrac",
    "loss": "loss/total",
}
"""Statistics of the progress bar and the history, in this order, if they are measured."""
VALIDATED = ("score", "kl", "length")
MODES = {"score": "max"}


def rollout_statistics(collected: Collected) -> dict[str, float]:
    """Returns statistics of the sampled responses, means over the whole batch of all replicas.

    KL and entropy are sums over a response's tokens, in nats (details N21, S2); `objective/score`
    is the score after `RewardShaping`, `objective/raw_score` before. Padding never counts (S4,
    M9). With `Sampler(epsilon=...)` all are means over samples from the mixture; KL and entropy are
    importance-weighted per token, so that they describe the policy after each sampled prefix
    (M7). With `importance_cap` they are weighted by the ratio of training to sampling
    probabilities.
    """
    rollout = collected.rollout
    mask = rollout.response_mask
    weights = 1.0
    if rollout.behavior_logprobs is not None:
        # Correct for exploration or another forward pass: 1 where both agree (M7).
        weights = on_policy_losses.importance_weights(rollout.logprobs, rollout.behavior_logprobs)
    # Sum over the tokens of each response, `(batch,)` (N21, S2).
    kl = k1(rollout.logprobs, rollout.ref_logprobs)
    kl = masking.masked_sum(weights * kl, mask, axis=-1)
    entropy = masking.masked_sum(-weights * rollout.logprobs, mask, axis=-1)
    lengths = masking.masked_sum(ops.ones(mask.shape), mask, axis=-1)
    scores = collected.scores
    mean_kl = float(ops.mean(kl))
    kl_coef = float(rollout.kl_coef)
    spread = {}
    if collected.spread is not None:
        spread["objective/score_spread"] = float(collected.spread.mean())
    return {
        "objective/score": float(scores.mean()),
        "objective/score_std": float(scores.std()),
        "objective/raw_score": float(collected.raw_scores.mean()),
        "objective/kl": mean_kl,
        "objective/kl_coef": kl_coef,
        "objective/reward": float(scores.mean()) - kl_coef * mean_kl,
        "objective/entropy": float(ops.mean(entropy)),
        "objective/length": float(ops.mean(lengths)),
        "objective/ended": float(ops.mean(ops.cast(rollout.ended, "float32"))),
        **spread,
        **reward_statistics(collected),
    }


def reward_statistics(collected: Collected) -> dict[str, float]:
    """Returns the statistics of single rewards, and what reward functions logged, as means.

    `reward/<name>` is the mean score of a part of a list or dict of rewards, without its weight,
    over the responses that it applies to; or the mean of what functions passed to `log_metric`.
    `objective/unscored` is the fraction of responses that no reward applies to, from the first
    such response on.
    """
    means = dict(collected.metrics or {})
    for name, scores in (collected.part_scores or {}).items():
        # NaN marks responses that this reward does not apply to.
        applicable = scores[~np.isnan(scores)]
        if applicable.size:
            means[name] = float(applicable.mean())
    statistics = {f"reward/{name}": mean for name, mean in means.items()}
    if collected.unscored is not None:
        statistics["objective/unscored"] = float(collected.unscored.mean())
    return statistics


def shown_statistics(statistics: dict[str, float]) -> dict[str, float]:
    """Returns the statistics of the progress bar and the history, under their short names."""
    return {name: statistics[place] for name, place in SHOWN.items() if place in statistics}


def update_statistics(updates: list[dict[str, Any]]) -> dict[str, float]:
    """Returns means over the updates on a rollout, and how many were made and skipped.

    Args:
        updates: list with the logs of each update; `policy/skipped` is 1 where it was skipped.
    """
    logs = [{name: float(value) for name, value in log.items()} for log in updates]
    # Average over updates that were made; their statistics are finite.
    done = [log for log in logs if not log["policy/skipped"]]
    means = {name: float(np.mean([log[name] for log in done or logs])) for name in logs[0]}
    # Include skipped updates, so that `TerminateOnNaN` and people see their losses.
    means["loss/total"] = float(np.mean([log["loss/total"] for log in logs]))
    # From the first update only: after it, the policy has moved and the error says nothing.
    means["policy/ratio_error"] = logs[0]["policy/ratio_error"]
    del means["policy/skipped"]
    counts = {"policy/updates": len(done), "policy/skipped_updates": len(logs) - len(done)}
    return {**means, **{name: float(count) for name, count in counts.items()}}


def added_counts(statistics: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Returns statistics whose counts include the updates on another rollout."""
    counts = ("policy/updates", "policy/skipped_updates")
    return {**statistics, **{name: statistics[name] + more[name] for name in counts}}


def value_statistics(experience: Experience) -> dict[str, float]:
    """Returns the fraction of the variance of returns that values before the updates explain."""
    explained = on_policy_losses.explained_variance(
        experience.values, experience.returns, experience.response_mask
    )
    return {"value/explained_variance": float(explained)}


def time_statistics(seconds: dict[str, float], tokens: float) -> dict[str, float]:
    """Returns where an iteration's time went, and the sampled tokens per second.

    Args:
        seconds: of `rollout`, `score` and the whole `iteration`; the rest is the `update`.
        tokens: float, of all responses.

    Example:
        >>> times = time_statistics({"rollout": 2.0, "score": 1.0, "iteration": 7.0}, tokens=64)
        >>> times["time/update"], times["time/tokens_per_second"]
        (4.0, 32.0)
    """
    update = seconds["iteration"] - seconds["rollout"] - seconds["score"]
    times = {**seconds, "update": update, "tokens_per_second": tokens / seconds["rollout"]}
    return {f"time/{name}": value for name, value in times.items()}


def seen_statistics(iterations: int, episodes: int, lengths: list[float]) -> dict[str, float]:
    """Returns the numbers of episodes and tokens that were sampled since the run began.

    Both are computed from the saved state, so that they continue after a resume. An iteration with
    an unknown mean length, such as one before a checkpoint of weights, counts with the mean of the
    others.

    Args:
        iterations: int, at least 1. Completed iterations, this one included.
        episodes: int. Responses per iteration.
        lengths: list of float. Mean lengths of responses of the last iterations, this one last.

    Example:
        >>> seen_statistics(iterations=3, episodes=10, lengths=[4.0, 6.0, 8.0])
        {'time/episodes': 30.0, 'time/tokens': 180.0}
    """
    total = float(iterations * episodes)
    return {"time/episodes": total, "time/tokens": total * float(np.mean(lengths[-iterations:]))}
