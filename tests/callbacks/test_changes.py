"""What a resumed run is set to is compared with what the saved one was set to."""

import keras
import numpy as np
import pytest
from ppo_runs import TEXTS, Run, letters

import kerasrlhf as rlhf
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.trainers import settings


def attributes(**values):
    def change(run, patch):
        for name, value in values.items():
            patch.setattr(run.trainer, name, value)

    return change


def kl(other):
    """The trainer's own controller in the place of `other`: its variable is the trainer's."""

    def change(run, patch):
        ours = run.trainer.kl
        patch.setattr(ours, "__class__", type(other))
        patch.setattr(ours, "get_config", other.get_config)
        ours.coef.assign(other.coef)

    return change


def prompts(texts, batch_size):
    def change(run, patch):
        preprocessor = run.trainer.actor.causal_lm.preprocessor
        run.prompts = rlhf.data.prompts(texts, preprocessor, batch_size=batch_size, seed=1)

    return change


def rate(value):
    return lambda run, patch: run.trainer.optimizer.learning_rate.assign(value)


CHANGES = {
    "cliprange": (attributes(cliprange=0.3), r"cliprange was 0\.2 and is 0\.3"),
    "two": (attributes(gamma=0.9, lam=0.9), r"gamma was 1\.0 and is 0\.9; lam was 0\.95"),
    "length": (attributes(sampler=rlhf.Sampler(length=3)), r"sampler\.length was 4 and is 3"),
    "kl": (kl(rlhf.FixedKL(0.2)), r"kl\.class was 'AdaptiveKL' and is 'FixedKL'"),
    "coef": (kl(rlhf.AdaptiveKL(0.3, 0.05, 20)), r"kl\.coef was 0\.2 and is 0\.3"),
    "target": (kl(rlhf.AdaptiveKL(0.2, 0.06, 20)), r"kl\.target was 0\.05 and is 0\.06"),
    "reward": (
        lambda run, patch: patch.setattr(rlhf.PPO, "reward", property(lambda trainer: letters)),
        r"reward\.0\.is was 'Run.* and is 'let",
    ),
    "shaping": (
        attributes(shaping=rlhf.RewardShaping(clip=2.0)),
        r"shaping\.clip was None and is 2\.0",
    ),
    "rate": (rate(0.02), r"optimizer\.learning_rate was 0\.0099\S* and is 0\.0199"),
    "reference": (
        lambda run, patch: patch.setattr(
            run.trainer.reference, "causal_lm", run.trainer.actor.causal_lm
        ),
        "reference was",
    ),
    "batch size": (prompts(TEXTS, 8), "batch_size was 4 and is 8"),
    "prompts": (prompts([*TEXTS[:4], "qu", "rs", "tu", "v"], 4), "the prompts of iteration 1"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_named_and_refused_or_warned_of(case, run, tmp_path, monkeypatch):
    change, message = CHANGES[case]
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    with monkeypatch.context() as patch:
        if case != "reference":
            run.again()
        change(run, patch)
        with pytest.raises(ValueError, match=rf"{message}.*on_change=\"warn\""):
            run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
        if case == "batch size":
            return  # One batch of eight is no whole epoch of two iterations.
        change(run, patch)
        with pytest.warns(UserWarning, match=rf"{message}.*goes on with what is new"):
            run.fit(1, [rlhf.callbacks.Resume(tmp_path, on_change="warn")])
        if case == "rate":
            # Taken, not the one of the state; and what the run is set to from here on.
            assert float(run.trainer.optimizer.learning_rate.numpy()) == pytest.approx(0.02)
        if case in ("kl", "coef"):
            start = 0.2 if case == "kl" else 0.3
            assert float(run.trainer.kl.coef.numpy()) == pytest.approx(start)
        if case == "target":
            assert float(run.trainer.kl.coef.numpy()) != pytest.approx(0.2)  # that of the state
    if case == "rate":
        rate(0.01)(run, None)


def test_other_prompts_in_the_same_process_are_not_taken_for_done(run, tmp_path):
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    run.prompts = run.prompts.map(lambda batch: {**batch, "token_ids": batch["token_ids"] // 2})
    with pytest.raises(ValueError, match="the prompts of iteration 1 are others"):
        run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    assert not run.trainer.replay.active


def test_a_dataset_that_was_read_before_begins_where_the_run_does(run, tmp_path):
    expected = run.fit(3)
    run.again().fit(2, [rlhf.callbacks.Resume(tmp_path)])
    variables, history = run.fit(3, [rlhf.callbacks.Resume(tmp_path)])
    assert history == expected[1]
    for ours, theirs in zip(variables, expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_rate_that_another_callback_lowered_is_no_change(run, tmp_path):
    lower = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    run.fit(1, [lower, rlhf.callbacks.Resume(tmp_path)])
    run.fit(1, [rlhf.callbacks.Resume(tmp_path)])
    run.again().fit(1, [rlhf.callbacks.Resume(tmp_path)])
    assert float(run.trainer.optimizer.learning_rate.numpy()) == pytest.approx(0.005)


@pytest.mark.parametrize("trained", [False, True])
def test_a_reference_that_shares_the_actors_weights_is_compared_by_its_own(trained, tmp_path):
    """By the copies of trained adapters; the weights that it shares are saved and loaded."""
    run = Run(lora=True, trained=trained)
    before = run.trainer.settings()
    run.fit(1)
    assert run.trainer.settings() == before
    base = run.trainer.actor.causal_lm.backbone.token_embedding.embeddings
    base.assign_add(keras.ops.ones_like(base))
    assert run.trainer.settings() == before
    reference = run.trainer.reference
    reference._values = [(variable, value + 1.0) for variable, value in reference._values]
    changed = settings.changes(before, run.trainer.settings())
    assert set(changed) == {"reference"}


def test_options_of_objects_have_names_of_their_own():
    """`reuse` is compared, the folder of a memory is not."""

    def found(coef, estimator, reuse, directory, iterations):
        run = Run(
            kl=rlhf.FixedKL(0.1, place="loss", estimator=estimator),
            memory=rlhf.RolloutMemory(2, directory, reuse),
            prompt_prediction=rlhf.PromptPrediction(coef),
            warmup=rlhf.CriticWarmup(iterations),
        )
        return run.trainer.settings()

    changed = settings.changes(found(0.1, "k2", 1, None, 1), found(0.2, "k3", 2, "there", 3))
    assert changed == {
        "kl.estimator": ("k2", "k3"),
        "memory.reuse": (1, 2),
        "prompt_prediction.coef": (0.1, 0.2),
        "warmup.iterations": (1, 3),
    }


def weighing(weight, scale=1.0):
    def reward(responses):
        return [weight * scale * len(r) for r in responses]

    return reward


def test_rewards_differ_in_code_and_in_what_they_enclose():
    def longer(responses):
        return [len(r) for r in responses]

    def shorter(responses):
        return [-len(r) for r in responses]

    described = [settings.describe(f) for f in (longer, shorter, weighing(1.0), weighing(2.0))]
    assert len(set(described)) == 4
    assert settings.describe(weighing(1.0)) == described[2]


def test_a_reward_model_is_compared_by_its_weights():
    import helpers

    models = [RewardModel(helpers.lm(seed=seed)) for seed in (0, 0, 1)]
    first, same, other = (settings._describe_reward(model) for model in models)
    assert first.startswith("RewardModel of weights ")
    same_head = all(
        np.array_equal(a, b) for a, b in zip(models[0].weights, models[1].weights, strict=True)
    )
    assert (first == same) == same_head and first != other


def test_on_change_is_checked(tmp_path):
    with pytest.raises(ValueError, match='"refuse" or "warn"'):
        rlhf.callbacks.Resume(tmp_path, on_change="ignore")
