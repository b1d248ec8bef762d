"""What people see and save of a trainer: one file, weights, a summary, a line."""

import helpers
import keras
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf import replica

BATCH = {
    "token_ids": np.array([[0, 3, 4, 5], [0, 6, 7, 0]], "int32"),
    "padding_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool),
}


@keras.saving.register_keras_serializable("tests")
def count_tokens(response_ids):
    return [float(len(row)) for row in response_ids]


def trainer(kind=rlhf.PPO, reward=count_tokens, **options):
    acting = rlhf.ActorCritic(helpers.lm(texts=True))
    options = {"sampler": rlhf.Sampler(length=3), "kl": rlhf.AdaptiveKL(0.2, 6, 50), **options}
    made = kind(acting, reward, update_epochs=1, **options)
    made.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    return made


def assert_same(found, expected):
    pairs = zip(found.variables, expected.variables, strict=True)
    for ours, theirs in (
        *pairs,
        *zip(found.optimizer.variables, expected.optimizer.variables, strict=True),
        *zip(found.reference.frozen_values(), expected.reference.frozen_values(), strict=True),
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
    ours, theirs = (x.collect(BATCH).rollout for x in (found, expected))
    for name in ("token_ids", "logprobs", "ref_logprobs", "values", "scores", "kl_coef"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("has_model", [False, True], ids=["function", "reward_model"])
def test_one_file_holds_the_whole_trainer(has_model, tmp_path):
    reward = count_tokens
    if has_model:
        reward = {"model": (rlhf.RewardModel(helpers.lm(texts=True, seed=3)), 0.5)}
        helpers.filled(reward["model"][0], seed=4)
    made = trainer(
        reward=reward,
        warmup=rlhf.CriticWarmup(1),
        memory=rlhf.RolloutMemory(2),
        shaping=rlhf.RewardShaping(scale=2.0),
        prompt_prediction=rlhf.PromptPrediction(reward=0.5),
    )
    made.iterate(BATCH)
    made.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    assert type(loaded) is rlhf.PPO
    assert repr(loaded) == repr(made)
    assert int(loaded.iteration.numpy()) == 1
    assert_same(loaded, made)
    assert loaded.generate("ab") == made.generate("ab")
    made.iterate(BATCH)
    loaded.memory.add(0, made.memory[0])  # a file does not hold the rollouts
    loaded.iterate(BATCH)
    assert_same(loaded, made)


def test_every_algorithm_loads_from_its_configuration():
    options = {"grpo": {"variant": "dr_grpo"}, "online_dpo": {"labels": "hard"}}
    for name in ("RLOO", "GRPO", "REINFORCEPlusPlus", "OnlineDPO"):
        own = {"GRPO": options["grpo"], "OnlineDPO": options["online_dpo"]}.get(name, {})
        made = trainer(getattr(rlhf, name), sampler=rlhf.Sampler(3, temperature=0.7), **own)
        again = type(made).from_config(made.get_config())
        assert repr(again) == repr(made)
        assert again.loss_reduction == made.loss_reduction
        assert again.kl_place == made.kl_place
        assert again.kl_estimator == made.kl_estimator


def test_weights_hold_what_is_trained_alone(tmp_path):
    reward = rlhf.RewardModel(helpers.lm(texts=True, seed=3))
    made = trainer(reward=reward)
    made.iterate(BATCH)
    made.save_weights(tmp_path / "w.weights.h5")
    made.save(tmp_path / "whole.keras")
    small, whole = ((tmp_path / n).stat().st_size for n in ("w.weights.h5", "whole.keras"))
    assert whole > 1.5 * small
    assert "reward" not in dir(made)
    again = trainer(reward=reward)
    again.load_weights(tmp_path / "w.weights.h5")
    for ours, theirs in zip(again.variables, made.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def adapted(made):
    made.actor.causal_lm.backbone.enable_lora(2)


def test_what_no_file_can_hold_is_refused_before_training(tmp_path):
    made = trainer()
    adapted(made)
    with pytest.raises(ValueError, match=r"cannot be saved as one Keras model.*LoRA adapters"):
        made.save(tmp_path / "x.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "x.keras")
    with pytest.raises(ValueError, match=r"`ModelCheckpoint\(.*LoRA adapters"):
        made.fit(BATCH, callbacks=[checkpoint], verbose=0)
    lm = helpers.lm(texts=True)
    texts = rlhf.data.demonstrations(["ab", "ba"], lm.preprocessor, batch_size=2)
    made = trainer(texts=rlhf.LanguageModeling(texts, coef=0.1))
    with pytest.raises(ValueError, match="The reason: `texts` has a dataset"):
        made.save(tmp_path / "x.keras")

    class Callable:
        def __call__(self, responses):
            return [0.0 for _ in responses]

    with pytest.raises(ValueError, match="The reason: of its reward"):
        trainer(reward=Callable()).save(tmp_path / "x.keras")
    members = [rlhf.RewardModel(helpers.lm(texts=True, seed=seed)) for seed in (1, 2)]
    for reward in (
        rlhf.RewardEnsemble(members),
        rlhf.ProcessRewardModel(helpers.lm(texts=True), separator="a"),
    ):
        with pytest.raises(ValueError, match="The reason: of its reward"):
            trainer(reward=reward).save(tmp_path / "x.keras")
    assert not [*tmp_path.iterdir()]


def test_summary_counts_each_network():
    reward = rlhf.RewardModel(helpers.lm(texts=True, seed=3))
    made = trainer(reward=[reward, (count_tokens, 0.5)])
    lines = []
    made.summary(print_fn=lines.append)
    rows = {line.split("  ")[0]: line.split() for line in lines[0].splitlines()}
    size = sum(int(np.prod(v.shape)) for v in made.actor.causal_lm.variables)
    head = sum(int(np.prod(v.shape)) for v in made.actor.value_head.variables)
    scored = sum(int(np.prod(v.shape)) for v in reward.variables)
    assert rows["actor"][-5:-2] == [f"{size:,}", f"{size:,}", "0"]
    assert rows["reference"][-5:-2] == [f"{size:,}", "0", f"{size:,}"]
    assert rows["total"][-5] == f"{2 * size + head + scored:,}"
    assert rows["total"][-4] == f"{size + head + sum_trained(reward):,}"
    assert any(name.startswith("reward ") for name in rows)


def sum_trained(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_a_trainer_shows_the_settings_that_are_not_defaults():
    made = trainer(reward=[count_tokens, (count_tokens, 0.5)], gamma=0.9)
    assert repr(made) == (
        "PPO(reward=['count_tokens', ('count_tokens_2', 0.5)], sampler=Sampler(length=3), "
        "kl=AdaptiveKL(coef=0.2, target=6.0, horizon=50.0), gamma=0.9, update_epochs=1)"
    )


def test_generate_follows_the_schedule_of_the_temperature():
    made = trainer(sampler=rlhf.Sampler(length=3, temperature=lambda iteration: 2.0 - iteration))
    plain = made.actor.generate("ab", rlhf.Sampler(length=3, temperature=2.0), jit_compile=False)
    assert made.generate("ab", jit_compile=False) == plain


def test_reset_starts_a_run_of_another_seed():
    made = trainer(memory=rlhf.RolloutMemory(2), shaping=rlhf.RewardShaping(running_scale=True))
    first = made.iterate(BATCH)
    made.reset(seed=0)
    assert int(made.iteration.numpy()) == 0
    assert len(made.memory) == 0
    assert made.last is None
    assert not made.score_moments.numpy().any()
    made.reset(seed=7)
    uniforms = replica.uniforms(7, iteration=0, rows=2, length=3)
    tokens = made.collector(BATCH, uniforms, temperature=1.0).rollout.token_ids
    made.iterate(BATCH)
    np.testing.assert_array_equal(made.last.rollout.token_ids, tokens)
    assert first["objective/length"] <= 3


def test_evaluate_and_the_bar_have_the_score_first(capsys):
    made = trainer()
    data = rlhf.data.prompts(["ab", "ba"], made.actor.causal_lm.preprocessor, 2, shuffle=False)
    values = made.evaluate(data, verbose=0)
    named = made.evaluate(data, verbose=2, return_dict=True)
    assert [*named] == ["score", "kl", "length"]
    assert values == [named[name] for name in ("score", "kl", "length")]
    made.fit(data, epochs=1, verbose=2)
    shown = capsys.readouterr().out.replace("\n", " ")
    assert shown.index("- score:") < shown.index("- kl:") < shown.index("- length:")
    last = shown.rindex("- score:")
    assert last < shown.rindex("- kl_coef:") < shown.rindex("- clipfrac:") < shown.rindex("- loss:")
