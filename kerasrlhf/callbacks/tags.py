"""The meaning of every curve in TensorBoard: the table of descriptions and documentation."""

from __future__ import annotations

from typing import NamedTuple


class Tag(NamedTuple):
    """The meaning of a curve, as Markdown.

    meaning: str, words or a formula.
    unit: str.
    healthy: str, what it is in a run that works; `"any"` where nothing can be said.
    """

    meaning: str
    unit: str
    healthy: str

    @property
    def description(self) -> str:
        """The three in one text, as TensorBoard shows it with a curve."""
        return f"{self.meaning}. Unit: {self.unit}. Healthy: {self.healthy}."


TAGS = {
    "objective/score": Tag(
        "Mean score of the responses, after `RewardShaping`", "score", "rises, noisily"
    ),
    "objective/score_std": Tag(
        "Standard deviation of the scores over the batch", "score", "above 0"
    ),
    "objective/raw_score": Tag(
        "Mean score before `RewardShaping`", "score", "rises with `objective/score`"
    ),
    "objective/kl": Tag(
        "KL to the reference: mean over responses of the sum over tokens of "
        "`logprob - ref_logprob`, an estimate from samples",
        "nats per response",
        "0 in the first iteration, then rises to its target and stays near it; small negative "
        "values early on are noise",
    ),
    "objective/kl_target": Tag(
        "The KL that `AdaptiveKL` steers toward; written by the callback alone",
        "nats per response",
        "constant",
    ),
    "objective/kl_coef": Tag(
        "KL coefficient", "score per nat", "constant with `FixedKL`; settles with `AdaptiveKL`"
    ),
    "objective/reward": Tag("`score - kl_coef * kl`", "score", "rises"),
    "objective/entropy": Tag(
        "Mean over responses of the sum over tokens of `-logprob`",
        "nats per response",
        "falls slowly",
    ),
    "objective/length": Tag(
        "Mean length of the responses, the end token included", "tokens", "no sudden change"
    ),
    "objective/ended": Tag(
        "Responses that a stop token or a stop string ended",
        "fraction",
        "high where responses are to end; 0 without end tokens",
    ),
    "objective/score_spread": Tag(
        "Standard deviation between the members of a `rlhf.RewardEnsemble`",
        "score",
        "does not grow: where the members disagree, the policy exploits errors",
    ),
    "objective/unscored": Tag(
        "Responses that none of several rewards applies to; from the first one on",
        "fraction",
        "near 0",
    ),
    "reward/<name>": Tag(
        "Mean score of one of several rewards, without its weight; or the mean of what a reward "
        "function passed to `log_metric`",
        "score",
        "any",
    ),
    "policy/clipfrac": Tag("Tokens whose policy loss was clipped", "fraction", "0.01 to 0.3"),
    "policy/approxkl": Tag(
        "`(logprob - old_logprob)^2 / 2` per token, how far updates have moved the policy since "
        "it sampled",
        "nats per token",
        "up to 0.02",
    ),
    "policy/entropy": Tag(
        "Entropy of the distribution over the next token", "nats per token", "falls slowly"
    ),
    "policy/ratio": Tag("Mean of `exp(logprob - old_logprob)`", "1", "within 0.05 of 1"),
    "policy/ratio_error": Tag(
        "Mean of `abs(ratio - 1)` in the first update, where the policy is the one that sampled",
        "1",
        "about 1e-6 (float16: up to 0.02, bfloat16: up to 0.1)",
    ),
    "policy/grad_norm": Tag(
        "Global norm of the gradient before any clipping, mean over the updates",
        "1",
        "no sudden rise; the clipping of the optimizer acts above its `global_clipnorm`",
    ),
    "policy/learning_rate": Tag(
        "Learning rate of the first update of the iteration, schedules included",
        "1",
        "as it was set",
    ),
    "policy/updates": Tag(
        "Optimizer steps on rollouts, the skipped ones left out",
        "count",
        "`update_epochs * num_minibatches`; fewer where `target_kl` ends an iteration",
    ),
    "policy/skipped_updates": Tag(
        "Updates that were skipped because a loss or gradient was not finite",
        "count",
        "0; in float16 some at the start, which lower the loss scale, and one now and then",
    ),
    "policy/loss_scale": Tag(
        "Factor of the loss, so that its gradients do not vanish; with float16 only",
        "1",
        "1000 or more; it halves with each skipped update",
    ),
    "policy/accuracy": Tag(
        "Pairs of responses that the policy orders as the score does; with `rlhf.OnlineDPO`",
        "fraction",
        "rises above 0.5",
    ),
    "value/explained_variance": Tag(
        "`1 - Var(returns - values) / Var(returns)`, with the values before the updates",
        "1",
        "starts around or below 0 and rises",
    ),
    "value/clipfrac": Tag("Tokens whose value loss was clipped", "fraction", "up to 0.3"),
    "value/mean": Tag("Mean value of the critic", "score", "follows `value/returns`"),
    "value/returns": Tag("Mean return, what the critic learns", "score", "rises with the score"),
    "loss/total": Tag(
        "What is minimized; NaN where an update was skipped",
        "score",
        "finite; it need not fall, because the policy samples its own data",
    ),
    "loss/policy": Tag("Policy loss per token, before updates about 0", "score", "near 0"),
    "loss/value": Tag(
        "Value loss per token: half the squared error of the critic", "score^2", "falls"
    ),
    "loss/kl": Tag("KL term per token, where the KL is in the loss", "score", "small and stable"),
    "loss/ptx": Tag(
        "Cross-entropy of texts; with `rlhf.LanguageModeling(coef=...)`",
        "nats per token",
        "does not rise",
    ),
    "loss/lm": Tag(
        "Cross-entropy of texts; with `rlhf.LanguageModeling(every=...)`",
        "nats per token",
        "does not rise",
    ),
    "loss/reverse": Tag(
        "Cross-entropy of prompts given their responses; with `rlhf.PromptPrediction(coef=...)`",
        "nats per prompt token",
        "falls",
    ),
    "time/rollout": Tag("Time of sampling", "seconds", "steady after the first iteration"),
    "time/score": Tag(
        "Time of reference and rewards", "seconds", "steady after the first iteration"
    ),
    "time/update": Tag(
        "Time of everything else, mostly updates", "seconds", "steady after the first iteration"
    ),
    "time/iteration": Tag(
        "Time of the whole iteration, without callbacks",
        "seconds",
        "steady after the first iteration, which compiles",
    ),
    "time/tokens_per_second": Tag(
        "Sampled tokens by `time/rollout`", "tokens per second", "steady"
    ),
    "time/episodes": Tag(
        "Responses since the run began: iterations times responses of an iteration",
        "count",
        "rises evenly",
    ),
    "time/tokens": Tag("Response tokens sampled since the run began", "tokens", "rises evenly"),
    "val/score": Tag(
        "Mean score of responses to `validation_data`",
        "score",
        "rises with `objective/score`",
    ),
    "val/kl": Tag(
        "KL to the reference on `validation_data`", "nats per response", "near `objective/kl`"
    ),
    "val/length": Tag(
        "Mean length of responses to `validation_data`", "tokens", "near `objective/length`"
    ),
    "val/<name>": Tag(
        "A metric of `compile(metrics=...)`, over all of `validation_data`", "its own", "any"
    ),
}
"""Every tag by its name; `reward/<name>` and `val/<name>` are for any name."""

