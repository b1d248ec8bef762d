"""Texts of a rollout, and Python reward functions that score them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
from keras import ops

from kerasrlhf import tokens
from kerasrlhf.models.scorer import Scored
from kerasrlhf.models.stop_strings import StopStrings, finished
from kerasrlhf.rollouts import calling, unscored
from kerasrlhf.types import Responses, Tensor, masked_rows, require_finite_scores
from kerasrlhf.workers import Workers


class Episodes(NamedTuple):
    """The texts of a scored batch, for reward functions and for logs.

    prompts, responses: lists of strings, or None if the model has no tokenizer. A dialogue is the
        rendered text.
    columns: dict of the other columns of the records, each a list.
    conversations: list with the messages of every prompt, None for a prompt that is a plain
        string; None if there are no records.
    guarded_prompts: list of `prompts` with typed special tokens marked as text, see
        `kerasrlhf.special_tokens`; None if the batch does not have them.
    ended: bool `(batch,)`, whether an end token of the tokenizer or a stop string ended a response;
        None if the model has no tokenizer.
    guarded_responses: list of `responses` with typed special tokens marked as text; None if a
        response is all typed.
    dialogues: list with the messages that followed each prompt, the user's included; None if a
        response is one reply.
    """

    prompts: list[str] | None
    responses: list[str] | None
    columns: dict[str, list]
    conversations: list[list[dict] | None] | None = None
    guarded_prompts: list[str] | None = None
    ended: np.ndarray | None = None
    guarded_responses: list[str] | None = None
    dialogues: list[list[dict]] | None = None

    def rows(self, part: slice) -> Episodes:
        """Returns some of the episodes.

        Example:
            >>> Episodes(["a", "b"], ["c", "d"], {"n": [1, 2]}).rows(slice(1, 2)).columns
            {'n': [2]}
        """
        columns = {name: values[part] for name, values in self.columns.items()}
        others = {
            k: None if v is None else v[part] for k, v in self._asdict().items() if k != "columns"
        }
        return Episodes(columns=columns, **others)

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """Prompts and responses.

        Raises:
            ValueError: If the model has no tokenizer.

        Example:
            >>> Episodes(["one"], ["two"], columns={}).texts
            (['one'], ['two'])
        """
        if self.prompts is None or self.responses is None:
            raise ValueError(
                "Texts need a tokenizer. Build the actor from a CausalLM with a preprocessor."
            )
        return self.prompts, self.responses


class PromptStrings(NamedTuple):
    """The strings of a batch of prompts.

    prompts, guarded, conversations: as in `Episodes`; None if the batch does not have them.
    columns: dict of the columns of the records, each a list.
    """

    prompts: list[str] | None
    guarded: list[str] | None
    conversations: list[list[dict] | None] | None
    columns: dict[str, list]

    @classmethod
    def of(cls, batch: dict[str, Any]) -> PromptStrings:
        """Returns the strings of a batch.

        Args:
            batch: dict, a batch of prompts. `prompt` and `guarded_prompt` (strings) and `record`
                (JSON) are used if present.

        Example:
            >>> PromptStrings.of({"prompt": ["Hi"], "record": ['{"prompt": "Hi", "n": 3}']}).columns
            {'prompt': ['Hi'], 'n': [3]}
        """
        records = [json.loads(r) for r in _strings(batch.get("record", ()))]
        # Union of the columns in their order; None where a record lacks one.
        names = dict.fromkeys(name for record in records for name in record)
        columns = {name: [record.get(name) for record in records] for name in names}
        prompts, guarded = (
            _strings(batch[name]) if name in batch else None
            for name in ("prompt", "guarded_prompt")
        )
        conversations = [_messages(record.get("prompt")) for record in records] or None
        return cls(prompts, guarded, conversations, columns)


def read_episodes(
    sampled: Responses,
    batch: dict[str, Any],
    preprocessor: Any,
    stops: StopStrings | None = None,
) -> Episodes:
    """Returns the texts of `sampled` and the columns of the prompt batch.

    Args:
        sampled: `Responses`.
        batch: dict, a batch of prompts. `prompt` and `guarded_prompt` (strings) and `record` (JSON)
            are used if present.
        preprocessor: of the actor, or None.
        stops: `StopStrings` of the sampler. The text of a response ends before the string that
            ended it. Defaults to None.
    """
    prompts, guarded, conversations, columns = PromptStrings.of(batch)
    responses, ended = None, None
    if preprocessor is not None:
        ids, inside = np.asarray(sampled.token_ids), np.asarray(sampled.response_mask)
        # Ids of prompts and responses, without padding.
        heads = masked_rows(ids, np.asarray(sampled.padding_mask) & ~inside)
        rows = masked_rows(ids, inside)
        if prompts is None:
            prompts = tokens.detokenize(heads, preprocessor)
        # Decode responses after their prompts, or a blank before the first word is lost.
        responses = tokens.detokenize(rows, preprocessor, after=heads)
        responses, ended = finished(responses, rows, preprocessor, stops)
    return Episodes(prompts, responses, columns, conversations, guarded, ended)


def _strings(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(values).tolist()]


def _messages(prompt: Any) -> list[dict] | None:
    return prompt if isinstance(prompt, list) else None


@dataclasses.dataclass(frozen=True)
class TrainerState:
    """The state of training for reward functions, with the names of TRL.

    Args:
        global_step: int, at least 0. The iteration. Defaults to 0, also outside a trainer.
        episodes: int, at least 0. Responses that were scored before this iteration, if all batches
            have the size of this one. Defaults to 0.

    Example:
        >>> TrainerState(global_step=3, episodes=96).global_step
        3
    """

    global_step: int = 0
    episodes: int = 0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"`trainer_state` has no {name!r}. It has `global_step` (the iteration, from 0) and "
            "`episodes` (responses scored before this iteration). Bind other values to the reward "
            "function, for example with `functools.partial`."
        )


class RewardLog:
    """Metrics and columns that reward functions log while they score a batch.

    Args:
        rows: int. Responses in the batch.

    Attributes:
        metrics: dict of lists of floats, the values of `log_metric` by name.
        columns: dict of lists with one entry per response, from `log_extra`.

    Example:
        >>> log = RewardLog(rows=2)
        >>> log.metric("length", 3.0), log.extra("verdict", ["good", "bad"])
        (None, None)
        >>> log.metrics, log.columns
        ({'length': [3.0]}, {'verdict': ['good', 'bad']})
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.metrics: dict[str, list[float]] = {}
        self.columns: dict[str, list] = {}

    def metric(self, name: str, value: Any) -> None:
        """Adds a number to a metric; the iteration's statistic is the mean over its values.

        Args:
            name: str.
            value: float, or what converts to it.

        Raises:
            ValueError: If `value` is not a number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"`log_metric` takes a name and a number. Received: {name!r}, {value!r}."
            ) from None
        self.metrics.setdefault(str(name), []).append(number)

    def extra(self, column: str, values: Any) -> None:
        """Sets a column of the episodes.

        Args:
            column: str, its name.
            values: list or array with one entry per response.

        Raises:
            ValueError: If there are more or fewer entries.
        """
        values = _listed(values)
        if len(values) != self.rows:
            raise ValueError(
                "`log_extra` takes a name and a list with one entry per response. Expected "
                f"{self.rows} entries for {column!r}, received {len(values)}."
            )
        self.columns[str(column)] = values

    def join(self, parts: Sequence[RewardLog]) -> None:
        """Adds the logs of consecutive parts of the batch; None where a part lacks a column.

        Args:
            parts: list of `RewardLog`.
        """
        for part in parts:
            for name, values in part.metrics.items():
                self.metrics.setdefault(name, []).extend(values)
        for column in dict.fromkeys(name for part in parts for name in part.columns):
            entries = (part.columns.get(column, [None] * part.rows) for part in parts)
            self.columns[column] = list(itertools.chain.from_iterable(entries))


class Scores(NamedTuple):
    """The scores of a batch, and details about them. Arrays are float32.

    total: `(batch,)`, the weighted sum; `(batch, length)` if a part scores every token.
    by_part: dict from name to `(batch,)`, without weights, NaN where a part does not apply; empty
        for a reward that is not a list or dict.
    spread: `(batch,)`, standard deviation between the members of a `RewardEnsemble`; for several
        ensembles, the root of the sum of weighted squares. None without an ensemble.
    unscored: bool `(batch,)`, whether no part applies to a response. None before the first such
        response.
    log: `RewardLog` of the functions.
    """

    total: np.ndarray
    by_part: dict[str, np.ndarray]
    spread: np.ndarray | None
    unscored: np.ndarray | None
    log: RewardLog


class Reward(Protocol):
    """Scores the responses of a collector; abstract.

    group_size: int. Consecutive responses to each prompt.
    """

    group_size: int

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> list[Scored]:
        """Returns what networks compute from the sampled ids; pure, compiled."""
        ...

    def score(
        self, responses: Responses, episodes: Episodes, read: list[Scored], state: TrainerState
    ) -> Scores:
        """Returns the scores of a batch, given the results of `read`."""
        ...


class FunctionReward:
    """Scores responses by one Python function.

    A response for which the function returns None gets the mean score of its group, or of the
    batch if its group has no score, or 0 if the batch has none. So it counts as neither good nor
    bad. The first such response causes a warning; from then on the statistic `objective/unscored`
    is the fraction of such responses.

    Args:
        function: callable, as `call_reward` describes.
        group_size: int. Consecutive responses to each prompt. Defaults to 1.
        timeout: float or None. Seconds that the function may take for a batch. Defaults to None.
        workers: `Workers`, each of which calls the function for a part of the batch. Defaults to
            None: this process alone.
    """

    def __init__(
        self,
        function: Callable,
        group_size: int = 1,
        timeout: float | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.function, self.group_size, self.timeout = function, group_size, timeout
        self.workers = workers
        self._name = calling.name_of(function)
        self._has_unscored = False

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> list[Scored]:
        """Returns an empty list: no network reads the tokens."""
        return []

    def score(
        self,
        responses: Responses,
        episodes: Episodes,
        read: Sequence[Scored] = (),
        state: TrainerState = TrainerState(),
    ) -> Scores:
        """Calls the function for a batch.

        Args:
            responses: `Responses`.
            episodes: `Episodes`, the texts of the responses.
            read: unused. Defaults to none.
            state: `TrainerState`, the argument `trainer_state`. Defaults to that of iteration 0.

        Raises:
            ValueError: If `call_reward` raises one, or a score is too large to train on.
        """
        log = RewardLog(int(responses.token_ids.shape[0]))
        (called,) = call_by_workers(
            self.workers,
            [self.function],
            episodes,
            responses,
            state,
            log,
            self.timeout,
            self.group_size,
        )
        # NaN means that the function does not apply.
        applies, scores = ~np.isnan(called), np.nan_to_num(called)
        require_finite_scores(scores, f"The reward `{self._name}`")
        if not (applies.all() or self._has_unscored):
            self._has_unscored = True
            unscored.warn(~applies, [self.function])
        if not self._has_unscored:
            return Scores(scores, {}, None, None, log)
        return Scores(unscored.filled(scores, applies, self.group_size), {}, None, ~applies, log)


def call_reward(
    function: Callable,
    episodes: Episodes,
    sampled: Responses,
    state: TrainerState = TrainerState(),
    log: RewardLog | None = None,
) -> np.ndarray:
    """Calls a reward function and checks what it returns.

    A function is called by keyword with the arguments that its signature names, or with all of
    them if it takes `**kwargs`; functions written for TRL run unchanged:

        prompts, completions      texts; for a prompt that is a list of messages, that list and
                                  `[{"role": "assistant", "content": response}]`
        responses, prompt_texts   always texts
        prompt_ids, response_ids  token ids (`completion_ids` is the same as `response_ids`)
        trainer_state             `TrainerState`
        log_metric(name, value)   adds `reward/<name>` to the iteration's statistics, as a mean
        log_extra(column, values) adds a column to the episodes
        messages, replies         of a dialogue: all its messages, and the texts of the replies;
                                  `completions` are the messages after the prompt

    and the other columns of the records. A function with other names is called as
    `function(prompts, responses)`. An `async def` runs to completion, also in a notebook.

    Args:
        function: callable.
        episodes: `Episodes`, the texts and columns.
        sampled: `Responses`.
        state: `TrainerState`, the argument `trainer_state`. Defaults to that of iteration 0.
        log: `RewardLog` that receives the logs of the function. Defaults to None: dropped.

    Returns:
        Float32 `(batch,)`. NaN where the function returned None: it does not apply there.

    Raises:
        ValueError: If a required argument is unknown, or the result is not one finite number or
            None per row.
    """
    (scores,) = call_rewards([function], episodes, sampled, state, log)
    return scores


def call_rewards(
    functions: Sequence[Callable],
    episodes: Episodes,
    sampled: Responses,
    state: TrainerState = TrainerState(),
    log: RewardLog | None = None,
    timeout: float | None = None,
) -> list[np.ndarray]:
    """Calls several reward functions, the asynchronous ones at the same time.

    Args:
        functions: list of callables, as in `call_reward`.
        episodes: as in `call_reward`.
        sampled: as in `call_reward`.
        state: as in `call_reward`.
        log: as in `call_reward`.
        timeout: float or None. Seconds for each function. With a number, each function runs in its
            own thread; a function that does not return is abandoned there. Defaults to None.

    Returns:
        List of arrays as in `call_reward`, one for each function.

    Raises:
        ValueError: As in `call_reward`.
        TimeoutError: If a function takes longer; the message names it.
    """
    rows = int(sampled.token_ids.shape[0])
    columns = _columns(episodes, sampled, state, log or RewardLog(rows))
    results = call_all(functions, columns, timeout)
    return [_checked(x, rows, f) for x, f in zip(results, functions, strict=True)]


def call_by_workers(
    workers: Workers | None,
    functions: Sequence[Callable],
    episodes: Episodes,
    sampled: Responses,
    state: TrainerState,
    log: RewardLog,
    timeout: float | None,
    group_size: int,
) -> list[np.ndarray]:
    """Calls reward functions in every worker for its own part of the responses.

    Args:
        workers: `Workers`, or None for this process alone.
        functions: as in `call_rewards`.
        episodes: as in `call_rewards`.
        sampled: as in `call_rewards`.
        state: as in `call_rewards`.
        log: `RewardLog` that receives what the functions log in all workers.
        timeout: as in `call_rewards`.
        group_size: int. Consecutive responses that stay together.

    Returns:
        List of arrays as in `call_reward`, the scores of all workers, one for each function.

    Raises:
        RuntimeError: If a function fails in another worker.
    """
    if workers is None or workers.count == 1:
        return call_rewards(functions, episodes, sampled, state, log, timeout)
    own = workers.own_part(log.rows // group_size)
    part = slice(own.start * group_size, own.stop * group_size)
    own_log = RewardLog(part.stop - part.start)

    def score() -> tuple[list[np.ndarray], RewardLog]:
        if not own_log.rows:
            return [np.zeros((0,), "float32") for _ in functions], own_log
        rows = Responses(*(None if x is None else x[part] for x in sampled))
        mine = episodes.rows(part)
        return call_rewards(functions, mine, rows, state, own_log, timeout), own_log

    answers = workers.together("scoring its responses", score)
    log.join([log for _, log in answers])
    return [np.concatenate(parts) for parts in zip(*(x for x, _ in answers), strict=True)]


def call_all(
    functions: Sequence[Callable],
    columns: dict[str, Callable[[], Any]],
    timeout: float | None = None,
    kind: str = "reward function",
) -> list[Any]:
    """Calls functions with the columns that they name, the asynchronous ones at the same time.

    Args:
        functions: list of callables.
        columns: dict from the name of an argument to a function that creates its value.
        timeout: float or None. Seconds for each function. With a number, each function runs in its
            own thread; a function that does not return is abandoned there. Defaults to None.
        kind: str. What the functions are, for errors. Defaults to `"reward function"`.

    Returns:
        List of what the functions return.

    Raises:
        ValueError: If a function asks for an unknown argument.
        TimeoutError: If a function takes longer; the message names it.

    Example:
        >>> columns = {"responses": lambda: ["a", "bc"], "label": lambda: [1, 2]}
        >>> call_all([lambda responses, label: list(zip(responses, label))], columns)
        [[('a', 1), ('bc', 2)]]
    """
    results: list[Any] = []
    try:
        # Call each; an asynchronous one returns an awaitable at once.
        for function in functions:
            args, kwargs = _arguments(function, columns, kind)
            if timeout is None:
                results.append(function(*args, **kwargs))
            else:
                results.append(calling.called(function, args, kwargs, timeout))
    except BaseException:
        # Close the others, or Python warns that they were never awaited.
        for result in filter(inspect.iscoroutine, results):
            result.close()
        raise
    if not any(map(inspect.isawaitable, results)):
        return results
    return calling.awaited(results, functions, timeout)


def text_columns(episodes: Episodes) -> dict[str, Callable[[], Any]]:
    """Returns a function for every argument that is made of texts or records, by its name.

    Args:
        episodes: `Episodes`.

    Example:
        >>> columns = text_columns(Episodes(["one"], ["two"], columns={"label": [3]}))
        >>> {name: column() for name, column in columns.items() if name in ("prompts", "label")}
        {'label': [3], 'prompts': ['one']}
    """
    texts, responses = episodes.prompts, episodes.responses
    conversations = episodes.conversations or [None] * len(texts or responses or [])
    # Records come first, so that their columns cannot replace the arguments below.
    columns = {name: _returning(column) for name, column in episodes.columns.items()}
    if texts is not None:
        columns["prompts"] = functools.partial(_prompts, texts, conversations)
        columns["prompt_texts"] = _returning(texts)
    if responses is not None:
        columns["responses"] = _returning(responses)
        columns["completions"] = functools.partial(_completions, responses, conversations)
    if episodes.dialogues is not None:
        columns |= _dialogue_columns(conversations, episodes.dialogues)
    return columns


def _dialogue_columns(
    conversations: Sequence[list[dict] | None], dialogues: list[list[dict]]
) -> dict[str, Callable[[], Any]]:
    """Returns the columns of dialogues: what followed the prompts, all of it, and the replies."""

    def copied(messages: Sequence[dict]) -> list[dict]:
        return [{**m} for m in messages]

    return {
        "completions": lambda: [copied(messages) for messages in dialogues],
        "messages": lambda: [
            copied([*(prompt or []), *messages])
            for prompt, messages in zip(conversations, dialogues, strict=True)
        ],
        "replies": lambda: [
            [m["content"] for m in messages if m["role"] == "assistant"] for messages in dialogues
        ],
    }


def _columns(
    episodes: Episodes, sampled: Responses, state: TrainerState, log: RewardLog
) -> dict[str, Callable[[], Any]]:
    """Returns a function for every argument by name, which creates its value on demand."""
    ids, inside = np.asarray(sampled.token_ids), np.asarray(sampled.response_mask)
    # Before the first reply: between replies of a dialogue are the user's turns.
    before = np.asarray(sampled.padding_mask).astype(bool) & (np.cumsum(inside, axis=1) == 0)
    columns = text_columns(episodes)
    response_ids = functools.partial(masked_rows, ids, inside)
    columns |= {"response_ids": response_ids, "completion_ids": response_ids}
    columns["prompt_ids"] = functools.partial(masked_rows, ids, before)
    columns |= {"log_metric": _returning(log.metric), "log_extra": _returning(log.extra)}
    return columns | {"trainer_state": _returning(state)}


def per_response(scores: np.ndarray) -> np.ndarray:
    """Returns one score per response, `(batch,)`: the sum of scores per token.

    Args:
        scores: float `(batch,)` or `(batch, length)`.

    Example:
        >>> per_response(np.array([[1.0, 2.0], [0.0, 4.0]])).tolist()
        [3.0, 4.0]
    """
    return scores.reshape(len(scores), -1).sum(axis=1)


def _returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def _prompts(
    texts: list[str], conversations: Sequence[list[dict] | None]
) -> list[str | list[dict]]:
    # Copy: a function may change the messages, and others get them too.
    return [
        text if messages is None else [{**m} for m in messages]
        for text, messages in zip(texts, conversations, strict=True)
    ]


def _completions(
    responses: list[str], conversations: Sequence[list[dict] | None]
) -> list[str | list[dict]]:
    return [
        text if messages is None else [{"role": "assistant", "content": text}]
        for text, messages in zip(responses, conversations, strict=True)
    ]


def _arguments(
    function: Callable, columns: dict[str, Callable[[], Any]], kind: str
) -> tuple[list[Any], dict[str, Any]]:
    """Returns positional and keyword arguments for a function."""
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        # A builtin without a signature.
        parameters = [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]
    # Compare the names of the function with those of the batch.
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    unknown = [name for name in required if name not in columns]
    known = [p.name for p in named if p.name in columns]
    # By position: without keywords in the signature, or with two unknown names.
    positional = any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters) or (
        len(unknown) == 2 == len(required)
    )
    if positional and not known and {"prompts", "responses"} <= columns.keys():
        return [columns["prompts"](), columns["responses"]()], {}
    if unknown or (positional and not known):
        asked = f"asks for {unknown}" if unknown else "takes prompts and responses by position"
        raise ValueError(
            f"The {kind} `{calling.name_of(function)}` {asked}, which the batch does not have. "
            f"Available: {sorted(columns)}. Add the columns to the records, give the arguments "
            "defaults, or take exactly two arguments (prompts, responses)."
        )
    # By keyword.
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [], {name: columns[name]() for name in (columns if takes_all else known)}


def _listed(result: Any) -> list:
    try:
        return list(result)
    except TypeError:
        return [result]


def _plain(value: Any) -> Any:
    """Returns a tensor as an array, and anything else as it is."""
    if not ops.is_tensor(value):
        return value
    if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
        # NumPy has no bfloat16.
        value = ops.cast(value, "float32")
    return ops.convert_to_numpy(value)


def _checked(result: Any, rows: int, function: Callable) -> np.ndarray:
    """Returns float32 `(batch,)`, NaN for None; raises a `ValueError` that names bad rows."""
    if result is None or isinstance(result, (str, bytes, Mapping, Set)):
        raise ValueError(
            f"The reward function `{calling.name_of(function)}` must return one number per "
            f"response. Expected {rows} in a list or an array, received {result!r} of type "
            f"{type(result).__name__}."
        )
    # Elements may be numbers, arrays or tensors of one element.
    values = [_plain(value) for value in _listed(result)]
    if len(values) != rows:
        raise ValueError(
            f"The reward function `{calling.name_of(function)}` must return one number per "
            f"response. Expected {rows}, received {len(values)}."
        )
    scores = np.full((rows,), np.nan, "float32")
    for row, value in enumerate(values):
        array = np.asarray(value)
        # Float, integer, unsigned or bool; anything else stays NaN and is reported.
        if array.size == 1 and array.dtype.kind in "fiub":
            # The sum makes a negative zero positive.
            scores[row] = float(array.reshape(())) + 0.0
    applies = np.array([value is not None for value in values])
    bad = np.flatnonzero(applies & ~np.isfinite(scores))
    if bad.size:
        shown = ", ".join(f"row {i}: {values[i]!r}" for i in bad[:5])
        raise ValueError(
            f"The reward function `{calling.name_of(function)}` must return finite numbers, or "
            f"None where it does not apply. {bad.size} of {rows} rows are neither: {shown}."
        )
    return scores
