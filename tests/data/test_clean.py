"""Named rules remove the rows that an audit finds, and the report accounts for every row."""

import json
import random

import numpy as np
import pytest
from planted import PLANTED, noisy, pairs, planted, responses

import kerasrlhf as rlhf
from kerasrlhf.data.auditing import cleaning, findings, near

SAFE = cleaning.SAFE_RULES


@pytest.mark.parametrize("fault", PLANTED)
def test_a_rule_removes_what_the_finding_of_its_name_lists(fault):
    rows, options, expected = planted(fault)
    before = json.dumps(rows)
    cleaned = rlhf.data.clean(rows, [fault], **options)
    assert cleaned.report.removed == {fault: expected}
    kept = [number for number in range(len(rows)) if number not in expected]
    assert cleaned.report.kept == tuple(kept)
    assert all(one is rows[number] for one, number in zip(cleaned.records, kept, strict=True))
    assert json.dumps(rows) == before
    assert fault not in rlhf.data.audit(cleaned.records, **options)


def test_rules_by_default_remove_what_nobody_can_learn_from():
    for fault in PLANTED:
        rows, options, expected = planted(fault)
        removed = rlhf.data.clean(rows, **options).report.removed
        is_safe = fault in (*SAFE, "leaked_prompts")
        assert removed.get(fault, ()) == (expected if is_safe else ())
        assert sum(map(len, removed.values())) == (len(expected) if is_safe else 0)
    assert rlhf.data.clean(pairs()).report.kept == tuple(range(300))


def test_every_row_is_kept_or_removed_by_one_rule():
    rows = pairs(20)
    a, b = rows[2]["chosen"], rows[2]["rejected"]
    rows[4] = dict(rows[2])  # repeats a pair that is contradicted
    rows[6] = {**rows[2], "chosen": b, "rejected": a}
    rows[8] = {"prompt": "", "chosen": "same", "rejected": "same"}
    rows[10] = dict(rows[9])
    cleaned = rlhf.data.clean(rows)
    assert cleaned.report.removed == {
        "empty_texts": (8,),
        "lone_surrogates": (),
        "identical_responses": (),
        "contradictory_pairs": (2, 4, 6),
        "contradictory_labels": (),
        "duplicate_records": (10,),
    }
    assert len(cleaned.records) == 15 and len(cleaned.report.kept) == 15
    again = rlhf.data.clean(cleaned.records)
    assert again.records == cleaned.records


def test_rules_apply_to_what_earlier_ones_left():
    rows = pairs(10)
    rows[3], rows[5] = dict(rows[1]), dict(rows[1])
    held_out = [{"prompt": rows[1]["prompt"]}]
    rules = ["duplicate_records", "leaked_prompts"]
    assert rlhf.data.clean(rows, rules, held_out).report.removed == {
        "duplicate_records": (3, 5),
        "leaked_prompts": (1,),
    }
    assert rlhf.data.clean(rows, rules[::-1], held_out).report.removed == {
        "leaked_prompts": (1, 3, 5),
        "duplicate_records": (),
    }


def test_generated_records_are_all_accounted_for():
    source = random.Random(1)
    texts = ["", "\ud83d", "a", "A ", "b", "c", "d"]
    for _ in range(100):
        names = ("prompt", "chosen", "rejected")
        rows = [{n: source.choice(texts) for n in names} for _ in range(12)]
        if source.random() < 0.5:
            rows = [
                {"prompt": r["prompt"], "response": r["chosen"], "label": r["rejected"] == "a"}
                for r in rows
            ]
        records, report = rlhf.data.clean(rows)
        removed = [row for numbers in report.removed.values() for row in numbers]
        assert sorted([*report.kept, *removed]) == list(range(12))
        assert records == [rows[number] for number in report.kept]
        # What is left has none of the faults, so that loaders take it.
        assert not records or not {f.name for f in rlhf.data.audit(records).findings} & set(SAFE)


def test_labels_that_contradict_each_other_are_both_removed():
    rows = [{**row, "label": 1} for row in responses(20)]
    rows[9] = {**rows[4], "label": 0}
    assert rlhf.data.clean(rows).report.removed["contradictory_labels"] == (4, 9)


