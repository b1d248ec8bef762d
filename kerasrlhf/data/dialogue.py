"""From a list of messages to one text.

A message is `{"role": "system" | "user" | "assistant", "content": str}`. A template is `"plain"`
(the "Human: ... Assistant: ..." form of the published hh-rlhf data), `"chatml"`, or a callable
`template(messages, add_generation_prompt=False)` that returns a text.
"""

_SPEAKERS = {"system": "", "user": "Human: ", "assistant": "Assistant: "}


def render(messages, template="plain", add_generation_prompt=False):
    """Renders a dialogue as text.

    Args:
        messages: List of `{"role": ..., "content": ...}`.
        template: `"plain"`, `"chatml"`, or a callable.
        add_generation_prompt: Whether the text ends where the assistant's next turn begins.

    Returns:
        A `str`.

    Raises:
        ValueError: An unknown template or role, or a message with missing or other keys.

    Example:

    >>> messages = [{"role": "user", "content": "Hello"}]
    >>> render(messages, add_generation_prompt=True)
    'Human: Hello\\n\\nAssistant:'
    >>> render(messages, "chatml")
    '<|im_start|>user\\nHello<|im_end|>\\n'
    """
    writer = check_template(template)
    _check_messages(messages, template)
    return writer(messages, add_generation_prompt=add_generation_prompt)


def reply(prompt_messages, messages, template="plain"):
    """The text that `messages` add to a rendered prompt, which ends in a generation prompt.

    A built-in template's mark of the end of the last turn is left out: what ends a response in
    training data is the end token.

    Args:
        prompt_messages: List of messages; may be empty.
        messages: List of messages that begins with the assistant's.
        template: `"plain"`, `"chatml"`, or a callable.

    Returns:
        A `str`: `render(prompt_messages, template, add_generation_prompt=True) + reply(...)` is
        the whole dialogue.

    Raises:
        ValueError: `messages` does not begin with an assistant's turn, or the template does not
            render a dialogue as a continuation of its prompt; and as `render`.

    Example:

    >>> prompt = [{"role": "user", "content": "Hello"}]
    >>> reply(prompt, [{"role": "assistant", "content": "Hi."}])
    ' Hi.'
    >>> reply(prompt, [{"role": "assistant", "content": "Hi."}], "chatml")
    'Hi.'
    """
    writer = check_template(template)
    _check_messages([*prompt_messages, *messages], template)
    if not messages or messages[0]["role"] != "assistant":
        raise ValueError(
            "A response must begin with a message whose role is 'assistant'. Received roles "
            f"{[message['role'] for message in messages]}."
        )
    whole = writer([*prompt_messages, *messages], add_generation_prompt=False)
    prompt = writer([*prompt_messages], add_generation_prompt=True)
    if not whole.startswith(prompt):
        raise ValueError(
            "The template does not render a dialogue as a continuation of its prompt: "
            f"{prompt[-40:]!r} is not the beginning of {whole[-80:]!r}."
        )
    return whole[len(prompt) :].removesuffix("<|im_end|>\n" if template == "chatml" else "")


def check_template(template):
    """The function behind a template.

    Args:
        template: `"plain"`, `"chatml"`, or a callable.

    Returns:
        A callable `(messages, add_generation_prompt=False) -> str`.

    Raises:
        ValueError: An unknown template.

    Example:

    >>> check_template("plain")([{"role": "user", "content": "Hello"}])
    'Human: Hello'
    """
    if callable(template):
        return template
    if template not in _TEMPLATES:
        raise ValueError(
            f"Unknown template {template!r}. Expected one of {sorted(_TEMPLATES)} or a callable "
            "`template(messages, add_generation_prompt=False)`."
        )
    return _TEMPLATES[template]


def _check_messages(messages, template):
    if not isinstance(messages, list | tuple):
        raise ValueError(f"Messages must be a list of dictionaries. Received: {messages!r}")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(
                "A message must be a dictionary with the keys 'role' and 'content'. "
                f"Received: {message!r}"
            )
        if not isinstance(message["content"], str):
            raise ValueError(f"A message's content must be a string. Received: {message!r}")
        if message["role"] not in _SPEAKERS and not callable(template):
            raise ValueError(
                f"Unknown role {message['role']!r}. Expected one of {list(_SPEAKERS)}, or a "
                "callable `template` that knows it."
            )


def _plain(messages, add_generation_prompt=False):
    turns = [_SPEAKERS[message["role"]] + message["content"] for message in messages]
    # No space at the end: tokenizers attach a space to the word that follows it.
    return "\n\n".join([*turns, "Assistant:"] if add_generation_prompt else turns)


def _chatml(messages, add_generation_prompt=False):
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join([*turns, "<|im_start|>assistant\n"] if add_generation_prompt else turns)


_TEMPLATES = {"plain": _plain, "chatml": _chatml}
