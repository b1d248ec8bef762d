"""A damaged state is never taken for a whole one, and the one before it helps."""

import json
import re

import numpy as np
import pytest
from ppo_runs import Run

import kerasrlhf as rlhf
from kerasrlhf.callbacks.state_files import VERSION, StateFiles


def arrays(value):
    return {"weights": np.full((3, 4), value, "float32"), "memory/0/ended": np.array([True])}


def state(iteration):
    return {"version": VERSION, "iteration": iteration, "records": [{"kl": float("nan")}]}


def written(folder, count):
    files = StateFiles(folder)
    for iteration in range(1, count + 1):
        files.write(state(iteration), arrays(iteration))
    return files


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-3],
    "one bit": flipped,
    "zeros": lambda content: bytes(len(content)),
    "another format": lambda content: b"[1, 2]",
    "missing": None,
}


@pytest.mark.parametrize("name", ["resume.json", "resume-00000003.npz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_falls_back_to_the_one_before(damage, name, tmp_path):
    written(tmp_path, 3)
    damaged(tmp_path / name, damage)
    files = StateFiles(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"is damaged.*the state before, of iteration 2\."):
        found, values = files.read()
    assert found["iteration"] == 2
    np.testing.assert_array_equal(values["weights"], arrays(2)["weights"])
    files.write(state(3), arrays(3))  # goes on
    damaged(tmp_path / "resume-00000003.npz", "cut")
    with pytest.warns(RuntimeWarning, match="of iteration 2"):
        StateFiles(tmp_path).read()


@pytest.mark.parametrize("name", ["resume.json", "resume-00000001.npz"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_state_before_the_file_is_named_with_a_remedy(damage, name, tmp_path):
    written(tmp_path, 1)
    damaged(tmp_path / name, damage)
    if (damage, name) == ("missing", "resume.json"):
        assert not StateFiles(tmp_path).exists
        return
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*(damaged|missing).*start over"):
        StateFiles(tmp_path).read()


def test_both_states_damaged_is_an_error_with_both(tmp_path):
    written(tmp_path, 2)
    for name in ("resume-00000001.npz", "resume-00000002.npz"):
        damaged(tmp_path / name, "cut")
    with pytest.raises(ValueError, match=r"00000002\.npz.*00000001\.npz"):
        StateFiles(tmp_path).read()


def damaged(path, damage):
    if DAMAGES[damage] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))


def test_arrays_of_another_run_are_refused(tmp_path):
    written(tmp_path / "ours", 1)
    StateFiles(tmp_path / "theirs").write(state(1), arrays(7))
    name = "resume-00000001.npz"
    (tmp_path / "ours" / name).write_bytes((tmp_path / "theirs" / name).read_bytes())
    with pytest.raises(ValueError, match="checksum"):
        StateFiles(tmp_path / "ours").read()


def test_two_generations_are_kept(tmp_path):
    files = written(tmp_path, 4)
    (tmp_path / "mine.npz").write_text("mine")
    files.write(state(5), arrays(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.npz",
        "resume-00000004.npz",
        "resume-00000005.npz",
        "resume-former.json",
        "resume.json",
    ]
    assert files.holds(arrays(5)) and not files.holds(arrays(4))


def test_an_iteration_that_is_saved_twice_does_not_touch_the_first_save(tmp_path):
    files = written(tmp_path, 1)
    files.write(state(1), arrays(9))
    found, values = StateFiles(tmp_path).read()
    assert (found["iteration"], values["weights"][0, 0]) == (1, 9)
    damaged(tmp_path / found["arrays"]["file"], "cut")
    with pytest.warns(RuntimeWarning, match="iteration 1"):
        assert StateFiles(tmp_path).read()[1]["weights"][0, 0] == 1


def test_a_state_of_another_version_is_refused(tmp_path):
    written(tmp_path, 2)
    (tmp_path / "resume.json").write_text(json.dumps({"version": 2, "iteration": 2}))
    with pytest.raises(ValueError, match=r"version 2.*version 3.*start over"):
        StateFiles(tmp_path).read()


def test_a_folder_that_cannot_be_written_to_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    run = Run()
    for place in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(ValueError, match=r"cannot be written to .*file.*pass another"):
            run.fit(1, [rlhf.callbacks.Resume(place)])
    assert int(run.trainer.iteration.numpy()) == 0


def test_a_run_goes_on_from_the_state_before_a_damaged_one(run, tmp_path):
    expected = run.fit(2)
    run.again().fit(1, [rlhf.callbacks.Resume(tmp_path)])
    damaged(tmp_path / "resume-00000002.npz", "one bit")
    leftover = tmp_path / ".1234567-0123abcd.resume-00000003.npz"
    leftover.write_bytes(b"half")
    with pytest.warns(RuntimeWarning, match="iteration 1"):
        found = run.again().fit(2, [rlhf.callbacks.Resume(tmp_path)])
    for ours, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found[1] == expected[1]
    assert not leftover.exists()
