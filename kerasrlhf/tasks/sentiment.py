"""Texts that are to continue happily, and measures of how happy they are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kerasrlhf.data.records import Record
from kerasrlhf.tasks import rules
from kerasrlhf.tasks.task import Task, column, filled

_NAMES = (
    "Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim", "Lucy", "Jack", "Amy",
)  # fmt: skip
_THINGS = (
    "ball", "doll", "kite", "hat", "book", "boat", "toy car", "teddy bear", "cup", "drum",
)  # fmt: skip
_OPENINGS = (
    "{name} lost the {thing}. {name} was very sad.",
    "{name} dropped the {thing} and it broke. {name} started to cry.",
    "It was raining. {name} could not play with the {thing} outside and felt sad.",
    "A big dog took the {thing} from {name}. {name} was scared.",
    "{name} wanted the {thing}, but the other kids did not want to share. {name} was angry.",
    "One day, {name} fell down and got hurt. The {thing} was dirty too.",
    "{name} could not find the {thing} anywhere. {name} sat alone in the room.",
    "The wind took the {thing} far away. {name} was upset.",
)

_HAPPY = (
    "happy glad smile smiled smiles laugh laughed fun love loved loves play played hug hugged "
    "thank thanks friend friends good nice kind proud excited enjoy enjoyed joy great"
)
_UNHAPPY = (
    "sad cry cried crying scared afraid angry mad upset hurt lost broke broken alone mean bad "
    "worried sorry lonely yelled dirty fell pain dark"
)


class Sentiment(Task):
    """Positive continuations of the first words of texts.

    Records have `prompt` (and `response`, to imitate), or `text`, whose first words are the prompt
    and the rest of which is the response. The reward has two parts: `sentiment`, and `repetition`,
    the fraction of repeated pairs of words, with a negative weight.

    The metrics use VADER, or with `score="words"` a list of words. Where the reward is another
    one, such as a classifier, they are a measure that was not trained on.

    Args:
        score: `"vader"`, `"words"` (`happy_words`, without a further package), or a `RewardModel`
            or function of prompts and responses. Defaults to `"vader"`.
        template: str. The prompt, with columns of the record in braces. Defaults to `"{prompt}"`.
        words: int, at least 1. Words of a text that are its prompt. Defaults to 4.
        repetition_weight: float. Weight of `repetition`, not above 0. Defaults to -0.5.
        length: int. Most tokens of a response. Defaults to 24.

    Raises:
        ValueError: If `score` is none of these.

    Example:
        >>> task = rlhf.tasks.Sentiment("words", words=2)
        >>> task.demonstrations([{"text": "The food was great."}])
        [{'prompt': 'The food', 'response': ' was great.'}]
        >>> task.metrics()["positive"]([" was great.", " was cold."])
        [1.0, 0.0]
    """

    stop_strings = ("\n",)

    def __init__(
        self,
        score: str | Any = "vader",
        template: str = "{prompt}",
        words: int = 4,
        repetition_weight: float = -0.5,
        length: int = 24,
    ) -> None:
        scores = {"vader": _vader, "words": happy_words}
        if not callable(score) and score not in scores:
            raise ValueError(
                f"`score` must be one of {[*scores]}, a reward model or a function of prompts and "
                f"responses. Received: {score!r}."
            )
        self.score = score if callable(score) else scores[score]
        self.measured = happy_words if self.score is happy_words else _vader
        self.template, self.words = template, words
        self.repetition_weight, self.length = repetition_weight, length

    def prompt(self, record: Record) -> str:
        """Returns the template with the prompt of the record, or the first words of its text."""
        if record.get("prompt") is None:
            record = {**record, "prompt": self._split(record)[0]}
        return filled(self.template, record)

    def target(self, record: Record) -> str | None:
        """Returns the response of the record, or the rest of its text; None if there is none."""
        if record.get("prompt") is None:
            return self._split(record)[1] or None
        return record.get("response")

    def rewards(self) -> dict[str, Any]:
        """Returns `sentiment` and `repetition`."""
        repetition = rules.repetition, self.repetition_weight
        return {"sentiment": self.score, "repetition": repetition}

    def metrics(self) -> dict[str, Callable]:
        """Returns `sentiment`, `positive`, `words` and `repetition`."""
        return {
            "sentiment": self.measured,
            "positive": self.positive,
            "words": rules.words,
            "repetition": rules.repetition,
        }

    def positive(self, responses: list[str]) -> list[float]:
        """Returns 1 for responses whose sentiment is above 0.05, VADER's threshold, else 0."""
        return [float(score > 0.05) for score in self.measured(responses)]

    def _split(self, record: Record) -> tuple[str, str]:
        """Returns the first words of a text, and the rest with the blank before it."""
        text = column(record, "text").strip()
        prompt = " ".join(text.split(" ")[: self.words])
        return prompt, text[len(prompt) :]


