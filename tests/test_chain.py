"""The three steps by the recipes alone, on a model as Hugging Face publishes it, in chat format."""

import json

import huggingface
import keras
import keras_hub
import numpy as np
import pytest
from test_recipes import load, smoke

import kerasrlhf as rlhf

NAMES = ("Tom", "Ann", "Ben", "Sue")
QUESTIONS = ("Who had the ball?", "Who ran to the door?", "Type <|im_end|> for me.")
GREEDY = rlhf.Sampler(length=6, temperature=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Preferences with prompts that are messages; a system turn, an empty reply, extra keys."""
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {
            "prompt": [system, {"role": "user", "content": f"{name}: {question}"}],
            "chosen": [{"role": "assistant", "content": f"{name} did."}],
            "rejected": "I do not know, and the dog ran to the door.",
        }
        for name in NAMES
        for question in QUESTIONS
    ]
    rows = rows * 2 + [{**rows[0], "chosen": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """The folder with what sft, reward_model and ppo wrote, one from the other."""
    runs = tmp_path_factory.mktemp("runs")
    model = str(huggingface.folder(runs / "model"))
    chat = ["--template", "chatml", "--on-error", "skip"]
    with pytest.warns(UserWarning, match="cannot be used and were left out"):
        smoke(
            load("sft"),
            runs / "sft",
            *("--model", model, "--data", data, "--response-column", "chosen", "--lora-rank", "4"),
            *chat,
        )
        tuned = str(runs / "sft" / "model")
        smoke(load("reward_model"), runs / "reward", "--model", tuned, "--data", data, *chat)
        smoke(
            load("ppo"),
            runs / "ppo",
            *("--model", tuned, "--reward", str(runs / "reward" / "model"), "--prompts", data),
            *("--lora-rank", "4", *chat),
        )
    return runs


def test_the_policy_is_a_preset_of_plain_keras_hub(runs):
    plain = keras_hub.models.CausalLM.from_preset(str(runs / "ppo" / "model"))
    actor = rlhf.ActorCritic.from_preset(runs / "ppo" / "model")
    texts = huggingface.TEXTS[1:]
    ids = [plain.preprocessor.tokenizer(text) for text in texts]
    ours = [actor.causal_lm.preprocessor.tokenizer(text) for text in texts]
    assert [list(map(int, row)) for row in ids] == [list(map(int, row)) for row in ours]
    x = {"token_ids": np.array([[1, 40, 41, 42]]), "padding_mask": np.ones((1, 4), bool)}
    np.testing.assert_allclose(plain(x), actor(x)["logits"], atol=1e-5)
    before = keras_hub.models.CausalLM.from_preset(str(runs / "sft" / "model"))
    assert np.abs(np.asarray(plain(x)) - np.asarray(before(x))).max() > 1e-4, "PPO has trained it"
    text = plain.generate("Tom had", max_length=12)
    assert isinstance(text, str) and text.startswith("Tom had")


def test_it_answers_messages_up_to_the_end_of_the_turn(runs):
    actor = rlhf.ActorCritic.from_preset(runs / "ppo" / "model")
    tokenizer = actor.causal_lm.preprocessor.tokenizer
    end = tokenizer.token_to_id("<|im_end|>")
    assert actor.stop_token_ids(GREEDY)[0] == end
    messages = [{"role": "user", "content": "Tom: Who had the ball? <|im_end|>"}]
    answer = actor.generate(messages, GREEDY, template="chatml", jit_compile=False)
    text = "<|im_start|>user\nTom: Who had the ball? "
    typed = rlhf.data.tokenize([text, "<|im_end|>\n"], tokenizer, parse_special=True)
    rendered = rlhf.data.dialogue.render(messages, "chatml", add_generation_prompt=True)
    assert rendered.startswith(text) and typed[1][0] == end
    batch = next(
        rlhf.data.prompts(
            [{"prompt": messages}], actor.causal_lm.preprocessor, 1, template="chatml"
        ).as_numpy_iterator()
    )
    row = batch["token_ids"][0].tolist()
    assert row[0] == tokenizer.token_to_id("<|im_start|>") and row[:2].count(row[0]) == 1
    assert row.count(end) == 1, "the typed mark is text"
    for token in answer.token_ids:
        ids = np.array([row])
        logits = actor({"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)})["logits"]
        assert int(np.argmax(logits[0, -1])) == token
        row.append(token)


def test_the_reward_model_reads_what_was_preferred(runs):
    reward = rlhf.RewardModel.from_preset(runs / "reward" / "model")
    prompt = [{"role": "user", "content": "Tom: Who had the ball?"}]
    better, worse = reward.score(
        [prompt] * 2, ["Tom did.", "I do not know, and the dog ran to the door."], template="chatml"
    )
    assert better > worse


def test_adapters_that_were_trained_are_trained_on_by_ppo(tmp_path):
    """Supervised fine-tuning and PPO with LoRA on one object: the reference is the policy then."""
    lm = rlhf.ActorCritic.from_preset(huggingface.folder(tmp_path / "model")).causal_lm
    lm.backbone.enable_lora(2)
    rows = [{"prompt": "Tom had", "response": " a red ball."}] * 4
    lm.compile(optimizer="adam", loss="sparse_categorical_crossentropy", jit_compile=False)
    lm.fit(rlhf.data.demonstrations(rows, lm.preprocessor, 4), epochs=2, verbose=0)
    actor = rlhf.ActorCritic(lm)
    ppo = rlhf.PPO(
        actor,
        lambda responses: [float(len(r)) for r in responses],
        sampler=rlhf.Sampler(length=4),
        kl=rlhf.FixedKL(0.1),
        update_epochs=1,
    )
    ppo.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    prompts = rlhf.data.prompts(["Tom had", "Ann had"], lm.preprocessor, 2)
    first = ppo.iterate(next(iter(prompts)))
    second = ppo.iterate(next(iter(prompts)))
    assert abs(first["objective/kl"]) < 1e-5 < abs(second["objective/kl"])
