"""Records (dictionaries with the field's usual columns) and the texts in them.

Columns: `prompt`; `response` or `completion`; `chosen` and `rejected`, or `responses`, best first;
`text` or `messages` for demonstrations without a separate prompt. A text is a string or a list of
messages.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from kerasrlhf import tokens
from kerasrlhf.data import dialogue, notices, sources
from kerasrlhf.data.dialogue import Message, Template
from kerasrlhf.data.places import Located
from kerasrlhf.data.sources import Source

if TYPE_CHECKING:
    from keras_hub.models import Tokenizer

Record: TypeAlias = dict[str, Any]
Records: TypeAlias = list[Record]
Text: TypeAlias = str | list[Message]
_Row = TypeVar("_Row")
_Value = TypeVar("_Value")

_REPLY = re.compile(r"(?:^|\n)Assistant:")
_QUESTION = re.compile(r"\n\s*Human:")
_TEXTS = (*sources.TEXT_COLUMNS, "responses", "steps", "completions")
_SHOWN = 5
_NO_RECORDS = "are neither dictionaries nor strings"


class RowError(ValueError):
    """Signals that some rows cannot be used.

    Attributes:
        numbers: list of int. Which rows.
        reason: str. What is wrong with them.
    """

    def __init__(self, message: str, numbers: list[int], reason: str) -> None:
        super().__init__(message)
        self.numbers, self.reason = numbers, reason


class Selection(NamedTuple):
    """The values that were read from some records, and the rows that were left out.

    Attributes:
        values: What the reading function returned.
        skipped: dict from int, the rows that were left out, to str, why.
    """

    values: Any
    skipped: dict[int, str]


def load(source: Source, *, text_column: str = "text", on_error: str = "raise") -> Records:
    """Loads records from any source.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns: records or strings in memory, a path,
            a `tf.data.Dataset`, or the name of a TFDS dataset, whose split "train" is read.
        text_column: str. The column that plain strings become. Defaults to `"text"`.
        on_error: `"raise"`, or `"skip"` to leave out rows that cannot be read, with a warning that
            counts them. Defaults to `"raise"`.

    Returns:
        list of dict. Conversations in the form of ShareGPT (`conversations`, of `from` and `value`,
        and a column `system` if there is one) are `messages`, or the `prompt` where the text is a
        prompt or there is `chosen`.

    Raises:
        ValueError: If the source cannot be read or has no rows, or a row is neither a dictionary
            nor a string.

    Example:
        >>> rlhf.data.records.load(["Once upon a time"], text_column="prompt")
        [{'prompt': 'Once upon a time'}]
        >>> rlhf.data.records.load([{"conversations": [{"from": "human", "value": "Hi"}]}])
        [{'messages': [{'role': 'user', 'content': 'Hi'}]}]
    """
    records = located(source, text_column=text_column, on_error=on_error)
    warn_of_skipped(records.broken, len(records), stacklevel=3)
    return [record for number, record in enumerate(records) if number not in records.broken]


def located(source: Source, *, text_column: str = "text", on_error: str = "raise") -> Located:
    """Loads records from any source, with the places that they come from.

    Args:
        source: As in `load`.
        text_column: str. As in `load`. Defaults to `"text"`.
        on_error: `"raise"`, or `"skip"` to keep what is no record as an empty one, which `select`
            leaves out. Defaults to `"raise"`.

    Returns:
        `kerasrlhf.data.places.Located`.

    Raises:
        ValueError: As `load`.
    """
    rows = sources.located(source)
    if not rows:
        raise ValueError(f"The source has no rows. Received: {_shorten(source)}")
    return prepared(rows, text_column, on_error)


def prepared(rows: Located, text_column: str = "text", on_error: str = "raise") -> Located:
    """Returns rows as records with the column names of this package.

    Args:
        rows: `kerasrlhf.data.places.Located` of dictionaries or strings.
        text_column: str. As in `load`. Defaults to `"text"`.
        on_error: `"raise"` or `"skip"`. As in `located`. Defaults to `"raise"`.

    Returns:
        `kerasrlhf.data.places.Located`.

    Raises:
        ValueError: If `on_error` is something else, or `"raise"` and a row is no record.
    """
    _check_on_error(on_error)
    if on_error == "raise":
        rows.check()
    # A string is a record of one column.
    records = [{text_column: row} if isinstance(row, str) else row for row in rows]
    broken = dict(rows.broken)
    try:
        refuse(records, lambda row: not isinstance(row, dict), _NO_RECORDS)
    except RowError as error:
        if on_error == "raise":
            raise _at_its_place(error, rows, error.numbers) from error
        broken |= dict.fromkeys(error.numbers, error.reason)
    records = [
        {} if number in broken else _from_sharegpt(row, text_column)
        for number, row in enumerate(records)
    ]
    return Located(records, rows.path, rows.lines, broken)


def _at_its_place(error: RowError, rows: list, numbers: Sequence[int]) -> RowError:
    """Returns an error that begins with the place of its first row, if rows know theirs."""
    if not isinstance(rows, Located):
        return error
    return RowError(f"{rows.place(numbers[0])}{error}", [*numbers], error.reason)


def _from_sharegpt(row: Record, text_column: str) -> Record:
    """Returns a record with the names of columns and keys that the rest of the package reads."""
    if "conversations" not in row or row.keys() & {"messages", "prompt"}:
        return row
    rest = {key: value for key, value in row.items() if key not in ("conversations", "system")}
    # In pairs the conversation leads up to two replies, each a single message.
    for column in rest.keys() & {"chosen", "rejected"}:
        reply = rest[column]
        rest[column] = dialogue.from_sharegpt([reply] if isinstance(reply, dict) else reply)
    messages = dialogue.from_sharegpt(row["conversations"])
    if row.get("system") and isinstance(messages, list):
        messages = [{"role": "system", "content": row["system"]}, *messages]
    is_prompt = text_column == "prompt" or "chosen" in rest
    return {"prompt" if is_prompt else "messages": messages, **rest}


def prompt_texts(
    records: Records, template: Template = "plain", *, strict: bool = True
) -> list[str]:
    r"""Returns the texts to be answered.

    Args:
        records: list of dict with a column `prompt`.
        template: str or callable. How messages become a text, see `kerasrlhf.data.dialogue`.
            Defaults to `"plain"`.
        strict: bool. Whether an empty text or a lone surrogate is an error. Defaults to True.

    Returns:
        list of str.

    Raises:
        ValueError: If the column is missing, or a text is empty or neither a string nor messages.

    Example:
        >>> rlhf.data.records.prompt_texts([{"prompt": [{"role": "user", "content": "Hello"}]}])
        ['Human: Hello\n\nAssistant:']
    """
    dialogue.check_template(template)
    column = _column(records, "prompt")
    _check_texts(records, column)
    texts = _each(records, lambda row: prompt_text(row[column], template))
    return _checked("prompt", texts) if strict else texts


def demonstration_texts(
    records: Records, template: Template = "plain", *, strict: bool = True
) -> tuple[list[str], list[str]]:
    """Returns prompts and the responses to imitate.

    Args:
        records: list of dict with the columns `prompt` and `response` (or `completion`); or with
            `text`, all of which is response; or with `messages`, whose last one is.
        template: str or callable. How messages become a text. Defaults to `"plain"`.
        strict: bool. Whether an empty text or a lone surrogate is an error. Defaults to True.

    Returns:
        Two lists of str: prompts (empty strings for the column `text`) and responses.

    Raises:
        ValueError: If a column is missing, or a text is empty or neither a string nor messages.

    Example:
        >>> rlhf.data.records.demonstration_texts([{"prompt": "1 + 1 =", "completion": " 2"}])
        (['1 + 1 ='], [' 2'])
        >>> rlhf.data.records.demonstration_texts([{"text": "Once upon a time."}])
        ([''], ['Once upon a time.'])
    """
    column = _column(records, "response", "completion", "text", "messages")
    has_prompt = column in ("response", "completion")
    dialogue.check_template(template)
    _check_texts(records, column)
    # A response that is a whole dialogue brings its own prompt.
    if has_prompt and not all(dialogue.is_dialogue(row[column]) for row in records):
        _check_texts(
            records,
            _column(records, "prompt"),
            lambda row: not dialogue.is_dialogue(row[column]),
        )
    pairs = _each(records, lambda row: _demonstration(row, column, template))
    prompts, responses = (list(texts) for texts in zip(*pairs, strict=True))
    if not strict:
        return prompts, responses
    return _checked("prompt", prompts) if has_prompt else prompts, _checked(column, responses)


def turn_texts(records: Records, template: Template = "plain") -> list[list[tuple[str, str]]]:
    """Splits dialogues at the turns of the assistant, all of which are imitated.

    Args:
        records: list of dict with the columns of `demonstration_texts`.
        template: str or callable. How messages become a text. Defaults to `"plain"`.

    Returns:
        list of lists of pairs `(before, reply)` of str, see `kerasrlhf.data.dialogue.turns`; a
        record without messages has one pair.

    Raises:
        ValueError: If a column is missing, or a text is empty or neither a string nor messages.

    Example:
        >>> rlhf.data.records.turn_texts([{"prompt": "1 + 1 =", "response": " 2"}])
        [[('1 + 1 =', ' 2')]]
    """
    prompts, responses = demonstration_texts(records, template)
    column = _column(records, "response", "completion", "text", "messages")

    def split(row: Record, prompt: str, response: str) -> list[tuple[str, str]]:
        # Plain texts have one turn.
        value, before = row[column], row.get("prompt")
        if isinstance(value, str) and (isinstance(before, str) or column == "text"):
            return [(prompt, response)]
        messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
        # Only the reply is in the column; the dialogue before it is in `prompt`.
        if not dialogue.is_dialogue(messages) and isinstance(before, list):
            messages = [*before, *messages]
        if isinstance(before, str) and not dialogue.is_dialogue(messages):
            return [(prompt, response)]
        return dialogue.turns(messages, template)

    rows = zip(records, prompts, responses, strict=True)
    return _each(list(rows), lambda row: split(*row))


def preference_texts(
    records: Records, template: Template = "plain", *, strict: bool = True
) -> tuple[list[str], ...]:
    r"""Returns prompts with a preferred and a rejected response, or with several, best first.

    Without a column `prompt`, or with `chosen` and `rejected` that hold whole dialogues as
    messages, the prompt is what the two have in common: their leading messages, or as in the
    hh-rlhf data their common text up to the last line that begins with "Assistant:". Dialogues
    that differ before their last turn are compared by the first replies that differ, with a
    warning that counts them: what the person says later is no part of a response.

    Args:
        records: list of dict with the columns `chosen`, `rejected` and perhaps `prompt`; or with
            `prompt` and `responses`, a list of as many texts in every row, best first.
        template: str or callable. How messages become a text. Defaults to `"plain"`.
        strict: bool. Whether an empty text or a lone surrogate is an error. Defaults to True.

    Returns:
        Three lists of str: prompts, chosen responses, rejected responses; or with `responses`
        prompts, the best responses, the second best, and so on.

    Raises:
        ValueError: If a column is missing, a text is empty or neither a string nor messages, a pair
            has no common prompt, or a row has fewer than two `responses`, or another number of
            them than the first.

    Example:
        >>> rlhf.data.records.preference_texts(
        ...     [{"chosen": "Human: Hi\n\nAssistant: Hello!",
        ...       "rejected": "Human: Hi\n\nAssistant: Go."}])
        (['Human: Hi\n\nAssistant:'], [' Hello!'], [' Go.'])
    """
    dialogue.check_template(template)
    # Rankings have `responses`, pairs `chosen` and `rejected`.
    if _column(records, "chosen", "responses") == "responses":
        return _ranking_texts(records, template, strict)
    for column in ("chosen", "rejected"):
        _check_texts(records, _column(records, column))
    _check_texts(records, "prompt", lambda row: row.get("prompt") is not None)
    found = _each(records, lambda row: _preference(row, template))
    *columns, parts_early = zip(*found, strict=True)
    names = ("prompt", "chosen", "rejected")
    texts = _all_checked(names, columns, strict)
    if any(parts_early):
        notices.warn(
            f"{sum(parts_early)} of {len(records)} pairs part before their last turn. They are "
            "compared by the replies in which they part; what follows is left out.",
            stacklevel=2,
        )
    return texts


def _demonstration(row: Record, column: str, template: Template) -> tuple[str, str]:
    value, prompt = row[column], row.get("prompt", [])
    if column == "text" and isinstance(value, str):
        return "", value
    if column in ("text", "messages") or dialogue.is_dialogue(value):
        if isinstance(value, str):
            raise ValueError(f"{column!r} must be a list of messages. Received a string.")
        # The last message is the response; the dialogue before it is the prompt.
        prompt, value = value[:-1], value[-1:]
    return prompt_text(prompt, template), response_text(prompt, value, template)


def _preference(row: Record, template: Template) -> tuple[str, str, str, bool]:
    """Returns the texts of a pair, and whether its dialogues differ before their last turn."""
    prompt, chosen, rejected, parts_early = split_pair(row)
    return (
        prompt_text(prompt, template),
        response_text(prompt, chosen, template),
        response_text(prompt, rejected, template),
        parts_early,
    )


def split_pair(row: Record) -> tuple[Text, Text, Text, bool]:
    """Splits a pair into its prompt and the responses to it, before they become texts.

    Args:
        row: dict with the columns `chosen`, `rejected` and perhaps `prompt`.

    Returns:
        `(prompt, chosen, rejected, parts_early)`: three texts, each a str or a list of messages,
        and whether two dialogues differ before their last turn, whose rest is left out.

    Raises:
        ValueError: If there is no common prompt, or the two differ in what the user says.

    Example:
        >>> split_pair({"prompt": "Hi", "chosen": "Hello!", "rejected": "Go."})
        ('Hi', 'Hello!', 'Go.', False)
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    parts_early = False
    if prompt is None or dialogue.is_dialogue(chosen) or dialogue.is_dialogue(rejected):
        # Compare the first replies that differ; later turns are no part of a response.
        prompt, *whole = _split_common(chosen, rejected)
        chosen, rejected = map(_first_turn, whole)
        parts_early = [chosen, rejected] != whole
        if parts_early and chosen == rejected:
            raise ValueError(
                "'chosen' and 'rejected' part in what the user says, not in a reply, so there are "
                "no two responses to one prompt."
            )
    return prompt, chosen, rejected, parts_early


