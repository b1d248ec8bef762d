"""Checks of what preferences and labels say about each other."""

from __future__ import annotations

import itertools

import numpy as np

from kerasrlhf.data.auditing.corpus import Corpus
from kerasrlhf.data.auditing.findings import Finding, finding
from kerasrlhf.data.auditing.options import Options

# The least fraction of the rarer label, and the least rows for which it is more than chance.
_RARE = 0.1
_LEAST_ROWS = 50


def find_identical(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows in which two responses are the same text, white space at its ends aside."""
    texts = zip(*(corpus.columns[name] for name in corpus.responses), strict=True)
    rows = [
        number
        for number, responses in enumerate(texts)
        if len({text.strip() for text in responses}) < len(responses)
    ]
    return finding("identical_responses", corpus, rows)


def find_contradictory(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows that prefer one response to another, and other rows the reverse."""
    edges = _edges(corpus)
    first: dict[tuple, int] = {}
    for row, pair in edges:
        first.setdefault(pair, row)
    found: dict[int, int] = {}
    for row, (better, worse) in edges:
        if (worse, better) in first:
            found.setdefault(row, first[worse, better])
    return finding("contradictory_pairs", corpus, [*found], [*found.values()])


def find_cycles(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows that are part of a circle of three or more preferences."""
    edges = _edges(corpus)
    contradictory = _contradictory(edges)
    rest = [(row, pair) for row, pair in edges if row not in contradictory]
    component = components([pair for _, pair in rest])
    rows = sorted({row for row, (a, b) in rest if component[a] == component[b]})
    return finding("preference_cycles", corpus, rows)


def find_contradictory_labels(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows whose response to their prompt has the other label elsewhere."""
    if corpus.labels is None:
        return []
    texts = zip(corpus.prompt_keys.tolist(), corpus.keys["response"].tolist(), strict=True)
    first: dict[tuple, int] = {}
    labeled = [*zip(texts, corpus.labels.tolist(), strict=True)]
    for row, (text, label) in enumerate(labeled):
        first.setdefault((text, label), row)
    rows = [row for row, (text, label) in enumerate(labeled) if (text, 1.0 - label) in first]
    others = [first[labeled[row][0], 1.0 - labeled[row][1]] for row in rows]
    return finding("contradictory_labels", corpus, rows, others)


def find_imbalance(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows of a rare label."""
    if corpus.labels is None or len(corpus) < _LEAST_ROWS:
        return []
    rare = float(corpus.labels.mean() < 0.5)
    rows = np.flatnonzero(corpus.labels == rare)
    if len(rows) >= _RARE * len(corpus):
        return []
    name = "wanted" if rare else "unwanted"
    return finding(
        "class_imbalance", corpus, rows, detail=f"{len(rows) / len(corpus):.1%} are {name}"
    )


_Node = tuple[int, int]
_Edges = list[tuple[int, tuple[_Node, _Node]]]


def _edges(corpus: Corpus) -> _Edges:
    """Returns `(row, (better, worse))` for neighbors in the order of each row's responses."""
    prompts = corpus.prompt_keys.tolist()
    columns = [corpus.keys[name].tolist() for name in corpus.responses]
    return [
        (row, ((prompt, better), (prompt, worse)))
        for row, (prompt, *keys) in enumerate(zip(prompts, *columns, strict=True))
        for better, worse in itertools.pairwise(keys)
        if better != worse
    ]


def _contradictory(edges: _Edges) -> set[int]:
    known = {pair for _, pair in edges}
    return {row for row, (better, worse) in edges if (worse, better) in known}


def components(edges: list[tuple[_Node, _Node]]) -> dict[_Node, int]:
    """Returns the strongly connected component of each node: equal where each reaches the other.

    Args:
        edges: list of pairs of hashable nodes.

    Returns:
        dict from node to int.

    Example:
        >>> found = components([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")])
        >>> found["a"] == found["b"] == found["c"], found["c"] == found["d"]
        (True, False)

    Reference:
        Tarjan 1972, "Depth-First Search and Linear Graph Algorithms", without recursion.
    """
    following: dict[_Node, list[_Node]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
        following.setdefault(target, [])
    index: dict[_Node, int] = {}
    lowest: dict[_Node, int] = {}
    found: dict[_Node, int] = {}
    open_nodes: list[_Node] = []
    for root in following:
        if root in index:
            continue
        index[root] = lowest[root] = len(index)
        open_nodes.append(root)
        path = [(root, iter(following[root]))]
        while path:
            node, others = path[-1]
            other = next(others, None)
            if other is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == index[node]:
                    while node not in found:
                        found[open_nodes.pop()] = index[node]
            elif other not in index:
                index[other] = lowest[other] = len(index)
                open_nodes.append(other)
                path.append((other, iter(following[other])))
            elif other not in found:
                lowest[node] = min(lowest[node], index[other])
    return found
