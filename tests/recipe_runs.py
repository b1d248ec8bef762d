"""Recipes as modules, their trials, and a model for them."""

import importlib.util
import pathlib
import sys

import keras
import keras_hub

import kerasrlhf as rlhf

RECIPES = pathlib.Path(__file__).parents[1] / "recipes"
TASKS = ("sentiment", "classification", "ner", "summarization", "dialogue", "arithmetic")


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smoke(recipe, output, *options):
    config = rlhf.cli.parse(recipe.Config, ["--preset", "smoke", "--output", str(output), *options])
    report = recipe.main(config)
    holds_results(output)
    return report


def holds_results(output):
    """Every recipe lays its folder out in the same way."""
    names = {path.name for path in output.iterdir() if not path.name.startswith("member_")}
    known = {"model", "logs", "report.json", "state", "samples.jsonl", "winners.jsonl"}
    assert {"model", "report.json"} <= names <= known | {"curves.png"}


def save_tiny(folder):
    """Saves a preset of one layer with the vocabulary of the embedded one; returns its folder."""
    keras.utils.set_random_seed(0)  # a fixture of a module comes before the seed of a test
    start = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
    shape = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8}
    shape |= {"num_query_heads": 1, "num_key_value_heads": 1}
    backbone = type(start.backbone).from_config(start.backbone.get_config() | shape)
    type(start)(backbone, preprocessor=start.preprocessor).save_to_preset(str(folder / "tiny"))
    return str(folder / "tiny")
