"""An audit finds what was planted, in its rows, and nothing in clean records."""

import json
import random
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from planted import PLANTED, VOCABULARY, noisy, pairs, planted, responses, sentence

import kerasrlhf as rlhf
from kerasrlhf.data.auditing import biases, contents, contradictions, findings, near, noise
from kerasrlhf.data.auditing.checks import CHECKS

CLEAN = {
    "preferences": pairs,
    "unpaired_preferences": lambda: [
        {**row, "label": number % 3 > 0} for number, row in enumerate(responses())
    ],
    "demonstrations": responses,
    "texts": lambda: [row["response"] for row in responses()],
    "messages": lambda: [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
        }
        for row in responses(30)
    ],
    "prompts": lambda: [{"prompt": row["prompt"]} for row in responses()],
    "rankings": lambda: [
        {
            "prompt": row["prompt"],
            "responses": [row["chosen"], f"{row['prompt']} Yes, really.", row["rejected"]],
        }
        for row in pairs(40)
    ],
}


@pytest.mark.parametrize("kind", CLEAN)
def test_clean_records_have_no_findings(kind):
    report = rlhf.data.audit(CLEAN[kind](), against=pairs(100, seed=9))
    assert report.findings == ()
    assert report.kind in ("preferences", "unpaired_preferences", "demonstrations", "prompts")
    assert "nothing found" in str(report)


