"""Samples several responses and keeps the best: the baseline without training."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasrlhf import replica, special_tokens, tokens
from kerasrlhf.data import inputs
from kerasrlhf.data import records as data_records
from kerasrlhf.data.dialogue import Template
from kerasrlhf.models.actor_critic import ActorCritic, require_actor
from kerasrlhf.models.windows import Reference
from kerasrlhf.rollouts import weighted
from kerasrlhf.rollouts.collector import Collector
from kerasrlhf.types import Sampler, require_constant_sampler, require_int, require_seed


class BestOfN(NamedTuple):
    """Several responses to every prompt, with their scores.

    prompts: list of strings or of lists of messages, as they were passed.
    responses: list of lists of strings, `n` for each prompt.
    scores: float32 `(prompts, n)`.
    ended: bool `(prompts, n)`, true where the tokenizer's end token or a stop string closed the
        response. Defaults to None: all.
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
        """Returns records of the winners, for fine-tuning with `data.demonstrations`.

        Winners that ended before their first word are left out. `ended` of a record says whether
        an end token closed the winner; if not, fine-tuning adds none.
        """
        records: list[dict[str, Any]] = [
            {"prompt": prompt, "response": response}
            for prompt, response in zip(self.prompts, self.winners, strict=True)
        ]
        if self.ended is not None:
            # `ended` of the winner in each row, `(prompts,)`.
            best = self.scores.argmax(axis=1)[:, None]
            ended = np.take_along_axis(self.ended, best, axis=1)[:, 0]
            records = [{**row, "ended": bool(x)} for row, x in zip(records, ended, strict=True)]
        return [row for row in records if row["response"].strip()]

    def preferences(self) -> list[dict[str, Any]]:
        """Returns records of the best against the worst, for reward models and DPO.

        Ties, and pairs with a response that ended before its first word, are left out. `ended` says
        which of the two responses an end token closed.
        """
        records = []
        for index, (prompt, row, scores) in enumerate(
            zip(self.prompts, self.responses, self.scores, strict=True)
        ):
            # Columns of the best and the worst response.
            pair = scores.argmax(), scores.argmin()
            chosen, rejected = (row[i] for i in pair)
            if scores.max() > scores.min() and chosen.strip() and rejected.strip():
                record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                if self.ended is not None:
                    record["ended"] = [bool(self.ended[index, i]) for i in pair]
                records.append(record)
        return records


def best_of_n(
    actor: ActorCritic,
    reward: Any,
    prompts: list,
    n: int,
    sampler: Sampler,
    *,
    batch_size: int = 32,
    seed: int = 0,
    jit_compile: bool = True,
    template: Template = "plain",
    parse_special: bool = False,
) -> BestOfN:
    """Samples `n` responses to every prompt and scores them.

    Args:
        actor: `ActorCritic` with a tokenizer.
        reward: `RewardModel`, callable, or a list or dict of these, as in a trainer.
        prompts: list of strings or of lists of messages, or of records that have these as `prompt`;
            a reward function gets the other columns of records by name.
        n: int, at least 2. Responses to each prompt.
        sampler: `Sampler` with a temperature above 0. Unlike the sampler of a trainer, it may have
            `top_k` and `top_p`.
        batch_size: int, at least 1. Prompts per batch, with `n` rows each. Defaults to 32.
        seed: int, at least 0. Defaults to 0.
        jit_compile: bool. Whether to compile with XLA. Defaults to True.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.
        parse_special: bool. Whether a special token that is written in a prompt becomes that token
            instead of text. Defaults to False.

    Returns:
        `BestOfN`.

    Raises:
        ValueError: If `n` is below 2, the sampler is greedy, there are no prompts, or the reward
            does not fit.

    Example:
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
    # Check all arguments before the first, slow compilation.
    require_int("n", n, minimum=2)
    require_int("batch_size", batch_size, minimum=1)
    require_seed(seed)
    require_constant_sampler(sampler)
    require_actor(actor)
    if sampler.temperature == 0:
        raise ValueError("At temperature 0 all responses are the same. Raise `temperature`.")
    scored = weighted.reward_of(reward, actor, group_size=n)
    given = tokens.text_list(prompts, "prompts")
    records = [row if isinstance(row, dict) else {"prompt": row} for row in given]
    data_records.refuse(records, lambda row: "prompt" not in row, "have no column 'prompt'")
    prompts = [record["prompt"] for record in records]
    # Encode prompts as a trainer does, and keep texts and records for functions.
    texts, rows = inputs.encode_prompts(
        prompts, actor.causal_lm.preprocessor, template, parse_special
    )
    lines = data_records.to_json(records)
    # The collector of training; its reference log-probabilities are not used.
    execution = replica.Execution(tf.distribute.get_strategy(), jit_compile)
    collector = Collector(actor, Reference(actor.causal_lm), scored, sampler, execution)
    temperature = tf.constant(sampler.temperature, tf.float32)
    # Random numbers that no training iteration uses.
    stream, batches = replica.stream(seed, "best_of_n"), itertools.count()

    def respond(
        rows: list[list[int]], texts: list[str], lines: list[str]
    ) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
        batch = _prompt_batch(*actor.padded_prompts(rows, sampler), texts, lines)
        uniforms = replica.uniforms(stream, next(batches), len(rows) * n, sampler.length)
        collected = collector(batch, uniforms, temperature, explore=False)
        (_, responses), ended = collected.episodes.texts, collected.episodes.ended
        # The `n` responses to a prompt are consecutive rows.
        grouped = [responses[i : i + n] for i in range(0, len(responses), n)]
        return grouped, collected.raw_scores.reshape(-1, n), np.array(ended).reshape(-1, n)

    # The last batch is filled up to one size, so that sampling compiles once.
    columns = rows, texts, lines
    found = replica.in_batches(respond, columns, min(batch_size, len(rows)))
    return BestOfN(prompts, *found)


def _prompt_batch(
    token_ids: np.ndarray, padding_mask: np.ndarray, guarded_texts: list[str], records: list[str]
) -> dict[str, Any]:
    """Returns a batch as `data.prompts` returns it."""
    texts = [special_tokens.unguarded(text) for text in guarded_texts]
    return {
        "token_ids": tf.constant(token_ids, tf.int32),
        "padding_mask": tf.constant(padding_mask, tf.bool),
        "prompt": np.array(texts, object),
        "guarded_prompt": np.array(guarded_texts, object),
        "record": np.array(records, object),
    }


def best_of_n_kl(n: int) -> float:
    """Returns an upper bound of the KL of best-of-n to the policy it samples from.

    `log n - (n - 1) / n`, in nats per response; it is exact when no two responses have the same
    score.

    Args:
        n: int, at least 1. Number of responses per prompt.

    Raises:
        ValueError: If `n` is below 1.

    Example:
        >>> rlhf.best_of_n_kl(1), round(rlhf.best_of_n_kl(4), 4)
        (0.0, 0.6363)

    Reference:
        Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3; Beirami et al. 2024
        (arXiv 2401.01879): it is a bound.
    """
    require_int("n", n, minimum=1)
    return math.log(n) - (n - 1) / n
