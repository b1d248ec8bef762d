"""Where synonyms come from: a dictionary, a function, or a wordnet that is on this machine."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MISSING = (
    'Synonyms of "wordnet" need the package `wn`: `pip install kerasrlhf[augment]`. Or pass '
    "`synonyms` as a dictionary of lists, or as a function of a word that returns a list."
)
_NO_LEXICON = (
    "The package `wn` has no English lexicon yet. Once: `python -m wn download oewn:2024`, or "
    "without a network `wn.add(path)` of a file in the format WN-LMF, such as "
    "`english-wordnet-2024.xml.gz`."
)


def finder(synonyms: Any) -> Callable[[str], Sequence[str]]:
    """Returns the function that looks a word up.

    Args:
        synonyms: `"wordnet"`, a dictionary from words in lower case to lists of str, or a function
            of a word that returns an iterable of str.

    Returns:
        Function of a word in lower case that returns a list of str; it looks each word up once.

    Raises:
        ValueError: If `synonyms` is something else, or `wn` has no English lexicon.
        ImportError: If `wn` is needed and not installed.

    Example:
        >>> finder({"sad": ["unhappy"]})("sad"), finder({})("sad")
        (['unhappy'], [])
    """
    if isinstance(synonyms, str) and synonyms == "wordnet":
        look_up = _wordnet()
    elif isinstance(synonyms, Mapping):
        return lambda word: [*synonyms.get(word, ())]
    elif callable(synonyms):
        look_up = synonyms
    else:
        raise ValueError(
            '`synonyms` must be "wordnet", a dictionary from words to lists of words, or a '
            f"function of a word that returns a list. Received: {synonyms!r}."
        )
    return functools.cache(lambda word: [*look_up(word)])


def _wordnet() -> Callable[[str], list[str]]:
    try:
        wn = importlib.import_module("wn")
    except ImportError as error:
        raise ImportError(MISSING) from error
    if not wn.lexicons(lang="en"):
        raise ValueError(_NO_LEXICON)
    english = wn.Wordnet(lang="en", expand="")

    def look_up(word: str) -> list[str]:
        # The first synset of each part of speech is the most frequent sense.
        first: dict[str, Any] = {}
        for synset in english.synsets(word):
            first.setdefault(synset.pos, synset)
        lemmas = [lemma for synset in first.values() for lemma in synset.lemmas()]
        return [*dict.fromkeys(lemma for lemma in lemmas if lemma.lower() != word)]

    return look_up
