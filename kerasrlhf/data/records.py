"""Records (dictionaries with the field's usual columns) and the texts in them.

Columns: `prompt`; `response` or `completion`; `chosen` and `rejected`, or `responses`, best first;
`text` or `messages` for demonstrations without a prompt of their own. A text is a string or a list
of messages.
"""

import json

from kerasrlhf.data import dialogue, sources

_MARKER = "Assistant:"
_SHOWN = 5


def load(source, *, split="train", data_dir=None, text_column="text"):
    """Loads records from any source.

    Args:
        source: See `kerasrlhf.data.sources.read`: records or strings in memory, a path, a
            `tf.data.Dataset`, or a TFDS name.
        split: The split of a TFDS dataset.
        data_dir: Where TFDS keeps its prepared datasets.
        text_column: The column that plain strings become.

    Returns:
        List of `dict`.

    Raises:
        ValueError: There are no rows, or a row is neither a dictionary nor a string; and as
            `kerasrlhf.data.sources.read`.

    Example:

    >>> load(["Once upon a time"], text_column="prompt")
    [{'prompt': 'Once upon a time'}]
    """
    rows = sources.read(source, split=split, data_dir=data_dir)
    if not rows:
        raise ValueError(f"The source has no rows. Received: {_shorten(source)}")
    rows = [{text_column: row} if isinstance(row, str) else row for row in rows]
    refuse(rows, lambda row: not isinstance(row, dict), "are neither dictionaries nor strings")
    return rows


def prompt_texts(records, template="plain"):
    """The texts to be answered.

    Args:
        records: List of `dict` with a column `prompt`.
        template: How messages become a text, see `kerasrlhf.data.dialogue`.

    Returns:
        List of `str`.

    Raises:
        ValueError: A missing column, or a text that is empty or neither a string nor messages.

    Example:

    >>> prompt_texts([{"prompt": [{"role": "user", "content": "Hello"}]}])
    ['Human: Hello\\n\\nAssistant:']
    """
    dialogue.check_template(template)
    column = _column(records, "prompt")
    _check_texts(records, column)
    return _checked("prompt", _each(records, lambda row: _prompt(row[column], template)))


def demonstration_texts(records, template="plain"):
    """Prompts and the responses to imitate.

    Args:
        records: List of `dict` with the columns `prompt` and `response` (or `completion`); or
            with `text`, all of which is response; or with `messages`, whose last one is.
        template: How messages become a text.

    Returns:
        Two lists of `str`: prompts (empty strings for the column `text`) and responses.

    Raises:
        ValueError: As `prompt_texts`.

    Example:

    >>> demonstration_texts([{"prompt": "1 + 1 =", "completion": " 2"}])
    (['1 + 1 ='], [' 2'])
    >>> demonstration_texts([{"text": "Once upon a time."}])
    ([''], ['Once upon a time.'])
    """
    column = _column(records, "response", "completion", "text", "messages")
    has_prompt = column in ("response", "completion")
    dialogue.check_template(template)
    _check_texts(records, column)
    if has_prompt and not all(_is_dialogue(row[column]) for row in records):
        _check_texts(records, _column(records, "prompt"), lambda row: not _is_dialogue(row[column]))
    pairs = _each(records, lambda row: _demonstration(row, column, template))
    prompts, responses = (list(texts) for texts in zip(*pairs, strict=True))
    return _checked("prompt", prompts) if has_prompt else prompts, _checked(column, responses)


def preference_texts(records, template="plain"):
    """Prompts with a preferred and a rejected response, or with several, best first.

    Without a column `prompt`, or with `chosen` and `rejected` that hold whole dialogues as
    messages, the prompt is what the two have in common: their leading messages, or as in the
    hh-rlhf data their common text up to the last "Assistant:".

    Args:
        records: List of `dict` with the columns `chosen`, `rejected` and perhaps `prompt`; or with
            `prompt` and `responses`, a list of as many texts in every row, best first.
        template: How messages become a text.

    Returns:
        Three lists of `str`: prompts, chosen responses, rejected responses; or with `responses`
        prompts, the best responses, the second best, and so on.

    Raises:
        ValueError: As `prompt_texts`; or a pair has no common prompt; or fewer than two
            `responses`, or other numbers of them in some rows.

    Example:

    >>> preference_texts([{"chosen": "Human: Hi\\n\\nAssistant: Hello!",
    ...                    "rejected": "Human: Hi\\n\\nAssistant: Go."}])
    (['Human: Hi\\n\\nAssistant:'], [' Hello!'], [' Go.'])
    """
    dialogue.check_template(template)
    if _column(records, "chosen", "responses") == "responses":
        return _ranking_texts(records, template)
    for column in ("chosen", "rejected"):
        _check_texts(records, _column(records, column))
    _check_texts(records, "prompt", lambda row: row.get("prompt") is not None)
    triples = _each(records, lambda row: _preference(row, template))
    names = ("prompt", "chosen", "rejected")
    columns = zip(*triples, strict=True)
    return tuple(_checked(name, list(texts)) for name, texts in zip(names, columns, strict=True))


