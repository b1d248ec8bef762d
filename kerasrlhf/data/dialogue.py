"""From a list of messages to one text.

A message is `{"role": "system" | "user" | "assistant", "content": str}`; the content may also be a
list of parts `{"type": "text", "text": str}`. A template is the name of a built-in one, or a
callable `template(messages, add_generation_prompt=False)` that returns a text, such as a
`ChatTemplate`.

The built-in templates are `"plain"` (the "Human: ... Assistant: ..." form of the published hh-rlhf
data), `"chatml"` (Qwen, SmolLM 2 and others), `"gemma"`, `"llama3"`, `"mistral"` and `"phi3"`.

The built-in templates ignore other keys of a message. A callable gets every message as it is, also
those of other roles and with a content of `None`, as tool calls have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from kerasrlhf import cli
from kerasrlhf.data import templates

Message: TypeAlias = dict[str, Any]
Template: TypeAlias = str | Callable[..., str]

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def render(
    messages: Sequence[Message], template: Template = "plain", add_generation_prompt: bool = False
) -> str:
    r"""Renders a dialogue as text.

    Args:
        messages: list of `{"role": ..., "content": ...}`.
        template: str, a built-in template, or a callable. Defaults to `"plain"`.
        add_generation_prompt: bool. Whether the text ends where the assistant's next turn begins.
            Defaults to False.

    Returns:
        str.

    Raises:
        ValueError: If the template or a role is unknown, or a message has no role or no content.

    Example:
        >>> messages = [{"role": "user", "content": "Hello"}]
        >>> rlhf.data.dialogue.render(messages, add_generation_prompt=True)
        'Human: Hello\n\nAssistant:'
        >>> rlhf.data.dialogue.render(messages, "chatml")
        '<|im_start|>user\nHello<|im_end|>\n'
    """
    writer = check_template(template)
    messages = _prepared(messages, template)
    return writer(messages, add_generation_prompt=add_generation_prompt)


def reply(
    prompt_messages: Sequence[Message], messages: Sequence[Message], template: Template = "plain"
) -> str:
    """Returns the text that messages add to a rendered prompt, which ends in a generation prompt.

    A built-in template's mark of the end of the last turn is left out: the token that ends a
    response in training data takes its place.

    Args:
        prompt_messages: list of messages; may be empty.
        messages: list of messages that begins with the assistant's.
        template: str, a built-in template, or a callable. Defaults to `"plain"`.

    Returns:
        str: `render(prompt_messages, template, add_generation_prompt=True) + reply(...)` is
        the whole dialogue.

    Raises:
        ValueError: If `messages` does not begin with an assistant's turn, or the template does not
            render a dialogue as a continuation of its prompt; and as in `render`.

    Example:
        >>> prompt = [{"role": "user", "content": "Hello"}]
        >>> rlhf.data.dialogue.reply(prompt, [{"role": "assistant", "content": "Hi."}])
        ' Hi.'
        >>> rlhf.data.dialogue.reply(prompt, [{"role": "assistant", "content": "Hi."}], "chatml")
        'Hi.'
    """
    writer = check_template(template)
    prompt_messages = _prepared(prompt_messages, template)
    messages = _prepared(messages, template)
    if not messages or messages[0]["role"] != "assistant":
        raise ValueError(
            "A response must begin with a message whose role is 'assistant'. Received roles "
            f"{[message['role'] for message in messages]}."
        )
    # The reply is the difference of two texts, so it has exactly what the template writes.
    whole = writer([*prompt_messages, *messages], add_generation_prompt=False)
    prompt = writer(prompt_messages, add_generation_prompt=True)
    end, separator = _marks(template)
    return _added(prompt, whole).removesuffix(end + separator)


def turns(messages: Sequence[Message], template: Template = "plain") -> list[tuple[str, str]]:
    r"""Splits a rendered dialogue at the turns of the assistant.

    Args:
        messages: list of messages that ends with the assistant's.
        template: str, a built-in template, or a callable. Defaults to `"plain"`.

    Returns:
        list of pairs `(before, reply)` of str, one per assistant turn. Joined they are the whole
        dialogue but for a built-in template's mark of the end of the last turn; the marks of the
        other turns are the last characters of their replies.

    Raises:
        ValueError: If the last message is not the assistant's; and as in `reply`.

    Example:
        >>> messages = [
        ...     {"role": "user", "content": "1?"}, {"role": "assistant", "content": "One."},
        ...     {"role": "user", "content": "2?"}, {"role": "assistant", "content": "Two."}]
        >>> rlhf.data.dialogue.turns(messages)
        [('Human: 1?\n\nAssistant:', ' One.'), ('\n\nHuman: 2?\n\nAssistant:', ' Two.')]
    """
    writer = check_template(template)
    messages = _prepared(messages, template)
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not messages or ends[-1:] != [len(messages) - 1]:
        raise ValueError(
            "The last message of a demonstration must have the role 'assistant'. Received roles "
            f"{[message['role'] for message in messages]}."
        )
    pairs: list[tuple[str, str]] = []
    # Render up to each reply without and with it; the differences are the pairs.
    done = ""
    for index in ends:
        head = writer(messages[:index], add_generation_prompt=True)
        whole = writer(messages[: index + 1], add_generation_prompt=False)
        pairs.append((_added(done, head), _added(head, whole)))
        done = whole
    end, separator = _marks(template)
    # What comes after the end of a turn belongs to the template, not to the assistant.
    pairs = [
        (before if i == 0 else separator + before, words.removesuffix(separator))
        for i, (before, words) in enumerate(pairs)
    ]
    pairs[-1] = pairs[-1][0], pairs[-1][1].removesuffix(end)
    return pairs


def between(
    messages: Sequence[Message], reply: str, answer: str, template: Template = "plain"
) -> str:
    r"""Returns the text between two replies: the end of a turn, the user's, and an opened turn.

    Args:
        messages: list of messages before the first of the two replies.
        reply: str. The content of that reply, without white space around it.
        answer: str. The content of the user's message after it.
        template: str, a built-in template, or a callable. Defaults to `"plain"`.

    Returns:
        str, with the mark of the end of the reply's turn.

    Raises:
        ValueError: If the template does not render a dialogue as a continuation of its prompt, or
            changes the reply; and as in `render`.

    Example:
        >>> messages = [{"role": "user", "content": "1?"}]
        >>> rlhf.data.dialogue.between(messages, "One.", "2?")
        '\n\nHuman: 2?\n\nAssistant:'
    """
    before = render(messages, template, add_generation_prompt=True)
    said = [{"role": "assistant", "content": reply}, {"role": "user", "content": answer}]
    added = _added(before, render([*messages, *said], template, add_generation_prompt=True))
    start = added.find(reply)
    if start < 0:
        raise ValueError(
            f"The template changes the reply {reply!r} when a turn follows it: {added[:80]!r}. A "
            "dialogue that goes on needs a template that keeps what was said."
        )
    return added[start + len(reply) :]


def load_template(name: str) -> Template:
    """Finds the template of a name on a command line.

    Args:
        name: str. A built-in template; a function as `package.module:function` or
            `path/to/file.py:function`; or the folder of a model with a chat template.

    Returns:
        What other functions accept as `template`.

    Raises:
        ValueError: If there is no template and no function of that name.

    Example:
        >>> rlhf.data.dialogue.load_template("chatml")
        'chatml'
    """
    if isinstance(name, str) and ":" in name:
        return cli.load_function(name)
    if isinstance(name, str) and name not in templates.BUILT_IN and os.path.isdir(name):
        return templates.ChatTemplate.from_folder(name)
    check_template(name)
    return name


def is_dialogue(value: str | Sequence[Message]) -> bool:
    """Returns whether messages hold more than a reply: a turn of the user or of the system.

    Args:
        value: str or list of messages.

    Returns:
        bool.

    Example:
        >>> rlhf.data.dialogue.is_dialogue([{"role": "assistant", "content": "Hi."}])
        False
    """
    return not isinstance(value, str) and any(
        message.get("role") in ("user", "system") for message in value
    )


def from_sharegpt(messages: Any) -> Any:
    """Returns messages of the keys `from` and `value` as messages of `role` and `content`.

    Args:
        messages: list of dict. Anything else is returned as it is, and so are its messages that
            have neither key.

    Returns:
        list of dict, with "human" as "user" and "gpt" as "assistant"; other roles stay.

    Example:
        >>> rlhf.data.dialogue.from_sharegpt([{"from": "gpt", "value": "Hi."}])
        [{'role': 'assistant', 'content': 'Hi.'}]
    """
    if not isinstance(messages, list | tuple):
        return messages

    def renamed(message: Any) -> Any:
        if not isinstance(message, dict) or not {"from", "value"} <= message.keys():
            return message
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        role = message["from"]
        return {"role": _SHAREGPT_ROLES.get(role, role), "content": message["value"], **rest}

    return [renamed(message) for message in messages]


def ignored_keys(messages: Sequence[Message]) -> set[str]:
    """Returns the keys of messages that the built-in templates ignore, as a set of str.

    Example:
        >>> rlhf.data.dialogue.ignored_keys(
        ...     [{"role": "user", "content": "Hi", "name": "Ann", "tool_calls": None}])
        {'name'}
    """
    known = ("role", "content")
    return {k for m in messages for k, value in m.items() if value is not None and k not in known}


def _added(prompt: str, whole: str) -> str:
    if not whole.startswith(prompt):
        raise ValueError(
            "The template does not render a dialogue as a continuation of its prompt: "
            f"{prompt[-40:]!r} is not a prefix of {whole[-80:]!r}."
        )
    return whole[len(prompt) :]


def check_template(template: Template) -> Callable[..., str]:
    """Returns the function that writes the texts of a template.

    Args:
        template: str, a built-in template, or a callable.

    Returns:
        A callable `(messages, add_generation_prompt=False) -> str`.

    Raises:
        ValueError: If the template is unknown.

    Example:
        >>> rlhf.data.dialogue.check_template("plain")([{"role": "user", "content": "Hello"}])
        'Human: Hello'
    """
    if callable(template):
        return template
    if template not in templates.BUILT_IN:
        raise ValueError(
            f"Unknown template {template!r}. Expected one of {sorted(templates.BUILT_IN)} or a "
            "callable `template(messages, add_generation_prompt=False)`, such as "
            "`rlhf.data.ChatTemplate.from_folder(model)`."
        )
    return templates.BUILT_IN[template]


def turn_end(template: Template) -> str | None:
    """Returns the special token that a template ends a turn with, or None.

    Example:
        >>> rlhf.data.dialogue.turn_end("chatml")
        '<|im_end|>'
    """
    return _marks(template)[0] or None


def _marks(template: Template) -> tuple[str, str]:
    """Returns the end of an assistant's turn and what follows it, both `""` for a callable."""
    if callable(template):
        return "", ""
    return templates.BUILT_IN[template].end, templates.BUILT_IN[template].separator


