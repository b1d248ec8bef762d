"""Responses that are wanted or unwanted, each by itself, as batched token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerasrlhf.data import arrays
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.encoding import Encoding, Texts
from kerasrlhf.data.loading import load
from kerasrlhf.data.records import Records
from kerasrlhf.data.rows import Rows
from kerasrlhf.data.sources import Source
from kerasrlhf.data.tokenized import Batching, TokenizedDataset

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor


def unpaired_preferences(
    source: Source,
    preprocessor: CausalLMPreprocessor,
    batch_size: int,
    *,
    max_length: int | None = None,
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
    """Loads single responses with a label each, wanted or not: `kto.fit(responses)`.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns: records with `prompt`, `response` (or
            `completion`) and `label`: True or 1 for a response that is wanted, False or 0 for one
            that is not.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: int, at least 1. Responses per batch.
        max_length: int or None. As in `demonstrations`. Defaults to None.
        end_token_id: int, `"auto"` or None. As in `demonstrations`. Defaults to `"auto"`.
        shuffle: bool. As in `demonstrations`. Defaults to True.
        seed: int, at least 0. Defaults to 0.
        drop_remainder: bool. As in `demonstrations`. Defaults to False.
        template: str or callable. As in `demonstrations`. Defaults to `"plain"`.
        parse_special: bool. As in `demonstrations`. Defaults to False.
        on_error: `"raise"` or `"skip"`. As in `demonstrations`. Defaults to `"raise"`.
        drop_longer_than: int or None. As in `demonstrations`. Defaults to None.
        shard: tuple of int or None. As in `demonstrations`. Defaults to None.

    Returns:
        A `TokenizedDataset` of `(x, y)`: `x` as that of `preferences` with one candidate, so that
        `token_ids`, int32, `padding_mask` and `response_mask`, bool, are `(batch, 1, length)`; `y`,
        float32 `(batch,)`, is 1 for wanted responses and 0 for the others.

    Raises:
        ValueError: If the source, its columns, a text, or an argument cannot be used, or a row has
            no label.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
        >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
        >>> records = [{"prompt": "a", "response": "ba", "label": False}]
        >>> responses = rlhf.data.unpaired_preferences(records, preprocessor, batch_size=1)
        >>> x, y = next(responses.as_numpy_iterator())
        >>> x["token_ids"].tolist(), y.tolist()
        ([[[0, 1, 2, 1, 0]]], [0.0])
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
        columns = {"labels": columns_lib.labels(records)}
        ended = columns_lib.ended(records)
        prompts, responses = records_lib.demonstration_texts(records, template)
        return Texts(prompts, [responses], ended, columns)

    def labeled(rows: Rows, columns: dict[str, list]) -> tuple:
        return arrays.stacked(rows, preprocessor), columns["labels"]

    return load(source, read, labeled, encoding, batching)
