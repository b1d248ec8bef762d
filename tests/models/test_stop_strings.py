"""A response ends where a text appears, wherever it begins and ends inside of tokens."""

import functools
import os
import pathlib

import helpers
import keras_hub
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf import tokens
from kerasrlhf.models import stop_strings
from kerasrlhf.types import masked_rows

LENGTH = 12
BATCH = helpers.prompts([1, 2, 3, 4, 5, 6] * 12)
# "aa" is a token too: a string may begin or end in the middle of it.
STRINGS = ("abc", "aab", "dca", "dd")
LETTERS = [*"abcd"]


@functools.cache
def acting():
    """An actor that mostly says a, b, c, d and aa."""
    made = helpers.actor(texts=True, stddev=0.05)
    embeddings = made.causal_lm.backbone.token_embedding.embeddings
    ids = tokens.tokenize([*LETTERS, "aa"], made.causal_lm.preprocessor)
    values = np.array(embeddings)
    values[[i for (i,) in ids]] += 1.5 * np.sign(values[1])
    embeddings.assign(values)
    return made


@functools.cache
def drawn(sampler):
    return helpers.arrays(helpers.draw_eagerly(acting(), BATCH, sampler))


def rows_of(found):
    return masked_rows(found["token_ids"], found["response_mask"])


def sampler(**options):
    return rlhf.Sampler(LENGTH, **{"stop_token_ids": None, **options})


def text_of(ids):
    pieces = tokens.pieces(acting().causal_lm.preprocessor)
    return "".join(pieces[i] for i in ids)


def shortest(ids, min_length=1, strings=STRINGS):
    """The oracle: one token after the other, until the text contains a string that is new."""
    for count in range(1, len(ids) + 1):
        before, after = text_of(ids[: count - 1]), text_of(ids[:count])
        new = any(after[: len(after) - k].endswith(s) for s in strings
                  for k in range(len(after) - len(before)))  # fmt: skip
        if new and count >= min_length:
            return ids[:count], True
    return ids, False


@pytest.mark.parametrize("min_length", [1, 5])
def test_a_response_ends_with_the_token_that_completes_a_string(min_length):
    whole = rows_of(drawn(sampler()))
    found = drawn(sampler(stop_strings=STRINGS, min_length=min_length))
    expected = [shortest(row, min_length) for row in whole]
    assert rows_of(found) == [row for row, _ in expected]
    assert found["ended"].tolist() == [ended for _, ended in expected]
    # Some do not end, and some end in the middle of a token.
    lengths = {len(row) for row, ended in expected if ended}
    assert 0 < found["ended"].sum() < len(whole) and len(lengths) > 4
    texts = [text_of(row) for row, ended in expected if ended]
    assert any(not text.endswith(STRINGS) for text in texts)
    # What follows is padding: it has neither a mask nor a log-probability.
    assert not found["logprobs"][~found["response_mask"]].any()
    kept = found["response_mask"]
    np.testing.assert_allclose(found["logprobs"][kept], drawn(sampler())["logprobs"][kept])


def test_strings_and_tokens_end_responses_together():
    both = sampler(stop_strings="dd", stop_token_ids=[3])
    whole = rows_of(drawn(sampler()))

    def cut(row):
        by_string, _ = shortest(row, strings=("dd",))
        return by_string[: by_string.index(3) + 1] if 3 in by_string else by_string

    assert rows_of(drawn(both)) == [cut(row) for row in whole]


def test_prompts_are_not_part_of_a_string():
    made = acting()
    (a, b) = (tokens.tokenize([x], made.causal_lm.preprocessor)[0][0] for x in "ab")
    ids = np.full((8, 3), a, "int32")
    batch = {"token_ids": ids, "padding_mask": np.arange(3) < np.array([[1], [2], [3], [3]] * 2)}
    found = helpers.arrays(helpers.draw_eagerly(made, batch, sampler(stop_strings="ab")))
    rows = rows_of(found)
    assert any(row[0] == b and len(row) > 1 for row in rows)


@pytest.fixture(scope="module")
def compiled():
    """XLA, and the texts that people see."""
    chosen = rlhf.Sampler(LENGTH, stop_strings=STRINGS)
    made = acting()
    found = made.generate(BATCH, chosen)
    return chosen, found, made


def test_xla_and_eager_end_alike(compiled):
    chosen, found, made = compiled
    eager = helpers.draw_eagerly(made, BATCH, chosen)
    assert rows_of(helpers.arrays(found)) == rows_of(helpers.arrays(eager))
    np.testing.assert_array_equal(found.ended, eager.ended)


def test_texts_end_before_the_string(compiled):
    chosen, _, made = compiled
    reward = rlhf.RewardPool(lambda responses: [0.0] * len(responses), rows=99)
    trainer = helpers.ppo(made, reward, sampler=chosen)
    trainer.compile("sgd", run_eagerly=True)
    collected = trainer.collect(BATCH)
    rows = masked_rows(collected.rollout.token_ids, collected.rollout.response_mask)
    assert not any(s in text for text in collected.episodes.responses for s in STRINGS)
    ended = np.asarray(collected.rollout.ended)
    assert collected.episodes.ended.tolist() == ended.tolist()
    for row, text, is_whole in zip(rows, collected.episodes.responses, ended, strict=True):
        whole = text_of(row)
        assert whole.startswith(text) and (is_whole or whole == text)
        if is_whole and row[-1] != 0:
            assert any(whole[len(text) :].startswith(s) for s in STRINGS)


