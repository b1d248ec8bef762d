"""Responses of a language model to prompts: batching, padding and what ended."""

from __future__ import annotations

import functools
import itertools
import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import replica, tokens
from kerasrlhf.data import inputs, kinds
from kerasrlhf.data.limits import Limits
from kerasrlhf.models import sampling
from kerasrlhf.models.stop_strings import StopStrings, finished
from kerasrlhf.types import (
    Responses,
    Sampler,
    Tensor,
    masked_rows,
    require_constant_sampler,
    require_int,
    require_seed,
)


def generate(
    causal_lm: keras.Model,
    prompts: Any,
    sampler: Sampler | int,
    seed: int = 0,
    *,
    batch_size: int = 256,
    return_ended: bool = False,
    jit_compile: bool = True,
    template: str | Callable = "plain",
    parse_special: bool = False,
    limits: Limits | None = None,
    sample: Callable[..., Responses] | None = None,
    functions: dict | None = None,
) -> Any:
    """Samples responses to prompts with the compiled loop that training uses.

    Args:
        causal_lm: keras-hub `CausalLM`.
        prompts: a string or a list of messages, or a list of these; or a dict of `token_ids`
            and `padding_mask` `(batch, prompt)`, right-padded.
        sampler: `Sampler`, or an int for `Sampler(length)`. Filters and temperature 0 are allowed.
        seed: int, at least 0. Equal seeds and prompts have equal responses. Defaults to 0.
        batch_size: int, at least 1. Texts per batch; a dict is one batch. Defaults to 256.
        return_ended: bool. Whether to also return which texts ended with an end token of the
            tokenizer or a stop string; neither is part of the text. Defaults to False.
        jit_compile: bool. Whether to compile with XLA, once per shape and sampler. Prompts are
            padded to one of a few lengths, which keeps the number of shapes low. Defaults to True.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.
        parse_special: bool. Whether a special token that is written in a prompt, such as
            `<|im_end|>`, becomes that token. Defaults to False.
        limits: `Limits` of all networks that process the responses. Defaults to the model's own.
        sample: callable `(token_ids, padding_mask, uniforms, sampler, temperature)` that returns
            `Responses`. Defaults to sampling from `causal_lm` without values.
        functions: dict, filled with compiled functions that later calls with the same model and
            the same `sample` use again. Defaults to a new one.

    Returns:
        For texts and messages, the texts of the responses (one string for a single prompt),
        without prompt and special tokens; with `return_ended` a tuple of these and a bool array
        `(prompts,)`. For a dict, `Responses`.

    Raises:
        ValueError: If there are no prompts, a prompt is neither a string nor messages or is too
            long, `sampler` is not a `Sampler` with a constant temperature, or an argument is
            outside its range.
    """
    # Check everything before anything is compiled.
    sampler = _checked(sampler)
    require_int("batch_size", batch_size, minimum=1)
    require_seed(seed)
    limits = Limits.of([causal_lm.backbone], causal_lm.preprocessor) if limits is None else limits
    limits = limits._replace(sampled=sampler.length)
    if sample is None:
        sample = functools.partial(_sample, causal_lm, limits)
    compiled = _compiled(sample, sampler, jit_compile, {} if functions is None else functions)
    # Other random numbers than training with the same seed uses.
    stream = replica.stream(seed, "generate")

    def respond(token_ids: np.ndarray, padding_mask: np.ndarray, batch: int) -> Responses:
        limits.check_batch({"token_ids": token_ids, "padding_mask": padding_mask})
        # Every batch has its own numbers `(rows, sampler.length, 2)`.
        uniforms = replica.uniforms(stream, batch, len(token_ids), sampler.length)
        return compiled(
            ops.convert_to_tensor(token_ids), ops.convert_to_tensor(padding_mask), uniforms
        )

    if isinstance(prompts, dict):
        return respond(*_checked_batch(prompts), batch=0)
    preprocessor = causal_lm.preprocessor
    # A conversation is a list too: one prompt, not several.
    is_single = isinstance(prompts, str) or inputs.is_conversation(prompts)
    _, rows = inputs.encode_prompts(
        [prompts] if is_single else prompts, preprocessor, template, parse_special
    )
    batches = itertools.count()

    def respond_to_texts(rows: list[list[int]]) -> list[list[int]]:
        responses = respond(*padded_prompts(rows, limits), next(batches))
        return masked_rows(responses.token_ids, responses.response_mask)

    responses = replica.in_batches(respond_to_texts, rows, min(batch_size, len(rows)))
    # Some tokenizers show a leading blank only after other tokens.
    texts = tokens.detokenize(responses, preprocessor, after=rows)
    strings = ending(causal_lm, sampler, limits).strings
    texts, whole = finished(texts, responses, preprocessor, strings)
    answer = texts[0] if is_single else texts
    return (answer, whole) if return_ended else answer


