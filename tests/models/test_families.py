"""One contract that every text family of keras-hub keeps."""

import contextlib
import pathlib
from typing import Any, NamedTuple

import families
import helpers
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from kerasrlhf.models import lm_adapter, lora
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.windows import Reference
from kerasrlhf.types import Sampler

PAGE = pathlib.Path(__file__).parents[2] / "docs/pages/families.md"
LENGTHS = [1, 3, 6, 5]
SAMPLER = Sampler(length=4, temperature=0.7, stop_token_ids=(0,))
BATCH = helpers.prompts(LENGTHS)
LAST_NORMS = ("layer_norm", "final_layernorm", "output_norm")


class Case(NamedTuple):
    name: str
    family: families.Family
    actor: ActorCritic
    samples: dict[str, Any]


def actor_of(causal_lm):
    actor = ActorCritic(causal_lm)
    helpers.filled(actor.value_head, seed=7)
    return actor


def notice(name):
    """Whatever samples says so when it does without a cache, and says nothing otherwise."""
    if families.FAMILIES[name].cached:
        return contextlib.nullcontext()
    return pytest.warns(UserWarning, match=rf"{name}CausalLM .* sampled without one")


def draw(name, actor, batch):
    with notice(name):
        return helpers.arrays(helpers.draw_eagerly(actor, batch, SAMPLER, seed=3))


@pytest.fixture(scope="module", params=families.FAMILIES)
def case(request):
    keras.utils.set_random_seed(0)
    actor = actor_of(families.lm(request.param))
    samples = draw(request.param, actor, BATCH)
    return Case(request.param, families.FAMILIES[request.param], actor, samples)


def test_every_text_family_is_here():
    public = {n.removesuffix("CausalLM") for n in dir(keras_hub.models) if n.endswith("CausalLM")}
    known = {*families.FAMILIES, *families.ALIASES, *families.NO_TEXT_MODELS, ""}
    assert public == known
    for alias, name in families.ALIASES.items():
        made, own = (getattr(keras_hub.models, f"{n}CausalLM") for n in (alias, name))
        assert made is own or made.backbone_cls is own.backbone_cls


def test_the_documentation_says_what_is_verified_here():
    assert families.table() in PAGE.read_text("utf-8")


def test_logprobs_and_values_are_those_of_teacher_forcing(case):
    samples, inside = case.samples, case.samples["response_mask"]
    stats = case.actor.token_stats(samples["token_ids"], samples["padding_mask"], temperature=0.7)
    assert inside[:, 8:].any(), "a row must be longer than two windows"
    for name in ("logprobs", "values"):
        expected = np.where(inside, getattr(stats, name), 0.0)
        np.testing.assert_allclose(samples[name], expected, atol=1e-4)
        assert np.std(expected[inside]) > 0.05
    layout = lm_adapter.cache_layout(case.actor.causal_lm, 10)
    assert (layout is not None) == case.family.cached


def test_padding_and_other_rows_change_nothing(case):
    """Also where experts are routed to: by the token alone."""
    batch = {name: case.samples[name] for name in ("token_ids", "padding_mask")}
    inside = batch["padding_mask"]
    wide = case.actor(helpers.widened(batch, 3))
    for name, expected in case.actor(batch).items():
        found = np.array(wide[name])[:, : inside.shape[1]]
        np.testing.assert_allclose(found[inside], np.array(expected)[inside], atol=1e-4)
    row = {name: x[1:2, : inside[1].sum()] for name, x in batch.items()}
    alone, among = (np.array(case.actor(x)["logits"]) for x in (row, batch))
    np.testing.assert_allclose(alone[0], among[1, : alone.shape[1]], atol=1e-4)


