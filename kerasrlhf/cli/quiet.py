"""Keeps messages of TensorFlow's native code off the terminal.

`TF_CPP_MIN_LOG_LEVEL` does not affect all of them: some lines are written to file descriptor 2
before logging is set up, and some are labeled as errors but are not. They go through another
process, which drops known noise. That process survives a crash of this one, so no error is lost.
"""

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator

from kerasrlhf.cli.delay import end_delay

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

# Information and warnings of native code in its old and new format, and the errors that TensorFlow
# reports where nothing is wrong, as on every machine without a GPU. Other lines are passed on.
_FILTER = r"""
import re, sys
noise = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ [\w./]+:\d+\] "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:[\d.]+: [IW] \S+:\d+\] "
    rb"|To enable the following instructions: .* rebuild TensorFlow with the appropriate compiler"
    rb"|.*failed call to cuInit: .*(UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE)"
    rb"|.*(Unable to register cu\w+ factory|computation placer already registered)"
    rb"|.*oneDNN supports DT_\w+ only on platforms with AVX-512. Falling back"
)
for line in sys.stdin.buffer:
    if not noise.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Loads Keras and TensorFlow, and drops the noise of their native code inside the context.

    Native code reports errors only. If `TF_CPP_MIN_LOG_LEVEL` is set to 0 or 1, whoever set it
    wants messages, and all are shown. A process that has TensorFlow already is left as it is.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    # Only an unset variable gets the level of errors.
    wanted = os.environ.setdefault(_LEVEL, "2") in ("0", "1")
    with contextlib.nullcontext() if wanted else without_noise():
        end_delay()
        importlib.import_module("keras")
        yield


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Filters what is written to file descriptor 2, by native code too, inside the context."""
    try:
        original = os.dup(2)
    except OSError:  # There is no such descriptor, and nobody who would read it.
        yield
        return
    sys.stderr.flush()
    command = [sys.executable, "-I", "-S", "-c", _FILTER]
    # In a separate session, so that Ctrl-C ends only this process, and its traceback is shown.
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=original, stderr=original, start_new_session=True
    )
    # The pipe takes the place of descriptor 2, for native code and Python alike.
    try:
        with child.stdin:  # type: ignore[union-attr]
            os.dup2(child.stdin.fileno(), 2)  # type: ignore[union-attr]
        yield
    finally:
        # Restoring the descriptor closes the pipe: the filter reaches its end and stops.
        sys.stderr.flush()
        os.dup2(original, 2)
        os.close(original)
        # Not forever: a process that was started inside may keep its end of the pipe open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
