"""The direction of the imports and the few files that may touch what others must not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "kerasrlhf"

# A module imports from its own line and the lines above it, never from below.
ORDER = [
    ["functional"],
    ["types", "losses", "metrics", "cli"],
    ["replica", "workers"],
    ["data"],
    ["models"],
    ["rollouts"],
    ["trainers"],
    ["callbacks", "environment", "evaluation", "rlhf", "__main__"],
    ["applications"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# Beside the models: their own list instead of a rank. Whatever comes after the models may use them.
BESIDE = {"tasks"}
BESIDE_MAY_USE = {"functional", "types", "losses", "metrics", "data", "models.lm_adapter", *BESIDE}
# Need nothing of ours and may be used by all but `functional`.
ALONE = {
    "adapters",
    "checks",
    "cluster",
    "files",
    "intervals",
    "presets",
    "shares",
    "signatures",
    "special_tokens",
    "tokens",
    "version",
}

HUB_INTERNALS = {"call_with_cache", "token_embedding"}
ADAPTER, REPLICA = f"{PACKAGE}/models/lm_adapter.py", f"{PACKAGE}/replica.py"


def package_files(root=ROOT):
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in files}


def dotted(file):
    """`kerasrlhf/models/__init__.py` -> `models`; `kerasrlhf/__init__.py` -> ``."""
    parts = Path(file).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)


def imports(file, source):
    """Absolute dotted names that a file imports, those inside functions included."""
    package = Path(file).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(file, source):
    for name in imports(file, source):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name[len(PACKAGE) + 1 :]


def is_within(name, allowed):
    return any(name == part or name.startswith(f"{part}.") for part in allowed)


def may_import(importer, imported):
    top, target = importer.split(".")[0], imported.split(".")[0]
    if top in ("", target) or (top != "functional" and target in ALONE):
        return True
    if top in BESIDE:
        return is_within(imported, BESIDE_MAY_USE)
    if target in BESIDE:
        return RANK.get(top, -1) > RANK["models"]
    return target in RANK and RANK[target] <= RANK.get(top, -1)


def import_faults(file, source):
    importer = dotted(file)
    for name in own_imports(file, source):
        if not may_import(importer, name):
            yield f"{file} imports {PACKAGE}.{name}"
    for name in imports(file, source):
        if name.split(".")[0] in {"recipes", "notebooks", "benchmarks", "tests"}:
            yield f"{file} imports {name}"
        if importer.split(".")[0] == "functional" and name.split(".")[0] in {"tensorflow", "numpy"}:
            yield f"{file} imports {name}: `keras.ops` only"


def hub_faults(file, source):
    if file == ADAPTER:
        return
    for name in imports(file, source):
        if is_within(name, {"keras_hub.src", "keras_nlp.src"}):
            yield f"{file} imports {name}"
    for node in ast.walk(ast.parse(source)):
        named = getattr(node, "attr", None) if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value  # getattr(x, "token_embedding")
        if isinstance(named, str) and named in HUB_INTERNALS:
            yield f"{file}:{node.lineno} touches {named}"


def compile_faults(file, source):
    if file == REPLICA:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "jit_compile":
            if isinstance(node.value, ast.Constant) and node.value.value is True:
                yield f"{file}:{node.lineno} sets jit_compile=True"
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr == "all_reduce" or (node.attr == "run" and owner.endswith("strategy")):
                yield f"{file}:{node.lineno} calls {owner}.{node.attr}"


def statement_faults(file, source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield f"{file}:{node.lineno} asserts: raise a ValueError"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield f"{file}:{node.lineno} prints"


def parameter_faults(file, source):
    """A function of a whole trainer is a method in disguise; it should name what it needs."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = node.args
            for argument in (
                *(*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs),
                *filter(None, (arguments.vararg, arguments.kwarg)),
            ):
                if argument.arg == "trainer":
                    yield f"{file}:{node.lineno} takes a parameter called `trainer`"


RULES = [import_faults, hub_faults, compile_faults, statement_faults, parameter_faults]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_to(rule):
    faults = [fault for file, source in package_files().items() for fault in rule(file, source)]
    assert not faults, "\n".join(faults)