def unhappy_openings(count: int | None = None, seed: int = 0) -> list[str]:
    """Returns distinct openings of children's stories in which something went wrong.

    Args:
        count: int, from 1 to 960. Number of openings. Defaults to None: all of them.
        seed: int. Seed of their order. Defaults to 0.

    Returns:
        List of str.

    Raises:
        ValueError: If `count` is outside its range.

    Example:
        >>> len(set(rlhf.tasks.sentiment.unhappy_openings()))
        960
    """
    # Shuffle all combinations, so that a smaller count is a prefix of a larger one.
    combinations = list(itertools.product(_OPENINGS, _NAMES, _THINGS))
    if count is not None and not 1 <= count <= len(combinations):
        raise ValueError(f"There are {len(combinations)} openings. Received: count={count}.")
    order = np.random.default_rng(seed).permutation(len(combinations))[:count]
    texts = [template.format(name=name, thing=thing) for template, name, thing in combinations]
    return [texts[index] for index in order]


def happy_words(responses: list[str]) -> list[float]:
    """Computes a reward from happy and unhappy words, without a further package.

    `(happy - unhappy) / (happy + unhappy + 1)`, between -1 and 1; a word counts once per response,
    so repeating it gains nothing.

    Args:
        responses: list of str.

    Returns:
        List of float, one score per response.

    Example:
        >>> responses = [" She was happy, happy!", " He was sad and cried, but had fun.", ""]
        >>> rlhf.tasks.sentiment.happy_words(responses)
        [0.5, -0.25, 0.0]
    """
    happy, unhappy = set(_HAPPY.split()), set(_UNHAPPY.split())
    # Sets: a repeated word counts once.
    words = [set(re.findall(r"[a-z]+", text.lower())) for text in responses]
    counts = [(len(found & happy), len(found & unhappy)) for found in words]
    return [(more - less) / (more + less + 1) for more, less in counts]


def vader_scores(texts: list[str]) -> np.ndarray:
    """Computes VADER's compound sentiment of each text.

    Args:
        texts: list of str.

    Returns:
        Array, `(texts,)`, float64, in [-1, 1].

    Raises:
        ValueError: If the package `vaderSentiment` is not installed.

    Reference:
        Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis".
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ValueError(
            "Scoring sentiment needs the package vaderSentiment. Run "
            '`pip install "kerasrlhf[quickstart]"`.'
        ) from error
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def _vader(responses: list[str]) -> list[float]:
    """Returns `vader_scores` of responses, under the name that trainers call rewards with."""
    return [float(score) for score in vader_scores(responses)]


def simulated_preferences(
    prompts: list[str],
    first: list[str],
    second: list[str],
    scores_first: npt.ArrayLike,
    scores_second: npt.ArrayLike,
    noise: float = 0.25,
    seed: int = 0,
    ended: tuple[Sequence[bool], Sequence[bool]] | None = None,
) -> list[dict[str, Any]]:
    """Returns preference records of an annotator who errs according to the Bradley-Terry model.

    The first response is preferred with probability sigmoid((score_first - score_second) / noise).
    Pairs of equal texts are omitted.

    Args:
        prompts: list of str, `(pairs,)`.
        first: list of str, `(pairs,)`. One response to each prompt.
        second: list of str, `(pairs,)`. Another response to each prompt.
        scores_first: array of numbers, `(pairs,)`. Scores of the first responses.
        scores_second: array of numbers, `(pairs,)`. Scores of the second responses.
        noise: float, above 0, in units of the scores. A small value is a careful annotator.
            Defaults to 0.25.
        seed: int. Seed of the annotator's errors. Defaults to 0.
        ended: tuple of two bool arrays, `(pairs,)`. Which of the first and of the second responses
            are complete. Defaults to None: all of them.

    Returns:
        List of dicts with `prompt`, `chosen` and `rejected`, and with `ended` a list of two bools.

    Raises:
        ValueError: If `noise` is not above 0, or the lengths differ.

    Example:
        >>> sentiment = rlhf.tasks.sentiment
        >>> sentiment.simulated_preferences(["p"], ["good"], ["bad"], [50.0], [-50.0])
        [{'prompt': 'p', 'chosen': 'good', 'rejected': 'bad'}]
        >>> ended = [True], [False]  # of the first and of the second responses
        >>> (record,) = sentiment.simulated_preferences(
        ...     ["p"], ["bad"], ["good"], [-50], [50], ended=ended)
        >>> record["ended"]
        [False, True]
    """
    if not noise > 0:
        raise ValueError(f"`noise` must be above 0. Received: {noise}.")
    difference = (np.asarray(scores_first) - np.asarray(scores_second)) / noise
    uniform = np.random.default_rng(seed).random(len(difference))
    # log(u / (1 - u)) < d is u < sigmoid(d), without overflow for large differences.
    prefers_first = np.log(uniform) - np.log1p(-uniform) < difference
    records = []
    for index, (prompt, *pair) in enumerate(zip(prompts, first, second, strict=True)):
        order = (0, 1) if prefers_first[index] else (1, 0)
        record: dict[str, Any] = {
            "prompt": prompt,
            "chosen": pair[order[0]],
            "rejected": pair[order[1]],
        }
        if ended is not None:
            record["ended"] = [bool(ended[i][index]) for i in order]
        if pair[0] != pair[1]:
            records.append(record)
    return records
