"""Records for training and validation, and records of several sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasrlhf.checks import require_int, require_number
from kerasrlhf.data import records as records_lib
from kerasrlhf.data import sources as sources_lib
from kerasrlhf.data.auditing.corpus import normalized
from kerasrlhf.data.records import Record
from kerasrlhf.data.sources import Source


def split(source: Source, held_out: float, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Splits records at random, so that no prompt is on both sides.

    A model that has learned one response to a prompt knows something about the others. Prompts
    that `kerasrlhf.data.audit` calls duplicates, which differ only in case, white space or the form
    of quotation marks, count as one.

    Args:
        source: What `kerasrlhf.data.read` accepts or returns.
        held_out: int, at least 1, how many records to keep back; or float, between 0 and 1, which
            fraction. If prompts have several records, the number may not be met exactly: it is
            never exceeded.
        seed: int, at least 0. Defaults to 0.

    Returns:
        Two lists of dict (or str) in random order: for training, and held out.

    Raises:
        ValueError: If a side would be empty, or an argument is out of range.

    Example:
        >>> pairs = [{"prompt": f"Tell me {i // 2}.", "response": str(i)} for i in range(10)]
        >>> train, held_out = rlhf.data.split(pairs, 0.2)
        >>> len(train), len(held_out), held_out[0]["prompt"] == held_out[1]["prompt"]
        (8, 2, True)
    """
    seed = require_int("seed", seed, minimum=0)
    rows = sources_lib.read(source)
    records = records_lib.load(rows)
    if require_number("held_out", held_out, above=0.0) < 1.0:
        count = max(1, round(held_out * len(records)))
    else:
        count = require_int("held_out", held_out)
    prompts = [_prompt_key(record, number) for number, record in enumerate(records)]
    sizes: dict[Any, int] = {}
    for prompt in prompts:
        sizes[prompt] = sizes.get(prompt, 0) + 1
    # Whole prompts in random order, each of them kept back if there is room for all its records.
    order = np.random.default_rng(seed).permutation(len(records))
    room, kept_back = count, {}
    for number in order:
        prompt = prompts[number]
        if prompt not in kept_back:
            kept_back[prompt] = sizes[prompt] <= room
            room -= sizes[prompt] * kept_back[prompt]
    held = [rows[number] for number in order if kept_back[prompts[number]]]
    train = [rows[number] for number in order if not kept_back[prompts[number]]]
    if not held or not train:
        raise ValueError(
            f"Cannot keep back {count} of {len(records)} records with {len(sizes)} different "
            "prompts, so that there are records on both sides and no prompt is on both. Change "
            "`held_out`."
        )
    return train, held


def mix(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> list[Any]:
    """Mixes records of several sources in given proportions, without repeating any.

    Args:
        sources: list of what `kerasrlhf.data.read` accepts or returns.
        weights: list of float, one for each source, above 0. The shares of the sources, up to a
            factor. Defaults to None: every record of every source.
        rows: int, at least 1. The number of records. Defaults to None: as many as the sources have
            in these proportions.
        seed: int, at least 0. Defaults to 0.

    Returns:
        list of dict (or str) in random order, drawn at random from each source.

    Raises:
        ValueError: If a source has too few records, or an argument is out of range.

    Example:
        >>> stories, chats = [{"text": "s"}] * 9, [{"text": "c"}] * 9
        >>> mixed = rlhf.data.mix([stories, chats], weights=[2, 1])
        >>> len(mixed), mixed.count({"text": "s"})
        (13, 9)
    """
    generator = np.random.default_rng(require_int("seed", seed, minimum=0))
    loaded = [sources_lib.read(source) for source in sources]
    for rows_of_source in loaded:
        records_lib.load(rows_of_source)  # It refuses what is no record, and a source without any.
    if not loaded:
        raise ValueError("`sources` must be a list of at least one source. Received none.")
    sizes = np.array([len(records) for records in loaded])
    shares = sizes / sizes.sum() if weights is None else _shares(weights, len(loaded))
    # What the source that is used up first allows.
    most = int(np.floor(np.min(sizes / shares) + 1e-9))
    total = most if rows is None else require_int("rows", rows, minimum=1)
    # Whole numbers that add up: the largest remainders are rounded up.
    counts = np.floor(total * shares + 1e-9).astype(int)
    remainders = np.argsort(counts - total * shares, kind="stable")
    counts[remainders[: total - counts.sum()]] += 1
    short = [i for i, (count, size) in enumerate(zip(counts, sizes, strict=True)) if count > size]
    if short:
        needs = ", ".join(f"source {i} has {sizes[i]} of {counts[i]}" for i in short)
        raise ValueError(
            f"There are too few records for {total} rows: {needs}. Received weights {weights}; "
            f"`rows` can be {most} at most."
        )
    drawn: list[Any] = []
    for records, count in zip(loaded, counts, strict=True):
        drawn += [records[i] for i in generator.permutation(len(records))[:count]]
    return [drawn[i] for i in generator.permutation(len(drawn))]


def _shares(weights: Sequence[float], count: int) -> np.ndarray:
    """Returns weights that add up to 1."""
    if len(weights) != count:
        raise ValueError(
            f"`weights` must have a number for each of the {count} sources. Received: {weights}."
        )
    values = [require_number(f"weights[{i}]", x, above=0.0) for i, x in enumerate(weights)]
    return np.array(values) / sum(values)


def _prompt_key(record: Record, number: int) -> str | int:
    """Returns what is equal for records of one prompt; a record without one is by itself."""
    prompt = records_lib.prompt_of(record)
    if prompt is None:
        return number
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return normalized(text)