# What is also the case where the fault is planted.
IMPLIED = {
    "contradictory_pairs": {"duplicate_prompts"},
    "preference_cycles": {"duplicate_prompts", "duplicate_chosen", "duplicate_rejected"},
    "duplicate_records": {"duplicate_prompts", "duplicate_chosen", "duplicate_rejected"},
    "near_duplicate_records": {
        *("near_duplicate_prompts", "near_duplicate_chosen", "near_duplicate_rejected")
    },
    "near_leaked_prompts": {"duplicate_prompts"},
    "mojibake": {"other_script", "control_characters"},
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_in_its_rows(fault):
    rows, options, expected = planted(fault)
    report = rlhf.data.audit(rows, **options)
    assert report[fault].rows == expected
    assert {finding.name for finding in report.findings} - {fault} <= IMPLIED.get(fault, set())
    assert fault in str(report) and f"rows {expected[0]}" in str(report)


@pytest.mark.parametrize(
    ("fault", "related"),
    [
        ("duplicate_records", (5,)),
        ("duplicate_chosen", (5, 5)),
        ("near_duplicate_records", (5,)),
        ("contradictory_pairs", (70, 5)),
        ("leaked_prompts", (1,)),
        ("leaked_responses", (0, 1)),
        ("near_leaked_prompts", (0, 0)),
        ("near_leaked_responses", (0,)),
    ],
)
def test_a_row_comes_with_the_one_that_it_repeats(fault, related):
    rows, options, _ = planted(fault)
    assert rlhf.data.audit(rows, **options)[fault].related == related


def test_every_check_has_a_meaning():
    assert set(CHECKS) == set(findings.MEANINGS)


class TestTexts:
    @pytest.mark.parametrize(
        "text",
        [
            "Voilà\u00a0! CAFÉ… É”",
            "NÃO, são três",
            "Ångström \u2013 Übermut",
            "à\u00a0» «\u00a0â",
            "Ωμέγα",
        ],
    )
    def test_accented_letters_are_no_mojibake(self, text):
        assert not contents.has_mojibake(text)

    def test_code_may_hold_entities(self):
        for text in ("`&amp;`", "```\n&lt;b&gt;\n```", "AT&T; R&D", "```\n&amp;"):
            assert not contents.has_html_entity(text)

    def test_a_word_in_another_script_is_no_other_script(self):
        assert contents.script("The word мир means peace.") == "Latin"
        assert contents.script("мир") is None
        assert contents.script("π = 3.14159") is None

    def test_scripts_are_odd_only_where_one_is_usual(self):
        rows = [{"prompt": "Tom was very sad."}] * 90 + [{"prompt": "Том очень грустный."}] * 10
        assert rlhf.data.audit(rows, near=None)["other_script"].rows == tuple(range(90, 100))
        rows = rows[1:]  # 89 of 99
        assert "other_script" not in rlhf.data.audit(rows, near=None)


class TestDuplicates:
    def test_short_responses_are_the_same_by_chance(self):
        rows = pairs(20)
        rows[3]["chosen"] = rows[8]["chosen"] = "Yes, I think so."
        held_out = [{"prompt": "?", "response": "Yes, I think so."}]
        assert not rlhf.data.audit(rows, held_out).findings
        rows[3]["chosen"] = rows[8]["chosen"] = "Yes, I do think so."
        held_out = [{"prompt": "?", "response": "Yes, I do think so."}]
        report = rlhf.data.audit(rows, held_out)
        assert report["duplicate_chosen"].rows == (8,)
        assert report["leaked_responses"].rows == (3, 8)

    def test_texts_are_the_same_but_for_case_white_space_and_quotation_marks(self):
        texts = [
            "Tom's  “dog”",
            'TOM\u2019S\n"dog" ',
            '\uff34om\'s "dog"',
            "Tom's dog",
            'Toms "dog"',
        ]
        report = rlhf.data.audit([{"prompt": text} for text in texts])
        assert report["duplicate_records"].rows == (1, 2)

    def test_near_is_the_least_similarity(self):
        # Of 10 words and 9 pairs of words, 8 and 7 are in both: 15 of 10 + 9 + 2 + 2.
        words = VOCABULARY[:10]
        rows = [{"prompt": " ".join(words)}, {"prompt": " ".join([*words[:8], "x", "y"])}]
        assert "near_duplicate_records" in rlhf.data.audit(rows, near=15 / 23)
        assert "near_duplicate_records" not in rlhf.data.audit(rows, near=15 / 23 + 1e-6)
        assert "near_duplicate_records" not in rlhf.data.audit(rows, near=None)

    def test_one_text_that_is_alike_makes_no_near_record(self):
        rows = pairs(20)
        rows[9] = {**rows[9], "prompt": rows[2]["prompt"], "chosen": rows[2]["chosen"] + " Yes"}
        report = rlhf.data.audit(rows)
        assert "near_duplicate_records" not in report
        assert report["near_duplicate_chosen"].rows == (9,)

    def test_what_resembles_only_a_near_duplicate_is_kept(self):
        words = VOCABULARY[:40]
        chain = [" ".join([*words[shift:], *VOCABULARY[100 : 100 + shift]]) for shift in (0, 4, 8)]
        found = rlhf.data.audit([{"prompt": text} for text in chain])["near_duplicate_records"]
        assert (found.rows, found.related) == ((1,), (0,))

    def test_nearly_all_near_duplicates_of_a_large_group_are_found(self):
        source, base = random.Random(3), sentence(random.Random(4), 40, 40).split()
        rows = []
        for _ in range(300):
            words = list(base)
            words[source.randrange(40)] = source.choice(VOCABULARY)
            rows.append({"prompt": " ".join(words)})
        assert rlhf.data.audit(rows)["near_duplicate_records"].count >= 297

    def test_labels_tell_records_apart(self):
        rows = [{**row, "label": 1} for row in responses(60)]
        rows[30] = {**rows[4], "label": 0}
        report = rlhf.data.audit(rows)
        assert "duplicate_records" not in report
        assert report["contradictory_labels"].rows == (4, 30)
        assert report["duplicate_responses"].rows == (30,)
        rows[40] = {**rows[5], "response": rows[5]["response"] + " Yes"}
        assert rlhf.data.audit(rows)["near_duplicate_records"].rows == (40,)
        assert rlhf.data.audit(rows)["near_duplicate_responses"].rows == (40,)

    def test_without_a_package_for_near_duplicates_the_rest_is_found(self, monkeypatch):
        monkeypatch.setattr(near.importlib.util, "find_spec", lambda name: None)
        rows, _, expected = planted("duplicate_records")
        with pytest.warns(UserWarning, match=r"kerasrlhf\[audit\]"):
            report = rlhf.data.audit(rows)
        assert report["duplicate_records"].rows == expected
        assert "kerasrlhf[audit]" in str(report) and "kerasrlhf[audit]" in report.omitted[0]
        assert not rlhf.data.audit(rows, near=None).omitted

    def test_datasketch_takes_the_place_of_rensa(self, monkeypatch):
        pytest.importorskip("datasketch")
        rows, _, _ = planted("near_duplicate_records")
        expected = rlhf.data.audit(rows)
        find = near.importlib.util.find_spec
        monkeypatch.setattr(
            near.importlib.util, "find_spec", lambda name: None if name == "rensa" else find(name)
        )
        assert rlhf.data.audit(rows).findings == expected.findings

    def test_results_are_the_same_again(self):
        rows, options, _ = planted("near_leaked_prompts")
        one, other = (rlhf.data.audit(rows, **options).to_dict() for _ in range(2))
        assert one == other


class TestPreferences:
    @pytest.mark.parametrize(
        ("feature", "mark"),
        [
            ("list", "\n- one\n- two"),
            ("heading", "\n## One\nand"),
            ("bold", " **one** and"),
            ("code", " `one` and"),
            ("exclamation", " One! and"),
            ("question", " One? and"),
        ],
    )
    def test_a_mark_of_chosen_responses_is_a_bias(self, feature, mark):
        rows = pairs()
        for number, row in enumerate(rows):
            # 60 pairs differ; in 50 of them the chosen response has the mark.
            if number < 60:
                row["chosen" if number < 50 else "rejected"] += mark
        report = rlhf.data.audit(rows)
        found = report[f"{feature}_bias"]
        assert found.rows == tuple(range(50)) and not found.is_rule
        assert "83.3 % [72.0, 90.7] of 60 pairs" in found.detail
        assert report.statistics["biases"][feature]["pairs"] == 60
        rows[59]["rejected"] = rows[58]["rejected"] = rows[57]["rejected"] = "None at all."
        for number in range(8):
            rows[number]["chosen"] = f"None at all of {number}."
        assert f"{feature}_bias" not in rlhf.data.audit(rows)  # of 49 pairs

    def test_longer_wins(self):
        rows = pairs()
        for row in rows[:200]:
            row["chosen"], row["rejected"] = sorted(
                (row["chosen"], row["rejected"]), key=len, reverse=True
            )
        longer = tuple(n for n, row in enumerate(rows) if len(row["chosen"]) > len(row["rejected"]))
        report = rlhf.data.audit(rows)
        assert report["length_bias"].rows == longer
        shorter = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]
        found = rlhf.data.audit(shorter)["length_bias"]
        assert found.rows == longer and "less of it is chosen" in found.detail

    def test_words_of_the_prompt_win(self):
        rows, source = pairs(), random.Random(0)
        for row in rows:
            row["chosen"] += " " + row["prompt"]
            row["rejected"] += " " + sentence(source, 10, 10)
        assert rlhf.data.audit(rows)["overlap_bias"].count > 290

    def test_a_bias_close_to_one_half_is_none(self):
        assert biases.bias_of(np.repeat([1.0, -1.0], [5400, 4600])).accuracy.low > 0.5
        assert not biases.bias_of(np.repeat([1.0, -1.0], [5400, 4600])).is_notable
        assert biases.bias_of(np.repeat([1.0, -1.0], [5700, 4300])).is_notable
        assert biases.bias_of(np.repeat([1.0, -1.0], [4300, 5700])).is_notable

    def test_a_place_that_is_chosen_more_often(self):
        rows = [{**row, "position": "A" if n % 4 else "b"} for n, row in enumerate(pairs())]
        report = rlhf.data.audit(rows)
        assert report["position_bias"].rows == tuple(n for n in range(300) if n % 4)
        assert report.statistics["positions"] == {"position=b": 75, "position=a": 225}
        assert not rlhf.data.audit(rows, position=None).findings
        own = [{**row, "shown": n % 2, "position": 1} for n, row in enumerate(rows)]
        assert not rlhf.data.audit(own, position="shown").findings
        with pytest.raises(ValueError, match="position='screen'"):
            rlhf.data.audit(rows, position="screen")

    def test_rankings_are_compared_by_neighbors(self):
        prompt, (a, b, c) = "Which one is the best?", VOCABULARY[:3]
        ranked = [{"prompt": prompt, "responses": list(r)} for r in ((a, b, c), (c, a, b))]
        report = rlhf.data.audit(ranked)
        assert report["preference_cycles"].rows == (0, 1)
        assert "contradictory_pairs" not in report
        ranked[1]["responses"] = [b, a, c]
        assert rlhf.data.audit(ranked)["contradictory_pairs"].rows == (0, 1)
        ranked[1]["responses"] = [b, c, b]
        assert rlhf.data.audit(ranked)["identical_responses"].rows == (1,)

    def test_long_chains_of_preferences_are_no_circle(self):
        count = 3000
        edges = [((0, n), (0, n + 1)) for n in range(count)]
        assert len({*contradictions.components(edges).values()}) == count + 1
        assert len({*contradictions.components([*edges, ((0, count), (0, 0))]).values()}) == 1

    def test_a_rare_label_is_an_imbalance(self):
        rows = [{**row, "label": number >= 29} for number, row in enumerate(responses())]
        assert rlhf.data.audit(rows)["class_imbalance"].rows == tuple(range(29))
        rows[29]["label"] = False
        assert "class_imbalance" not in rlhf.data.audit(rows)
        few = [{**row, "label": number > 0} for number, row in enumerate(responses(49))]
        assert "class_imbalance" not in rlhf.data.audit(few)
        few.append({**responses(51)[-1], "label": True})
        assert rlhf.data.audit(few)["class_imbalance"].rows == (0,)


