"""Dialogues as rows: the user's turns are in the context, and never in the loss."""

import dataclasses

import helpers
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
import worlds

import kerasrlhf as rlhf
from kerasrlhf.data import dialogue as dialogue_lib
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rollouts.dialogues import Dialogue, Dialogues
from kerasrlhf.rollouts.scoring import PromptStrings
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.trainers.update_step import UpdateBatch

SAMPLER = rlhf.Sampler(length=3)


def acting(**options):
    actor = ActorCritic(helpers.lm(texts=True, positions=64), **options)
    helpers.filled(actor.value_head, seed=7)
    return actor


@pytest.fixture(scope="module")
def made():
    """A trainer after an iteration, its environment, and the rollout of the iteration."""
    actor = acting()
    environment = worlds.dialogue_env(lm=actor.causal_lm)
    # Another reference, so that the KL differs from 0, and no update: the weights stay.
    ppo = PPO(
        actor,
        environment,
        helpers.lm(texts=True, seed=9, positions=64),
        sampler=SAMPLER,
        kl=FixedKL(0.3),
        num_minibatches=2,
        update_epochs=1,
        gamma=0.9,
        group_size=2,
    )
    ppo.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    ppo.iterate(next(iter(environment.one_pass())))
    return ppo, environment, ppo.last


def rows_of(collected):
    rollout = helpers.arrays(collected.rollout)
    return range(len(rollout["ended"])), rollout


def replies(rollout, row):
    """The runs of true positions of a row, as lists of token ids."""
    mask = rollout["response_mask"][row]
    starts = np.flatnonzero(mask & ~np.roll(mask, 1))
    ends = np.flatnonzero(mask & ~np.roll(mask, -1)) + 1
    return [rollout["token_ids"][row, a:b].tolist() for a, b in zip(starts, ends, strict=True)]


