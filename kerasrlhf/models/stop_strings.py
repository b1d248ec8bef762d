"""Strings that end a response, found in the compiled loop that samples tokens.

A string may begin and end inside of tokens. An automaton that reads characters notices it, and a
table says where each token takes the automaton from each of its states.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from kerasrlhf import tokens
from kerasrlhf.models import lm_adapter
from kerasrlhf.types import Sampler, Tensor

if TYPE_CHECKING:
    import keras
    from keras_hub.models import CausalLMPreprocessor

_made: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class StopStrings(NamedTuple):
    """Strings that end a response, and what each token adds to them.

    strings: tuple of str.
    pieces: list of str, the text that each token adds.
    table: int32 `(states * vocab,)`. Twice the state after a token, plus 1 if the token completes a
        string; by state and token.
    min_length: int. Tokens of a response that a string may end.
    """

    strings: tuple[str, ...]
    pieces: list[str]
    table: np.ndarray
    min_length: int = 1

    @classmethod
    def of(cls, causal_lm: keras.Model, sampler: Sampler) -> StopStrings:
        """Returns the stop strings of a sampler for the tokens of a model.

        Args:
            causal_lm: keras-hub `CausalLM`.
            sampler: `Sampler` with stop strings.

        Raises:
            ValueError: If the model has no tokenizer, or the tokenizer has no tokens whose texts
                make up a string, because it writes one of its characters as bytes.
        """
        if causal_lm.preprocessor is None:
            raise ValueError(
                "`stop_strings` need a tokenizer, and the model has no preprocessor. Attach one, "
                "or use `stop_token_ids`."
            )
        tokenizer = tokens.tokenizer_of(causal_lm.preprocessor)
        vocab = lm_adapter.vocabulary_size(causal_lm)
        # One table for a tokenizer, whichever trainer or length asks for it.
        known = _made.setdefault(tokenizer, {})
        key = sampler.stop_strings, vocab
        if key not in known:
            # Tokenizers of keras-hub are TensorFlow: run them now, also while a graph is traced.
            with tf.init_scope():
                pieces = tokens.pieces(causal_lm.preprocessor)
                _check(sampler.stop_strings, pieces, causal_lm.preprocessor)
            # Some models pad their vocabulary.
            pieces = (pieces + [""] * vocab)[:vocab]
            known[key] = pieces, transitions(sampler.stop_strings, pieces).ravel()
        pieces, table = known[key]
        return cls(sampler.stop_strings, pieces, table, sampler.min_length)

    def advance(self, state: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states after a token, and whether it completes a string; compiled.

        Args:
            state: int32 `(batch,)`. 0 before the first token.
            token: int32 `(batch,)`.
        """
        found = ops.take(ops.convert_to_tensor(self.table), state * len(self.pieces) + token)
        return found // 2, found % 2 == 1

    def cut(self, text: str, ids: list[int]) -> str | None:
        """Returns a response without the string that ended it and what follows; None if none did.

        Args:
            text: str. The whole text of the response.
            ids: list of int. Its tokens.
        """
        if not ids or len(ids) < self.min_length:
            return None
        # Only a string that the last token completes has ended the response.
        before = len(text) - len(self.pieces[ids[-1]])
        places = [text.find(s, max(before - len(s) + 1, 0)) for s in self.strings]
        found = [place for place in places if place >= 0]
        if not found:
            return None
        kept = text[: min(found)]
        if isinstance(text, tokens.SampledText) and len(kept) == before:
            # The other tokens are exactly the text.
            return tokens.SampledText(kept, ids[:-1], text.tokenizer)
        return kept


def finished(
    texts: list[str],
    rows: list[list[int]],
    preprocessor: CausalLMPreprocessor,
    stops: StopStrings | None,
) -> tuple[list[str], np.ndarray]:
    """Returns the texts of responses up to their stop strings, and which responses are whole.

    A response is whole if a stop string ended it, or a token that ends a turn or a text.

    Args:
        texts: list of str. The whole texts.
        rows: list of lists of int. Their tokens.
        preprocessor: keras-hub `CausalLMPreprocessor`.
        stops: `StopStrings` or None.
    """
    ends = tokens.stop_ids(preprocessor)
    whole = [bool(row) and row[-1] in ends for row in rows]
    if stops is not None:
        cut = [stops.cut(text, row) for text, row in zip(texts, rows, strict=True)]
        whole = [w or found is not None for w, found in zip(whole, cut, strict=True)]
        texts = [t if found is None else found for t, found in zip(texts, cut, strict=True)]
    return texts, np.array(whole, bool)


def transitions(strings: Sequence[str], pieces: Sequence[str]) -> np.ndarray:
    """Returns where each piece takes the automaton that looks for strings, from each state.

    Args:
        strings: list of str.
        pieces: list of str.

    Returns:
        Int32 `(states, pieces)`: twice the state after the piece, plus 1 if it completes a string.
        State 0 is the first one.

    Example:
        >>> transitions(["ab"], ["a", "b", "xabx"])[:2].tolist()  # 1: "a" was seen
        [[2, 0, 1], [2, 5, 1]]

    Reference:
        Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic search".
    """
    # A state is the longest end of the text that begins a string; 0 is the empty one.
    states = list(dict.fromkeys(s[:n] for n in range(max(map(len, strings)) + 1) for s in strings))
    number = {state: index for index, state in enumerate(states)}
    alphabet = {character for s in strings for character in s}
    step: dict[tuple[int, str], tuple[int, bool]] = {}
    for index, state in enumerate(states):
        for character in alphabet:
            text = state + character
            # The longest end of the text that is a state.
            after = next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)
            step[index, character] = after, text.endswith(tuple(strings))
    table = np.zeros((len(states), len(pieces)), "int32")
    for column, piece in enumerate(pieces):
        if not alphabet.isdisjoint(piece):
            table[:, column] = [_read(step, index, piece) for index in range(len(states))]
        elif not piece:
            # A special token adds no text.
            table[:, column] = 2 * np.arange(len(states))
    return table


def _read(step: dict[tuple[int, str], tuple[int, bool]], state: int, piece: str) -> int:
    found = False
    for character in piece:
        state, completes = step.get((state, character), (0, False))
        found = found or completes
    return 2 * state + found


def _check(strings: Sequence[str], pieces: list[str], preprocessor: Any) -> None:
    """Raises a `ValueError` for a string that is not made of the texts of tokens."""
    for string in strings:
        ids = tokens.tokenize(["." + string], preprocessor)[0]
        if not "".join(pieces[i] for i in ids).endswith(string):
            raise ValueError(
                f"{string!r} cannot be a stop string of this model: its tokenizer writes a "
                "character of it as several tokens, none of which is a text. Use another string, "
                "or `stop_token_ids`."
            )
