"""In deterministic mode a resumed run is the uninterrupted one to the last bit."""

import pathlib
import re
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("deterministic.py")


@pytest.mark.slow
def test_resumed_is_uninterrupted_to_the_bit():
    """Weights, optimizer slots, coefficient, counters and the memory of rollouts, under XLA."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    equal, all_of_them = re.search(r"equal (\d+) of (\d+)", done.stdout).groups()
    assert equal == all_of_them and int(equal) > 80
