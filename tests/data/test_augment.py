"""Rules add records, keep those that were there, and account for every row."""

import collections
import copy
import importlib
import json
import re

import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.data.augmenting import prompts, rules, words
from kerasrlhf.rollouts.best_of_n import BestOfN
from kerasrlhf.tokens import SampledText

SYNONYMS = {"small": ["little", "tiny"], "brown": ["dark"], "garden": ["yard"], "ball": ["toy"]}
TEMPLATES = ["Please answer: {prompt}", "{prompt} Be brief."]
HH = "\n\nHuman: Where is the small ball?\n\nAssistant:"


def pairs(count=6):
    return [
        {
            "id": i,
            "prompt": f"Where is the small brown ball of Tom the {word}?",
            "chosen": f"The small ball is in the garden of the {word}.",
            "rejected": f"Nobody has a small ball in the {word}.",
        }
        for i, word in enumerate(["king", "cook", "duck", "frog", "girl", "boy"][:count])
    ]


def dialogues():
    """The same pairs in the forms that the loader of preferences reads."""
    question = [{"role": "user", "content": "Who is Tom?"}]
    system = {"role": "system", "content": "Always answer with many small words."}
    first = {"role": "assistant", "content": "Tom is a small brown dog."}
    history = [system, *question, first, {"role": "user", "content": "Where is the small ball?"}]
    good = {"role": "assistant", "content": "It is in the small garden."}
    bad = {"role": "assistant", "content": "Nobody has seen the small ball."}
    return {
        "strings": {
            "prompt": HH.strip(),
            "chosen": " In the small garden.",
            "rejected": " Not here.",
        },
        "common_text": {"chosen": HH + " In the small garden.", "rejected": HH + " Not so here."},
        "messages": {"prompt": history, "chosen": [good], "rejected": [bad]},
        "whole_dialogues": {"chosen": [*history, good], "rejected": [*history, bad]},
        "ranking": {"prompt": history, "responses": [[good], [bad], [first]]},
    }


def added(augmented):
    return [row for row in augmented.records if "augmented_by" in row]


ALL = {
    "synonyms": SYNONYMS,
    "templates": TEMPLATES,
    "sample": lambda asked: [
        {"prompt": prompt, "chosen": "Yes, it is here.", "rejected": "No, it is not."}
        for prompt in asked
    ],
}


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_rule_keeps_the_records_and_adds_some_that_say_where_they_come_from(rule):
    records = pairs()
    records[0]["prompt"] = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\n" + HH.strip()
    before = copy.deepcopy(records)
    augmented = rlhf.data.augment(records, [rule], **ALL)
    assert records == before
    assert augmented.records[:6] == before
    new = added(augmented)
    assert new and {row["augmented_by"] for row in new} == {rule}
    for row in new:
        source = before[row["augmented_from"]]
        assert row["id"] == source["id"]
        changed = {name for name in source if row[name] != source[name]}
        expected = {
            "unrelated_response": {"rejected"},
            "best_against_worst": {"chosen", "rejected"},
            "wrap_prompts": {"prompt"},
            "cut_prompts": {"prompt"},
        }
        assert changed == expected.get(rule, {"prompt", "chosen", "rejected"})
    report = augmented.report
    assert report.added == {rule: tuple(row["augmented_from"] for row in new)}
    assert {*report.added[rule], *report.unchanged[rule]} == {*range(6)}
    assert report.total == len(augmented.records) == 6 + len(new)
    # What was added is read by the loader, in the words of its rows.
    assert len(rlhf.data.records.preference_texts(augmented.records)[0]) == report.total


@pytest.mark.parametrize("form", dialogues())
@pytest.mark.parametrize("rule", ["delete_words", "swap_words", "replace_words", "wrap_prompts"])
def test_all_forms_of_pairs_change_as_their_texts_do(form, rule):
    record = dialogues()[form]
    before = copy.deepcopy(record)
    (new,) = added(rlhf.data.augment([record], [rule], **ALL, seed=3))
    assert record == before
    old_texts = rlhf.data.records.preference_texts([record])
    new_texts = rlhf.data.records.preference_texts([new])
    assert len(old_texts) == len(new_texts)
    for place, (old, text) in enumerate(zip(old_texts, new_texts, strict=True)):
        old, text = old[0], text[0]
        marks = re.compile(r"(?:Human|Assistant|System):")
        assert marks.findall(old) == marks.findall(text)
        old_words, new_words = (collections.Counter(re.findall(r"\w+", x)) for x in (old, text))
        if rule == "wrap_prompts":
            assert (old != text) == (place == 0)
            assert not old_words - new_words
        elif rule == "delete_words":
            assert new_words < old_words
        elif rule == "swap_words":
            assert new_words == old_words and text != old
        elif rule == "replace_words" and "small" in old:
            assert text != old and new_words.total() == old_words.total()
        # What the system says stays.
        if "Always" in old:
            assert "Always answer with many small words." in text


