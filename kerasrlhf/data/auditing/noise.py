"""Labels that are probably wrong: confident learning on margins of cross-fitted models."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from kerasrlhf.data.auditing import biases
from kerasrlhf.data.auditing.corpus import Corpus
from kerasrlhf.data.auditing.findings import Finding, finding
from kerasrlhf.data.auditing.options import Options
from kerasrlhf.intervals import Interval, fraction_interval

FOLDS = 5
# Fewer rows teach the built-in model nothing, and one that is right less often accuses too many.
LEAST_ROWS = 200
LEAST_ACCURACY = 0.7
_WORDS, _ROWS_PER_WORD = 300, 10
_RIDGE = 10.0
_STEPS = 8
_CHUNK = 10_000


class LabelNoise(NamedTuple):
    """What confident learning says of labels.

    Attributes:
        rows: tuple of int. The rows that are probably mislabeled, the most suspicious first.
        rate: float, in [0, 1]. The estimated fraction of wrong labels.
        accuracy: float, in [0, 1]. How often margins and labels agree; a margin of 0 counts half.
    """

    rows: tuple[int, ...]
    rate: float
    accuracy: float


def label_noise(margins: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> LabelNoise:
    """Finds probably wrong labels by confident learning.

    A row is suspicious if the model's probability of the other label is at least its mean
    probability of that label over the rows that have it. A pair counts in both orders, so that
    there are two labels. Margins must come from a model that was not trained on the row
    (cross-fitting); the errors of the model are suspicious too.

    Args:
        margins: array of numbers, `(rows,)`, in nats. Of pairs, the score of the chosen response
            minus that of the rejected one; with `labels`, the log-odds of label 1.
        labels: array of 1 and 0, `(rows,)`, or None. Defaults to None: each row is a pair.

    Returns:
        `LabelNoise`.

    Raises:
        ValueError: If there are no rows, a margin is not finite, or a label is neither 0 nor 1.

    Example:
        >>> rlhf.data.label_noise([3.0, 2.0, 4.0, -5.0, 1.0, 0.1])
        LabelNoise(rows=(3,), rate=0.2, accuracy=0.8333333333333334)
        >>> rlhf.data.label_noise([3.0, 2.0, -2.0, 4.0], labels=[1, 1, 0, 0]).rows
        (3,)

    Reference:
        Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
        arXiv 1911.00068.
    """
    values = np.asarray(margins, "float64").ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"Expected one finite margin or more. Received {len(values)} margins, "
            f"{int((~np.isfinite(values)).sum())} of them not finite."
        )
    given = np.ones(len(values), "int64") if labels is None else _labels(labels, len(values))
    # 1. The probability of each label: of pairs, of each order.
    ones = 0.5 * (1.0 + np.tanh(values / 2.0))
    probabilities = np.stack([1.0 - ones, ones], axis=1)
    own = probabilities[np.arange(len(values)), given]
    # 2. What it is on average where the label is given.
    if labels is None:
        thresholds = np.full(2, own.mean())
    else:
        thresholds = np.array([own[given == x].mean() if (given == x).any() else 2 for x in (0, 1)])
    # 3. The label that is confidently predicted, if one is.
    is_confident = probabilities >= thresholds - 1e-6
    same = is_confident[np.arange(len(values)), given]
    other = is_confident[np.arange(len(values)), 1 - given] & (~same | (own < 0.5))
    same &= ~other
    rows = np.flatnonzero(other & (own < 0.5))
    # 4. The fraction of wrong labels among those of each given label.
    rate = 0.0
    for label in np.unique(given):
        counted = given == label
        confident = (same | other)[counted].sum()
        rate += counted.mean() * other[counted].sum() / max(confident, 1)
    agrees = np.where(given == 1, values, -values)
    accuracy = float(np.mean((agrees > 0) + 0.5 * (agrees == 0)))
    order = rows[np.argsort(own[rows], kind="stable")]
    return LabelNoise(tuple(order.tolist()), float(rate), accuracy)


def _labels(labels: npt.ArrayLike, rows: int) -> np.ndarray:
    given = np.asarray(labels, "float64").ravel()
    if len(given) != rows or not np.isin(given, (0.0, 1.0)).all():
        raise ValueError(f"`labels` must be {rows} numbers 1 or 0. Received: {labels!r:.80}.")
    return given.astype("int64")


def find_noise(corpus: Corpus, options: Options) -> list[Finding]:
    """Finds the rows whose labels are probably wrong, if the model is good enough to say so."""
    margins = margins_of(corpus, options)
    if margins is None:
        return []
    found = label_noise(margins, corpus.labels)
    if accuracy_interval(found, corpus).low < LEAST_ACCURACY:
        if corpus.margins is None:
            return []
        warnings.warn(
            f"The margins agree with {100 * found.accuracy:.0f} % of the labels. Below "
            f"{100 * LEAST_ACCURACY:.0f} %, most rows that `label_noise` finds may be errors of "
            "the model: look at them before you remove them.",
            stacklevel=2,
        )
    model = "the built-in model of words" if corpus.margins is None else "the model"
    detail = (
        f"{100 * found.rate:.1f} % of the labels are estimated to be wrong; {model} agrees with "
        f"{100 * found.accuracy:.1f} %"
    )
    return finding("label_noise", corpus, found.rows, detail=detail)


def accuracy_interval(found: LabelNoise, corpus: Corpus) -> Interval:
    """Returns the accuracy of margins with its interval."""
    return fraction_interval(found.accuracy, len(corpus))


def statistics(corpus: Corpus, options: Options) -> dict[str, Any]:
    """Returns the accuracy of the margins and their histogram; nothing without margins."""
    margins = margins_of(corpus, options)
    if margins is None:
        return {}
    found = label_noise(margins, corpus.labels)
    interval = accuracy_interval(found, corpus)
    signed = margins if corpus.labels is None else np.where(corpus.labels > 0, margins, -margins)
    reach = max(float(np.quantile(np.abs(signed), 0.99)), 1e-6)
    counts, edges = np.histogram(np.clip(signed, -reach, reach), 30, (-reach, reach))
    return {
        "model": "built-in" if corpus.margins is None else "given",
        "accuracy": round(interval.mean, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "estimated_noise": round(found.rate, 4),
        "suspicious": len(found.rows),
        "histogram": {"edges": np.round(edges, 4).tolist(), "counts": counts.tolist()},
    }


def margins_of(corpus: Corpus, options: Options) -> np.ndarray | None:
    """Returns the margins of the rows, computed once: given, of a function, or cross-fitted.

    Returns:
        float64 array `(rows,)`, as `label_noise` takes it; None if there are no labels, or too few
        rows for the built-in model.

    Raises:
        ValueError: If the function returns something other than a finite number per text.
    """
    if corpus.kind not in ("preferences", "unpaired_preferences"):
        return None
    if corpus.computed_margins is None:
        if callable(corpus.margins):
            corpus.computed_margins = _scored(corpus)
        elif corpus.margins is not None:
            corpus.computed_margins = np.asarray(corpus.margins, "float64")
        elif len(corpus) >= LEAST_ROWS:
            corpus.computed_margins = cross_fitted_margins(
                _features(corpus), corpus.labels, corpus.prompt_keys, options.seed
            )
    return corpus.computed_margins


def _scored(corpus: Corpus) -> np.ndarray:
    prompts = corpus.columns.get("prompt", [""] * len(corpus))

    def scores(name: str) -> np.ndarray:
        values = np.asarray(corpus.margins(prompts, corpus.columns[name]), "float64")
        if values.shape != (len(corpus),) or not np.isfinite(values).all():
            raise ValueError(
                "`margins` must return a finite number per text. It returned an array of the "
                f"shape {values.shape} for {len(corpus)} texts."
            )
        return values

    if corpus.labels is None:
        return scores("chosen") - scores("rejected")
    values = scores("response")
    return values - values.mean()


def _features(corpus: Corpus) -> np.ndarray:
    """Returns features of responses, of pairs their differences, float32 `(rows, features)`.

    They are the logarithms of the counts of the most frequent words, and those of length and marks.
    """
    is_pair = corpus.labels is None
    names = ["chosen", "rejected"] if is_pair else ["response"]
    seen = np.concatenate([corpus.words[name].ids for name in names])
    counts = np.bincount(seen)
    most = min(_WORDS, len(corpus) // _ROWS_PER_WORD)
    frequent = np.argsort(-counts, kind="stable")[:most]
    place = np.full(len(counts), -1)
    place[frequent] = np.arange(len(frequent))
    features = [name for name in biases.FEATURES if name != "overlap"]
    size = len(frequent)
    x = np.zeros((len(corpus), size + len(features) + (not is_pair)), "float32")
    for name, sign in zip(names, (1.0, -1.0), strict=False):
        words = corpus.words[name]
        for start in range(0, len(corpus), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(corpus)))
            part = words.take(rows)
            places = place[part.ids]
            kept = places >= 0
            codes = part.rows[kept] * size + places[kept]
            found = np.bincount(codes, minlength=len(rows) * size).reshape(len(rows), size)
            x[rows, :size] += sign * np.log1p(found)
        for number, feature in enumerate(features):
            x[:, size + number] += sign * np.log1p(biases.values(feature, corpus, name))
    if not is_pair:
        x[:, -1] = 1.0
    return x


def cross_fitted_margins(
    features: np.ndarray,
    labels: np.ndarray | None,
    groups: np.ndarray,
    seed: int = 0,
    folds: int = FOLDS,
) -> np.ndarray:
    """Computes margins by logistic regression on the other folds.

    Args:
        features: float32 array `(rows, features)`. Of pairs, differences.
        labels: array of 1 and 0 `(rows,)`, or None for pairs, whose chosen response comes first.
        groups: int array `(rows,)`. Rows of a group, such as those of a prompt, share a fold.
        seed: int. Of the folds. Defaults to 0.
        folds: int. Defaults to 5.

    Returns:
        float64 array `(rows,)`: the log-odds of label 1, of pairs those of the chosen response.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 1)).astype("float32")
        >>> margins = cross_fitted_margins(x, (x[:, 0] > 0).astype(int), np.arange(100))
        >>> bool(((margins > 0) == (x[:, 0] > 0)).mean() > 0.9)
        True
    """
    scale = features.std(axis=0, dtype="float64") if labels is not None else None
    if scale is None:  # Differences may have either sign: their mean is 0 by symmetry.
        scale = np.sqrt(np.mean(np.square(features, dtype="float32"), axis=0, dtype="float64"))
    x = features / np.where(scale > 1e-6, scale, 1.0).astype("float32")
    signs = np.ones(len(x), "float32") if labels is None else (2.0 * labels - 1.0).astype("float32")
    names, group = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names))[group.reshape(-1)] % folds
    margins = np.zeros(len(x))
    for number in range(folds):
        held_out = fold == number
        weights = _fit(x, signs, np.flatnonzero(~held_out))
        margins[held_out] = x[held_out] @ weights
    return margins


def _fit(x: np.ndarray, signs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the weights of logistic regression with a ridge, by Newton's method.

    TensorFlow multiplies the matrices: the threads of NumPy wait for each other where processors
    are shared, and are then ten times as slow.
    """
    weights = np.zeros(x.shape[1], "float32")
    for _ in range(_STEPS):
        gradient = -_RIDGE * weights
        curvature = _RIDGE * np.eye(len(weights), dtype="float32")
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            z = x[part] * signs[part, None]
            p = 0.5 * (1.0 - np.tanh(tf.linalg.matvec(z, weights).numpy() / 2.0))  # wrong label
            gradient += tf.linalg.matvec(z, p, transpose_a=True).numpy()
            spread = z * (p * (1.0 - p))[:, None]
            curvature += tf.linalg.matmul(spread, z, transpose_a=True).numpy()
        step = tf.linalg.solve(curvature, gradient[:, None]).numpy()[:, 0]
        weights += step
        # The steps of Newton's method end in squares of each other: the next is negligible.
        if np.abs(step).max() < 0.1:
            break
    return weights
