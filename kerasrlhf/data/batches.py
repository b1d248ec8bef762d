"""The three kinds of data that RLHF trains on, as batched token ids of one static length.

All three accept the same sources: records in memory, a path, a `tf.data.Dataset` or the name of a
TFDS dataset, whose split "train" is read. `kerasrlhf.data.read` reads another split.
`kerasrlhf.data.records` lists the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kerasrlhf import special_tokens
from kerasrlhf.data import arrays, dialogue
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.encoding import Encoding, Texts
from kerasrlhf.data.loading import load
from kerasrlhf.data.records import Records
from kerasrlhf.data.rows import Rows
from kerasrlhf.data.sources import Source
from kerasrlhf.data.tokenized import Batching, TokenizedDataset
from kerasrlhf.types import require_int

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor


def demonstrations(
    source: Source,
    preprocessor: CausalLMPreprocessor,
    batch_size: int,
    *,
    max_length: int | None = None,
    whole_row: bool = False,
    all_turns: bool = False,
    end_token_id: int | str | None = "auto",
    shuffle: bool = True,
    seed: int = 0,
    drop_remainder: bool = False,
    template: Template = "plain",
    parse_special: bool = False,
    on_error: str = "raise",
    drop_longer_than: int | None = None,
    shard: tuple[int, int] | None = None,
) -> TokenizedDataset:
    """Loads responses to imitate, for supervised fine-tuning: `causal_lm.fit(demos)`.

    A row is start token, prompt, response, end token, padding (P3). Only predictions of response
    tokens, the end token included, have a weight (P9). Keras divides its default loss by all
    positions; for a loss in nats per response token compile the model with
    `keras.losses.SparseCategoricalCrossentropy(from_logits=True,
    reduction="mean_with_sample_weight")`.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns: records with `prompt` and `response`
            (or `completion`), or with `text` or `messages`; or strings, which are responses without
            a prompt. A response whose column `ended` is False was cut off and has no end token.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: int, at least 1. Rows per batch.
        max_length: int, at least 2, or None. Tokens per row at most. Longer rows lose the first
            words of their prompt, with a warning and a count in `.report`. Defaults to
            `preprocessor.sequence_length`.
        whole_row: bool. Whether prompt tokens are learned too. Defaults to False.
        all_turns: bool. Whether all turns of the assistant in a dialogue are learned, each with
            the end of turn that the template writes, and not only the last one. Defaults to False.
        end_token_id: int, `"auto"` or None. What ends a response. `"auto"` is the end of turn of
            the template if the vocabulary has it (`<|im_end|>` of `"chatml"`, or a special token
            that a callable writes at the end), otherwise the tokenizer's end token if the
            preprocessor adds it. An int names another token; None is none. Defaults to `"auto"`.
        shuffle: bool. Whether every pass has a different order, which is a function of `seed` and
            the number of the pass. Defaults to True.
        seed: int, at least 0. Defaults to 0.
        drop_remainder: bool. Whether a last batch of fewer rows is left out. Defaults to False.
        template: str or callable. How messages become a text, see `kerasrlhf.data.dialogue`.
            Defaults to `"plain"`.
        parse_special: bool. Whether a special token that is written in a record, such as
            `<|im_end|>`, becomes that token, for texts that a chat template has rendered already.
            What `template` writes is always parsed. Defaults to False: it is text like any other.
        on_error: `"raise"` or `"skip"`. `"raise"` raises an error for a row that cannot be used;
            `"skip"` leaves such rows out, with a warning and their numbers in `.report`. Defaults
            to `"raise"`.
        drop_longer_than: int, in tokens, at least 2, or None. Longer rows are left out and counted
            in `.report`, so that one of them does not make every batch long. Defaults to None,
            which keeps all.
        shard: tuple of int, `(index, count)`, or None. The batches of one of `count` workers that
            train together, counted from 0. In every pass the workers have different rows, all rows
            together and as many batches each, and their batches of one number are together a batch
            of `count * batch_size` rows without shards. Pass the other arguments alike on all
            workers. Defaults to None: one worker has all rows.

    Returns:
        A `TokenizedDataset` of `(x, y, sample_weight)`: `x` has `token_ids`, int32, and
        `padding_mask`, bool; `y`, int32, is the next token; `sample_weight` is float32; all are
        `(batch, length)`, with the longest row as length.

    Raises:
        ValueError: If the source, its columns, a text, or an argument cannot be used.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
        >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
        >>> records = [{"prompt": "aa", "response": "b"}]
        >>> demos = rlhf.data.demonstrations(records, preprocessor, batch_size=1)
        >>> x, y, sample_weight = next(demos.as_numpy_iterator())
        >>> x["token_ids"].tolist(), y.tolist(), sample_weight.tolist()
        ([[0, 1, 1, 2, 0]], [[1, 1, 2, 0, 0]], [[0.0, 0.0, 1.0, 1.0, 0.0]])
    """
    batching = Batching(batch_size, shuffle, seed, drop_remainder, shard)
    encoding = Encoding(
        preprocessor,
        max_length=max_length,
        end_token_id=end_token_id,
        template=template,
        parse_special=parse_special,
        on_error=on_error,
        drop_longer_than=drop_longer_than,
    )

    def read(records: Records) -> Texts:
        ended = columns_lib.ended(records)
        if not all_turns:
            prompts, responses = records_lib.demonstration_texts(records, template)
            return Texts(prompts, [responses], ended, {})
        # The prompt is what precedes the first reply; all later turns are in the ids.
        turns = records_lib.turn_texts(records, template)
        turn_end = dialogue.turn_end(template)
        prompts, ids, learned = rows_lib.encode_turns(
            turns, preprocessor, end_token_id, turn_end, ended[0]
        )
        return Texts(prompts, [ids], ended, {"learned": learned})

    def targets(rows: Rows, columns: dict[str, list]) -> tuple:
        x = arrays.padded(rows, rows.candidates[0], preprocessor)
        y, weight = _next_tokens(x, [0 if whole_row else len(ids) for ids in rows.prompt_ids])
        if all_turns and not whole_row:
            # Of all that follows the prompt, only the assistant's own words count.
            weight *= _learned(rows, columns["learned"], weight.shape)
        return x, y, weight

    return load(source, read, targets, encoding, batching)


def preferences(
    source: Source,
    preprocessor: CausalLMPreprocessor,
    batch_size: int,
    *,
    max_length: int | None = None,
    end_token_id: int | str | None = "auto",
    margin: str | None = "auto",
    shuffle: bool = True,
    seed: int = 0,
    drop_remainder: bool = False,
    template: Template = "plain",
    parse_special: bool = False,
    on_error: str = "raise",
    drop_longer_than: int | None = None,
    shard: tuple[int, int] | None = None,
) -> TokenizedDataset:
    """Loads pairs of responses of which the first is preferred, for reward models and DPO.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns: records with `chosen`, `rejected` and
            `prompt`; without `prompt` it is what the two have in common (see
            `kerasrlhf.data.records.preference_texts`). Or rankings: records with `prompt` and
            `responses`, best first, as many in every record. A column `ended` may hold a list of
            bools, one per response: False if it was cut off.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: int, at least 1. Pairs per batch.
        max_length: int or None. As in `demonstrations`; both responses keep the same prompt.
            Defaults to None.
        end_token_id: int, `"auto"` or None. As in `demonstrations`. Defaults to `"auto"`.
        margin: str or None. The column with the number by which the chosen score should exceed the
            other. `"auto"` is the column `margin` if there is one; None is none. Defaults to
            `"auto"`.
        shuffle: bool. As in `demonstrations`. Defaults to True.
        seed: int, at least 0. Defaults to 0.
        drop_remainder: bool. As in `demonstrations`. Defaults to False.
        template: str or callable. As in `demonstrations`. Defaults to `"plain"`.
        parse_special: bool. As in `demonstrations`. Defaults to False.
        on_error: `"raise"` or `"skip"`. As in `demonstrations`. Defaults to `"raise"`.
        drop_longer_than: int or None. As in `demonstrations`. Defaults to None.
        shard: tuple of int or None. As in `demonstrations`. Defaults to None.

    Returns:
        A `TokenizedDataset` of `(x, y)`: `x` has `token_ids`, int32, `padding_mask`, bool, and
        `response_mask`, bool, true on response tokens, the end token included; all are
        `(batch, 2, length)` and candidate 0 is the chosen one, or `(batch, candidates, length)`,
        best first. `y`, `(batch,)`, is the margin, float32, or without margins 0, int32.

    Raises:
        ValueError: If the source, its columns, a text, or an argument cannot be used.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
        >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
        >>> records = [{"prompt": "a", "chosen": "ba", "rejected": "b"}]
        >>> pairs = rlhf.data.preferences(records, preprocessor, batch_size=1)
        >>> x, y = next(pairs.as_numpy_iterator())
        >>> x["token_ids"].tolist(), y.tolist()
        ([[[0, 1, 2, 1, 0], [0, 1, 2, 0, 0]]], [0])
        >>> x["response_mask"].astype(int).tolist()
        [[[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]]
    """
    batching = Batching(batch_size, shuffle, seed, drop_remainder, shard)
    encoding = Encoding(
        preprocessor,
        max_length=max_length,
        end_token_id=end_token_id,
        template=template,
        parse_special=parse_special,
        on_error=on_error,
        drop_longer_than=drop_longer_than,
    )

    def read(records: Records) -> Texts:
        margins = columns_lib.margins(records, margin)
        prompts, *candidates = records_lib.preference_texts(records, template)
        ended = columns_lib.ended(records, len(candidates))
        columns: dict[str, Any] = {} if margins is None else {"margins": margins}
        return Texts(prompts, candidates, ended, columns)

    def pairs(rows: Rows, columns: dict[str, list]) -> tuple:
        # Without margins, every row has a margin of 0.
        margins = columns.get("margins", np.zeros(rows.report.rows, "int32"))
        return arrays.stacked(rows, preprocessor), np.asarray(margins)

    return load(source, read, pairs, encoding, batching)


def prompts(
    source: Source,
    preprocessor: CausalLMPreprocessor,
    batch_size: int,
    *,
    max_length: int | None = None,
    pad_to_multiple_of: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    drop_remainder: bool = True,
    template: Template = "plain",
    parse_special: bool = False,
    on_error: str = "raise",
    drop_longer_than: int | None = None,
    shard: tuple[int, int] | None = None,
) -> TokenizedDataset:
    """Loads prompts to answer, for PPO and its relatives.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns: records with `prompt`, or strings,
            which are prompts.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: int, at least 1. Prompts per batch, which is one iteration.
        max_length: int, at least 2, or None. Tokens per prompt at most. Leave room for the
            response: a model with learned positions cannot go beyond them. Defaults to
            `preprocessor.sequence_length`.
        pad_to_multiple_of: int, at least 1. Rows are padded to a multiple of it, so that sets of
            similar length, such as prompts to train and to validate on, have one shape and XLA
            compiles once for both. Defaults to 1.
        shuffle: bool. As in `demonstrations`. Defaults to True.
        seed: int, at least 0. Defaults to 0.
        drop_remainder: bool. Whether a last batch of fewer rows is left out. Defaults to True.
        template: str or callable. As in `demonstrations`. Defaults to `"plain"`.
        parse_special: bool. As in `demonstrations`. Defaults to False.
        on_error: `"raise"` or `"skip"`. As in `demonstrations`. Defaults to `"raise"`.
        drop_longer_than: int or None. As in `demonstrations`. Defaults to None.
        shard: tuple of int or None. As in `demonstrations`. Defaults to None.

    Returns:
        A `TokenizedDataset` of dictionaries: `token_ids`, int32 `(batch, length)`;
        `padding_mask`, bool `(batch, length)`; `prompt`, string `(batch,)`, the text as the model
        sees it; `guarded_prompt`, string `(batch,)`, the same with typed special tokens marked as
        text (see `kerasrlhf.special_tokens`), for reward models with another tokenizer; `record`,
        string `(batch,)`, the whole record as JSON.

    Raises:
        ValueError: If the source, its columns, a text, or an argument cannot be used, there are
            fewer rows than `batch_size` while the remainder is dropped, or JSON cannot express a
            record.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
        >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
        >>> records = [{"prompt": "ba", "label": 3}]
        >>> dataset = rlhf.data.prompts(records, preprocessor, batch_size=1)
        >>> batch = next(dataset.as_numpy_iterator())
        >>> batch["token_ids"].tolist(), batch["record"].tolist()
        ([[0, 2, 1]], [b'{"prompt": "ba", "label": 3}'])
    """
    multiple = require_int("pad_to_multiple_of", pad_to_multiple_of, minimum=1)
    batching = Batching(batch_size, shuffle, seed, drop_remainder, shard)
    encoding = Encoding(
        preprocessor,
        max_length=max_length,
        template=template,
        parse_special=parse_special,
        on_error=on_error,
        drop_longer_than=drop_longer_than,
    )

    def read(records: Records) -> Texts:
        # Rewards see the record as it was written, without guards.
        lines = [special_tokens.unguarded(line) for line in records_lib.to_json(records)]
        return Texts(records_lib.prompt_texts(records, template), [], None, {"record": lines})

    def columns_of(rows: Rows, columns: dict[str, list]) -> dict:
        x: dict[str, Any] = arrays.padded(rows, [[]] * rows.report.rows, preprocessor, multiple)
        return x | {"prompt": rows.prompts, "guarded_prompt": rows.guarded_prompts, **columns}

    return load(source, read, columns_of, encoding, batching, text_column="prompt")


def _next_tokens(x: dict[str, np.ndarray], first: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns next tokens, and weight 1 where the next token is real and at or after `first`."""

    def shift(array: np.ndarray) -> np.ndarray:
        return np.pad(array[:, 1:], ((0, 0), (0, 1)))

    # Position t predicts token t + 1; the last position predicts nothing.
    return shift(x["token_ids"]), shift(arrays.tail(x["padding_mask"], first)).astype("float32")


def _learned(rows: Rows, learned: list[list[bool]], shape: tuple[int, ...]) -> np.ndarray:
    """Returns 1 where the next token is one of the assistant's, float32 `(rows, length)`."""
    weight = np.zeros(shape, "float32")
    pairs = zip(rows.prompt_ids, rows.candidates[0], learned, strict=True)
    for row, (prompt, response, flags) in enumerate(pairs):
        # Flags move to the left by one, to the position that predicts the token.
        weight[row, len(prompt) - 1 :][: len(response)] = flags[: len(response)]
    return weight