AT_A_GLANCE = {
    "at_a_glance/1_score": "objective/score",
    "at_a_glance/2_kl": "objective/kl",
    "at_a_glance/3_kl_coef": "objective/kl_coef",
    "at_a_glance/4_length": "objective/length",
    "at_a_glance/5_val_score": "val/score",
}
"""Copies of other tags: pages of TensorBoard sort by name, and these come before all others."""


def at_a_glance(values: dict[str, float]) -> dict[str, float]:
    """Returns the most important of some values, under the names of their copies.

    Args:
        values: dict from tags to numbers.

    Example:
        >>> at_a_glance({"loss/total": 0.5, "objective/score": 0.25})
        {'at_a_glance/1_score': 0.25}
    """
    return {copy: values[tag] for copy, tag in AT_A_GLANCE.items() if tag in values}


def describe(name: str) -> str:
    """Returns the description of a curve.

    Args:
        name: str. Its tag.

    Example:
        >>> describe("time/tokens")
        'Response tokens sampled since the run began. Unit: tokens. Healthy: rises evenly.'
        >>> describe("train/loss")
        'The log `loss` of `fit`.'
    """
    original = AT_A_GLANCE.get(name, name)
    group, _, rest = original.partition("/")
    # Parts of a reward have names of the user's choice, and one description.
    tag = TAGS.get("reward/<name>" if group == "reward" else original)
    if group == "val" and rest != "loss" and tag is None:
        tag = TAGS["val/<name>"]
    if tag is None:
        what = {"train": "`fit`", "val": "validation in `fit`"}.get(group)
        return f"The log `{rest}` of {what}." if what else f"The statistic `{name}` of a trainer."
    copied = f"The same as `{original}`. " if original != name else ""
    return copied + tag.description
