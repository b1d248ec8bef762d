"""Responses in steps, each of them right or wrong, as batched token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data import arrays, dialogue
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


def stepwise(
    source: Source,
    preprocessor: CausalLMPreprocessor,
    batch_size: int,
    *,
    separator: str = "\n",
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
    """Loads steps with a label each, for process reward models: `process_reward_model.fit(steps)`.

    A row is start token, prompt, steps with the separator between them, end token, padding. The
    label of a step is at the separator that follows it, that of the last step at the end token.
    There `ProcessRewardModel` scores the steps of a sampled response.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns: records with `prompt`, `steps` (or
            `completions`), a list of strings, and `labels`, a list with a number from 0 (wrong) to
            1 (right) or a boolean for each.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: int, at least 1. Rows per batch.
        separator: str. The text between steps, which must be one token. Defaults to a line break.
        max_length: int or None. As in `demonstrations`. Steps that do not fit lose their label.
            Defaults to None.
        end_token_id: int, `"auto"` or None. As in `demonstrations`. Without an end token the last
            label is at the last token. Defaults to `"auto"`.
        shuffle: bool. As in `demonstrations`. Defaults to True.
        seed: int, at least 0. Defaults to 0.
        drop_remainder: bool. As in `demonstrations`. Defaults to False.
        template: str or callable. How a prompt of messages becomes a text; steps are used as they
            are. Defaults to `"plain"`.
        parse_special: bool. As in `demonstrations`. Defaults to False.
        on_error: `"raise"` or `"skip"`. As in `demonstrations`. Defaults to `"raise"`.
        drop_longer_than: int or None. As in `demonstrations`. Defaults to None.
        shard: tuple of int or None. As in `demonstrations`. Defaults to None.

    Returns:
        A `TokenizedDataset` of `(x, y, sample_weight)`: `x` has `token_ids`, int32, and
        `padding_mask`, bool; `y`, float32, is the label; `sample_weight`, float32, is 1 where a
        step ends; all are `(batch, length)`.

    Raises:
        ValueError: If the source, its columns, a text, or an argument cannot be used.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "Ċ": 3, "ab": 4}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
        >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
        >>> records = [{"prompt": "b", "steps": ["ab", "a"], "labels": [1, 0]}]
        >>> steps = rlhf.data.stepwise(records, preprocessor, batch_size=1)
        >>> x, y, weight = next(steps.as_numpy_iterator())
        >>> x["token_ids"].tolist(), y.tolist(), weight.tolist()
        ([[0, 2, 4, 3, 1, 0]], [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0, 0.0, 1.0]])
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
    _check_separator(separator, preprocessor)
    end = tokens.end_ids(preprocessor, end_token_id, dialogue.turn_end(template))

    def read(records: Records) -> Texts:
        prompts = records_lib.prompt_texts(records, template)
        steps, labels = columns_lib.steps(records, separator)
        responses, ends = _encoded(prompts, steps, separator, end, preprocessor)
        return Texts(prompts, [responses], None, {"ends": ends, "labels": labels})

    def targets(rows: Rows, columns: dict[str, list]) -> tuple:
        x = arrays.padded(rows, rows.candidates[0], preprocessor)
        shape = x["token_ids"].shape
        return x, *_labels_at_ends(rows, columns["ends"], columns["labels"], shape)

    return load(source, read, targets, encoding, batching)


def _check_separator(separator: str, preprocessor: CausalLMPreprocessor) -> None:
    # As it is tokenized inside a text, after another token.
    ids: list[int] = []
    if isinstance(separator, str) and separator:
        before = tokens.tokenize(["a"], preprocessor)
        (ids,) = tokens.continuations(["a"], before, [separator], preprocessor)
    if len(ids) != 1:
        raise ValueError(
            f"`separator` must be a text that is one token. Received: {separator!r}, which is "
            f"{len(ids)} tokens. Use a line break, or a token that the tokenizer knows."
        )


def _encoded(
    prompts: list[str],
    steps: list[list[str]],
    separator: str,
    end: list[int],
    preprocessor: CausalLMPreprocessor,
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the token ids of each response, and the places in it where its steps end.

    A step and the separator after it are tokenized together, as a model writes them: in some
    vocabularies one token holds a full stop and a line break.
    """
    texts = list(prompts)
    rows = tokens.tokenize(prompts, preprocessor, parse_special=True)
    responses: list[list[int]] = [[] for _ in prompts]
    ends: list[list[int]] = [[] for _ in prompts]
    for index in range(max(map(len, steps))):
        # Step by step over all rows, each step as a continuation of the text before it.
        some = [i for i, row in enumerate(steps) if len(row) > index]
        pieces = [steps[i][index] + separator * (index + 1 < len(steps[i])) for i in some]
        found = tokens.continuations(
            [texts[i] for i in some], [rows[i] for i in some], pieces, preprocessor
        )
        for i, piece, ids in zip(some, pieces, found, strict=True):
            # The end token follows the last step, and carries its label.
            ids = ids + end * (index + 1 == len(steps[i]))
            texts[i], rows[i] = texts[i] + piece, rows[i] + ids
            responses[i] += ids
            ends[i].append(len(responses[i]) - 1)
    return responses, ends


def _labels_at_ends(
    rows: Rows, ends: list[list[int]], labels: list[list[float]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and weights of the labeled tokens that are left after cutting."""
    y, weight = np.zeros(shape, "float32"), np.zeros(shape, "float32")
    for row, (prompt, response) in enumerate(zip(rows.prompt_ids, rows.candidates[0], strict=True)):
        for place, label in zip(ends[row], labels[row], strict=True):
            # Cutting may have removed the end of a step, and its label with it.
            if place < len(response):
                y[row, len(prompt) + place] = label
                weight[row, len(prompt) + place] = 1.0
    return y, weight