def _demonstration(row, column, template):
    value, prompt = row[column], row.get("prompt", [])
    if column == "text" and isinstance(value, str):
        return "", value
    if _is_dialogue(value):
        prompt, value = value[:-1], value[-1:]
    return _prompt(prompt, template), _response(prompt, value, template)


def _preference(row, template):
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None or _is_dialogue(chosen) or _is_dialogue(rejected):
        prompt, chosen, rejected = _split_common(chosen, rejected)
    return (
        _prompt(prompt, template),
        _response(prompt, chosen, template),
        _response(prompt, rejected, template),
    )


def _ranking_texts(records, template):
    def is_wrong(row):
        texts = row.get("responses")
        return not isinstance(texts, list) or len(texts) < 2 or not all(map(_is_text, texts))

    refuse(records, is_wrong, "have no list of two or more texts in 'responses'")
    count = len(records[0]["responses"])
    refuse(
        records,
        lambda row: len(row["responses"]) != count,
        f"have another number of 'responses' than the first, {count}",
    )
    _check_texts(records, "prompt")
    rows = _each(
        records,
        lambda row: (
            _prompt(row["prompt"], template),
            *(_response(row["prompt"], response, template) for response in row["responses"]),
        ),
    )
    names = ("prompt", *["responses"] * count)
    columns = zip(*rows, strict=True)
    return tuple(_checked(name, list(texts)) for name, texts in zip(names, columns, strict=True))


def _is_dialogue(value):
    """Whether messages begin with a prompt of their own."""
    return not isinstance(value, str) and value[0].get("role") != "assistant"


def _split_common(chosen, rejected):
    """The shared beginning of two dialogues, and what follows it in each."""
    if type(chosen) is not type(rejected):
        raise ValueError("'chosen' and 'rejected' must both be strings or both be messages.")
    if isinstance(chosen, str):
        size = chosen[: _common(chosen, rejected)].rfind(_MARKER) + len(_MARKER)
        if size < len(_MARKER):
            raise ValueError(
                f"without a column 'prompt', 'chosen' and 'rejected' must share a text up to "
                f"{_MARKER!r}."
            )
    else:
        size = min(_common(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        if size < 1:
            raise ValueError("'chosen' and 'rejected' must share their leading messages.")
    return chosen[:size], chosen[size:], rejected[size:]


def _common(left, right):
    """How many leading items are equal."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(left), len(right)))


def _prompt(value, template):
    if isinstance(value, str):
        return value
    return dialogue.render(value, template, add_generation_prompt=True)


def _response(prompt, value, template):
    """The response's text; a string is used as it is unless its prompt is a list of messages."""
    if isinstance(prompt, str) and isinstance(value, str):
        return value
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    return dialogue.reply([] if isinstance(prompt, str) else prompt, messages, template)


def _each(records, function):
    """Applies a function to every record; an error says which row it met."""
    results = []
    for number, row in enumerate(records):
        try:
            results.append(function(row))
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
    return results


def _column(records, *names):
    for name in names:
        if any(name in row for row in records):
            return name
    found = sorted({str(key) for row in records for key in row})
    raise ValueError(f"Expected a column {' or '.join(map(repr, names))}. Found: {found}")


def _check_texts(records, column, is_needed=lambda row: True):
    refuse(
        records,
        lambda row: is_needed(row) and not _is_text(row.get(column)),
        f"have no text (a string or a list of messages) in {column!r}",
    )


def _is_text(value):
    is_messages = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return isinstance(value, str) or (is_messages and len(value) > 0)


def _checked(column, texts):
    refuse(texts, lambda text: not text.strip(), f"have an empty {column!r}")
    return texts


def _shorten(value, size=200):
    text = repr(value)
    return text if len(text) <= size else text[:size] + "..."


def refuse(rows, is_wrong, message):
    """Raises a `ValueError` that counts the wrong rows, numbers them and shows the first.

    Args:
        rows: List.
        is_wrong: Function of a row.
        message: What is wrong with them, as the end of a sentence about rows.

    Raises:
        ValueError: A row is wrong.
    """
    wrong = [number for number, row in enumerate(rows) if is_wrong(row)]
    if wrong:
        numbers = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
        raise ValueError(
            f"{len(wrong)} of {len(rows)} rows {message}: rows {numbers} (counted from 0). "
            f"The first: {_shorten(rows[wrong[0]])}"
        )


def to_json(records):
    """Each record as one line of JSON; arrays become lists.

    Args:
        records: List of `dict`.

    Returns:
        List of `str`.

    Raises:
        ValueError: A value that JSON cannot express; the row is named.

    Example:

    >>> to_json([{"prompt": "é", "label": 1}])
    ['{"prompt": "é", "label": 1}']
    """
    return _each(records, lambda row: json.dumps(row, ensure_ascii=False, default=_plain_value))


def _plain_value(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"JSON cannot express {value!r}.")