def test_logits_are_the_language_model_s(case):
    inputs = {name: case.samples[name] for name in ("token_ids", "padding_mask")}
    found = np.array(case.actor(inputs)["logits"])
    if case.name == "Gemma3n":
        backbone = case.actor.causal_lm.backbone
        hidden = lm_adapter.hidden_states(backbone, *inputs.values())
        embeddings = backbone.language_model.embed_tokens.embedding.embeddings
        expected = 3.0 * np.tanh(np.array(hidden) @ np.array(embeddings).T / 3.0)
    else:
        inputs = lm_adapter.backbone_inputs(case.actor.causal_lm.backbone, *inputs.values())
        expected = case.actor.causal_lm(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_presets_give_back_actor_and_reward_model(case, tmp_path):
    batch = {name: case.samples[name] for name in ("token_ids", "padding_mask")}
    case.actor.save_to_preset(tmp_path / "actor")
    again = ActorCritic.from_preset(tmp_path / "actor")
    for name, expected in case.actor(batch).items():
        np.testing.assert_allclose(again(batch)[name], expected, atol=1e-5)
    reward = RewardModel.from_causal_lm(again.causal_lm)
    reward.save_to_preset(tmp_path / "reward")
    scores = np.array(reward(batch))
    assert np.std(scores) > 0.01
    np.testing.assert_allclose(RewardModel.from_preset(tmp_path / "reward")(batch), scores, 1e-5)


def pairs():
    generator = np.random.default_rng(0)
    ids = generator.integers(1, helpers.VOCAB, (4, 2, 6)).astype("int32")
    return {"token_ids": ids, "padding_mask": np.arange(6) < generator.integers(2, 7, (4, 2, 1))}


def test_a_reward_model_learns_pairs_by_their_loss_alone(case):
    """No auxiliary loss of experts comes on top, and nothing that is read stands still."""
    reward = RewardModel.from_causal_lm(case.actor.causal_lm)
    chosen, rejected = np.array(reward(pairs())).T
    expected = np.log1p(np.exp(rejected - chosen)).mean()
    reward(pairs(), training=True)
    assert not reward.losses
    before = [v.numpy() for v in reward.trainable_variables]
    reward.compile(keras.optimizers.Adam(1e-3), jit_compile=False, run_eagerly=True)
    data = tf.data.Dataset.from_tensors((pairs(), np.zeros(4, "float32")))
    history = reward.fit(data, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, abs=1e-4)
    # A shift of all scores leaves the differences of pairs as they are.
    shifts = {"score_head/bias", *(f"{norm}/beta" for norm in LAST_NORMS)}
    moved(before, reward.trainable_variables, still=shifts)


def moved(before, variables, still=()):
    for value, variable in zip(before, variables, strict=True):
        after = variable.numpy()
        assert np.isfinite(after).all(), variable.path
        assert (after != value).any() or variable.path in still, variable.path


def iterated(name, causal_lm, **options):
    """A trainer after one iteration, and what was trainable before it."""
    made = helpers.ppo(actor_of(causal_lm), sampler=SAMPLER, **options)
    made.compile(keras.optimizers.Adam(1e-2, epsilon=1e-5), run_eagerly=True)
    before = [v.numpy() for v in made.actor.trainable_variables]
    with notice(name):
        statistics = made.iterate(dict(BATCH))
    assert statistics["policy/ratio_error"] < 1e-4
    assert np.isfinite([*statistics.values()]).all()
    return made, before


def test_ppo_trains_every_variable_or_the_adapters(case):
    causal_lm = families.lm(case.name)
    made, before = iterated(case.name, causal_lm, update_epochs=1)
    moved(before, made.actor.trainable_variables)

    frozen = Reference.of(causal_lm)
    causal_lm.backbone.enable_lora(2, case.family.lora)
    adapted = {id(v) for x in lora.adapted_layers(causal_lm.backbone) for v in x.variables}
    others = [v for v in causal_lm.variables if id(v) not in adapted]
    values = [v.numpy() for v in others]
    made, before = iterated(case.name, causal_lm, update_epochs=2)
    assert made.reference.causal_lm is causal_lm
    moved(before, made.actor.trainable_variables)
    names = {v.name for v in made.actor.trainable_variables}
    assert {"lora_kernel_a", "lora_kernel_b"} <= names
    assert names <= {"lora_kernel_a", "lora_kernel_b", "bias", "kernel"}
    for variable, value in zip(others, values, strict=True):
        np.testing.assert_array_equal(variable, value)
    rollout = made.last.rollout
    window = (rollout.token_ids, rollout.padding_mask, rollout.prompt_lengths, SAMPLER.length)
    expected = frozen.logprobs(*window)
    np.testing.assert_allclose(made.reference.logprobs(*window), expected, atol=1e-4)
    stats = made.actor.token_stats(*window)
    assert np.abs(np.array(stats.logprobs) - expected).max() > 1e-3


@pytest.mark.parametrize("name", [n for n, f in families.FAMILIES.items() if f.lora])
def test_lora_that_adapts_nothing_is_refused(name):
    causal_lm = families.lm(name)
    causal_lm.backbone.enable_lora(2)
    with pytest.raises(ValueError, match=families.FAMILIES[name].lora[0]):
        helpers.ppo(ActorCritic(causal_lm))
    with pytest.raises(ValueError, match="target_layer_names"):
        RewardModel(causal_lm).compile()


@pytest.mark.parametrize("name", [n for n, f in families.FAMILIES.items() if f.window])
def test_the_window_counts(name):
    """The same weights with a wide window see more, from the fifth token on."""
    inputs = helpers.prompts([9], columns=9)
    narrow, wide = (actor_of(families.lm(name, window=window)) for window in (4, 9))
    gap = np.abs(np.array(narrow(inputs)["logits"]) - np.array(wide(inputs)["logits"]))[0]
    assert gap[:4].max() < 1e-5 < 1e-3 < gap[4:].max()


@pytest.mark.parametrize("name", ["GPTNeoX", "RWKV7"])
def test_xla_draws_what_eager_code_draws(name):
    """A mended cached family and an uncached one."""
    actor = actor_of(families.lm(name))
    expected = draw(name, actor, BATCH)
    with notice(name):
        found = helpers.arrays(actor.generate(BATCH, SAMPLER, seed=3))
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])
    np.testing.assert_allclose(found["logprobs"], expected["logprobs"], atol=1e-4)
