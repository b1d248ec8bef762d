"""A run that is killed with SIGKILL, and started again each time, is the run that was not."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from test_tensorboard import read

SCRIPT = pathlib.Path(__file__).with_name("killed.py")
# Three in the suite, of which one is with XLA. By hand: KERASRLHF_KILLS=30.
KILLS = int(os.environ.get("KERASRLHF_KILLS", "3"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("graph", KILLS - KILLS // 3), ("xla", KILLS // 3)])
def test_killed_is_uninterrupted_to_the_bit(kind, kills, tmp_path):
    seed = int(os.environ.get("KERASRLHF_KILLS_SEED", time.time()))
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "runs", str(kills), str(seed), kind],
        capture_output=True,
        text=True,
        check=False,
    )
    where = f"(KERASRLHF_KILLS_SEED={seed}) {done.stderr[-3000:]}"
    assert done.returncode == 0, where
    *killed, last = json.loads(done.stdout.splitlines()[-1])
    assert last == 0 and len(killed) == kills and -9 in killed, (killed, last, where)
    whole, other = tmp_path / "runs/whole", tmp_path / "runs/killed"
    with np.load(whole / "end.npz") as expected, np.load(other / "end.npz") as found:
        assert len(expected.files) > 60
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=where)
    for name in ("history.json", "samples.jsonl"):
        assert (other / name).read_bytes() == (whole / name).read_bytes(), where
    states = [json.loads((run / "state/resume.json").read_text()) for run in (whole, other)]
    assert states[0] == states[1], where
    assert events(other) == events(whole), where
    # A run that is killed before its first state starts again, and sets its samples aside.
    former = {name for name in files(other) if name.startswith("samples-former-")}
    assert files(other) - former == files(whole), where


def events(run):
    """Steps and values by tag as TensorBoard's pages show them, of times the steps alone."""
    return {
        tag: [
            (step, None if tag.startswith("time/") else value.tolist()) for step, value in entries
        ]
        for tag, entries in read(run / "logs", PluginEventAccumulator).items()
    }


def files(run):
    """Names, hidden ones included, of everything but events."""
    return {str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name}
