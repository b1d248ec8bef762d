"""Rows of token ids: prompt and responses without padding between them, within a length."""

import warnings
from typing import NamedTuple

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data import cutting


class Report(NamedTuple):
    """What became of the rows of a source.

    Attributes:
        rows: `int`, how many.
        length: `int`, tokens per padded row.
        longest: `int`, tokens of the longest row before anything was cut.
        cut_prompts: `int`, prompts that lost their beginning.
        cut_responses: `int`, responses that lost their end, and with it their end token.
        longest_response: `int`, tokens of the longest response after cutting; 0 without any.
    """

    rows: int
    length: int
    longest: int
    cut_prompts: int
    cut_responses: int
    longest_response: int = 0


class Rows(NamedTuple):
    """Encoded rows.

    Attributes:
        prompts: List of `str`, the prompts that are left after cutting.
        prompt_ids: List of lists of `int`, each with its start token.
        candidates: List (one per candidate) of lists (one per row) of lists of `int`.
        report: A `Report`.
    """

    prompts: list
    prompt_ids: list
    candidates: list
    report: Report


def encode(prompts, candidates, preprocessor, max_length=None, end_token_id="auto", ended=None):
    """Tokenizes prompts and responses separately and makes them fit.

    A row that is too long loses the beginning of its prompt, the start token excepted; all
    candidates of a row keep the same prompt. A response that does not fit by itself loses its
    end. What was cut is reported by a warning and in the report.

    Args:
        prompts: List of `str`.
        candidates: List of lists of `str`: none, one or several responses per prompt. Lists of
            `int` in place of the `str` are token ids, which are taken as they are.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        max_length: Tokens per row at most; `None` means `preprocessor.sequence_length`.
        end_token_id: See `kerasrlhf.tokens.end_ids`.
        ended: Lists of `bool` like the candidates: False leaves the end token away. `None` means
            that all end.

    Returns:
        `Rows`.

    Raises:
        ValueError: `max_length` is less than 2.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
    >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    >>> rows = encode(["ba"], [["b"]], preprocessor)
    >>> rows.prompt_ids, rows.candidates
    ([[0, 2, 1]], [[[2, 0]]])
    """
    start = tokens.start_ids(preprocessor)
    limit = _limit(preprocessor, max_length)
    prompt_ids = tokens.tokenize(prompts, preprocessor)
    if ended is None:
        ended = [[True] * len(prompts)] * len(candidates)
    candidates = [
        _responses(texts, preprocessor, end_token_id, whole)
        for texts, whole in zip(candidates, ended, strict=True)
    ]
    longest = max(map(len, _joined(start, prompt_ids, candidates)))
    # At least one position stands before a response: nothing predicts position 0.
    candidates, cut_responses = _cut_ends(candidates, limit - max(1, len(start)))
    rooms = _rooms(limit - len(start), len(prompts), candidates)
    prompts, prompt_ids, cut_prompts = _cut_fronts(prompts, prompt_ids, rooms, preprocessor)
    length = max(map(len, _joined(start, prompt_ids, candidates)))
    longest_response = max((len(ids) for column in candidates for ids in column), default=0)
    report = Report(len(prompts), length, longest, cut_prompts, cut_responses, longest_response)
    _warn(report, limit)
    return Rows(prompts, [start + ids for ids in prompt_ids], candidates, report)


def pad(rows, length, pad_id):
    """Pads rows on the right.

    Args:
        rows: List of lists of `int`, none longer than `length`.
        length: `int`.
        pad_id: `int`, written where no token is.

    Returns:
        `token_ids`, an int32 array `(rows, length)`, and `padding_mask`, a bool array of the same
        shape, true at real tokens.

    Example:

    >>> pad([[5, 6], [7]], 3, 0)[0].tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    token_ids = np.full((len(rows), length), pad_id, "int32")
    for padded, row in zip(token_ids, rows, strict=True):
        padded[: len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return token_ids, np.arange(length) < lengths[:, None]


def _limit(preprocessor, max_length):
    limit = getattr(preprocessor, "sequence_length", None) if max_length is None else max_length
    if not isinstance(limit, int | np.integer) or limit < 2:
        raise ValueError(f"`max_length` must be an integer of at least 2. Received: {limit!r}")
    return int(limit)


def _responses(texts, preprocessor, end_token_id, ended):
    if not all(isinstance(text, str) for text in texts):
        return texts
    end = tokens.end_ids(preprocessor, end_token_id)
    return tokens.closed(tokens.tokenize(texts, preprocessor), end, ended)


def _joined(start, prompt_ids, candidates):
    responses = candidates or [[[]] * len(prompt_ids)]
    for column in responses:
        for prompt, response in zip(prompt_ids, column, strict=True):
            yield start + prompt + response


def _rooms(room, rows, candidates):
    """Tokens that each prompt may have beside its longest candidate."""
    return [
        room - max((len(column[row]) for column in candidates), default=0) for row in range(rows)
    ]


def _cut_ends(candidates, room):
    cut = sum(len(ids) > room for column in candidates for ids in column)
    return [[ids[:room] for ids in column] for column in candidates], cut


def _cut_fronts(prompts, prompt_ids, rooms, preprocessor):
    long = [row for row, ids in enumerate(prompt_ids) if len(ids) > rooms[row]]
    texts, ids = cutting.cut_front(
        [prompts[row] for row in long], [rooms[row] for row in long], preprocessor
    )
    prompts, prompt_ids = list(prompts), list(prompt_ids)
    for row, text, kept in zip(long, texts, ids, strict=True):
        prompts[row], prompt_ids[row] = text, kept
    return prompts, prompt_ids, len(long)


def _warn(report, limit):
    if report.cut_prompts or report.cut_responses:
        warnings.warn(
            f"{report.cut_prompts} prompts were cut at their front and {report.cut_responses} "
            f"responses at their end to fit {limit} tokens ({report.rows} rows, the longest of "
            f"{report.longest} tokens). Raise `max_length` to keep them whole.",
            stacklevel=4,
        )
