"""The three kinds of data that RLHF trains on, as batched token ids of one static length.

All three take the same sources (records in memory, a path, a `tf.data.Dataset`, a TFDS name) and
the same records; `kerasrlhf.data.records` lists the columns.
"""

import numpy as np

from kerasrlhf import special_tokens, tokens
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.loading import Texts, load, turn_end
from kerasrlhf.data.tokenized import batches
from kerasrlhf.types import require_int


def demonstrations(
    source,
    preprocessor,
    batch_size,
    *,
    max_length=None,
    whole_row=False,
    all_turns=False,
    end_token_id="auto",
    shuffle=True,
    seed=0,
    drop_remainder=False,
    split="train",
    data_dir=None,
    template="plain",
    parse_special=False,
    on_error="raise",
    drop_longer_than=None,
):
    """Responses to imitate, for supervised fine-tuning: `causal_lm.fit(demos)`.

    A row is start token, prompt, response, end token, padding (P3). Only predictions of response
    tokens, the end token included, have a weight (P9). Keras divides its default loss by all
    positions; for a loss in nats per response token compile the model with
    `keras.losses.SparseCategoricalCrossentropy(from_logits=True,
    reduction="mean_with_sample_weight")`.

    Args:
        source: Records with `prompt` and `response` (or `completion`), or with `text` or
            `messages`; or strings, which are responses without a prompt. A column `ended` may
            say of a response that it was cut off (False): nothing ends it then.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: `int`, rows per batch.
        max_length: Tokens per row at most; `None` means `preprocessor.sequence_length`. Longer
            rows lose the beginning of their prompt, with a warning and a count in `.report`.
        whole_row: Whether prompt tokens are learned too.
        all_turns: Whether of a dialogue all turns of the assistant are learned, each with the end
            of turn that the template writes, and not only the last one.
        end_token_id: What ends a response: `"auto"` is the end of turn of the template where the
            vocabulary has it (`<|im_end|>` of `"chatml"`, or a special token that a callable
            writes at the end), else the tokenizer's end token when the preprocessor adds it; an
            `int` names another token; `None` is none.
        shuffle: Whether every pass has an order of its own, a function of `seed` and the pass.
        seed: `int`.
        drop_remainder: Whether a last batch of fewer rows is left out.
        split: The split of a TFDS dataset.
        data_dir: Where TFDS keeps its prepared datasets.
        template: How messages become a text, see `kerasrlhf.data.dialogue`.
        parse_special: Whether a special token that is written in a record, such as `<|im_end|>`,
            becomes that token, for texts that a chat template has rendered already. By default it
            is text like any other. What `template` writes is always parsed.
        on_error: `"raise"` refuses the source for a row that cannot be used; `"skip"` leaves such
            rows out, with a warning and their numbers in `.report`.
        drop_longer_than: `int`, tokens. Longer rows are left out and counted in `.report`, so that
            one of them does not make every batch long. `None` keeps all.

    Returns:
        A `TokenizedDataset` of `(x, y, sample_weight)`: `x` has `token_ids`, int32, and
        `padding_mask`, bool; `y`, int32, is the next token; `sample_weight` is float32; all are
        `(batch, length)`, with the longest row as length.

    Raises:
        ValueError: The source, its columns, a text, or an argument cannot be used.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
    >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    >>> demos = demonstrations([{"prompt": "aa", "response": "b"}], preprocessor, batch_size=1)
    >>> x, y, sample_weight = next(demos.as_numpy_iterator())
    >>> x["token_ids"].tolist(), y.tolist(), sample_weight.tolist()
    ([[0, 1, 1, 2, 0]], [[1, 1, 2, 0, 0]], [[0.0, 0.0, 1.0, 1.0, 0.0]])
    """

    def read(records):
        ended = columns_lib.ended(records)
        if not all_turns:
            prompts, responses = records_lib.demonstration_texts(records, template)
            return Texts(prompts, [responses], ended, {})
        prompts, responses, learned = rows_lib.encode_turns(
            records_lib.turn_texts(records, template),
            preprocessor,
            end_token_id,
            turn_end(template),
            ended[0],
        )
        return Texts(prompts, [responses], ended, {"learned": learned})

    rows, columns = load(
        source,
        read,
        preprocessor,
        batch_size=batch_size,
        seed=seed,
        drop_remainder=drop_remainder,
        split=split,
        data_dir=data_dir,
        max_length=max_length,
        template=template,
        on_error=on_error,
        parse_special=parse_special,
        drop_longer_than=drop_longer_than,
        end_token_id=end_token_id,
    )
    x = _padded(rows, rows.candidates[0], preprocessor)
    y, weight = _targets(x, [0 if whole_row else len(ids) for ids in rows.prompt_ids])
    if all_turns and not whole_row:
        weight *= _learned(rows, columns["learned"], weight.shape)
    return batches(
        (x, y, weight),
        rows.report.rows,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        report=rows.report,
        tokenizer=tokens.tokenizer_of(preprocessor),
    )


