"""The runs of `algorithms.py` as a table and a picture."""

import matplotlib

matplotlib.use("Agg")
import numpy as np
from happy_stories import spread
from matplotlib import pyplot

CHOOSING = "best of n"
PANELS = {"kl": "KL to the start, nats a response", "episodes": "episodes", "seconds": "seconds"}


def groups(lines):
    """Returns lines by algorithm, in order."""
    found = {}
    for line in lines:
        found.setdefault(line["algorithm"], []).append(line)
    return found


def table(lines):
    """Returns Markdown: a row for each algorithm, at the end of its runs, and for each n."""
    rows = [
        "| algorithm | seeds | score | KL | score - b KL | perplexity of stories "
        "| distinct bigrams | s a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in groups(lines).items():
        rows += _choices(runs) if name == CHOOSING else [_trained(name, runs)]
    return "\n".join(rows)


def _trained(name, runs):
    score, kl, seconds = ([run[field][-1] for run in runs] for field in ("score", "kl", "seconds"))
    # The objective that all algorithms share: score minus KL penalty.
    value = [s - run["kl_coef"] * k for s, k, run in zip(score, kl, runs, strict=True)]
    cells = [spread(score), spread(kl, 2), spread(value)]
    cells += [spread([run["perplexity"] for run in runs], 2)]
    cells += [spread([run["distinct_2"] for run in runs], 2), f"{np.mean(seconds):.0f}"]
    return " | ".join([f"| {name}", str(len(runs)), *cells]) + " |"


def _choices(runs):
    for place, n in enumerate(runs[0]["n"]):
        score, kl = [run["score"][place] for run in runs], runs[0]["kl"][place]
        value = [s - run["kl_coef"] * kl for s, run in zip(score, runs, strict=True)]
        cells = [spread(score), f"at most {kl:.2f}", spread(value), "as the start's", "-", "-"]
        yield " | ".join([f"| best of {n}", str(len(runs)), *cells]) + " |"


def draw(lines, path):
    """Draws score against KL, episodes and seconds as PNG; means are thick, seeds thin."""
    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), sharey=True)
    colors = dict(zip(groups(lines), pyplot.get_cmap("tab20").colors, strict=False))
    for name, runs in groups(lines).items():
        if name == CHOOSING:
            _draw_choices(axes, runs)
            continue
        score = np.mean([run["score"] for run in runs], axis=0)
        for axis, field in zip(axes, PANELS, strict=True):
            for run in runs:
                axis.plot(run[field], run["score"], color=colors[name], lw=0.6, alpha=0.4)
            x = np.mean([run[field] for run in runs], axis=0)
            axis.plot(x, score, color=colors[name], lw=2, label=name)
    for axis, title in zip(axes, PANELS.values(), strict=True):
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("score: VADER sentiment, held-out openings")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=(len(labels) + 1) // 2)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_choices(axes, runs):
    score = np.mean([run["score"] for run in runs], axis=0)
    axes[0].plot(runs[0]["kl"], score, "k--o", ms=4, lw=1, label="best of 2, 4, 8, 16")
    # Choosing has no course of training: a line for its best.
    for axis in axes[1:]:
        axis.axhline(score[-1], color="black", ls=":", lw=1)
        axis.annotate("best of 16", (0.01, score[-1]), xycoords=("axes fraction", "data"))
