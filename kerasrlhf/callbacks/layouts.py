"""The layout of TensorBoard's page "Custom Scalars", which begins with "Is it working?"."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.custom_scalar import summary as custom_scalars

TAG = metadata.CONFIG_SUMMARY_TAG
"""The tag that TensorBoard looks for a layout at."""

ON_POLICY = {
    "Is it working?": {
        "score: training and validation": ("objective/score", "val/score"),
        "KL: training, target and validation": ("objective/kl", "objective/kl_target", "val/kl"),
        "KL coefficient": ("objective/kl_coef",),
        "entropy per response": ("objective/entropy",),
        "length: training and validation": ("objective/length", "val/length"),
        "fraction that ended": ("objective/ended",),
    },
    "Policy": {
        "clipfrac": ("policy/clipfrac",),
        "approxkl": ("policy/approxkl",),
        "ratio_error": ("policy/ratio_error",),
        "gradient norm": ("policy/grad_norm",),
        "learning rate": ("policy/learning_rate",),
        "updates": ("policy/updates", "policy/skipped_updates"),
        "loss scale": ("policy/loss_scale",),
    },
    "Value": {
        "explained variance": ("value/explained_variance",),
        "values and returns": ("value/mean", "value/returns"),
        "clipfrac of the critic": ("value/clipfrac",),
    },
    "Losses": {
        "total": ("loss/total",),
        "policy": ("loss/policy",),
        "value": ("loss/value",),
        "KL in the loss": ("loss/kl",),
        "texts and prompts": ("loss/ptx", "loss/lm", "loss/reverse"),
    },
    "Time": {
        "seconds": ("time/rollout", "time/score", "time/update", "time/iteration"),
        "tokens per second": ("time/tokens_per_second",),
        "episodes": ("time/episodes",),
        "tokens": ("time/tokens",),
    },
}
"""Tags by chart, and charts by category, of on-policy trainers."""


def of_run(names: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns the categories of an on-policy run, without charts that would stay empty.

    Args:
        names: iterable of str. The statistics that an iteration measures.

    Example:
        >>> list(of_run(["objective/score", "loss/policy"])["Losses"])
        ['policy']
    """
    # Validation comes after the first iteration: its charts are kept in any case.
    names = {*names, *(name for name in _all_tags() if name.startswith("val/"))}
    return {
        category: kept
        for category, charts in ON_POLICY.items()
        if (kept := {title: tags for title, tags in charts.items() if names & set(tags)})
    }


def of_logs(names: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns one category, in which training and validation of a Keras model share charts.

    Args:
        names: iterable of str. Of the logs of a batch.

    Example:
        >>> of_logs(["loss"])
        {'Training and validation': {'loss': ('train/loss', 'val/loss')}}
    """
    charts: dict[str, tuple[str, ...]] = {name: (f"train/{name}", f"val/{name}") for name in names}
    return {"Training and validation": charts}


def summary(categories: dict[str, dict[str, tuple[str, ...]]]) -> bytes:
    """Returns a serialized summary with the layout.

    Args:
        categories: dict, as `of_run` returns it.
    """
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=title,
                chart=[
                    # TensorBoard takes tags for regular expressions, matched at their start.
                    layout_pb2.Chart(
                        title=name,
                        multiline=layout_pb2.MultilineChartContent(
                            tag=[f"^{re.escape(tag)}$" for tag in tags]
                        ),
                    )
                    for name, tags in charts.items()
                ],
            )
            for title, charts in categories.items()
        ]
    )
    return custom_scalars.pb(layout).SerializeToString()


def _all_tags() -> Iterable[str]:
    return (tag for charts in ON_POLICY.values() for tags in charts.values() for tag in tags)
