"""Choices of a person are saved one by one, and go on where they ended."""

import json
import os
import subprocess
import sys

import pytest

import kerasrlhf as rlhf
from kerasrlhf.data.labeling import label as label_module
from kerasrlhf.data.labeling import terminal, widgets
from kerasrlhf.data.labeling.journal import Journal


def pairs(count=8):
    return [
        {"prompt": f"Question {i}?", "responses": [f"good {i}", f"bad {i}"], "source": f"s{i}"}
        for i in range(count)
    ]


def better(labeling):
    """Chooses the good response of the current pair, wherever it is."""
    labeling.choose("left" if labeling.current.left.startswith("good") else "right")


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "labels.jsonl"


def test_choices_become_preferences(path):
    labeling = rlhf.data.Labeling(pairs(), path)
    while labeling.current is not None:
        better(labeling)
    rows = rlhf.data.read(path)
    assert [row["prompt"] for row in rows] == [f"Question {i}?" for i in range(8)]
    texts = rlhf.data.records.preference_texts(rows)
    assert texts[1:] == ([f"good {i}" for i in range(8)], [f"bad {i}" for i in range(8)])
    assert [row["source"] for row in rows] == [f"s{i}" for i in range(8)]
    assert not any({"responses", "verdict"} & row.keys() for row in rows)
    assert not labeling.undecided_path.exists()
    with pytest.raises(ValueError, match="All pairs have been chosen from"):
        labeling.choose("left")


def test_sides_are_a_matter_of_chance_and_of_the_seed(path):
    def sides(seed):
        labeling, found = rlhf.data.Labeling(pairs(200), path, seed=seed), []
        for pair in labeling._pairs.values():
            found.append(pair.shown.left.startswith("good"))
        return found

    # 100 of 200 on average, with a standard deviation of 7.
    assert 70 < sum(sides(0)) < 130
    assert sides(0) == sides(0) != sides(1)
    labeling = rlhf.data.Labeling(pairs(2), path)
    labeling.choose("left")
    labeling.choose("right")
    rows = read(path)
    assert [row["position"] for row in rows] == ["left", "right"]
    # The audit looks at this column: whoever nearly always takes the left one is found.
    often = rlhf.data.Labeling(pairs(100), path.with_name("often.jsonl"))
    while often.current is not None:
        often.choose("left" if often.counts["done"] % 10 else "right")
    assert "position_bias" in rlhf.data.audit(often.path, near=None)


