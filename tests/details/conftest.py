"""Tests of single details need no compiled code: functions run eagerly here."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True, scope="module")
def eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
