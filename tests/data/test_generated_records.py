"""Generated records: nothing but `ValueError` is raised, and no row is lost in silence.

`KERASRLHF_EXAMPLES=10000` tries more of them.
"""

import gzip
import json
import os
import warnings

import hypothesis
import keras_hub
import pyarrow
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from kerasrlhf import data
from kerasrlhf.data import sources

# Half of them in memory, half of them in files; each has up to six records.
EXAMPLES = int(os.environ.get("KERASRLHF_EXAMPLES", "300")) // 2
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    # The same records in every run.
    derandomize=True,
    database=None,
    suppress_health_check=[*hypothesis.HealthCheck],
)
LOADERS = {
    "demonstrations": data.demonstrations,
    "turns": lambda *args, **options: data.demonstrations(*args, all_turns=True, **options),
    "preferences": data.preferences,
    "prompts": data.prompts,
    "unpaired_preferences": data.unpaired_preferences,
    "stepwise": lambda *args, **options: data.stepwise(*args, separator="z", **options),
}
COLUMNS = (
    *("prompt", "response", "completion", "chosen", "rejected", "responses", "text", "messages"),
    *("conversations", "system", "label", "labels", "steps", "completions", "margin", "ended"),
    *("note", ""),
)
# What people have in their files: words, marks of templates, halves of characters, nothing.
TEXTS = st.one_of(
    st.sampled_from(["a", "ab", " ", "", "<|endoftext|>", "Human: a", "\ud83d", "\u2028", "\0"]),
    st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", "z", "1"]),
    st.text(max_size=12),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, True, False, 10**400]))
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "", None, 3])
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": st.none() | TEXTS}),
    st.fixed_dictionaries({"from": ROLES, "value": TEXTS}),
    st.dictionaries(st.sampled_from(["role", "content", "name"]), st.none() | TEXTS, max_size=3),
)
VALUES = st.one_of(
    TEXTS,
    TEXTS,
    st.none(),
    NUMBERS,
    st.lists(MESSAGES, max_size=4),
    st.lists(TEXTS | NUMBERS | st.none(), max_size=3),
    st.dictionaries(st.sampled_from(["role", "content", "a"]), TEXTS, max_size=2),
)
# Rows that most loaders can use, so that odd ones have company.
USUAL = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["a", "ab c"]),
        "response": st.sampled_from(["b", "cc"]),
        "chosen": st.sampled_from(["b", "cc" * 20]),
        "rejected": st.sampled_from(["d", "e"]),
        "label": st.sampled_from([0, 1, True, "false"]),
        "steps": st.just(["b", "c"]),
        "labels": st.just([1, 0]),
    }
)
ODD = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=5)
RECORDS = st.one_of(
    USUAL,
    st.builds(lambda usual, odd: usual | odd, USUAL, ODD),
    ODD,
    TEXTS,
    st.sampled_from([None, 3, [], [1], True]),
)


def as_file(path, rows):
    """Writes rows in the format of a name, as well as the format can; returns how many there are.

    Halves of characters are bytes that are not UTF-8.
    """
    encode = lambda text: text.encode("utf-8", "surrogatepass")  # noqa: E731
    if path.suffix == ".parquet":
        tables = [
            {str(k): json.dumps(v) for k, v in row.items()} for row in rows if type(row) is dict
        ]
        names = {name: None for row in tables for name in row}
        parquet.write_table(pyarrow.Table.from_pylist([{**names, **row} for row in tables]), path)
        return len(tables)
    if ".csv" in path.name:
        names = [name for name in COLUMNS if name]
        lines = [",".join(names)]
        # Quotation marks are left alone: some rows are no CSV.
        some = [row for row in rows if isinstance(row, dict)]
        for row in some:
            lines.append(",".join(str(row.get(name, "")) for name in names))
        content = encode("\n".join(lines))
    elif ".jsonl" in path.name:
        content = encode("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    else:
        content = encode(json.dumps(rows))
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return len(rows)


@SETTINGS
@hypothesis.given(
    rows=st.lists(RECORDS, min_size=1, max_size=6),
    name=st.sampled_from([*LOADERS]),
    template=st.sampled_from(["plain", "chatml"]),
    lazy=st.booleans(),
)
def test_records_in_memory(byte_level, rows, name, template, lazy):
    check(byte_level, data.Stream(rows) if lazy else rows, len(rows), name, template)


@SETTINGS
@hypothesis.given(
    rows=st.lists(RECORDS, min_size=1, max_size=6),
    name=st.sampled_from([*LOADERS]),
    ending=st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"]),
    lazy=st.booleans(),
)
def test_records_in_files(byte_level, folder, rows, name, ending, lazy):
    path = folder / f"rows.{ending}"
    count = as_file(path, rows)
    try:
        # Line breaks and quotation marks make other rows of some; blank ones are none.
        count = len(sources.located(path)) if "csv" in ending else count
    except ValueError:
        count = None
    check(byte_level, data.Stream(path) if lazy else path, count, name, "plain", path.name)


def check(preprocessor, source, count, name, template, file=""):
    def load(**options):
        """Returns the dataset, or what is wrong with the source."""
        options |= {"template": template, "drop_remainder": False, "shuffle": False}
        try:
            return LOADERS[name](source, preprocessor, 2, **options), ""
        except ValueError as error:
            return None, str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, message = load()
        # All rows, or an error that names the file.
        assert file in message if found is None else found.report.rows == count
        found, message = load(on_error="skip", drop_longer_than=20)
        if found is None:
            assert message
            return
    report = found.report
    left_out = [*report.skipped, *report.dropped]
    assert report.rows + len(left_out) == count and len(left_out) == len({*left_out})
    assert {*left_out} <= {*range(count)} and report.length <= 20
    assert len(found) == -(-report.rows // 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(scope="module")
def byte_level(tokenizers):
    return keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizers["gpt2"].tokenizer, sequence_length=32
    )
