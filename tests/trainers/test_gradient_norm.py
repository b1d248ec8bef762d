"""What is logged of the optimizer: the norm of the gradient, and the learning rate."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf import replica

BATCH = helpers.prompts([3, 2, 4, 1])


def stepper(strategy=None, **options):
    """Steps of size 1 along gradients that are a batch's means, and the two variables."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        variables = [keras.Variable(np.zeros(shape), dtype="float32") for shape in ((2,), ())]
        optimizer = keras.optimizers.SGD(1.0, **options)
        optimizer.build(variables)

    def gradients_and_sums(batch):
        rows, loss, count = batch
        total = tf.reduce_sum(rows, axis=0) / count
        return [total[:2], total[2]], {"loss/total": tf.reduce_sum(loss) / count}

    execution = replica.Execution(strategy, jit_compile=False)
    step = replica.update(gradients_and_sums, optimizer, variables, execution)

    def on(rows, loss=0.0):
        rows = tf.constant(rows, tf.float32)
        count = len(rows)
        logs = step((rows, tf.fill([count], loss), tf.constant(float(count))))
        return float(logs["policy/grad_norm"]), logs["policy/skipped"]

    return on, variables


ROWS = [[4.0, 3.0, 10.0], [0.0, 5.0, 14.0]]  # their mean (2, 4, 12) has norm sqrt(164)


def test_the_norm_is_of_all_variables_and_before_clipping():
    on, variables = stepper(global_clipnorm=1.0)
    norm, skipped = on(ROWS)
    assert norm == pytest.approx(164**0.5) and skipped == 0.0
    moved = np.concatenate([np.array(variables[0]), [variables[1]]])
    np.testing.assert_allclose(moved, -np.array([2.0, 4.0, 12.0]) / 164**0.5, rtol=1e-5)


def test_the_norm_is_of_the_sum_over_replicas():
    on, _ = stepper(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    assert on(ROWS)[0] == pytest.approx(164**0.5)


def test_only_what_is_not_finite_is_skipped():
    """Finite gradients whose squares overflow are none of it."""
    on, variables = stepper()
    norm, skipped = on([[1e30, 0.0, 0.0]] * 2)
    assert norm == np.inf and skipped == 0.0
    np.testing.assert_allclose(variables[0], [-1e30, 0.0])
    for bad in (np.inf, np.nan):
        assert on([[0.0, bad, 0.0], [0.0, 0.0, 0.0]])[1] == 1.0
        assert on(ROWS, loss=bad)[1] == 1.0
    np.testing.assert_allclose(variables[0], [-1e30, 0.0])


def test_an_iteration_logs_the_mean_norm_and_the_rate_that_it_begins_with(monkeypatch):
    made = helpers.ppo(helpers.actor(num_layers=1), update_epochs=2)
    rate = keras.optimizers.schedules.PolynomialDecay(1e-2, 4, 0.0)
    made.compile(keras.optimizers.SGD(rate, global_clipnorm=1e-3), run_eagerly=True)
    step, train_step, norms = made.update_step(), made.train_step, []

    def recorded(batch):
        gradients, _ = step.gradients(batch)
        norms.append(np.sqrt(sum(np.sum(np.square(g)) for g in gradients)))
        return train_step(batch)

    monkeypatch.setattr(made, "train_step", recorded)
    for expected in (1e-2, 5e-3):
        norms.clear()
        statistics = made.iterate(BATCH)
        assert len(norms) == 2 and min(norms) > 0.1
        assert statistics["policy/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
        assert statistics["policy/learning_rate"] == pytest.approx(expected)
    assert statistics["time/episodes"] == 8
