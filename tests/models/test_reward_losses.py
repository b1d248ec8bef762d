"""What the losses of compared responses make of a reward model: margins, centring, rankings."""

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf.losses import BradleyTerry, PlackettLuce
from kerasrlhf.models.reward_model import RewardModel

GROUPS = [range(1, 8), range(8, 15), range(15, 22)]  # token ids, from the best to the worst


def rankings(rows, groups, seed=0):
    """Candidates of two prompt tokens and three of a group, one group a candidate."""
    generator = np.random.default_rng(seed)
    ids = np.stack(
        [
            np.concatenate(
                [generator.integers(1, 22, (rows, 2)), generator.choice(group, (rows, 3))], 1
            )
            for group in groups
        ],
        axis=1,
    )
    return {"token_ids": ids.astype("int32"), "padding_mask": np.ones(ids.shape, bool)}


def fitted(loss, x, y, epochs=25, bias=0.0):
    keras.utils.set_random_seed(0)
    model = RewardModel(helpers.lm())
    model.bias.assign(bias)
    model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=False)
    history = model.fit(x, y, epochs=epochs, batch_size=16, verbose=0).history
    return model, history, np.array(model(x))


@pytest.fixture(scope="module")
def pairs():
    return rankings(16, [GROUPS[0], GROUPS[2]])


def test_a_margin_per_pair_is_in_the_loss_of_fit(pairs):
    margins = np.linspace(-1, 3, 16).astype("float32")
    model = RewardModel(helpers.lm())
    model.compile("sgd", jit_compile=False)  # the default loss takes the margins
    scores = np.array(model(pairs), "float64")
    lead = scores[:, 0] - scores[:, 1]
    expected = np.log1p(np.exp(margins - lead)).mean()
    assert model.evaluate(pairs, margins, verbose=0)[0] == pytest.approx(expected, rel=1e-4)
    without = np.log1p(np.exp(-lead)).mean()
    assert abs(expected - without) > 0.05
    for zeros in (np.zeros(16, "int32"), np.zeros(16, "float32")):
        assert model.evaluate(pairs, zeros, verbose=0)[0] == pytest.approx(without, rel=1e-4)


def test_pairs_with_a_margin_are_set_further_apart():
    """Good against middling without a margin, middling against bad with one of 6."""
    close, far = rankings(8, GROUPS[:2]), rankings(8, GROUPS[1:])
    x = {name: np.concatenate([close[name], far[name]]) for name in close}
    leads = {}
    for margin in (0.0, 6.0):
        y = np.repeat([0.0, margin], 8).astype("float32")
        _, history, scores = fitted(BradleyTerry(), x, y)
        leads[margin] = scores[:, 0] - scores[:, 1]
        assert history["accuracy"][-1] == 1.0
    assert leads[6.0][8:].min() > 6.0
    assert leads[6.0][8:].mean() > leads[0.0][8:].mean() + 2.0


@pytest.mark.parametrize("loss", [BradleyTerry, PlackettLuce])
def test_centring_moves_the_scores_to_zero_and_keeps_the_order(pairs, loss):
    """Without it nothing moves the mean: only differences are in the losses."""
    zeros = np.zeros(16)
    _, history, centered = fitted(loss(center_coef=0.1), pairs, zeros, 60, bias=3.0)
    assert history["accuracy"][-1] == 1.0
    assert abs(centered.mean()) < 0.3
    if loss is BradleyTerry:
        _, _, free = fitted(loss(), pairs, zeros, 60, bias=3.0)
        assert free.mean() > 1.5


def test_a_ranking_is_learned_in_its_whole_order():
    x = rankings(16, GROUPS)
    model, history, scores = fitted(PlackettLuce(), x, np.zeros(16), 40)
    assert history["loss"][0] > 1.0 > 0.1 > history["loss"][-1]
    assert (np.argsort(-scores, axis=1) == [0, 1, 2]).all()
    unseen = np.argsort(-np.array(model(rankings(64, GROUPS, seed=1))), axis=1)
    assert (unseen == [0, 1, 2]).all(axis=1).mean() > 0.5  # one in six by chance
