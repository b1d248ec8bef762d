"""Signals that end `fit`: when they may end it, and what is saved before."""

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
    """Raised in `fit` when a signal arrives; `Interruption.watching` handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class InterruptedRun(SystemExit, KeyboardInterrupt):
    """Ctrl-C in a script: `except KeyboardInterrupt` catches it, else the exit status is 130."""


class Interruption:
    """Lets signals end `fit` between iterations, but not in the middle of its updates.

    While responses are sampled and scored, nothing has changed yet: a signal ends `fit` at once,
    even if a reward hangs. During updates, and until the state is saved, the first signal waits;
    a second one does not. Every `fit` handles Ctrl-C in this way. With `save_with`, which
    `callbacks.Resume` calls, SIGTERM and SIGHUP end `fit` too, the last finished iteration is
    saved, and a script ends with the status 128 + signal.

    Signals are handled in the main thread only, and only if nobody else handles or ignores them;
    after `fit` the former handlers are restored.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._pending: int | None = None
        # Watching: inside `fit`. Held: signals wait. Torn: updates were cut off.
        self._is_watching = self._is_held = self._is_torn = False
        self._save: Callable[[], str] | None = None
        self._is_saved: Callable[[], bool] = lambda: False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handles signals during one `fit`."""
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
            save: callable that saves the last finished iteration if it is not saved yet, and
                returns a sentence about it for the user.
            is_saved: callable that returns whether the process can end at once without a loss.
        """
        self._save, self._is_saved = save, is_saved
        for name in _STOPPING:
            self._handle(name)

    @contextlib.contextmanager
    def iteration(self) -> Iterator[None]:
        """Encloses an iteration and its record; with `save_with`, signals wait for `release`."""
        try:
            yield
        except BaseException:
            # An error between `hold` and `release` leaves half-updated weights.
            self._is_torn, self._is_held = self._is_torn or self._is_held, False
            raise
        # Nobody will save the iteration: a held signal ends `fit` here.
        if self._save is None:
            self.release()

    def hold(self) -> None:
        """Holds signals back from here on: weights are about to change."""
        self._is_held = self._is_watching

    def release(self) -> None:
        """Ends `hold`, and ends `fit` if a signal has arrived meanwhile."""
        self._is_held, number, self._pending = False, self._pending, None
        if number is not None:
            raise Stopped(number)

    def _handle(self, name: str) -> None:
        number = getattr(signal, name, None)
        # Python sets handlers in the main thread only; handlers of others stay.
        is_main = threading.current_thread() is threading.main_thread()
        if number is None or not is_main or signal.getsignal(number) not in _DEFAULTS:
            return
        self._former[number] = signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: Any) -> None:
        is_lost = self._is_held and not (self._is_saved() and _ends_process(number))
        # Let the first signal wait while updates would be lost.
        if is_lost and self._pending is None:
            self._pending = number
            return
        self._is_torn = self._is_held
        raise Stopped(number)

    def _end(self, stop: KeyboardInterrupt) -> NoReturn:
        """Saves the run and ends `fit` in the way that suits the signal."""
        said = ""
        if self._save is not None and (not self._is_torn or self._is_saved()):
            # Ignore further signals while saving.
            for handled in self._former:
                signal.signal(handled, lambda number, frame: None)
            said = self._save()
        # Not a signal that is handled here: pass the interrupt on.
        if not isinstance(stop, Stopped) or not self._former:
            raise stop
        number = stop.number
        # Without a saved run, or in a notebook, Ctrl-C remains Ctrl-C.
        if self._save is None or not _ends_process(number):
            raise KeyboardInterrupt(said) from None
        # In a script, say what was saved and exit with status 128 + signal.
        name = signal.Signals(number).name
        sys.stderr.write(f"Stopped by {name}. {said}".strip() + "\n")
        sys.stderr.flush()
        kind = InterruptedRun if number == signal.SIGINT else SystemExit
        raise kind(128 + number) from None


def _ends_process(number: int) -> bool:
    """Whether a signal ends the program; Ctrl-C in a notebook or a Python prompt does not."""
    return number != signal.SIGINT or not hasattr(sys, "ps1")