def test_margins_go_with_their_rows():
    rows = pairs(20)
    rows[2]["chosen"] = ""
    margins = np.full(20, 2.0)
    margins[7] = -3.0
    report = rlhf.data.clean(rows, ["empty_texts", "label_noise"], margins=margins).report
    assert report.removed == {"empty_texts": (2,), "label_noise": (7,)}


def test_suspicious_labels_are_removed_on_request():
    flipped = set(range(0, 600, 20))
    removed = rlhf.data.clean(noisy(flipped), ["label_noise"]).report.removed["label_noise"]
    assert set(removed) <= flipped and len(removed) >= 15
    assert list(removed) == sorted(removed)


def test_rows_that_would_be_cut(gpt2):
    rows = [
        {"prompt": "abcdef", "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": "abcdef", "rejected": "abcdeg"},
        {"prompt": "a", "chosen": "abcdef", "rejected": "b"},
        {"prompt": "a", "chosen": "c", "rejected": "b"},
    ]
    limits = {"tokenizer": gpt2, "prompt_length": 5, "response_length": 5}
    removed = rlhf.data.clean(rows, **limits).report.removed
    assert removed["identical_after_truncation"] == (1,)
    assert {*removed} == {*SAFE, "identical_after_truncation"}
    rules = ["identical_after_truncation", "cut_prompts", "cut_responses"]
    assert rlhf.data.clean(rows, rules, **limits).report.removed == {
        "identical_after_truncation": (1,),
        "cut_prompts": (0,),
        "cut_responses": (2,),
    }


def test_all_rows_may_go():
    cleaned = rlhf.data.clean([{"prompt": " "}])
    assert cleaned.records == [] and cleaned.report.kept == ()


def test_the_report_as_text_and_as_a_dictionary():
    report = rlhf.data.clean([{"prompt": "a"}] * 14, ["duplicate_records", "mojibake"]).report
    assert str(report) == (
        "1 of 14 records are left.\n"
        "  duplicate_records: 13 removed (rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)\n"
        "  mojibake: 0 removed"
    )
    assert repr(report) == "CleanReport(rows=14, kept=1)"
    assert json.loads(json.dumps(report.to_dict())) == {
        "rows": 14,
        "kept": [0],
        "removed": {"duplicate_records": list(range(1, 14)), "mojibake": []},
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            ["duplicate_record"],
            r"Unknown rule .duplicate_record.\. Did you mean duplicate_records\?",
        ),
        ([3], "Unknown rule 3"),
        (["length_bias"], "'length_bias' is a property of all records"),
        ("mojibake", r"Use \['mojibake'\]"),
        (["leaked_prompts"], "'leaked_prompts' needs `against`"),
        (["near_leaked_responses"], "needs `against`"),
        (["cut_prompts"], "needs `prompt_length`"),
        (["identical_after_truncation"], "needs `response_length`"),
    ],
)
def test_rules_that_cannot_apply_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        rlhf.data.clean(pairs(3), rules)


def test_bad_records_are_refused():
    with pytest.raises(ValueError, match=r"no text .* in 'chosen': rows 2 "):
        rlhf.data.clean([*pairs(2), {"prompt": "a", "chosen": 3, "rejected": "b"}])


def test_a_rule_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(near.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"kerasrlhf\[audit\]"):
        rlhf.data.clean(pairs(3), ["near_duplicate_prompts"])
    assert rlhf.data.clean(pairs(3)).report.kept == (0, 1, 2)


def test_every_rule_is_a_finding_about_rows():
    assert set(SAFE) < set(findings.RULES) < set(findings.MEANINGS)
    biases = {name for name in findings.MEANINGS if name.endswith("_bias")}
    assert set(findings.MEANINGS) - set(findings.RULES) == {*biases, "class_imbalance"}


def test_margins_that_know_little_are_a_warning():
    generator = np.random.default_rng(0)
    pairs = [{"prompt": f"p {i}", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(200)]
    with pytest.warns(UserWarning, match=r"agree with \d\d % of the labels"):
        rlhf.data.clean(pairs, ["label_noise"], margins=generator.normal(size=200))
