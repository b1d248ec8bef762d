"""Batches for several workers: other rows each, all rows together, as many batches."""

from itertools import chain

import numpy as np
import pytest

from kerasrlhf import data
from kerasrlhf.data.spans import Edges

TEXTS = tuple("abcdefghijklm")


def texts(dataset):
    batches = dataset.as_numpy_iterator()
    return [[text.decode() for text in batch["prompt"].tolist()] for batch in batches]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_workers_divide_any_number_of_rows(workers, batch_size):
    for rows in range(1, 60):
        for drop in (False, True):
            edges = [Edges(batch_size, drop, (index, workers)) for index in range(workers)]
            together = workers * batch_size
            # As many batches of one row or more as rows allow.
            count = rows // together if drop else -(-rows // together)
            if count == 0 or (not drop and rows < count * workers):
                with pytest.raises(ValueError, match=f"{rows} rows"):
                    edges[0].check_rows(rows)
                continue
            edges[0].check_rows(rows)
            found = [[*edge.of(rows)] for edge in edges]
            assert {len(batches) for batches in found} == {edges[0].count(rows)} == {count}
            spans = sorted(span for batches in found for span in batches)
            assert all(1 <= end - begin <= batch_size for begin, end in spans)
            # One after the other without a gap, to the end.
            assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == (count * together if drop else rows)


@pytest.mark.parametrize("lazy", [False, True], ids=["memory", "stream"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_workers_are_parts_of_the_batches_of_one(gpt2, lazy, shuffle):
    source = data.Stream(TEXTS, buffer_size=4) if lazy else TEXTS
    options = {"shuffle": shuffle, "drop_remainder": False, "seed": 3}
    whole = data.prompts(source, gpt2, 4, **options)
    parts = [data.prompts(source, gpt2, 2, shard=(i, 2), **options) for i in range(2)]
    assert [len(part) for part in parts] == [4, 4]
    for _ in range(2):
        expected, found = texts(whole), [texts(part) for part in parts]
        # 13 rows: three batches of four; the last one has one row, for two workers.
        assert [a + b for a, b in zip(*found, strict=True)][:2] == expected[:2]
        assert sorted(chain(*found[0], *found[1])) == [*TEXTS]
    assert all(part.report == whole.report for part in parts)


def test_all_workers_pad_to_one_length_and_skip_the_same_rows(gpt2):
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "bbbb"}, {"prompt": "c"}, {"prompt": "dd"}]
    parts = []
    for index in range(2):
        with pytest.warns(UserWarning, match="1 of 5 rows"):
            options = {"on_error": "skip", "shuffle": False, "shard": (index, 2)}
            parts.append(data.prompts(rows, gpt2, 1, **options))
    batches = [[*part.as_numpy_iterator()] for part in parts]
    assert [texts(part) for part in parts] == [[["a"], ["c"]], [["bbbb"], ["dd"]]]
    assert {batch["token_ids"].shape for part in batches for batch in part} == {(1, 5)}
    # The shape is known before anything is read.
    assert parts[0].element_spec["token_ids"].shape == (1, 5)


def test_every_loader_takes_a_shard(gpt2):
    row = {"prompt": "a", "response": "b", "chosen": "b", "rejected": "c", "label": 1}
    row |= {"steps": ["b"], "labels": [1]}
    for loader in (data.demonstrations, data.preferences, data.unpaired_preferences):
        (batch,) = loader([row] * 3, gpt2, 2, shard=(1, 2)).as_numpy_iterator()
        assert len(batch[1]) == 2
    (batch,) = data.stepwise([row] * 3, gpt2, 2, separator="z", shard=(0, 2)).as_numpy_iterator()
    assert np.shape(batch[1])[0] == 1


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (2, r"such as \(0, 4\). Received: shard=2"),
        ((0, 1, 2), r"such as \(0, 4\)"),
        ((2, 2), r"the last is \(1, 2\)"),
        ((-1, 2), r"`shard\[0\]` must be at least 0"),
        ((0, 0), r"`shard\[1\]` must be at least 1"),
        ((0.5, 2), r"`shard\[0\]` must be an integer"),
    ],
)
def test_a_wrong_shard_is_refused_before_the_source_is_read(gpt2, shard, message):
    source = (pytest.fail("The source was read.") for _ in range(1))
    with pytest.raises(ValueError, match=message):
        data.prompts(source, gpt2, 1, shard=shard)


def test_rows_that_cannot_be_divided_are_refused(gpt2):
    with pytest.raises(ValueError, match=r"13 rows cannot be divided .*2 workers .*drop_remainder"):
        data.prompts(TEXTS, gpt2, 1, drop_remainder=False, shard=(0, 2))
    with pytest.raises(ValueError, match=r"`batch_size` is 5 on each of 3 workers but .* 13 rows"):
        data.prompts(TEXTS, gpt2, 5, shard=(0, 3))