def preferences(
    source,
    preprocessor,
    batch_size,
    *,
    max_length=None,
    end_token_id="auto",
    margin="auto",
    shuffle=True,
    seed=0,
    drop_remainder=False,
    split="train",
    data_dir=None,
    template="plain",
    parse_special=False,
    on_error="raise",
    drop_longer_than=None,
):
    """Pairs of responses of which the first is preferred, for reward models and DPO.

    Args:
        source: Records with `chosen`, `rejected` and `prompt`; without `prompt` it is what the
            two have in common (see `kerasrlhf.data.records.preference_texts`). Or rankings:
            records with `prompt` and `responses`, best first, as many in every record. A column
            `ended` may hold a list of bools, one a response: False where it was cut off.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: `int`, pairs per batch.
        max_length: As in `demonstrations`; both responses keep the same prompt.
        end_token_id: As in `demonstrations`.
        margin: The column with the number by which the chosen score shall lead: `"auto"` is
            `margin` where there is one, `None` is none.
        shuffle: As in `demonstrations`.
        seed: `int`.
        drop_remainder: As in `demonstrations`.
        split: The split of a TFDS dataset.
        data_dir: Where TFDS keeps its prepared datasets.
        template: How messages become a text.
        parse_special: As in `demonstrations`.
        on_error: As in `demonstrations`.
        drop_longer_than: As in `demonstrations`.

    Returns:
        A `TokenizedDataset` of `(x, y)`: `x` has `token_ids`, int32, `padding_mask`, bool, and
        `response_mask`, bool, true on response tokens, the end token included; all are
        `(batch, 2, length)` and candidate 0 is the chosen one, or `(batch, candidates, length)`,
        best first. `y`, `(batch,)`, is the margin, float32, or without margins 0, int32.

    Raises:
        ValueError: As `demonstrations`.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
    >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    >>> pairs = preferences(
    ...     [{"prompt": "a", "chosen": "ba", "rejected": "b"}], preprocessor, batch_size=1)
    >>> x, y = next(pairs.as_numpy_iterator())
    >>> x["token_ids"].tolist(), y.tolist()
    ([[[0, 1, 2, 1, 0], [0, 1, 2, 0, 0]]], [0])
    >>> x["response_mask"].astype(int).tolist()
    [[[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]]
    """

    def read(records):
        found = {"margins": columns_lib.margins(records, margin)}
        prompts, *candidates = records_lib.preference_texts(records, template)
        ended = columns_lib.ended(records, len(candidates))
        columns = {name: column for name, column in found.items() if column is not None}
        return Texts(prompts, candidates, ended, columns)

    rows, columns = load(
        source,
        read,
        preprocessor,
        batch_size=batch_size,
        seed=seed,
        drop_remainder=drop_remainder,
        split=split,
        data_dir=data_dir,
        max_length=max_length,
        template=template,
        on_error=on_error,
        parse_special=parse_special,
        drop_longer_than=drop_longer_than,
        end_token_id=end_token_id,
    )
    margins = columns.get("margins", np.zeros(rows.report.rows, "int32"))
    return batches(
        (stacked(rows, preprocessor), np.asarray(margins)),
        rows.report.rows,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        report=rows.report,
        tokenizer=tokens.tokenizer_of(preprocessor),
    )


