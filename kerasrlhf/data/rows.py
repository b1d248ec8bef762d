"""Rows of token ids: prompt and responses without padding between them, within a length."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kerasrlhf import special_tokens, tokens
from kerasrlhf.data import cutting, notices
from kerasrlhf.types import require_int

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor


class Report(NamedTuple):
    """How many rows of a source were used, cut or left out.

    Attributes:
        rows: int. Rows in the dataset.
        length: int. Tokens per padded row.
        longest: int. Tokens of the longest row before anything was cut.
        cut_prompts: int. Prompts that lost their first words.
        cut_responses: int. Responses that lost their end, and with it their end token.
        longest_response: int. Tokens of the longest response after cutting; 0 without any.
        identical: int. Rows in which two responses are the same tokens after cutting: there is
            nothing to prefer.
        dropped: tuple of int. The numbers of the rows that were left out because of
            `drop_longer_than`, counted from 0 in the source.
        skipped: tuple of int. The same of the rows left out because of `on_error="skip"`.
    """

    rows: int
    length: int
    longest: int
    cut_prompts: int
    cut_responses: int
    longest_response: int = 0
    identical: int = 0
    dropped: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()

    def warn(self, limit: int, stacklevel: int = 2) -> None:
        """Warns of rows that were cut or left out for their length, or prefer nothing.

        Args:
            limit: int. Tokens per row at most.
            stacklevel: int. As in `warnings.warn`. Defaults to 2.
        """
        findings = []
        if self.cut_prompts or self.cut_responses:
            findings.append(
                f"{self.cut_prompts} prompts were cut at their front and {self.cut_responses} "
                f"responses at their end to fit {limit} tokens ({self.rows} rows, the longest of "
                f"{self.longest} tokens). Raise `max_length` to keep them whole."
            )
        if self.identical:
            findings.append(
                f"{self.identical} of {self.rows} rows have identical responses, with nothing to "
                "prefer between them."
            )
        if self.dropped:
            findings.append(
                f"{len(self.dropped)} rows are longer than `drop_longer_than`: left out."
            )
        if findings:
            warnings.warn(" ".join(findings), stacklevel=stacklevel + 1)


class TooLongError(ValueError):
    """Signals that no row is short enough.

    Args:
        count: int. How many rows there are.
        shortest: int. Tokens of the shortest.
        limit: int. Tokens of a row at most.

    Attributes:
        shortest: The argument.
    """

    def __init__(self, count: int, shortest: int, limit: int) -> None:
        super().__init__(
            f"All {count} rows have more than `drop_longer_than={limit}` tokens; the shortest has "
            f"{shortest}."
        )
        self.shortest = shortest


class Rows(NamedTuple):
    """Encoded rows.

    Attributes:
        prompts: list of str. The prompts that are left after cutting, as people see them.
        guarded_prompts: list of str. The same with typed special tokens marked as text, see
            `kerasrlhf.special_tokens`.
        prompt_ids: list of lists of int, each with its start token.
        candidates: list (one per candidate) of lists (one per row) of lists of int.
        report: `Report`.
        kept: list of int. The rows of the input that are left.
    """

    prompts: list[str]
    guarded_prompts: list[str]
    prompt_ids: list[list[int]]
    candidates: list[list[list[int]]]
    report: Report
    kept: list[int]


def encode(
    prompts: list[str],
    candidates: Sequence[list[Any]],
    preprocessor: CausalLMPreprocessor,
    max_length: int | None = None,
    end_token_id: int | str | None = "auto",
    ended: Sequence[list[bool]] | None = None,
    *,
    turn_end: str | None = None,
    drop_longer_than: int | None = None,
    warns: bool = True,
) -> Rows:
    """Tokenizes prompts and responses, and makes them fit.

    Prompt and response are tokenized as one text (see `kerasrlhf.tokens.continuations`). A row that
    is too long loses the first words of its prompt, but not the start token; all candidates of a
    row keep the same prompt. A response that does not fit by itself loses its end. What was cut,
    and rows whose responses are the same, are reported by a warning and in the report.

    Args:
        prompts: list of str. Special tokens in them are parsed.
        candidates: list of lists of str: none, one or several responses per prompt. A special token
            at the end of a response, which a chat template wrote there, is its end token. Lists of
            int in place of the str are token ids, which are used as they are.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        max_length: int, at least 2, or None. Tokens per row at most. Defaults to
            `preprocessor.sequence_length`.
        end_token_id: int, `"auto"` or None. See `kerasrlhf.tokens.end_ids`. Defaults to `"auto"`.
        ended: lists of bool like the candidates, or None. False omits the end token. Defaults to
            None: all end.
        turn_end: str or None. The token that the template ends a turn with, see
            `kerasrlhf.tokens.end_ids`. Defaults to None.
        drop_longer_than: int, in tokens, or None. Longer rows are left out. Defaults to None, which
            keeps all.
        warns: bool. Whether to warn of what was cut or left out. Defaults to True.

    Returns:
        `Rows`.

    Raises:
        ValueError: If `max_length` is less than 2, or no row is short enough.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
        >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
        >>> rows = encode(["ba"], [["b"]], preprocessor)
        >>> rows.prompt_ids, rows.candidates
        ([[0, 2, 1]], [[[2, 0]]])
    """
    # 1. Token ids of prompts and responses.
    start = tokens.start_ids(preprocessor)
    limit = limit_of(preprocessor, max_length)
    prompt_ids = tokens.tokenize(prompts, preprocessor, parse_special=True)
    if ended is None:
        ended = [[True] * len(prompts)] * len(candidates)
    candidates = [
        column
        if not all(isinstance(text, str) for text in column)
        else _responses(prompts, prompt_ids, column, preprocessor, end_token_id, turn_end, whole)
        for column, whole in zip(candidates, ended, strict=True)
    ]
    # A template may write the start token; it is added once, and cutting keeps it.
    prompt_ids = _without(start, prompt_ids)
    # 2. Leave out rows that are too long, and cut the others.
    rows = len(prompts)
    kept = _short_enough(start, prompt_ids, candidates, drop_longer_than)
    prompts, prompt_ids = [prompts[i] for i in kept], [prompt_ids[i] for i in kept]
    candidates = [[column[i] for i in kept] for column in candidates]
    longest = max(map(len, _joined(start, prompt_ids, candidates)))
    # At least one position precedes a response: nothing predicts position 0.
    candidates, cut_responses = _cut_ends(candidates, limit - max(1, len(start)))
    rooms = _rooms(limit - len(start), len(prompts), candidates)
    prompts, prompt_ids, cut_prompts = _cut_fronts(prompts, prompt_ids, rooms, preprocessor)
    prompt_ids = _without(start, prompt_ids)
    # 3. Report what was done.
    report = Report(
        rows=len(prompts),
        length=max(map(len, _joined(start, prompt_ids, candidates))),
        longest=longest,
        cut_prompts=cut_prompts,
        cut_responses=cut_responses,
        longest_response=max((len(ids) for column in candidates for ids in column), default=0),
        identical=sum(
            len(set(map(tuple, row))) < len(row) for row in zip(*candidates, strict=True)
        ),
        dropped=tuple(sorted({*range(rows)} - {*kept})),
    )
    if warns:
        report.warn(limit, stacklevel=3)
    shown = [special_tokens.unguarded(prompt) for prompt in prompts]
    return Rows(shown, prompts, [start + ids for ids in prompt_ids], candidates, report, kept)


def limit_of(preprocessor: CausalLMPreprocessor, max_length: int | None) -> int:
    """Returns how many tokens a row has at most; a `ValueError` if that is no number from 2 up."""
    limit = getattr(preprocessor, "sequence_length", None) if max_length is None else max_length
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 2:
        raise ValueError(f"`max_length` must be an integer of at least 2. Received: {limit!r}")
    return int(limit)


def _responses(
    prompts: list[str],
    prompt_ids: list[list[int]],
    texts: list[str],
    preprocessor: CausalLMPreprocessor,
    end_token_id: int | str | None,
    turn_end: str | None,
    whole: list[bool],
) -> list[list[int]]:
    """Returns the token ids of responses with what ends them."""
    known = special_tokens.special_token_ids(tokens.tokenizer_of(preprocessor))
    end = tokens.end_ids(preprocessor, end_token_id, turn_end)
    # An end token that the template wrote is taken off, and added again as an id.
    bodies, marks = zip(*(split_end(text, known) for text in texts), strict=True)
    rows = tokens.continuations(prompts, prompt_ids, bodies, preprocessor)
    unknown = {mark for mark in marks if mark and known[mark] not in tokens.stop_ids(preprocessor)}
    if unknown:
        ids = sorted(known[mark] for mark in unknown)
        notices.warn(
            f"The template ends responses with {sorted(unknown)}, at which sampling does not stop "
            f"by itself. Sample with `Sampler(stop_token_ids={ids})`.",
            stacklevel=4,
        )
    for index, (ids, mark, is_whole) in enumerate(zip(rows, marks, whole, strict=True)):
        # The template's own end, unless the caller names another one.
        own = [known[mark]] if mark and end_token_id in ("auto", None) else end
        if is_whole and ids[-1:] != own:
            rows[index] = ids + own
    return rows


def split_end(text: str, known: Iterable[str]) -> tuple[str, str | None]:
    r"""Splits the special token from the end of a response, with the white space after it.

    Args:
        text: str.
        known: The special tokens of the tokenizer, an iterable of str.

    Returns:
        The text before it and the token; the whole text and None if there is none.

    Example:
        >>> split_end("Hi.<|im_end|>\n", {"<|im_end|>": 2}), split_end("Hi. ", {"<|im_end|>": 2})
        (('Hi.', '<|im_end|>'), ('Hi. ', None))
    """
    stripped = text.rstrip()
    if not stripped.endswith(tuple(known)):
        return text, None
    # The longest, where one special token ends with another.
    mark = max((token for token in known if stripped.endswith(token)), key=len)
    return stripped.removesuffix(mark), mark


def encode_turns(
    dialogues: Sequence[list[tuple[str, str]]],
    preprocessor: CausalLMPreprocessor,
    end_token_id: int | str | None = "auto",
    turn_end: str | None = None,
    ended: Sequence[bool] | None = None,
) -> tuple[list[str], list[list[int]], list[list[bool]]]:
    """Tokenizes dialogues of which every turn of the assistant is imitated.

    Args:
        dialogues: list of lists of pairs `(before, reply)`, see `kerasrlhf.data.dialogue.turns`.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        end_token_id: int, `"auto"` or None. As in `encode`. Defaults to `"auto"`.
        turn_end: str or None. As in `encode`. Defaults to None.
        ended: list of bool, or None. Whether the last turn is complete. Defaults to None: all are.

    Returns:
        The prompts, list of str; the ids of all that follows, list of lists of int; and which of
        these are the assistant's, list of lists of bool.
    """
    known = special_tokens.special_token_ids(tokens.tokenizer_of(preprocessor))
    prompts = [turns[0][0] for turns in dialogues]
    prompt_ids = tokens.tokenize(prompts, preprocessor, parse_special=True)
    texts, rows = list(prompts), [[*ids] for ids in prompt_ids]
    learned: list[list[bool]] = [[] for _ in prompts]

    def append(pieces: dict[int, str], are_learned: bool) -> None:
        """Adds the next piece of some dialogues, a dict by row."""
        numbers = [*pieces]
        before, ids_before = [texts[i] for i in numbers], [rows[i] for i in numbers]
        found = tokens.continuations(before, ids_before, [*pieces.values()], preprocessor)
        for i, ids in zip(numbers, found, strict=True):
            texts[i] += pieces[i]
            rows[i] = rows[i] + ids
            learned[i] += [are_learned] * len(ids)

    # Turn by turn over all dialogues, so that each step is one call of the tokenizer.
    for turn in range(max(map(len, dialogues))):
        pairs = {i: turns[turn] for i, turns in enumerate(dialogues) if len(turns) > turn}
        if turn:
            # What the user said between two replies is not learned.
            append({i: before for i, (before, _) in pairs.items()}, False)
        last = [i for i in pairs if len(dialogues[i]) == turn + 1]
        inner = {i: reply for i, (_, reply) in pairs.items() if i not in last}
        # A template's white space after the end of a turn is not the assistant's.
        replies = {i: r.rstrip() if split_end(r, known)[1] else r for i, r in inner.items()}
        append(replies, True)
        append({i: inner[i][len(reply) :] for i, reply in replies.items()}, False)
        # The last reply ends like any response, with an end token if it is complete.
        for i in last:
            whole = [ended is None or ended[i]]
            last_reply = [pairs[i][1]]
            (ids,) = _responses(
                [texts[i]], [rows[i]], last_reply, preprocessor, end_token_id, turn_end, whole
            )
            rows[i] = rows[i] + ids
            learned[i] += [True] * len(ids)
    responses = [row[len(ids) :] for row, ids in zip(rows, prompt_ids, strict=True)]
    return prompts, responses, learned


def _without(start: list[int], rows: list[list[int]]) -> list[list[int]]:
    """Returns rows without the start token, if they begin with it."""
    return [ids[len(start) :] if start and ids[: len(start)] == start else ids for ids in rows]


def _short_enough(
    start: list[int],
    prompt_ids: list[list[int]],
    candidates: list[list[list[int]]],
    drop_longer_than: int | None,
) -> list[int]:
    """Returns the numbers of the rows that have at most `drop_longer_than` tokens."""
    if drop_longer_than is None:
        return [*range(len(prompt_ids))]
    require_int("drop_longer_than", drop_longer_than, minimum=2)
    # A row is as long as its prompt with its longest candidate.
    sizes = [
        len(start) + len(ids) + max((len(column[row]) for column in candidates), default=0)
        for row, ids in enumerate(prompt_ids)
    ]
    kept = [row for row, size in enumerate(sizes) if size <= drop_longer_than]
    if not kept:
        raise TooLongError(len(sizes), min(sizes), drop_longer_than)
    return kept


def _joined(
    start: list[int], prompt_ids: list[list[int]], candidates: list[list[list[int]]]
) -> Iterator[list[int]]:
    # Prompts alone are rows with an empty response.
    responses = candidates or [[[]] * len(prompt_ids)]
    for column in responses:
        for prompt, response in zip(prompt_ids, column, strict=True):
            yield start + prompt + response


def _rooms(room: int, rows: int, candidates: list[list[list[int]]]) -> list[int]:
    """Returns the tokens that each prompt may have in addition to its longest candidate."""
    return [
        room - max((len(column[row]) for column in candidates), default=0) for row in range(rows)
    ]


def _cut_ends(candidates: list[list[list[int]]], room: int) -> tuple[list[list[list[int]]], int]:
    cut = sum(len(ids) > room for column in candidates for ids in column)
    return [[ids[:room] for ids in column] for column in candidates], cut


def _cut_fronts(
    prompts: list[str],
    prompt_ids: list[list[int]],
    rooms: list[int],
    preprocessor: CausalLMPreprocessor,
) -> tuple[list[str], list[list[int]], int]:
    long = [row for row, ids in enumerate(prompt_ids) if len(ids) > rooms[row]]
    texts, ids = cutting.cut_front(
        [prompts[row] for row in long], [rooms[row] for row in long], preprocessor
    )
    prompts, prompt_ids = list(prompts), list(prompt_ids)
    for row, text, kept in zip(long, texts, ids, strict=True):
        prompts[row], prompt_ids[row] = text, kept
    return prompts, prompt_ids, len(long)
