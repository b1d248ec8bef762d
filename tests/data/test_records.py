"""Columns, and what is wrong with them."""

import pytest

import kerasrlhf as rlhf
from kerasrlhf.data import records

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go."}
PROMPT = "Human: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": PROMPT, "response": " Hello!"},
        {"prompt": PROMPT, "completion": " Hello!"},
        {"prompt": [USER], "response": "Hello!"},
        {"prompt": [USER], "completion": [GOOD]},
        {"prompt": PROMPT, "completion": [GOOD]},
        {"response": [USER, GOOD]},
        {"prompt": "ignored", "response": [USER, GOOD]},
        {"messages": [USER, GOOD]},
        {"text": [USER, GOOD]},
    ],
)
def test_demonstrations(record):
    assert records.demonstration_texts([record]) == ([PROMPT], [" Hello!"])


def test_a_text_is_all_response():
    assert records.demonstration_texts([{"text": "Once."}]) == ([""], ["Once."])


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": PROMPT, "chosen": " Hello!", "rejected": " Go."},
        {"prompt": [USER], "chosen": "Hello!", "rejected": "Go."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": PROMPT, "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": PROMPT + " Hello!", "rejected": PROMPT + " Go."},
        {"prompt": None, "chosen": PROMPT + " Hello!", "rejected": PROMPT + " Go."},
    ],
)
def test_preferences(record):
    assert records.preference_texts([record]) == ([PROMPT], [" Hello!"], [" Go."])


def test_the_common_text_ends_at_its_last_marker():
    start = f"{PROMPT} Hello!\n\nHuman: Why?\n\nAssistant:"
    pair = {"chosen": start + " Because.", "rejected": start + " Bye."}
    assert records.preference_texts([pair]) == ([start], [" Because."], [" Bye."])


def test_equal_dialogues_keep_their_last_message():
    pair = {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}
    assert records.preference_texts([pair]) == ([PROMPT], [" Hello!"], [" Hello!"])


def test_templates():
    texts = records.prompt_texts([{"prompt": [USER]}], "chatml")
    assert texts == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    pair = {"prompt": [USER], "chosen": [GOOD], "rejected": "Go."}
    assert records.preference_texts([pair], "chatml")[1:] == (["Hello!"], ["Go."])


OK = {"prompt": "a", "response": "b", "chosen": "c", "rejected": "d"}


@pytest.mark.parametrize(
    ("function", "rows", "message"),
    [
        (
            records.prompt_texts,
            [{"question": "a", "id": 1}],
            r"'prompt'. Found: \['id', 'question'\]",
        ),
        (
            records.prompt_texts,
            [OK, {"prompt": 3}],
            r"1 of 2 rows have no text .* rows 1 \(counted",
        ),
        (records.prompt_texts, [{"prompt": 3}] * 7, r"7 of 7 .* rows 0, 1, 2, 3, 4, \.\.\."),
        (records.prompt_texts, [OK, {"other": "a"}], "rows 1 "),
        (records.prompt_texts, [{"prompt": []}], "have no text"),
        (records.prompt_texts, [OK, {"prompt": " \n"}], r"have an empty 'prompt': rows 1 "),
        (
            records.prompt_texts,
            [OK, {"prompt": [{"role": "x", "content": "a"}]}],
            "Row 1: Unknown role",
        ),
        (records.demonstration_texts, [{"prompt": "a"}], "'response' or 'completion' or 'text'"),
        (records.demonstration_texts, [{"response": "a"}], r"'prompt'. Found: \['response'\]"),
        (records.demonstration_texts, [OK, {"response": "b"}], "in 'prompt': rows 1 "),
        (records.demonstration_texts, [OK | {"prompt": None}], "in 'prompt': rows 0 "),
        (records.demonstration_texts, [OK | {"response": ""}], "empty 'response': rows 0 "),
        (records.demonstration_texts, [OK | {"prompt": ""}], "empty 'prompt': rows 0 "),
        (records.demonstration_texts, [{"text": ""}], "empty 'text'"),
        (records.demonstration_texts, [{"messages": [USER]}], "Row 0: .*role is 'assistant'"),
        (
            records.preference_texts,
            [{"prompt": "a", "chosen": "b"}],
            "Expected a column 'rejected'",
        ),
        (records.preference_texts, [OK | {"chosen": 1}], "in 'chosen'"),
        (records.preference_texts, [OK | {"rejected": ""}], "empty 'rejected'"),
        (records.preference_texts, [OK | {"prompt": 1}], "in 'prompt'"),
        (
            records.preference_texts,
            [{"chosen": "a", "rejected": "b"}],
            "Row 0: .*share a text up to",
        ),
        (
            records.preference_texts,
            [{"chosen": [USER, GOOD], "rejected": "b"}],
            "Row 0: .*must both be",
        ),
        (records.preference_texts, [{"chosen": [GOOD], "rejected": [BAD]}], "share their leading"),
    ],
)
def test_bad_records(function, rows, message):
    with pytest.raises(ValueError, match=message):
        function(rows)


@pytest.mark.parametrize(
    "function", [records.prompt_texts, records.demonstration_texts, records.preference_texts]
)
def test_a_template_is_checked_even_where_it_is_not_used(function):
    with pytest.raises(ValueError, match="Unknown template 'x'"):
        function([OK], "x")


def test_load():
    assert records.load(["a", "b"]) == [{"text": "a"}, {"text": "b"}]
    assert records.load(iter([OK])) == [OK]
    with pytest.raises(ValueError, match=r"no rows. Received: \[\]"):
        records.load([])
    with pytest.raises(
        ValueError, match="1 of 2 rows are neither dictionaries nor strings: rows 1 "
    ):
        records.load([OK, 3])


HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}


def test_conversations_of_sharegpt():
    (row,) = records.load([{"conversations": [HUMAN, GPT], "id": 1}])
    assert records.demonstration_texts([row]) == (["Human: Hi\n\nAssistant:"], [" Hello."])
    assert row["id"] == 1
    (row,) = records.load([{"system": "Be kind.", "conversations": [HUMAN, GPT]}])
    assert row["messages"][0] == {"role": "system", "content": "Be kind."}
    (row,) = records.load([{"conversations": [HUMAN]}], text_column="prompt")
    assert records.prompt_texts([row]) == ["Human: Hi\n\nAssistant:"]
    pair = {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "What?"}}
    prompts, chosen, rejected = records.preference_texts(records.load([pair]))
    assert (prompts, chosen, rejected) == (["Human: Hi\n\nAssistant:"], [" Hello."], [" What?"])


def test_other_conversations_are_refused_with_what_is_wrong():
    with pytest.raises(ValueError, match="Unknown role 'bing'"):
        records.demonstration_texts(records.load([{"conversations": [{**GPT, "from": "bing"}]}]))
    with pytest.raises(ValueError, match="must be a dictionary with the keys 'role' and 'content'"):
        records.demonstration_texts(records.load([{"conversations": [{"from": "gpt"}]}]))


def test_rows_that_cannot_be_read_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n{"prompt": "b"}\n[1]\n', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"2 of 4 rows .*line 2, column 12: not JSON") as found:
        assert rlhf.data.records.load(path, on_error="skip") == [{"prompt": "a"}, {"prompt": "b"}]
    assert found[0].filename == __file__
    with pytest.raises(ValueError, match="line 2, column 12"):
        rlhf.data.records.load(path)
