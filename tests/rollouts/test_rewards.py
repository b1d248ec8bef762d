"""What a name on a command line becomes."""

import math

import helpers
import numpy as np
import pytest

import kerasrlhf as rlhf

KINDS = {
    "one": lambda: rlhf.RewardModel.from_causal_lm(helpers.lm(texts=True)),
    "steps": lambda: rlhf.ProcessRewardModel.from_causal_lm(helpers.lm(texts=True), separator="a"),
    "several": lambda: rlhf.RewardEnsemble([KINDS["one"](), KINDS["one"]()]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_reward_model_is_loaded_as_its_own_kind(kind, tmp_path):
    saved = KINDS[kind]()
    saved.save_to_preset(tmp_path / "model")
    loaded = rlhf.load_reward(str(tmp_path / "model"))
    assert type(loaded) is type(saved)
    for ours, theirs in zip(loaded.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_function_is_found():
    assert rlhf.load_reward("math:sqrt") is math.sqrt


@pytest.mark.parametrize("name", ["no/such/folder", "{folder}"])
def test_what_is_neither_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"no reward model in .*reward_ensemble\.json"):
        rlhf.load_reward(name.format(folder=tmp_path))
