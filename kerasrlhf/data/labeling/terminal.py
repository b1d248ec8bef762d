"""Labeling in a terminal, or wherever lines can be read and written."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from kerasrlhf.data.auditing.findings import shown
from kerasrlhf.data.labeling.keys import action_of
from kerasrlhf.data.labeling.session import Labeling

_QUESTION = "[l]eft  [r]ight  [t]ie  [s]kip  [u]ndo  [q]uit: "
_HELP = "Type l, r, t, s, u or q, then Enter."


def run(
    labeling: Labeling,
    read: Callable[[str], str] | None = None,
    write: Callable[[str], object] = print,
) -> None:
    """Asks for choices until no pair is left, or until the person stops.

    Args:
        labeling: `Labeling`.
        read: Function that shows a question and returns the line that was typed. Defaults to None:
            `input`.
        write: Function that shows a text. Defaults to `print`.
    """
    read = read or input
    last = ""
    while labeling.current is not None:
        # Shown once, also if what is typed is not understood.
        screen = _screen(labeling)
        if screen != last:
            write(screen)
        last = screen
        try:
            typed = read(_QUESTION).strip().lower()
        except (EOFError, KeyboardInterrupt):
            typed = "quit"
        if typed and "quit".startswith(typed):
            break
        action = action_of(typed)
        if action == "undo":
            if not labeling.undo():
                write("There is nothing to undo.")
        elif action is None:
            write(_HELP)
        else:
            labeling.choose(action)
    write(f"\n{labeling.progress}. Saved in {labeling.path}")


def _screen(labeling: Labeling) -> str:
    pair = labeling.current
    if pair is None:
        return ""
    width = min(shutil.get_terminal_size().columns, 88)
    parts = [f"\n{'=' * width}\n{labeling.progress}"]
    for name, text in (("Prompt", pair.prompt), ("Left", pair.left), ("Right", pair.right)):
        # Control characters could move the cursor, or hide a text.
        parts.append(f"{f' {name} ':-^{width}}\n{shown(text, len(text))}")
    return "\n".join(parts)
