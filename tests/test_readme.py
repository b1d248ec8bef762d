"""README is a product page: short, installable as printed, and readable on PyPI."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def bash_blocks():
    return re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_it_is_a_page():
    assert len(README.splitlines()) <= 200


def test_its_first_commands_are_those_of_ci():
    first, second = bash_blocks()[:2]
    assert first.rstrip().endswith('pip install ".[quickstart]" && python recipes/quickstart.py')
    ci = [
        line.split(" #")[0].strip() for line in (ROOT / ".ci/run").read_text("utf-8").splitlines()
    ]
    *_, install, test = (part.strip() for part in second.split("&&"))
    assert install.replace("pip install", "pip install --quiet") in ci
    assert f'{test} "$@"' in ci


def test_its_example_needs_no_file_of_the_reader():
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert "rlhf.presets.TINY_STORIES" in code
    assert not re.findall(r'"[\w/]+\.(?:jsonl?|csv|txt|gz)"', code)


def test_every_extra_is_declared():
    project = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")
    declared = re.findall(r"^(\w+) = \[", project[1].split("\n[")[0], flags=re.MULTILINE)
    install = README.split("## Install")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", install, flags=re.MULTILINE) == declared


def test_it_counts_the_published_details():
    (count,) = re.findall(r"lists (\d+) details", README)
    rows = re.findall(
        r"^\| [NSPM]\d+ \|", (ROOT / "CONFORMANCE.md").read_text("utf-8"), re.MULTILINE
    )
    assert int(count) == len(rows)


def test_its_links_and_pictures_are_absolute():
    """On PyPI a relative link leads nowhere."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    assert not [link for link in links if not link.startswith("https://")]
