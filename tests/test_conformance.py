"""CONFORMANCE.md is complete, and what it names is there."""

import ast
import functools
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONFORMANCE.md").read_text("utf-8")
NUMBERS = {
    "N": [*range(1, 12), *range(13, 23)],
    "S": range(1, 6),
    "P": [2, 3, 9, 11, 12, 13, 15, 16, 18, 20, 22, 23, 24, 25],
    "M": range(1, 14),
}
DETAILS = [f"{letter}{number}" for letter, numbers in NUMBERS.items() for number in numbers]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in TEXT.splitlines()
    if re.match(r"\| [NSPM]\d+ ", line)
]


def find(name):
    """The object that a dotted name of the package or of the recipes means."""
    parts = name.split(".")
    if parts[0] == "recipes":
        path = ROOT.joinpath(*parts[:2]).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(f"conformance_{parts[1]}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return functools.reduce(getattr, parts[2:], module)
    return pkgutil.resolve_name(f"kerasrlhf.{name}")


@functools.cache
def names_in(file):
    tree = ast.parse((ROOT / "tests/details" / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_detail_stands_there_once_and_in_order():
    assert [row[0] for row in ROWS] == DETAILS


def test_no_cell_is_empty():
    assert ROWS and all(len(row) == 5 and all(row) for row in ROWS)
    assert len(ROWS) == len({row[4] for row in ROWS})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_functions_and_tests_are_there(row):
    detail, says, source, function, test = row
    assert len(says) > 10
    found = find(function.strip("`"))
    found = found.fget if isinstance(found, property) else found
    assert re.search(rf"\b{detail}\b", inspect.getsource(found)), f"{function} names no {detail}"
    file, name = test.strip("`").split("::")
    assert name in names_in(file) and name.startswith(f"test_{detail.lower()}_")
    known = set(re.findall(r"^\| (\w+ \d{4}|practice) \|", TEXT, flags=re.MULTILINE))
    assert set(source.split(", ")) <= known


def test_every_test_of_a_detail_has_a_number_of_the_list():
    files = sorted((ROOT / "tests/details").glob("test_*.py"))
    names = {name for file in files for name in names_in(file.name) if name.startswith("test_")}
    parity = {name for name in names_in("test_parity.py") if name.startswith("test_")}
    assert parity and names > parity
    assert {name.split("_")[1].upper() for name in names - parity} == {*DETAILS}
