"""One run for the tests that need no second one."""

import pytest
from ppo_runs import Run


@pytest.fixture(scope="session")
def built():
    return Run()


@pytest.fixture
def run(built):
    return built.again()
