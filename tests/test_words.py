"""American English, and words that readers of Keras's documentation do not expect."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = re.compile(
    r"\b(anew|shall|meaned|learnt|whilst|optimisers?|modelling|normalis(e|ed|es|ing)|labelled)\b",
    re.IGNORECASE,
)


def public_texts(root=ROOT):
    """Code, documents and notebooks, by their paths; this file names the words itself."""
    for folder in ("kerasrlhf", "recipes", "notebooks", "benchmarks", "docs", "tests", "."):
        found = (root / folder).glob("*.md") if folder == "." else (root / folder).rglob("*")
        for path in sorted(found):
            if path.suffix in {".py", ".md", ".ipynb"} and path != Path(__file__):
                yield path.relative_to(root), path.read_text(encoding="utf-8")


def faults(name, text):
    return [
        f"{name}:{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in WORDS.finditer(line)
    ]


def test_words_to_avoid():
    texts = dict(public_texts())
    assert {Path("README.md"), Path("kerasrlhf/__init__.py")} <= set(texts)
    found = [fault for name, text in texts.items() for fault in faults(name, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["Reads it anew.", "an Optimiser", "what it shall do", "learnt"])
def test_a_word_to_avoid_is_noticed(text):
    assert faults("a.md", text)


@pytest.mark.parametrize("text", ["a new one", "shallow", "learned", "optimizer", "renewal"])
def test_other_words_pass(text):
    assert not faults("a.md", text)


def test_spelling():
    """British spellings and typing errors, as `.ci/run` and pre-commit check them."""
    command = [sys.executable, "-m", "codespell_lib", "."]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
