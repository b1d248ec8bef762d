"""Sampling responses: one loop over a cache that returns everything PPO needs.

The decode step already has the hidden state that a token was chosen in, so log-probabilities and
values of a response cost no second forward pass. All rows advance one column at a time; a row
whose prompt is longer than the shortest keeps its prompt tokens until its own response starts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from kerasrlhf.functional import masking
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.stop_strings import StopStrings
from kerasrlhf.models.windows import columns_of_rows
from kerasrlhf.types import Responses, Sampler, Tensor

_BLOCK = 256
_IMPOSSIBLE = -1e30


def _pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Samples an index `(batch,)` in proportion to non-negative weights `(batch, entries)`.

    The cumulative distribution is inverted. If rounding selects an entry of weight zero, the
    heaviest entry replaces it.
    """
    cumulative = ops.cumsum(weights, axis=-1)
    # Scale to the total: the weights are not normalized.
    target = uniform[:, None] * cumulative[:, -1:]
    index = ops.sum(ops.cast(cumulative <= target, "int32"), axis=-1)
    # If rounding brings the target up to the total, no entry is above it.
    index = ops.minimum(index, weights.shape[-1] - 1)
    weight = columns_of_rows(weights, index)
    return ops.where(weight > 0, index, ops.cast(ops.argmax(weights, axis=-1), "int32"))