def _first_turn(value: Any) -> Any:
    """Returns the assistant's words up to the next turn of the user."""
    if isinstance(value, str):
        question = _QUESTION.search(value)
        return value[: question.start()] if question else value
    users = (i for i, message in enumerate(value) if message.get("role") == "user")
    return value[: next(users, len(value))]


def _ranking_texts(records: Records, template: Template, strict: bool) -> tuple[list[str], ...]:
    def is_wrong(row: Record) -> bool:
        texts = row.get("responses")
        return not isinstance(texts, list) or len(texts) < 2 or not all(map(is_text, texts))

    refuse(records, is_wrong, "have no list of two or more texts in 'responses'")
    # The candidates of a batch are one axis, so every row has as many.
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
            prompt_text(row["prompt"], template),
            *(response_text(row["prompt"], response, template) for response in row["responses"]),
        ),
    )
    names = ("prompt", *["responses"] * count)
    return _all_checked(names, [*zip(*rows, strict=True)], strict)


def _split_common(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Returns the common prefix of two dialogues, and what follows it in each."""
    if type(chosen) is not type(rejected):
        raise ValueError("'chosen' and 'rejected' must both be strings or both be messages.")
    if isinstance(chosen, str):
        # The last reply that starts in the common text: what follows may differ within it.
        markers = [*_REPLY.finditer(chosen[: _common(chosen, rejected)])]
        if not markers:
            raise ValueError(
                "without a column 'prompt', 'chosen' and 'rejected' must share a text up to "
                "a line that begins with 'Assistant:'."
            )
        size = markers[-1].end()
    else:
        # At least one message is left to each side.
        size = min(_common(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        if size < 1:
            raise ValueError("'chosen' and 'rejected' must share their leading messages.")
    return chosen[:size], chosen[size:], rejected[size:]


def _common(left: Sequence, right: Sequence) -> int:
    """Returns how many leading items are equal."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(left), len(right)))


def prompt_of(record: Record) -> Any:
    r"""Returns what the responses of a record answer, whatever its columns are.

    Args:
        record: dict.

    Returns:
        str or list of messages: the column `prompt`; else the messages before the last reply, the
        common beginning of `chosen` and `rejected`, or the whole `text`. None if there is nothing
        of the kind.

    Example:
        >>> prompt_of({"chosen": "Human: Hi\n\nAssistant: Yes.",
        ...            "rejected": "Human: Hi\n\nAssistant: No."})
        'Human: Hi\n\nAssistant:'
    """
    if "prompt" in record:
        return record["prompt"]
    if "chosen" in record and "rejected" in record:
        try:
            return _split_common(record["chosen"], record["rejected"])[0]
        except (ValueError, TypeError):  # A loader says what is wrong with the row.
            return None
    messages = record.get("messages", record.get("text"))
    return messages[:-1] if isinstance(messages, list) else messages


def prompt_text(value: Text, template: Template = "plain") -> str:
    r"""Returns a prompt as text; messages end in a generation prompt.

    Args:
        value: str or list of messages.
        template: str or callable. How messages become a text. Defaults to `"plain"`.

    Returns:
        str.

    Example:
        >>> rlhf.data.records.prompt_text([{"role": "user", "content": "Hi"}])
        'Human: Hi\n\nAssistant:'
    """
    if isinstance(value, str):
        return value
    return dialogue.render(value, template, add_generation_prompt=True)


def response_text(prompt: Text, value: Text, template: Template = "plain") -> str:
    """Returns a response as text; a string is used as it is unless its prompt is messages.

    A sampled response (`tokens.SampledText`) is used as it is in any case: it is what followed the
    prompt, not the content of a message.

    Args:
        prompt: str or list of messages.
        value: str or list of messages.
        template: str or callable. How messages become a text. Defaults to `"plain"`.

    Returns:
        str.

    Example:
        >>> rlhf.data.records.response_text([{"role": "user", "content": "Hi"}], "Hello.")
        ' Hello.'
        >>> rlhf.data.records.response_text("Hi", "Ho")
        'Ho'
    """
    if isinstance(value, tokens.SampledText):
        return value
    if isinstance(value, str) and isinstance(prompt, str):
        return value
    messages = [{"role": "assistant", "content": value}] if isinstance(value, str) else value
    return dialogue.reply([] if isinstance(prompt, str) else prompt, messages, template)


def _each(rows: list[_Row], function: Callable[[_Row], _Value]) -> list[_Value]:
    """Applies a function to every row; an error names the rows that raise one."""
    results: list[_Value] = []
    errors: dict[int, ValueError] = {}
    # Collect all errors: one message names every wrong row.
    for number, row in enumerate(rows):
        try:
            results.append(function(row))
        except ValueError as error:
            errors[number] = error
    if errors:
        number, first = next(iter(errors.items()))
        others = f" ({len(errors)} of {len(rows)} rows: {_numbers([*errors])})" * (len(errors) > 1)
        raise RowError(f"Row {number}: {first}{others}", [*errors], str(first)) from first
    return results


def _column(records: Records, *names: str) -> str:
    for name in names:
        if any(name in row for row in records):
            return name
    found = sorted({str(key) for row in records for key in row})
    raise ValueError(f"Expected a column {' or '.join(map(repr, names))}. Found: {found}")


def _check_texts(
    records: Records, column: str, is_needed: Callable[[Record], bool] = lambda row: True
) -> None:
    refuse(
        records,
        lambda row: is_needed(row) and not is_text(row.get(column)),
        f"have no text (a string or a list of messages) in {column!r}",
    )


def is_text(value: object) -> bool:
    """Returns whether a value is a text: a string, or a list of messages that is not empty.

    Example:
        >>> is_text("Hi"), is_text([{"role": "user", "content": "Hi"}]), is_text([])
        (True, True, False)
    """
    if isinstance(value, list):
        return len(value) > 0 and all(isinstance(item, dict) for item in value)
    return isinstance(value, str)


def _checked(column: str, texts: list[str]) -> list[str]:
    refuse(texts, lambda text: not text.strip(), f"have an empty {column!r}")
    refuse(
        texts,
        lambda text: not _is_unicode(text),
        f"have a lone surrogate, half of a character, in {column!r}",
    )
    return texts


def _all_checked(
    names: Sequence[str], columns: Sequence[Sequence[str]], strict: bool
) -> tuple[list[str], ...]:
    pairs = zip(names, map(list, columns), strict=True)
    return tuple(_checked(name, texts) if strict else texts for name, texts in pairs)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _shorten(value: object, size: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= size else text[:size] + "..."


def refuse(rows: list[_Row], is_wrong: Callable[[_Row], bool], message: str) -> None:
    """Raises a `ValueError` that counts the wrong rows, numbers them and shows the first.

    Args:
        rows: list.
        is_wrong: Function of a row that returns a bool.
        message: str. What is wrong with them, as the end of a sentence about rows.

    Raises:
        ValueError: If a row is wrong.
    """
    wrong = [number for number, row in enumerate(rows) if is_wrong(row)]
    if wrong:
        raise RowError(
            f"{len(wrong)} of {len(rows)} rows {message}: rows {_numbers(wrong)} (counted from "
            f"0). The first: {_shorten(rows[wrong[0]])}",
            wrong,
            message,
        )


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")


def select(records: Records, read: Callable[[Records], Any], on_error: str = "raise") -> Selection:
    """Reads records, and leaves out odd ones if `on_error` says so.

    Args:
        records: list of dict.
        read: Function of a list of records that raises a `RowError`, as those of this module do.
        on_error: `"raise"`, or `"skip"` to leave out the rows that an error names. Defaults to
            `"raise"`.

    Returns:
        `Selection`.

    Raises:
        ValueError: If `on_error` is something else, a row cannot be read, or none can.

    Example:
        >>> rows = [{"prompt": "a"}, {"prompt": ""}]
        >>> found = rlhf.data.records.select(rows, rlhf.data.records.prompt_texts, "skip")
        >>> found.values, found.skipped
        (['a'], {1: "have an empty 'prompt'"})
    """
    _check_on_error(on_error)
    if on_error == "skip":
        values, kept, skipped = sift(records, read)
        if not kept:
            raise ValueError(f"No row can be used. The last reason: {[*skipped.values()][-1]}")
        return Selection(values, dict(sorted(skipped.items())))
    try:
        return Selection(read(records), {})
    except RowError as error:
        raise _at_its_place(error, records, error.numbers) from error
    except ValueError as error:
        # What is wrong with all rows, such as a missing column.
        raise ValueError(f"{_file_of(records)}{error}") from error


def sift(
    records: Records, read: Callable[[Records], _Value]
) -> tuple[_Value | None, list[int], dict[int, str]]:
    """Reads the records that can be read.

    Args:
        records: list of dict.
        read: Function as in `select`.

    Returns:
        What it returned for the good records, or None if there are none; the numbers of these; and
        those of the others with what is wrong with them, in the order of the checks.

    Raises:
        ValueError: If all records have something wrong, such as a missing column.
    """
    skipped: dict[int, str] = dict(records.broken) if isinstance(records, Located) else {}
    kept = [number for number in range(len(records)) if number not in skipped]
    # Each error names wrong rows; read the others again until none is left.
    while kept:
        try:
            return read([records[i] for i in kept]), kept, skipped
        except RowError as error:
            # Numbers of an error count the rows that were read; map them to those of the source.
            wrong = {kept[number] for number in error.numbers}
            skipped |= dict.fromkeys(sorted(wrong), error.reason)
            kept = [number for number in kept if number not in wrong]
        except ValueError as error:
            raise ValueError(f"{_file_of(records)}{error}") from error
    return None, kept, skipped


def warn_of_skipped(skipped: dict[int, str], count: int, stacklevel: int = 4) -> None:
    """Warns of rows that were left out.

    Args:
        skipped: dict from int, their numbers, to str, why.
        count: int. How many rows there are in all.
        stacklevel: int. Which caller the warning names, as in `warnings.warn`. Defaults to 4.
    """
    if skipped:
        reasons = "; ".join(f"row {row}: {why}" for row, why in [*skipped.items()][:_SHOWN])
        warnings.warn(
            f"{len(skipped)} of {count} rows cannot be used and were left out ({reasons}"
            f"{'; ...' if len(skipped) > _SHOWN else ''}).",
            stacklevel=stacklevel,
        )


def _file_of(records: Records) -> str:
    return records.place() if isinstance(records, Located) else ""


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f'`on_error` must be "raise" or "skip". Received: {on_error!r}.')


def guarded(records: Records, tokenizer: Tokenizer) -> Records:
    r"""Returns records whose texts keep typed special tokens as text.

    Args:
        records: list of dict.
        tokenizer: A keras-hub tokenizer.

    Returns:
        list of dict; see `kerasrlhf.special_tokens.guarded`.

    Example:
        >>> import keras_hub
        >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "aa": 2}
        >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
        >>> rlhf.data.records.guarded([{"prompt": "<|endoftext|>", "id": 3}], tokenizer)
        [{'prompt': '<\ufdd0|endoftext|>', 'id': 3}]
    """

    def guard(value: Any) -> Any:
        if isinstance(value, str):
            return tokens.guarded(value, tokenizer)
        if isinstance(value, list | tuple):
            return [guard(item) for item in value]
        if isinstance(value, dict):
            # Roles are the template's words, not what somebody typed.
            return {key: item if key == "role" else guard(item) for key, item in value.items()}
        return value

    marked = [
        {key: guard(value) if key in _TEXTS else value for key, value in record.items()}
        for record in records
    ]
    return records.with_rows(marked) if isinstance(records, Located) else marked


def warn_of_ignored_keys(records: Records, template: Template) -> None:
    """Warns of the keys of messages that a built-in template ignores, with their number.

    Args:
        records: list of dict.
        template: str or callable. See `kerasrlhf.data.dialogue`.
    """
    if callable(template):
        return
    values = (record.get(column) for record in records for column in _TEXTS)
    dialogues = [x for x in values if isinstance(x, list) and x and isinstance(x[0], dict)]
    messages = [m for found in dialogues for m in found if isinstance(m, dict)]
    keys = [dialogue.ignored_keys([message]) for message in messages]
    found = sorted(set().union(*keys))
    if found:
        notices.warn(
            f"{sum(map(bool, keys))} of {len(keys)} messages have keys that the template "
            f"{template!r} ignores: {found}. A callable `template` receives them.",
            stacklevel=3,
        )


def to_json(records: Records) -> list[str]:
    """Returns each record as one line of JSON; arrays become lists.

    Args:
        records: list of dict.

    Returns:
        list of str.

    Raises:
        ValueError: If JSON cannot express a value; the row is named.

    Example:
        >>> rlhf.data.records.to_json([{"prompt": "é", "label": 1}])
        ['{"prompt": "é", "label": 1}']
    """
    lines = _each(records, lambda row: json.dumps(row, ensure_ascii=False, default=_plain_value))
    refuse(lines, lambda line: not _is_unicode(line), "have a lone surrogate, half of a character")
    return lines


def _plain_value(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"JSON cannot express {value!r}.")
