"""The cached loop against teacher forcing, and single draws against the softmax."""

import os
import pathlib
import subprocess
import sys

import helpers
import numpy as np
import pytest
from keras import ops

from kerasrlhf import replica
from kerasrlhf.models import lm_adapter, sampling
from kerasrlhf.models.sampling import draw
from kerasrlhf.types import Sampler

LENGTHS = [1, 2, 3, 4, 5, 6] * 4
STOPS = (0, 5, 11)  # 0 is what fills the padding as well (N2)
SAMPLER = Sampler(length=7, temperature=0.7, stop_token_ids=STOPS)


@pytest.fixture(scope="module", params=helpers.FAMILIES)
def drawn(request):
    """One XLA trace that most tests of this file share: actor, prompts and samples."""
    actor = helpers.actor(request.param)
    batch = helpers.prompts(LENGTHS)
    return actor, batch, helpers.arrays(actor.generate(batch, SAMPLER, seed=3))


@pytest.fixture(scope="module")
def repeated(drawn):
    """The same call again, with another seed, and for copies of one prompt."""
    # Together, because setting a seed, as every test does, empties the cache of compiled code.
    actor, batch, _ = drawn
    same = {name: np.repeat(x[5:6], len(LENGTHS), axis=0) for name, x in batch.items()}
    calls = ((batch, 3), (batch, 4), (same, 4))
    return [helpers.arrays(actor.generate(b, SAMPLER, seed))["token_ids"] for b, seed in calls]


def test_logprobs_and_values_are_those_of_teacher_forcing(drawn):
    actor, _, samples = drawn
    stats = actor.token_stats(samples["token_ids"], samples["padding_mask"], temperature=0.7)
    inside = samples["response_mask"]
    for name in ("logprobs", "values"):
        expected = np.where(inside, getattr(stats, name), 0.0)
        np.testing.assert_allclose(samples[name], expected, atol=1e-4)
        assert np.std(expected[inside]) > 0.05
    untempered = actor.token_stats(samples["token_ids"], samples["padding_mask"])
    assert np.abs(np.where(inside, untempered.logprobs, 0.0) - samples["logprobs"]).max() > 0.1


def test_a_window_gives_what_the_whole_row_gives(drawn):
    actor, _, samples = drawn
    ids, mask, starts = (samples[k] for k in ("token_ids", "padding_mask", "prompt_lengths"))
    whole = actor.token_stats(ids, mask, temperature=0.7)
    window = actor.token_stats(ids, mask, starts, SAMPLER.length, temperature=0.7)
    columns = np.arange(ids.shape[1])[None]
    inside = (columns >= starts[:, None]) & (columns < starts[:, None] + SAMPLER.length)
    for ours, theirs in zip(window, whole, strict=True):
        np.testing.assert_allclose(ours, np.where(inside, theirs, 0.0), atol=1e-5)


def test_prompt_then_response_then_padding(drawn):
    _, batch, samples = drawn
    ids, response = samples["token_ids"], samples["response_mask"]
    assert ids.shape == (len(LENGTHS), helpers.COLUMNS + SAMPLER.length)
    np.testing.assert_array_equal(samples["prompt_lengths"], LENGTHS)
    for row, length in enumerate(LENGTHS):
        count = response[row].sum()
        expected = [False] * length + [True] * count
        np.testing.assert_array_equal(np.flatnonzero(response[row]), length + np.arange(count))
        np.testing.assert_array_equal(
            samples["padding_mask"][row], [True] * len(expected) + [False] * (13 - len(expected))
        )
        np.testing.assert_array_equal(ids[row, :length], batch["token_ids"][row, :length])
        assert not ids[row, len(expected) :].any()  # pad id 0
    assert not samples["logprobs"][~response].any()
    assert not samples["values"][~response].any()
    assert (samples["logprobs"][response] < 0).all()