class TestLengths:
    def test_what_would_be_cut(self, gpt2):
        rows = [
            {"prompt": "abcde", "chosen": "abcdef", "rejected": "b"},
            {"prompt": "abcdef", "chosen": "abcdeg", "rejected": "abcdefg"},
            {"prompt": "a", "chosen": "c", "rejected": "abcde"},
        ]
        report = rlhf.data.audit(rows, tokenizer=gpt2, prompt_length=5, response_length=5)
        assert report["cut_prompts"].rows == (1,)
        assert report["cut_responses"].rows == (0, 1)
        assert report["identical_after_truncation"].rows == (1,)
        assert report.statistics["lengths"]["chosen"]["tokens"]["max"] == 6
        wider = rlhf.data.audit(rows, tokenizer=gpt2, prompt_length=6, response_length=7)
        assert not wider.findings
        surrogate = [{"prompt": "ab\ud800", "chosen": "a", "rejected": "b"}]
        assert rlhf.data.audit(surrogate, tokenizer=gpt2)["lone_surrogates"].rows == (0,)

    def test_quantiles_and_histogram(self):
        report = rlhf.data.audit([{"prompt": "a b"}, {"prompt": "abc"}, {"prompt": "c d e f"}])
        lengths = report.statistics["lengths"]["prompt"]
        assert [lengths["words"][name] for name in ("min", "median", "max")] == [1, 2, 4]
        assert lengths["characters"]["mean"] == 4.33
        assert sum(lengths["words"]["histogram"]["counts"]) == 3


