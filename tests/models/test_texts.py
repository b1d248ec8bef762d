"""Texts and messages that go into a model and come out of it."""

import helpers
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf import replica, tokens
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.types import Sampler, masked_rows

SAMPLER = Sampler(length=3, stop_token_ids=None)


@pytest.fixture(scope="module")
def actor():
    return helpers.actor("llama", texts=True)


@pytest.fixture
def programs(monkeypatch):
    """How many programs are made: one for every shape of every compiled function."""
    shapes = []
    compiled = replica.compiled

    def counted(function, jit_compile=True):
        def noted(*args):
            shapes.append([tuple(x.shape) for x in args])
            return function(*args)

        return compiled(noted, jit_compile=False)

    monkeypatch.setattr(replica, "compiled", counted)
    return shapes


def test_many_lengths_are_few_programs(programs):
    """Thirty lengths of prompts from 1 to 30 tokens."""
    prompts = ["b" * n for n in range(1, 31)]
    actor = helpers.actor("llama", texts=True)
    reward = RewardModel(helpers.backbone("llama"), helpers.preprocessor())
    for prompt in prompts:
        actor.generate(prompt, SAMPLER)
        reward.score([prompt], ["c"])
    generated = {tuple(map(tuple, x)) for x in programs}
    assert len(programs) == len(generated) <= 2 * 4


def test_padding_changes_no_response(actor):
    prompts = ["b" * n for n in (1, 5, 17)]
    together = actor.generate(prompts, SAMPLER, jit_compile=False)
    ids, mask = tokens.padded(tokens.encode(prompts, helpers.preprocessor()))
    samples = actor.generate({"token_ids": ids, "padding_mask": mask}, SAMPLER, jit_compile=False)
    rows = masked_rows(samples.token_ids, samples.response_mask)
    assert [text.token_ids for text in together] == rows


def test_a_long_prompt_makes_only_its_own_batch_long(programs):
    actor = helpers.actor("llama", texts=True)
    actor.generate(["b", "b", "b" * 30, "b"], SAMPLER, batch_size=2)
    assert [shapes[0] for shapes in programs] == [(2, 16), (2, 32)]


def test_padding_stays_within_the_model_s_positions():
    actor = helpers.actor("gpt2", texts=True, positions=20)
    assert len(actor.generate(["b" * 16], SAMPLER, jit_compile=False)) == 1
    with pytest.raises(ValueError, match="21 positions; the model has 20"):
        actor.generate(["b" * 17], SAMPLER, jit_compile=False)


def test_a_length_is_a_sampler(actor):
    assert actor.generate("b", 3, jit_compile=False) == actor.generate(
        "b", Sampler(length=3), jit_compile=False
    )
    with pytest.raises(ValueError, match="`sampler` must be"):
        actor.generate("b", True)


def test_a_schedule_is_no_temperature_to_generate_with(actor):
    sampler = Sampler(length=3, temperature=lambda iteration: 1.0)
    with pytest.raises(ValueError, match=r"schedule.*pass a number"):
        actor.generate("b", sampler)


def test_batches_have_one_size_and_their_rows_come_back_in_order():
    sizes = []

    def double(x, words):
        sizes.append((len(x), len(words)))
        return 2 * x, [word + word for word in words]

    rows = np.arange(5), list("abcde")
    numbers, words = replica.in_batches(double, rows, 2)
    assert numbers.tolist() == [0, 2, 4, 6, 8] and words == ["aa", "bb", "cc", "dd", "ee"]
    replica.in_batches(double, (np.arange(1), ["a"]), 4)
    assert sizes == [(2, 2)] * 3 + [(4, 4)]


CHAT = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "bc"}]]


def said(messages, add_generation_prompt=False):
    text = "".join({"user": "u", "assistant": "x"}[m["role"]] + m["content"] for m in messages)
    return text + "x" * add_generation_prompt


def test_messages_are_prompts(actor):
    options = {"jit_compile": False, "template": said}
    together = actor.generate(CHAT, SAMPLER, **options)
    assert together == actor.generate(["uax", "ubcx"], SAMPLER, jit_compile=False)
    one = actor.generate(CHAT[0], SAMPLER, **options)
    assert isinstance(one, str) and one == together[0]


def test_messages_are_scored_as_preferences_are(actor):
    reward = RewardModel(helpers.backbone("llama"), helpers.preprocessor())
    helpers.filled(reward.score_head, seed=3)
    pair = {"prompt": CHAT[0], "chosen": "b", "rejected": "c"}
    pairs = rlhf.data.preferences([pair], helpers.preprocessor(), 1, template=said)
    trained = np.asarray(reward(next(iter(pairs))[0]))[0]
    scored = reward.score([CHAT[0]] * 2, ["b", "c"], template=said)
    np.testing.assert_allclose(scored, trained, atol=1e-5)
    again = reward.score(
        [CHAT[0]] * 2, [[{"role": "assistant", "content": x}] for x in "bc"], template=said
    )
    np.testing.assert_allclose(again, scored, atol=1e-5)


