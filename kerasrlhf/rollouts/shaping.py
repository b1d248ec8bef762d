"""Changes to a score between the reward and the trainer."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from kerasrlhf.types import (
    Tensor,
    changed_fields,
    require_bool,
    require_int,
    require_number,
    require_optional,
    serializable,
)


@serializable
@dataclasses.dataclass(frozen=True)
class RewardShaping:
    """Changes a score between the reward and the trainer, in this order.

    Args:
        running_scale: bool. Whether to divide scores by the running standard deviation of all
            scores of the run so far, without centering them. Defaults to False.
        scale: float. Multiplies the score. Defaults to 1.
        clip: float above 0, or None. The scaled score is clipped to [-clip, clip]. Defaults to
            None.
        per_token: bool. Whether to divide the score by the number of response tokens. Defaults to
            False.
        repetition_penalty: float, at least 0. Is subtracted, times the fraction of n-grams of the
            response that repeat an earlier one. Defaults to 0.
        repetition_ngram: int, at least 1. Tokens of such an n-gram. Defaults to 3.
        overlong_buffer: int, at least 1, or None. A response that uses the last `overlong_buffer`
            tokens of the sampler's length loses `overlong_penalty` times the fraction of them
            that it uses. Defaults to None.
        overlong_penalty: float, at least 0. Defaults to 1.
        missing_end_score: float or None. *Replaces* the score of a response without a stop token
            (details N15 and P23, -1 in the original). Defaults to None.
        missing_end_penalty: float or None. Is *subtracted* from the score of such a response: the
            second published form. Defaults to None.

    Raises:
        ValueError: If a value is outside its range, two options contradict each other, or one has
            no effect without another.

    Example:
        >>> shaping = rlhf.RewardShaping(missing_end_score=-1.0)
        >>> shaping.apply(np.array([2.0, 3.0]), ended=np.array([True, False])).tolist()
        [2.0, -1.0]

    Reference:
        Running scale: Engstrom et al. 2020 (arXiv 2005.12729); overlong penalty: Yu et al. 2025
        (arXiv 2503.14476), eq. 13.
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

    def __post_init__(self) -> None:
        require_bool("running_scale", self.running_scale)
        require_bool("per_token", self.per_token)
        require_number("scale", self.scale)
        require_optional("clip", self.clip)
        require_number("repetition_penalty", self.repetition_penalty, minimum=0.0)
        require_int("repetition_ngram", self.repetition_ngram, minimum=1)
        require_number("overlong_penalty", self.overlong_penalty, minimum=0.0)
        if self.overlong_buffer is not None:
            require_int("overlong_buffer", self.overlong_buffer, minimum=1)
        for name in ("missing_end_score", "missing_end_penalty"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name))
        if None not in (self.missing_end_score, self.missing_end_penalty):
            raise ValueError(
                "`missing_end_score` replaces a score and `missing_end_penalty` lowers it: pass "
                f"one of them. Received: {self.missing_end_score} and {self.missing_end_penalty}."
            )
        # Refuse options without effect (M13).
        self._check_effect("overlong_penalty", "overlong_buffer", self.overlong_buffer is not None)
        self._check_effect("repetition_ngram", "repetition_penalty", self.repetition_penalty > 0)

    def __repr__(self) -> str:
        return changed_fields(self)

    def _check_effect(self, name: str, other: str, has_effect: bool) -> None:
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        if value != default and not has_effect:
            raise ValueError(
                f"`{name}` has no effect without `{other}`. Received: {name}={value}. Set "
                f"`{other}` too, or leave out `{name}`."
            )

    @property
    def counts_tokens(self) -> bool:
        """Whether `apply` needs the token ids of the responses."""
        return bool(self.per_token or self.repetition_penalty or self.overlong_buffer is not None)

    def check_sampler(self, length: int, can_end: bool) -> None:
        """Raises a `ValueError` for options that contradict the sampler.

        Args:
            length: int. Maximum number of tokens of a response.
            can_end: bool. Whether the sampler has stop tokens.
        """
        if self.overlong_buffer is not None and self.overlong_buffer > length:
            raise ValueError(
                "`overlong_buffer` counts the last tokens of a response. Received "
                f"{self.overlong_buffer}, and the sampler's length is {length}."
            )
        missing_end = (self.missing_end_score, self.missing_end_penalty)
        if any(x is not None for x in missing_end) and not can_end:
            raise ValueError(
                "`missing_end_score` and `missing_end_penalty` need stop tokens, and the sampler "
                "has none. Set `Sampler(stop_token_ids=...)` or leave them out."
            )

    def apply(
        self,
        scores: np.ndarray,
        ended: np.ndarray,
        last: np.ndarray | None = None,
        responses: list[list[int]] | None = None,
        length: int | None = None,
        std: float = 1.0,
    ) -> np.ndarray:
        """Returns shaped scores.

        Args:
            scores: float `(batch,)`, or per token `(batch, length)`. Then scale, clip and
                `per_token` apply to each; penalties and missing ends apply to the last token of
                the response. If that score is replaced, the scores of other tokens become 0.
            ended: bool `(batch,)`. Whether a stop token closed the response.
            last: bool `(batch, length)` or None. True at last tokens; needed by scores per token.
                Defaults to None.
            responses: list of lists of token ids, one per row, or None. Needed if `counts_tokens`.
                Defaults to None.
            length: int or None. Maximum number of tokens of a response; needed by
                `overlong_buffer`. Defaults to None.
            std: float, above 0. Running standard deviation of the scores. Defaults to 1.

        Returns:
            Float32, with the shape of `scores`.
        """
        # An overflow becomes infinite here; the trainer reports it with the rows.
        with np.errstate(over="ignore"):
            scores = np.asarray(scores, "float32") * np.float32(self.scale / std)
        if self.clip is not None:
            scores = np.clip(scores, -self.clip, self.clip)
        # Penalties apply once per response: to its score or to its last token.
        is_last = True if scores.ndim == 1 else np.asarray(last)

        def column(x: Tensor) -> np.ndarray:
            return np.asarray(x) if scores.ndim == 1 else np.asarray(x)[:, None]

        # An empty response counts as one token.
        if self.per_token:
            scores = scores / column(np.maximum([len(row) for row in responses or []], 1))
        penalties = column(self._penalties(responses or [], ended, length or 0))
        scores = scores - np.where(is_last, penalties, 0.0)
        # Last: the replacement is exact, whatever was subtracted before (N15, P23).
        if self.missing_end_score is not None:
            replaced = np.where(is_last, np.float32(self.missing_end_score), 0.0)
            scores = np.where(column(ended), scores, replaced)
        return scores.astype("float32")

    def _penalties(self, responses: list[list[int]], ended: np.ndarray, length: int) -> np.ndarray:
        """Returns the sum of penalties of each response, float `(batch,)`."""
        penalties = np.zeros(len(ended))
        if self.repetition_penalty:
            repeated = [repetition(row, self.repetition_ngram) for row in responses]
            penalties += self.repetition_penalty * np.asarray(repeated)
        if self.overlong_buffer is not None:
            # 0 up to `length - buffer` tokens, then linear up to 1 at the full length; eq. 13.
            over = np.array([len(row) for row in responses]) - (length - self.overlong_buffer)
            penalties += self.overlong_penalty * np.clip(over / self.overlong_buffer, 0.0, 1.0)
        if self.missing_end_penalty is not None:
            penalties += np.where(ended, 0.0, self.missing_end_penalty)
        return penalties


