"""Named entities, answered in a fixed format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from kerasrlhf.data.records import Record
from kerasrlhf.tasks import libraries
from kerasrlhf.tasks.task import Task, column

Entity: TypeAlias = tuple[str, str]
_NONE = "none"


class NER(Task):
    r"""Entities of a sentence, as `person: Anna Smith; location: Paris`, or `none`.

    Records have `tokens` and `tags`, the tags in BIO form (`B-person`, `I-person`, `O`). A response
    in another format has no entities: it is scored, and no error. The reward has two parts: `f1` of
    the sentence, and with a small weight `format`, whether the response can be read.

    Scores are those of `seqeval`: an entity counts if type and tokens are right. One that is not in
    the sentence is a false one.

    Args:
        types: list of str, the types of entities.
        template: str. The prompt, with `{text}`. Defaults to `"Text: {text}\nEntities:"`.
        format_weight: float. Weight of `format`. Defaults to 0.2.
        length: int. Most tokens of a response. Defaults to 48.

    Raises:
        ValueError: If there are no types, or a type has a character of the format.

    Example:
        >>> task = rlhf.tasks.NER(["person", "location"])
        >>> record = {"tokens": ["Anna", "Smith", "left", "Paris"],
        ...           "tags": ["B-person", "I-person", "O", "B-location"]}
        >>> task.demonstrations([record])[0]["response"]
        ' person: Anna Smith; location: Paris'
        >>> task.read(" person: Anna; place: Paris") is None  # "place" is no type
        True
    """

    stop_strings = ("\n",)

    def __init__(
        self,
        types: Sequence[str],
        template: str = "Text: {text}\nEntities:",
        format_weight: float = 0.2,
        length: int = 48,
    ) -> None:
        self.types = [types] if isinstance(types, str) else [*types]
        if not self.types or any(not t.strip() or set(t) & set(":;\n") for t in self.types):
            raise ValueError(
                "`types` must be names of entities without ':', ';' and line breaks. Received: "
                f"{types!r}."
            )
        self.template, self.format_weight, self.length = template, format_weight, length

    def prompt(self, record: Record) -> str:
        """Returns the template with the tokens of the record, joined by blanks."""
        return self.template.format(text=" ".join(column(record, "tokens")))

    def target(self, record: Record) -> str | None:
        """Returns the entities of the tags in their order; None without tags."""
        if record.get("tags") is None:
            return None
        entities = entities_of(column(record, "tokens"), record["tags"])
        return " " + ("; ".join(f"{kind}: {name}" for kind, name in entities) or _NONE)

    def rewards(self) -> dict[str, Any]:
        """Returns `f1` and `format`."""
        return {"f1": self.sentence_f1, "format": (self.is_readable, self.format_weight)}

    def metrics(self) -> dict[str, Callable]:
        """Returns `f1`, `precision`, `recall` and `format`."""
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "format": self.is_readable,
        }

    def read(self, response: str) -> list[Entity] | None:
        """Returns the entities of a response in its first line, or None for another format.

        Args:
            response: str.
        """
        line = response.strip().split("\n")[0].strip()
        if line.lower() == _NONE:
            return []
        pairs = [part.partition(":") for part in line.split(";")]
        entities = [(kind.strip(), " ".join(name.split())) for kind, _, name in pairs]
        is_known = all(kind in self.types and name for kind, name in entities)
        return entities if is_known else None

    def is_readable(self, responses: list[str]) -> list[float]:
        """Returns 1 for responses in the format, and 0 for others."""
        return [float(self.read(response) is not None) for response in responses]

    def sentence_f1(
        self, responses: list[str], tokens: list[list[str]], tags: list[list[str]]
    ) -> list[float]:
        """Computes the F1 score of each response; 1 where there is nothing to find, and it is none.

        A response in another format has the score 0.
        """
        entities = libraries.load("seqeval.metrics.sequence_labeling", "seqeval", _WHAT)
        scores = []
        for response, row, wanted in zip(responses, tokens, tags, strict=True):
            found = self.read(response)
            if found is None:
                scores.append(0.0)
                continue
            gold, given = (set(entities.get_entities(x)) for x in aligned(row, wanted, found))
            total = len(gold) + len(given)
            scores.append(2 * len(gold & given) / total if total else 1.0)
        return scores

    def f1(self, responses: list[str], tokens: list, tags: list) -> float:
        """Computes the F1 score over the entities of all responses."""
        return self._seqeval("f1_score", responses, tokens, tags)

    def precision(self, responses: list[str], tokens: list, tags: list) -> float:
        """Computes the fraction of entities in all responses that are right."""
        return self._seqeval("precision_score", responses, tokens, tags)

    def recall(self, responses: list[str], tokens: list, tags: list) -> float:
        """Computes the fraction of entities in all sentences that responses have."""
        return self._seqeval("recall_score", responses, tokens, tags)

    def _seqeval(self, name: str, responses: list[str], tokens: list, tags: list) -> float:
        metrics = libraries.load("seqeval.metrics", "seqeval", _WHAT)
        pairs = [
            aligned(row, wanted, self.read(response) or [])
            for response, row, wanted in zip(responses, tokens, tags, strict=True)
        ]
        gold, given = (list(column) for column in zip(*pairs, strict=True))
        # Without any entity the score is 0, and no warning.
        return float(getattr(metrics, name)(gold, given, zero_division=0))


_WHAT = "Scoring entities"


def entities_of(tokens: Sequence[str], tags: Sequence[str]) -> list[Entity]:
    """Returns type and text of the entities that BIO tags mark.

    Args:
        tokens: list of str.
        tags: list of str, one per token.

    Raises:
        ValueError: If there are not as many tags as tokens.

    Example:
        >>> rlhf.tasks.ner.entities_of(["New", "York", "wins"], ["B-group", "I-group", "O"])
        [('group', 'New York')]
    """
    if len(tokens) != len(tags):
        raise ValueError(
            f"Expected a tag for each token. Received {len(tokens)} tokens and {len(tags)} tags."
        )
    entities: list[Entity] = []
    before = "O"
    for token, tag in zip(tokens, tags, strict=True):
        place, _, kind = tag.partition("-")
        # An I- tag without a B- tag before it begins an entity, as in seqeval.
        if place == "I" and before[2:] == kind and entities:
            entities[-1] = kind, f"{entities[-1][1]} {token}"
        elif place in ("B", "I"):
            entities.append((kind, token))
        before = tag
    return entities


def aligned(
    tokens: Sequence[str], tags: Sequence[str], entities: Sequence[Entity]
) -> tuple[list[str], list[str]]:
    """Returns the tags of a sentence, and those that entities of a response give it.

    An entity marks the first place of its tokens that is still free. One that has no such place
    marks a token that is added to the end, where the sentence has no entity.

    Args:
        tokens: list of str.
        tags: list of str, one per token.
        entities: list of pairs of type and text.

    Example:
        >>> rlhf.tasks.ner.aligned(["Tom", "ran"], ["B-person", "O"], [("person", "Ann")])
        (['B-person', 'O', 'O'], ['O', 'O', 'B-person'])
    """
    gold, given = [*tags], ["O"] * len(tokens)
    for kind, name in entities:
        words = name.split()
        places = [
            start
            for start in range(len(tokens) - len(words) + 1)
            if list(tokens[start : start + len(words)]) == words
            and set(given[start : start + len(words)]) == {"O"}
        ]
        if places:
            start = places[0]
            marks = [f"B-{kind}"] + [f"I-{kind}"] * (len(words) - 1)
            given[start : start + len(words)] = marks
        else:
            gold.append("O")
            given.append(f"B-{kind}")
    return gold, given
