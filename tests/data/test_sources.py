"""Files, tf.data and TFDS."""

import gzip
import json
from pathlib import Path

import pytest
import tensorflow as tf

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
        ("a.jsonl", '{"prompt": "a"}\n{"prompt":\n', r"a\.jsonl, line 2: not JSON"),
        ("a.json", '[\n{"prompt" "a"}]', r"a\.json, line 2: not JSON"),
        ("a.json", '{"prompt": "a"}', "must hold a list of records. Received a JSON dict"),
        ("a.csv", "prompt,response\na,b\nc\n", r"a\.csv, line 3: expected 2 cells"),
        ("a.csv", "prompt,response\na,b,c\n", r"a\.csv, line 2: expected 2 cells"),
        ("a.txt", "text", "Cannot tell the format"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        sources.read(tmp_path / name)


@pytest.mark.parametrize("name", ["none.jsonl", "folder/none", "./none", "v1.0"])
def test_a_missing_file_is_named(name):
    with pytest.raises(ValueError, match=f"no file '{Path(name)}'"):
        sources.read(name)


def test_a_folder_is_not_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    with pytest.raises(ValueError, match="no file 'prompts'"):
        sources.read("prompts")


@pytest.mark.parametrize("source", [3, None, {"prompt": ["a"]}])
def test_other_sources(source):
    with pytest.raises(ValueError, match="`source` must be"):
        sources.read(source)


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
    dataset = data.prompts(name, gpt2, 1, split=split, data_dir=tfds_dir)
    batches = list(dataset.as_numpy_iterator())
    records = [json.loads(batch["record"][0]) for batch in batches]
    assert sorted(record["label"] for record in records) == labels
    assert all(record["answer"] == "a" * record["label"] for record in records)
    assert {batch["prompt"][0] for batch in batches} == {b"Human: Hi\n\nAssistant:"}
