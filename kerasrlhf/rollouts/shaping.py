"""What happens to a score between the reward and the trainer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kerasrlhf.types import require_int, require_number

_ARGUMENTS = {
    "running_scale": "score_running_scale",
    "scale": "score_scale",
    "clip": "score_clip",
    "per_token": "score_per_token",
}


class ScoreRules(NamedTuple):
    """What happens to a score between the reward and the trainer, in this order.

    running_scale: bool, the score is divided by the running standard deviation of all scores of
        the run so far; its mean stays.
    scale: float, the score is multiplied by it.
    clip: float or None, the scaled score is cut to [-clip, clip].
    per_token: bool, the score is divided by the number of response tokens.
    repetition_penalty: float, is subtracted times the share of n-grams of the response that stood
        in it before.
    repetition_ngram: int, tokens of such an n-gram.
    overlong_buffer: int or None. A response that uses the last `overlong_buffer` tokens of the
        sampler's length is punished by `overlong_penalty` times the share of them that it uses.
    overlong_penalty: float.
    missing_end_score: float or None, *replaces* the score of a response without a stop token
        (details N15 and P23, -1 in the original).
    missing_end_penalty: float or None, is *subtracted* from such a score: the second published
        form.

    Reference:
        Running scale: Engstrom et al. 2020, arXiv 2005.12729; overlong punishment: Yu et al. 2025,
        arXiv 2503.14476, eq. 13.
    """

    running_scale: bool = False
    scale: float = 1.0
    clip: float | None = None
    per_token: bool = False
    repetition_penalty: float = 0.0
    repetition_ngram: int = 3
    overlong_buffer: int | None = None
    overlong_penalty: float = 1.0
    missing_end_score: float | None = None
    missing_end_penalty: float | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether a rule needs the responses themselves."""
        return bool(self.per_token or self.repetition_penalty or self.overlong_buffer is not None)

    @classmethod
    def arguments(cls) -> dict[str, str]:
        """Returns the names that trainers take, each with the rule that it sets."""
        return {_ARGUMENTS.get(field, field): field for field in cls._fields}

    @classmethod
    def of(cls, options: dict) -> ScoreRules:
        """The rules under the names that trainers take: `score_scale` for `scale` and so on.

        Raises:
            ValueError: a name that is no rule.
        """
        names = cls.arguments()
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise ValueError(
                f"A trainer has no argument {unknown}. Its arguments for scores are "
                f"{sorted(names)}; the others are in its docstring."
            )
        return cls(**{names[name]: value for name, value in options.items()})

    def check(self, can_end: bool, length: int | None = None) -> None:
        """Raises a `ValueError` for rules that contradict each other or the sampler.

        Args:
            can_end: whether the sampler has stop tokens.
            length: int, tokens that a response may have; None does not compare with it.
        """
        require_number("score_scale", self.scale)
        require_number("repetition_penalty", self.repetition_penalty, minimum=0.0)
        require_int("repetition_ngram", self.repetition_ngram, minimum=1)
        require_number("overlong_penalty", self.overlong_penalty, minimum=0.0)
        if self.clip is not None:
            require_number("score_clip", self.clip, above=0.0)
        for name in ("missing_end_score", "missing_end_penalty"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name))
        self._check_overlong(length)
        self._check_missing_end(can_end)

    def _check_overlong(self, length):
        if self.overlong_buffer is None:
            return
        buffer = require_int("overlong_buffer", self.overlong_buffer, minimum=1)
        if length is not None and buffer > length:
            raise ValueError(
                "`overlong_buffer` counts the last tokens of a response. Received "
                f"{self.overlong_buffer}, and the sampler draws {length} tokens at most."
            )

    def _check_missing_end(self, can_end):
        rules = (self.missing_end_score, self.missing_end_penalty)
        if None not in rules:
            raise ValueError(
                "`missing_end_score` replaces a score and `missing_end_penalty` lowers it: give "
                f"one of them. Received: {rules[0]} and {rules[1]}."
            )
        if any(rule is not None for rule in rules) and not can_end:
            raise ValueError(
                "A rule for responses without a stop token needs stop tokens, and the sampler has "
                "none. Set `Sampler(stop_token_ids=...)` or drop the rule."
            )

    def apply(
        self,
        scores: np.ndarray,
        ended: np.ndarray,
        last: Any = None,
        responses: list | None = None,
        length: int | None = None,
        deviation: float = 1.0,
    ) -> np.ndarray:
        """Scores after the rules.

        Args:
            scores: float `(batch,)`, or per token `(batch, length)`: then scale, clip and
                `per_token` hold for each; penalties, and what is said of a missing end, for the
                last token of the response. Where the score is replaced the others are dropped.
            ended: bool `(batch,)`, whether a stop token closed the response.
            last: bool `(batch, length)`, true at last tokens; for scores per token.
            responses: list of lists of token ids, one a row; needed by the rules that count tokens.
            length: int, tokens that a response may have; needed by `overlong_buffer`.
            deviation: float, running standard deviation of the scores.

        Returns:
            Float32, shaped as `scores`.

        Example:
            >>> ScoreRules(missing_end_score=-1.0).apply(
            ...     np.array([2.0, 3.0]), np.array([True, False])).tolist()
            [2.0, -1.0]
        """
        scores = np.asarray(scores, "float32") * np.float32(self.scale / deviation)
        if self.clip is not None:
            scores = np.clip(scores, -self.clip, self.clip)
        last = True if scores.ndim == 1 else np.asarray(last)

        def column(x):
            return np.asarray(x) if scores.ndim == 1 else np.asarray(x)[:, None]

        if self.per_token:
            scores = scores / column(np.maximum([len(row) for row in responses], 1))
        scores = scores - np.where(last, column(self._penalties(responses, ended, length)), 0.0)
        if self.missing_end_score is not None:
            replaced = np.where(last, np.float32(self.missing_end_score), 0.0)
            scores = np.where(column(ended), scores, replaced)
        return scores.astype("float32")

    def _penalties(self, responses, ended, length):
        """What is subtracted from every response's score, float `(batch,)`."""
        penalties = np.zeros(len(ended))
        if self.repetition_penalty:
            repeated = [repetition(row, self.repetition_ngram) for row in responses]
            penalties += self.repetition_penalty * np.asarray(repeated)
        if self.overlong_buffer is not None:
            over = np.array([len(row) for row in responses]) - (length - self.overlong_buffer)
            penalties += self.overlong_penalty * np.clip(over / self.overlong_buffer, 0.0, 1.0)
        if self.missing_end_penalty is not None:
            penalties += np.where(ended, 0.0, self.missing_end_penalty)
        return penalties