def test_a_row_ends_at_its_own_stop_token_or_has_all_its_tokens(drawn):
    """N2: the stop token 0 counts as a token although padding is written with it."""
    _, batch, samples = drawn
    ended = samples["ended"]
    for row in range(len(LENGTHS)):
        response = samples["token_ids"][row][samples["response_mask"][row]]
        assert not set(response[:-1]) & {*STOPS}
        assert ended[row] == (response[-1] in STOPS)
        assert len(response) == SAMPLER.length or ended[row]
    inside = samples["response_mask"]
    assert (samples["token_ids"][inside] == 0).any(), "a response must end with the padding id"
    in_prompt = np.isin(batch["token_ids"], STOPS) & batch["padding_mask"]
    assert in_prompt.any(axis=1)[~ended].any(), "a stop token in a prompt ends nothing"
    full = inside.sum(axis=1) == SAMPLER.length
    assert len({*np.array(LENGTHS)[full]}) > 2, "short and long prompts get their full number"


def test_eager_draws_what_xla_draws(drawn):
    actor, batch, samples = drawn
    eager = helpers.arrays(helpers.draw_eagerly(actor, batch, SAMPLER, seed=3))
    for name, expected in samples.items():
        if expected.dtype == "float32":
            np.testing.assert_allclose(eager[name], expected, atol=1e-4)
        else:
            np.testing.assert_array_equal(eager[name], expected)


def test_padding_of_the_prompts_changes_nothing(drawn):
    """N3."""
    actor, batch, samples = drawn
    wide = helpers.draw_eagerly(actor, helpers.widened(batch, 4), SAMPLER, seed=3)
    wide = helpers.arrays(wide)
    for name, expected in samples.items():
        found = wide[name]
        if found.ndim == 2:
            assert not found[:, -4:].any()
            found = found[:, :-4]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_seed_decides_and_rows_differ(drawn, repeated):
    """N6."""
    again, other, rows = repeated
    np.testing.assert_array_equal(again, drawn[-1]["token_ids"])
    assert (other != again).any()
    assert len({tuple(row) for row in rows}) > len(LENGTHS) / 2


COMPILING = """
import pathlib, sys
import helpers
from kerasrlhf.types import Sampler
actor, sampler = helpers.actor(), Sampler(length=2)
for lengths in ([2, 3], [1, 6], [5, 4]):
    actor.generate(helpers.prompts(lengths), sampler)
    modules = {path.name.split(".")[0] for path in pathlib.Path(sys.argv[1]).glob("module_*")}
    print(sorted(modules))
"""


