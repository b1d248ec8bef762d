"""Details N7 to N9: where the score is read, how its head begins, gain and bias."""

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf import replica
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.windows import ScalarHead
from kerasrlhf.types import Sampler

BATCH = helpers.prompts([6, 4, 1])


@pytest.fixture(scope="module")
def reward():
    made = RewardModel(helpers.lm(texts=True))
    helpers.filled(made.score_head, seed=6)
    return made


@pytest.fixture
def plain(reward):
    """The same model with gain 1 and bias 0."""
    reward.gain.assign(1.0)
    reward.bias.assign(0.0)
    return reward


def test_n7_the_score_is_the_head_s_output_at_the_last_real_token(plain):
    hidden = np.array(
        lm_adapter.hidden_states(plain.backbone, BATCH["token_ids"], BATCH["padding_mask"])
    )
    kernel, bias = np.array(plain.score_head.kernel), float(plain.score_head.bias)
    every_token = hidden @ kernel + bias
    found = np.array(plain(BATCH))
    np.testing.assert_allclose(found, every_token[[0, 1, 2], [5, 3, 0]], atol=1e-5)
    # The last column, where a row without padding would end, holds something else.
    assert (np.abs(found[1:] - every_token[1:, -1]) > 1e-3).all()


def test_n8_the_head_begins_normal_with_deviation_one_by_root_of_width_plus_one():
    for width in (127, 4095):
        kernels = []
        for seed in range(4096 // (width + 1)):
            keras.utils.set_random_seed(seed)
            head = ScalarHead("score")
            head.build((None, width))
            kernels.append(np.array(head.kernel))
            assert float(head.bias) == 0.0
        drawn = np.concatenate(kernels) * np.sqrt(width + 1)  # about 4,096 standard normals
        assert drawn.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * drawn.size))
        assert drawn.mean() == pytest.approx(0.0, abs=4 / np.sqrt(drawn.size))
    fresh = RewardModel(helpers.backbone())
    assert fresh.score_head.stddev == "score" and np.any(fresh.score_head.kernel)
    assert float(fresh.score_head.bias) == 0.0 == float(fresh.bias) == float(fresh.gain) - 1.0


def test_n9_gain_and_bias_by_hand(plain, monkeypatch):
    """Raw scores 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    raw = np.array([1.0, 2.0, 3.0, 6.0])
    monkeypatch.setattr(
        RewardModel, "score", lambda self, *_, **__: raw * float(self.gain) + float(self.bias)
    )
    texts = ["a"] * 4
    gain, bias = plain.normalize(texts, responses=texts)
    assert gain == pytest.approx(1 / np.sqrt(3.5), rel=1e-6)
    assert bias == pytest.approx(-3 / np.sqrt(3.5), rel=1e-6)
    # Once more after training: from the gain and bias of before, to other targets.
    raw[:] = [10.0, 10.0, 14.0, 14.0]
    gain, bias = plain.normalize(texts, mean=5.0, std=3.0, responses=texts)
    assert (gain, bias) == pytest.approx((3 / 2, 5 - 3 / 2 * 12), rel=1e-5)


def test_n9_responses_of_the_initial_policy_score_mean_zero_and_variance_one(plain):
    policy = helpers.actor(texts=True, seed=3)
    prompts = ["bcd", "e", "fgha", "ca"] * 64
    sampler = Sampler(length=4)
    plain.normalize(prompts, policy=policy, sampler=sampler, seed=5)
    responses, ended = policy.generate(
        prompts, sampler, seed=replica.stream(5, "normalize"), return_ended=True
    )
    scores = plain.score(prompts, responses, batch_size=256, ended=ended)
    assert len(set(responses)) > 100 and 0 < ended.sum() < 256
    assert scores.mean() == pytest.approx(0.0, abs=1e-4)
    assert scores.std() == pytest.approx(1.0, abs=1e-4)


def test_n9_gain_and_bias_are_not_trained(plain):
    trained = {id(v) for v in plain.trainable_variables}
    assert trained and not trained & {id(plain.gain), id(plain.bias)}