def prompts(
    source,
    preprocessor,
    batch_size,
    *,
    max_length=None,
    pad_to_multiple_of=1,
    shuffle=True,
    seed=0,
    drop_remainder=True,
    split="train",
    data_dir=None,
    template="plain",
    parse_special=False,
    on_error="raise",
    drop_longer_than=None,
):
    """Prompts to answer, for PPO and its relatives.

    Args:
        source: Records with `prompt`, or strings, which are prompts.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: `int`, prompts per batch, which is one iteration.
        max_length: Tokens per prompt at most; `None` means `preprocessor.sequence_length`. Leave
            room for the response: a model with learned positions cannot go beyond them.
        pad_to_multiple_of: `int`, at least 1. Rows are padded to a multiple of it, so that sets
            of similar length, such as prompts to train and to validate on, share one shape and
            XLA compiles once for both.
        shuffle: As in `demonstrations`.
        seed: `int`.
        drop_remainder: Whether a last batch of fewer rows is left out.
        split: The split of a TFDS dataset.
        data_dir: Where TFDS keeps its prepared datasets.
        template: How messages become a text.
        parse_special: As in `demonstrations`.
        on_error: As in `demonstrations`.
        drop_longer_than: As in `demonstrations`.

    Returns:
        A `TokenizedDataset` of dictionaries: `token_ids`, int32 `(batch, length)`;
        `padding_mask`, bool `(batch, length)`; `prompt`, string `(batch,)`, the text as the model
        sees it; `guarded_prompt`, string `(batch,)`, the same with typed special tokens marked as
        text (see `kerasrlhf.special_tokens`), for reward models with another tokenizer; `record`,
        string `(batch,)`, the whole record as JSON.

    Raises:
        ValueError: As `demonstrations`; or fewer rows than `batch_size` while the remainder is
            dropped; or a record that JSON cannot express.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
    >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    >>> dataset = prompts([{"prompt": "ba", "label": 3}], preprocessor, batch_size=1)
    >>> batch = next(dataset.as_numpy_iterator())
    >>> batch["token_ids"].tolist(), batch["record"].tolist()
    ([[0, 2, 1]], [b'{"prompt": "ba", "label": 3}'])
    """
    multiple = require_int("pad_to_multiple_of", pad_to_multiple_of, minimum=1)

    def read(records):
        lines = [special_tokens.unguarded(line) for line in records_lib.to_json(records)]
        return Texts(records_lib.prompt_texts(records, template), [], None, {"record": lines})

    rows, columns = load(
        source,
        read,
        preprocessor,
        batch_size=batch_size,
        seed=seed,
        drop_remainder=drop_remainder,
        split=split,
        data_dir=data_dir,
        max_length=max_length,
        template=template,
        on_error=on_error,
        parse_special=parse_special,
        drop_longer_than=drop_longer_than,
        text_column="prompt",
    )
    x = _padded(rows, [[]] * rows.report.rows, preprocessor, multiple)
    x |= {"prompt": rows.prompts, "guarded_prompt": rows.guarded_prompts, **columns}
    return batches(
        x,
        rows.report.rows,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        report=rows.report,
        tokenizer=tokens.tokenizer_of(preprocessor),
    )


def stacked(rows, preprocessor):
    """Rows as a dict of arrays `(rows, candidates, length)`, as `preferences` gives them."""
    columns = [_padded(rows, candidate, preprocessor) for candidate in rows.candidates]
    for column in columns:
        starts = [len(ids) for ids in rows.prompt_ids]
        column["response_mask"] = _tail(column["padding_mask"], starts)
    return {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}


def _padded(rows, responses, preprocessor, multiple=1):
    joined = [p + r for p, r in zip(rows.prompt_ids, responses, strict=True)]
    length = -(-rows.report.length // multiple) * multiple
    token_ids, mask = tokens.padded(joined, length, tokens.pad_id(preprocessor))
    return {"token_ids": token_ids, "padding_mask": mask}


def _targets(x, first):
    """Next tokens, and weight 1 where the next token is real and at or after `first`."""

    def shift(array):
        return np.pad(array[:, 1:], ((0, 0), (0, 1)))

    return shift(x["token_ids"]), shift(_tail(x["padding_mask"], first)).astype("float32")


def _learned(rows, learned, shape):
    """1 where the next token is one of the assistant's, float32 of a shape `(rows, length)`."""
    weight = np.zeros(shape, "float32")
    pairs = zip(rows.prompt_ids, rows.candidates[0], learned, strict=True)
    for row, (prompt, response, flags) in enumerate(pairs):
        weight[row, len(prompt) - 1 :][: len(response)] = flags[: len(response)]
    return weight


def _tail(mask, first):
    """The true positions of each row at or after its `first`."""
    return mask & (np.arange(mask.shape[1]) >= np.array(first)[:, None])
