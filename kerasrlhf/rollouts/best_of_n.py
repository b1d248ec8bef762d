"""Sampling several responses and keeping the best: the baseline that costs no training."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasrlhf import replica, special_tokens, tokens
from kerasrlhf.data import inputs
from kerasrlhf.data import records as data_records
from kerasrlhf.models.actor_critic import require_actor
from kerasrlhf.models.reference import Reference
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.collector import Collector
from kerasrlhf.types import Sampler, require_int, require_sampler, require_seed


class BestOfN(NamedTuple):
    """The responses that were drawn to every prompt, and which of them is best.

    prompts: list of strings or of lists of messages, as they were given.
    responses: list of lists of strings, `n` a prompt.
    scores: float32 `(prompts, n)`.
    ended: bool `(prompts, n)`, true where the tokenizer's end token closed the response; None: all.
    """

    prompts: list[str]
    responses: list[list[str]]
    scores: np.ndarray
    ended: np.ndarray | None = None

    @property
    def winners(self) -> list[str]:
        """The response with the highest score of every prompt."""
        best = self.scores.argmax(axis=1)
        return [row[i] for row, i in zip(self.responses, best, strict=True)]

    def demonstrations(self) -> list[dict[str, Any]]:
        """Returns records of the winners: `data.demonstrations` of them fine-tunes on the best.

        Left out are winners that ended before their first word. Where no end token closed a
        winner, the record says so, and none is learned.
        """
        records = [
            {"prompt": prompt, "response": response}
            for prompt, response in zip(self.prompts, self.winners, strict=True)
        ]
        if self.ended is not None:
            best = self.scores.argmax(axis=1)[:, None]
            ended = np.take_along_axis(self.ended, best, axis=1)[:, 0]
            records = [{**row, "ended": bool(x)} for row, x in zip(records, ended, strict=True)]
        return [row for row in records if row["response"].strip()]

    def preferences(self) -> list[dict[str, Any]]:
        """Records of the best against the worst, for reward models and DPO.

        Left out are ties, and pairs with a response that ended before its first word. `ended` says
        which of the two an end token closed.
        """
        records = []
        for index, (prompt, row, scores) in enumerate(
            zip(self.prompts, self.responses, self.scores, strict=True)
        ):
            pair = scores.argmax(), scores.argmin()
            chosen, rejected = (row[i] for i in pair)
            if scores.max() > scores.min() and chosen.strip() and rejected.strip():
                record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                if self.ended is not None:
                    record["ended"] = [bool(self.ended[index, i]) for i in pair]
                records.append(record)
        return records


def best_of_n(
    actor: Any,
    reward: Any,
    prompts: list,
    n: int,
    sampler: Sampler,
    *,
    batch_size: int = 32,
    seed: int = 0,
    jit_compile: bool = True,
    template: Any = "plain",
    parse_special: bool = False,
) -> BestOfN:
    """Draws `n` responses to every prompt and scores them.

    Args:
        actor: `ActorCritic` with a tokenizer.
        reward: `RewardModel`, callable, or a list or dict of these, as a trainer takes it.
        prompts: list of strings or of lists of messages.
        n: int, at least 2.
        sampler: how to draw; filters are welcome, temperature 0 would draw one response `n` times.
        batch_size: int. Prompts that are answered at once, `n` rows each.
        seed: int.
        jit_compile: compile with XLA.
        template: how messages become a text, see `data.dialogue`.
        parse_special: whether a special token that is written in a prompt becomes that token.

    Returns:
        `BestOfN`.

    Raises:
        ValueError: `n` below 2, a greedy sampler, no prompts, or a reward that does not fit.

    Example:
        >>> import kerasrlhf as rlhf
        >>> actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        >>> found = rlhf.best_of_n(
        ...     actor, lambda prompts, responses: [len(r) for r in responses],
        ...     ["Tom was sad."], n=2, sampler=rlhf.Sampler(length=4), jit_compile=False)
        >>> found.scores.shape, len(found.winners)
        ((1, 2), 1)

    Reference:
        Stiennon et al. 2020 (arXiv 2009.01325), section 4.3; Nakano et al. 2021
        (arXiv 2112.09332), rejection sampling.
    """
    require_int("n", n, minimum=2)
    require_int("batch_size", batch_size, minimum=1)
    require_seed(seed)
    require_sampler(sampler)
    require_actor(actor)
    if sampler.temperature == 0:
        raise ValueError("At temperature 0 all responses are the same. Raise `temperature`.")
    weighted.parts_of(reward)
    prompts = tokens.text_list(prompts, "prompts")
    preprocessor = actor.causal_lm.preprocessor
    texts, rows = inputs.encode_prompts(prompts, preprocessor, template, parse_special)
    columns = {
        "prompt": [special_tokens.unguarded(text) for text in texts],
        "guarded_prompt": texts,
        "record": data_records.to_json([{"prompt": prompt} for prompt in prompts]),
    }
    size = min(batch_size, len(rows))
    collector = Collector(
        actor,
        Reference(actor.causal_lm),
        weighted.WeightedReward(reward, actor, group_size=n),
        sampler,
        replica.Execution(tf.distribute.get_strategy(), jit_compile),
    )
    temperature = tf.constant(sampler.temperature, tf.float32)
    responses, scores, ended = [], [], []
    for index, start in enumerate(range(0, len(rows), size)):
        # The last batch is filled up with its first row: one shape, compiled once.
        part = [*range(start, min(start + size, len(rows)))]
        part += part[:1] * (size - len(part))
        ids, mask = actor.padded_prompts([rows[i] for i in part], sampler)
        batch = {
            "token_ids": tf.constant(ids, tf.int32),
            "padding_mask": tf.constant(mask, tf.bool),
            **{name: np.array([x[i] for i in part], object) for name, x in columns.items()},
        }
        stream = replica.stream(seed, "best_of_n")
        uniforms = replica.uniforms(stream, index, size * n, sampler.length)
        collected = collector(batch, uniforms, temperature)
        responses += collected.episodes.responses
        scores.append(collected.raw_scores)
        rollout = collected.rollout
        ended.append(actor.ended(tokens.masked_rows(rollout.token_ids, rollout.response_mask)))
    scores, ended = (np.concatenate(x).reshape(-1, n)[: len(rows)] for x in (scores, ended))
    grouped = [responses[i * n : (i + 1) * n] for i in range(len(rows))]
    return BestOfN(prompts, grouped, scores, ended)


def best_of_n_kl(n: int) -> float:
    """Upper bound of the KL of best-of-n to the policy it draws from, in nats a response.

    `log n - (n - 1) / n`; it is exact when no two responses have the same score.

    Args:
        n: int, at least 1.

    Example:
        >>> best_of_n_kl(1), round(best_of_n_kl(4), 4)
        (0.0, 0.6363)

    Reference:
        Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3; Beirami et al. 2024
        (arXiv 2401.01879): it is a bound.
    """
    require_int("n", n, minimum=1)
    return math.log(n) - (n - 1) / n
