"""Responses in steps, each of them right or wrong, as batched token ids."""

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.tokenized import TokenizedDataset, batches, check_batching


def stepwise(
    source,
    preprocessor,
    batch_size,
    *,
    separator="\n",
    max_length=None,
    end_token_id="auto",
    shuffle=True,
    seed=0,
    drop_remainder=False,
    split="train",
    data_dir=None,
    template="plain",
):
    """Steps with a label each, for process reward models: `process_reward_model.fit(steps)`.

    A row is start token, prompt, steps with the separator between them, end token, padding. The
    label of a step stands at the separator behind it, that of the last step at the end token.
    That is where `ProcessRewardModel` reads the steps of a sampled response.

    Args:
        source: Records with `prompt`, `steps` (or `completions`), a list of strings, and `labels`,
            a list with a number from 0 (wrong) to 1 (right) or a boolean for each.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        batch_size: `int`, rows per batch.
        separator: What stands between steps: a text that is one token.
        max_length: As in `demonstrations`. Steps that do not fit lose their label.
        end_token_id: As in `demonstrations`. Without an end token the last label stands at the
            last token.
        shuffle: As in `demonstrations`.
        seed: `int`.
        drop_remainder: As in `demonstrations`.
        split: The split of a TFDS dataset.
        data_dir: Where TFDS keeps its prepared datasets.
        template: How a prompt of messages becomes a text; steps are used as they are.

    Returns:
        A `TokenizedDataset` of `(x, y, sample_weight)`: `x` has `token_ids`, int32, and
        `padding_mask`, bool; `y`, float32, is the label; `sample_weight`, float32, is 1 where a
        step ends; all are `(batch, length)`.

    Raises:
        ValueError: The source, its columns, a text, or an argument cannot be used.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "Ċ": 3, "ab": 4}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a b"])
    >>> preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    >>> records = [{"prompt": "b", "steps": ["ab", "a"], "labels": [1, 0]}]
    >>> x, y, weight = next(stepwise(records, preprocessor, 1).as_numpy_iterator())
    >>> x["token_ids"].tolist(), y.tolist(), weight.tolist()
    ([[0, 2, 4, 3, 1, 0]], [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0, 0.0, 1.0]])
    """
    records = records_lib.load(source, split=split, data_dir=data_dir)
    check_batching(batch_size, len(records), seed=seed, drop_remainder=drop_remainder)
    between = _separator_ids(separator, preprocessor)
    prompts = records_lib.prompt_texts(records, template)
    steps, labels = columns_lib.steps(records, separator)
    end = tokens.end_ids(preprocessor, end_token_id)
    responses, ends = _joined(steps, between, end, preprocessor)
    rows = rows_lib.encode(prompts, [responses], preprocessor, max_length)
    (responses,) = rows.candidates
    joined = [p + r for p, r in zip(rows.prompt_ids, responses, strict=True)]
    token_ids, mask = rows_lib.pad(joined, rows.report.length, tokens.pad_id(preprocessor))
    y, weight = _targets(rows, ends, labels, token_ids.shape)
    dataset = batches(
        ({"token_ids": token_ids, "padding_mask": mask}, y, weight),
        len(records),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
    )
    return TokenizedDataset(dataset, rows.report)


def _separator_ids(separator, preprocessor):
    ids = tokens.tokenize([separator], preprocessor)[0] if isinstance(separator, str) else []
    if len(ids) != 1:
        raise ValueError(
            f"`separator` must be a text that is one token. Received: {separator!r}, which is "
            f"{len(ids)} tokens. Use a line break, or a token that the tokenizer knows."
        )
    return ids


def _joined(steps, between, end, preprocessor):
    """Token ids of each response, and the places in it where its steps end."""
    flat = iter(tokens.tokenize([step for row in steps for step in row], preprocessor))
    responses, ends = [], []
    for row in steps:
        pieces = [next(flat) + between for _ in row]
        pieces[-1] = pieces[-1][: -len(between)] + end
        responses.append([token for piece in pieces for token in piece])
        ends.append((np.cumsum([len(piece) for piece in pieces]) - 1).tolist())
    return responses, ends


def _targets(rows, ends, labels, shape):
    """Labels and weights, where the labelled token is still there after cutting."""
    y, weight = np.zeros(shape, "float32"), np.zeros(shape, "float32")
    for row, (prompt, response) in enumerate(zip(rows.prompt_ids, rows.candidates[0], strict=True)):
        for place, label in zip(ends[row], labels[row], strict=True):
            if place < len(response):
                y[row, len(prompt) + place] = label
                weight[row, len(prompt) + place] = 1.0
    return y, weight