def repetition(tokens: list[int], ngram: int) -> float:
    """Returns the fraction of a response's n-grams that repeat an earlier one.

    `1 - different n-grams / n-grams`; 0 for a response shorter than one n-gram.

    Args:
        tokens: list of token ids.
        ngram: int, at least 1. Tokens of an n-gram.

    Example:
        >>> repetition([1, 2, 1, 2, 1], ngram=2)  # 12 21 12 21: two of four
        0.5
    """
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


class RunningMoments(NamedTuple):
    """Count and mean of all scores so far, and the sum of squared differences to the mean.

    size: float, at least 0. How many scores there are. Defaults to 0.
    mean: float. Defaults to 0.
    squares: float, at least 0. Defaults to 0.

    Example:
        >>> moments = RunningMoments().including(np.array([1.0, 3.0])).including(np.array([5.0]))
        >>> moments.mean, round(moments.std ** 2, 4)  # population variance of 1, 3, 5
        (3.0, 2.6667)

    Reference:
        Welford 1962; Chan et al. 1983.
    """

    size: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def including(self, scores: np.ndarray) -> RunningMoments:
        """Returns the moments with further scores.

        Args:
            scores: float `(batch,)`.
        """
        # Combine both sets by Chan's formula; no earlier score is needed.
        scores = np.asarray(scores, "float64")
        size, mean = self.size + scores.size, float(scores.mean())
        apart = mean - self.mean
        squares = self.squares + float(np.square(scores - mean).sum())
        return RunningMoments(
            size,
            self.mean + apart * scores.size / size,
            squares + apart**2 * self.size * scores.size / size,
        )

    @property
    def std(self) -> float:
        """Population standard deviation; 1 as long as all scores are equal."""
        variance = self.squares / self.size if self.size else 0.0
        return variance**0.5 if variance > 1e-12 else 1.0