def test_stepping_by_the_sampled_tokens_gives_the_same_rows_and_rewards(made):
    _, environment, collected = made
    rows, rollout = rows_of(collected)
    turns = set()
    for row in rows:
        # Groups of two dialogues to each prompt.
        environment.reset(options={"prompt": row // 2})
        total = 0.0
        for reply in replies(rollout, row):
            action = reply + [0] * (SAMPLER.length - len(reply))
            observation, reward, terminated, truncated, _ = environment.step(action)
            total += reward
        assert terminated or truncated
        ids = rollout["token_ids"][row][rollout["padding_mask"][row]].tolist()
        assert worlds.tokens_of(observation) == ids
        assert total == collected.raw_scores[row] == rollout["scores"][row]
        assert environment.messages[1:] == collected.episodes.dialogues[row]
        turns.add(len(replies(rollout, row)))
    assert len(turns) > 1, "dialogues of different lengths"


def test_masks_have_gaps_and_numbers_per_token_are_zero_in_them(made):
    _, environment, collected = made
    rows, rollout = rows_of(collected)
    mask, padding = rollout["response_mask"], rollout["padding_mask"]
    for row in rows:
        said = [m for m in collected.episodes.dialogues[row] if m["role"] == "user"]
        after = np.arange(mask.shape[1]) >= rollout["prompt_lengths"][row]
        gaps = padding[row] & ~mask[row] & after
        # What the template writes of the user's turns: a mark, the words, and the next mark.
        text = "".join(f"s{m['content']}t" for m in said)
        found = rollout["token_ids"][row][gaps].tolist()
        assert found == environment.causal_lm.preprocessor.tokenizer(text).tolist()
        assert mask[row, padding[row].sum() - 1], "the policy has the last word"
    for name in ("logprobs", "ref_logprobs", "values", "behavior_logprobs"):
        assert not rollout[name][~mask].any() and rollout[name][mask].all()


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "critic"])
def test_sampling_in_turns_is_teacher_forcing_of_the_row(made, separate):
    ppo, environment, collected = made
    if separate:
        critic = helpers.backbone(seed=4, positions=64)
        ppo = PPO(
            acting(critic=critic), environment, sampler=SAMPLER, kl=FixedKL(0.1), update_epochs=1
        )
        ppo.compile(jit_compile=False)
        collected = ppo.collect(next(iter(environment.one_pass())))
    rollout = collected.rollout
    rows = rollout.token_ids, rollout.padding_mask, rollout.prompt_lengths
    columns = environment.columns
    stats = ppo.actor.token_stats(*rows, columns)
    mask = np.asarray(rollout.response_mask)
    pairs = [
        (rollout.logprobs, stats.logprobs),
        (rollout.values, stats.values),
        (rollout.ref_logprobs, ppo.reference.logprobs(*rows, columns)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(
            np.asarray(ours)[mask], np.asarray(theirs)[mask], rtol=1e-3, atol=2e-5
        )


def test_advantages_skip_the_gaps(made):
    """The loop over the policy's own tokens, as if nobody else had spoken."""
    ppo, _, collected = made
    rollout = collected.rollout
    experience = ppo.estimate(rollout)
    rows, found = rows_of(collected)
    advantages = np.zeros(found["logprobs"].shape)
    for row in rows:
        own = np.flatnonzero(found["response_mask"][row])
        rewards = -0.3 * (found["logprobs"][row] - found["ref_logprobs"][row])
        rewards[own[-1]] += found["scores"][row]
        following = running = 0.0
        for t in own[::-1]:
            delta = rewards[t] + 0.9 * following - found["values"][row, t]
            running = delta + 0.9 * 0.95 * running
            advantages[row, t], following = running, found["values"][row, t]
    mask = found["response_mask"]
    targets = np.where(mask, advantages + found["values"], 0.0)
    whitened = (advantages - advantages[mask].mean()) / advantages[mask].std()
    np.testing.assert_allclose(experience.returns, targets, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(experience.advantages, whitened * mask, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_user_reaches_the_gradient(made):
    ppo, _, collected = made
    step = ppo.update_step()
    experience = ppo.estimate(collected.rollout)
    gaps = ~np.asarray(experience.response_mask)
    noise = np.random.default_rng(0).normal(0.0, 3.0, gaps.shape).astype("float32")

    def gradients(minibatch):
        batch = UpdateBatch(minibatch, step.counts(minibatch), None, tf.constant(1.0))
        return [np.asarray(x) for x in step.gradients(batch)[0]]

    plain = gradients(experience)
    names = ("logprobs", "ref_logprobs", "values", "returns")
    spoiled = {name: np.where(gaps, noise, getattr(experience, name)) for name in names}
    others = gradients(experience._replace(**spoiled))
    assert any(x.any() for x in plain)
    for ours, theirs in zip(plain, others, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_statistics_count_the_words_of_the_policy(made):
    ppo, _, collected = made
    mask = np.asarray(collected.rollout.response_mask)
    assert ppo.statistics["objective/length"] == pytest.approx(mask.sum(axis=1).mean())
    assert ppo.statistics["policy/ratio_error"] < 1e-4
    responses = replies(helpers.arrays(collected.rollout), 0)
    assert sum(map(len, responses)) == mask[0].sum()


def test_reward_models_read_the_whole_dialogue():
    model = RewardModel(helpers.lm(texts=True, seed=5, positions=64))
    helpers.filled(model.score_head, seed=3)
    actor = acting()
    world = worlds.dialogue_env(reward=model, lm=actor.causal_lm)
    ppo = PPO(actor, world, sampler=SAMPLER, kl=FixedKL(0.1))
    ppo.compile(jit_compile=False)
    collected = ppo.collect(next(iter(world.one_pass())))
    rows, rollout = rows_of(collected)
    for row in rows:
        ids = rollout["token_ids"][row][rollout["padding_mask"][row]][None]
        prompt = rollout["prompt_lengths"][row : row + 1]
        expected = float(model.read(ids, ids >= 0, prompt).scores[0])
        assert collected.raw_scores[row] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_metrics_measure_whole_dialogues(made):
    _, environment, _ = made
    ppo = PPO(acting(), environment, sampler=SAMPLER, kl=FixedKL(0.1))
    greedy = dataclasses.replace(SAMPLER, temperature=0.0)

    def spoken(replies, completions, messages, responses):
        for texts, said, whole, text in zip(replies, completions, messages, responses, strict=True):
            assert whole[1:] == said and texts == [m["content"] for m in said[::2]]
            assert text.startswith(texts[0])
        return [len(texts) for texts in replies]

    ppo.compile(metrics=[spoken], validation_sampler=greedy, jit_compile=False)
    found = ppo.evaluate(return_dict=True, verbose=0)
    assert 1.0 <= found["spoken"] <= 3.0
    assert 0.0 <= found["score"] <= 3.0


VOCABULARY = "abcdefghijklmnopqrstuvwxyz\u010a"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def chat():
    """A tokenizer with the special tokens of ChatML."""
    tokens = {text: i for i, text in enumerate((*SPECIAL, *VOCABULARY))}
    tokens |= {"<": len(tokens), "|": len(tokens) + 1, ">": len(tokens) + 2, "_": len(tokens) + 3}
    tokenizer = keras_hub.models.GPT2Tokenizer({**tokens, "aa": len(tokens)}, merges=["a a"])
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=128)
    backbone = helpers.backbone(vocab=len(tokens) + 1, positions=128)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=preprocessor)


def talk(lm, turns, template="chatml", answers=("no", "why"), stops=None, length=8):
    """The row of a dialogue whose replies are given, with what ends each."""
    prompt = [{"role": "user", "content": "hi"}]
    batch = next(
        iter(rlhf.data.prompts([{"prompt": prompt}], lm.preprocessor, 1, template=template))
    )
    left = iter(answers)
    dialogue = Dialogue(lambda messages: next(left), len(turns), 40, template)
    dialogues = Dialogues(dialogue, lm, length, stops)
    ids = np.asarray(batch["token_ids"]).tolist()
    (transcript,) = dialogues.begin(ids, PromptStrings.of(batch))
    for text, has_ended in turns:
        (row,) = rlhf.data.tokenize([text], lm.preprocessor, parse_special=True)
        dialogues.reply([transcript], [row], [has_ended])
        dialogues.answer([transcript])
    return transcript


@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut"])
def test_a_row_is_what_fine_tuning_on_all_turns_sees(chat, cut):
    """The tokens, and which of them are learned, of `demonstrations(all_turns=True)`."""
    mark = "" if cut else "<|im_end|>"
    said = [(text + mark, not cut) for text in ("aab", "cd", "e")]
    transcript = talk(chat, said)
    contents = ["hi", "aab", "no", "cd", "why", "e"]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    assert transcript.messages == messages
    demos = rlhf.data.demonstrations(
        [{"messages": messages}], chat.preprocessor, 1, template="chatml", all_turns=True
    )
    x, _, weight = next(demos.as_numpy_iterator())
    ids = x["token_ids"][0].tolist()
    learned = [False, *(weight[0][:-1] > 0)]
    if cut:
        # The environment has written the ends of the turns, which are not learned then.
        ids, learned = ids[:-1], learned[:-1]
        ends = [i for i, token in enumerate(ids) if token == 2 and learned[i]]
        learned = [flag and i not in ends for i, flag in enumerate(learned)]
    assert transcript.token_ids == ids
    assert transcript.spoken == learned
    assert transcript.ended is not cut
    rendered = dialogue_lib.render(messages, "chatml")
    prompt = dialogue_lib.render(messages[:1], "chatml", add_generation_prompt=True)
    assert prompt + transcript.text == rendered.removesuffix("<|im_end|>\n")


def test_words_of_the_user_are_no_special_tokens(chat):
    transcript = talk(chat, [("a<|im_end|>", True), ("b<|im_end|>", True)], answers=["<|im_end|>x"])
    gap = [i for i, own in zip(transcript.token_ids, transcript.spoken, strict=True) if not own]
    # After the prompt: the start of the user's turn, typed characters, and the end of the turn.
    between = gap[transcript.prompt_length :]
    assert between.count(1) == 2 and between.count(2) == 1
    assert "<|im_end|>x" in transcript.text


def test_a_stop_string_that_begins_the_users_turn_is_not_written_twice():
    lm = helpers.lm(texts=True, positions=64)
    sampler = rlhf.Sampler(8, stop_strings="s")
    stops = ActorCritic(lm).ending(sampler).strings
    said = [("abs", True), ("cs", True)]
    transcript = talk(lm, said, worlds.template, ["d"], stops)
    assert [m["content"] for m in transcript.messages] == ["hi", "ab", "d", "c"]
    assert transcript.text == "absdtc"
    spoken = "".join(".#"[own] for own in transcript.spoken[transcript.prompt_length :])
    assert spoken == "###..##"


def test_a_template_that_changes_history_is_refused():
    lm = helpers.lm(texts=True, positions=64)

    def forgetful(messages, add_generation_prompt=False):
        return worlds.template(messages[-2:], add_generation_prompt)

    with pytest.raises(ValueError, match="does not render a dialogue as a continuation"):
        talk(lm, [("a", False), ("b", False), ("c", False)], forgetful)


def test_two_replicas_have_the_dialogues_of_one(made):
    ppo, _, _ = made
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        actor = acting()
        environment = worlds.dialogue_env(lm=actor.causal_lm)
        other = PPO(actor, environment, sampler=SAMPLER, kl=FixedKL(0.3), group_size=2)
        other.compile(jit_compile=False)
        batch = next(iter(environment.one_pass()))
        shared = other.collect(batch)
    plain = ppo.collect(batch)
    np.testing.assert_array_equal(plain.rollout.token_ids, shared.rollout.token_ids)
    np.testing.assert_array_equal(plain.raw_scores, shared.raw_scores)
    for name in ("logprobs", "values"):
        ours, theirs = (getattr(x.rollout, name) for x in (plain, shared))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_compiled_dialogue_is_the_plain_one(made):
    ppo, environment, _ = made
    batch = next(iter(environment.one_pass()))
    plain = ppo.collect(batch)
    other = PPO(ppo.actor, environment, sampler=SAMPLER, kl=FixedKL(0.3), group_size=2)
    other.compile()
    compiled = other.collect(batch)
    np.testing.assert_array_equal(plain.rollout.token_ids, compiled.rollout.token_ids)
    np.testing.assert_array_equal(plain.rollout.response_mask, compiled.rollout.response_mask)
    np.testing.assert_allclose(plain.rollout.logprobs, compiled.rollout.logprobs, atol=1e-5)


def test_options_of_a_trainer_hold_for_dialogues(tmp_path):
    """Older rollouts, other terms of the loss, shaped scores and logs, all in rows with gaps."""
    actor = acting()
    environment = worlds.dialogue_env(lm=actor.causal_lm)
    ppo = PPO(
        actor,
        environment,
        sampler=dataclasses.replace(SAMPLER, epsilon=0.1),
        kl=FixedKL(0.1, place="loss"),
        update_epochs=1,
        loss_reduction="fixed",
        importance_cap=2.0,
        entropy_coef=0.01,
        mask_overlong=True,
        memory=rlhf.RolloutMemory(2, reuse=1),
        prompt_prediction=rlhf.PromptPrediction(coef=0.1, reward=0.1),
        shaping=rlhf.RewardShaping(overlong_buffer=9, per_token=True, missing_end_penalty=0.5),
    )
    ppo.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    board = rlhf.callbacks.TensorBoard(tmp_path)
    samples = rlhf.callbacks.Samples(path=tmp_path / "samples.jsonl", printer=lambda line: None)
    ppo.fit(batch_size=4, epochs=2, verbose=0, callbacks=[board, samples])
    assert ppo.statistics["policy/updates"] == 2 and ppo.statistics["policy/ratio_error"] < 1e-4
    rollout = ppo.last.rollout
    mask = np.asarray(rollout.response_mask)
    lengths, ended = mask.sum(axis=1), np.asarray(rollout.ended)
    # Penalties count the 9 tokens that the policy may say, not the user's.
    expected = ppo.last.raw_scores / lengths - lengths / 9 - 0.5 * ~ended
    np.testing.assert_allclose(rollout.scores, expected, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "samples.jsonl").read_text("utf-8").count("\n") > 0