def _blocks(logits: Tensor) -> Tensor:
    """Reshapes logits `(batch, vocab)` to `(batch, blocks, _BLOCK)`, with impossible padding."""
    batch, vocab = logits.shape
    blocks = -(-vocab // _BLOCK)
    logits = ops.pad(logits, [[0, 0], [0, blocks * _BLOCK - vocab]], constant_values=_IMPOSSIBLE)
    return ops.reshape(logits, (batch, blocks, _BLOCK))


def _categorical(blocks: Tensor, sums: Tensor, highest: Tensor, uniforms: Tensor) -> Tensor:
    """Samples an index `(batch,)` in proportion to `exp(blocks)`, in two levels.

    Samples a block of entries by the blocks' sums, then an entry of that block, each with its own
    uniform number. This is exact, stores no second tensor of the vocabulary's size, and needs two
    random numbers per row where the Gumbel trick needs one per entry.
    """
    block = _pick(sums, uniforms[:, 0])
    # The entries of one block, `(batch, _BLOCK)`.
    inside = columns_of_rows(blocks, block)
    return block * _BLOCK + _pick(ops.exp(inside - highest), uniforms[:, 1])


def _filtered(logits: Tensor, sampler: Sampler) -> Tensor:
    """Returns logits with entries outside `top_k` and `top_p` at a large negative number."""
    if sampler.top_k is not None and sampler.top_k < logits.shape[-1]:
        least = ops.top_k(logits, sampler.top_k)[0][:, -1:]
        logits = ops.where(logits < least, _IMPOSSIBLE, logits)
    if sampler.top_p is not None and sampler.top_p < 1:
        ordered = ops.flip(ops.sort(logits, axis=-1), axis=-1)
        probabilities = ops.softmax(ordered, axis=-1)
        # An entry is kept if those before it sum to less than `top_p`; the first one always is.
        before = ops.cumsum(probabilities, axis=-1) - probabilities
        kept = ops.sum(ops.cast(before < sampler.top_p, "int32"), axis=-1, keepdims=True)
        least = columns_of_rows(ordered, ops.maximum(kept, 1) - 1)
        logits = ops.where(logits < least, _IMPOSSIBLE, logits)
    return logits


def draw(
    logits: Tensor, uniforms: Tensor, sampler: Sampler, temperature: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Samples one token per row.

    Args:
        logits: float32, `(batch, vocab)`.
        uniforms: float32, `(batch, 2)`, in [0, 1).
        sampler: `Sampler`. Its filters and epsilon are used, and whether its temperature is 0:
            then the likeliest token is chosen.
        temperature: float or float32 scalar, above 0. Logits are divided by it. Ignored where
            the likeliest token is chosen.

    Returns:
        Token ids int32 `(batch,)` and their log-probabilities float32 `(batch,)` under the
        model's distribution at the temperature (N10), before any filter and any mixing. Where the
        likeliest token is chosen they are those at temperature 1.
    """
    is_greedy = sampler.temperature == 0
    scaled = logits if is_greedy else logits / temperature
    highest = ops.max(scaled, axis=-1, keepdims=True)
    # The sums of blocks serve twice: for the normalizer, and to sample a block.
    blocks = _blocks(scaled)
    sums = ops.sum(ops.exp(blocks - highest[..., None]), axis=-1)
    normalizer = ops.log(ops.sum(sums, axis=-1))
    if is_greedy:
        token = ops.cast(ops.argmax(scaled, axis=-1), "int32")
    else:
        # Filters change the sampled distribution, and not the normalizer above (N4).
        if not sampler.matches_policy:
            blocks = _blocks(_filtered(scaled, sampler))
            sums = ops.sum(ops.exp(blocks - highest[..., None]), axis=-1)
        token = _mixed(blocks, sums, highest, uniforms, sampler.epsilon, logits.shape[-1])
    # Log-probabilities of the unfiltered policy at the temperature (N10).
    chosen = columns_of_rows(scaled - highest, token)
    return token, chosen - normalizer


def _mixed(
    blocks: Tensor, sums: Tensor, highest: Tensor, uniforms: Tensor, epsilon: float, vocab: int
) -> Tensor:
    """Samples by `_categorical` or, with probability `epsilon`, uniformly from the vocabulary."""
    if epsilon == 0:
        return _categorical(blocks, sums, highest, uniforms)
    # The first number decides; rescaled to the other side of `epsilon`, it is uniform again.
    first, second = uniforms[:, 0], uniforms[:, 1]
    rest = ops.stack([ops.maximum(first - epsilon, 0.0) / (1.0 - epsilon), second], axis=1)
    anything = ops.minimum(ops.cast(second * vocab, "int32"), vocab - 1)
    return ops.where(first < epsilon, anything, _categorical(blocks, sums, highest, rest))


def mixture_logprobs(logprobs: Tensor, epsilon: float, vocab: int) -> Tensor:
    """Computes `log((1 - epsilon) p + epsilon / vocab)` from `log p`.

    Args:
        logprobs: float32, any shape, in nats.
        epsilon: float in [0, 1). Probability of a uniformly sampled token.
        vocab: int. Entries of the vocabulary.

    Returns:
        Float32 of the same shape, in nats.

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
    """The loop's state: fields of `Responses`, and further ones.

    counts: int32 `(batch,)`. Tokens that were sampled.
    text_state: int32 `(batch,)`. State of `StopStrings`.
    """

    token_ids: Tensor
    logprobs: Tensor
    behavior_logprobs: Tensor
    values: Tensor
    counts: Tensor
    ended: Tensor
    text_state: Tensor


class Ending(NamedTuple):
    """What ends the responses of a sampler, in the tokens of a model.

    token_ids: tuple of int. Ids that end a response.
    strings: `StopStrings` that end a response too, or None.
    pad_id: int. Written after the end.
    """

    token_ids: tuple[int, ...] = ()
    strings: StopStrings | None = None
    pad_id: int = 0


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Everything but the model that determines the next token of every row.

    prompt_lengths: int32, `(batch,)`.
    uniforms, sampler, temperature, ending, value_head: as `sample` takes them.
    """

    prompt_lengths: Tensor
    uniforms: Tensor
    sampler: Sampler
    temperature: Tensor | float
    ending: Ending
    value_head: Callable | None

    def column(
        self, position: Tensor, logits: Tensor, hidden: Tensor, state: _State
    ) -> tuple[Tensor, _State]:
        """Returns the tokens `(batch,)` at `position`, sampled or of the prompt, and the state."""
        # Index of the column in each row's response; negative inside a longer prompt.
        own = position - self.prompt_lengths
        active = ops.logical_and(own >= 0, own < self.sampler.length)
        active = ops.logical_and(active, ~state.ended)
        # A token's uniforms depend on its index in the response, not on the padding before it.
        index = ops.clip(own, 0, self.sampler.length - 1)
        uniforms = columns_of_rows(self.uniforms, index)
        sampled, logprob = draw(logits, uniforms, self.sampler, self.temperature)
        # Other rows keep what they have: a token of the prompt, or padding after the end.
        token = ops.where(active, sampled, _column(state.token_ids, position))
        # The value of a token is that of the state it is chosen in, which is `hidden` (N16).
        values = state.values
        if self.value_head is not None:
            values = _put(values, position, ops.where(active, self.value_head(hidden), 0.0))
        behaviors = state.behavior_logprobs
        if self.sampler.epsilon > 0:
            # The mixture's probability, which importance weights divide by.
            behavior = mixture_logprobs(logprob, self.sampler.epsilon, logits.shape[-1])
            behaviors = _put(behaviors, position, ops.where(active, behavior, 0.0))
        counts = state.counts + ops.cast(active, "int32")
        text_state, stops = self._stops(token, state.text_state)
        # A stop counts only if it was sampled, and from `min_length` on (N14).
        stops = ops.logical_and(ops.logical_and(active, stops), counts >= self.sampler.min_length)
        return token, _State(
            token_ids=_put(state.token_ids, position, token),
            logprobs=_put(state.logprobs, position, ops.where(active, logprob, 0.0)),
            behavior_logprobs=behaviors,
            values=values,
            counts=counts,
            ended=ops.logical_or(state.ended, stops),
            # Tokens of a prompt are not part of a stop string.
            text_state=ops.where(active, text_state, state.text_state),
        )

    def _stops(self, token: Tensor, text_state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states of stop strings after a token, and whether the token is a stop."""
        stops = ops.zeros_like(token, "bool")
        if self.ending.strings is not None:
            text_state, stops = self.ending.strings.advance(text_state, token)
        for stop in self.ending.token_ids:
            stops = ops.logical_or(stops, token == stop)
        return text_state, stops

    def unfinished(self, position: Tensor, state: _State) -> Tensor:
        """Returns whether some row has a token to sample after `position`."""
        last = self.prompt_lengths + self.sampler.length
        return ops.any(ops.logical_and(position + 1 < last, ~state.ended))


def sample(
    causal_lm: keras.Model,
    token_ids: Tensor,
    padding_mask: Tensor,
    uniforms: Tensor,
    sampler: Sampler,
    temperature: Tensor | float,
    ending: Ending,
    value_head: Callable | None = None,
) -> Responses:
    """Samples one or several responses to every prompt.

    Args:
        causal_lm: keras-hub `CausalLM`.
        token_ids: int32, `(batch, prompt)`, right-padded, static shape.
        padding_mask: bool, `(batch, prompt)`, with at least one true position per row.
        uniforms: float32, `(batch * group, sampler.length, 2)`, in [0, 1); they make sampling a
            pure function. A group of responses to one prompt shares the prompt's forward pass;
            their rows are adjacent.
        sampler: `Sampler`. Its own temperature only decides, by being 0, whether the likeliest
            token is chosen.
        temperature: as in `draw`.
        ending: `Ending` of the sampler.
        value_head: callable from hidden states `(batch, width)` to values `(batch,)`. Defaults to
            None, values of zero.

    Returns:
        `Responses` of `length = prompt + sampler.length` columns. Every row without a stop token
        gets its full number of new tokens, however long its prompt is. Masks come from
        `padding_mask` and from the sampled tokens; padding ids are ignored (N2).
    """
    # Rows of a group are adjacent; the prompts themselves are not repeated yet.
    group = uniforms.shape[0] // token_ids.shape[0]
    lengths = ops.repeat(ops.sum(ops.cast(padding_mask, "int32"), axis=-1), group, axis=0)
    choice = _Choice(lengths, uniforms, sampler, temperature, ending, value_head)
    # The mask decides what is padding, whatever ids the caller's padding has (N2).
    prompt = ops.where(padding_mask, ops.cast(token_ids, "int32"), ending.pad_id)
    position, token, cache, state = _begin(causal_lm, prompt, choice)

    def unfinished(position: Tensor, token: Tensor, cache: Any, state: _State) -> Tensor:
        return choice.unfinished(position, state)

    def advance(position: Tensor, token: Tensor, cache: Any, state: _State) -> tuple:
        # The state of the token at `position` chooses the token at `position + 1`.
        logits, hidden, cache = lm_adapter.step(causal_lm, token[:, None], cache, position)
        token, state = choice.column(position + 1, logits[:, 0], hidden[:, 0], state)
        return position + 1, token, cache, state

    *_, state = ops.while_loop(unfinished, advance, (position, token, cache, state))
    # Rows have different numbers of tokens; masks come from lengths alone (N2).
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


def _begin(
    causal_lm: keras.Model, prompt: Tensor, choice: _Choice
) -> tuple[Tensor, Tensor, Any, _State]:
    """Runs the prompts and chooses the column after the shortest prompt for every row."""
    prompts, columns = prompt.shape
    rows, length = choice.uniforms.shape[0], columns + choice.sampler.length
    # Padding of shorter prompts enters the cache too, and later columns overwrite it.
    cache = lm_adapter.empty_cache(causal_lm, prompts, length)
    _, hidden, cache = lm_adapter.step(causal_lm, prompt, cache, 0)
    # Longer prompts are processed again from here on, with their own tokens.
    position = ops.min(choice.prompt_lengths)
    # The projection to the vocabulary is expensive: one column is projected, not the whole prompt.
    hidden = _column(hidden, position - 1)
    logits = lm_adapter.head(causal_lm)(hidden[:, None])[:, 0]
    # Each prompt was processed once; its group shares cache, state and logits.
    if rows != prompts:
        cache, hidden, logits, prompt = tf.nest.map_structure(
            lambda x: ops.repeat(x, rows // prompts, axis=0), (cache, hidden, logits, prompt)
        )
    zeros = ops.zeros((rows, length), "float32")
    state = _State(
        token_ids=ops.pad(
            prompt, [[0, 0], [0, choice.sampler.length]], constant_values=choice.ending.pad_id
        ),
        logprobs=zeros,
        behavior_logprobs=zeros,
        values=zeros,
        counts=ops.zeros((rows,), "int32"),
        ended=ops.zeros((rows,), "bool"),
        text_state=ops.zeros((rows,), "int32"),
    )
    token, state = choice.column(position, logits, hidden, state)
    return position, token, cache, state


def _column(x: Tensor, position: Tensor) -> Tensor:
    # Not `ops.slice`: outside the loop XLA would treat the position as a constant, and compile
    # again for every other length of the shortest prompt.
    return ops.take(x, ops.reshape(position, (1,)), axis=1)[:, 0]


def _put(x: Tensor, position: Tensor, column: Tensor) -> Tensor:
    here = ops.equal(ops.arange(x.shape[1], dtype="int32"), position)
    return ops.where(here[None], column[:, None], x)