def test_every_module_has_its_place_in_the_order():
    tops = {dotted(file).split(".")[0] for file in package_files()} - {""}
    assert tops <= set(RANK) | BESIDE | ALONE, "give the new module a place in ORDER"
    assert "functional" in tops


def test_recipes_leave_the_internals_of_keras_hub_alone():
    files = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "recipes").rglob("*.py"))}
    faults = [fault for file, path in files.items() for fault in hub_faults(file, path.read_text())]
    assert not faults, "\n".join(faults)


FORBIDDEN = {
    "upward": (import_faults, "models/a.py", "from kerasrlhf.trainers import ppo"),
    "upward_inside_a_function": (
        import_faults,
        "models/a.py",
        "def f():\n  from ..rollouts import x",
    ),
    "relative": (import_faults, "models/sub/a.py", "from ...trainers.ppo import PPO"),
    "the_package_itself": (import_faults, "models/a.py", "import kerasrlhf"),
    "functional_of_types": (import_faults, "functional/a.py", "from kerasrlhf import types"),
    "functional_of_tensorflow": (import_faults, "functional/a.py", "import tensorflow as tf"),
    "data_of_models": (import_faults, "data/a.py", "from kerasrlhf.models import lora"),
    "tasks_of_trainers": (import_faults, "tasks/a.py", "import kerasrlhf.trainers.ppo"),
    "recipes": (import_faults, "rlhf.py", "from recipes import sentiment"),
    "hub_import": (hub_faults, "data/a.py", "from keras_hub.src.models import x"),
    "hub_attribute": (hub_faults, "models/reward_model.py", "b.token_embedding(x)"),
    "hub_getattr": (hub_faults, "models/reward_model.py", "getattr(b, 'call_with_cache')"),
    "jit": (compile_faults, "rollouts/a.py", "tf.function(f, jit_compile=True)"),
    "run": (compile_faults, "rollouts/a.py", "self.strategy.run(f)"),
    "all_reduce": (compile_faults, "trainers/a.py", "context.all_reduce('sum', x)"),
    "assert": (statement_faults, "files.py", "assert x"),
    "print": (statement_faults, "files.py", "print(x)"),
    "trainer": (parameter_faults, "trainers/a.py", "def learn(trainer, rollout): pass"),
    "trainer_by_keyword": (parameter_faults, "callbacks/a.py", "def f(*, trainer=None): pass"),
    "trainer_of_a_method": (
        parameter_faults,
        "rollouts/a.py",
        "class A:\n  def __init__(self, trainer): pass",
    ),
    "trainer_of_a_lambda": (parameter_faults, "trainers/a.py", "f = lambda trainer: trainer.seed"),
}
PERMITTED = {
    "downward": (import_faults, "trainers/a.py", "from kerasrlhf.models.lora import add"),
    "same_line": (import_faults, "callbacks/a.py", "from kerasrlhf.evaluation import judge"),
    "relative": (import_faults, "models/a.py", "from .lm_adapter import wrap"),
    "models_of_data": (import_faults, "models/a.py", "from kerasrlhf.data import inputs"),
    "rollouts_of_data": (import_faults, "rollouts/a.py", "from kerasrlhf.data.batches import x"),
    "front_of_version": (import_faults, "rlhf.py", "from kerasrlhf.version import __version__"),
    "adapter": (hub_faults, "models/lm_adapter.py", "import keras_hub.src\nb.token_embedding(x)"),
    "hub_public": (hub_faults, "data/a.py", "import keras_hub"),
    "jit_handed_on": (compile_faults, "trainers/a.py", "tf.function(f, jit_compile=jit_compile)"),
    "replica": (compile_faults, "replica.py", "strategy.run(tf.function(f, jit_compile=True))"),
    "raise": (statement_faults, "files.py", "raise ValueError('print')"),
    "trainer_as_a_variable": (parameter_faults, "rlhf.py", "trainer = PPO(actor)\nf(trainer)"),
    "model": (parameter_faults, "callbacks/a.py", "def set_model(self, model): pass"),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_breach_is_noticed(case):
    rule, file, source = FORBIDDEN[case]
    assert list(rule(f"{PACKAGE}/{file}", source))


@pytest.mark.parametrize("case", PERMITTED)
def test_the_permitted_passes(case):
    rule, file, source = PERMITTED[case]
    assert not list(rule(f"{PACKAGE}/{file}", source))