def test_dialogues_lose_their_first_turns_and_keep_the_system():
    for form in ("messages", "whole_dialogues", "ranking"):
        record = dialogues()[form]
        (new,) = added(rlhf.data.augment([record], ["cut_prompts"]))
        (text,) = rlhf.data.records.preference_texts([new])[0]
        assert text == "System: Always answer with many small words.\n\n" + HH.strip() or (
            text.endswith(HH.strip()) and "Who is Tom?" not in text and "Always" in text
        )
    one_turn = rlhf.data.augment([dialogues()["strings"]], ["cut_prompts"])
    assert not added(one_turn) and one_turn.report.unchanged == {"cut_prompts": (0,)}


def test_demonstrations_and_prompts_change_where_nothing_is_imitated():
    said = "The small ball is in the garden."
    for record in (
        {"prompt": "Where is the small ball?", "response": said},
        {"prompt": "Where is the small ball?", "completion": said, "label": True},
        {"messages": dialogues()["whole_dialogues"]["chosen"]},
    ):
        new = added(rlhf.data.augment([record], [*rules.TEXT_RULES, "wrap_prompts"], **ALL))
        assert len(new) == 4
        (old_prompt,), (old_response,) = rlhf.data.records.demonstration_texts([record])
        for row in new:
            (prompt,), (response,) = rlhf.data.records.demonstration_texts([row])
            assert prompt != old_prompt and response == old_response
            assert row.get("label") == record.get("label")
        (row,) = added(rlhf.data.augment([record], ["delete_words"], texts="responses"))
        (prompt,), (response,) = rlhf.data.records.demonstration_texts([row])
        assert prompt == old_prompt and response != old_response
    (row,) = added(rlhf.data.augment(["Once upon a time"], ["cut_prompts"], kind="prompts"))
    assert row["prompt"] in ("Once upon", "Once upon a")
    (row,) = added(rlhf.data.augment([{"text": said}], ["delete_words"], texts="all"))
    assert len(row["text"].split()) == 6


def test_records_depend_on_seed_rule_and_row_and_on_nothing_else():
    options = {"copies": 2, **ALL}
    both = rlhf.data.augment(pairs(), ["delete_words", "swap_words"], **options, seed=5)
    again = rlhf.data.augment(pairs(), ["delete_words", "swap_words"], **options, seed=5)
    assert json.dumps(both.records) == json.dumps(again.records)
    assert both.report == again.report
    # Neither the other rules nor the rows that follow matter.
    alone = rlhf.data.augment(pairs(3), ["swap_words"], **options, seed=5)
    kept = [row for row in added(both) if row["augmented_by"] == "swap_words"]
    assert added(alone) == [row for row in kept if row["augmented_from"] < 3]
    other = rlhf.data.augment(pairs(), ["delete_words", "swap_words"], **options, seed=6)
    assert added(other) != added(both)


def test_equal_rows_change_in_different_ways():
    places = [("delete_words", 0, 0), ("swap_words", 0, 0), ("swap_words", 1, 0)]
    places += [("swap_words", 1, 1), ("swap_words", 0, 1)]
    options = [rules.Options(seed=seed) for seed in (0, 1)]
    found = {one.random(*place).integers(2**60) for one in options for place in places}
    assert len(found) == 10
    augmented = rlhf.data.augment([{"prompt": pairs(1)[0]["prompt"]}] * 8, ["delete_words"])
    assert len({row["prompt"] for row in added(augmented)}) > 3


def test_copies_of_a_row_differ():
    records = [{"prompt": "Who is Tom?"}]
    augmented = rlhf.data.augment(records, ["wrap_prompts"], templates=TEMPLATES, copies=3)
    assert sorted(row["prompt"] for row in added(augmented)) == [
        "Please answer: Who is Tom?",
        "Who is Tom? Be brief.",
    ]
    # Two words can be swapped in one way only.
    augmented = rlhf.data.augment([{"prompt": "Sad Tom"}], ["swap_words"], copies=3)
    assert [row["prompt"] for row in added(augmented)] == ["Tom Sad"]
    nothing = rlhf.data.augment([{"prompt": "Tom"}, *records], ["delete_words"])
    assert nothing.report.unchanged == {"delete_words": (0,)}
    assert str(nothing.report) == (
        "2 records became 3.\n  delete_words: 1 added, nothing new from 1 rows (0)"
    )
    assert json.loads(json.dumps(nothing.report.to_dict()))["added"] == {"delete_words": [1]}


