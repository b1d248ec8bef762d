"""Numbers that are not finite change nothing, are counted, and end a run that cannot go on."""

import math

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf import replica
from kerasrlhf.functional import kl as kl_estimators
from kerasrlhf.functional import logprobs as logprobs_lib
from kerasrlhf.functional import returns
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.trainers.soundness import SkippedUpdates

BATCH = helpers.prompts([3, 2, 4, 1])


def trainer(strategy=None, **options):
    with (strategy or tf.distribute.get_strategy()).scope():
        ppo = helpers.ppo(helpers.actor(), update_epochs=2, **options)
        ppo.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    return ppo


@pytest.fixture(scope="module")
def ppo():
    return trainer()


@pytest.fixture(autouse=True)
def sound(request):
    """Tests that share the trainer leave its weights as they were."""
    shared = request.getfixturevalue("ppo") if "ppo" in request.fixturenames else None
    before = state(shared) if shared is not None else []
    yield
    for (variable, _), (_, value) in zip(variables(shared), before, strict=True):
        variable.assign(value)


def variables(ppo):
    if ppo is None:
        return []
    return [(v, v.numpy()) for v in [*ppo.variables, *ppo.optimizer.variables]]


def state(ppo):
    return [(v.path, value) for v, value in variables(ppo)]


def spoil(ppo):
    """Makes every value NaN, and with it every loss; the policy stays as it is."""
    ppo.actor.value_head.kernel.assign(np.full(ppo.actor.value_head.kernel.shape, np.nan))


def check_skipped(ppo):
    kernel = np.array(ppo.actor.value_head.kernel)
    statistics = ppo.iterate(BATCH)
    assert statistics["policy/skipped_updates"] == 0 and statistics["policy/updates"] == 2
    spoil(ppo)
    before = state(ppo)
    with pytest.raises(FloatingPointError, match="Weights of the actor are not finite"):
        ppo.iterate(BATCH)
    for (name, old), (_, new) in zip(before, state(ppo), strict=True):
        np.testing.assert_array_equal(old, new, err_msg=name)
    assert ppo.optimizer.iterations == 2
    ppo.actor.value_head.kernel.assign(kernel)
    assert ppo.iterate(BATCH)["policy/updates"] == 2, "training goes on"


def test_an_update_that_is_not_finite_changes_nothing(ppo):
    check_skipped(ppo)


def test_nor_does_it_on_two_replicas():
    check_skipped(trainer(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])))


def scaled_rewards(ppo, monkeypatch, factors):
    """Multiplies the loss of each update by the next factor."""
    train_step, factors = ppo.train_step, iter(factors)

    def scaled(batch):
        advantages = batch.minibatch.advantages * next(factors)
        return train_step(batch._replace(minibatch=batch.minibatch._replace(advantages=advantages)))

    monkeypatch.setattr(ppo, "train_step", scaled)


def test_skipped_updates_are_counted_and_shown_in_the_loss(ppo, monkeypatch):
    scaled_rewards(ppo, monkeypatch, [math.nan, 1.0])
    statistics = ppo.iterate(BATCH)
    assert statistics["policy/skipped_updates"] == statistics["policy/updates"] == 1
    assert math.isnan(statistics["loss/total"])
    finite = {name: x for name, x in statistics.items() if name != "loss/total"}
    assert all(map(math.isfinite, finite.values())), finite


def test_so_many_in_a_row_end_the_run(ppo, monkeypatch):
    before = state(ppo)
    scaled_rewards(ppo, monkeypatch, [math.nan, 1.0, math.nan, math.nan, math.inf])
    ppo.iterate(BATCH)
    assert math.isnan(ppo.iterate(BATCH)["loss/total"])
    coef = ppo.kl.coef.numpy()
    with pytest.raises(FloatingPointError, match=r"3 updates in a row .* `loss/total` is"):
        ppo.iterate(BATCH)
    assert ppo.iteration == before[[n for n, _ in before].index(ppo.iteration.path)][1] + 2
    assert ppo.kl.coef.numpy() == coef


def test_terminate_on_nan_ends_fit_at_the_first_one(ppo, monkeypatch):
    scaled_rewards(ppo, monkeypatch, [1.0, 1.0, math.nan, *[1.0] * 7])
    data = tf.data.Dataset.from_tensor_slices(BATCH).batch(4).repeat(5)
    done = []
    callbacks = [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: done.append(batch)),
    ]
    ppo.fit(data, verbose=0, callbacks=callbacks)
    assert len(done) == 2


def test_a_policy_that_is_not_finite_ends_the_run_before_its_state_is_saved(ppo, tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                kernel = ppo.actor.causal_lm.backbone.token_embedding.embeddings
                kernel.assign(np.full(kernel.shape, np.nan))

    data = tf.data.Dataset.from_tensor_slices(BATCH).batch(4).repeat(3)
    start, coef = int(ppo.iteration.numpy()), ppo.kl.coef.numpy()
    resume = rlhf.callbacks.Resume(tmp_path)
    with pytest.raises(FloatingPointError, match=f"`objective/kl` .* in iteration {start + 1}"):
        ppo.fit(data, verbose=0, callbacks=[Spoil(), resume])
    assert int(ppo.iteration.numpy()) == start + 1
    assert ppo.kl.coef.numpy() == coef
    weights = [path.name for path in tmp_path.glob("resume-*.npz")]
    assert weights == [f"resume-{start + 1:08d}.npz"]


def test_an_adaptive_coefficient_keeps_no_nan():
    kl = rlhf.AdaptiveKL(0.2, target=6.0, horizon=1000)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="`kl` must be a finite number"):
            kl.update(value, episodes=4)
    assert float(kl.coef) == pytest.approx(0.2)


