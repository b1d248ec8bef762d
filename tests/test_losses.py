"""The Keras shells of the preference functions: reduction, serialization, `compile` and `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.functional import direct_losses, preferences
from kerasrlhf.losses import (
    BestOfK,
    BradleyTerry,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PlackettLuce,
    StepCrossEntropy,
)
from kerasrlhf.metrics import PreferenceAccuracy, PreferenceMargin

SCORES = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
LABELS = np.zeros(6, "float32")
LOSSES = {
    "bradley_terry": (BradleyTerry, {}, preferences.bradley_terry),
    "bradley_terry_margin": (
        BradleyTerry,
        {"margin": 0.5},
        lambda scores: preferences.bradley_terry(scores, 0.5),
    ),
    "bradley_terry_smoothed": (
        BradleyTerry,
        {"label_smoothing": 0.2},
        lambda scores: preferences.bradley_terry(scores, label_smoothing=0.2),
    ),
    "best_of_k": (BestOfK, {}, preferences.best_of_k),
    "ipo": (IPOLoss, {"beta": 0.3}, lambda scores: direct_losses.ipo(scores, 0.3)),
    "kto": (
        KTOLoss,
        {"desirable_weight": 1.5, "undesirable_weight": 0.5},
        lambda scores: direct_losses.kto(scores, 1.5, 0.5),
    ),
    "orpo": (ORPOLoss, {"coef": 0.3}, lambda scores: direct_losses.orpo(scores, 0.3)),
    "plackett_luce": (PlackettLuce, {}, preferences.plackett_luce),
    "bradley_terry_centered": (
        BradleyTerry,
        {"center_coef": 0.1},
        lambda scores: preferences.bradley_terry(scores) + 0.1 * scores.sum(axis=1) ** 2,
    ),
    "best_of_k_centered": (
        BestOfK,
        {"center_coef": 0.1},
        lambda scores: preferences.best_of_k(scores) + 0.1 * scores.sum(axis=1) ** 2,
    ),
    "plackett_luce_centered": (
        PlackettLuce,
        {"center_coef": 0.1},
        lambda scores: preferences.plackett_luce(scores) + 0.1 * scores.sum(axis=1) ** 2,
    ),
}
METRICS = {
    "accuracy": (PreferenceAccuracy, preferences.accuracy),
    "margin": (PreferenceMargin, preferences.lead),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_leave_the_reduction_to_keras(name):
    cls, arguments, function = LOSSES[name]
    rows = function(SCORES).numpy()
    assert cls(**arguments).call(None, SCORES).shape == (6,)
    for reduction, expected in [
        ("none", rows),
        ("sum", rows.sum()),
        ("sum_over_batch_size", rows.mean()),
    ]:
        loss = cls(reduction=reduction, **arguments)
        np.testing.assert_allclose(loss(LABELS, SCORES), expected, rtol=1e-5)
    weights = np.array([1, 0, 0, 0, 0, 2], "float32")
    weighted = cls(reduction="sum", **arguments)(LABELS, SCORES, sample_weight=weights)
    np.testing.assert_allclose(weighted, (rows * weights).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_survive_serialization(name):
    cls, arguments, _ = LOSSES[name]
    loss = cls(reduction="sum", name="mine", **arguments)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is cls
    assert again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again(LABELS, SCORES), loss(LABELS, SCORES))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_average_over_batches_under_xla_and_survive_serialization(name):
    cls, function = METRICS[name]
    metric = cls()
    assert metric.name == name

    @tf.function(jit_compile=True)
    def update(scores):
        metric.update_state(tf.zeros_like(scores[:, 0]), scores)

    update(SCORES[:3])
    update(SCORES[3:])
    assert float(metric.result()) == pytest.approx(function(SCORES).numpy().mean(), rel=1e-5)
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(again) is cls and again.name == name
    assert float(again.result()) == 0.0


def test_metrics_weigh_rows():
    metric = PreferenceAccuracy()
    metric.update_state([0, 0], [[1.0, 0.0], [0.0, 1.0]], sample_weight=[3.0, 1.0])
    assert float(metric.result()) == 0.75


def test_fit_learns_to_rank_and_logs_the_metrics():
    features = np.random.default_rng(1).normal(size=(64, 2, 4)).astype("float32")
    order = np.argsort(-features[..., 0], axis=1)  # the hidden score is the first feature
    features = np.take_along_axis(features, order[..., None], axis=1)
    model = keras.Sequential([keras.layers.Dense(1, use_bias=False), keras.layers.Reshape((2,))])
    model.compile(
        keras.optimizers.Adam(0.1),
        BradleyTerry(),
        metrics=[PreferenceAccuracy(), PreferenceMargin()],
    )
    history = model.fit(features, np.zeros(64), batch_size=32, epochs=8, verbose=0).history
    assert history["accuracy"][-1] > 0.9
    assert history["margin"][-1] > 0.0
    assert history["loss"][-1] < np.log(2.0)


def test_labels_are_margins():
    """-log sigmoid(r_c - r_r - m), one m a pair; a number in the loss is every pair's instead."""
    scores, margins = [[2.0, 1.0], [0.5, 1.5], [3.0, 3.0]], np.array([0.0, 2.0, -1.0], "float32")
    expected = [np.log1p(np.exp(-(a - b - m))) for (a, b), m in zip(scores, margins, strict=True)]
    np.testing.assert_allclose(BradleyTerry(reduction="none")(margins, scores), expected, rtol=1e-5)
    fixed = [np.log1p(np.exp(-(a - b - 0.5))) for a, b in scores]
    loss = BradleyTerry(margin=0.5, reduction="none")
    np.testing.assert_allclose(loss(margins, scores), fixed, rtol=1e-5)
    plain = [np.log1p(np.exp(-(a - b))) for a, b in scores]
    for loss, labels in (
        (BradleyTerry(reduction="none"), np.zeros(3, "int32")),
        (BradleyTerry(margin=None, reduction="none"), margins),
    ):
        np.testing.assert_allclose(loss(labels, scores), plain, rtol=1e-5)


def test_step_cross_entropy_is_nats_per_labeled_step():
    scores = np.array([[2.0, -1.0, 50.0], [0.5, 99.0, -3.0]], "float32")
    labels = np.array([[1.0, 0.0, 0.0], [0.25, 0.0, 1.0]], "float32")
    weight = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], "float32")
    right = 1 / (1 + np.exp(-scores.astype("float64")))
    nats = -labels * np.log(right) - (1 - labels) * np.log(1 - np.minimum(right, 1 - 1e-15))
    expected = (nats * weight).sum() / 4
    found = StepCrossEntropy()(labels, scores, sample_weight=weight)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert StepCrossEntropy().call(labels, scores).shape == (2, 3)
    again = keras.losses.deserialize(keras.losses.serialize(StepCrossEntropy()))
    assert float(again(labels, scores, sample_weight=weight)) == float(found)


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match='a number or "labels"'):
        BradleyTerry(margin="column")
    with pytest.raises(ValueError, match="`center_coef` must be at least 0"):
        PlackettLuce(center_coef=-0.1)
    with pytest.raises(ValueError, match=r"`margin` has the shape \(6, 3\)"):
        BradleyTerry()(np.zeros((6, 3)), SCORES)
