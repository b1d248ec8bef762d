"""Records as prepared datasets of TFDS, and TFDS names with a mapping of columns."""

import json

import pytest

from kerasrlhf import data

tfds = pytest.importorskip("tensorflow_datasets")
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé.\u2028"}]
ROWS = [
    {
        "question": "a" * i + "b",
        "score": 0.5 if i else 1,
        "count": -i,
        "good": i == 2,
        "tags": ["x"] * i,
        "messages": TALK[:i],
        "turns": [{"from": "human", "value": "a"}],
        "vector": [1, 2.5],
    }
    for i in range(3)
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    tfds.disable_progress_bar()


def test_what_was_written_is_read_in_its_order(tmp_path, gpt2):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    sources = {"train": path, "test": (row for row in ROWS[:2])}
    folder = data.to_tfds(sources, "our_rows", tmp_path, description="Three rows.")
    assert folder == str(tmp_path / "our_rows/1.0.0")
    assert data.read("our_rows", data_dir=tmp_path) == ROWS
    assert data.read("tfds:our_rows:1.0.0", split="test", data_dir=tmp_path) == ROWS[:2]
    # TFDS by itself, as a program without this package reads it.
    dataset, info = tfds.load("our_rows", split="train", data_dir=str(tmp_path), with_info=True)
    assert [row["question"].decode() for row in dataset.as_numpy_iterator()] == ["b", "ab", "aab"]
    assert info.description == "Three rows." and info.splits["test"].num_examples == 2
    # Columns get the names of this package, whole or as a stream.
    columns = {"prompt": "question"}
    rows = data.read("our_rows", data_dir=tmp_path, columns=columns)
    assert [row["prompt"] for row in rows] == ["b", "ab", "aab"] and "question" not in rows[0]
    assert rows[2]["count"] == -2
    stream = data.Stream("our_rows", data_dir=tmp_path, columns=columns)
    assert [*stream] == rows
    batches = data.prompts(stream, gpt2, 3, shuffle=False).as_numpy_iterator()
    assert [json.loads(x)["count"] for x in next(batches)["record"]] == [0, -1, -2]
    with pytest.raises(ValueError, match=r"No row .* the column 'questions'.*mean 'question'"):
        data.read("our_rows", data_dir=tmp_path, columns={"prompt": "questions"})
    # Nothing is written over.
    with pytest.raises(ValueError, match=r"version 1\.0\.0 of 'our_rows' is in .* another `ver"):
        data.to_tfds(ROWS, "our_rows", tmp_path)
    data.to_tfds(ROWS[:1], "our_rows", tmp_path, version="1.0.1", columns=columns)
    assert data.read("tfds:our_rows:1.0.1", data_dir=tmp_path)[0]["prompt"] == "b"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": None}], "row 0 of 'train' .*column 'a': is null"),
        ([{"a": 1}, {"b": 1}], r"row 1 of 'train' .*other columns than the rows before, \['a', 'b"),
        ([{"a": 1}, {"a": "b"}], "row 1 .*column 'a': .*different kinds, integer and text"),
        ([{"a": [1, "b"]}], "column 'a': .*different kinds, integer and text"),
        ([{"a": 2**63}], "more than 64 bits"),
        ([{"a": "\ud800"}], "lone surrogate"),
        ([{"a": {"b": 1}}], "type dict cannot be a column"),
        ([{"a": [{"role": "user"}]}], "must be messages of 'role' and 'content'"),
        ([{"a": [{"role": "user", "content": 3}]}], "a message has no text in 'content'"),
        ([3], r"expected a dict of named columns. Received: 3"),
        ([], "The source of the split 'train' has no rows"),
    ],
)
def test_rows_that_tfds_cannot_hold_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        data.to_tfds(rows, "rows", tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_row_of_a_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": null}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3, column 'a': is null"):
        data.to_tfds(path, "rows", tmp_path)
    path.write_text('{"a": 1}\n{"a" 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2, column 6: not JSON"):
        data.to_tfds(path, "rows", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Our rows"}, "`name` must be of lowercase letters"),
        ({"version": "1"}, "`version` must be three numbers"),
        ({"source": {}}, "from the names of splits"),
        ({"source": {"the train": ROWS}}, "from the names of splits"),
    ],
)
def test_arguments_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        data.to_tfds(**{"source": ROWS, "name": "rows", "data_dir": tmp_path} | changes)


def test_a_mapping_of_columns_is_checked():
    rows = [{"question": "a", "prompt": "b"}, {"prompt": "c"}]
    with pytest.raises(ValueError, match=r"gives \['prompt'\] to other columns"):
        data.read(rows, columns={"prompt": "question"})
    swapped = data.read(rows[:1], columns={"prompt": "question", "question": "prompt"})
    assert swapped == [{"prompt": "a", "question": "b"}]
    with pytest.raises(ValueError, match="`columns` must be a dict"):
        data.read(rows, columns="question")
    # A row without the column has none under the new name either: loaders name it.
    assert data.read([{"q": "a"}, {"r": 1}], columns={"p": "q"}) == [{"p": "a"}, {"r": 1}]
