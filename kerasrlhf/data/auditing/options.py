"""What an audit is asked to look for, in one object that checks itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from kerasrlhf import tokens
from kerasrlhf.checks import require_choice, require_int, require_number
from kerasrlhf.data import dialogue
from kerasrlhf.data.auditing.corpus import KINDS, Corpus
from kerasrlhf.data.dialogue import Template


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `kerasrlhf.data.audit` and `kerasrlhf.data.clean`, described there.

    Raises:
        ValueError: If one of them is out of its range, or lengths come without a tokenizer.
    """

    kind: str = "auto"
    tokenizer: Any = None
    prompt_length: int | None = None
    response_length: int | None = None
    near: float | None = 0.8
    position: str | None = "auto"
    template: Template = "plain"
    seed: int = 0
    held_out: Corpus | None = None

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, ("auto", *KINDS))
        dialogue.check_template(self.template)
        require_int("seed", self.seed, minimum=0)
        if self.near is not None:
            require_number("near", self.near, above=0.0, maximum=1.0)
        for name in ("prompt_length", "response_length"):
            if getattr(self, name) is None:
                continue
            require_int(name, getattr(self, name), minimum=1)
            if self.tokenizer is None:
                raise ValueError(f"`{name}` is in tokens: pass `tokenizer` too.")
        if self.tokenizer is not None:
            tokens.tokenizer_of(self.tokenizer)
        if self.position is not None and not isinstance(self.position, str):
            raise ValueError(
                f'`position` must be the name of a column, "auto" or None. Received: '
                f"{self.position!r}."
            )
