"""The notebooks run from the first cell to the last, small, in a kernel of their own."""

import importlib.util
import os
import pathlib
import re
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Runs a notebook in `tmp_path`, which also keeps what Jupyter writes."""
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search))
    monkeypatch.setenv("KERASRLHF_NOTEBOOK", "small")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    def run(notebook):
        # With no kernel specification of that name, Jupyter's `python3` is this interpreter.
        return nbclient.NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()

    return run


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_there_are_notebooks():
    assert ROOT / "notebooks/01_quickstart.ipynb" in NOTEBOOKS


@every_notebook
def test_it_is_short_explained_and_was_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, len({cell.id for cell in notebook.cells})) == (
        4,
        len(notebook.cells),
    )
    assert len(notebook.cells) <= 20
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert {x.name for x in outputs if x.output_type == "stream"} == {"stdout"}
    assert path.stat().st_size < 300_000
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[::2] == ["markdown"] * len(kinds[::2]), "text stands before every code cell"
    assert kinds[1::2] == ["code"] * len(kinds[1::2])


@every_notebook
def test_it_uses_public_names_only(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert "import kerasrlhf as rlhf" in source
    assert not [word for word in source.replace("(", " ").split() if "._" in word]


def test_the_quickstart_has_the_numbers_of_the_recipe():
    path = ROOT / "recipes/quickstart.py"
    spec = importlib.util.spec_from_file_location("recipe_of_the_notebook", path)
    recipe = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.Config()
    notebook = nbformat.read(ROOT / "notebooks/01_quickstart.ipynb", nbformat.NO_CONVERT)
    source = "\n".join(cell.source for cell in code_cells(notebook))
    sizes = ("pairs", "length", "batch_size", "epochs", "iterations", "held_out")
    numbers = [f'"{name}": {getattr(config, name)},' for name in sizes] + [
        f"temperature={config.temperature})",
        f"noise={config.noise},",
        f"Adam({config.reward_learning_rate})",
        f"epochs={config.reward_epochs},",
        f"PolynomialDecay({config.learning_rate},",
        f"updates = {config.update_epochs} * {config.num_minibatches} *",
        f"AdaptiveKL({config.kl_coef}, target={config.kl_target}, horizon={config.kl_horizon})",
        f"update_epochs={config.update_epochs}, num_minibatches={config.num_minibatches})",
    ]
    assert not [number for number in numbers if number not in source]


def test_the_outputs_of_the_quickstart_are_what_its_text_says():
    """The score rises, the KL reaches its target and stays within 25 %, and gold follows."""
    notebook = nbformat.read(ROOT / "notebooks/01_quickstart.ipynb", nbformat.NO_CONVERT)
    text = printed(notebook)
    numbers = r"(-?\d+\.\d+)"
    scores, kls = (
        [float(x) for x in re.findall(rf"- {name}: {numbers} -", text)] for name in ("score", "kl")
    )
    assert len(kls) == 10 and scores[0] < 0.5 * scores[-1]
    reached = next(i for i, kl in enumerate(kls) if kl > 0.75 * 6.0)
    assert reached < 6 and max(abs(kl / 6.0 - 1) for kl in kls[reached:]) < 0.25
    for name in ("gold", "proxy"):
        interval = rf" +{numbers} \[{numbers}, {numbers}\]"
        _, _, high, _, low, _ = map(float, re.search(name + 2 * interval, text).groups())
        assert high < low, "the intervals before and after are apart"
    perplexities = re.search(rf"perplexity of stories {numbers} -> {numbers}", text).groups()
    before, after = map(float, perplexities)
    assert before < after < 1.2 * before
    ranked = re.findall(r"^  after  ([+-]\d\.\d\d)  ", text, re.MULTILINE)
    assert [float(x) for x in ranked] == sorted(map(float, ranked), reverse=True)
    assert len(ranked) == 3 and "as before saving: True" in text


@pytest.mark.slow
@every_notebook
def test_it_runs(path, kernel, tmp_path):
    notebook = kernel(nbformat.read(path, nbformat.NO_CONVERT))
    assert all(cell.execution_count for cell in code_cells(notebook))
    if path.stem == "01_quickstart":
        assert "as before saving: True" in printed(notebook)
        assert (tmp_path / "runs/notebook/policy/model.weights.h5").is_file()


def test_a_cell_that_raises_is_noticed(kernel):
    notebook = nbformat.read(NOTEBOOKS[0], nbformat.NO_CONVERT)
    code_cells(notebook)[0].source = "raise ValueError('of this test')"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="of this test"):
        kernel(notebook)
