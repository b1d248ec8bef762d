"""Responses that are wanted or unwanted, each by itself, as batched token ids."""

from kerasrlhf import tokens
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.batches import stacked
from kerasrlhf.data.loading import Texts, load
from kerasrlhf.data.tokenized import batches


def unpaired_preferences(
    source,
    preprocessor,
    batch_size,
    *,
    max_length=None,
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
    """Single responses with a label each, wanted or not: `kto.fit(responses)`.

    Args:
        source: Records with `prompt`, `response` (or `completion`) and `label`: `True` or 1 for a
            response that is wanted, `False` or 0 for one that is not.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: `int`, responses per batch.
        max_length: As in `demonstrations`.
        end_token_id: As in `demonstrations`.
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
        A `TokenizedDataset` of `(x, y)`: `x` as that of `preferences` with one candidate, so that
        `token_ids`, int32, `padding_mask` and `response_mask`, bool, are `(batch, 1, length)`; `y`,
        float32 `(batch,)`, is 1 for wanted responses and 0 for the others.

    Raises:
        ValueError: As `demonstrations`; or a row without a label.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
    >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    >>> records = [{"prompt": "a", "response": "ba", "label": False}]
    >>> x, y = next(unpaired_preferences(records, preprocessor, 1).as_numpy_iterator())
    >>> x["token_ids"].tolist(), y.tolist()
    ([[[0, 1, 2, 1, 0]]], [0.0])
    """

    def read(records):
        found = {"labels": columns_lib.labels(records)}
        ended = columns_lib.ended(records)
        prompts, responses = records_lib.demonstration_texts(records, template)
        return Texts(prompts, [responses], ended, found)

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
    return batches(
        (stacked(rows, preprocessor), columns["labels"]),
        rows.report.rows,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        report=rows.report,
        tokenizer=tokens.tokenizer_of(preprocessor),
    )
