"""Runs the examples in the docstrings of every module of the package."""

import doctest
import importlib
import io
from pathlib import Path

import pytest

import kerasrlhf

ROOT = Path(kerasrlhf.__file__).parent


def module_names():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", module_names())
def test_examples_of(name):
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    finder = doctest.DocTestFinder(exclude_empty=True)
    # Examples name everything by its public name, `rlhf.functional.gae`.
    for example in finder.find(importlib.import_module(name), extraglobs={"rlhf": kerasrlhf}):
        runner.run(example, out=report.write)
    assert runner.summarize(verbose=False).failed == 0, report.getvalue()


def test_a_wrong_example_would_be_noticed():
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    result = doctest.DocTestRunner(verbose=False).run(example, out=lambda text: None)
    assert result.failed == 1
