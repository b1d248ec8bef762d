"""Dialogues of several turns between the policy and a user, who is a function.

A dialogue is one row: the prompt, a reply of the policy, the user's turn, the next reply, and so
on. The response mask is true on the policy's own tokens only. What the template writes around the
user's turns and the user's words are in the context, and never in the loss.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasrlhf import special_tokens, tokens
from kerasrlhf.data import dialogue as dialogue_lib
from kerasrlhf.data.dialogue import Message, Template
from kerasrlhf.models.stop_strings import StopStrings, finished
from kerasrlhf.rollouts import calling, scoring
from kerasrlhf.types import Responses, Tensor, masked_rows, require_int
from kerasrlhf.workers import Workers


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """How a dialogue goes on after a reply.

    Args:
        user: callable, `user(messages) -> str | None`. It gets the messages so far, the last one
            the policy's, and returns what the user says next, or None to end the dialogue. Further
            parameters that are columns of the records are passed by keyword. It may be an
            `async def`.
        turns: int, at least 1. Replies of the policy at most.
        user_length: int, at least 1. Tokens of a user's turn at most, with what the template writes
            around it. A longer one ends the dialogue, with a warning. Defaults to 64.
        template: str or callable. Turns messages into a text, as in `data.dialogue`. Defaults to
            `"plain"`.

    Raises:
        ValueError: If `user` is not a function of messages, or a value is outside its range.

    Example:
        >>> dialogue = Dialogue(lambda messages: "Why?", turns=3, user_length=8)
        >>> dialogue.tokens(10), dialogue.columns(10)
        (30, 46)
    """

    user: Callable[..., Any]
    turns: int
    user_length: int = 64
    template: Template = "plain"

    def __post_init__(self) -> None:
        if not callable(self.user) or calling.takes_nothing(self.user):
            raise ValueError(
                "`user` must be a function `user(messages) -> str | None`, which returns what the "
                f"user says next, or None to end the dialogue. Received: {self.user!r}."
            )
        require_int("turns", self.turns, minimum=1)
        require_int("user_length", self.user_length, minimum=1)
        dialogue_lib.check_template(self.template)

    def tokens(self, length: int) -> int:
        """Returns how many tokens the policy says at most, with `length` per reply."""
        return self.turns * length

    def columns(self, length: int) -> int:
        """Returns how many tokens follow a prompt at most, with `length` per reply."""
        return self.tokens(length) + (self.turns - 1) * self.user_length

    def ask(self, messages: Sequence[Message], columns: dict[str, Any]) -> Any:
        """Returns what the user says next, or an awaitable of it.

        Args:
            messages: list of messages, the policy's last.
            columns: dict, the record of the dialogue.
        """
        # Copies: a function may change its messages.
        return self.user([{**m} for m in messages], **_named(self.user, columns))


def _named(function: Callable, columns: dict[str, Any]) -> dict[str, Any]:
    """Returns the columns that parameters after the first one ask for."""
    try:
        _, *others = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in others):
        return columns
    return {p.name: columns[p.name] for p in others if p.name in columns}


@dataclasses.dataclass
class Transcript:
    """One dialogue, which grows by replies and answers.

    prompt_length: int, in tokens.
    token_ids: list of int, the prompt and all that followed.
    spoken: list of bool, one per token: whether the policy said it.
    messages: list of messages, those of the prompt included.
    opening: int. How many messages the prompt has.
    columns: dict, the other columns of the record.
    replies: list of str, as they were sampled, without what ended them.
    text, guarded: str. What followed the prompt, as the template writes it; the second with typed
        special tokens marked as text.
    tail: str. What of the template's text the policy has written itself at the end of its reply.
    ended: bool. Whether a stop token or a stop string ended every reply.
    whole: bool. Whether an end token of the tokenizer or a stop string ended the last reply.
    stopped: None while the dialogue goes on, `"user"`, `"turns"` or `"length"`.
    """

    prompt_length: int
    token_ids: list[int]
    spoken: list[bool]
    messages: list[Message]
    opening: int
    columns: dict[str, Any]
    replies: list[str] = dataclasses.field(default_factory=list)
    text: str = ""
    guarded: str = ""
    tail: str = ""
    ended: bool = True
    whole: bool = False
    stopped: str | None = None

    @property
    def followed(self) -> list[Message]:
        """The messages after the prompt."""
        return self.messages[self.opening :]


class Dialogues:
    """Carries on dialogues between sampled replies and a user.

    Args:
        dialogue: `Dialogue`.
        causal_lm: keras-hub `CausalLM` with a preprocessor.
        length: int. Tokens of a reply at most.
        stops: `StopStrings` that end a reply, or None.
        workers: `Workers`, of which the first asks the user. Defaults to None: this process alone.

    Raises:
        ValueError: If the model has no preprocessor.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        causal_lm: keras.Model,
        length: int,
        stops: StopStrings | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers or Workers(tf.distribute.get_strategy())
        if causal_lm.preprocessor is None:
            raise ValueError(
                "A dialogue needs a tokenizer, and the model has no preprocessor. Attach one."
            )
        self.dialogue, self.length, self.stops = dialogue, length, stops
        self.preprocessor = causal_lm.preprocessor
        self.tokenizer = tokens.tokenizer_of(self.preprocessor)
        self._special = {
            i: text for text, i in special_tokens.special_token_ids(self.tokenizer).items()
        }
        self._has_warned = False

    @property
    def columns(self) -> int:
        """Tokens after a prompt at most."""
        return self.dialogue.columns(self.length)

    def begin(
        self, prompts: Sequence[list[int]], strings: scoring.PromptStrings
    ) -> list[Transcript]:
        """Returns the transcripts of dialogues that begin with these prompts.

        Args:
            prompts: list of lists of int, without padding.
            strings: `PromptStrings` of the same rows.

        Raises:
            ValueError: If a prompt is not a list of messages, or another template rendered it.
        """
        conversations = strings.conversations or [None] * len(prompts)
        missing = [i for i, messages in enumerate(conversations) if not messages]
        if missing:
            raise ValueError(
                "A dialogue begins with messages: the records need a column `prompt` with lists "
                'such as `[{"role": "user", "content": "Hello"}]`. Rows '
                f"{missing[:5]} have none. Load them with `rlhf.data.prompts(records, ...)`."
            )
        if strings.prompts:
            self._check_template(conversations[0] or [], strings.prompts[0])
        return [
            Transcript(
                prompt_length=len(ids),
                token_ids=[*ids],
                spoken=[False] * len(ids),
                messages=[{**m} for m in messages or []],
                opening=len(messages or []),
                columns={n: x[i] for n, x in strings.columns.items() if n != "prompt"},
            )
            for i, (ids, messages) in enumerate(zip(prompts, conversations, strict=True))
        ]

    def _check_template(self, messages: list[Message], text: str) -> None:
        """Raises a `ValueError` if another template made this text of the messages."""
        rendered = dialogue_lib.render(messages, self.dialogue.template, add_generation_prompt=True)
        # A prompt that was cut has lost words at its start.
        if not rendered.endswith(text[-32:]):
            raise ValueError(
                "The prompts were made with another template than that of the dialogue. The "
                f"prompts end in {text[-32:]!r}, and the dialogue's template writes "
                f"{rendered[-32:]!r}. Pass the same `template` to `rlhf.data.prompts` and to the "
                "environment."
            )

    def reply(
        self, transcripts: Sequence[Transcript], rows: Sequence[list[int]], ended: Sequence[bool]
    ) -> None:
        """Adds the policy's next turn to dialogues.

        Args:
            transcripts: list of `Transcript` that go on.
            rows: list of lists of int, the tokens of each reply.
            ended: list of bool, whether a stop token or a stop string ended it.
        """
        heads = [t.token_ids for t in transcripts]
        full = tokens.detokenize(rows, self.preprocessor, after=heads)
        cut, whole = finished(full, [*rows], self.preprocessor, self.stops)
        for i, transcript in enumerate(transcripts):
            ids, text = rows[i], str(cut[i])
            mark = self._special.get(ids[-1], "") if ids and ended[i] else ""
            # What the template writes next may have been sampled: a stop string, an end of turn.
            transcript.tail = mark or full[i][len(text) :]
            text = text.removesuffix(mark) if mark else text
            transcript.token_ids += ids
            transcript.spoken += [True] * len(ids)
            transcript.replies.append(text)
            transcript.messages.append({"role": "assistant", "content": text.strip()})
            transcript.text += text
            transcript.guarded += special_tokens.guarded(text, self.tokenizer)
            transcript.ended = transcript.ended and bool(ended[i])
            transcript.whole = bool(whole[i])
            if len(transcript.replies) == self.dialogue.turns:
                transcript.stopped = "turns"

    def answer(self, transcripts: Sequence[Transcript]) -> None:
        """Adds the user's next turn to dialogues that go on, or ends them.

        Args:
            transcripts: list of `Transcript`, after a reply.

        Raises:
            ValueError: If the user's function returns anything but a str or None, or the template
                does not render a dialogue as a continuation of its prompt.
        """
        going = [t for t in transcripts if t.stopped is None]

        def ask() -> list[Any]:
            asked = [self.dialogue.ask(t.messages, t.columns) for t in going]
            # Asynchronous users answer at the same time.
            return calling.awaited(asked, [self.dialogue.user] * len(asked))

        # A user may be random, and all workers carry on the same dialogues.
        answers = self.workers.by_chief("asking the user of a dialogue", ask)
        texts = [self._between(t, answer) for t, answer in zip(going, answers, strict=True)]
        said = [text for text in texts if text is not None]
        rows = iter(tokens.following(said, self.preprocessor) if said else [])
        for transcript, answer, text in zip(going, answers, texts, strict=True):
            if text is None:
                transcript.stopped = "user"
                continue
            ids = next(rows)
            if len(ids) > self.dialogue.user_length:
                transcript.stopped = "length"
                self._warn(len(ids))
                continue
            transcript.token_ids += ids
            transcript.spoken += [False] * len(ids)
            transcript.messages.append({"role": "user", "content": answer})
            transcript.text += special_tokens.unguarded(transcript.tail + text)
            transcript.guarded += transcript.tail + text

    def _between(self, transcript: Transcript, answer: Any) -> str | None:
        """Returns the text that an answer adds, with typed special tokens guarded."""
        if answer is None:
            return None
        if not isinstance(answer, str):
            raise ValueError(
                f"The user `{calling.name_of(self.dialogue.user)}` must return a string, or None "
                f"to end the dialogue. Received: {answer!r} of type {type(answer).__name__}."
            )
        before = [self._guarded(message) for message in transcript.messages[:-1]]
        reply = self._guarded(transcript.messages[-1])["content"]
        typed = special_tokens.guarded(answer, self.tokenizer)
        text = dialogue_lib.between(before, reply, typed, self.dialogue.template)
        if text.startswith(transcript.tail):
            return text.removeprefix(transcript.tail)
        transcript.tail = ""
        return text

    def _guarded(self, message: Message) -> Message:
        content = message.get("content")
        if not isinstance(content, str):
            return message
        return {**message, "content": special_tokens.guarded(content, self.tokenizer)}

    def _warn(self, length: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"A user's turn has {length} tokens, more than `user_length="
                f"{self.dialogue.user_length}`: its dialogue ends before it. Raise `user_length`, "
                "or let the user say less. This warning appears once.",
                UserWarning,
                stacklevel=2,
            )

    def responses(
        self,
        transcripts: Sequence[Transcript],
        columns: int,
        logprobs: np.ndarray | None = None,
        values: np.ndarray | None = None,
        behavior_logprobs: np.ndarray | None = None,
    ) -> Responses:
        """Returns dialogues as rows whose response mask has gaps.

        Args:
            transcripts: list of `Transcript`.
            columns: int. Tokens of a row.
            logprobs: float32 `(rows, columns)`. Defaults to None: zeros.
            values: float32 `(rows, columns)`. Defaults to None: zeros.
            behavior_logprobs: float32 `(rows, columns)`. Defaults to None: zeros.
        """
        pad = tokens.pad_id(self.preprocessor)
        ids, mask = tokens.padded([t.token_ids for t in transcripts], columns, pad)
        spoken, _ = tokens.padded([t.spoken for t in transcripts], columns)
        zeros = np.zeros(ids.shape, "float32")
        floats = [zeros if x is None else x for x in (logprobs, values, behavior_logprobs)]
        return Responses(
            ids,
            mask,
            spoken.astype(bool),
            np.array([t.prompt_length for t in transcripts], "int32"),
            np.array([t.ended for t in transcripts]),
            *floats,
        )

    def episodes(
        self, transcripts: Sequence[Transcript], strings: scoring.PromptStrings
    ) -> scoring.Episodes:
        """Returns the texts of dialogues, for reward functions and for logs.

        Args:
            transcripts: list of `Transcript`.
            strings: `PromptStrings` of the same rows.
        """
        prompts = strings.prompts
        if prompts is None:
            heads = [t.token_ids[: t.prompt_length] for t in transcripts]
            prompts = tokens.detokenize(heads, self.preprocessor)
        return scoring.Episodes(
            prompts,
            [t.text for t in transcripts],
            strings.columns,
            strings.conversations,
            strings.guarded,
            np.array([t.whole for t in transcripts]),
            guarded_responses=[t.guarded for t in transcripts],
            dialogues=[[{**m} for m in t.followed] for t in transcripts],
        )

    def converse(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        strings: scoring.PromptStrings,
        uniforms: Tensor,
        sample: Callable[[Tensor, Tensor, Tensor], Responses],
    ) -> tuple[Responses, scoring.Episodes]:
        """Samples whole dialogues of a batch of prompts.

        Args:
            token_ids: int32 `(prompts, columns)`, right-padded.
            padding_mask: bool `(prompts, columns)`.
            strings: `PromptStrings`, one entry per dialogue.
            uniforms: float32 `(dialogues, turns * length, 2)`. A multiple of the prompts is a
                group of dialogues to each, in adjacent rows.
            sample: callable from token ids, mask and uniforms `(dialogues, length, 2)` to
                `Responses`. It gets the same shapes for every turn.

        Returns:
            `Responses` of `columns + dialogue.columns(length)` columns, and `Episodes`.
        """
        prompts = masked_rows(token_ids, padding_mask)
        group = int(uniforms.shape[0]) // len(prompts)
        transcripts = self.begin([row for row in prompts for _ in range(group)], strings)
        columns = int(token_ids.shape[1]) + self.columns
        shape, pad = (len(transcripts), columns), tokens.pad_id(self.preprocessor)
        found = {
            name: np.zeros(shape, "float32") for name in ("logprobs", "values", "behavior_logprobs")
        }
        for turn in range(self.dialogue.turns):
            going = [i for i, t in enumerate(transcripts) if t.stopped is None]
            if not going:
                break
            # Rows that have ended repeat one that goes on: no shape and no loop gets longer.
            heads = [transcripts[going[0] if t.stopped else i] for i, t in enumerate(transcripts)]
            ids, mask = tokens.padded([t.token_ids for t in heads], columns - self.length, pad)
            own = slice(turn * self.length, (turn + 1) * self.length)
            sampled = sample(tf.constant(ids), tf.constant(mask), uniforms[:, own])
            # Columns of a row do not move, so that numbers per token stay in their places.
            inside = np.asarray(sampled.response_mask)
            inside = inside & np.isin(np.arange(len(heads)), going)[:, None]
            for name, array in found.items():
                array[inside] = np.asarray(getattr(sampled, name))[inside]
            rows = masked_rows(sampled.token_ids, inside)
            ended = np.asarray(sampled.ended)
            speakers = [transcripts[i] for i in going]
            self.reply(speakers, [rows[i] for i in going], [bool(ended[i]) for i in going])
            self.answer(speakers)
        responses = self.responses(transcripts, columns, **found)
        tensors = Responses(*(tf.constant(x) for x in responses))
        return tensors, self.episodes(transcripts, strings)
