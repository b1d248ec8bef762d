"""Losses and statistics of compared responses; candidate 0 is the preferred one.

Unless stated otherwise, functions take scores `(batch, candidates)` with at least two candidates,
the preferred one first, and return one float32 number per row. Every function raises a
`ValueError` if the static shapes are not the documented ones.
"""

from keras import ops

from kerasrlhf.functional._inputs import (
    Tensor,
    check_candidates,
    check_rank,
    check_same_shape,
    check_unit_interval,
    float32,
)


def bradley_terry(
    scores: Tensor,
    margin: float | Tensor | None = None,
    label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Computes the negative log-likelihood that candidate 0 beats another one.

    `mean over j > 0 of -log sigmoid(scores[0] - scores[j] - margin)`; with two candidates the mean
    has one term.

    Args:
        scores: Tensor, `(batch, candidates)`. Scores, the preferred candidate first.
        margin: float or Tensor `(batch,)`, in units of score. By how much the preferred score
            should lead. Defaults to None: 0.
        label_smoothing: float, in [0, 1]. Probability that a label is reversed. The loss is its
            expectation over both orders, minimal at a finite lead. Defaults to 0.0.

    Returns:
        Tensor, `(batch,)`, float32, in nats, at least 0.

    Raises:
        ValueError: If `label_smoothing` is outside [0, 1].

    Example:
        >>> round(float(rlhf.functional.bradley_terry([[1.0, 1.0]])[0]), 4)  # log 2
        0.6931

    Reference:
        Stiennon et al. 2020, arXiv 2009.01325, section 3.4; Huang et al. 2024, arXiv 2403.17031
        (P11); the margin: Touvron et al. 2023, arXiv 2307.09288, eq. 2; smoothed labels: Mitchell
        2023, "A note on DPO with noisy preferences and relationship to IPO".
    """
    check_unit_interval("label_smoothing", label_smoothing)
    # `(batch, candidates - 1)`: leads over every other candidate.
    lead = _leads(scores)
    if margin is not None:
        lead = lead - _per_row(margin, lead)
    # `(1 - s) softplus(-x) + s softplus(x)`, with `softplus(x) = softplus(-x) + x`.
    return ops.mean(ops.softplus(-lead) + label_smoothing * lead, axis=1)


def best_of_k(scores: Tensor) -> Tensor:
    """Computes the negative log-likelihood that candidate 0 is picked among all.

    `-log softmax(scores)[0]`; with two candidates this is `bradley_terry`.

    Args:
        scores: Tensor, `(batch, candidates)`. Scores, the preferred candidate first.

    Returns:
        Tensor, `(batch,)`, float32, in nats, at least 0.

    Example:
        >>> round(float(rlhf.functional.best_of_k([[2.0, 2.0, 2.0, 2.0]])[0]), 4)  # log 4
        1.3863

    Reference:
        Ziegler et al. 2019, arXiv 1909.08593, eq. 1.
    """
    scores = _candidate_scores(scores)
    return -ops.log_softmax(scores, axis=1)[:, 0]


def plackett_luce(scores: Tensor) -> Tensor:
    """Computes the negative log-likelihood of a whole ranking.

    `-sum over k of log softmax(scores[k:])[0]`: each candidate in turn is picked among those left.
    With two candidates this is `bradley_terry`.

    Args:
        scores: Tensor, `(batch, candidates)`. Scores, ordered from best to worst candidate.

    Returns:
        Tensor, `(batch,)`, float32, in nats, at least 0.

    Example:
        >>> loss = rlhf.functional.plackett_luce([[2.0, 2.0, 2.0]])
        >>> round(float(loss[0]), 4)  # log 3 + log 2
        1.7918

    Reference:
        Plackett 1975, "The Analysis of Permutations"; Xia et al. 2008, "Listwise Approach to
        Learning to Rank" (ListMLE); Rafailov et al. 2023, arXiv 2305.18290, appendix A.3.
    """
    scores = _candidate_scores(scores)
    places = ops.arange(ops.shape(scores)[1])
    # `[0, k, j]` is true if candidate `j` is left at place `k`: `j >= k`.
    is_left = (places[None, :] >= places[:, None])[None]
    # Far below every score, but finite: candidates already picked get a gradient of exactly 0.
    left = ops.where(is_left, scores[:, None, :], -1e30)
    return ops.sum(ops.logsumexp(left, axis=2) - scores, axis=1)


def squared_sum(scores: Tensor) -> Tensor:
    """Computes the squared sum of the candidates' scores, a regularizer of their mean.

    `(sum over j of scores[j])^2`. Preferences do not determine a constant added to all scores; a
    small multiple of this term in the loss keeps it near 0.

    Args:
        scores: Tensor, `(batch, candidates)`. Scores in any order.

    Returns:
        Tensor, `(batch,)`, float32, in squared units of score.

    Example:
        >>> rlhf.functional.squared_sum([[1.0, -1.0], [2.0, 1.0]]).numpy().tolist()
        [0.0, 9.0]

    Reference:
        Eisenstein et al. 2023, arXiv 2312.09244, "Helping or Herding?", section 2.
    """
    return ops.square(ops.sum(_candidate_scores(scores), axis=1))


def accuracy(scores: Tensor) -> Tensor:
    """Computes whether candidate 0 has the highest score; ties count partly.

    `1 / number of candidates at the maximum` if candidate 0 is one of them, else 0: 1 for a strict
    winner, one half for a tie of two. Equal scores thus count as a guess.

    Args:
        scores: Tensor, `(batch, candidates)`. Scores, the preferred candidate first.

    Returns:
        Tensor, `(batch,)`, float32, in [0, 1].

    Example:
        >>> rlhf.functional.accuracy([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]]).numpy().tolist()
        [1.0, 0.0, 0.5]

    Reference:
        Stiennon et al. 2020, arXiv 2009.01325, section 4.3; Huang et al. 2024, arXiv 2403.17031
        (P16).
    """
    scores = _candidate_scores(scores)
    # Every candidate at the maximum, `(batch, candidates)`.
    highest = float32(scores >= ops.max(scores, axis=1, keepdims=True))
    return highest[:, 0] / ops.maximum(ops.sum(highest, axis=1), 1.0)


def agreement(labels: Tensor, scores: Tensor) -> Tensor:
    """Computes whether a score has the sign of its label: above 0 for 1, below 0 for 0.

    Args:
        labels: Tensor, `(batch,)`. 1 for desirable responses and 0 for undesirable ones.
        scores: Tensor, `(batch, 1)`. One response per row.

    Returns:
        Tensor, `(batch,)`, float32: 1, 0, or one half for a score of 0.

    Example:
        >>> labels, scores = [1, 0, 0, 1], [[2.0], [-1.0], [0.5], [0.0]]
        >>> rlhf.functional.agreement(labels, scores).numpy().tolist()
        [1.0, 1.0, 0.0, 0.5]
    """
    labels, scores = float32(labels), float32(scores)
    check_rank("scores", scores, ("batch", "1"))
    labels = ops.reshape(labels, (-1,))
    check_same_shape(labels=labels, scores=scores[:, 0])
    # The product of the signs is 1, -1, or 0 for a tie.
    return 0.5 + 0.5 * ops.sign(scores[:, 0]) * ops.sign(labels - 0.5)


def lead(scores: Tensor) -> Tensor:
    """Computes how far candidate 0 leads the best of the others.

    `scores[0] - max over j > 0 of scores[j]`.

    Args:
        scores: Tensor, `(batch, candidates)`. Scores, the preferred candidate first.

    Returns:
        Tensor, `(batch,)`, float32, in units of score, negative if another candidate leads.

    Example:
        >>> rlhf.functional.lead([[5.0, 1.0, 3.0]]).numpy().tolist()
        [2.0]

    Reference:
        Huang et al. 2024, arXiv 2403.17031 (P18): accuracy against the size of the difference.
    """
    # The smallest lead is the one over the best of the others.
    return ops.min(_leads(scores), axis=1)


def _leads(scores: Tensor) -> Tensor:
    scores = _candidate_scores(scores)
    return scores[:, :1] - scores[:, 1:]


def _candidate_scores(scores: Tensor) -> Tensor:
    scores = float32(scores)
    check_candidates("scores", scores)
    return scores


def _per_row(margin: float | Tensor, leads: Tensor) -> Tensor:
    margin = float32(margin)
    if len(margin.shape) == 0:
        return margin
    check_rank("margin", margin, ("batch",))
    check_same_shape(margin=margin, rows_of_scores=leads[:, 0])
    # Broadcast over the candidates of a row.
    return margin[:, None]
