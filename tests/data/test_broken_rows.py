"""For each format, what may be wrong with a file: named before training, or skipped and counted."""

import gzip
import io
import json

import pyarrow
import pytest
from pyarrow import parquet

from kerasrlhf import data
from kerasrlhf.data import sources

GOOD = {"prompt": "ab", "chosen": "c", "rejected": "d"}
LINE = json.dumps(GOOD).encode()
MARKS = "\u2028\u2029\x85\x0b\x0c\x1c"


def record(**changes):
    return json.dumps(GOOD | changes, ensure_ascii=False).encode("utf-8", "surrogatepass")


def lines(*middle, end=b"\n"):
    return end.join([LINE, *middle, LINE]) + end


def without(name):
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


DEEP = b"[" * 100_000
NUMBERS = b'{"prompt": "a", "chosen": "b", "rejected": "c", "n": ' + b"1" * 5000 + b"}"
# One row of the middle is wrong: content, what the error says after the name, and which rows are
# left out. None: the file is wrong, not a row.
ROWS = {
    "bad JSON": (b'{"prompt" "a"}', r"line 2, column 11: not JSON \(Expecting ':'", (1,)),
    "invalid UTF-8": (
        record(chosen="Caf\xff").replace("\xff".encode(), b"\xff"),
        r"line 2(, column \d+)?: not UTF-8 \(byte 0xff after .*Caf",
        (1,),
    ),
    "a lone surrogate": (
        json.dumps(GOOD | {"chosen": "a\ud83d"}).encode(),
        r"line 2, column 'chosen': \\ud83d after .* lone surrogate",
        (1,),
    ),
    "a lone surrogate of the writer": (
        record(chosen="a\ud83d"),
        r"line 2(, column \d+)?: not UTF-8",
        (1,),
    ),
    "a double key": (b'{"prompt": "a", "prompt": "b"}', "line 2: the key 'prompt' has sev", (1,)),
    "an integer too long": (NUMBERS, "line 2: an integer of 5000 digits", (1,)),
    "a number": (record(chosen=3), r"line 2: .*no text .*in 'chosen'", (1,)),
    "a list": (record(rejected=["a"]), r"line 2: .*no text .*in 'rejected'", (1,)),
    "null": (record(rejected=None), r"line 2: .*no text .*in 'rejected'", (1,)),
    "a missing column": (without("rejected"), r"line 2: .*no text .*in 'rejected'", (1,)),
    "an empty text": (record(chosen=" "), r"line 2: .*an empty 'chosen'", (1,)),
    "no record": (b"3", "line 2: .*neither dictionaries nor strings", (1,)),
    "null for a record": (b"null", "line 2: .*neither dictionaries nor strings", (1,)),
    "special characters": (record(chosen=f"a{MARKS}", note=MARKS), None, ()),
    "zero bytes": (record(note="\0"), None, ()),
    "a long cell": (record(note="x" * 300_000), None, ()),
}
JSONL = {name: (lines(row), *rest) for name, (row, *rest) in ROWS.items()} | {
    "a text": (lines(b'"a"'), r"line 2: .*no text .*in 'chosen'", (1,)),
    "a file that was cut": (lines(LINE)[:-20], r"line 3, column \d+: not JSON \(Unterm", (2,)),
    "too many brackets": (lines(DEEP), "line 2: nested too deeply", (1,)),
    "blank lines": (lines(b"", b" ", b"{}", b""), r"line 4: .*no text .*in 'chosen'", (1,)),
    "a mark at the start": (b"\xef\xbb\xbf" + lines(LINE), None, ()),
    "CRLF": (lines(LINE, end=b"\r\n"), None, ()),
    "row 700": (b"\n".join([LINE] * 700 + [without("chosen")]), "line 701: .*'chosen'", (700,)),
    "an empty file": (b"", "has no rows", None),
    "blank lines only": (b"\n \n", "has no rows", None),
    "UTF-16": (lines(LINE).decode().encode("utf-16"), r"line 1: not UTF-8\. .*like UTF-16", None),
    "an archive": (gzip.compress(LINE, mtime=0), r"line 1: not UTF-8\. .*gzip archive", None),
    "another format": (b'[\n{"prompt": "a"}\n]', r"line 1, column 2: not JSON .*'\.json'", None),
    "other columns": (b'{"a": 1}\n', r"Expected a column 'chosen'.*Found: \['a'\]", None),
}
JSON = {
    name: (b"[" + b",\n".join([LINE, row, LINE]) + b"]", *rest)
    for name, (row, *rest) in ROWS.items()
    if name != "bad JSON"
} | {
    "bad JSON": (b"[" + LINE + b',\n{"prompt" "a"}]', "line 2, column 11: not JSON", None),
    "a file that was cut": (b"[" + LINE + b",\n" + LINE[:30], "line 2, .* ends inside", None),
    "a list that was cut": (b"[" + LINE + b",\n" + LINE, "line 2, .* ends inside", None),
    "a comma too many": (b"[" + LINE + b",]", r"line 1, column \d+: not JSON .*comma", None),
    "more after the list": (b"[" + LINE + b"]\n1", "line 2, column 1: not JSON .Extra", None),
    "too many brackets": (DEEP, "nested too deeply", None),
    "a mark at the start": (b"\xef\xbb\xbf [" + LINE + b"]", None, ()),
    "CRLF": (b"[\r\n" + LINE + b",\r\n" + LINE + b"\r\n]\r\n", None, ()),
    "row 700": (
        b"[" + b",\n".join([LINE] * 700 + [without("rejected")]) + b"]",
        "line 701: .*'rejected'",
        (700,),
    ),
    "an empty file": (b"", "line 1, column 1: not JSON", None),
    "an empty list": (b"[]", "has no rows", None),
    "one record": (LINE, "must hold a list of records. Received a JSON dict", None),
    "another format": (LINE + b"\n" + LINE, r"line 2, column 1: not JSON .*'\.jsonl'", None),
}
HEAD = b"prompt,chosen,rejected\n"
CSV = {
    "too few cells": (b"a,b,c\na,b\na,b,c\n", r"line 3: .*none for \['rejected'\]", (1,)),
    "too many cells": (b"a,b,c,d\na,b,c\n", "line 2: expected 3 cells .* Received 4", (0,)),
    "an open quotation mark": (b'a,"b,c\na,b,c\n', "line 2: not CSV .*goes on to line 3", None),
    "a quotation mark inside": (b'a,"b"c,d\na,b,c\n', "line 2: not CSV .*written twice", (0,)),
    "invalid UTF-8": (
        b"a,b,c\na,Caf\xe9,c\n",
        "line 3, column 'chosen': not UTF-8 .byte 0xe9 after 'Caf'",
        (1,),
    ),
    "a lone surrogate": (
        "a,b,c\na,b,\ud83d\n".encode("utf-8", "surrogatepass"),
        "line 3, column 'rejected': not UTF-8",
        (1,),
    ),
    "a file that was cut": (b"a,b,c\na,b", r"line 3: .*none for \['rejected'\]", (1,)),
    "a cell that was cut": (b'a,b,c\na,"b', r"line 3: not CSV \(unexpected end", (1,)),
    "an empty cell": (b"a,b,c\na,,c\n", "line 3: .*an empty 'chosen'", (1,)),
    "line breaks in cells": (b'a,"b\n\nb",c\n\na,b,\n', "line 6: .*an empty 'rejected'", (1,)),
    "CRLF": (b"a,b,c\r\na,b,c\r\n", None, ()),
    "special characters": (f'a,"{MARKS}b",c\n'.encode(), None, ()),
    "a long cell": (b"a,b," + b"c d" * 70_000 + b"\n", None, ()),
    "row 700": (b"a,b,c\n" * 700 + b"a,,c\n", "line 702: .*an empty 'chosen'", (700,)),
    "no rows": (b"", "has no rows", None),
}
CSV = {name: (HEAD + rest[0], *rest[1:]) for name, rest in CSV.items()} | {
    "a mark at the start": (b"\xef\xbb\xbf" + HEAD + b"a,b,c\n", None, ()),
    "an empty file": (b"", "has no rows", None),
    "a double header": (b"prompt,chosen,prompt\na,b,c\n", "line 1: 2 columns .*'prompt'", None),
    "a header in Latin-1": (b"pr\xe9,chosen\na,b\n", "line 1, .*: not UTF-8", None),
    "a header that is cut": (b'prompt,"chosen', "line 1: not CSV", None),
    "other columns": (b"question,answer\na,b\n", r"Expected a column 'chosen'.*Found", None),
    "UTF-16": ((HEAD + b"a,b,c\n").decode().encode("utf-16-le"), r"line 1: .*like UTF-16", None),
}


