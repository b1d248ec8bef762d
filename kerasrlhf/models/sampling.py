"""Drawing responses: one loop over a cache that yields everything PPO needs.

The decode step already has the hidden state that chose a token, so log-probabilities and values
of a response cost no second forward pass. All rows advance one column at a time; a row whose
prompt is longer than the shortest keeps its prompt tokens until its own response begins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.models import lm_adapter
from kerasrlhf.types import Responses, Sampler

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


def draw(logits: Any, uniforms: Any, sampler: Sampler, temperature: Any = None) -> tuple[Any, Any]:
    """Draws one token a row.

    Args:
        logits: float32 `(batch, vocab)`.
        uniforms: float32 `(batch, 2)` in [0, 1).
        sampler: temperature, filters and epsilon. At temperature 0 the likeliest token is taken.
        temperature: scalar tensor that takes the place of the sampler's, or None.

    Returns:
        Token ids int32 `(batch,)` and their log-probabilities float32 `(batch,)` under the
        model's distribution at the temperature (N10), before any filter and any mixing.
    """
    scaled = logits / ((sampler.temperature or 1.0) if temperature is None else temperature)
    highest = ops.max(scaled, axis=-1, keepdims=True)
    blocks = _blocks(scaled)
    sums = ops.sum(ops.exp(blocks - highest[..., None]), axis=-1)
    normalizer = ops.log(ops.sum(sums, axis=-1))
    if sampler.temperature == 0:
        token = ops.cast(ops.argmax(scaled, axis=-1), "int32")
    else:
        if not sampler.matches_policy:
            blocks = _blocks(_filtered(scaled, sampler))
            sums = ops.sum(ops.exp(blocks - highest[..., None]), axis=-1)
        token = _mixed(blocks, sums, highest, uniforms, sampler.epsilon, logits.shape[-1])
    chosen = ops.take_along_axis(scaled - highest, token[:, None], axis=-1)[:, 0]
    return token, chosen - normalizer


def _mixed(blocks, sums, highest, uniforms, epsilon, vocab):
    """An index as `_categorical` draws it or, `epsilon` of the time, any of the vocabulary."""
    if epsilon == 0:
        return _categorical(blocks, sums, highest, uniforms)
    # What is left of the first number, once it has decided, is uniform again.
    first, second = uniforms[:, 0], uniforms[:, 1]
    rest = ops.stack([ops.maximum(first - epsilon, 0.0) / (1.0 - epsilon), second], axis=1)
    anything = ops.minimum(ops.cast(second * vocab, "int32"), vocab - 1)
    return ops.where(first < epsilon, anything, _categorical(blocks, sums, highest, rest))


def mixture_logprobs(logprobs: Any, epsilon: float, vocab: int) -> Any:
    """`log((1 - epsilon) p + epsilon / vocab)` from `log p`; any shape, in nats.

    Example:
        >>> import math
        >>> mixed = mixture_logprobs(ops.convert_to_tensor([-math.inf]), epsilon=0.5, vocab=4)
        >>> round(math.exp(float(mixed[0])), 4)
        0.125
    """
    if epsilon == 0:
        return logprobs
    return ops.logaddexp(logprobs + math.log1p(-epsilon), math.log(epsilon / vocab))


class _State(NamedTuple):
    """What the loop writes: the fields of `Responses`, and how many tokens a row has drawn."""

    token_ids: Any
    logprobs: Any
    behavior_logprobs: Any
    values: Any
    counts: Any
    ended: Any


@dataclasses.dataclass(frozen=True)
class _Choice:
    """What decides the next token of every row, apart from the model.

    prompt_lengths: int32 `(batch,)`.
    uniforms, sampler, stop_token_ids, value_head, temperature: as `sample` takes them.
    """

    prompt_lengths: Any
    uniforms: Any
    sampler: Sampler
    stop_token_ids: tuple[int, ...]
    value_head: Callable | None
    temperature: Any

    def column(self, position, logits, hidden, state):
        """The tokens `(batch,)` at `position`, drawn or standing there already, and the state."""
        own = position - self.prompt_lengths
        active = ops.logical_and(own >= 0, own < self.sampler.length)
        active = ops.logical_and(active, ~state.ended)
        index = ops.clip(own, 0, self.sampler.length - 1)
        uniforms = ops.take_along_axis(self.uniforms, index[:, None, None], axis=1)[:, 0]
        drawn, logprob = draw(logits, uniforms, self.sampler, self.temperature)
        token = ops.where(active, drawn, _column(state.token_ids, position))
        values = state.values
        if self.value_head is not None:
            values = _put(values, position, ops.where(active, self.value_head(hidden), 0.0))
        behaviors = state.behavior_logprobs
        if self.sampler.epsilon > 0:
            behavior = mixture_logprobs(logprob, self.sampler.epsilon, logits.shape[-1])
            behaviors = _put(behaviors, position, ops.where(active, behavior, 0.0))
        counts = state.counts + ops.cast(active, "int32")
        return token, _State(
            token_ids=_put(state.token_ids, position, token),
            logprobs=_put(state.logprobs, position, ops.where(active, logprob, 0.0)),
            behavior_logprobs=behaviors,
            values=values,
            counts=counts,
            ended=ops.logical_or(state.ended, self._stops(token, active, counts)),
        )

    def _stops(self, token, active, counts):
        stops = ops.zeros_like(active)
        for stop in self.stop_token_ids:
            stops = ops.logical_or(stops, token == stop)
        return ops.logical_and(ops.logical_and(active, stops), counts >= self.sampler.min_length)

    def unfinished(self, position, state):
        """Whether some row has a token to draw behind `position`."""
        last = self.prompt_lengths + self.sampler.length
        return ops.any(ops.logical_and(position + 1 < last, ~state.ended))


def sample(
    causal_lm: Any,
    token_ids: Any,
    padding_mask: Any,
    uniforms: Any,
    sampler: Sampler,
    stop_token_ids: tuple[int, ...] = (),
    value_head: Callable | None = None,
    temperature: Any = None,
) -> Responses:
    """Draws one or several responses to every prompt.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32 `(batch, prompt)`, right-padded, static shape.
        padding_mask: bool `(batch, prompt)`, at least one true position a row.
        uniforms: float32 `(batch * group, sampler.length, 2)`; with them the draw is a pure
            function. A group of responses to one prompt shares the prompt's forward pass; their
            rows stand next to each other.
        sampler: how to draw.
        stop_token_ids: ids that end a response.
        value_head: hidden states `(batch, width)` to values `(batch,)`, or None for zeros.
        temperature: float32 scalar in place of the sampler's, or None.

    Returns:
        `Responses` of `length = prompt + sampler.length` columns. Every row that does not meet a
        stop token gets its full number of new tokens, however long its prompt is. Masks come from
        `padding_mask` and from what was drawn; what fills a row up is never looked at (N2).
    """
    group = uniforms.shape[0] // token_ids.shape[0]
    lengths = ops.repeat(ops.sum(ops.cast(padding_mask, "int32"), axis=-1), group, axis=0)
    choice = _Choice(lengths, uniforms, sampler, stop_token_ids, value_head, temperature)
    pad = lm_adapter.pad_token_id(causal_lm)
    prompt = ops.where(padding_mask, ops.cast(token_ids, "int32"), pad)
    position, token, cache, state = _begin(causal_lm, prompt, choice, pad)

    def unfinished(position, token, cache, state):
        return choice.unfinished(position, state)

    def advance(position, token, cache, state):
        logits, hidden, cache = lm_adapter.step(causal_lm, token[:, None], cache, position)
        token, state = choice.column(position + 1, logits[:, 0], hidden[:, 0], state)
        return position + 1, token, cache, state

    *_, state = ops.while_loop(unfinished, advance, (position, token, cache, state))
    columns = state.token_ids.shape[1]
    return Responses(
        token_ids=state.token_ids,
        padding_mask=masking.response_mask(0 * lengths, lengths + state.counts, columns),
        response_mask=masking.response_mask(lengths, state.counts, columns),
        prompt_lengths=lengths,
        ended=state.ended,
        logprobs=state.logprobs,
        values=state.values,
        behavior_logprobs=state.behavior_logprobs if sampler.epsilon > 0 else state.logprobs,
    )


def _begin(causal_lm, prompt, choice, pad):
    """Reads the prompts once each and chooses the column behind the shortest for every row."""
    prompts, columns = prompt.shape
    rows, length = choice.uniforms.shape[0], columns + choice.sampler.length
    cache = lm_adapter.empty_cache(causal_lm, prompts, length)
    _, hidden, cache = lm_adapter.step(causal_lm, prompt, cache, 0)
    position = ops.min(choice.prompt_lengths)
    # The projection to the vocabulary is dear: one column is projected, not the whole prompt.
    hidden = _column(hidden, position - 1)
    logits = lm_adapter.head(causal_lm)(hidden[:, None])[:, 0]
    if rows != prompts:
        cache, hidden, logits, prompt = tf.nest.map_structure(
            lambda x: ops.repeat(x, rows // prompts, axis=0), (cache, hidden, logits, prompt)
        )
    zeros = ops.zeros((rows, length), "float32")
    state = _State(
        token_ids=ops.pad(prompt, [[0, 0], [0, choice.sampler.length]], constant_values=pad),
        logprobs=zeros,
        behavior_logprobs=zeros,
        values=zeros,
        counts=ops.zeros((rows,), "int32"),
        ended=ops.zeros((rows,), "bool"),
    )
    token, state = choice.column(position, logits, hidden, state)
    return position, token, cache, state


def _column(x: Any, position: Any) -> Any:
    # Not `ops.slice`: outside the loop XLA would take the position for a constant, and compile
    # anew for every other length of the shortest prompt.
    return ops.take(x, ops.reshape(position, (1,)), axis=1)[:, 0]


def _put(x: Any, position: Any, column: Any) -> Any:
    here = ops.equal(ops.arange(x.shape[1], dtype="int32"), position)
    return ops.where(here[None], column[:, None], x)
