"""The chat templates of published models, by name, and the one in a Hugging Face folder.

A built-in template gets messages of two strings, `role` and `content`, whose roles are `"system"`,
`"user"` and `"assistant"`. It does not write the start token, which tokenization puts first.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

ROLES = ("system", "user", "assistant")
# Newer templates mark what the assistant says. Jinja does not know that statement.
_MARK = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


@dataclasses.dataclass(frozen=True)
class TurnFormat:
    """What a template writes around the contents of messages.

    before: dict from role to the str before a content. Without the role `"system"`, the system's
        text becomes the beginning of the first turn, with a blank line after it.
    after: dict from role to the str after a content, with the same roles.
    generation: str at which the assistant's next turn begins.
    end: str. The special token that ends an assistant's turn, with which `after` begins, or `""`.
    strips: bool. Whether white space around a content is dropped.
    """

    before: dict[str, str]
    after: dict[str, str]
    generation: str
    end: str
    strips: bool

    def __call__(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """Returns messages as one text."""
        pairs = [(m["role"], m["content"]) for m in messages]
        if self.strips:
            pairs = [(role, content.strip()) for role, content in pairs]
        if "system" not in self.before and pairs and pairs[0][0] == "system":
            (_, system), *rest = pairs
            role, content = rest[0] if rest else ("user", "")
            pairs = [(role, f"{system}\n\n{content}"), *rest[1:]]
        if any(role not in self.before for role, _ in pairs):
            raise ValueError(
                "This template has no turn of the system, whose text begins the first turn. It "
                f"must come first. Received roles {[m['role'] for m in messages]}."
            )
        turns = [self.before[role] + content + self.after[role] for role, content in pairs]
        return "".join([*turns, self.generation] if add_generation_prompt else turns)

    @property
    def separator(self) -> str:
        """The str after the token that ends an assistant's turn."""
        return self.after["assistant"].removeprefix(self.end)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """Human and Assistant, the form of the published hh-rlhf data, without special tokens."""

    end: str = ""
    separator: str = ""

    def __call__(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        speakers = {"system": "", "user": "Human: ", "assistant": "Assistant: "}
        turns = [speakers[m["role"]] + m["content"] for m in messages]
        # No space at the end: tokenizers attach a space to the word that follows it.
        return "\n\n".join([*turns, "Assistant:"] if add_generation_prompt else turns)


def _format(
    before: Callable[[str], str], end: str, separator: str = "", strips: bool = False
) -> TurnFormat:
    """Returns a format in which the turns of all roles look alike."""
    return TurnFormat(
        {role: before(role) for role in ROLES},
        dict.fromkeys(ROLES, end + separator),
        before("assistant"),
        end,
        strips,
    )


BUILT_IN: dict[str, TurnFormat | _Plain] = {
    "plain": _Plain(),
    # Qwen 1.5 to 3, SmolLM 2 and many others. Their own templates add a message of the system.
    "chatml": _format("<|im_start|>{}\n".format, "<|im_end|>", "\n"),
    # Llama 3, 3.1 and 3.2. From 3.1 on the model's own adds the date to the system's message.
    "llama3": _format(_HEADER.format, "<|eot_id|>", strips=True),
    "phi3": _format("<|{}|>\n".format, "<|end|>", "\n"),
    # Gemma 1 to 3. The models call the assistant "model".
    "gemma": TurnFormat(
        {"user": "<start_of_turn>user\n", "assistant": "<start_of_turn>model\n"},
        dict.fromkeys(("user", "assistant"), "<end_of_turn>\n"),
        "<start_of_turn>model\n",
        "<end_of_turn>",
        strips=True,
    ),
    # Mistral 7B Instruct v0.3. Its end token ends a turn.
    "mistral": TurnFormat(
        {"user": "[INST] ", "assistant": " "},
        {"user": "[/INST]", "assistant": "</s>"},
        "",
        "</s>",
        strips=True,
    ),
}
"""The built-in templates: callables of messages, with the special token that ends a turn."""


class ChatTemplate:
    """The chat template that comes with a model of Hugging Face, as a `template`.

    Jinja renders it in a sandbox. It needs the extra `huggingface`.

    Args:
        source: str. The template, in the language of Jinja.
        variables: dict. Further variables of the template, such as `bos_token`. Defaults to None:
            none.

    Raises:
        ValueError: If the source is not a template.
        ImportError: If Jinja is not installed.

    Example:
        >>> template = ChatTemplate(
        ...     "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        ...     "{% if add_generation_prompt %}[assistant]{% endif %}")
        >>> template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
        '[user]Hello[assistant]'
    """

    def __init__(self, source: str, variables: dict[str, Any] | None = None) -> None:
        try:
            import jinja2
            import jinja2.ext
            import jinja2.sandbox
        except ImportError as error:
            raise ImportError(
                "A chat template is rendered by Jinja. Install it with "
                "`pip install kerasrlhf[huggingface]`."
            ) from error
        self.source, self.variables = source, dict(variables or {})
        # The settings that published templates are written for.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        self._errors = jinja2.TemplateError
        try:
            self._template = environment.from_string(
                _MARK.sub(lambda m: m[1] + ("endif" if m[2] else "if true") + m[3], source)
            )
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"The chat template is not valid: {error.message} (line {error.lineno})."
            ) from error

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> ChatTemplate:
        """Reads the template of a folder of Hugging Face, with the special tokens it names.

        Args:
            folder: str or path, with `chat_template.jinja`, or `chat_template` in
                `tokenizer_config.json`.

        Raises:
            ValueError: If the folder has no template.
        """
        folder = pathlib.Path(folder)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        own = folder / "chat_template.jinja"
        source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
        if isinstance(source, list):  # Several by name, one of which is the usual one.
            source = {x["name"]: x["template"] for x in source}.get("default")
        if not isinstance(source, str):
            raise ValueError(
                f"{str(folder)!r} has no chat template: neither `chat_template.jinja`, nor "
                "`chat_template` in `tokenizer_config.json`. Expected the folder of a model of "
                f"Hugging Face, or one of {sorted(BUILT_IN)} as `template`."
            )
        names = [name for name in config if name.endswith("_token")]
        return cls(source, {name: _content(config[name]) for name in names})

    def __call__(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """Returns messages as one text. A start token that it writes is not added once more."""
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self.variables
            )
        except (self._errors, TypeError, ValueError) as error:
            roles = [message.get("role") for message in messages]
            raise ValueError(
                f"The chat template does not take these messages: {error} (roles {roles})."
            ) from error

    def __repr__(self) -> str:
        shown = self.source if len(self.source) <= 60 else f"{self.source[:60]}..."
        return f"ChatTemplate({shown!r})"


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON without the escapes for HTML that Jinja's own filter writes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _content(token: Any) -> str:
    """A special token of a configuration: a str, or a dict with its content."""
    return token.get("content", "") if isinstance(token, dict) else token or ""