def test_the_error_names_the_first_bad_statistic():
    skipped = SkippedUpdates(limit=2)
    logs = {"loss/total": 1.0, "loss/value": math.inf, "policy/ratio": math.nan}
    skipped.after({**logs, "policy/skipped": 1.0}, 4)
    with pytest.raises(FloatingPointError, match=r"in iteration 5, because `loss/value` is inf"):
        skipped.after({**logs, "policy/skipped": 1.0}, 5)
    for _ in range(2):
        skipped.after({"loss/total": 1.0, "policy/skipped": 1.0}, 6)
        skipped.after({"loss/total": 1.0, "policy/skipped": 0.0}, 6)
    assert skipped.in_a_row == 0


def test_without_a_coefficient_k3_is_nothing_where_it_overflows():
    rows = {"logprobs": [[-200.0, -1.0]], "ref_logprobs": [[-1.0, -2.0]], "mask": [[True, True]]}
    rewards = returns.token_rewards([2.0], kl_coef=0.0, estimator=kl_estimators.k3, **rows)
    assert rewards.numpy().tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_k3_in_the_loss_is_finite_for_a_peaked_policy(coef):
    """After the stop token its padding is so unlikely that k3 overflows there."""
    actor = helpers.actor(stddev=6.0)
    grpo = rlhf.GRPO(
        actor,
        helpers.token_reward,
        sampler=rlhf.Sampler(length=8, stop_token_ids=tuple(range(1, 12))),
        kl=rlhf.FixedKL(coef),
        group_size=2,
    )
    grpo.compile(keras.optimizers.SGD(1e-6), run_eagerly=True)
    statistics = grpo.iterate(BATCH)
    rollout = grpo.last.rollout
    ids, mask = (np.array(x) for x in (rollout.token_ids, rollout.response_mask))
    logits = actor({"token_ids": ids, "padding_mask": rollout.padding_mask})["logits"]
    logprobs = logprobs_lib.token_logprobs(logits[:, :-1], ids[:, 1:]).numpy()
    assert logprobs[~mask[:, 1:]].min() < -100
    assert statistics["policy/skipped_updates"] == 0


def scores_of(kind):
    if kind == "function":
        return lambda responses: [1e16] * len(responses), "reward `lambda`"
    reward = RewardModel(helpers.lm())
    reward.gain.assign(math.nan if kind == "model" else 1e25)
    if kind == "weight":
        reward.gain.assign(1.0)
        return {"one": (reward, 1e30)}, "reward, after weights and `RewardShaping`,"
    return {"one": reward}, "reward `one`"


@pytest.mark.parametrize("kind", ["function", "model", "large", "weight"])
def test_scores_that_would_break_weights_stop_the_run(kind):
    reward, name = scores_of(kind)
    actor = helpers.actor(texts=kind == "function")
    ppo = helpers.ppo(actor, reward, update_epochs=1)
    ppo.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    before = state(ppo)
    with pytest.raises(ValueError, match=f"The {name}.*cannot be trained on in 4 of 4 rows"):
        ppo.iterate(BATCH)
    for (_, old), (_, new) in zip(before, state(ppo), strict=True):
        np.testing.assert_array_equal(old, new)


def test_scores_of_texts_are_checked_too():
    reward = RewardModel(helpers.lm(texts=True))
    reward.gain.assign(math.nan)
    with pytest.raises(ValueError, match=r"The RewardModel gave .*row 0: nan"):
        reward.score(["ab"], ["c"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gradient_accumulation_steps": 2}, "accumulates gradients over 2 steps"),
        ({"loss_scale_factor": 8.0}, "`loss_scale_factor` of 8.0"),
    ],
)
def test_optimizers_whose_steps_are_others_are_refused(options, match):
    ppo = helpers.ppo(helpers.actor())
    with pytest.raises(ValueError, match=match):
        ppo.compile(keras.optimizers.Adam(1e-3, **options))


def test_restored_weights_do_not_bring_back_the_iteration(ppo):
    before = ppo.get_weights()
    ppo.iterate(BATCH)
    count = int(ppo.iteration.numpy())
    moved = [not np.array_equal(a, b) for a, b in zip(before, ppo.get_weights(), strict=True)]
    assert any(moved)
    ppo.set_weights(before)
    assert int(ppo.iteration.numpy()) == count
    for old, new in zip(before, ppo.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_each_use_of_a_seed_samples_with_numbers_of_its_own(ppo):
    batch = {name: np.tile(x[:1], (4, 1)) for name, x in BATCH.items()}
    ppo.iteration.assign(0)
    generated = ppo.actor.generate(batch, ppo.sampler, seed=ppo.seed, jit_compile=False)
    ppo.iterate(batch)
    trained = np.array(ppo.last.rollout.token_ids)
    assert not np.array_equal(trained, np.array(generated.token_ids))
    seeds = [replica.stream(0, use) for use in ("generate", "best_of_n", "normalize")]
    assert len({0, *seeds}) == 4
