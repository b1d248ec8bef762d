"""From responses to one number each: reward models, Python functions, and the rules behind them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from kerasrlhf import tokens
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.scorer import Scorer, same_tokenizer
from kerasrlhf.types import Samples


class Episodes(NamedTuple):
    """The texts of a scored batch, for reward functions and for people.

    prompts, responses: lists of strings, or None where the model has no tokenizer.
    columns: dict of the other columns of the records, each a list.
    """

    prompts: list[str] | None
    responses: list[str] | None
    columns: dict[str, list]


def read_episodes(samples: Samples, batch: dict, preprocessor: Any) -> Episodes:
    """The texts of `samples`, and what the prompt batch carried along.

    Args:
        samples: the drawn responses.
        batch: a prompt batch; `prompt` (strings) and `record` (JSON) are used where present.
        preprocessor: the actor's, or None.
    """
    records = [json.loads(r) for r in _strings(batch.get("record", ()))]
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    prompts = _strings(batch["prompt"]) if "prompt" in batch else None
    responses = None
    if preprocessor is not None:
        ids = np.asarray(samples.token_ids)
        if prompts is None:
            before = np.asarray(samples.padding_mask) & ~np.asarray(samples.response_mask)
            prompts = tokens.detokenize(tokens.masked_rows(ids, before), preprocessor)
        rows = tokens.masked_rows(ids, samples.response_mask)
        responses = tokens.detokenize(rows, preprocessor)
    return Episodes(prompts, responses, columns)


def _strings(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(values).tolist()]


def shares_tokens(reward: Scorer, causal_lm: Any) -> bool:
    """Whether a reward model reads the token ids of `causal_lm` as they are (M12).

    With another tokenizer, or the same tokens under other ids, it gets the texts.

    Raises:
        ValueError: it has no tokenizer of its own and another vocabulary, or it has another
            tokenizer and gives scores per token.
    """
    ours = getattr(causal_lm.preprocessor, "tokenizer", None)
    theirs = getattr(reward.preprocessor, "tokenizer", None)
    if ours is None or theirs is None:
        sizes = lm_adapter.vocabulary_size(causal_lm), reward.vocabulary_size
        if sizes[0] > sizes[1]:
            raise ValueError(
                "Without tokenizers the reward model reads the actor's token ids, so both need "
                f"one vocabulary. Received an actor with {sizes[0]} entries and a reward model "
                f"with {sizes[1]}. Give both their preprocessors to score through text."
            )
        return True
    shared = same_tokenizer(ours, theirs)
    if reward.is_per_token and not shared:
        raise ValueError(
            "A process reward model scores the actor's own tokens, so both need one tokenizer. "
            f"Received a {type(theirs).__name__} beside the actor's {type(ours).__name__}, with "
            "another vocabulary. Train it from a model of the actor's family."
        )
    return shared


def call_reward(function: Callable, episodes: Episodes, samples: Samples) -> np.ndarray:
    """Calls a reward function and checks what it returns.

    A function is called by keyword with what its signature names: `prompts`, `responses`
    (`completions` is the same list), `prompt_ids`, `response_ids` (`completion_ids`), and the
    other columns of the records; with all of them when it takes `**kwargs`. When its names are
    others it is called as `function(prompts, responses)`.

    Returns:
        Float32 `(batch,)`.

    Raises:
        ValueError: an unknown required argument; a result that is not one finite number a row.
    """
    columns = _columns(episodes, samples)
    names, by_keyword, takes_all = _signature(function, columns)
    if not by_keyword:
        return _checked(function(columns["prompts"](), columns["responses"]()), samples, function)
    wanted = columns if takes_all else names
    result = function(**{name: columns[name]() for name in wanted if name in columns})
    return _checked(result, samples, function)


def _columns(episodes: Episodes, samples: Samples) -> dict[str, Callable]:
    """Every column by name, made only when asked for."""
    ids, inside = np.asarray(samples.token_ids), np.asarray(samples.response_mask)
    before = np.asarray(samples.padding_mask) & ~inside

    def rows(mask):
        return lambda: tokens.masked_rows(ids, mask)

    columns = {name: (lambda c=column: c) for name, column in episodes.columns.items()}
    columns |= dict.fromkeys(("response_ids", "completion_ids"), rows(inside))
    columns["prompt_ids"] = rows(before)
    if episodes.prompts is not None:
        columns["prompts"] = lambda: episodes.prompts
    if episodes.responses is not None:
        columns |= dict.fromkeys(("responses", "completions"), lambda: episodes.responses)
    return columns


def _signature(function: Callable, columns: dict) -> tuple[list[str], bool, bool]:
    """Names to pass, whether to pass by keyword, and whether all columns are taken."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], False, False
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    unknown = [name for name in required if name not in columns]
    known = [p.name for p in named if p.name in columns]
    positional = any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters) or (
        len(unknown) == 2 == len(required)
    )
    if unknown or (positional and not known):
        if positional and not known and "responses" in columns:
            return [], False, False
        raise ValueError(
            f"The reward function {_name(function)} asks for {unknown}, which the batch does not "
            f"have. Available: {sorted(columns)}. Add the columns to the records, give the "
            "arguments defaults, or take exactly two arguments (prompts, responses)."
        )
    return known, True, takes_all


def _name(function: Callable) -> str:
    return f"`{getattr(function, '__name__', type(function).__name__)}`"


def _checked(result: Any, samples: Samples, function: Callable) -> np.ndarray:
    """The result as float32 `(batch,)`, or a `ValueError` that names the bad rows."""
    rows = int(samples.token_ids.shape[0])
    try:
        values = list(result)
    except TypeError:
        values = [result]
    values = [ops.convert_to_numpy(v) if ops.is_tensor(v) else v for v in values]
    if len(values) != rows:
        raise ValueError(
            f"The reward function {_name(function)} must return one number per response. Expected "
            f"{rows}, received {len(values)}."
        )
    scores = np.full((rows,), np.nan, "float32")
    for row, value in enumerate(values):
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "fiub":
            scores[row] = float(array.reshape(()))
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        shown = ", ".join(f"row {i}: {values[i]!r}" for i in bad[:5])
        raise ValueError(
            f"The reward function {_name(function)} must return finite numbers. "
            f"{bad.size} of {rows} rows are not: {shown}."
        )
    return scores