def test_generated_texts_end_before_the_string_and_are_whole():
    made = acting()
    prompts = [*"abcdefgh"] * 4
    chosen = rlhf.Sampler(LENGTH, stop_strings=("ab", "cd"), stop_token_ids=None)
    texts, whole = made.generate(prompts, chosen, return_ended=True, jit_compile=False)
    assert not any("ab" in text or "cd" in text for text in texts)
    assert 0 < whole.sum() < len(prompts)
    without = rlhf.Sampler(LENGTH, stop_token_ids=None)
    longer = made.generate(prompts, without, jit_compile=False)
    assert all(x.startswith(y) for x, y in zip(longer, texts, strict=True))
    assert [x != y for x, y in zip(longer, texts, strict=True)] == whole.tolist()


def test_the_best_responses_are_whole_demonstrations():
    made = acting()

    def brevity(responses):
        return [-len(text) for text in responses]

    chosen = rlhf.Sampler(LENGTH, stop_strings=("ab", "cd"), stop_token_ids=None)
    found = rlhf.best_of_n(made, brevity, [*"abcd"], 4, chosen, jit_compile=False)
    assert found.ended.any() and not found.ended.all()
    for record in found.demonstrations():
        assert "ab" not in record["response"]
    # A text that ends at a token has the tokens that were sampled.
    texts = [x for row in found.responses for x in row if isinstance(x, tokens.SampledText)]
    assert texts and all(text_of(x.token_ids) == x for x in texts)


def test_a_missing_end_can_be_scored_with_strings_alone():
    shaping = rlhf.RewardShaping(missing_end_score=-9.0)
    options = {"sampler": sampler(stop_strings=STRINGS), "shaping": shaping}
    trainer = helpers.ppo(acting(), lambda responses: [1.0] * len(responses), **options)
    trainer.compile("sgd", run_eagerly=True)
    rollout = trainer.collect(BATCH).rollout
    expected = np.where(rollout.ended, 1.0, -9.0)
    np.testing.assert_array_equal(rollout.scores, expected)
    assert len(set(expected.tolist())) == 2
    with pytest.raises(ValueError, match="need stop tokens"):
        helpers.ppo(acting(), lambda responses: [], sampler=sampler(), shaping=shaping)


@pytest.mark.parametrize("strings", [("\n",), ("\n\nHuman:", "</s>"), (".", " the"), ("so on",)])
def test_the_automaton_finds_what_python_finds(strings):
    lm = embedded()
    pieces = tokens.pieces(lm.preprocessor)
    stops = stop_strings.StopStrings.of(lm, rlhf.Sampler(8, stop_strings=strings))
    text = "Tom ran home.\n\nHuman: and so on, the\n end</s>" * 2
    ids = tokens.tokenize([text], lm.preprocessor)[0]
    assert "".join(pieces[i] for i in ids) == text
    state, so_far = np.zeros((1,), "int32"), ""
    for token in ids:
        state, found = stops.advance(state, np.array([token]))
        longer = so_far + pieces[token]
        # Strings that end inside of this token.
        new = any(longer[: n + 1].endswith(strings) for n in range(len(so_far), len(longer)))
        assert bool(found[0]) == new
        so_far = longer


@functools.cache
def embedded():
    return keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)


def test_a_character_of_bytes_is_refused():
    with pytest.raises(ValueError, match=r"'☃' cannot be a stop string.*as several tokens"):
        embedded_sampler = rlhf.Sampler(8, stop_strings="☃")
        stop_strings.StopStrings.of(embedded(), embedded_sampler)


def test_a_model_without_tokenizer_is_refused():
    with pytest.raises(ValueError, match="need a tokenizer"):
        stop_strings.StopStrings.of(helpers.lm(), sampler(stop_strings="a"))


@pytest.mark.parametrize("strings", ["", ["a", ""], [1], 3, None])
def test_what_is_no_string(strings):
    with pytest.raises(ValueError, match="`stop_strings` must be a string or a sequence"):
        sampler(stop_strings=strings)


def test_a_sampler_with_strings_is_a_value():
    one, other = sampler(stop_strings=["a", "b"]), sampler(stop_strings=("a", "b"))
    assert one == other and hash(one) == hash(other) and one.stop_strings == ("a", "b")
    assert sampler(stop_strings="ab").stop_strings == ("ab",) and one.matches_policy


SMOLLM2 = pathlib.Path(os.environ.get("SMOLLM2", "no folder"))


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="SMOLLM2 names no folder of SmolLM2-135M")
def test_pieces_of_a_large_vocabulary():
    tokenizer = rlhf.ActorCritic.from_preset(SMOLLM2).causal_lm.preprocessor.tokenizer
    pieces = tokens.pieces(tokenizer)
    ids = tokens.tokenize(["Human: Is 2 + 2 = 4?\n\nAssistant: Yes.\n"], tokenizer)[0]
    assert "".join(pieces[i] for i in ids) == "Human: Is 2 + 2 = 4?\n\nAssistant: Yes.\n"