def test_rates_are_met_and_each_word_is_as_likely_as_another():
    text = " ".join(f"w{'abcdefghij'[i % 10]}{'xyz'[i // 10]}" for i in range(30))
    gone = collections.Counter()
    for seed in range(400):
        random = np.random.default_rng(seed)
        left = words.delete(text, 0.1, random).split()
        assert len(left) == 27
        gone.update({*text.split()} - {*left})
    # 40 times each on average, with a standard deviation of 6.
    assert len(gone) == 30 and 16 < min(gone.values()) <= max(gone.values()) < 64


@pytest.mark.parametrize(
    "text",
    [
        "Human: Assistant: System:",
        "<|im_start|>user\n<|im_end|>",
        "[INST] </s> {name}",
        "12 3.5 a1 www.example.org me@home.org x/y",
        "",
        "...",
    ],
)
def test_marks_numbers_and_addresses_are_no_words(text):
    random = np.random.default_rng(0)
    replace = words.replacing(lambda word: ["other"])
    for change in (words.delete, words.swap, replace):
        assert change(text, 0.9, random) == text


def test_words_of_two_turns_do_not_change_places():
    text = "Human: one two\n\nAssistant: three four"
    for seed in range(20):
        lines = words.swap(text, 0.9, np.random.default_rng(seed)).split("\n\n")
        found = [{*re.findall(r"\w+", line)} for line in lines]
        assert found == [{"Human", "one", "two"}, {"Assistant", "three", "four"}]


def test_spaces_and_punctuation_stay_in_order():
    random = np.random.default_rng(1)
    for _ in range(30):
        left = words.delete("He said, she is  very sad!", 0.2, random)
        assert "  ," not in left and " !" not in left and left.endswith("!")
    assert words.delete("Tom sleeps", 0.9, random) in ("Tom", "sleeps")


def test_synonyms_are_written_as_the_words_that_they_replace():
    replace = words.replacing(lambda word: {"ball": ["toy"], "sad": ["low"]}.get(word, []))
    random = np.random.default_rng(0)
    assert replace("Ball, BALL and ball; a sad1 sad.", 0.9, random) == (
        "Toy, TOY and toy; a sad1 sad."
    )


def test_synonyms_come_from_a_function_that_is_asked_once_a_word():
    asked = []

    def synonyms(word):
        asked.append(word)
        return ["thing"] if word == "ball" else []

    records = [{"prompt": "ball ball ball ball"}, {"prompt": "One ball"}]
    new = added(rlhf.data.augment(records, ["replace_words"], synonyms=synonyms))
    assert [row["prompt"].count("thing") for row in new] == [1, 1]
    assert asked.count("ball") == 1


LEXICON = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.0.dtd">
<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">
  <Lexicon id="tiny" label="Tiny" language="en" email="a@b.c" license="none" version="1">
    {entries}
    <Synset id="tiny-1-n" ili="" partOfSpeech="n"/>
    <Synset id="tiny-2-n" ili="" partOfSpeech="n"/>
  </Lexicon>
