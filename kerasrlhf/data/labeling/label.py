"""Labels pairs by hand: in a notebook by widgets, elsewhere by lines in a terminal."""

from __future__ import annotations

import importlib.util
import os
import sys

from kerasrlhf.checks import require_choice
from kerasrlhf.data.dialogue import Template
from kerasrlhf.data.labeling import terminal
from kerasrlhf.data.labeling.session import Labeling
from kerasrlhf.data.sources import Source


def label(
    pairs: Source,
    path: str | os.PathLike[str],
    *,
    template: Template = "plain",
    seed: int = 0,
    front: str = "auto",
) -> Labeling:
    """Asks a person which of two responses is better, pair by pair, and saves each choice.

    The two responses are shown next to each other, without what is known of them, in an order that
    is a matter of chance. Keys: `l` left, `r` right, `t` tie, `s` skip, `u` undo; in a terminal
    also `q` quit. A choice is on disk before the next pair is shown. Called again with the same
    pairs and the same path, it goes on where it ended.

    `path` is then a source of `kerasrlhf.data.preferences`: it has `prompt`, `chosen` and
    `rejected`; `position`, the side that the chosen response was on, which `kerasrlhf.data.audit`
    tests for a habit of the person; and the other columns of the pair. Ties and skipped pairs are
    in a file of their own, `labels.undecided.jsonl` for `labels.jsonl`, which is a source of
    another call.

    Args:
        pairs: What `kerasrlhf.data.read` accepts or returns, with the columns `prompt` and
            `responses`, a list of two; or `chosen`, `rejected` and perhaps `prompt`, whose labels
            are not shown. Equal pairs are shown once, and pairs of equal responses not at all.
        path: str or path that ends with `.jsonl`.
        template: str or callable. How messages become a text, see `kerasrlhf.data.dialogue`; the
            messages themselves are saved. Defaults to `"plain"`.
        seed: int, at least 0. Of the sides. Defaults to 0.
        front: str. `"notebook"`: widgets, and the function returns at once; `"terminal"`: lines
            that are typed, and it returns when no pair is left or at `q`; or `"auto"`: widgets in a
            notebook with `ipywidgets` (extra `notebook`), otherwise lines. Defaults to `"auto"`.

    Returns:
        `Labeling`, with `counts` and `undo()`.

    Raises:
        ValueError: If a row has not the columns of a pair, `path` is not a file of labels, or an
            argument is out of its range.
        ImportError: If `front` is `"notebook"` and `ipywidgets` is not installed.

    Example:
        >>> import builtins, tempfile, unittest.mock
        >>> path = tempfile.mkdtemp() + "/labels.jsonl"
        >>> pairs = [{"prompt": "Who is Tom?", "responses": ["A boy.", "No."]}]
        >>> with unittest.mock.patch("builtins.input", return_value="q"):
        ...     labeling = rlhf.data.label(pairs, path, front="terminal")  # doctest: +ELLIPSIS
        <BLANKLINE>
        ====...
        >>> labeling.counts["done"]
        0
    """
    require_choice("front", front, ("auto", "notebook", "terminal"))
    labeling = Labeling(pairs, path, template=template, seed=seed)
    if front == "auto":
        front = "notebook" if _in_notebook() else "terminal"
    if front == "terminal":
        terminal.run(labeling)
        return labeling
    if importlib.util.find_spec("ipywidgets") is None:
        raise ImportError(
            "Labeling in a notebook needs `ipywidgets`: `pip install kerasrlhf[notebook]`. Or pass "
            '`front="terminal"`, which asks in the output of the cell.'
        )
    from kerasrlhf.data.labeling import widgets

    widgets.show(labeling)
    return labeling


def _in_notebook() -> bool:
    """Returns whether a notebook runs this, and can show widgets."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # Only the shell of a notebook has a kernel.
    return getattr(shell, "kernel", None) is not None and (
        importlib.util.find_spec("ipywidgets") is not None
    )