def test_each_choice_is_on_disk_before_the_next(path, monkeypatch):
    synced = []
    fsync = os.fsync

    def spy(handle):
        synced.append(os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    labeling = rlhf.data.Labeling(pairs(), path)
    for count in range(1, 4):
        better(labeling)
        assert len(read(path)) == count
        assert path.stat().st_size in synced


def test_a_labeling_goes_on_where_it_ended(path):
    first = rlhf.data.Labeling(pairs(), path)
    shown = [first.current]
    for verdict in ("left", "tie", "skip", "right"):
        first.choose(verdict)
        shown.append(first.current)
    # Records in another order, with the responses the other way round: the same pairs.
    turned = [{**row, "responses": row["responses"][::-1]} for row in pairs()]
    again = rlhf.data.Labeling(turned, path)
    assert again.counts == {"total": 8, "done": 4, "decided": 2, "tie": 1, "skip": 1}
    assert again.current.prompt == shown[-1].prompt
    more = rlhf.data.Labeling([*reversed(pairs(10))], path)
    assert more.counts["total"] == 10 and more.counts["done"] == 4
    assert more.current.prompt == "Question 9?"
    assert str(path) in repr(more) and "4 of 10 pairs done, 1 tied, 1 skipped" in repr(more)


def test_ties_and_skipped_pairs_are_apart_and_can_be_shown_again(path):
    labeling = rlhf.data.Labeling(pairs(3), path)
    labeling.choose("tie")
    labeling.choose("skip")
    better(labeling)
    assert [row["verdict"] for row in read(labeling.undecided_path)] == ["tie", "skip"]
    assert [row["prompt"] for row in read(path)] == ["Question 2?"]
    second = rlhf.data.Labeling(labeling.undecided_path, path.with_name("second.jsonl"))
    assert second.counts["total"] == 2
    better(second)
    better(second)
    rows = read(second.path)
    assert [row["chosen"] for row in rows] == ["good 0", "good 1"]
    assert not any("verdict" in row for row in rows)


def test_undo_takes_back_the_last_choice_of_either_file(path):
    labeling = rlhf.data.Labeling(pairs(), path)
    assert not labeling.undo()
    first = labeling.current
    better(labeling)
    labeling.choose("tie")
    better(labeling)
    assert labeling.undo() and labeling.current.prompt == "Question 2?"
    assert labeling.undo() and labeling.current.prompt == "Question 1?"
    assert read(labeling.undecided_path) == [] and len(read(path)) == 1
    # Also one of an earlier labeling, and then the choice can be another.
    again = rlhf.data.Labeling(pairs(), path)
    assert again.undo() and again.current == first
    assert not again.undo()
    again.choose("skip")
    assert read(path) == [] and len(read(labeling.undecided_path)) == 1
    others = rlhf.data.Labeling([{"prompt": "a", "responses": ["b", "c"]}], path)
    assert not others.undo()


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_last_line_that_is_cut_is_chosen_again(path, keep):
    labeling = rlhf.data.Labeling(pairs(), path)
    for _ in range(3):
        better(labeling)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    again = rlhf.data.Labeling(pairs(), path)
    # Without its line break alone, the last line is whole.
    assert again.counts["done"] == (3 if keep == -1 else 2)
    while again.counts["done"] < 3:
        better(again)
    better(again)
    assert path.read_bytes().startswith(whole) and len(read(path)) == 4
    assert again.undo() and path.read_bytes() == whole


def test_a_process_that_is_killed_loses_no_choice(path):
    code = f"""
import os, signal
import kerasrlhf as rlhf
pairs = [{{"prompt": f"Question {{i}}?", "responses": ["good", "bad"]}} for i in range(5)]
labeling = rlhf.data.Labeling(pairs, {str(path)!r})
for verdict in ("left", "tie", "right"):
    labeling.choose(verdict)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -9
    records = [{"prompt": f"Question {i}?", "responses": ["good", "bad"]} for i in range(5)]
    again = rlhf.data.Labeling(records, path)
    assert again.counts == {"total": 5, "done": 3, "decided": 2, "tie": 1, "skip": 0}


def test_a_file_that_another_program_changes_is_left_alone(path):
    one, two = (rlhf.data.Labeling(pairs(), path) for _ in range(2))
    better(one)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Another program has changed"):
        better(two)
    assert path.read_bytes() == before and two.counts["done"] == 0


def test_files_of_other_programs_are_refused(path):
    path.parent.mkdir()
    for content, message in (
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "line 1: no label"),
        ("[1]\n", "line 1: no label"),
        ("no json\n{}\n", "line 1: not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            rlhf.data.Labeling(pairs(), path)
        assert path.read_text() == content
    with pytest.raises(ValueError, match=r"must end with '\.jsonl'"):
        rlhf.data.Labeling(pairs(), "labels.csv")


def test_pairs_are_shown_once_and_equal_responses_not_at_all(path):
    records = [
        *pairs(2),
        {"prompt": "Question 0?", "responses": ["bad 0", "good 0"]},
        {"prompt": "Same?", "responses": ["yes", " yes "]},
    ]
    labeling = rlhf.data.Labeling(records, path)
    assert labeling.counts["total"] == 2 and labeling.identical == 1
    for wrong, message in (
        ([{"prompt": "a", "responses": ["b", "c", "d"]}], "between two responses. Received 3"),
        ([{"prompt": "a", "chosen": "b"}], "'rejected'"),
        ([{"prompt": "a", "responses": ["b", ""]}], "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            rlhf.data.Labeling(wrong, path)


def test_messages_are_shown_as_text_and_saved_as_messages(path):
    question = [{"role": "user", "content": "Where is Tom?"}]
    replies = [[{"role": "assistant", "content": text}] for text in ("Here.", "No idea.")]
    record = {
        "chosen": question + replies[0],
        "rejected": question + replies[1],
        "ended": [True, False],
        "margin": 2.0,
    }
    labeling = rlhf.data.Labeling([record], path)
    shown = labeling.current
    assert shown.prompt == "Human: Where is Tom?\n\nAssistant:"
    assert {shown.left, shown.right} == {"Here.", "No idea."}
    # Against the label that it had.
    labeling.choose("left" if shown.left == "No idea." else "right")
    (row,) = read(path)
    assert (row["prompt"], row["chosen"], row["rejected"]) == (question, *replies[::-1])
    assert row["ended"] == [False, True] and "margin" not in row
    assert rlhf.data.records.preference_texts([row])[1] == [" No idea."]


def test_a_journal_of_many_rows_is_read_as_it_was_written(path):
    path.parent.mkdir()
    journal, expected = Journal(path, ["n"]), []
    texts = ["a\u2028b", "c\nd\r", 'e"', "\x85", "\U0001f600"]
    for n in range(30):
        journal.append({"n": n, "text": texts[n % 5]})
        expected.append({"n": n, "text": texts[n % 5]})
        if n % 7 == 3:
            assert journal.pop() == expected.pop()
    assert journal.rows == Journal(path, ["n"]).rows == expected
    assert rlhf.data.read(path) == expected


def typed(lines):
    """A person who types these lines, and what they are shown."""
    lines, screens = iter(lines), []

    def question(text):
        line = next(lines)
        if isinstance(line, type):
            raise line
        return line

    return {"read": question, "write": screens.append}, screens


def test_a_terminal_asks_until_nothing_is_left(path):
    labeling = rlhf.data.Labeling(pairs(4), path)
    front, screens = typed(["u", "L", "", "x", "tie", " r ", "undo", "s", "left"])
    terminal.run(labeling, **front)
    assert labeling.counts == {"total": 4, "done": 4, "decided": 2, "tie": 1, "skip": 1}
    text = "\n".join(screens)
    for part in ("Question 0?", "good 3", "bad 3", "3 of 4 pairs done", "nothing to undo"):
        assert part in text
    # Shown again after it was taken back, but not after a line that means nothing.
    assert text.count("Question 1?") == 1 and text.count("Question 2?") == 2
    assert text.count("Type l, r, t, s, u or q") == 2
    assert screens[-1] == f"\n4 of 4 pairs done, 1 tied, 1 skipped. Saved in {path}"


@pytest.mark.parametrize("end", ["q", "Quit", EOFError, KeyboardInterrupt])
def test_a_terminal_stops_and_goes_on(path, end):
    front, _ = typed(["l", end])
    terminal.run(rlhf.data.Labeling(pairs(2), path), **front)
    front, screens = typed(["r"])
    terminal.run(rlhf.data.Labeling(pairs(2), path), **front)
    assert [row["position"] for row in read(path)] == ["left", "right"]
    assert "1 of 2 pairs done" in screens[0]


def test_a_terminal_shows_what_hides_in_a_text(path):
    front, screens = typed(["q"])
    record = {"prompt": "a\x1b[2Jb", "responses": ["c\nd", "e\u2028"]}
    terminal.run(rlhf.data.Labeling([record], path), **front)
    assert "a\\x1b[2Jb" in screens[0] and "c\nd" in screens[0] and "\x1b" not in screens[0]


def test_without_a_notebook_the_function_asks_in_the_terminal(path, monkeypatch, capsys):
    lines = iter(["l", "q"])
    monkeypatch.setattr("builtins.input", lambda question: next(lines))
    labeling = rlhf.data.label(pairs(2), path)
    assert labeling.counts["done"] == 1
    assert "Question 1?" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`front` must be one of"):
        rlhf.data.label(pairs(2), path, front="web")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def panel(path):
    pytest.importorskip("ipywidgets")
    clock = Clock()
    panel = widgets.Panel(rlhf.data.Labeling(pairs(5), path), clock)
    panel.clock = clock
    return panel


def press(panel, key, after=1.0):
    """Types a key as a browser does: the field has one letter more."""
    panel.clock.now += after
    panel.keys.value += key


def test_buttons_choose_and_show_the_next_pair(panel, path):
    assert "Question 0?" in panel.texts["prompt"].value
    sides = [panel.texts[side].value for side in ("left", "right")]
    assert any("good 0" in text for text in sides) and any("bad 0" in text for text in sides)
    for action in ("left", "right", "tie", "skip"):
        panel.buttons[action].click()
    assert [row["position"] for row in read(path)] == ["left", "right"]
    assert "Question 4?" in panel.texts["prompt"].value
    assert (panel.bar.value, panel.bar.max) == (4, 5)
    assert "4 of 5 pairs done, 1 tied, 1 skipped" in panel.message.value
    panel.buttons["undo"].click()
    assert panel.bar.value == 3 and "Question 3?" in panel.texts["prompt"].value


def test_keys_choose_as_buttons_do(panel, path):
    for key in "lRtxs":
        press(panel, key)
    assert panel.labeling.counts == {"total": 5, "done": 4, "decided": 2, "tie": 1, "skip": 1}
    press(panel, "u")
    assert panel.labeling.counts["skip"] == 0
    # Letters that are deleted, or arrive in one piece with others, are no further choices.
    panel.clock.now += 1
    panel.keys.value = panel.keys.value[:-1]
    assert panel.labeling.counts["done"] == 3
    press(panel, "ll")
    assert panel.labeling.counts["done"] == 4


def test_a_key_that_is_held_down_chooses_once(panel):
    press(panel, "l")
    press(panel, "l", after=0.5)
    for _ in range(30):
        press(panel, "l", after=0.03)
    assert panel.labeling.counts["done"] == 1
    press(panel, "l", after=1.0)
    assert panel.labeling.counts["done"] == 2
    # Another key is meant, however soon it comes.
    press(panel, "u", after=0.1)
    assert panel.labeling.counts["done"] == 1


def test_the_end_is_said_and_can_be_undone(panel, path):
    for _ in range(5):
        panel.buttons["left"].click()
    assert f"5 of 5 pairs done. Saved in {path}" in panel.message.value
    assert panel.texts["left"].value == ""
    assert panel.buttons["left"].disabled and not panel.buttons["undo"].disabled
    press(panel, "l")
    assert "All pairs have been chosen from" in panel.message.value
    panel.buttons["undo"].click()
    assert not panel.buttons["left"].disabled and "Question 4?" in panel.texts["prompt"].value


def test_what_fails_is_said_and_the_pair_stays(panel, path):
    path.parent.mkdir()
    path.write_text("{}\n")
    panel.buttons["left"].click()
    assert "Another program has changed" in panel.message.value
    assert "Question 0?" in panel.texts["prompt"].value and path.read_text() == "{}\n"


def test_texts_are_text_and_no_page(path):
    pytest.importorskip("ipywidgets")
    record = {"prompt": "<b>a</b>", "responses": ["<script>x</script>", "b\x00"]}
    panel = widgets.Panel(rlhf.data.Labeling([record], path))
    shown = "".join(widget.value for widget in panel.texts.values())
    assert "&lt;b&gt;a&lt;/b&gt;" in shown and "<script>" not in shown and "b\\x00" in shown


def test_a_notebook_shows_widgets_and_returns_at_once(path, monkeypatch):
    pytest.importorskip("ipywidgets")
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    monkeypatch.setattr(label_module, "_in_notebook", lambda: True)
    labeling = rlhf.data.label(pairs(2), path)
    assert labeling.counts["done"] == 0 and len(shown) == 1
    shown[0].children[3].children[0].click()
    assert labeling.counts["done"] == 1
    monkeypatch.setattr(label_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"kerasrlhf\[notebook\].*front=.terminal"):
        rlhf.data.label(pairs(2), path, front="notebook")
