"""Two processes learn what one learns, and a run survives the death of one of them."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys
import time

import numpy as np
import pytest
import worker_runs

from kerasrlhf.cli.launching import Launch

SCRIPT = pathlib.Path(worker_runs.__file__)
TOGETHER = ("ppo", "grpo", "everything")


def launched(folder, *cases, grace=60.0):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(SCRIPT.parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    )
    return Launch([sys.executable, str(SCRIPT), str(folder), *cases], 2, grace, environment)


def read(folder, case, index):
    with np.load(folder / f"{case}-{index}.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder in which two workers have trained all cases, until one of them is killed.

    Holds what the launcher said, and how many seconds the other worker needed to end.
    """
    folder = tmp_path_factory.mktemp("together")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        launch = launched(folder, "exchange", *TOGETHER, "half", *worker_runs.FITS, "killed")
        while launch.processes[1].poll() is None:
            time.sleep(0.1)
        killed = time.monotonic()
        launch.processes[0].wait(timeout=90)
        seconds = time.monotonic() - killed
        code = launch.wait()
    end = {"code": code, "said": said.getvalue(), "seconds": seconds}
    (folder / "end.json").write_text(json.dumps(end))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process computes, by case."""
    found = {}

    def outcome(case):
        if case not in found:
            found[case] = worker_runs.outcome(case, tmp_path_factory.mktemp("alone"))
        return found[case]

    return outcome


def assert_same(found, expected, atol=2e-6):
    """Everything but what each process has scored, and metrics that are random."""
    assert {*found} == {*expected}
    for name, value in expected.items():
        if not name.startswith("own/") and "random" not in name:
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", TOGETHER)
def test_two_workers_are_one_process(together, alone, case):
    """Rows that do not divide, through `fit` with callbacks and validation, graphs and XLA."""
    one, (first, second) = alone(case), (read(together, case, index) for index in (0, 1))
    assert_same(first, one)
    np.testing.assert_array_equal(first["token_ids"], one["token_ids"])
    weights = [name for name in one if name.startswith("weights/")]
    assert max(np.abs(first[name] - one[name]).max() for name in weights) <= 1e-6
    for name, value in first.items():
        if not name.startswith("own/"):
            np.testing.assert_array_equal(second[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", worker_runs.FITS)
def test_stock_fits_are_those_of_one_process(together, case):
    """With a last batch of one row, which only one of two workers has."""
    one, first, second = (
        worker_runs.stock_fit(case, together),
        *(read(together, case, index) for index in (0, 1)),
    )
    assert {*first} == {*one}
    for name, value in one.items():
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)
        if case == "fit-kto" and name == "history/accuracy":
            # In the first step the policy is the reference: rewards are 0 up to rounding.
            value, first[name] = value[1:], first[name][1:]
        np.testing.assert_allclose(first[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_float16_is_the_same_on_all_workers(together, alone):
    """Skipped updates and the loss scale too; rounding differs from that of one process."""
    one, (first, second) = alone("half"), (read(together, "half", index) for index in (0, 1))
    for name, value in first.items():
        if not name.startswith("own/"):
            np.testing.assert_array_equal(second[name], value, err_msg=name)
    for name in ("policy/skipped_updates", "policy/loss_scale", "policy/updates"):
        found = [float(x[f"statistics/{i}/{name}"]) for x in (one, first) for i in (0, 1)]
        assert found[:2] == found[2:], name
    assert float(first["statistics/0/policy/skipped_updates"]) > 0
    assert float(first["statistics/1/policy/updates"]) > 0
    same = (first["token_ids"] == one["token_ids"]).all(axis=1)
    assert same.mean() > 0.5, "a token at the edge of two may be the other one"


@pytest.mark.slow
@pytest.mark.parametrize("case", TOGETHER)
def test_each_worker_scores_its_own_groups(together, alone, case):
    one, first, second = (
        found["own/rows"] for found in (alone(case), *(read(together, case, i) for i in (0, 1)))
    )
    groups = 2 if case == "grpo" else 1
    assert set(one) == {worker_runs.ROWS * groups}
    # Of seven prompts the first worker scores three.
    assert set(first) == {3 * groups} and set(second) == {4 * groups}


@pytest.mark.slow
@pytest.mark.parametrize("case", TOGETHER)
def test_only_the_first_worker_writes(together, case):
    written = {path.name for path in together.glob(f"{case}-*")}
    assert written == {f"{case}-0.npz", f"{case}-1.npz", f"{case}-state"} | {
        f"{case}-0{suffix}" for suffix in (".jsonl", ".csv", "-logs")
    }
    assert not [path for path in together.rglob(".*") if path.is_file()], "temporary files"


@pytest.mark.slow
def test_what_workers_say_to_each_other(together):
    first, second = (json.loads((together / f"exchange-{i}.json").read_text()) for i in (0, 1))
    assert first["said"] == second["said"]
    assert first["said"] == [{"index": 0, "text": ""}, {"index": 1, "text": "ab"}]
    assert first["chosen"] == second["chosen"] == 7
    assert [x["part"] for x in (first, second)] == ["slice(0, 3, None)", "slice(3, 7, None)"]
    failed, differs = first["heard"]
    assert failed == "RuntimeError: Worker 1 failed while scoring: ValueError: a bad score"
    assert "scores of worker 1 differ from those of worker 0" in differs
    assert second["heard"] == ["ValueError: a bad score", differs]


@pytest.mark.slow
def test_a_killed_worker_ends_the_other(together):
    """By SIGKILL while samples are shown; within a minute, and with a reason."""
    end = json.loads((together / "end.json").read_text())
    assert end["code"] == 137 and end["seconds"] < 60
    assert "worker 1 was ended by SIGKILL: ending the others" in end["said"]
    said = (together / "killed-0.txt").read_text()
    assert said.startswith("RuntimeError: Worker 0 of 2 has lost another worker")
    assert not (together / "killed-1.txt").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(together, alone, tmp_path):
    """From the last state, with two workers and with one process."""
    state = together / "killed-state"
    assert json.loads((state / "resume.json").read_text())["iteration"] == 1
    shutil.copytree(state, tmp_path / "one/killed-state")
    shutil.copytree(state, tmp_path / "two/killed-state")
    expected = alone("ppo")
    for found in (worker_runs.outcome("killed", tmp_path / "one"), resumed(tmp_path / "two")):
        kept = [name for name in expected if name.startswith(("weights/", "slots/", "history/"))]
        last = [name for name in expected if name.startswith("statistics/2/")]
        assert_same(*({name: x[name] for name in [*kept, *last]} for x in (found, expected)))


def resumed(folder):
    assert launched(folder, "killed").wait() == 0
    return read(folder, "killed", 0)
