"""How strongly a policy is held (N21)."""

import keras
import pytest

from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL


def test_a_fixed_coefficient_stays():
    kl = FixedKL(0.05)
    kl.update(1e6, 512)
    assert float(kl.coef) == pytest.approx(0.05)
    assert not kl.trainable_variables and float(FixedKL(0).coef) == 0.0


@pytest.mark.parametrize(
    ("kl", "episodes", "factor"),
    [
        (6.0, 512, 1.0),
        (6.6, 512, 1 + 0.1 * 512 / 10_000),
        (5.4, 512, 1 - 0.1 * 512 / 10_000),
        (600.0, 512, 1.01024),
        (-3.0, 512, 0.98976),
        (6.6, 64, 1 + 0.1 * 64 / 10_000),
    ],
)
def test_the_coefficient_follows_the_published_formula(kl, episodes, factor):
    control = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    control.update(kl, episodes)
    assert float(control.coef) == pytest.approx(0.15 * factor, rel=1e-6)
    control.update(kl, episodes)
    assert float(control.coef) == pytest.approx(0.15 * factor**2, rel=1e-6)


def test_the_coefficient_never_turns_negative():
    control = AdaptiveKL(0.15, target=6.0, horizon=10)
    for _ in range(5):
        control.update(0.0, episodes=512)
    assert 0 < float(control.coef) < 1e-5


def test_a_checkpoint_remembers_the_coefficient(tmp_path):
    def model(control):
        made = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        made.control = control
        return made

    control = AdaptiveKL(0.15, target=6.0, horizon=100)
    control.update(60.0, 50)
    model(control).save_weights(tmp_path / "a.weights.h5")
    fresh = AdaptiveKL(0.15, target=6.0, horizon=100)
    model(fresh).load_weights(tmp_path / "a.weights.h5")
    assert float(fresh.coef) == float(control.coef) == pytest.approx(0.165)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FixedKL(-0.1), "coef"),
        (lambda: FixedKL("0.1"), "coef"),
        (lambda: AdaptiveKL(0.0, 6.0, 100), "coef"),
        (lambda: AdaptiveKL(0.1, 0.0, 100), "target"),
        (lambda: AdaptiveKL(0.1, 6.0, 0), "horizon"),
        (lambda: AdaptiveKL(0.1, float("nan"), 10), "target"),
        (lambda: FixedKL(0.1, place="advantage"), "place"),
        (lambda: FixedKL(0.1, estimator="k4"), "estimator"),
        (lambda: AdaptiveKL(0.1, 6.0, 100, place="advantage"), "place"),
    ],
)
def test_values_outside_their_range_are_refused(make, named):
    with pytest.raises(ValueError, match=f"`{named}` must be"):
        make()
