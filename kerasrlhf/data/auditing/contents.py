"""Checks of single texts: empty ones, remains of encodings, scripts unlike the others."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable

import numpy as np

from kerasrlhf.data.auditing.corpus import Corpus
from kerasrlhf.data.auditing.findings import Finding, finding
from kerasrlhf.data.auditing.options import Options

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
# The bytes 0x80 to 0xBF, which continue a character of UTF-8, as other encodings show them.
_BYTES = bytes(range(0x80, 0xC0))
_NEXT = re.escape(_BYTES.decode("cp1252", errors="ignore") + _BYTES.decode("latin-1"))
# Letters such as Ã end words of some languages, so that only sequences that those do not write
# count: accented letters, punctuation, emoji, a byte order mark, two or more of other alphabets.
_MOJIBAKE = re.compile(
    rf"[ÂÃ][{_NEXT}]|â(?:€|\x80)[{_NEXT}]|ð(?:Ÿ|\x9f)[{_NEXT}]{{2}}|ï»¿"
    rf"|(?:[ÎÏÐÑ][{_NEXT}]){{2,}}|(?:[ã-é][{_NEXT}]{{2}}){{2,}}"
)
_LEAD = re.compile("[ÂÃâðïÎÏÐÑã-é]")
_SCRIPTS = {
    "Latin": "\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f",
    "Armenian": "\u0530-\u058f",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff",
    "Ethiopic": "\u1200-\u137f",
    "Hangul": "\u1100-\u11ff\uac00-\ud7af",
    "Chinese or Japanese": "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_ASCII = re.compile(r"[\x00-\x7f]+")
_ASCII_LETTERS = string.ascii_letters.encode()
# A name or a formula is not yet a text in another script.
_LEAST_LETTERS = 5
# The fraction of texts that one script must have before the others are odd.
_USUAL = 0.9


def is_empty(text: str) -> bool:
    """Returns whether a text is empty or white space."""
    return not text.strip()


def has_lone_surrogate(text: str) -> bool:
    r"""Returns whether a text has half of a character.

    Example:
        >>> has_lone_surrogate("\ud83d"), has_lone_surrogate("😀")
        (True, False)
    """
    return not text.isascii() and _SURROGATE.search(text) is not None


def has_replacement_character(text: str) -> bool:
    """Returns whether a text has the character that replaces bytes of unknown meaning."""
    return "\ufffd" in text


def has_mojibake(text: str) -> bool:
    """Returns whether UTF-8 in a text was decoded as another encoding.

    Example:
        >>> has_mojibake("Itâ€™s"), has_mojibake("It’s a château, Ångström: CAFÉ…")
        (True, False)
    """
    if text.isascii() or _LEAD.search(text) is None:
        return False
    return _MOJIBAKE.search(text) is not None


def has_control_character(text: str) -> bool:
    r"""Returns whether a text has control characters other than tab and line breaks.

    Example:
        >>> has_control_character("a\x07"), has_control_character("a\tb\r\n")
        (True, False)
    """
    return _CONTROL.search(text) is not None


def has_html_entity(text: str) -> bool:
    """Returns whether a text has an HTML entity outside of code.

    Example:
        >>> has_html_entity("Tom &amp; Mia"), has_html_entity("Write `&amp;` in HTML. AT&T;")
        (True, False)
    """
    return "&" in text and _ENTITY.search(_CODE.sub("", text)) is not None


def script(text: str) -> str | None:
    """Returns the script of most letters of a text, or None if it has few letters.

    Example:
        >>> script("Tom was sad."), script("Том was грустный."), script("1 + 1 = 2")
        ('Latin', 'Cyrillic', None)
    """
    ascii_text = text.encode("ascii", "ignore")
    counts = {"Latin": len(ascii_text) - len(ascii_text.translate(None, _ASCII_LETTERS))}
    if len(ascii_text) < len(text):
        others = _ASCII.sub("", text)
        for name, letters in _LETTERS.items():
            counts[name] = counts.get(name, 0) + len(letters.findall(others))
    name = max(counts, key=lambda key: counts[key])
    # One sign of these scripts is as much as some letters of others.
    least = 2 if name in ("Hangul", "Chinese or Japanese") else _LEAST_LETTERS
    return name if counts[name] >= least else None


_FAULTS: dict[str, Callable[[str], bool]] = {
    "empty_texts": is_empty,
    "lone_surrogates": has_lone_surrogate,
    "replacement_characters": has_replacement_character,
    "mojibake": has_mojibake,
    "control_characters": has_control_character,
    "html_entities": has_html_entity,
}
FAULTS = tuple(_FAULTS)


def find_fault(name: str, corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows in which a text has the fault of a name in `FAULTS`."""
    is_faulty, wrong, details = _FAULTS[name], np.zeros(len(corpus), bool), []
    for column, texts in corpus.columns.items():
        found = np.fromiter(map(is_faulty, texts), bool, len(corpus))
        wrong |= found
        if found.any():
            details.append(f"{column}: {found.sum()}")
    return finding(name, corpus, np.flatnonzero(wrong), detail="; ".join(details))


def find_other_scripts(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows with a text whose script is not that of nearly all texts."""
    counts = script_counts(corpus)
    usual = next(iter(counts), None)
    if usual is None or counts[usual] < _USUAL * sum(counts.values()):
        return []
    odd = [
        {name for name in row if name not in (None, usual)}
        for row in zip(*scripts_of(corpus).values(), strict=True)
    ]
    rows = [row for row, names in enumerate(odd) if names]
    others = "; ".join(f"{name}: {n}" for name, n in counts.items() if name != usual)
    return finding("other_script", corpus, rows, detail=f"usual: {usual}; {others}")


def scripts_of(corpus: Corpus) -> dict[str, list[str | None]]:
    """Returns the script of each text by column, computed once."""
    if corpus.scripts is None:
        corpus.scripts = {name: [*map(script, texts)] for name, texts in corpus.columns.items()}
    return corpus.scripts


def script_counts(corpus: Corpus) -> dict[str, int]:
    """Returns how many texts are in each script, the most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    for names in scripts_of(corpus).values():
        counts.update(name for name in names if name is not None)
    return dict(counts.most_common())
