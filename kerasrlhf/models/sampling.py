"""Drawing responses: one loop over a key-value cache that yields everything PPO needs.

The decode step already has the hidden state that chose a token, so log-probabilities and values
of a response cost no second forward pass. All rows advance one column at a time; a row whose
prompt is longer than the shortest keeps its prompt tokens until its own response begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.models import lm_adapter
from kerasrlhf.types import Sampler, Samples

_BLOCK = 256
_IMPOSSIBLE = -1e30


def _pick(weights: Any, uniform: Any) -> Any:
    """Index `(batch,)` drawn in proportion to non-negative weights `(batch, entries)`.

    The cumulative distribution is inverted. Rounding may name an entry of weight zero; the
    heaviest entry stands in for it.
    """
    cumulative = ops.cumsum(weights, axis=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    index = ops.sum(ops.cast(cumulative <= target, "int32"), axis=-1)
    index = ops.minimum(index, weights.shape[-1] - 1)
    weight = ops.take_along_axis(weights, index[:, None], axis=-1)[:, 0]
    return ops.where(weight > 0, index, ops.cast(ops.argmax(weights, axis=-1), "int32"))


def _blocks(logits: Any) -> Any:
    """Logits `(batch, vocab)` as `(batch, blocks, _BLOCK)`, filled up with impossible entries."""
    batch, vocab = logits.shape
    blocks = -(-vocab // _BLOCK)
    logits = ops.pad(logits, [[0, 0], [0, blocks * _BLOCK - vocab]], constant_values=_IMPOSSIBLE)
    return ops.reshape(logits, (batch, blocks, _BLOCK))


def _categorical(blocks: Any, sums: Any, highest: Any, uniforms: Any) -> Any:
    """Index `(batch,)` in proportion to `exp(blocks)`, in two levels.

    First a block of entries by the blocks' sums, then an entry of that block, each with its own
    uniform number. It is exact, keeps no second tensor of the vocabulary's size, and needs two
    random numbers a row where the Gumbel trick needs one an entry.
    """
    block = _pick(sums, uniforms[:, 0])
    inside = ops.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _pick(ops.exp(inside - highest), uniforms[:, 1])


def _filtered(logits: Any, sampler: Sampler) -> Any:
    """Logits with everything outside `top_k` and `top_p` at a large negative number."""
    if sampler.top_k is not None and sampler.top_k < logits.shape[-1]:
        least = ops.top_k(logits, sampler.top_k)[0][:, -1:]
        logits = ops.where(logits < least, _IMPOSSIBLE, logits)
    if sampler.top_p is not None and sampler.top_p < 1:
        ordered = ops.flip(ops.sort(logits, axis=-1), axis=-1)
        probabilities = ops.softmax(ordered, axis=-1)
        before = ops.cumsum(probabilities, axis=-1) - probabilities
        kept = ops.sum(ops.cast(before < sampler.top_p, "int32"), axis=-1, keepdims=True)
        least = ops.take_along_axis(ordered, ops.maximum(kept, 1) - 1, axis=-1)
        logits = ops.where(logits < least, _IMPOSSIBLE, logits)
    return logits


def draw(logits: Any, uniforms: Any, sampler: Sampler) -> tuple[Any, Any]:
    """Draws one token a row.

    Args:
        logits: float32 `(batch, vocab)`.
        uniforms: float32 `(batch, 2)` in [0, 1).
        sampler: temperature and filters. At temperature 0 the likeliest token is taken.

    Returns:
        Token ids int32 `(batch,)` and their log-probabilities float32 `(batch,)` under the
        model's distribution at the sampler's temperature (N10), before any filter.
    """
    scaled = logits / (sampler.temperature or 1.0)
    highest = ops.max(scaled, axis=-1, keepdims=True)
    blocks = _blocks(scaled)
    sums = ops.sum(ops.exp(blocks - highest[..., None]), axis=-1)
    normaliser = ops.log(ops.sum(sums, axis=-1))
    if sampler.temperature == 0:
        token = ops.cast(ops.argmax(scaled, axis=-1), "int32")
    else:
        if not sampler.trainable:
            blocks = _blocks(_filtered(scaled, sampler))
            sums = ops.sum(ops.exp(blocks - highest[..., None]), axis=-1)
        token = _categorical(blocks, sums, highest, uniforms)
    chosen = ops.take_along_axis(scaled - highest, token[:, None], axis=-1)[:, 0]
    return token, chosen - normaliser


def sample(
    causal_lm: Any,
    token_ids: Any,
    padding_mask: Any,
    uniforms: Any,
    sampler: Sampler,
    stop_token_ids: tuple[int, ...] = (),
    value_head: Callable | None = None,
) -> Samples:
    """Draws a response to every prompt.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32 `(batch, prompt)`, right-padded, static shape.
        padding_mask: bool `(batch, prompt)`, at least one true position a row.
        uniforms: float32 `(batch, sampler.length, 2)`; with them the draw is a pure function.
        sampler: how to draw.
        stop_token_ids: ids that end a response.
        value_head: hidden states `(batch, width)` to values `(batch,)`, or None for zeros.

    Returns:
        `Samples` of `length = prompt + sampler.length` columns. Every row that does not meet a
        stop token gets its full number of new tokens, however long its prompt is.
    """
    batch, columns = token_ids.shape
    length = columns + sampler.length
    prompt_lengths = ops.sum(ops.cast(padding_mask, "int32"), axis=-1)
    last = prompt_lengths + sampler.length
    pad = lm_adapter.pad_token_id(causal_lm)
    prompt = ops.where(padding_mask, ops.cast(token_ids, "int32"), pad)
    tokens = ops.pad(prompt, [[0, 0], [0, sampler.length]], constant_values=pad)

    def choose(position, logits, hidden, state):
        tokens, logprobs, values, counts, ended = state
        own = position - prompt_lengths
        active = ops.logical_and(ops.logical_and(own >= 0, position < last), ~ended)
        index = ops.clip(own, 0, sampler.length - 1)
        uniform = ops.take_along_axis(uniforms, index[:, None, None], axis=1)[:, 0]
        drawn, logprob = draw(logits, uniform, sampler)
        standing = _column(tokens, position)
        token = ops.where(active, drawn, standing)
        tokens = _put(tokens, position, token)
        logprobs = _put(logprobs, position, ops.where(active, logprob, 0.0))
        if value_head is not None:
            values = _put(values, position, ops.where(active, value_head(hidden), 0.0))
        counts = counts + ops.cast(active, "int32")
        stops = ops.zeros_like(ended)
        for stop in stop_token_ids:
            stops = ops.logical_or(stops, token == stop)
        stops = ops.logical_and(ops.logical_and(active, stops), counts >= sampler.min_length)
        return token, (tokens, logprobs, values, counts, ops.logical_or(ended, stops))

    head = lm_adapter.head(causal_lm)
    cache = lm_adapter.empty_cache(causal_lm, batch, length)
    _, hidden, cache = lm_adapter.step(causal_lm, prompt, cache, 0)
    position = ops.min(prompt_lengths)
    hidden = _column(hidden, position - 1)
    zeros = ops.zeros((batch, length), "float32")
    state = (tokens, zeros, zeros, ops.zeros((batch,), "int32"), ops.zeros((batch,), "bool"))
    token, state = choose(position, head(hidden[:, None])[:, 0], hidden, state)

    def unfinished(position, token, cache, state):
        return ops.any(ops.logical_and(position + 1 < last, ~state[-1]))

    def advance(position, token, cache, state):
        logits, hidden, cache = lm_adapter.step(causal_lm, token[:, None], cache, position)
        token, state = choose(position + 1, logits[:, 0], hidden[:, 0], state)
        return position + 1, token, cache, state

    *_, state = ops.while_loop(unfinished, advance, (position, token, cache, state))
    tokens, logprobs, values, counts, ended = state
    return Samples(
        token_ids=tokens,
        padding_mask=masking.response_mask(0 * prompt_lengths, prompt_lengths + counts, length),
        response_mask=masking.response_mask(prompt_lengths, counts, length),
        prompt_lengths=prompt_lengths,
        ended=ended,
        logprobs=logprobs,
        values=values,
    )


def _column(x: Any, position: Any) -> Any:
    # Not `ops.slice`: outside the loop XLA would take the position for a constant, and compile
    # anew for every other length of the shortest prompt.
    return ops.take(x, ops.reshape(position, (1,)), axis=1)[:, 0]


def _put(x: Any, position: Any, column: Any) -> Any:
    here = ops.equal(ops.arange(x.shape[1], dtype="int32"), position)
    return ops.where(here[None], column[:, None], x)
