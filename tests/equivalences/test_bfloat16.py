"""Trajectories in bfloat16, in a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).with_name("bfloat16.py")


@pytest.mark.slow
def test_xla_and_graphs_agree_up_to_rounding():
    # Without the flags by which `conftest.py` keeps XLA from optimizing.
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", TESTS]
    done = subprocess.run(
        command, env=environment, cwd=TESTS.parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
