"""Files, tf.data and TFDS."""

import csv
import gzip
import itertools
import json
import time
from pathlib import Path

import pyarrow
import pytest
import tensorflow as tf
from pyarrow import parquet

from kerasrlhf import data
from kerasrlhf.data import sources

ROWS = [{"prompt": "é\n", "label": 1}, {"prompt": "b", "label": None}]
LINES = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.b.jsonl.gz", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json.gz", json.dumps(ROWS)),
    ],
)
def test_json(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert sources.read(path) == sources.read(str(path)) == ROWS


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,response\n"a, ""b""\nc",d\n', encoding="utf-8")
    assert sources.read(path) == [{"prompt": 'a, "b"\nc', "response": "d"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt":\n', r"a\.jsonl, line 2, column 11: not JSON"),
        ("a.json", '[\n{"prompt" "a"}]', r"a\.json, line 2, column 11: not JSON"),
        ("a.json", '{"prompt": "a"}', "must hold a list of records. Received a JSON dict"),
        ("a.csv", "prompt,response\na,b\nc\n", r"a\.csv, line 3: expected 2 cells"),
        ("a.csv", "prompt,response\na,b,c\n", r"a\.csv, line 2: expected 2 cells"),
        ("a.txt", "text", "Cannot tell the format"),
        ("a.json", '{"p": 1}\n{"p": 2}\n', r"line 2, column 1: not JSON .* end with '\.jsonl'"),
        ("a.jsonl", '[\n{"p": 1}\n]\n', r"line 1, column 2: not JSON .* end with '\.json'"),
        ("a.jsonl", '{"p": 1}\n{"p": 1, "p": 2}', r"line 2: the key 'p' has several .*, 1 and 2,"),
        ("a.json", '[{"m": {"p": "a", "p": "b"}}]', r"a\.json, line 1: the key 'p' has several"),
        ("a.csv", "p,r,p\na,b,c\n", r"a\.csv, line 1: 2 columns have the name 'p'"),
        ("a.csv", 'p,r\na,b\nc,"d\ne,f\n', r"a\.csv, line 3: not CSV \(unexpected end"),
        ("a.csv", 'p,r\na,"b"c\n', r"a\.csv, line 2: not CSV .* written twice"),
        ("a.jsonl", '{"n": ' + "1" * 5000 + "}", r"a\.jsonl, line 1: an integer of 5000 digits"),
        ("a.jsonl", "1\n" + "[" * 100_000, r"a\.jsonl, line 2: nested too deeply"),
        ("a.json", "[" * 100_000, r"a\.json: nested too deeply"),
        ("a.jsonl", '1\n{"p": "ab \\ud83d"}', r"line 2, column 'p': \\ud83d after .*ab .* lone"),
        ("a.json", '[{"\\uDC00": 1}]', r"a\.json, line 1, .*: \\udc00 .* lone surrogate"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        sources.read(tmp_path / name)


# Without the time, so that tests have the same names in all processes.
CUT = gzip.compress(b"".join(b'{"p": %d}\n' % i for i in range(5000)), mtime=0)
LIST = gzip.compress(b"[1, 2]", mtime=0)
LATIN = '{"p": "Café"}'.encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl.gz",
            CUT[: len(CUT) // 2],
            r"a\.jsonl\.gz, after line .*cannot be unpacked",
        ),
        (
            "a.jsonl.gz",
            b'{"p": 1}',
            r"a\.jsonl\.gz: cannot be unpacked .* not end with '\.gz'",
        ),
        (
            "a.json.gz",
            LIST[:-8] + b"\0" * 8,
            r"a\.json\.gz.* cannot be unpacked \(CRC",
        ),
        ("a.jsonl", CUT, r"a\.jsonl, line 1: not UTF-8\. The file is a gzip archive"),
        (
            "a.jsonl",
            b'{"p": 1}\n' + LATIN,
            r"line 2, column 11: not UTF-8 \(byte 0xe9 after .*Caf",
        ),
        ("a.json", b"[\n\n" + LATIN + b"]", r"a\.json, line 3: not UTF-8 \(byte 0xe9"),
        (
            "a.csv",
            b"p,r\n" + LATIN,
            r"a\.csv, line 2, column 'p': not UTF-8 .*Save the file as",
        ),
        ("a.csv", "p,r\na,b".encode("utf-16"), r"a\.csv, line 1: not UTF-8\. .* like UTF-16"),
        ("a.csv", "p,r\na,b".encode("utf-16-le"), r"a\.csv, line 1: not UTF-8\. .* like UTF-16"),
        ("a.jsonl", "{}".encode("utf-16-be"), r"a\.jsonl, line 1: not UTF-8\. .* like UTF-16"),
    ],
)
def test_files_of_other_bytes(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sources.read(tmp_path / name)


def test_parquet(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé."}]
    rows = [
        {"messages": talk, "label": 1, "note": None},
        {"messages": talk, "label": 0, "note": "a"},
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert sources.read(path) == sources.read(str(path)) == rows
    content = path.read_bytes()
    for name, part, message in (
        (
            "a.parquet",
            content[: len(content) // 2],
            r"a\.parquet cannot be read as Parquet \(.*copied",
        ),
        ("a.parquet", b"{}", r"a\.parquet cannot be read as Parquet"),
        ("a.jsonl", content, r"line 1: not UTF-8\. .* must end with '\.parquet'"),
        ("a.parquet.gz", gzip.compress(content), r"a compressed Parquet file.* Unpack it"),
    ):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            sources.read(tmp_path / name)


def test_odd_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["p", "p"])
    parquet.write_table(twice, path)
    with pytest.raises(ValueError, match=r"a\.parquet: 2 columns have the name 'p'"):
        sources.read(path)
    latin = pyarrow.array([b"Caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.Table.from_arrays([latin], ["p"]), path)
    with pytest.raises(ValueError, match=r"a\.parquet, row 0 .*column 'p': .* not UTF-8"):
        sources.read(path)


def test_whole_pairs_of_surrogates_are_characters(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"p": "\\ud83d\\ude00"}')
    assert sources.read(tmp_path / "a.jsonl") == [{"p": "😀"}]


def test_a_long_cell_is_read_and_the_limit_of_others_stays(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("p\n" + "x" * (limit + 1))
    assert sources.read(tmp_path / "a.csv") == [{"p": "x" * (limit + 1)}]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["none.jsonl", "folder/none", "./none", "v1.0"])
def test_a_missing_file_is_named(name):
    with pytest.raises(ValueError, match=f"no file '{Path(name)}'"):
        sources.read(name)


def test_a_folder_is_not_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    with pytest.raises(ValueError, match="no file 'prompts'"):
        sources.read("prompts")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("pairs", "pairs.jsonl"),
        ("pair", "pairs.jsonl"),
        ("pairs.json", "pairs.jsonl"),
        ("./pairs.csv", "pairs.jsonl"),
        ("demo", "demos.csv.gz"),
        ("imdb_revews", "imdb_reviews"),
    ],
)
def test_a_misspelled_name_is_refused_without_a_network(tmp_path, monkeypatch, name, found):
    for file in ("pairs.jsonl", "demos.csv.gz", "notes.txt"):
        (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", refuse_the_network)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"There is no file .*Did you mean '{found}'"):
        sources.read(name)
    assert time.perf_counter() - start < 60  # the first import of TFDS included


def refuse_the_network(*args, **kwargs):
    raise AssertionError("the network was asked")


def test_an_unknown_name_is_refused_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", refuse_the_network)
    for name in ("no_such_data_set_qx", "tfds:no_such_data_set_qx", "Tom's", "你好"):
        with pytest.raises(ValueError, match=f"no TFDS dataset of that name.*{tmp_path}"):
            data.read(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("text", ["Tom was sad.", "Tom and/or Lily.", "", "Tom\n", "a. b " * 3000])
def test_a_text_is_not_a_name(text):
    with pytest.raises(ValueError, match=r"passed as a list: \['"):
        sources.read(text)


@pytest.mark.parametrize("source", [3, None, {"prompt": ["a"]}, b"Tom"])
def test_other_sources(source):
    with pytest.raises(ValueError, match="`source` must be"):
        sources.read(source)


def test_file_names_are_no_texts():
    for names in (["a.jsonl", "b.csv.gz"], [Path("a.json")]):
        with pytest.raises(ValueError, match="a list of file names"):
            sources.read(names)
    assert sources.read(["a.jsonl", "is a file"]) == ["a.jsonl", "is a file"]


def test_iterators_are_read_once_and_must_end(monkeypatch):
    assert sources.read(iter(["a", "b"])) == ["a", "b"]
    monkeypatch.setattr(sources, "_MOST_ROWS", 100)
    with pytest.raises(ValueError, match=r"did not end after 100 rows.*islice"):
        sources.read(itertools.cycle(["a"]))
    with pytest.raises(ValueError, match="did not end"):
        sources.read(tf.data.Dataset.from_generator(lambda: itertools.repeat("a"), tf.string))
    assert len(sources.read(["a"] * 101)) == 101


def test_a_data_frame_is_refused():
    class Frame(list):
        def itertuples(self):
            return iter(self)

    with pytest.raises(ValueError, match="to_dict"):
        sources.read(Frame(["column"]))


class TestDataset:
    def test_strings(self):
        assert sources.read(tf.data.Dataset.from_tensor_slices(["é", "b"])) == ["é", "b"]

    def test_dictionaries_give_python_values(self):
        columns = {
            "prompt": ["a", "b"],
            "label": [1, 2],
            "score": [0.5, 1.5],
            "good": [True, False],
            "tags": tf.ragged.constant([["x"], ["y", "z"]]),
            "vector": [[1, 2], [3, 4]],
        }
        rows = sources.read(tf.data.Dataset.from_tensor_slices(columns))
        assert rows[1] == {
            "prompt": "b",
            "label": 2,
            "score": 1.5,
            "good": False,
            "tags": ["y", "z"],
            "vector": [3, 4],
        }
        assert json.loads(json.dumps(rows)) == rows

    def test_columns_of_messages(self):
        messages = {"role": [["user", "assistant"]], "content": [["a", "b"]]}
        rows = sources.read(tf.data.Dataset.from_tensor_slices({"messages": messages}))
        expected = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        assert rows == [{"messages": expected}]

    def test_infinite(self):
        with pytest.raises(ValueError, match=r"infinite.*take\(n\)"):
            sources.read(tf.data.Dataset.from_tensor_slices(["a"]).repeat())

    def test_batched(self):
        for columns in (["a", "b"], {"prompt": ["a", "b"]}):
            with pytest.raises(ValueError, match=r"unbatch\(\)"):
                sources.read(tf.data.Dataset.from_tensor_slices(columns).batch(2))

    def test_other_bytes(self):
        with pytest.raises(ValueError, match=r"Row 1 of the dataset has bytes .*dataset\.map"):
            sources.read(tf.data.Dataset.from_tensor_slices({"prompt": ["a", b"\xff"]}))

    def test_tuples(self):
        with pytest.raises(ValueError, match="strings or dictionaries"):
            sources.read(tf.data.Dataset.from_tensor_slices((["a"], ["b"])))

    def test_numbers_are_no_texts(self, gpt2):
        with pytest.raises(ValueError, match="neither dictionaries nor strings"):
            data.prompts(tf.data.Dataset.range(3), gpt2, 1)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")
    path = tmp_path_factory.mktemp("tfds")

    class TinyRlhfQuestions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = {
                "prompt": tfds.features.Sequence({"role": text, "content": text}),
                "answer": text,
                "label": tf.int64,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                prompt = [{"role": "user", "content": "Hi"}]
                yield i, {"prompt": prompt, "answer": "a" * i, "label": i}

    tfds.disable_progress_bar()
    TinyRlhfQuestions(data_dir=str(path)).download_and_prepare()
    return str(path)


@pytest.mark.parametrize(
    ("name", "split", "labels"),
    [
        ("tiny_rlhf_questions", "train", [0, 1, 2]),
        ("tiny_rlhf_questions", "test", [0, 1]),
        ("tfds:tiny_rlhf_questions:1.0.0", "test", [0, 1]),
    ],
)
def test_tfds(tfds_dir, gpt2, name, split, labels):
    dataset = data.prompts(data.read(name, split=split, data_dir=tfds_dir), gpt2, 1)
    batches = list(dataset.as_numpy_iterator())
    records = [json.loads(batch["record"][0]) for batch in batches]
    assert sorted(record["label"] for record in records) == labels
    assert all(record["answer"] == "a" * record["label"] for record in records)
    assert {batch["prompt"][0] for batch in batches} == {b"Human: Hi\n\nAssistant:"}


@pytest.mark.parametrize(
    ("split", "message"),
    [("val", "cannot load the split 'val' of 'tiny_rlhf_"), (None, "`split` must name one split")],
)
def test_tfds_splits(tfds_dir, split, message):
    with pytest.raises(ValueError, match=message):
        data.read("tiny_rlhf_questions", split=split, data_dir=tfds_dir)


def test_loaders_read_the_split_for_training_of_a_name(tfds_dir, gpt2, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    load = tfds.load
    monkeypatch.setattr(
        tfds, "load", lambda name, data_dir, **o: load(name, data_dir=tfds_dir, **o)
    )
    assert data.prompts("tiny_rlhf_questions", gpt2, 1).report.rows == 3


def test_a_prepared_folder_is_known_without_its_builder(tfds_dir, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(tfds, "list_builders", lambda **kwargs: [])
    assert len(data.read("tiny_rlhf_questions", split="test", data_dir=tfds_dir)) == 2


def test_only_line_feeds_end_a_record(tmp_path):
    """U+2028 and its like inside a string, a byte order mark, CRLF, archives of several members."""
    marks = "\u2028\u2029\x85\x0b\x0c\x1e"
    rows = [{"prompt": f"One{mark}two", "response": "Null \u0000 inside"} for mark in marks]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(("\ufeff" + "\r\n".join([lines[0], "", *lines[1:]]) + "\r\n").encode())
    halves = ["\n".join(lines[:3]) + "\n", "\n".join(lines[3:])]
    packed.write_bytes(b"".join(gzip.compress(half.encode()) for half in halves))
    assert sources.read(plain) == sources.read(packed) == rows
