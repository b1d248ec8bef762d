"""Starts the processes of a training with several workers on this machine."""

import contextlib
import json
import os
import pathlib
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NoReturn

_USAGE = "usage: kerasrlhf launch [--workers N] -- COMMAND [options]"
_HELP = f"""{_USAGE}

Runs a command in several processes that train together on this machine, each with `TF_CONFIG`
set: a trial of what several machines do. Every line of output begins with the number of its
worker. Signals are passed on. If one worker fails, the others are ended too.

options:
  --workers N  Processes. Defaults to 2. GPUs of the machine are divided between them.

example:
  kerasrlhf launch --workers 2 -- kerasrlhf ppo --preset smoke --strategy workers
"""
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP")


class Launch:
    """Processes that run one command as the workers of one cluster.

    Args:
        command: list of str, the program and its arguments.
        workers: int, at least 1.
        grace: float. Seconds that workers have to end after another one has failed, before they
            are killed. Defaults to 20: TensorFlow takes some to notice.
        environment: dict of str, of the processes. Defaults to None: that of this process.

    Raises:
        ValueError: If there are fewer GPUs than workers, or the command cannot be started.

    Example:
        >>> Launch([sys.executable, "-c", "raise SystemExit(3)"], workers=1, grace=1.0).wait()
        3
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        grace: float = 20.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.command, self.grace = list(command), grace
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._signals: list[int] = []
        self._printing = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.processes: list[subprocess.Popen] = []
        given = dict(os.environ if environment is None else environment)
        try:
            for settings in worker_settings(workers, given):
                self._start(given | settings)
        except OSError as error:
            self._end(signal.SIGKILL)
            raise ValueError(f"Cannot run {shlex.join(self.command)!r}: {error}.") from error

    def wait(self) -> int:
        """Waits for all processes, and ends them if one fails.

        Returns:
            0 if all succeeded, else the exit code of the first that failed; 128 + signal if a
            signal ended it.
        """
        with self._passing_signals_on():
            code, deadline = 0, float("inf")
            for left in range(len(self.processes), 0, -1):
                index = self._next(deadline)
                if index is None:
                    self._say(f"{left} of the others have not ended: killing them.")
                    self._end(signal.SIGKILL)
                    index, deadline = self._ended.get(), float("inf")
                ended = self.processes[index].returncode
                if ended and not code:
                    code = ended if ended > 0 else 128 - ended
                    if not self._signals:
                        others = ": ending the others" if left > 1 else ""
                        self._say(f"worker {index} {_outcome(ended)}{others}.")
                        self._end(signal.SIGTERM)
                        deadline = time.monotonic() + self.grace
        for thread in self._threads:
            thread.join(timeout=5)
        return code

    def _start(self, environment: dict[str, str]) -> None:
        # In sessions of their own, so that a Ctrl-C reaches each worker once.
        process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        index = len(self.processes)
        self.processes.append(process)
        pumps = [
            threading.Thread(target=self._pump, args=(index, source, target), daemon=True)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        # What a worker has said last is shown before it counts as ended.
        waiter = threading.Thread(target=self._wait_for, args=(index, pumps), daemon=True)
        self._threads += [*pumps, waiter]
        for thread in (*pumps, waiter):
            thread.start()

    def _pump(self, index: int, source: IO[bytes], target: Any) -> None:
        for line in source:
            text = line.decode("utf-8", "replace").rstrip("\n")
            with self._printing:
                target.write(f"[{index}] {text}\n")
                target.flush()

    def _wait_for(self, index: int, pumps: list[threading.Thread]) -> None:
        self.processes[index].wait()
        for pump in pumps:
            # Not forever: a process that the worker left behind may keep the pipe open.
            pump.join(timeout=5)
        self._ended.put(index)

    def _next(self, deadline: float) -> int | None:
        """Returns the worker that ends next, or None at the deadline."""
        while time.monotonic() < deadline:
            # Waits are short, so that signal handlers run.
            with contextlib.suppress(queue.Empty):
                return self._ended.get(timeout=0.2)
        return None

    @contextlib.contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        former = {}
        if threading.current_thread() is threading.main_thread():
            for name in _PASSED_ON:
                number = getattr(signal, name, None)
                if number is not None:
                    former[number] = signal.signal(number, self._arrived)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _arrived(self, number: int, frame: Any) -> None:
        self._signals.append(number)
        self._end(number)

    def _end(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _say(self, text: str) -> None:
        with self._printing:
            sys.stderr.write(f"kerasrlhf launch: {text}\n")
            sys.stderr.flush()


def main(argv: Sequence[str]) -> None:
    """Runs the command line of `kerasrlhf launch`.

    Args:
        argv: list of str, what follows `launch`.

    Raises:
        SystemExit: With the exit code of the workers, or 2 for wrong input.
    """
    own = list(argv[: argv.index("--")] if "--" in argv else argv)
    command = list(argv[len(own) + 1 :])
    if {"-h", "--help"} & {*own}:
        sys.stdout.write(_HELP)
        raise SystemExit(0)
    match = re.fullmatch(r"(?:--workers(?: |=)(\S+))?", " ".join(own))
    if match is None:
        _fail(f"unknown options {own}. {_USAGE}")
    if not command:
        _fail(f"no command after `--`. {_USAGE}")
    workers = match[1] or "2"
    if not workers.isdecimal() or int(workers) < 1:
        _fail(f"`--workers` must be an integer of at least 1. Received: {workers!r}.")
    try:
        launch = Launch(command, int(workers))
    except ValueError as error:
        _fail(str(error))
    raise SystemExit(launch.wait())


def worker_settings(workers: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """Returns the environment variables that each worker needs in addition.

    Args:
        workers: int, at least 1.
        environment: dict of str, without them.

    Example:
        >>> first, second = worker_settings(2, {})
        >>> json.loads(second["TF_CONFIG"])["task"]
        {'type': 'worker', 'index': 1}
    """
    hosts = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
    shares = _gpu_shares(workers, environment)
    return [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            ),
            # Lines appear when they are printed.
            "PYTHONUNBUFFERED": "1",
            **({"CUDA_VISIBLE_DEVICES": shares[index]} if shares else {}),
        }
        for index in range(workers)
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        # All bound at the same time, so that no number appears twice.
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _gpu_shares(workers: int, environment: dict[str, str]) -> list[str]:
    """Returns `CUDA_VISIBLE_DEVICES` of every worker; an empty list without GPUs."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in pathlib.Path("/dev").iterdir())
        gpus = sorted((match[1] for match in found if match), key=int)
    else:
        gpus = [gpu for gpu in chosen.split(",") if gpu not in ("", "-1")]
    if not gpus:
        return []
    size = len(gpus) // workers
    if not size:
        raise ValueError(
            f"{workers} workers need as many GPUs, and there are {len(gpus)}. Use fewer workers, "
            "or hide the GPUs with `CUDA_VISIBLE_DEVICES=-1`."
        )
    return [",".join(gpus[i * size : (i + 1) * size]) for i in range(workers)]


def _outcome(code: int) -> str:
    """Returns how a process ended, from its return code."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"kerasrlhf launch: error: {message}\n")
    raise SystemExit(2)
