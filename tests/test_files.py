"""What is written is whole, and what was there before stays there."""

import os
import subprocess
import sys

import helpers
import pytest

from kerasrlhf import files
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.reward_model import RewardModel


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def ended_process():
    """The number of a process that has ended."""
    code = [sys.executable, "-c", "import os; print(os.getpid())"]
    return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def reward():
    return RewardModel(helpers.lm(texts=True))


@pytest.mark.parametrize("kind", ["actor", "reward", "ensemble"])
def test_presets_leave_the_other_files_of_a_folder(kind, reward, tmp_path):
    model = reward
    if kind == "actor":
        model = helpers.actor(texts=True)
    if kind == "ensemble":
        model = RewardEnsemble([reward, RewardModel(helpers.lm(texts=True, seed=1))])
    theirs = ["assets/picture.png", "logs/events.out", "report.json", "resume.json"]
    for name in theirs:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(name)
    model.save_to_preset(tmp_path / "fresh")
    for _ in range(2):
        model.save_to_preset(tmp_path / "run")
        assert names(tmp_path / "run") == sorted([*names(tmp_path / "fresh"), *theirs])
    assert all((tmp_path / "run" / name).read_text() == name for name in theirs)
    type(model).from_preset(tmp_path / "run")


def test_nothing_of_a_former_preset_is_read_as_a_part_of_the_new_one(reward, tmp_path):
    helpers.actor(texts=True, critic=helpers.lm("llama", seed=5)).save_to_preset(tmp_path / "a")
    (tmp_path / "a" / "quantized_adapters.npz").write_bytes(b"of another model")
    reward.save_to_preset(tmp_path / "a")
    reward.save_to_preset(tmp_path / "fresh")
    assert names(tmp_path / "a") == names(tmp_path / "fresh")
    assert not (tmp_path / "a" / "critic").exists()
    assert ActorCritic.from_preset(tmp_path / "a").critic is None


@pytest.mark.parametrize("found", ["a file", "a link"])
def test_what_is_in_the_place_of_a_folder_stays(found, reward, tmp_path):
    place, other = tmp_path / "preset", tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    if found == "a link":
        place.symlink_to(other)
    else:
        place.write_text("mine")
    with pytest.raises(ValueError, match=rf"'{place}'.*Found {found}.*another name"):
        reward.save_to_preset(place)
    assert place.is_symlink() if found == "a link" else place.read_text() == "mine"
    assert names(other) == ["notes.txt"]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_obstacles_in_a_folder_are_found_before_anything_is_replaced(kind, reward, tmp_path):
    folder, other = tmp_path / "preset", tmp_path / "other"
    other.mkdir()
    folder.mkdir()
    (folder / "metadata.json").write_text("former")
    if kind == "file":
        (folder / "assets").write_text("mine")
    elif kind == "link":
        (folder / "assets").symlink_to(other)
    else:
        (folder / "config.json").mkdir()
    with pytest.raises(ValueError, match=rf"Found a {kind}"):
        reward.save_to_preset(folder)
    assert (folder / "metadata.json").read_text() == "former"
    assert len(list(folder.iterdir())) == 2 and not any(other.iterdir())


def test_a_folder_that_was_moved_in_half_is_not_a_preset(reward, tmp_path, monkeypatch):
    """A process that is killed while files are renamed leaves no mixture that can be loaded."""
    reward.save_to_preset(tmp_path / "preset")
    moved, replace = [], os.replace

    def killed(source, target):
        moved.append(str(target))
        if len(moved) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        reward.save_to_preset(tmp_path / "preset")
    assert len(moved) == 3
    with pytest.raises(ValueError, match=r"config\.json"):
        RewardModel.from_preset(tmp_path / "preset")


def test_what_a_killed_process_left_goes_with_the_next_save(tmp_path):
    gone = ended_process()
    ours = [f".{gone}-0123abcd.note.txt", f".{os.getpid()}-0123abcd.note.txt"]
    others = [f".{os.getppid()}-0123abcd.note.txt", f".{gone}-0123abcd.other.txt", ".note.txt"]
    for name in [*ours, *others]:
        (tmp_path / name).write_text("half")
    with files.replacing(tmp_path / "note.txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == sorted([*others, "note.txt"])
    folder = tmp_path / f".{gone}-0123abcd.preset"
    folder.mkdir()
    (folder / "config.json").write_text("half")
    with files.replacing_preset(tmp_path / "preset") as temporary:
        (temporary / "config.json").write_text("whole")
    assert not folder.exists() and (tmp_path / "preset/config.json").read_text() == "whole"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    kind = {True: "folder", False: "file"}

    def synced(handle):
        steps.append(kind[os.path.isdir(f"/proc/self/fd/{handle}")])
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", lambda *a: steps.append("name") or replace(*a))
    files.write_json(tmp_path / "value.json", [1])
    assert steps == ["file", "name", "folder"]


def test_the_present_folder_can_hold_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with files.replacing_preset(".") as temporary:
        (temporary / "config.json").write_text("{}")
    assert names(tmp_path) == ["config.json"]
