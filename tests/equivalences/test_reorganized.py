"""Whatever only reorganizes the computation leaves a trajectory as it is."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
import trajectories
from trajectories import assert_same, run, trainer

import kerasrlhf as rlhf
from kerasrlhf import replica
from kerasrlhf.trainers.ppo import PPO


@pytest.mark.slow
def test_xla_is_eager(plain, compiled, monkeypatch):
    """Also with a minibatch in two parts, and with every line run by Python."""
    eagerly = []
    original = PPO.objective

    def objective(self, *args):
        eagerly.append(tf.executing_eagerly())
        return original(self, *args)

    monkeypatch.setattr(PPO, "objective", objective)
    eager = run(trainer(jit_compile=None))
    assert eagerly == [True] * 12
    assert_same(compiled, eager)
    assert_same(plain, eager)


@pytest.mark.slow
def test_one_mirrored_replica_is_none(plain):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert_same(run(trainer(strategy=strategy)), plain)


@pytest.mark.slow
def test_two_replicas_are_one(everything):
    """With XLA in every replica, which computes its share in two parts."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    options = {"jit_compile": True, "micro_batches": 2, **trajectories.everything()}
    made = trainer(strategy=strategy, **options)
    assert_same(run(made), everything)
    assert int(made.optimizer.iterations.numpy()) == 12


@pytest.mark.slow
def test_four_replicas_are_one(plain):
    """One row of a minibatch each, and as many replicas as the machine has devices."""
    strategy = rlhf.cluster.strategy()
    assert strategy.num_replicas_in_sync == 4
    assert_same(run(trainer(strategy=strategy)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_one_batch(plain, parts):
    made = trainer(micro_batches=parts)
    assert_same(run(made), plain)
    assert int(made.optimizer.iterations.numpy()) == 12, "micro-batches are no steps"


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_of_text_are_one_batch(everything, parts):
    """The text is divided too, by the number of counted tokens of the whole batch."""
    made = trainer(micro_batches=parts, **trajectories.everything())
    assert_same(run(made), everything)
    assert all("loss/ptx" in entry for entry in everything.statistics)


@pytest.mark.slow
def test_padding_of_the_prompts_changes_nothing(plain):
    """N3."""
    wide = [helpers.widened(batch, 5) for batch in trajectories.BATCHES]
    assert_same(run(trainer(), wide), plain)


@pytest.mark.slow
def test_dropout_of_the_model_changes_nothing(plain):
    """N13."""
    assert_same(run(trainer(lambda: helpers.actor(num_layers=2, dropout=0.5))), plain)


PROMPTS = tf.data.Dataset.from_tensor_slices(
    tf.nest.map_structure(lambda *parts: np.concatenate(parts), *trajectories.BATCHES)
).batch(trajectories.ROWS)


class Watch(keras.callbacks.Callback):
    """Keeps the statistics of every iteration."""

    def __init__(self):
        super().__init__()
        self.statistics = []

    def on_train_batch_end(self, batch, logs=None):
        self.statistics.append(dict(self.model.statistics))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "everything"])
def test_resumed_is_uninterrupted(request, tmp_path, case):
    """Nothing but the files passes from the run that died to the next, the optimizer included."""
    expected = request.getfixturevalue(case)

    def options():
        return trajectories.everything() if case == "everything" else {}

    died, resumed = Watch(), Watch()
    with pytest.raises(helpers.Crash):
        trainer(**options()).fit(
            PROMPTS,
            callbacks=[died, helpers.CrashIn(2), rlhf.callbacks.Resume(tmp_path)],
            verbose=0,
        )
    made = trainer(**options())
    helpers.filled(made.actor, seed=9)
    made.fit(PROMPTS, callbacks=[resumed, rlhf.callbacks.Resume(tmp_path)], verbose=0)
    assert resumed.statistics[0] == {}, "the first iteration is not done again"
    trajectories.assert_same_statistics(died.statistics, expected.statistics[:2])
    trajectories.assert_same_statistics(resumed.statistics[1:], expected.statistics[1:])
    trajectories.assert_same_weights(trajectories.weights(made), expected.weights[-1])
    for ours, theirs in zip(
        made.optimizer.variables, expected.trainer.optimizer.variables, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


SEVEN = [{name: x[:7] for name, x in batch.items()} for batch in trajectories.BATCHES]
UNEQUAL = [("token", 2, 1), ("sequence", 2, 2), ("fixed", 1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "replicas", "parts"), UNEQUAL, ids=str)
def test_rows_that_do_not_divide_are_padded(reduction, replicas, parts):
    """Minibatches of four and three prompts, and three texts, change nothing when divided."""

    def options():
        texts = rlhf.LanguageModeling(trajectories.texts(3), coef=0.5)
        return {"loss_reduction": reduction, "texts": texts}

    strategy = None
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    divided = trainer(strategy=strategy, micro_batches=parts, **options())
    alone = trainer(**options())
    assert_same(run(divided, SEVEN), run(alone, SEVEN))
    unseen = tf.data.Dataset.from_tensor_slices(SEVEN[0]).batch(5)
    validation = [made.evaluate(unseen, verbose=0) for made in (divided, alone)]
    np.testing.assert_allclose(*validation, rtol=1e-4)


def test_rows_of_units_are_shared_in_order():
    """Two rows a unit, of three units between two replicas; scalars go to both."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    execution = replica.Execution(strategy, jit_compile=False)
    add = replica.rowwise(lambda x, pairs, c: (x + c, pairs + c), execution)
    found = add(tf.constant([1, 2, 3]), tf.range(6), tf.constant(10))
    assert [x.numpy().tolist() for x in found] == [[11, 12, 13], [*range(10, 16)]]
