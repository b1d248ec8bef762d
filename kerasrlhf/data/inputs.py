"""Prompts and responses that are passed as texts or messages, as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kerasrlhf import tokens
from kerasrlhf.data import dialogue
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import rows as rows_lib
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.records import Text

if TYPE_CHECKING:
    from keras_hub.models import CausalLMPreprocessor


def is_conversation(value: object) -> bool:
    """Returns whether a value is one list of messages.

    Example:
        >>> is_conversation([{"role": "user", "content": "Hi"}]), is_conversation(["Hi"])
        (True, False)
    """
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], dict)


def encode_prompts(
    prompts: Iterable[Text],
    preprocessor: CausalLMPreprocessor | None,
    template: Template = "plain",
    parse_special: bool = False,
) -> tuple[list[str], list[list[int]]]:
    """Tokenizes prompts as `kerasrlhf.data.prompts` does, whole.

    Args:
        prompts: list of str or of lists of messages.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        template: str or callable. How messages become a text, see `kerasrlhf.data.dialogue`.
            Defaults to `"plain"`.
        parse_special: bool. Whether a special token that is written in a prompt becomes that token.
            Defaults to False.

    Returns:
        The texts, list of str, in which typed special tokens are marked unless they are parsed (see
        `kerasrlhf.special_tokens`); and their token ids with the start token, list of lists of int.

    Raises:
        ValueError: If there are no prompts, one of them is neither a text nor messages or has no
            tokens, or there is no preprocessor.
    """
    prompts = tokens.text_list(prompts, "prompts")
    texts = [
        records_lib.prompt_text(x, template) for x in _typed(prompts, preprocessor, parse_special)
    ]
    ids = tokens.encode(texts, preprocessor, parse_special=True)
    return texts, ids


def encode_pairs(
    prompts: Iterable[Text],
    responses: Iterable[Text],
    preprocessor: CausalLMPreprocessor,
    limit: int,
    *,
    ended: bool | Iterable[bool] = True,
    template: Template = "plain",
    parse_special: bool = False,
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokenizes prompts and responses as training data has them.

    Args:
        prompts: list of str or of lists of messages.
        responses: list of str or of lists of messages, one per prompt.
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        limit: int. Tokens of a row at most.
        ended: bool, or one per response. Whether an end token follows it. Defaults to True.
        template: str or callable. As in `encode_prompts`. Defaults to `"plain"`.
        parse_special: bool. As in `encode_prompts`. Defaults to False.

    Returns:
        Two lists of lists of int: prompts with their start token, and responses.

    Raises:
        ValueError: If there are no prompts, the numbers of prompts, responses and flags differ, one
            of them is neither a text nor messages, or there is no preprocessor.
    """
    prompts = tokens.text_list(prompts, "prompts")
    responses = tokens.text_list(responses, "responses")
    if len(prompts) != len(responses):
        raise ValueError(
            "Expected as many responses as prompts. Received "
            f"{len(prompts)} prompts and {len(responses)} responses."
        )
    # One flag for all, or one for each.
    flags = [ended] * len(responses) if isinstance(ended, bool) else [*ended]
    if len(flags) != len(responses):
        raise ValueError(
            f"`ended` must be a bool, or one for each of the {len(responses)} responses. "
            f"Received {len(flags)}."
        )
    # Guard typed special tokens before the template adds its own.
    columns = (_typed(column, preprocessor, parse_special) for column in (prompts, responses))
    pairs = [
        (
            records_lib.prompt_text(prompt, template),
            records_lib.response_text(prompt, response, template),
        )
        for prompt, response in zip(*columns, strict=True)
    ]
    heads, tails = (list(column) for column in zip(*pairs, strict=True))
    rows = rows_lib.encode(
        heads, [tails], preprocessor, limit, ended=[flags], turn_end=dialogue.turn_end(template)
    )
    return rows.prompt_ids, rows.candidates[0]


def _typed(
    values: list[Text], preprocessor: CausalLMPreprocessor | None, parse_special: bool
) -> list[Text]:
    """Returns texts and messages in which special tokens are text, unless they are parsed."""
    bad = [i for i, x in enumerate(values) if not (isinstance(x, str) or is_conversation(x))]
    if bad:
        raise ValueError(
            "Expected a list of strings or of lists of messages. Received "
            f"{values[bad[0]]!r} of type {type(values[bad[0]]).__name__} (rows {bad[:5]})."
        )
    if preprocessor is None or parse_special:
        return values
    tokenizer = tokens.tokenizer_of(preprocessor)
    # In records, so that texts and messages are guarded alike.
    records = records_lib.guarded([{"prompt": value} for value in values], tokenizer)
    return [record["prompt"] for record in records]