def test_other_prompt_lengths_need_no_other_program(tmp_path):
    """XLA compiles again for every value that it takes for a constant, and says nothing."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_dump_to={tmp_path}",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(helpers.__file__).parent), *sys.path]),
    }
    arguments = [sys.executable, "-c", COMPILING, str(tmp_path)]
    output = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    first, second, third = output.stdout.splitlines()
    assert "module" in first and first == second == third


def test_the_layout_of_the_cache_is_found_without_the_layers(monkeypatch):
    """They would be traced twice more than sampling needs."""
    causal_lm = helpers.lm()

    def call_with_cache(self, token_ids, cache, cache_update_index):
        raise AssertionError("a layer was traced")

    monkeypatch.setattr(type(causal_lm), "call_with_cache", call_with_cache)
    layout = lm_adapter.cache_layout(causal_lm, 10)
    assert layout.shape.as_list() == [1, 1, 2, None, 2, 8]


def test_the_cache_is_all_that_is_stepped_through(monkeypatch):
    """Prefill once; then one column a step, and none once every row has ended."""
    actor = helpers.actor()
    calls = []
    original = lm_adapter.step

    def step(causal_lm, token_ids, cache, index):
        calls.append((token_ids.shape[1], int(index)))
        return original(causal_lm, token_ids, cache, index)

    monkeypatch.setattr(lm_adapter, "step", step)
    batch = helpers.prompts([4, 4])
    everything = tuple(range(helpers.VOCAB))
    samples = helpers.draw_eagerly(actor, batch, Sampler(length=5, stop_token_ids=everything))
    assert calls == [(6, 0)] and np.array(samples.ended).all()
    assert np.sum(samples.response_mask, axis=1).tolist() == [1, 1]
    calls.clear()
    helpers.draw_eagerly(actor, batch, Sampler(length=3, stop_token_ids=None))
    assert calls == [(6, 0), (1, 4), (1, 5)]


def test_a_stop_token_counts_from_the_minimal_length_on():
    """N14."""
    actor = helpers.actor()
    everything = tuple(range(helpers.VOCAB))
    for minimum in (1, 3, 4):
        sampler = Sampler(length=4, stop_token_ids=everything, min_length=minimum)
        samples = helpers.draw_eagerly(actor, helpers.prompts([1, 6, 3]), sampler)
        assert np.sum(samples.response_mask, axis=1).tolist() == [minimum] * 3
        assert np.array(samples.ended).all()


def test_automatic_stop_tokens_are_those_of_the_tokenizer():
    actor = helpers.actor(texts=True)
    assert actor.stop_token_ids(Sampler(length=1)) == (0,)
    assert actor.stop_token_ids(Sampler(length=1, stop_token_ids=[4, 2])) == (4, 2)
    assert actor.stop_token_ids(Sampler(length=1, stop_token_ids=None)) == ()
    assert helpers.actor().stop_token_ids(Sampler(length=1)) == ()


def test_without_a_value_head_values_are_zero():
    actor = helpers.actor(critic=helpers.backbone(seed=4))
    samples = helpers.draw_eagerly(actor, helpers.prompts([2, 3]), Sampler(length=2))
    assert not np.any(samples.values) and np.any(samples.logprobs)


def test_greedy_sampling_takes_the_likeliest_next_token():
    actor = helpers.actor("llama")
    samples = helpers.arrays(
        helpers.draw_eagerly(actor, helpers.prompts([1, 4, 6]), Sampler(length=4, temperature=0))
    )
    logits = actor({k: samples[k] for k in ("token_ids", "padding_mask")})["logits"]
    likeliest = np.argmax(logits, axis=-1)[:, :-1]
    inside = samples["response_mask"][:, 1:]
    np.testing.assert_array_equal(samples["token_ids"][:, 1:][inside], likeliest[inside])


def frequencies(logits, sampler, count=6000, seed=0):
    """How often each entry is drawn, and the log-probabilities that came with the draws."""
    rows = np.repeat(np.asarray(logits, "float32")[None], count, axis=0)
    tokens, logprobs = draw(
        rows, replica.uniforms(seed, 0, count, 1)[:, 0], sampler, sampler.temperature
    )
    tokens = np.array(tokens)
    assert tokens.dtype == "int32" and tokens.min() >= 0 and tokens.max() < len(logits)
    return np.bincount(tokens, minlength=len(logits)), tokens, np.array(logprobs)


def chi_square(counts, probabilities):
    """The statistic in standard deviations from its mean; rare entries are put together."""
    expected = counts.sum() * probabilities
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    return (np.sum((observed - expected) ** 2 / expected) - degrees) / np.sqrt(2 * degrees)


def softmax(logits):
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("vocab", [5, 256, 700])
def test_draws_have_the_frequencies_of_the_tempered_softmax(vocab, temperature):
    """N10; vocabularies smaller than, equal to, and no multiple of a block."""
    logits = np.random.default_rng(1).normal(0, 1.5, vocab)
    sampler = Sampler(length=1, temperature=temperature)
    counts, tokens, logprobs = frequencies(logits, sampler)
    expected = softmax(logits / temperature)
    assert chi_square(counts, expected) < 4
    assert chi_square(counts, softmax(logits / (temperature * 1.5))) > 4
    np.testing.assert_allclose(logprobs, np.log(expected)[tokens], atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"top_k": 7}, {"top_p": 0.6}, {"top_k": 40, "top_p": 0.8, "temperature": 1.5}]
)
def test_filters_leave_the_likeliest_in_their_proportions(options):
    logits = np.random.default_rng(2).normal(0, 1.5, 300)
    sampler = Sampler(length=1, **options)
    counts, tokens, logprobs = frequencies(logits, sampler)
    scaled = logits / sampler.temperature
    kept = np.argsort(-scaled)[: sampler.top_k or 300]
    allowed = np.zeros(300)
    allowed[kept] = softmax(scaled[kept])
    if sampler.top_p:
        order = np.argsort(-allowed)
        before = np.cumsum(allowed[order]) - allowed[order]
        allowed[order[before >= sampler.top_p]] = 0
    assert 1 < (allowed > 0).sum() < 100
    assert {*np.flatnonzero(counts)} <= {*np.flatnonzero(allowed)}
    assert chi_square(counts, allowed / allowed.sum()) < 4
    # What is reported is the model's own distribution, not the filtered one.
    np.testing.assert_allclose(logprobs, np.log(softmax(scaled))[tokens], atol=1e-4)


def test_filters_that_let_everything_through():
    logits = np.random.default_rng(3).normal(size=(50, 9)).astype("float32")
    uniforms = replica.uniforms(0, 0, 50, 1)[:, 0]
    plain, _ = draw(logits, uniforms, Sampler(length=1), 1.0)
    for options in ({"top_k": 9}, {"top_k": 100}, {"top_p": 1.0}):
        np.testing.assert_array_equal(
            draw(logits, uniforms, Sampler(length=1, **options), 1.0)[0], plain
        )
    one, _ = draw(logits, uniforms, Sampler(length=1, top_k=1), 1.0)
    least, _ = draw(logits, uniforms, Sampler(length=1, top_p=1e-6), 1.0)
    greedy, logprobs = draw(logits, uniforms, Sampler(length=1, temperature=0), 0.5)
    likeliest = np.max(logits, axis=-1) - np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(logprobs, likeliest, atol=1e-5)  # at temperature 1
    for tokens in (one, least, greedy):
        np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))


@pytest.mark.parametrize("nothing", [-np.inf, -1e30])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_impossible_entries_are_never_drawn(nothing, uniform):
    logits = np.full((4, 600), nothing, "float32")
    possible = [[7], [256], [0, 599], [300, 301, 302]]
    for row, entries in zip(logits, possible, strict=True):
        row[entries] = np.linspace(-5, 5, len(entries))
    uniforms = np.full((4, 2), uniform, "float32")
    tokens, logprobs = draw(logits, uniforms, Sampler(length=1), 1.0)
    assert all(t in entries for t, entries in zip(np.array(tokens), possible, strict=True))
    assert np.isfinite(logprobs).all()


def test_ends_of_the_unit_interval_are_the_ends_of_the_vocabulary():
    logits = np.zeros((1, 700), "float32")
    for uniform, expected in ((0.0, 0), (1 - 2**-24, 699)):
        token, _ = draw(logits, np.full((1, 2), uniform, "float32"), Sampler(length=1), 1.0)
        assert int(token[0]) == expected


def test_random_numbers_follow_seed_iteration_and_row_alone():
    """N6."""
    numbers = np.array(replica.uniforms(5, 2, 8, 3))
    assert numbers.shape == (8, 3, 2) and numbers.min() >= 0 and numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    np.testing.assert_array_equal(replica.uniforms(5, 2, 4, 3), numbers[:4])
    for other in (replica.uniforms(6, 2, 8, 3), replica.uniforms(5, 3, 8, 3)):
        assert not np.isin(other, numbers).any()


def test_a_heaviest_entry_stands_in_for_a_rounded_pick():
    weights = ops.convert_to_tensor([[0.0, 1.0, 0.0]])
    assert int(sampling._pick(weights, ops.convert_to_tensor([1.0]))[0]) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"length": 0}, "length"),
        ({"length": 2.5}, "length"),
        ({"length": True}, "length"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_length": 0}, "min_length"),
        ({"stop_token_ids": "end"}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids"),
    ],
)
def test_samplers_outside_their_range_are_refused(options, named):
    with pytest.raises(ValueError, match=f"`{named}` must be"):
        Sampler(**{"length": 4, **options})


def test_which_samplers_can_be_trained_with():
    assert all(
        Sampler(length=4, **o).matches_policy for o in ({}, {"top_p": 1.0}, {"temperature": 0.1})
    )
    filters = ({"top_k": 5}, {"top_p": 0.9}, {"temperature": 0})
    assert not any(Sampler(length=4, **o).matches_policy for o in filters)