def repetition(tokens: list[int], ngram: int) -> float:
    """Share of the n-grams of a response that stood in it before.

    `1 - different n-grams / n-grams`; 0 for a response shorter than one.

    Example:
        >>> repetition([1, 2, 1, 2, 1], ngram=2)  # 12 21 12 21: two of four
        0.5
    """
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


class RunningMoments(NamedTuple):
    """Count, mean and sum of squared deviations of all scores so far (Welford, Chan et al.).

    Example:
        >>> moments = RunningMoments().including(np.array([1.0, 3.0])).including(np.array([5.0]))
        >>> moments.mean, round(moments.deviation ** 2, 4)  # population variance of 1, 3, 5
        (3.0, 2.6667)
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def including(self, scores: np.ndarray) -> RunningMoments:
        """The moments with further scores `(batch,)`."""
        scores = np.asarray(scores, "float64")
        count, mean = self.count + scores.size, float(scores.mean())
        apart = mean - self.mean
        squares = self.squares + float(np.square(scores - mean).sum())
        return RunningMoments(
            count,
            self.mean + apart * scores.size / count,
            squares + apart**2 * self.count * scores.size / count,
        )

    @property
    def deviation(self) -> float:
        """Population standard deviation; 1 as long as all scores are equal."""
        variance = self.squares / self.count if self.count else 0.0
        return variance**0.5 if variance > 1e-12 else 1.0
