"""How far a reader has to go: files and frames of one iteration, and arguments of the trainers."""

import inspect
import itertools
import pathlib
import re
import sys

import helpers
import keras
import pytest

import kerasrlhf as rlhf

PREFIX = f"{pathlib.Path(rlhf.__file__).parent}/"
# They refuse bad input, compare processes or hold signals back, and compute nothing.
GUARDS = {
    "data/kinds.py",
    "data/limits.py",
    "functional/_inputs.py",
    "trainers/interruption.py",
    "trainers/soundness.py",
    "workers.py",
}


@pytest.fixture(scope="module")
def walk():
    """The files whose code runs in the first iteration of plain PPO, and the way to `objective`."""
    ppo = helpers.ppo()
    ppo.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    ppo.make_train_function()
    files, ways = set(), []

    def place(frame):
        # Every call comes here, those of Keras too: nothing slower than a comparison of strings.
        name = frame.f_code.co_filename
        return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None

    def profile(frame, event, _):
        if event != "call" or place(frame) is None:
            return
        files.add(place(frame))
        if frame.f_code.co_name == "objective":
            way = []
            while frame is not None:
                if place(frame) is not None:
                    way.append((place(frame), frame.f_code.co_name))
                frame = frame.f_back
            ways.append(way[::-1])

    batch = helpers.prompts([1, 2, 3, 4])
    sys.setprofile(profile)
    try:
        ppo.train_function(iter([batch]))
    finally:
        sys.setprofile(None)
    return files, ways[0]


def test_from_the_batch_to_the_objective_it_is_eight_frames_in_five_files(walk):
    _, way = walk
    assert [name for _, name in way] == [
        "train_function",
        "iterate",
        "_learn",
        "train_step",
        "step",
        "gradients",
        "loss",
        "objective",
    ]
    files = [file for file, _ in way]
    assert sum(a != b for a, b in itertools.pairwise(files)) == 4


def test_files_of_an_iteration(walk):
    files, _ = walk
    opened = sorted(files - GUARDS)
    print(f"{len(opened)} files and {len(GUARDS & files)} with checks:", *opened, sep="\n  ")
    assert {"trainers/on_policy.py", "trainers/ppo.py", "trainers/update_step.py"} <= files
    assert len(opened) <= 18


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (rlhf.PPO, 30),
        (rlhf.GRPO, 23),
        (rlhf.RLOO, 23),
        (rlhf.REINFORCEPlusPlus, 24),
        (rlhf.OnlineDPO, 23),
    ],
)
def test_every_argument_is_in_the_signature(kind, most):
    parameters = inspect.signature(kind).parameters
    assert len(parameters) <= most
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    assert all(p.kind not in variadic for p in parameters.values())
    documented = inspect.getdoc(kind)
    missing = [name for name in parameters if not re.search(rf"\b{name}`?[:,\s]", documented)]
    assert not missing