def stop_token_ids(causal_lm: keras.Model, sampler: Sampler, limits: Limits) -> tuple[int, ...]:
    """Returns the ids that end a response under `sampler`.

    Args:
        causal_lm: keras-hub `CausalLM`.
        sampler: `Sampler`.
        limits: `Limits` that the sampler's own stop tokens have to be within.
    """
    if sampler.stop_token_ids == "auto":
        return tokens.stop_ids(causal_lm.preprocessor)
    ids = sampler.stop_token_ids or ()
    limits.check_ids(ids, name="`stop_token_ids`")
    return ids


def ending(causal_lm: keras.Model, sampler: Sampler, limits: Limits) -> sampling.Ending:
    """Returns what ends a response under `sampler`, read from the model's tokenizer.

    Args:
        causal_lm: keras-hub `CausalLM`.
        sampler: `Sampler`.
        limits: as in `stop_token_ids`.
    """
    return sampling.Ending(
        token_ids=stop_token_ids(causal_lm, sampler, limits),
        strings=StopStrings.of(causal_lm, sampler) if sampler.stop_strings else None,
        pad_id=tokens.pad_id(causal_lm.preprocessor),
    )


def ended(causal_lm: keras.Model, responses: list[list[int]]) -> np.ndarray:
    """Returns which responses end with a token that ends a turn or a text, bool `(rows,)`.

    Args:
        causal_lm: keras-hub `CausalLM`.
        responses: list of lists of token ids.
    """
    ends = tokens.stop_ids(causal_lm.preprocessor)
    return np.array([bool(row) and row[-1] in ends for row in responses])


def padded_prompts(rows: list[list[int]], limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of token ids to one of a few lengths.

    Args:
        rows: list of lists of token ids.
        limits: `Limits` with `sampled`, the tokens to sample after a row.

    Returns:
        Token ids int32 `(rows, length)` and their mask, bool.

    Raises:
        ValueError: If a prompt and its response do not fit the positions.
    """
    longest = max(map(len, rows))
    limits.check_length(longest)
    # Padding may fill the positions that sampling does not need.
    room = None if limits.positions is None else limits.positions - limits.sampled
    return tokens.padded(rows, tokens.padded_length(longest, room))


def _checked(sampler: Any) -> Sampler:
    if not isinstance(sampler, bool) and isinstance(sampler, numbers.Integral):
        sampler = Sampler(int(sampler))
    return require_constant_sampler(sampler)


def _checked_batch(prompts: dict) -> tuple[np.ndarray, np.ndarray]:
    if not {"token_ids", "padding_mask"} <= {*prompts}:
        raise ValueError(
            "A dict of prompts must have `token_ids` and `padding_mask`, as batches of "
            f"`rlhf.data.prompts`. Received: {sorted(prompts)}. Texts are passed as a "
            "string or a list of strings."
        )
    token_ids = np.asarray(prompts["token_ids"], "int32")
    padding_mask = np.asarray(prompts["padding_mask"], bool)
    kinds.check_right_padded(token_ids, padding_mask)
    return token_ids, padding_mask


def _sample(
    causal_lm: keras.Model,
    limits: Limits,
    token_ids: Tensor,
    padding_mask: Tensor,
    uniforms: Tensor,
    sampler: Sampler,
    temperature: float,
) -> Responses:
    return sampling.sample(
        causal_lm,
        token_ids,
        padding_mask,
        uniforms,
        sampler,
        temperature,
        ending(causal_lm, sampler, limits),
    )


def _compiled(sample: Callable, sampler: Sampler, jit_compile: bool, functions: dict) -> Callable:
    key = sampler, jit_compile
    temperature = sampler.temperature or 1.0  # greedy: log-probabilities at temperature 1

    def run(token_ids: Tensor, padding_mask: Tensor, uniforms: Tensor) -> Responses:
        return sample(token_ids, padding_mask, uniforms, sampler, temperature)

    if key not in functions:
        functions[key] = replica.compiled(run, jit_compile)
    return functions[key]
