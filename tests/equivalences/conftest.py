"""Trajectories that several comparisons share."""

import pytest
import trajectories


@pytest.fixture(scope="session")
def compiled():
    """The plain trajectory under XLA with a minibatch in two parts."""
    return trajectories.run(trajectories.trainer(jit_compile=True, micro_batches=2))


@pytest.fixture(scope="session")
def everything():
    """Every kind of network and loss at once: graphs without XLA, one part a minibatch."""
    return trajectories.run(trajectories.trainer(**trajectories.everything()))
