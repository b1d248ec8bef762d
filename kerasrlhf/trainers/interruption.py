"""Signals that end `fit`: when they may, and what is done before."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_STOPPING = ("SIGTERM", "SIGINT", "SIGHUP")
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class Stopped(KeyboardInterrupt):
    """A signal, where `fit` was when it arrived; `Interruption.watching` makes an end of it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class InterruptedRun(SystemExit, KeyboardInterrupt):
    """Ctrl-C in a script: known as such around `fit`, and the end of the script with status 130."""


class Interruption:
    """Lets signals end `fit` between iterations, and not where weights have changed in part.

    While responses are sampled and scored nothing has changed, so that a signal ends `fit` there
    at once, also in a reward that hangs. During updates and until a state was saved it waits; a
    second one does not. Ctrl-C is held back in this way in every `fit`. With `save_with`, which
    `callbacks.Resume` calls, SIGTERM and SIGHUP end it too, the last finished iteration is saved,
    and a script ends with the status 128 + signal.

    Signals are handled in the main thread alone, and only those that nobody else handles or
    ignores; after `fit` everything is as it was.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._pending: int | None = None
        self._is_watching = self._is_held = self._is_torn = False
        self._save: Callable[[], str] | None = None
        self._is_saved: Callable[[], bool] = lambda: False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handles signals inside, which is one `fit`."""
        self._is_watching, self._is_held, self._is_torn = True, False, False
        self._save = self._pending = None
        self._handle("SIGINT")
        try:
            yield
        except KeyboardInterrupt as stop:
            self._end(stop)
        finally:
            for number, handler in self._former.items():
                signal.signal(number, handler)
            self._former, self._is_watching = {}, False

    def save_with(self, save: Callable[[], str], is_saved: Callable[[], bool]) -> None:
        """Makes signals save the run and end the process.

        Args:
            save: saves the last finished iteration where it is not saved yet, and returns a
                sentence about it for people.
            is_saved: whether nothing is lost when the process ends at once.
        """
        self._save, self._is_saved = save, is_saved
        for name in _STOPPING:
            self._handle(name)

    @contextlib.contextmanager
    def iteration(self) -> Iterator[None]:
        """An iteration with its record. With `save_with`, what was held waits for `release`."""
        try:
            yield
        except BaseException:
            self._is_torn, self._is_held = self._is_torn or self._is_held, False
            raise
        if self._save is None:
            self.release()

    def hold(self) -> None:
        """Holds signals back from here on: what is trained begins to change."""
        self._is_held = self._is_watching

    def release(self) -> None:
        """Ends `hold`, and `fit` where a signal has arrived meanwhile."""
        self._is_held, number, self._pending = False, self._pending, None
        if number is not None:
            raise Stopped(number)

    def _handle(self, name: str) -> None:
        number = getattr(signal, name, None)
        is_main = threading.current_thread() is threading.main_thread()
        if number is None or not is_main or signal.getsignal(number) not in _DEFAULTS:
            return
        self._former[number] = signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: Any) -> None:
        is_lost = self._is_held and not (self._is_saved() and _ends_process(number))
        if is_lost and self._pending is None:
            self._pending = number
            return
        self._is_torn = self._is_held
        raise Stopped(number)

    def _end(self, stop: KeyboardInterrupt) -> NoReturn:
        """Saves, and ends `fit` in the way that suits the signal."""
        said = ""
        if self._save is not None and (not self._is_torn or self._is_saved()):
            for handled in self._former:
                signal.signal(handled, lambda number, frame: None)
            said = self._save()
        if not isinstance(stop, Stopped) or not self._former:
            raise stop
        number = stop.number
        if self._save is None or not _ends_process(number):
            raise KeyboardInterrupt(said) from None
        name = signal.Signals(number).name
        sys.stderr.write(f"Stopped by {name}. {said}".strip() + "\n")
        sys.stderr.flush()
        kind = InterruptedRun if number == signal.SIGINT else SystemExit
        raise kind(128 + number) from None


def _ends_process(number: int) -> bool:
    """Whether a signal ends the program; Ctrl-C in a notebook or a Python prompt does not."""
    return number != signal.SIGINT or not hasattr(sys, "ps1")
