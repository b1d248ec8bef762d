"""The order of a dataset as a function of the batches before it."""

import itertools
import types

import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import data
from kerasrlhf.data.training import in_step

TEXTS = tuple("abcdefg")


def prompts(gpt2, **options):
    return data.prompts(TEXTS, gpt2, 2, drop_remainder=False, **options)


def read(dataset, batches=None):
    return [
        [text.decode() for text in batch["prompt"].tolist()]
        for batch in itertools.islice(dataset.as_numpy_iterator(), batches)
    ]


def after(dataset, batches):
    return dataset.in_step_with(lambda: batches)


def test_a_pass_depends_on_the_batches_before_it_only(gpt2):
    dataset, again = prompts(gpt2), prompts(gpt2)
    first, second = read(dataset), read(dataset)
    assert first != second
    assert read(after(again, 4)) == second and read(after(again, 0)) == first
    # Asking again gives the same, whatever was read in between.
    followed = after(dataset, 4)
    assert read(followed) == read(followed) == second


def test_repetitions_go_on_from_any_batch(gpt2):
    endless = prompts(gpt2).repeat()
    whole = read(after(endless, 0), 12)
    assert whole == read(prompts(gpt2)) + whole[4:8] + whole[8:] and whole[:4] != whole[4:8]
    assert read(after(endless, 5), 7) == whole[5:]
    assert read(after(prompts(gpt2).repeat(2), 8)) == read(after(endless, 8), 8)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (lambda x: x.take(2), slice(2)),
        (lambda x: x.skip(1), slice(1, None)),
        (lambda x: x.shard(2, 0), slice(None, None, 2)),
        (lambda x: x.prefetch(1), slice(None)),
    ],
    ids=["take", "skip", "shard", "prefetch"],
)
def test_parts_of_a_pass_are_those_of_its_order(gpt2, part, expected):
    count = len(part(prompts(gpt2)))
    second = after(part(prompts(gpt2)), count)
    assert read(second) == read(after(prompts(gpt2), 4))[expected]
    assert len(second) == count


def test_a_part_of_an_endless_stream_goes_on_too(gpt2):
    stream = read(after(prompts(gpt2).repeat(), 0), 9)
    assert read(after(prompts(gpt2).repeat().take(3), 6)) == stream[6:9]


def test_rows_in_order_stay_in_order(gpt2):
    ordered = prompts(gpt2, shuffle=False)
    assert after(ordered, 4) is ordered
    assert [text for batch in read(ordered) for text in batch] == list(TEXTS)
    assert read(after(ordered.repeat(), 3), 3) == [["g"], ["a", "b"], ["c", "d"]]


def test_the_steps_of_an_optimizer_count_as_batches(gpt2):
    """Those of the inner one where losses are scaled; accumulated gradients are steps, too."""
    optimizer = types.SimpleNamespace(_iterations=tf.Variable(4))
    expected = read(after(prompts(gpt2), 4))
    for model in (
        types.SimpleNamespace(optimizer=optimizer),
        types.SimpleNamespace(optimizer=types.SimpleNamespace(inner_optimizer=optimizer)),
    ):
        assert read(in_step(model, prompts(gpt2))) == expected
    assert read(in_step(types.SimpleNamespace(), prompts(gpt2))) == read(prompts(gpt2))


def test_replicas_share_the_order_of_one_device(gpt2):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    dataset = after(data.prompts(TEXTS, gpt2, 2), 3)
    rows = [
        np.concatenate([part.numpy() for part in strategy.experimental_local_results(x["prompt"])])
        for x in strategy.experimental_distribute_dataset(dataset)
    ]
    assert [[text.decode() for text in batch] for batch in rows] == read(dataset)