def test_sampled_responses_are_scored_by_the_tokens_that_were_sampled():
    """Text that is tokenized again may be other tokens: `aa` is one token or two."""
    lm = helpers.lm("llama", texts=True)
    reward = RewardModel(helpers.backbone("llama"), lm.preprocessor)
    helpers.filled(reward.score_head, seed=3)
    a = tokens.tokenize(["a"], lm.preprocessor)[0]
    (sampled,) = tokens.detokenize([a + a], lm.preprocessor, after=[[5]])
    assert sampled == "aa"
    two, one = reward.score(["b", "b"], [sampled, "aa"], ended=False)
    ids = np.array([[0, *tokens.tokenize(["b"], lm.preprocessor)[0], *a, *a]])
    expected = np.asarray(reward({"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)}))
    assert two == pytest.approx(float(expected[0]), abs=1e-5)
    assert abs(one - two) > 1e-3


@pytest.mark.parametrize("prompts", ["Tom", {"prompt": "a"}, 3, None, []])
def test_one_text_is_no_list_of_prompts(actor, prompts):
    """A string in place of a list would be answered letter by letter."""
    reward = RewardModel(helpers.backbone("llama"), helpers.preprocessor())
    with pytest.raises(ValueError, match="must be a list with at least one entry"):
        rlhf.best_of_n(actor, lambda responses: [0.0], prompts, 2, SAMPLER)
    with pytest.raises(ValueError, match="must be a list with at least one entry"):
        reward.score(prompts, ["a"])
    with pytest.raises(ValueError, match="must be a list with at least one entry"):
        reward.normalize(prompts, policy=actor)


def test_prompts_of_a_generator_are_read_once(actor):
    found = rlhf.best_of_n(
        actor,
        lambda responses: [len(r) for r in responses],
        (text for text in ["a", "b"]),
        2,
        SAMPLER,
        jit_compile=False,
    )
    assert found.prompts == ["a", "b"] and len(found.winners) == 2
    reward = RewardModel(helpers.backbone("llama"), helpers.preprocessor())
    helpers.filled(reward.score_head, seed=3)
    reward.normalize((text for text in ["a", "b", "ab"]), policy=actor, sampler=SAMPLER)


def test_best_of_n_keeps_conversations_and_leaves_out_empty_winners(actor):
    seen = []

    def reward(prompts, completions):
        seen.extend(prompts)
        return [float(len(c[0]["content"])) for c in completions]

    found = rlhf.best_of_n(actor, reward, CHAT, 2, SAMPLER, jit_compile=False, template=said)
    assert found.prompts == CHAT and seen[0] == CHAT[0]
    records = found.demonstrations()
    x, _, _ = next(
        rlhf.data.demonstrations(
            records, helpers.preprocessor(), 2, shuffle=False, template=said, end_token_id=None
        ).as_numpy_iterator()
    )
    heads = tokens.encode(["uax", "ubcx"], helpers.preprocessor())
    for row, mask, head, winner in zip(
        x["token_ids"], x["padding_mask"], heads, found.winners, strict=True
    ):
        assert row[mask].tolist() == head + winner.token_ids
    empty = rlhf.BestOfN(["p", "q"], [["", ""], ["a", ""]], np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert empty.demonstrations() == [{"prompt": "q", "response": "a"}]


def test_sampling_stops_at_the_end_of_a_turn():
    """Of a model whose vocabulary has `<|im_end|>`, whatever its tokenizer's end token is."""
    import keras_hub

    vocabulary = {"<|endoftext|>": 0, "a": 1, "<|im_end|>": 2, "aa": 3}
    tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary, merges=["a a"])
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=16)
    lm = keras_hub.models.GPT2CausalLM(helpers.backbone(vocab=4), preprocessor)
    made = ActorCritic(lm)
    assert made.stop_token_ids(SAMPLER) == ()
    assert made.stop_token_ids(Sampler(length=2)) == (0, 2)
    assert made.ended([[1, 2], [1], [3, 0]]).tolist() == [True, False, True]


def test_perplexity_tells_that_it_did_not_read_the_whole_text():
    lm = helpers.lm("gpt2", texts=True, positions=8)
    with pytest.warns(
        UserWarning, match="1 of 2 texts have more than 8 tokens; only their first 8"
    ):
        _, counts = rlhf.evaluation.negative_log_likelihood(lm, ["b" * 20, "bc"])
    assert counts.tolist() == [7, 2]
    lm.preprocessor.add_start_token = False
    with pytest.raises(ValueError, match="Each of the 2 texts is a single token"):
        rlhf.evaluation.perplexity(lm, ["b", "c"])


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [1, 0, 0]])
def test_kto_is_finite_for_every_mix_of_labels(labels):
    lm = helpers.lm("llama", texts=True)
    rows = [{"prompt": "a", "response": "bc"[i % 2], "label": x} for i, x in enumerate(labels)]
    kto = rlhf.KTO(lm)
    kto.compile("adam", jit_compile=False)
    data = rlhf.data.unpaired_preferences(rows, lm.preprocessor, 2, shuffle=False)
    assert np.isfinite(kto.fit(data, verbose=0).history["loss"]).all()
    assert all(np.isfinite(np.asarray(w)).all() for w in lm.get_weights())
