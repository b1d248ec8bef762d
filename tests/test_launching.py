"""Processes that are started together, and what happens when one of them ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kerasrlhf.cli import launching

OWN = """import json, os, signal, sys, time
cluster, task = json.loads(os.environ["TF_CONFIG"]).values()
index = task["index"]
"""


def script(body):
    return [sys.executable, "-c", OWN + body]


def launched(body, workers=2, grace=5.0, **environment):
    environment = {"CUDA_VISIBLE_DEVICES": "", **os.environ, **environment}
    return launching.Launch(script(body), workers, grace, environment)


def test_every_worker_has_its_place(capsys):
    launch = launched(
        "print(index, len(json.loads(os.environ['TF_CONFIG'])['cluster']['worker']))", 3
    )
    assert launch.wait() == 0
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == ["[0] 0 3", "[1] 1 3", "[2] 2 3"]


@pytest.mark.parametrize(
    ("fails", "code", "said"),
    [
        ("sys.exit(3)", 3, "worker 1 ended with exit code 3: ending the others"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "worker 1 was ended by SIGKILL"),
    ],
)
def test_all_end_with_the_first_that_fails(capsys, fails, code, said):
    start = time.monotonic()
    assert launched(f"if index: {fails}\ntime.sleep(60)").wait() == code
    assert time.monotonic() - start < 30
    assert said in capsys.readouterr().err


def test_a_worker_that_does_not_end_is_killed(capsys):
    """It ignores SIGTERM; what it printed before is shown."""
    body = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready')\n"
        "if index: time.sleep(0.5); sys.exit(4)\n"
        "time.sleep(60)"
    )
    launch = launched(body, grace=0.5)
    assert launch.wait() == 4
    assert launch.processes[0].returncode == -signal.SIGKILL
    shown = capsys.readouterr()
    assert "[0] ready" in shown.out and "killing them" in shown.err


def test_signals_reach_all(capsys):
    """Each says which one it got, and no failure is reported."""
    body = (
        "def stop(number, frame): print('got', number); sys.exit(128 + number)\n"
        "signal.signal(signal.SIGINT, stop)\nprint('ready')\ntime.sleep(60)"
    )
    launch = launched(body)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert launch.wait() == 130
    shown = capsys.readouterr()
    assert {"[0] got 2", "[1] got 2"} <= {*shown.out.splitlines()}
    assert "ending the others" not in shown.err


@pytest.mark.parametrize(
    ("gpus", "shares"), [("0,1,2,3", ["0,1", "2,3"]), ("5,7,9", ["5", "7"]), ("-1", [None, None])]
)
def test_gpus_are_divided(gpus, shares):
    settings = launching.worker_settings(2, {"CUDA_VISIBLE_DEVICES": gpus})
    assert [x.get("CUDA_VISIBLE_DEVICES") for x in settings] == shares


def test_fewer_gpus_than_workers_are_refused():
    with pytest.raises(ValueError, match="2 workers need as many GPUs, and there are 1"):
        launching.worker_settings(2, {"CUDA_VISIBLE_DEVICES": "3"})


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "usage: kerasrlhf launch"),
        (["--workers", "2"], 2, "no command"),
        (["--workers", "none", "--", "ls"], 2, "'none'"),
        (["--worker", "2", "--", "ls"], 2, "unknown options"),
        (["--", "no-such-program"], 2, "Cannot run"),
        (["--workers=1", "--", sys.executable, "-c", "raise SystemExit(5)"], 5, ""),
    ],
    ids=str,
)
def test_the_command_line(monkeypatch, capsys, arguments, code, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as ended:
        launching.main(arguments)
    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())


def test_it_starts_without_tensorflow():
    code = (
        "import sys; sys.argv[0] = 'kerasrlhf'; from kerasrlhf.cli import commands\n"
        "try: commands.main(['launch', '--workers', '1', '--', sys.executable, '-c', ''])\n"
        "finally: assert not {'keras.src', 'tensorflow'} & {*sys.modules}"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
