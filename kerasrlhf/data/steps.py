"""Responses in steps, each of them right or wrong, as batched token ids."""

import numpy as np

from kerasrlhf import tokens
from kerasrlhf.data import columns as columns_lib
from kerasrlhf.data import records as records_lib
from kerasrlhf.data.loading import Texts, load, turn_end
from kerasrlhf.data.tokenized import batches


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
    parse_special=False,
    on_error="raise",
    drop_longer_than=None,
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
        separator: The text between steps, which one token must hold, such as a line break.
        max_length: As in `demonstrations`. Steps that do not fit lose their label.
        end_token_id: As in `demonstrations`. Without an end token the last label stands at the
            last token.
        shuffle: As in `demonstrations`.
        seed: `int`.
        drop_remainder: As in `demonstrations`.
        split: The split of a TFDS dataset.
        data_dir: Where TFDS keeps its prepared datasets.
        template: How a prompt of messages becomes a text; steps are used as they are.
        parse_special: As in `demonstrations`.
        on_error: As in `demonstrations`.
        drop_longer_than: As in `demonstrations`.

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
    _check_separator(separator, preprocessor)
    end = tokens.end_ids(preprocessor, end_token_id, turn_end(template))

    def read(records):
        prompts = records_lib.prompt_texts(records, template)
        steps, labels = columns_lib.steps(records, separator)
        responses, ends = _encoded(prompts, steps, separator, end, preprocessor)
        return Texts(prompts, [responses], None, {"ends": ends, "labels": labels})

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
    )
    joined = [p + r for p, r in zip(rows.prompt_ids, rows.candidates[0], strict=True)]
    token_ids, mask = tokens.padded(joined, rows.report.length, tokens.pad_id(preprocessor))
    y, weight = _targets(rows, columns["ends"], columns["labels"], token_ids.shape)
    return batches(
        ({"token_ids": token_ids, "padding_mask": mask}, y, weight),
        rows.report.rows,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        report=rows.report,
        tokenizer=tokens.tokenizer_of(preprocessor),
    )


def _check_separator(separator, preprocessor):
    ids = []
    if isinstance(separator, str) and separator:
        before = tokens.tokenize(["a"], preprocessor)
        (ids,) = tokens.continuations(["a"], before, [separator], preprocessor)
    if len(ids) != 1:
        raise ValueError(
            f"`separator` must be a text that is one token. Received: {separator!r}, which is "
            f"{len(ids)} tokens. Use a line break, or a token that the tokenizer knows."
        )


def _encoded(prompts, steps, separator, end, preprocessor):
    """Token ids of each response, and the places in it where its steps end.

    A step and the separator behind it are tokenized together, as they are where a model writes
    them: in some vocabularies one token holds a full stop and a line break.
    """
    texts = list(prompts)
    rows = tokens.tokenize(prompts, preprocessor, parse_special=True)
    responses, ends = [[] for _ in prompts], [[] for _ in prompts]
    for index in range(max(map(len, steps))):
        some = [i for i, row in enumerate(steps) if len(row) > index]
        pieces = [steps[i][index] + separator * (index + 1 < len(steps[i])) for i in some]
        found = tokens.continuations(
            [texts[i] for i in some], [rows[i] for i in some], pieces, preprocessor
        )
        for i, piece, ids in zip(some, pieces, found, strict=True):
            ids = ids + end * (index + 1 == len(steps[i]))
            texts[i], rows[i] = texts[i] + piece, rows[i] + ids
            responses[i] += ids
            ends[i].append(len(responses[i]) - 1)
    return responses, ends


def _targets(rows, ends, labels, shape):
    """Labels and weights, where the labeled token is still there after cutting."""
    y, weight = np.zeros(shape, "float32"), np.zeros(shape, "float32")
    for row, (prompt, response) in enumerate(zip(rows.prompt_ids, rows.candidates[0], strict=True)):
        for place, label in zip(ends[row], labels[row], strict=True):
            if place < len(response):
                y[row, len(prompt) + place] = label
                weight[row, len(prompt) + place] = 1.0
    return y, weight
