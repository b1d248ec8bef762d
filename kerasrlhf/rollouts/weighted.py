"""Weighted sums of rewards, and a reader for each kind of reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data.limits import same_tokenizer
from kerasrlhf.functional import masking
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.scorer import Scored, Scorer
from kerasrlhf.rollouts import calling, scoring, unscored
from kerasrlhf.rollouts.scoring import FunctionReward, Reward, Scores, per_response
from kerasrlhf.types import Responses, Tensor, masked_rows, require_finite_scores, require_number
from kerasrlhf.workers import Workers


class Part(NamedTuple):
    """One reward of a weighted sum.

    name: str, the end of its statistic `reward/<name>`.
    reward: `RewardModel`, `ProcessRewardModel`, `RewardEnsemble` or callable.
    weight: float.
    """

    name: str
    reward: Scorer | Callable
    weight: float


def parts_of(reward: Any) -> list[Part]:
    """Returns the parts of `reward=` of a trainer, with names and weights.

    Args:
        reward: `RewardModel`, `ProcessRewardModel`, `RewardEnsemble` or callable; a list of these,
            or a dict from names to them. An entry of a list or dict may be a tuple
            `(reward, weight)`; the weight defaults to 1. A part of weight 0 is only logged.

    Returns:
        List of `Part`. Parts of a list are named after their function or model, with a number if
        a name is taken.

    Raises:
        ValueError: If there is no reward, or an entry, weight or name has the wrong type.

    Example:
        >>> def length(completions):
        ...     return [len(c) for c in completions]
        >>> [(part.name, part.weight) for part in parts_of([length, (length, -0.5)])]
        [('length', 1.0), ('length_2', -0.5)]
    """
    if isinstance(reward, dict):
        bad = [name for name in reward if not isinstance(name, str) or not name.strip()]
        if bad:
            raise ValueError(
                "The keys of a dict of rewards are the names of its parts, strings that are not "
                f"empty. Received: {bad}."
            )
        # Names come from the keys, or from the functions and models of a list.
        parts = [Part(name, *_weighted(name, entry)) for name, entry in reward.items()]
    elif isinstance(reward, list):
        entries = [_weighted(f"number {i}", entry) for i, entry in enumerate(reward)]
        names = _unique([calling.name_of(entry) for entry, _ in entries])
        parts = [Part(name, *entry) for name, entry in zip(names, entries, strict=True)]
    else:
        return [Part(calling.name_of(reward), _checked(reward, "`reward`"), 1.0)]
    if not parts:
        raise ValueError(
            f"`reward` needs at least one part. Received: {reward!r}. Pass a RewardModel or a "
            "function of prompts and responses, or a list or dict of these."
        )
    # If all weights are 0, all scores are equal and nothing is learned.
    if not any(part.weight for part in parts):
        raise ValueError(
            "At least one part of `reward` needs a weight other than 0, or all scores are equal. "
            f"Received: {[(part.name, part.weight) for part in parts]}."
        )
    return parts


def check_fixed(reward: Any, trained: list[keras.Variable]) -> None:
    """Raises a `ValueError` for a reward model that shares weights with the actor.

    Args:
        reward: as `parts_of` describes.
        trained: list of Keras variables of the actor.

    Raises:
        ValueError: If a reward model shares weights with the actor.
    """
    # The same variable, not an equal value: a copy is fine.
    ids = {id(v) for v in trained}
    models = [part.reward for part in parts_of(reward) if isinstance(part.reward, Scorer)]
    shared = [v.path for model in models for v in model.variables if id(v) in ids]
    if shared:
        raise ValueError(
            f"`reward` shares {len(shared)} weights with the actor, {shared[0]!r} for one, so "
            "training would change the reward. `RewardModel.from_causal_lm(causal_lm)` "
            "copies the actor's backbone, and so does `ActorCritic(causal_lm, critic=reward)` with "
            "the reward model's."
        )


def _weighted(name: str, entry: Any) -> tuple[Any, float]:
    if not isinstance(entry, tuple):
        return _checked(entry, f"Part {name} of `reward`"), 1.0
    if len(entry) != 2:
        raise ValueError(
            f"Part {name} of `reward` must be a reward or a tuple (reward, weight). Received: "
            f"{entry!r}."
        )
    reward, weight = entry
    number = require_number(f"weight of part {name}", weight)
    return _checked(reward, f"Part {name} of `reward`"), number


def _checked(reward: Any, where: str) -> Any:
    if not callable(reward):
        raise ValueError(
            f"{where} must be a RewardModel or a function of prompts and responses; `reward` may "
            "also be a list or dict of these, or of tuples (reward, weight). Received: "
            f"{reward!r} of type {type(reward).__name__}."
        )
    # A class is callable too; so is every Keras model.
    if isinstance(reward, type):
        raise ValueError(
            f"{where} is the class {reward.__name__}. Pass an instance of it, or a function of "
            "prompts and responses."
        )
    if isinstance(reward, keras.Model) and not isinstance(reward, Scorer):
        raise ValueError(
            f"{where} is a Keras model of type {type(reward).__name__}, which is not a "
            "RewardModel, ProcessRewardModel or RewardEnsemble. Wrap it in a function of prompts "
            "and responses, or use one of these."
        )
    if not isinstance(reward, Scorer) and calling.takes_nothing(reward):
        raise ValueError(
            f"{where} is the function {calling.name_of(reward)!r} without parameters. It needs "
            "names such as `prompts`, `responses` or `completions`, or `**kwargs`."
        )
    return reward


def _unique(names: list[str]) -> list[str]:
    """Returns the names, with the next free number appended to repeated ones."""
    taken: dict[str, None] = {}
    for name in names:
        candidate, number = name, 1
        # A number must not make a name that another part has.
        while candidate in taken or (number > 1 and candidate in names):
            number += 1
            candidate = f"{name}_{number}"
        taken[candidate] = None
    return [*taken]


def shares_tokens(reward: Scorer, causal_lm: Any) -> bool:
    """Returns whether a reward model scores the token ids of `causal_lm` as they are (M12).

    A reward model with another tokenizer, or with the same tokens under other ids, scores texts.

    Args:
        reward: `Scorer`.
        causal_lm: keras-hub `CausalLM`.

    Raises:
        ValueError: If there is no tokenizer to compare and the actor has more token ids, or if a
            reward model with another tokenizer scores every token.
    """
    ours = getattr(causal_lm.preprocessor, "tokenizer", None)
    theirs = getattr(reward.preprocessor, "tokenizer", None)
    if ours is None or theirs is None:
        sizes = lm_adapter.vocabulary_size(causal_lm), reward.vocabulary_size
        if sizes[0] > sizes[1]:
            raise ValueError(
                "Without tokenizers the reward model scores the actor's token ids, so both need "
                f"one vocabulary. Received an actor with {sizes[0]} entries and a reward model "
                f"with {sizes[1]}. Give both their preprocessors to score through text."
            )
        return True
    shared = same_tokenizer(ours, theirs)
    if reward.is_per_token and not shared:
        raise ValueError(
            "A process reward model scores the actor's own tokens, so both need one tokenizer. "
            f"Received a {type(theirs).__name__} for an actor with a {type(ours).__name__} of "
            "another vocabulary. Train it from a model of the actor's family."
        )
    return shared


class Reading(NamedTuple):
    """The scores of one part of a reward for a batch.

    scores: float32 `(batch,)` or `(batch, length)`, 0 where the part does not apply.
    applies: bool `(batch,)`.
    spread: float32 `(batch,)`, standard deviation between the members of an ensemble; None for any
        other reward.
    """

    scores: np.ndarray
    applies: np.ndarray
    spread: np.ndarray | None = None

    @property
    def per_response(self) -> np.ndarray:
        """Scores float32 `(batch,)`, NaN where the part does not apply."""
        return np.where(self.applies, per_response(self.scores), np.float32(np.nan))


class Scorable(NamedTuple):
    """A batch of responses, the input of the readers.

    responses: `Responses`.
    episodes: `Episodes`, the texts and columns.
    read: list of `Scored` from `TokenReader.read`.
    state: `TrainerState`, the argument `trainer_state` of functions.
    log: `RewardLog` of the functions.
    """

    responses: Responses
    episodes: scoring.Episodes
    read: list[Scored]
    state: scoring.TrainerState
    log: scoring.RewardLog


class Reader(Protocol):
    """Scores responses by all parts of one kind; abstract."""

    def score(self, batch: Scorable) -> dict[str, Reading]:
        """Returns the scores of each part by name.

        Args:
            batch: `Scorable`.
        """
        ...


class TokenReader:
    """Reward models with the actor's tokenizer: they score the sampled ids in the compiled pass.

    Args:
        models: dict from name to `Scorer`.
    """

    def __init__(self, models: dict[str, Scorer]) -> None:
        self.models = models

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> list[Scored]:
        """Returns the scores of each model; pure, compiled.

        Args:
            token_ids: int32 `(batch, length)`, right-padded.
            padding_mask: bool `(batch, length)`.
            prompt_lengths: int32 `(batch,)`, in tokens.
        """
        models = self.models.values()
        return [model.read(token_ids, padding_mask, prompt_lengths) for model in models]

    def score(self, batch: Scorable) -> dict[str, Reading]:
        """Returns the scores from `read` for each model by name."""
        return {
            name: _reading(model, scored)
            for (name, model), scored in zip(self.models.items(), batch.read, strict=True)
        }


class TextReader:
    """Reward models with another tokenizer: they score the texts.

    Args:
        models: dict from name to `Scorer`.
        actor: `ActorCritic`.
    """

    def __init__(self, models: dict[str, Scorer], actor: ActorCritic) -> None:
        self.models, self.actor = models, actor

    def score(self, batch: Scorable) -> dict[str, Reading]:
        """Scores the texts with each model; returns the scores by name."""
        if not self.models:
            return {}
        responses = batch.responses
        prompt_texts, response_texts = batch.episodes.texts
        # The model appends its own end token to responses that ended.
        ended = batch.episodes.ended
        if ended is None:
            rows = masked_rows(responses.token_ids, responses.response_mask)
            ended = self.actor.ended(rows)
        readings = {}
        for name, model in self.models.items():
            tokenizer = model.preprocessor.tokenizer
            # Special tokens of a template are parsed; special tokens that a user typed are text.
            prompts = batch.episodes.guarded_prompts
            if prompts is None:
                prompts = [tokens.guarded(text, tokenizer) for text in prompt_texts]
            texts = batch.episodes.guarded_responses
            if texts is None:
                texts = [tokens.guarded(text, tokenizer) for text in response_texts]
            scored = model.read_texts(prompts, texts, ended=ended, parse_special=True)
            readings[name] = _reading(model, scored)
        return readings


class FunctionReader:
    """Python functions: they get the arguments that their signatures name.

    Args:
        functions: dict from name to callable.
        timeout: float or None. Seconds that each may take for a batch.
        group_size: int. Consecutive responses that one worker scores.
        workers: `Workers`, as in `scoring.call_by_workers`, or None for this process alone.
    """

    def __init__(
        self,
        functions: dict[str, Callable],
        timeout: float | None,
        group_size: int,
        workers: Workers | None,
    ) -> None:
        self.functions, self.timeout = functions, timeout
        self.group_size, self.workers = group_size, workers

    def score(self, batch: Scorable) -> dict[str, Reading]:
        """Calls each function; returns the scores by name."""
        if not self.functions:
            return {}
        called = scoring.call_by_workers(
            self.workers,
            [*self.functions.values()],
            batch.episodes,
            batch.responses,
            batch.state,
            batch.log,
            self.timeout,
            self.group_size,
        )
        return {
            # NaN means that the function does not apply: it adds 0 to the sum.
            name: Reading(np.nan_to_num(scores), ~np.isnan(scores))
            for name, scores in zip(self.functions, called, strict=True)
        }


def reward_of(
    reward: Any,
    actor: ActorCritic,
    group_size: int = 1,
    timeout: float | None = None,
    workers: Workers | None = None,
) -> Reward:
    """Returns what scores the responses of a collector: one function, or a weighted sum.

    Args:
        reward: as `parts_of` describes.
        actor: as in `WeightedReward`.
        group_size: as in `WeightedReward`. Defaults to 1.
        timeout: as in `WeightedReward`. Defaults to None.
        workers: as in `WeightedReward`. Defaults to None.
    """
    if isinstance(reward, (list, dict, Scorer)):
        return WeightedReward(reward, actor, group_size, timeout, workers)
    return FunctionReward(_checked(reward, "`reward`"), group_size, timeout, workers)


class WeightedReward:
    """Scores responses by a weighted sum of parts of any kind.

    A function that returns None for a response does not apply to it, and adds nothing to its sum.
    A response that no weighted part applies to gets the mean score of its group, or of the batch
    if its group has no score, or 0 if the batch has none. So it counts as neither good nor bad.
    The first such response causes a warning; from then on the statistic `objective/unscored` is
    the fraction of such responses.

    Args:
        reward: as `parts_of` describes.
        actor: `ActorCritic`.
        group_size: int. Consecutive responses to each prompt. Defaults to 1.
        timeout: float or None. Seconds that a function may take for a batch. Defaults to None.
        workers: `Workers`, each of which calls the functions for a part of the batch. Defaults to
            None: this process alone.

    Raises:
        ValueError: If `parts_of` or `shares_tokens` raises one.
    """

    def __init__(
        self,
        reward: Any,
        actor: ActorCritic,
        group_size: int = 1,
        timeout: float | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.parts = parts_of(reward)
        self.group_size = group_size
        self._is_named = isinstance(reward, (list, dict))
        self._has_unscored = False
        # Choose a reader for each part: token ids, texts, or Python.
        of_tokens: dict[str, Scorer] = {}
        of_texts: dict[str, Scorer] = {}
        functions: dict[str, Callable] = {}
        for name, part, _ in self.parts:
            if not isinstance(part, Scorer):
                functions[name] = part
            elif shares_tokens(part, actor.causal_lm):
                of_tokens[name] = part
            else:
                of_texts[name] = part
        self.tokens = TokenReader(of_tokens)
        self.functions = FunctionReader(functions, timeout, group_size, workers)
        self.readers: list[Reader] = [self.tokens, TextReader(of_texts, actor), self.functions]

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> list[Scored]:
        """Returns the scores of reward models with the actor's tokenizer; pure, compiled.

        Args:
            token_ids: int32 `(batch, length)`, right-padded.
            padding_mask: bool `(batch, length)`.
            prompt_lengths: int32 `(batch,)`, in tokens.
        """
        return self.tokens.read(token_ids, padding_mask, prompt_lengths)

    def score(
        self,
        responses: Responses,
        episodes: scoring.Episodes,
        read: list[Scored],
        state: scoring.TrainerState = scoring.TrainerState(),  # noqa: B008 (frozen)
    ) -> Scores:
        """Scores a batch.

        Args:
            responses: `Responses`.
            episodes: `Episodes`, the texts of the responses.
            read: list of `Scored` from `read`.
            state: `TrainerState`, the argument `trainer_state` of functions. Defaults to that of
                iteration 0.

        Returns:
            `Scores`.

        Raises:
            ValueError: If `scoring.call_reward` raises one, or a function logs a metric under the
                name of a part.
        """
        log = scoring.RewardLog(int(responses.token_ids.shape[0]))
        batch = Scorable(responses, episodes, read, state, log)
        # Score by every part, and name the part whose numbers are unusable.
        readings: dict[str, Reading] = {}
        for reader in self.readers:
            readings |= reader.score(batch)
        for name, reading in readings.items():
            require_finite_scores(reading.scores, f"The reward `{name}`")
        # Sum the parts, and fill in responses without a score.
        total = self._summed(readings, responses)
        missing = self._unscored(readings)
        if missing is not None:
            total = unscored.filled(total, ~missing, self.group_size)
        # A single reward has no statistics per part.
        by_part = {}
        if self._is_named:
            by_part = {part.name: readings[part.name].per_response for part in self.parts}
        taken = sorted(by_part.keys() & log.metrics.keys())
        if taken:
            raise ValueError(
                f"A reward function logs the metrics {taken}, which are names of parts of "
                "`reward`: both would be `reward/<name>`. Rename one of them, for example with "
                "the keys of a dict."
            )
        return Scores(total, by_part, self._spread(readings), missing, log)

    def _summed(self, readings: dict[str, Reading], responses: Responses) -> np.ndarray:
        """Returns the weighted sum; if a part scores tokens, others count at the last token."""
        # Parts of weight 0 are only logged: they decide neither the sum nor its shape.
        counted = [part for part in self.parts if part.weight]
        per_token = any(readings[part.name].scores.ndim == 2 for part in counted)
        total = np.zeros((), "float32")
        for part in counted:
            scores = readings[part.name].scores
            if per_token and scores.ndim == 1:
                scores = scores[:, None] * masking.last_true_mask(responses.response_mask).numpy()
            total = total + np.float32(part.weight) * scores
        return total.astype("float32")

    def _unscored(self, readings: dict[str, Reading]) -> np.ndarray | None:
        """Returns which responses no part applies to; warns about the first ones."""
        # Parts of weight 0 are only logged and do not count.
        counted = [readings[part.name].applies for part in self.parts if part.weight]
        missing = ~np.any(counted, axis=0)
        if missing.any() and not self._has_unscored:
            self._has_unscored = True
            counting = {part.name for part in self.parts if part.weight}
            functions = [f for name, f in self.functions.functions.items() if name in counting]
            unscored.warn(missing, functions)
        return missing if self._has_unscored else None

    def _spread(self, readings: dict[str, Reading]) -> np.ndarray | None:
        weighted = [
            part.weight * spread
            for part in self.parts
            if (spread := readings[part.name].spread) is not None
        ]
        return np.sqrt(np.sum(np.square(np.stack(weighted)), axis=0)) if weighted else None


def _reading(reward: Scorer, scored: Scored) -> Reading:
    scores, spread = (np.asarray(x, "float32") for x in (scored.scores, scored.spread))
    has_spread = isinstance(reward, RewardEnsemble)
    return Reading(scores, np.ones(len(scores), bool), per_response(spread) if has_spread else None)
