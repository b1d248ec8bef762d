"""The rules of `kerasrlhf.data.augment`, by name, as functions that change the texts of a row."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasrlhf.checks import require_choice, require_int, require_number
from kerasrlhf.data.augmenting import pairs, prompts, words
from kerasrlhf.data.augmenting.parts import Parts, Reader
from kerasrlhf.data.augmenting.synonyms import finder
from kerasrlhf.data.records import Record, Records

TEXT_RULES = ("delete_words", "swap_words", "replace_words")
PROMPT_RULES = ("wrap_prompts", "cut_prompts")
PAIR_RULES = ("unrelated_response", "best_against_worst")
RULES = (*TEXT_RULES, *PROMPT_RULES, *PAIR_RULES)
# The arguments that rules cannot do without.
NEEDS = {"replace_words": "synonyms", "wrap_prompts": "templates", "best_against_worst": "sample"}

# Of a row and the number of a copy: its texts, and the other columns that change.
Rule = Callable[[int, int], tuple[Parts, Record]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `kerasrlhf.data.augment`, described there.

    Raises:
        ValueError: If one of them is out of its range.
    """

    texts: str = "auto"
    rate: float = 0.1
    synonyms: Any = None
    templates: Any = None
    sample: Any = None
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice("texts", self.texts, ("auto", "prompts", "responses", "all"))
        require_number("rate", self.rate, above=0.0, below=1.0)
        require_int("copies", self.copies, minimum=1)
        require_int("seed", self.seed, minimum=0)
        if self.synonyms is not None:
            finder(self.synonyms)
        if self.templates is not None:
            prompts.check_templates(self.templates)
        if self.sample is not None and not callable(self.sample):
            raise ValueError(
                "`sample` must be a function of a list of prompts, such as `lambda prompts: "
                f"rlhf.best_of_n(actor, reward, prompts, 4, sampler)`. Received: {self.sample!r}."
            )

    def places(self, kind: str) -> tuple[bool, bool]:
        """Returns whether rules of words apply to the prompts, and to the responses, of a kind."""
        texts = self.texts
        if texts == "auto":
            texts = "all" if kind == "preferences" else "prompts"
        return texts in ("all", "prompts"), texts in ("all", "responses")

    def random(self, rule: str, row: int, copy: int = 0) -> np.random.Generator:
        """Returns the random numbers of one record, which depend on nothing else."""
        return np.random.default_rng([self.seed, zlib.crc32(rule.encode()), row, copy])


def of_words(rule: str, options: Options, reader: Reader, all_parts: list[Parts]) -> Rule:
    """Returns a rule that changes words."""
    changes: dict[str, words.Change] = {"delete_words": words.delete, "swap_words": words.swap}
    if rule == "replace_words":
        changes[rule] = words.replacing(finder(options.synonyms))
    of_prompts, of_responses = options.places(reader.kind)

    def make(row: int, copy: int) -> tuple[Parts, Record]:
        random = options.random(rule, row, copy)

        def change(text: str) -> str:
            return changes[rule](text, options.rate, random)

        prompt, responses = all_parts[row]
        if of_prompts and prompt is not None:
            prompt = words.changed(prompt, change)
        if of_responses:
            responses = [words.changed(response, change) for response in responses]
        return Parts(prompt, responses), {}

    return make


def of_prompts(rule: str, options: Options, reader: Reader, all_parts: list[Parts]) -> Rule:
    """Returns a rule that changes whole prompts."""
    templates = prompts.check_templates(options.templates) if rule == "wrap_prompts" else []

    def make(row: int, copy: int) -> tuple[Parts, Record]:
        prompt, responses = all_parts[row]
        if prompt is None:
            return all_parts[row], {}
        if rule == "wrap_prompts":
            # The copies of a row have different templates.
            first = options.random(rule, row).integers(len(templates))
            prompt = prompts.wrap(prompt, templates[(first + copy) % len(templates)])
        else:
            random = options.random(rule, row, copy)
            prompt = prompts.cut(prompt, random, keep_start=reader.kind == "prompts")
        return Parts(prompt, responses), {}

    return make


def of_unrelated(rule: str, options: Options, records: Records, all_parts: list[Parts]) -> Rule:
    """Returns the rule that takes rejected responses from other rows."""
    others = pairs.Others(records, all_parts)

    def make(row: int, copy: int) -> tuple[Parts, Record]:
        return others.replace_rejected(row, options.random(rule, row, copy))

    return make


def of_sampled(options: Options, all_parts: list[Parts]) -> Rule:
    """Returns the rule that takes both responses from a sample."""
    found = pairs.sampled(options.sample, all_parts)

    def make(row: int, copy: int) -> tuple[Parts, Record]:
        if row not in found:
            return all_parts[row], {}
        pair = found[row]
        responses = [pair["chosen"], pair["rejected"]]
        return Parts(all_parts[row].prompt, responses), {"ended": pair.get("ended")}

    return make


def rule_of(
    rule: str, options: Options, reader: Reader, records: Records, all_parts: list[Parts]
) -> Rule:
    """Returns the rule of a name for records.

    Args:
        rule: str, one of `RULES`.
        options: `Options`.
        reader: `Reader` of the records.
        records: list of dict.
        all_parts: list of `Parts`, the texts of the records.

    Returns:
        Function of a row and the number of a copy.
    """
    if rule in TEXT_RULES:
        return of_words(rule, options, reader, all_parts)
    if rule in PROMPT_RULES:
        return of_prompts(rule, options, reader, all_parts)
    if rule == "unrelated_response":
        return of_unrelated(rule, options, records, all_parts)
    return of_sampled(options, all_parts)
