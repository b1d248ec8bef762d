"""Several reward models as one: how their scores are combined, scaled and kept."""

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf.losses import BradleyTerry
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.types import Sampler

PROMPTS = ["abc", "ca", "b", "aab"]
RESPONSES = ["de", "fgh", "a", "b"]
BATCH = helpers.prompts([6, 3, 1])


def member(seed, **options):
    model = RewardModel(helpers.lm(texts=True, seed=seed, **options))
    helpers.filled(model.score_head, seed=seed + 10)
    return model


@pytest.fixture(scope="module")
def members():
    return [member(seed) for seed in range(3)]


def by_hand(scores, aggregate, penalty):
    """Rows of the members' scores, one after the other."""
    results = []
    for row in np.stack(scores, axis=-1).reshape(-1, len(scores)).tolist():
        mean = sum(row) / len(row)
        variance = sum((x - mean) ** 2 for x in row) / len(row)
        results.append(
            {
                "mean": mean - penalty * variance**0.5,
                "uwo": mean - penalty * variance,
                "min": min(row),
            }[aggregate]
        )
    return np.reshape(results, np.shape(scores[0]))


@pytest.mark.parametrize(
    ("aggregate", "penalty"),
    [("mean", None), ("mean", 0.0), ("mean", 0.7), ("uwo", 0.7), ("min", None)],
)
def test_scores_are_combined_as_published(members, aggregate, penalty):
    """Coste et al. 2023: mean, worst case, mean less a multiple of the variance."""
    ensemble = RewardEnsemble(members, penalty, aggregate)
    alone = [np.array(m(BATCH), "float64") for m in members]
    expected = by_hand(alone, aggregate, 1.0 if penalty is None else penalty)
    np.testing.assert_allclose(ensemble(BATCH), expected, rtol=1e-4, atol=1e-5)
    assert np.std(alone, axis=0).min() > 0.01
    scored = ensemble.read(BATCH["token_ids"], BATCH["padding_mask"], np.ones(3, "int32"))
    np.testing.assert_allclose(scored.scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scored.spread, np.std(alone, axis=0), rtol=1e-4)


def test_texts_and_candidates_are_scored_as_by_the_members(members):
    ensemble = RewardEnsemble(members, penalty=0.5)
    alone = [m.score(PROMPTS, RESPONSES) for m in members]
    np.testing.assert_allclose(
        ensemble.score(PROMPTS, RESPONSES), by_hand(alone, "mean", 0.5), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        ensemble.std(PROMPTS, RESPONSES), np.std(alone, axis=0), rtol=1e-4, atol=1e-5
    )
    pairs = {name: np.stack([x, x[::-1]], axis=1) for name, x in BATCH.items()}
    single = np.array(ensemble(BATCH))
    np.testing.assert_allclose(ensemble(pairs), np.stack([single, single[::-1]], 1), atol=1e-5)


def test_normalizing_sets_members_and_ensemble(members):
    """N9 for each member, so that a difference of scale is no disagreement, and for the whole."""
    members[1].gain.assign(50.0)
    ensemble = RewardEnsemble(members, penalty=0.5)
    constants = ensemble.normalize(PROMPTS, 2.0, 0.5, responses=RESPONSES)
    for scores in [m.score(PROMPTS, RESPONSES) for m in [*members, ensemble]]:
        assert scores.mean() == pytest.approx(2.0, abs=1e-3)
        assert scores.std() == pytest.approx(0.5, rel=1e-3)
    assert constants == (float(ensemble.gain), float(ensemble.bias)) != (1.0, 0.0)


def test_responses_are_sampled_from_what_the_members_were_made_of():
    made = [RewardModel.from_causal_lm(helpers.lm(texts=True)) for _ in range(2)]
    for model, seed in zip(made, (1, 2), strict=True):
        helpers.filled(model.score_head, seed=seed)
    ensemble = RewardEnsemble(made)
    ensemble.normalize(PROMPTS, sampler=Sampler(length=3), seed=1)
    assert float(ensemble.gain) != 1.0 != float(made[0].gain)