class TestLabelNoise:
    def test_swapped_pairs_are_found(self):
        flipped = set(range(0, 600, 20))
        found = rlhf.data.audit(noisy(flipped), near=None)["label_noise"]
        assert set(found.rows) <= flipped and found.count >= 15
        assert "built-in model" in found.detail

    def test_swapped_labels_are_found(self):
        rows = [
            {"prompt": row["prompt"], "response": row[name], "label": name == "chosen"}
            for number, row in enumerate(noisy(()))
            for name in [("chosen", "rejected")[number % 2]]
        ]
        assert not rlhf.data.audit(rows, near=None).findings
        for number in range(0, 600, 20):
            rows[number]["label"] = not rows[number]["label"]
        found = rlhf.data.audit(rows, near=None)["label_noise"]
        right = set(found.rows) & set(range(0, 600, 20))
        assert len(right) >= 15 and len(right) >= 0.9 * found.count

    def test_a_built_in_model_that_is_often_wrong_accuses_nobody(self):
        rows = noisy(set(range(0, 600, 3)))
        report = rlhf.data.audit(rows, near=None)
        assert 0.5 < report.statistics["margins"]["low"] < noise.LEAST_ACCURACY
        assert "label_noise" not in report
        few = noisy(set(range(0, 199, 20)), 199)
        assert "margins" not in rlhf.data.audit(few, near=None).statistics
        assert "margins" in rlhf.data.audit(noisy((), 200), near=None).statistics

    @pytest.mark.parametrize("form", ["array", "function"])
    def test_margins_of_the_caller(self, form):
        rows = pairs(20)
        margins = [2.0] * 20
        margins[7] = -3.0
        scores = {row["chosen"]: value for row, value in zip(rows, margins, strict=True)}

        def score(prompts, texts):
            assert len(prompts) == len(texts) == 20
            return [scores.get(text, 0.0) for text in texts]

        report = rlhf.data.audit(rows, margins=score if form == "function" else margins)
        assert report["label_noise"].rows == (7,)
        assert report.statistics["margins"]["accuracy"] == 0.95

    @pytest.mark.parametrize(
        ("margins", "message"),
        [
            ([1.0], "one number per record, 20"),
            ([float("nan")] * 20, "Row 0"),
            (["a"] * 20, "must be numbers"),
            (lambda prompts, texts: [0.0], "a finite number per text"),
        ],
    )
    def test_margins_that_are_none(self, margins, message):
        with pytest.raises(ValueError, match=message):
            rlhf.data.audit(pairs(20), margins=margins)

    def test_by_hand(self):
        # Probabilities 0.953, 0.881, 0.982, 0.007, 0.731, 0.525; their mean is 0.680.
        found = rlhf.data.label_noise([3.0, 2.0, 4.0, -5.0, 1.0, 0.1])
        assert found.rows == (3,) and found.rate == pytest.approx(1 / 5)
        assert rlhf.data.label_noise([3.0, -0.5, 2.0]).rows == ()  # 0.622 is below 0.737
        assert rlhf.data.label_noise([0.5, -4.0, 0.5, -9.0, 0.1]).rows == (3, 1)

    @pytest.mark.parametrize(
        ("margins", "labels"), [([], None), ([np.inf], None), ([1.0], [2]), ([1.0, 2.0], [1])]
    )
    def test_bad_input(self, margins, labels):
        with pytest.raises(ValueError, match=r"Expected|labels"):
            rlhf.data.label_noise(margins, labels)

    @pytest.mark.parametrize("is_pair", [True, False])
    def test_cleanlab_finds_the_same_rows(self, is_pair):
        filters = pytest.importorskip("cleanlab.filter")
        random = np.random.default_rng(0)
        margins = random.normal(1.0, 2.0, 500)
        labels = np.ones(500, int) if is_pair else random.integers(0, 2, 500)
        log_odds = margins * (2 * labels - 1)
        if is_pair:  # in both orders
            labels, log_odds = np.repeat([1, 0], 500), np.concatenate([margins, -margins])
        ones = 1 / (1 + np.exp(-log_odds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            is_issue = filters.find_label_issues(
                labels, np.stack([1 - ones, ones], axis=1), filter_by="confident_learning"
            )
        found = rlhf.data.label_noise(log_odds[:500], None if is_pair else labels)
        assert len(found.rows) > 50
        assert set(found.rows) == set(np.flatnonzero(is_issue[:500]))

    def test_rows_of_a_prompt_share_a_fold(self):
        """A row cannot be known from its copy: without a fold of their own these would be."""
        random = np.random.default_rng(0)
        x = np.repeat(random.normal(size=(100, 80)).astype("float32"), 2, axis=0)
        labels = np.repeat(random.integers(0, 2, 100), 2)
        groups = np.repeat(np.arange(100), 2)
        together = noise.cross_fitted_margins(x, labels, groups)
        apart = noise.cross_fitted_margins(x, labels, np.arange(200))
        assert np.mean((apart > 0) == labels) > 0.75
        assert np.mean((together > 0) == labels) < 0.65


class TestReport:
    @pytest.fixture(scope="class")
    def report(self):
        rows, _, _ = planted("duplicate_records")
        rows[7]["chosen"] = '<script>alert("&")</script>\x07\ud800 **one**'
        rows[8]["rejected"] = ""
        rows = [{**row, "position": n % 2} for n, row in enumerate(rows)]
        return rlhf.data.audit(rows)

    def test_the_page_is_well_formed_and_needs_no_network(self, report, tmp_path):
        report.save(tmp_path / "new" / "audit.html")
        page = (tmp_path / "new" / "audit.html").read_text("utf-8")
        tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
        assert tree.tag == "html" and len(tree.findall(".//svg")) > 6
        tags = {element.tag for element in tree.iter()}
        assert not tags & {"script", "link", "img", "iframe"}
        links = {e.get("href") for e in tree.iter() if e.get("href")} | set(
            re.findall(r"url\(|https?:|src=|@import", page)
        )
        assert all(link.startswith("#") for link in links)
        assert "&lt;script&gt;" in page
        identifiers = {element.get("id") for element in tree.iter("section")}
        assert {link[1:] for link in links} == identifiers == {f.name for f in report.findings}

    def test_the_page_has_findings_with_rows_and_examples(self, report, tmp_path):
        report.save(str(tmp_path / "audit.html"))
        page = (tmp_path / "audit.html").read_text("utf-8")
        for finding in report.findings:
            assert f"Rows: {', '.join(map(str, finding.rows))}" in page
            assert f"Row {finding.rows[0]}" in page
        assert "(repeats row 5)" in page
        with pytest.raises(ValueError, match=r"\.html"):
            report.save(tmp_path / "audit.json")

    def test_the_page_fits_a_narrow_screen(self, report, tmp_path):
        report.save(tmp_path / "audit.html")
        page = (tmp_path / "audit.html").read_text("utf-8")
        tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
        assert 'name="viewport"' in page
        # Tables scroll by themselves and pictures shrink, so that the page does neither.
        wide = tree.findall(".//div[@class='wide']/table")
        assert len(wide) == len(tree.findall(".//table")) > 3
        assert all(svg.get("viewBox") for svg in tree.iter("svg"))

    def test_the_page_has_numbers_as_people_write_them(self, report, tmp_path):
        rows, options, _ = planted("leaked_prompts")
        texts = []
        for number, one in enumerate([report, rlhf.data.audit(rows, **options)]):
            one.save(tmp_path / f"{number}.html")
            texts.append((tmp_path / f"{number}.html").read_text("utf-8") + str(one))
        for text in texts:
            assert not re.search(r"\b1 (rows|texts)\b", text)
        assert "duplicate_records: 1 row" in texts[0] and "(repeats held-out row " in texts[1]
        # Lengths are aligned at their last digits, under a head that is.
        tree = ElementTree.fromstring(
            (tmp_path / "0.html").read_text("utf-8").removeprefix("<!DOCTYPE html>\n")
        )
        (head,) = (x for x in tree.iter("tr") if x[0].text == "column")
        assert [cell.get("class") for cell in head] == [None] * 2 + ["number"] * 5

    def test_the_dictionary_is_json_and_complete(self, report):
        found = json.loads(json.dumps(report.to_dict()))
        assert [f["rows"] for f in found["findings"]] == [list(f.rows) for f in report.findings]
        assert found["rows"] == 300 and found["settings"]["near"] == 0.8
        assert found["findings"][0]["examples"][0]["row"] == found["findings"][0]["rows"][0]

    def test_the_most_severe_come_first(self, report):
        severities = [findings.SEVERITIES.index(finding.severity) for finding in report.findings]
        assert severities == sorted(severities) and report.severities["error"] == 2

    def test_its_text_and_its_names(self, report):
        assert (
            repr(report)
            == "AuditReport(kind='preferences', rows=300, errors=2, warnings=2, notes=3)"
        )
        assert "WARNING duplicate_records: 1 row\n    rows 70 (as 5)" in str(report)
        assert max(map(len, str(report).splitlines())) <= 88
        with pytest.raises(KeyError, match="Did you mean empty_texts"):
            report["empty_text"]
        with pytest.raises(AttributeError):
            report.rows = 3

    def test_large_findings_are_shortened_on_the_page(self, tmp_path):
        report = rlhf.data.audit([{"prompt": "Who is Tom?"}] * 300)
        report.save(tmp_path / "audit.html")
        assert "and 99 more" in (tmp_path / "audit.html").read_text("utf-8")
        assert report["duplicate_records"].count == 299


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


class TestBadInput:
    @pytest.mark.parametrize(
        ("records", "message"),
        [
            ([], "no rows"),
            ([GOOD, 3], r"neither dictionaries nor strings: rows 1 "),
            ([GOOD, {"prompt": "a", "chosen": "b"}], r"no text .* in 'rejected': rows 1 "),
            ([GOOD, {**GOOD, "chosen": None}], r"no text .* in 'chosen': rows 1 "),
            ([GOOD, {**GOOD, "prompt": 5}], r"no text .* in 'prompt': rows 1 "),
            ([{"question": "a"}], r"Found columns: \['question'\]"),
            ([{"prompt": "a", "response": "b", "label": "maybe"}], r"no 'label' .* rows 0 "),
            ([{"prompt": "a", "responses": ["b"]}], "two or more texts"),
            ([{"messages": [{"role": "robot", "content": "a"}]}], "Row 0: "),
        ],
    )
    def test_records_without_texts_are_refused(self, records, message):
        with pytest.raises(ValueError, match=message):
            rlhf.data.audit(records)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"near": 0.0}, "`near` must be above 0"),
            ({"near": 1.5}, "`near` must be"),
            ({"kind": "pairs"}, "`kind` must be one of"),
            ({"kind": "demonstrations"}, "Expected a column"),
            ({"prompt_length": 5}, "pass `tokenizer`"),
            ({"tokenizer": 3, "response_length": 0}, "`response_length` must be at least 1"),
            ({"seed": -1}, "`seed`"),
            ({"template": "other"}, "Unknown template"),
            ({"position": 3}, "`position` must be"),
            ({"against": [{"question": "a"}]}, "`against`: Records need"),
        ],
    )
    def test_options_out_of_their_range_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            rlhf.data.audit([GOOD], **options)

    def test_generated_records_raise_nothing_but_value_errors(self):
        source = random.Random(0)
        texts = ["", " ", "\ud83d", "\x00", "<b>", "你好", "Tom was sad and went home.", "a" * 500]
        texts += ["Human: Hi\n\nAssistant: Ho", "\ufffd&amp;â€™", "🙂", "\u2028", "%s {}"]
        columns = ["prompt", "chosen", "rejected", "response", "completion", "text", "messages"]
        columns += ["responses", "label", "position", 3]

        def value(depth=0):
            choice = source.random()
            if choice < 0.7 or depth > 2:
                return source.choice(texts)
            if choice < 0.8:
                role = source.choice(["user", "assistant", "system", "tool", None])
                return [{"role": role, "content": value(depth + 1)} for _ in range(2)]
            others = [None, 1, 0, True, 2.5, float("nan"), [], {}, b"a", [value(depth + 1)]]
            return source.choice(others)

        audited = 0
        for number in range(300):
            names = source.choice(
                [columns[:3], columns[:3], ["prompt", "response"], ["text"], ["prompt"], columns]
            )
            rows = [
                {n: source.choice(texts) if number % 2 else value() for n in names}
                for _ in range(source.randint(1, 6))
            ]
            against = [{"prompt": value()}] if number % 5 == 0 else None
            try:
                report = rlhf.data.audit(rows, against)
            except ValueError:
                continue
            audited += 1
            json.dumps(report.to_dict())
            assert str(report) and all(0 <= r < len(rows) for f in report.findings for r in f.rows)
        assert audited > 80


def test_words_are_the_same_with_and_without_other_alphabets():
    from kerasrlhf.data.auditing.corpus import words_of

    text = "It's A_test: 3.5 (well-known)\tEND"
    assert words_of(text + " é")[:-1] == words_of(text)
