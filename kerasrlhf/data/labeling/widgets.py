"""Labeling in a notebook, by buttons and by keys."""

from __future__ import annotations

import functools
import html
import time
from collections.abc import Callable
from typing import Any

from kerasrlhf.data.auditing.findings import shown
from kerasrlhf.data.labeling.keys import KEYS, action_of
from kerasrlhf.data.labeling.session import Labeling

_BOX = (
    "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45; max-height: 24em; "
    "overflow-y: auto; padding: 8px 12px; border: 1px solid var(--jp-border-color1, #ccc); "
    "border-radius: 4px"
)
# A key that is held down repeats after half a second, and then many times a second.
_LEAST_SECONDS = 0.6


class Panel:
    """Shows the pairs of a labeling as widgets, and passes on what a person chooses.

    Args:
        labeling: `Labeling`.
        clock: Function that returns seconds. Defaults to `time.monotonic`.

    Attributes:
        labeling: `Labeling`.
        box: The widget to display.
        buttons: dict from str, `"left"`, `"right"`, `"tie"`, `"skip"` and `"undo"`, to a button.
        keys: The field that keys are typed into.
        texts: dict from str, `"prompt"`, `"left"` and `"right"`, to the widget that shows it.
        message: The widget for what happened.

    Raises:
        ImportError: If `ipywidgets` is not installed.
    """

    def __init__(self, labeling: Labeling, clock: Callable[[], float] = time.monotonic) -> None:
        # An import that terminals do without.
        import ipywidgets

        self.labeling, self._clock = labeling, clock
        # The key that was typed last, and when.
        self._last = ("", 0.0)
        # `auto` leaves room for the margins of widgets, where 100 % would need a scroll bar.
        wide = ipywidgets.Layout(width="auto")
        half = ipywidgets.Layout(width="auto", flex="1 1 0", min_width="0")
        self.texts = {
            "prompt": ipywidgets.HTML(layout=wide),
            "left": ipywidgets.HTML(layout=half),
            "right": ipywidgets.HTML(layout=half),
        }
        self.buttons = {
            action: ipywidgets.Button(
                description=f"{action.capitalize()} ({key})",
                button_style="primary" if action in ("left", "right") else "",
            )
            for key, action in KEYS.items()
        }
        for action, button in self.buttons.items():
            button.on_click(functools.partial(self._clicked, action))
        self.keys = ipywidgets.Text(
            placeholder="Click here to use the keys l, r, t, s and u",
            layout=ipywidgets.Layout(width="22em"),
        )
        self.keys.observe(self._typed, names="value")
        self.bar = ipywidgets.IntProgress(min=0, max=1)
        self.message = ipywidgets.HTML()
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.bar, self.message]),
                self.texts["prompt"],
                ipywidgets.HBox([self.texts["left"], self.texts["right"]], layout=wide),
                ipywidgets.HBox([*self.buttons.values()]),
                self.keys,
            ]
        )
        self._show()

    def _clicked(self, action: str, button: Any) -> None:
        self._act(action)

    def _typed(self, change: Any) -> None:
        # The field keeps what was typed: to clear it could swallow the next key.
        old, new = change["old"], change["new"]
        key = new[len(old) : len(old) + 1] if new.startswith(old) else ""
        last, self._last = self._last, (key, self._clock())
        is_held = key == last[0] and self._last[1] - last[1] < _LEAST_SECONDS
        action = None if is_held else action_of(key)
        if action is not None:
            self._act(action)

    def _act(self, action: str) -> None:
        try:
            if action == "undo":
                note = "" if self.labeling.undo() else "There is nothing to undo."
            else:
                self.labeling.choose(action)
                note = ""
        except (ValueError, OSError) as error:
            # A notebook shows no errors of widgets, and the choice is not saved.
            note = str(error)
        self._show(note)

    def _show(self, note: str = "") -> None:
        """Shows the current pair."""
        labeling, counts = self.labeling, self.labeling.counts
        pair = labeling.current
        self.bar.max, self.bar.value = max(counts["total"], 1), counts["done"]
        status = f"{labeling.progress}. {note}".strip()
        if pair is None:
            status = f"{status} Saved in {labeling.path}".strip()
        self.message.value = html.escape(status)
        for name, widget in self.texts.items():
            text = "" if pair is None else getattr(pair, name)
            visible = html.escape(shown(text, len(text)))
            title = f"<b>{name.capitalize()}</b>"
            widget.value = f'{title}<div style="{_BOX}">{visible}</div>' if pair else ""
        for action, button in self.buttons.items():
            button.disabled = pair is None and action != "undo"


def show(labeling: Labeling) -> Panel:
    """Displays the pairs of a labeling in the output of the cell.

    Args:
        labeling: `Labeling`.

    Returns:
        `Panel`.
    """
    from IPython.display import display

    panel = Panel(labeling)
    display(panel.box)
    return panel