def test_a_preset_gives_back_the_same_ensemble(members, tmp_path):
    ensemble = RewardEnsemble(members, 0.25, "uwo")
    ensemble.gain.assign(3.0)
    ensemble.bias.assign(-1.0)
    ensemble.save_to_preset(tmp_path / "preset")
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    again = RewardEnsemble.from_preset(tmp_path / "preset")
    assert (again.aggregate, again.penalty, len(again.members)) == ("uwo", 0.25, 3)
    np.testing.assert_array_equal(again(BATCH), ensemble(BATCH))
    RewardEnsemble(members[:2], aggregate="min").save_to_preset(tmp_path / "preset")
    worst = RewardEnsemble.from_preset(tmp_path / "preset")
    assert worst.aggregate == "min" and len(worst.members) == 2
    with pytest.raises(ValueError, match=r"no reward_ensemble\.json"):
        RewardEnsemble.from_preset(tmp_path)


def test_members_are_fitted_and_the_ensemble_is_measured():
    """Members with adapters, each fitted by itself to separable pairs; they agree where told to."""
    generator = np.random.default_rng(0)
    ids = np.stack([generator.integers(1, 12, (8, 4)), generator.integers(12, 23, (8, 4))], axis=1)
    x = {"token_ids": ids.astype("int32"), "padding_mask": np.ones(ids.shape, bool)}
    members = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        model = RewardModel(helpers.lm(texts=True, seed=seed))
        model.backbone.enable_lora(2)
        model.compile(keras.optimizers.Adam(0.05), jit_compile=False)
        model.fit(x, np.zeros(8), epochs=30, verbose=0)
        members.append(model)
    ensemble = RewardEnsemble(members)
    ensemble.compile(jit_compile=False)
    loss, accuracy = ensemble.evaluate(x, np.zeros(8), verbose=0)
    assert accuracy == 1.0 and loss < 0.3
    scores = by_hand([np.array(m(x)) for m in members], "mean", 1.0)
    assert loss == pytest.approx(float(BradleyTerry()(np.zeros(8), scores)), rel=1e-4)
    with pytest.raises(ValueError, match="Fit each member by itself"):
        ensemble.fit(x, np.zeros(8), verbose=0)


def test_process_members_are_combined_step_by_step():
    made = [
        ProcessRewardModel(helpers.lm(texts=True, seed=seed), separator="t") for seed in range(2)
    ]
    ensemble = RewardEnsemble(made, penalty=0.5)
    assert ensemble.is_per_token
    ids = np.array([[3, 4, 20, 6, 0, 9]], "int32")
    arguments = ids, np.arange(6)[None] < 5, np.array([1], "int32")
    alone = [np.array(m.read(*arguments).scores) for m in made]
    found = np.array(ensemble.read(*arguments).scores)
    np.testing.assert_allclose(found, by_hand(alone, "mean", 0.5), atol=1e-5)
    assert np.flatnonzero(found[0]).tolist() == [2, 4]
    with pytest.raises(ValueError, match="zero of their own"):
        ensemble.normalize(PROMPTS, responses=RESPONSES)
    other = ProcessRewardModel(helpers.lm(texts=True), separator="u")
    with pytest.raises(ValueError, match="same separator"):
        RewardEnsemble([made[0], other])


def test_members_that_do_not_fit_together_are_named(members):
    process = ProcessRewardModel(helpers.lm(texts=True), separator="t")
    bare = RewardModel(helpers.backbone())
    for wrong, message in (
        (members[:1], "two or more"),
        ([], "two or more"),
        ([members[0], process], "of one kind"),
        ([members[0], lambda prompts, responses: 0], "of one kind"),
        ([members[0], member(0, vocab=20)], "one tokenizer"),
        ([members[0], bare], "one tokenizer"),
        ([bare, RewardModel(helpers.backbone(vocab=20))], "one vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            RewardEnsemble(wrong)
    RewardEnsemble([bare, RewardModel(helpers.backbone(seed=1))])


def test_options_out_of_range_are_named(members):
    with pytest.raises(ValueError, match="`penalty` must be at least 0"):
        RewardEnsemble(members, penalty=-1.0)
    with pytest.raises(ValueError, match="worst case has no penalty"):
        RewardEnsemble(members, penalty=1.0, aggregate="min")
    with pytest.raises(ValueError, match="`aggregate` must be"):
        RewardEnsemble(members, aggregate="median")
