"""A few responses for people."""

import json

import numpy as np
import pytest

import kerasrlhf as rlhf


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_shows_the_batch_of_the_iteration(run, tmp_path):
    lines, path = [], tmp_path / "deep" / "samples.jsonl"
    callback = rlhf.callbacks.Samples(count=2, every=2, path=path, printer=lines.append)
    run.fit(2, [callback])
    rows = read(path)
    assert [row["iteration"] for row in rows] == [2, 2, 4, 4]
    assert len(lines) == 2 * (1 + 2)
    last = run.trainer.last
    assert [row["response"] for row in rows[2:]] == last.episodes.responses[:2]
    assert [row["prompt"] for row in rows[2:]] == last.episodes.prompts[:2]
    np.testing.assert_allclose([r["score"] for r in rows[2:]], last.rollout.scores[:2])
    np.testing.assert_allclose([r["raw_score"] for r in rows[2:]], last.raw_scores[:2])
    inside = np.asarray(last.rollout.response_mask)
    difference = np.asarray(last.rollout.logprobs) - np.asarray(last.rollout.ref_logprobs)
    kl = np.where(inside, difference, 0.0).sum(axis=1)
    np.testing.assert_allclose([r["kl"] for r in rows[2:]], kl[:2], rtol=1e-5, atol=1e-6)


def test_prompts_of_its_own_are_answered_by_the_policy_of_the_moment(run):
    # Three rows are not divisible by the two minibatches of the trainer.
    callback = rlhf.callbacks.Samples(prompts=["ab", "c", "de"], printer=lambda line: None)
    before, same = callback.show(run.trainer), callback.show(run.trainer)
    assert before == same
    assert [row["prompt"] for row in before] == ["ab", "c", "de"]
    assert all(abs(row["kl"]) < 1e-4 and row["iteration"] == 0 for row in before)
    run.fit(2, [callback])
    after = callback.show(run.trainer)
    assert [row["kl"] for row in after] != [row["kl"] for row in before]


def test_passed_over_iterations_are_not_shown(run, tmp_path):
    path = tmp_path / "samples.jsonl"
    for epochs in (1, 2):
        samples = rlhf.callbacks.Samples(count=1, path=path, printer=lambda line: None)
        run.again().fit(epochs, [samples, rlhf.callbacks.Resume(tmp_path)])
    assert [row["iteration"] for row in read(path)] == [1, 2, 3, 4]


def test_each_iteration_of_a_resumed_run_stands_there_once(run, tmp_path):
    """Also where lines were written of iterations that are done again, the last one in part."""
    path = tmp_path / "samples.jsonl"

    def callbacks():
        samples = [
            rlhf.callbacks.Samples(count=1, path=path, printer=lambda line: None) for _ in range(2)
        ]
        return [rlhf.callbacks.Resume(tmp_path), *samples]

    run.fit(2, callbacks())
    expected = path.read_text()
    for name in ("resume.json", "resume-former.json"):
        (tmp_path / name).unlink()
    run.again().fit(1, callbacks()[:1])
    path.write_text(expected + '{"iteration": 5, "prom')
    run.again().fit(2, callbacks())
    assert path.read_text() == expected
    assert [row["iteration"] for row in read(path)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_run_that_begins_anew_leaves_the_lines_of_an_older_one(run, tmp_path):
    path = tmp_path / "samples.jsonl"
    expected = []
    for epochs in (1, 2, 1):
        samples = rlhf.callbacks.Samples(count=1, path=path, printer=lambda line: None)
        run.again().fit(epochs, [samples])
        expected.append(path.read_text())
    former = [tmp_path / f"samples-former-{number}.jsonl" for number in (1, 2)]
    assert [file.read_text() for file in [*former, path]] == expected
    run.fit(1, [samples])  # goes on
    assert [row["iteration"] for row in read(path)] == [1, 2, 3, 4]


def test_default_printer_writes_to_standard_output(run, capsys):
    rlhf.callbacks.Samples(prompts=["ab"]).show(run.trainer)
    assert "Samples after iteration 0:\n  score " in capsys.readouterr().out


def test_raw_scores_are_shown_where_a_rule_changed_them():
    from kerasrlhf.callbacks.samples import _line

    row = {"prompt": "a\nb", "response": "c", "score": -1.0, "raw_score": 2.0, "kl": 0.5}
    assert _line(row) == '  score -1.000 (raw 2.000)  kl 0.50  "a\\nb" -> "c"'


@pytest.mark.parametrize(
    ("name", "value"), [("count", 0), ("every", 0), ("prompts", []), ("prompts", "one text")]
)
def test_arguments_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        rlhf.callbacks.Samples(**{name: value})


def test_nothing_to_show_yet(run):
    with pytest.raises(ValueError, match="no iteration"):
        rlhf.callbacks.Samples().show(run.trainer)
