"""Sources that are read as they come: the batches of memory, in bounded memory."""

import json
import os
import tracemalloc
from itertools import chain, islice

import numpy as np
import pyarrow
import pytest
import tensorflow as tf
from pyarrow import parquet

from kerasrlhf import data
from kerasrlhf.data import parquet as parquet_files
from kerasrlhf.data import streaming

TEXTS = tuple("abcdefghijklmnopqrstuvwxyz")
ROW = {"prompt": "ab", "response": "c", "chosen": "c", "rejected": "dd", "label": 1, "margin": 2}
ROW |= {"steps": ["c", "d"], "labels": [1, 0.5]}
LOADERS = {
    "demonstrations": (data.demonstrations, {}),
    "preferences": (data.preferences, {}),
    "prompts": (data.prompts, {"pad_to_multiple_of": 4}),
    "unpaired_preferences": (data.unpaired_preferences, {}),
    "stepwise": (data.stepwise, {"separator": "z"}),
}


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of few rows, so that short sources have several."""
    monkeypatch.setattr(streaming, "_CHUNK", 3)
    monkeypatch.setattr(streaming, "_BLOCK", 4)


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def prompts(gpt2, source=TEXTS, **options):
    stream = data.Stream(source, buffer_size=options.pop("buffer_size", 10))
    return data.prompts(stream, gpt2, 4, drop_remainder=False, **options)


def texts(dataset, batches=None):
    found = islice(dataset.as_numpy_iterator(), batches)
    return [[text.decode() for text in batch["prompt"].tolist()] for batch in found]


@pytest.mark.parametrize("name", LOADERS)
def test_batches_and_report_are_those_of_memory(tmp_path, gpt2, name, small_parts):
    loader, options = LOADERS[name]
    rows = [ROW | {"prompt": "a" * (i % 5 + 1)} for i in range(11)]
    rows[4] = ROW | {"prompt": "", "chosen": "", "response": "", "steps": [""], "labels": [1]}
    rows[7] = ROW | {"prompt": "b" * 40}
    path = written(tmp_path / "rows.jsonl", rows)
    found = []
    for source in (path, data.Stream(path)):
        with (
            pytest.warns(UserWarning, match="1 of 11 rows cannot be used"),
            pytest.warns(UserWarning, match="1 rows are longer than `drop_longer_than`"),
        ):
            options |= {"shuffle": False, "on_error": "skip", "drop_longer_than": 12}
            found.append(loader(source, gpt2, 4, **options))
    memory, stream = found
    assert stream.report == memory.report and stream.report.skipped == (4,)
    assert stream.report.dropped == (7,) and len(stream) == len(memory)
    for one, other in zip(memory, stream, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
        assert tf.nest.map_structure(lambda x: x.dtype, one) == tf.nest.map_structure(
            lambda x: x.dtype, other
        )
    assert tf.nest.map_structure(lambda x: x.shape[1:], stream.element_spec) == (
        tf.nest.map_structure(lambda x: x.shape[1:], memory.element_spec)
    )


def test_a_pass_has_an_order_of_its_own_within_the_buffer(gpt2):
    dataset = prompts(gpt2)
    first, second = ([*chain(*texts(dataset))] for _ in range(2))
    assert first != second and sorted(first) == sorted(second) == [*TEXTS]
    # A row is at most as many places early as the buffer has.
    assert all(TEXTS.index(text) < place + 10 for place, text in enumerate(first))
    assert first != sorted(first)
    assert [*chain(*texts(prompts(gpt2)))] == first
    assert [*chain(*texts(prompts(gpt2, seed=1)))] != first
    assert [*chain(*texts(prompts(gpt2, buffer_size=1)))] == [*TEXTS]


def test_the_order_follows_from_the_batches_before(gpt2):
    """What `Resume` and `BackupAndRestore` rely on."""
    endless = prompts(gpt2).repeat()
    whole = texts(endless.in_step_with(lambda: 0), 18)
    assert whole[:7] == texts(prompts(gpt2)) and whole[7:14] != whole[:7]
    assert texts(endless.in_step_with(lambda: 9), 9) == whole[9:]
    assert texts(prompts(gpt2).in_step_with(lambda: 7)) == whole[7:14]
    part = prompts(gpt2).take(3)
    assert len(part) == 3 and texts(part) == whole[:3]
    fixed = prompts(gpt2, shuffle=False)
    assert texts(fixed.skip(5)) == texts(fixed)[5:] and len(fixed.skip(5)) == 2


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "tf.data", "function"])
def test_every_source_streams(tmp_path, gpt2, kind):
    rows = [{"prompt": text} for text in TEXTS]
    if kind == "csv":
        source = tmp_path / "a.csv"
        source.write_text("prompt\n" + "\n".join(TEXTS))
    elif kind == "json":
        source = tmp_path / "a.json"
        source.write_text(json.dumps(rows))
    elif kind == "parquet":
        source = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    elif kind == "tf.data":
        source = tf.data.Dataset.from_tensor_slices({"prompt": [*TEXTS]})
    else:
        source = lambda: iter(rows)  # noqa: E731
    dataset = prompts(gpt2, source)
    assert sorted(chain(*texts(dataset))) == [*TEXTS]
    assert data.read(data.Stream(source)) == rows


def test_columns_get_their_names(gpt2):
    rows = [{"question": text, "prompt_id": 1} for text in TEXTS]
    stream = data.Stream(rows, columns={"prompt": "question"})
    found = texts(data.prompts(stream, gpt2, 13, shuffle=False))
    assert [*chain(*found)] == [*TEXTS]
    with pytest.raises(ValueError, match=r"No row .* has the column 'questions'.*'question'"):
        list(data.Stream(rows, columns={"prompt": "questions"}))


def test_an_odd_row_is_named_before_anything_is_trained(tmp_path, gpt2):
    rows = [ROW] * 1500 + [{**ROW, "rejected": None}] + [ROW] * 10
    path = written(tmp_path / "pairs.jsonl", rows)
    message = r"pairs\.jsonl, line 1501: row 1500 \(counted from 0\): .*'rejected'"
    with pytest.raises(ValueError, match=message):
        data.preferences(data.Stream(path), gpt2, 4)
    path.write_text(path.read_text().replace('"rejected": null', '"rejected": nul'))
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1501, column \d+: not JSON"):
        data.preferences(data.Stream(path), gpt2, 4)
    with pytest.warns(UserWarning, match=r"1 of 1511 rows .*row 1500: .*line 1501"):
        found = data.preferences(data.Stream(path), gpt2, 4, on_error="skip")
    assert found.report.skipped == (1500,) and found.report.rows == 1510


def test_rows_are_compared_with_the_first_one(gpt2, small_parts):
    ranking = {"prompt": "a", "responses": ["b", "c", "d"]}
    rows = [ranking] * 4 + [{"prompt": "a", "responses": ["b", "c"]}]
    with pytest.raises(ValueError, match=r"row 4 .* another number of 'responses' than the first"):
        data.preferences(data.Stream(rows), gpt2, 1)
    with pytest.warns(UserWarning, match="1 of 5 rows"):
        found = data.preferences(data.Stream(rows), gpt2, 1, on_error="skip")
    assert found.report.skipped == (4,)
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match="other columns than the first row"):
            rows = [pair] * 4 + [pair | {"margin": 1}]
            data.preferences(data.Stream(rows), gpt2, 1, on_error=on_error)


def test_warnings_of_parts_are_joined(gpt2, small_parts):
    pair = {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"}
    early = {side: f"{text}\n\nHuman: d\n\nAssistant: e" for side, text in pair.items()}
    rows = [pair, early, pair, pair, pair, pair, early, pair, pair]
    with pytest.warns(UserWarning, match="pairs part|were cut") as found:
        dataset = data.preferences(data.Stream(rows), gpt2, 3, max_length=8)
        # Passes have nothing new to say.
        assert len([*dataset]) == 3
    joined, cut = (str(warning.message) for warning in found)
    assert joined.startswith("Rows 0 to 2: 1 of 3 pairs part") and "1 other parts" in joined
    assert cut.startswith("9 prompts were cut")


def test_nothing_left_is_an_error(gpt2):
    with pytest.raises(ValueError, match="has no rows"):
        prompts(gpt2, [])
    with pytest.raises(ValueError, match=r"No row can be used. .*empty 'prompt'"):
        prompts(gpt2, ["", ""], on_error="skip")
    with pytest.raises(ValueError, match=r"All 2 rows .*=2.* the shortest has 3"):
        prompts(gpt2, ["abc", "ab"], drop_longer_than=2)
    with pytest.raises(ValueError, match="no batch is left"):
        data.prompts(data.Stream(["a"]), gpt2, 2)


def test_a_stream_can_be_read_again(gpt2):
    with pytest.raises(ValueError, match=r"an iterator only once\. Pass a function"):
        data.Stream(iter(TEXTS))
    with pytest.raises(ValueError, match="`buffer_size` must be at least 1"):
        data.Stream(TEXTS, buffer_size=0)
    with pytest.raises(ValueError, match="`columns` must be a dict"):
        data.Stream(TEXTS, columns=["prompt"])


def test_a_file_that_changes_is_noticed(tmp_path, gpt2):
    path = written(tmp_path / "a.jsonl", [{"prompt": text} for text in TEXTS])
    dataset = prompts(gpt2, path)
    assert len(texts(dataset)) == 7
    written(path, [{"prompt": text} for text in TEXTS[::-1]])
    os.utime(path, ns=(0, 0))
    with pytest.raises(tf.errors.OpError, match="no longer those that were checked"):
        texts(dataset)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, gpt2, ending, monkeypatch):
    monkeypatch.setattr(streaming, "_CHUNK", 100)
    monkeypatch.setattr(parquet_files, "_BATCH", 100)

    def peak(count):
        path = tmp_path / f"{count}.{ending}"
        rows = [{"prompt": "ab", "note": f"{i}" + "x" * 5000} for i in range(count)]
        if ending == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif ending == "csv":
            lines = "\n".join(f"ab,{row['note']}" for row in rows)
            path.write_text(f"prompt,note\n{lines}")
        elif ending == "json":
            path.write_text(json.dumps(rows))
        else:
            written(path, rows)
        del rows
        tracemalloc.start()
        stream = data.Stream(path, buffer_size=100)
        dataset = data.prompts(stream, gpt2, 50)
        assert sum(1 for _ in dataset) == count // 50
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(200)  # What is made once, such as traces.
    small, large = peak(400), peak(2400)
    # Of 12 MB more.
    assert large < small + 1_500_000, (small, large)
