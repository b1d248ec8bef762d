"""The runs of `known_optimum.py` as a table and a picture."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
FLOOR = 1e-6


def groups(lines):
    """Returns lines by task, coefficient (one group for adaptive runs) and system, in order."""
    found = {}
    for line in lines:
        coef = "adaptive" if line["system"] == "adaptive" else line["coef"]
        found.setdefault((line["task"], coef, line["system"]), []).append(line)
    return found


def episodes_until(line, regret=0.02):
    """Returns the episodes from which on the regret stays at or below a bound, or None."""
    # A later mark above the bound starts the search again.
    reached = None
    for episodes, value in zip(line["episodes"], line["regret"], strict=True):
        if value > regret:
            reached = None
        elif reached is None:
            reached = episodes
    return reached


def table(lines):
    """Returns Markdown: a row for each task and coefficient."""
    found = groups(lines)
    rows = [
        "| task | b | regret, each seed | at or below 0.02 from episode | exact gradient | s |",
        "|---|---|---|---|---|---|",
    ]
    for (task, coef, system), runs in found.items():
        if system == "exact":
            continue
        exact = found.get((task, coef, "exact"))
        b = f"adaptive, ends at {_several(r['coef'] for r in runs)}" if coef == "adaptive" else coef
        cells = [
            task,
            b if system in ("ppo", "adaptive") else f"{b}, {system}",
            _several(_short(run["regret"][-1]) for run in runs),
            _several(episodes_until(run) or "-" for run in runs),
            _short(exact[0]["regret"][-1]) if exact else "",
            _several(round(run["seconds"][-1]) for run in runs),
        ]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows)


def by_system(lines):
    """Returns Markdown: a row for each task and fixed coefficient, a column per algorithm."""
    found = {key: runs for key, runs in groups(lines).items() if key[1] != "adaptive"}
    systems = list(dict.fromkeys(system for *_, system in found))
    rows = [f"| task | b | {' | '.join(systems)} |", "|---" * (2 + len(systems)) + "|"]
    for task, coef in dict.fromkeys(key[:2] for key in found):
        runs = [found.get((task, coef, system), []) for system in systems]
        cells = [_several(_short(run["regret"][-1]) for run in several) for several in runs]
        rows.append(f"| {task} | {coef} | {' | '.join(cells)} |")
    return "\n".join(rows)


def random_table(lines):
    """Returns Markdown: a row for each random task, with the regret at the end and at its best."""
    found = groups(lines)
    systems = list(dict.fromkeys(system for *_, system in found))
    rows = [
        "| task | b | " + " | ".join(f"{name}: end | best" for name in systems) + " |",
        "|---" * (2 + 2 * len(systems)) + "|",
    ]
    for task, coef in dict.fromkeys(key[:2] for key in found):
        cells = [task, str(coef)]
        for system in systems:
            runs = found.get((task, coef, system), [])
            cells.append(_several(_short(run["regret"][-1]) for run in runs))
            cells.append(_several(_short(min(run["regret"])) for run in runs))
        rows.append("| " + " | ".join(cells) + " |")
    # Means over the tasks that every system ran.
    whole, tasks = [], [{key[:2] for key in found if key[2] == system} for system in systems]
    shared = set.intersection(*tasks)
    for system in systems:
        runs = [r for key in found if key[:2] in shared and key[2] == system for r in found[key]]
        ends, bests = ([f(run["regret"]) for run in runs] for f in (lambda r: r[-1], min))
        whole += [_short(sum(values) / len(runs)) for values in (ends, bests)]
    rows.append("| mean of what all ran | | " + " | ".join(whole) + " |")
    return "\n".join(rows)


def _several(values):
    return ", ".join(str(value) for value in values)


def _short(regret):
    if regret < 1e-5:
        return f"{regret:.0e}"
    return f"{regret:.5f}" if regret < 0.001 else f"{regret:.3f}"


def draw(lines, path, seconds=True):
    """Draws regret against episodes (above) and seconds (below) as PNG, a column for each task.

    Exact gradients sample nothing, and their seconds are not comparable: they are above only.
    """
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    shown = ("episodes", "seconds") if seconds else ("episodes",)
    size = 3.2 * len(tasks), 3 * len(shown)
    figure, axes = pyplot.subplots(len(shown), len(tasks), figsize=size, sharey=True, squeeze=False)
    coefs = list(dict.fromkeys(coef for _, coef, _ in groups(lines)))
    for (task, coef, system), runs in groups(lines).items():
        style = {"color": COLORS[coefs.index(coef) % len(COLORS)]}
        style |= {"ls": "--", "lw": 2} if system == "exact" else {"lw": 1}
        label = f"b {coef}" if coef == "adaptive" else f"b = {coef}"
        for row, x in enumerate(shown[:1] if system == "exact" else shown):
            for index, run in enumerate(runs):
                # A logarithmic axis cannot show 0.
                regret = [max(value, FLOOR) for value in run["regret"]]
                name = f"{label}, {system}" if index == 0 and row == 0 else None
                axes[row, tasks.index(task)].plot(run[x], regret, label=name, **style)
    for column, task in enumerate(tasks):
        axes[0, column].set_title(task)
        for axis, x in zip(axes[:, column], shown, strict=True):
            axis.set_xlabel(x)
            axis.set_yscale("log")
            axis.axhline(0.02, color="gray", lw=0.8, ls=":")
    for axis in axes[:, 0]:
        axis.set_ylabel("regret")
    handles, labels = [], []
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            # Columns share labels: each is in the legend once.
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.45 / size[1], 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