def _prepared(messages: object, template: Template) -> list[Message]:
    """Returns messages as a template expects them: for a built-in one checked, of two strings."""
    if not isinstance(messages, list | tuple):
        raise ValueError(f"Messages must be a list of dictionaries. Received: {messages!r}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                "A message must be a dictionary with the keys 'role' and 'content'. "
                f"Received: {message!r}"
            )
    if callable(template):
        return list(messages)
    return [{"role": _role(message), "content": _content(message)} for message in messages]


def _role(message: Message) -> str:
    if message["role"] not in templates.ROLES:
        raise ValueError(
            f"Unknown role {message['role']!r}. Expected one of {list(templates.ROLES)}, or a "
            "callable `template` that knows it."
        )
    return message["role"]


def _content(message: Message) -> str:
    if "content" not in message:
        raise ValueError(
            "A message must be a dictionary with the keys 'role' and 'content'. "
            f"Received: {message!r}"
        )
    content = message["content"]
    if isinstance(content, str):
        return content
    # A part without text, such as an image, is an error, not skipped.
    parts = content if isinstance(content, list) else [None]
    found = [part.get("text") if isinstance(part, dict) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise ValueError(
            "A message's content must be a string, or a list of parts with a string 'text'. For "
            f"tool calls pass a callable `template`. Received: {message!r}"
        )
    return "".join(texts)