</LexicalResource>"""
ENTRY = (
    """<LexicalEntry id="tiny-{0}"><Lemma writtenForm="{0}" partOfSpeech="n"/>{1}</LexicalEntry>"""
)
SENSE = """<Sense id="tiny-{0}-{1}" synset="tiny-{1}-n"/>"""


def test_synonyms_of_a_wordnet_are_those_of_the_first_sense(tmp_path, monkeypatch):
    wn = pytest.importorskip("wn")
    monkeypatch.setattr(wn.config, "data_directory", tmp_path / "wn")
    records = [{"prompt": "A garden is here"}]
    with pytest.raises(ValueError, match=r"no English lexicon.*python -m wn download.*wn\.add"):
        rlhf.data.augment(records, ["replace_words"], synonyms="wordnet")
    senses = {"garden": [1, 2], "yard": [1], "plot": [2]}
    entries = "".join(
        ENTRY.format(word, "".join(SENSE.format(word, n) for n in numbers))
        for word, numbers in senses.items()
    )
    path = tmp_path / "tiny.xml"
    path.write_text(LEXICON.format(entries=entries), encoding="utf-8")
    wn.add(path, progress_handler=None)
    for seed in range(5):
        augmented = rlhf.data.augment(records, ["replace_words"], synonyms="wordnet", seed=seed)
        assert [row["prompt"] for row in added(augmented)] == ["A yard is here"]


def test_a_missing_package_is_named(monkeypatch):
    real = importlib.import_module

    def fail(name, *args):
        if name == "wn":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"pip install kerasrlhf\[augment\].*dictionary"):
        rlhf.data.augment(pairs(), ["replace_words"], synonyms="wordnet")


def test_the_rejected_response_answers_another_prompt():
    records = pairs(4)
    records[1]["prompt"] = records[0]["prompt"].upper()  # the same prompt, but for case
    for seed in range(10):
        new = added(rlhf.data.augment(records, ["unrelated_response"], seed=seed, copies=3))
        for row in new:
            (other,) = (i for i in range(4) if records[i]["chosen"] == row["rejected"])
            assert other != row["augmented_from"]
            assert {other, row["augmented_from"]} != {0, 1}
            assert row["chosen"] == records[row["augmented_from"]]["chosen"]
    alone = rlhf.data.augment(pairs(1), ["unrelated_response"])
    assert alone.report.unchanged == {"unrelated_response": (0,)}


def test_the_response_of_another_row_brings_its_end():
    records = [{**row, "ended": [i != 2, True]} for i, row in enumerate(pairs(3))]
    new = added(rlhf.data.augment(records, ["unrelated_response"], copies=8))
    taken = {records[i]["chosen"]: i for i in range(3)}
    for row in new:
        assert row["ended"] == [row["augmented_from"] != 2, taken[row["rejected"]] != 2]
    assert {taken[row["rejected"]] for row in new} == {0, 1, 2}


def test_strings_do_not_take_the_place_of_messages():
    forms = dialogues()
    records = [forms["messages"], forms["strings"], *pairs(2)]
    new = added(rlhf.data.augment(records, ["unrelated_response"], copies=5))
    assert {row["augmented_from"] for row in new} == {1, 2, 3}
    assert all(isinstance(row["rejected"], str) for row in new)


def test_the_best_of_several_responses_against_the_worst():
    records = [*pairs(3), {**pairs(1)[0], "id": 9, "chosen": "Here.", "ended": [True, False]}]
    asked = []

    def sample(found):
        asked.append(found)
        scores = np.array([[0.1, 0.9, 0.5]] * (len(found) - 1) + [[1.0, 1.0, 1.0]])
        ended = np.ones((len(found), 3), bool)
        return BestOfN(
            found, [[f"one {p}", f"two {p}", f"three {p}"] for p in found], scores, ended
        )

    augmented = rlhf.data.augment(records, ["best_against_worst"], sample=sample)
    first, second = added(augmented)
    assert asked == [[row["prompt"] for row in records[:3]]]
    assert first["chosen"] == f"two {records[0]['prompt']}"
    assert first["rejected"] == f"one {records[0]['prompt']}"
    assert first["ended"] == [True, True] and second["augmented_from"] == 1
    # Equal scores, and a prompt that was asked before.
    assert augmented.report.unchanged == {"best_against_worst": (2, 3)}
    for wrong in (lambda found: 1, lambda found: ["a"], lambda found: [{"prompt": "x"}]):
        with pytest.raises(ValueError, match="must return a `BestOfN`"):
            rlhf.data.augment(records, ["best_against_worst"], sample=wrong)
    other = {"prompt": "Who?", "chosen": "a", "rejected": "b"}
    with pytest.raises(ValueError, match="a prompt that it did not receive: 'Who"):
        rlhf.data.augment(records, ["best_against_worst"], sample=lambda found: [other])


def test_sampled_tokens_stay_what_was_sampled():
    response = SampledText(" The small ball is here.", [5, 6], None)
    record = {"prompt": "Where is the ball?", "chosen": response, "rejected": " Not here, Tom."}
    (new,) = added(rlhf.data.augment([record], ["delete_words"]))
    assert new["chosen"] is response and new["rejected"] != record["rejected"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": "delete_words"}, r"must be a list of names.*\['delete_words'\]"),
        ({"rules": []}, "names no rule. Rules: delete_words"),
        ({"rules": ["delete_word"]}, "Unknown rule.*Did you mean delete_words"),
        ({"rules": ["swapped_order"]}, "is the same pair.*comparisons"),
        ({"rules": ["replace_words"]}, "'replace_words' needs `synonyms`"),
        ({"rules": ["replace_words"], "synonyms": 3}, "dictionary from words.*Received: 3"),
        ({"rules": ["wrap_prompts"]}, "needs `templates`"),
        ({"rules": ["wrap_prompts"], "templates": ["Answer!"]}, r"\{prompt\} in the place"),
        ({"rules": ["best_against_worst"]}, "needs `sample`"),
        ({"rules": ["best_against_worst"], "sample": 4}, "must be a function.*Received: 4"),
        ({"rules": ["swap_words"], "rate": 1.0}, "`rate` must be above 0.0 and below 1.0"),
        ({"rules": ["swap_words"], "copies": 0}, "`copies` must be at least 1"),
        ({"rules": ["swap_words"], "seed": -1}, "`seed` must be at least 0"),
        ({"rules": ["swap_words"], "texts": "chosen"}, "`texts` must be one of"),
        ({"rules": ["swap_words"], "kind": "pairs"}, "`kind` must be one of"),
        (
            {"rules": ["unrelated_response"], "records": [{"prompt": "a"}]},
            "is for preferences. Received prompts",
        ),
        (
            {"rules": ["swap_words"], "records": [{"prompt": "a b"}], "texts": "responses"},
            "Prompts have no responses",
        ),
        ({"rules": ["swap_words"], "records": [{"text": "a b"}]}, 'Pass `texts="responses"`'),
        ({"rules": ["cut_prompts"], "records": [{"text": "a b"}]}, "the records have none"),
        (
            {"rules": ["swap_words"], "records": [*pairs(2), {"prompt": "a", "chosen": "b"}]},
            "1 of 3 rows have not the texts of preferences: rows 2.*there is no column 'rejected'",
        ),
        (
            {"rules": ["swap_words"], "records": [{"prompt": "a", "chosen": 1, "rejected": "b"}]},
            "rows 0.*no string and no messages in 'chosen'",
        ),
        ({"rules": ["swap_words"], "records": []}, "has no rows"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        rlhf.data.augment(**{"records": pairs(2), **arguments})


def test_rankings_are_refused_where_pairs_are_made():
    with pytest.raises(ValueError, match="have rankings in 'responses'"):
        rlhf.data.augment([dialogues()["ranking"]], ["best_against_worst"], **ALL)


@pytest.mark.parametrize("text", ["Human: a\n\nAssistant: b\n\nHuman: c {prompt}\n\nAssistant:"])
def test_a_template_surrounds_the_last_turn_and_keeps_what_is_in_it(text):
    wrapped = prompts.wrap(text, "<{prompt}>")
    assert wrapped == text.replace("c {prompt}", "<c {prompt}>")


def test_comparisons_are_in_both_orders_and_balanced():
    records = pairs()
    both = rlhf.data.comparisons(records)
    assert len(both) == 12
    for i, (one, other) in enumerate(zip(both[::2], both[1::2], strict=True)):
        chosen, rejected = records[i]["chosen"], records[i]["rejected"]
        assert one["prompt"].index(chosen) < one["prompt"].index(rejected)
        assert other["prompt"].index(rejected) < other["prompt"].index(chosen)
        assert (one["response"], other["response"]) == (" A", " B")
        assert (one["position"], other["position"]) == ("first", "second")
        assert one["id"] == other["id"] == i and "chosen" not in one
    prompts_found, responses = rlhf.data.records.demonstration_texts(both)
    assert len(prompts_found) == 12 and {*responses} == {" A", " B"}
    many = [{**row, "prompt": f"{row['prompt']} {i}"} for i in range(40) for row in pairs()]
    places = [row["position"] for row in rlhf.data.comparisons(many, order="random", seed=1)]
    # 120 of 240 on average, with a standard deviation of 8.
    assert len(places) == 240 and 90 < places.count("first") < 150
    assert places == [r["position"] for r in rlhf.data.comparisons(many, order="random", seed=1)]


def test_slots_that_texts_have_stay_text():
    record = {"prompt": "What is {first}?", "chosen": "{second}", "rejected": "{prompt}"}
    (one, _) = rlhf.data.comparisons([record], layout="{prompt}|{first}|{second}")
    assert one["prompt"] == "What is {first}?|{second}|{prompt}"
    for wrong in ({"layout": "{prompt} {first}"}, {"answers": ["A", "A"]}, {"answers": "AB"}):
        with pytest.raises(ValueError, match="must"):
            rlhf.data.comparisons([record], **wrong)
    with pytest.raises(ValueError, match="rankings"):
        rlhf.data.comparisons([dialogues()["ranking"]])