def packed(table):
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def table(rows=(GOOD, GOOD), **columns):
    made = pyarrow.Table.from_pylist(list(rows))
    for name, column in columns.items():
        made = made.set_column(made.schema.get_field_index(name), name, column)
    return packed(made)


DOUBLE = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, ["prompt", "chosen", "prompt"])

BYTES = pyarrow.array([b"a", b"Caf\xe9"]).view(pyarrow.string())
PARQUET = {
    "a file that was cut": (table()[:100], "cannot be read as Parquet .*copied", None),
    "another format": (b"[]", "cannot be read as Parquet", None),
    "an empty file": (b"", "cannot be read as Parquet", None),
    "no rows": (packed(pyarrow.table({"prompt": [], "chosen": []})), "has no rows", None),
    "invalid UTF-8": (table(chosen=BYTES), r"row 1 .*column 'chosen': .*not UTF-8", (1,)),
    "a double header": (packed(DOUBLE), "2 columns have the name 'prompt'", None),
    "null": (table(rejected=pyarrow.array(["a", None])), ": .*no text .*in 'rejected'.*", (1,)),
    "numbers": (table(chosen=pyarrow.array([1, 2])), ": .*no text .*in 'chosen'.*", None),
    "lists": (table(chosen=pyarrow.array([["a"], ["b"]])), ": .*no text .*in 'chosen'.*", None),
    "an empty text": (table(chosen=pyarrow.array(["a", ""])), ": .*an empty 'chosen'.*", (1,)),
    "special characters": (table(chosen=pyarrow.array([MARKS + "a", "b"])), None, ()),
    "a long cell": (table(chosen=pyarrow.array(["c d" * 70_000, "b"])), None, ()),
    "row 700": (table([GOOD] * 700 + [{"prompt": "a", "chosen": "b"}]), "rows? 700 .*", (700,)),
    "other columns": (table([{"a": 1}]), r"Expected a column 'chosen'.*Found: \['a'\]", None),
}
FORMATS = {
    "a.jsonl": JSONL,
    "a.jsonl.gz": {k: (gzip.compress(v[0], mtime=0), *v[1:]) for k, v in JSONL.items() if v[0]},
    "a.json": JSON,
    "a.json.gz": {k: (gzip.compress(v[0], mtime=0), *v[1:]) for k, v in JSON.items()},
    "a.csv": CSV,
    "a.csv.gz": {k: (gzip.compress(v[0], mtime=0), *v[1:]) for k, v in CSV.items()},
    "a.parquet": PARQUET,
}
MANY = gzip.compress(b"\n".join(record(note=str(i**9)) for i in range(900)))
FORMATS["a.jsonl.gz"] |= {
    "an empty archive": (b"", "has no rows", None),
    "an archive that was cut": (
        MANY[: len(MANY) // 2],
        r", after line \d+: cannot be unpacked .*again",
        None,
    ),
    "an archive without its end": (MANY[:-8], r"cannot be unpacked .*again", None),
    "a wrong sum": (MANY[:-8] + b"\0" * 8, r"cannot be unpacked \(CRC check failed", None),
    "no archive": (LINE, r"cannot be unpacked .*must not end with '\.gz'", None),
}
CASES = [(file, name, *case) for file, cases in FORMATS.items() for name, case in cases.items()]


@pytest.mark.parametrize("lazy", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("file", "name", "content", "message", "odd"),
    CASES,
    ids=[f"{file}: {name}" for file, name, *_ in CASES],
)
@pytest.mark.filterwarnings("ignore:.*(prompts were cut|rows cannot be used|identical)")
def test_a_file_is_read_or_refused_with_its_place(
    tmp_path, gpt2, file, name, content, message, odd, lazy
):
    path = tmp_path / file
    path.write_bytes(content)
    source = data.Stream(path) if lazy else path

    def load(on_error):
        return data.preferences(source, gpt2, 1, on_error=on_error, shuffle=False)

    if message is None:
        whole = load("raise").report
        assert whole.skipped == () and whole.rows == len(data.read(path))
        return
    # The file is named in any case; the line and the column where there are any.
    with pytest.raises(ValueError, match=rf"(?s){file}\b.*{message}|{message}.*{file}\b"):
        load("raise")
    if odd is None:
        with pytest.raises(ValueError, match=rf"{file}\b|No row can be used"):
            load("skip")
        return
    found = load("skip").report
    assert found.skipped == odd
    # Nothing is lost: every row is used or counted.
    assert found.rows + len(odd) == len(sources.located(path))
