"""Policy and critic in one model: values, dropout, presets, generation."""

import helpers
import keras
import keras_hub
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.models import lm_adapter, lora
from kerasrlhf.models.actor_critic import ActorCritic, require_actor
from kerasrlhf.types import Sampler

BATCH = helpers.prompts([6, 3, 1])


def outputs(actor, batch=BATCH):
    return {name: np.array(x) for name, x in actor(batch).items()}


def assert_equal_outputs(actor, expected):
    for name, value in outputs(actor).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_the_value_head_starts_at_zero(family):
    """N11; and without a value of its own it leaves the trunk alone."""
    actor = ActorCritic.from_causal_lm(helpers.lm(family))
    values = outputs(actor)["values"]
    assert values.shape == (3, 6) and values.dtype == "float32" and not values.any()
    assert not any(np.any(w) for w in actor.value_head.get_weights())


def test_logits_are_the_language_model_s():
    for family in helpers.FAMILIES:
        actor = helpers.actor(family)
        inputs = {"token_ids": BATCH["token_ids"], "padding_mask": BATCH["padding_mask"] * 1}
        expected = actor.causal_lm(inputs)
        np.testing.assert_allclose(outputs(actor)["logits"], expected, atol=1e-5)


def test_values_are_read_where_the_logits_are():
    """One number per token, from the state after it: a later token does not change it (N1)."""
    actor = helpers.actor()
    changed = {**BATCH, "token_ids": BATCH["token_ids"].copy()}
    changed["token_ids"][:, 4] += 1
    before, after = outputs(actor)["values"], outputs(actor, changed)["values"]
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[0, 4:] != after[0, 4:]).all()


def test_dropout_is_off():
    """N13."""
    for actor in (
        helpers.actor(dropout=0.5),
        helpers.actor("llama", dropout=0.5),
        helpers.actor(critic=helpers.backbone(dropout=0.5)),
    ):
        expected = outputs(actor)
        assert_equal_outputs(actor, expected)
        training = {name: np.array(x) for name, x in actor(BATCH, training=True).items()}
        for name, value in training.items():
            np.testing.assert_array_equal(value, expected[name])


def test_the_model_is_used_as_it_is():
    model = helpers.lm()
    actor = ActorCritic(model)
    assert actor.causal_lm is model
    assert len(actor.weights) == len(model.weights) + 2


def test_a_critic_of_its_own():
    """P22: values from the critic alone, logits from the actor alone."""
    critic = helpers.lm("llama", seed=3)
    actor = helpers.actor(critic=critic)
    assert actor.critic is critic.backbone
    before = outputs(actor)
    helpers.filled(actor.causal_lm, seed=8)
    after = outputs(actor)
    np.testing.assert_array_equal(after["values"], before["values"])
    assert (after["logits"] != before["logits"]).any()
    helpers.filled(critic.backbone, seed=9)
    last = outputs(actor)
    np.testing.assert_array_equal(last["logits"], after["logits"])
    assert (last["values"] != after["values"]).any()
    starts, width = np.array([2, 1, 1], "int32"), 3
    ids, mask = BATCH["token_ids"], BATCH["padding_mask"]
    stats = actor.token_stats(ids, mask, starts, width)
    np.testing.assert_array_equal(actor.token_values(ids, mask, starts, width), stats.values)


def test_a_critic_begins_as_no_other_kind_of_reward_model():
    steps = rlhf.ProcessRewardModel(helpers.lm(texts=True), separator="a")
    two = [rlhf.RewardModel(helpers.backbone(seed=seed)) for seed in (3, 4)]
    for other in (steps, rlhf.RewardEnsemble(two)):
        with pytest.raises(ValueError, match=rf"`RewardModel`.*Received: {type(other).__name__}"):
            ActorCritic(helpers.lm(), critic=other)


def test_a_critic_of_an_adapted_reward_model_has_its_adapters_merged():
    reward = rlhf.RewardModel(helpers.backbone(seed=2))
    helpers.filled(reward.score_head, seed=6)
    reward.backbone.enable_lora(2)
    helpers.filled(reward.backbone, seed=4)
    actor = ActorCritic(helpers.lm(), critic=reward)
    assert not lora.adapted_layers(actor.critic) and lora.adapted_layers(reward.backbone)
    assert len(actor.critic.trainable_variables) == len(helpers.backbone().trainable_variables)
    values = np.array(actor(BATCH)["values"])
    np.testing.assert_allclose(values[[0, 1, 2], [5, 2, 0]], reward(BATCH), atol=1e-4)


def test_a_copied_critic_values_as_the_shared_trunk_does():
    model = helpers.lm("llama")
    shared, separate = ActorCritic(model), ActorCritic(model, lm_adapter.copy(model))
    for actor in (shared, separate):
        helpers.filled(actor.value_head, seed=7)
    np.testing.assert_allclose(outputs(separate)["values"], outputs(shared)["values"], atol=1e-6)


def test_output_embeddings_of_a_critic_are_not_trained():
    """Values do not depend on them; the optimizer keeps no moments of them."""
    critic = helpers.backbone("llama", seed=3, tie_word_embeddings=False)
    actor = helpers.actor("llama", critic=critic, tie_word_embeddings=False)
    unread = critic.token_embedding.reverse_embeddings
    assert [v for v in actor.weights if not v.trainable] == [unread]
    read = actor.causal_lm.backbone.token_embedding.reverse_embeddings
    assert any(v is read for v in actor.trainable_variables)


def test_a_critic_that_is_the_actor_is_refused():
    model = helpers.lm()
    for critic in (model, model.backbone):
        with pytest.raises(ValueError, match="own network"):
            ActorCritic(model, critic=critic)


def test_token_stats_against_the_definition():
    """Shift by one, temperature (N10), entropy in nats, zero at token 0."""
    actor = helpers.actor()
    stats = actor.token_stats(BATCH["token_ids"], BATCH["padding_mask"], temperature=0.5)
    stats = type(stats)(*map(np.array, stats))
    model = outputs(actor)
    logits = model["logits"].astype("float64") / 0.5
    log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for row in range(3):
        for t in range(1, helpers.COLUMNS):
            chosen = log_softmax[row, t - 1]
            assert stats.logprobs[row, t] == pytest.approx(
                chosen[BATCH["token_ids"][row, t]], abs=1e-4
            )
            assert stats.entropy[row, t] == pytest.approx(-(np.exp(chosen) @ chosen), abs=1e-4)
            assert stats.values[row, t] == pytest.approx(model["values"][row, t - 1], abs=1e-5)
    assert not any(np.any(x[:, 0]) for x in stats)


MAKERS = {
    "gpt2": lambda: helpers.actor(),
    "gpt2 with its tokenizer": lambda: helpers.actor(texts=True),
    "tied llama": lambda: helpers.actor("llama"),
    "untied llama": lambda: helpers.actor("llama", tie_word_embeddings=False),
    "critic": lambda: helpers.actor(texts=True, critic=helpers.lm("llama", seed=5)),
    "tied critic": lambda: helpers.actor("llama", critic=helpers.backbone("llama", seed=5)),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_preset_gives_back_the_same_actor(maker, tmp_path):
    actor = MAKERS[maker]()
    expected = outputs(actor)
    actor.save_to_preset(tmp_path / "preset")
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    again = ActorCritic.from_preset(tmp_path / "preset")
    assert_equal_outputs(again, expected)
    assert (again.critic is None) == (actor.critic is None)
    assert (again.causal_lm.preprocessor is None) == (actor.causal_lm.preprocessor is None)
    assert len(again.trainable_variables) == len(actor.trainable_variables)
    # keras-hub reads the same folder.
    alone = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"))
    inputs = {"token_ids": BATCH["token_ids"], "padding_mask": BATCH["padding_mask"] * 1}
    np.testing.assert_array_equal(alone(inputs), expected["logits"])


@pytest.mark.parametrize("maker", MAKERS)
def test_one_keras_file_gives_back_the_same_actor(maker, tmp_path):
    actor = MAKERS[maker]()
    actor.save(tmp_path / "actor.keras")
    again = keras.saving.load_model(tmp_path / "actor.keras")
    assert_equal_outputs(again, outputs(actor))
    assert (again.critic is None) == (actor.critic is None)
    assert len(again.trainable_variables) == len(actor.trainable_variables)
    texts = actor.causal_lm.preprocessor is not None
    assert again.stop_token_ids(Sampler(length=1)) == ((0,) if texts else ())
    if texts:
        vocabularies = [x.causal_lm.preprocessor.tokenizer.vocabulary for x in (again, actor)]
        assert vocabularies[0] == vocabularies[1]


def test_a_config_is_the_same_architecture_with_other_weights():
    actor = helpers.actor("llama", critic=helpers.backbone("llama"))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(actor))
    assert isinstance(again, ActorCritic) and again.causal_lm is not actor.causal_lm
    assert [w.shape for w in again.weights] == [w.shape for w in actor.weights]
    again.set_weights(actor.get_weights())
    assert_equal_outputs(again, outputs(actor))


def test_one_keras_file_of_trained_adapters_is_merged(tmp_path):
    actor = helpers.actor()
    actor.causal_lm.backbone.enable_lora(2)
    helpers.filled(actor.causal_lm.backbone, seed=4, stddev=0.3)
    actor.save(tmp_path / "actor.keras")
    again = outputs(keras.saving.load_model(tmp_path / "actor.keras"))
    for name, value in outputs(actor).items():
        np.testing.assert_allclose(again[name], value, atol=1e-4)


def test_presets_of_trained_adapters_are_merged(tmp_path):
    actor = helpers.actor()
    actor.causal_lm.backbone.enable_lora(2)
    helpers.filled(actor.causal_lm.backbone, seed=4, stddev=0.3)
    expected = outputs(actor)
    actor.save_to_preset(tmp_path / "preset")
    again = ActorCritic.from_preset(tmp_path / "preset")
    for name, value in outputs(again).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_the_dtype_of_a_preset_holds_for_both_networks(tmp_path):
    helpers.actor(critic=helpers.backbone(seed=5)).save_to_preset(tmp_path / "preset")
    actor = ActorCritic.from_preset(tmp_path / "preset", dtype="bfloat16")
    assert actor.causal_lm.backbone.compute_dtype == actor.critic.compute_dtype == "bfloat16"
    assert outputs(actor)["values"].dtype == "float32"


def test_a_failing_save_leaves_the_former_folder(tmp_path, monkeypatch):
    actor = helpers.actor()
    actor.save_to_preset(tmp_path / "preset")
    expected = outputs(actor)
    helpers.filled(actor, seed=2)

    def fails(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(keras.saving, "save_weights", fails)
        with pytest.raises(OSError, match="disk full"):
            actor.save_to_preset(tmp_path / "preset")
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    assert_equal_outputs(ActorCritic.from_preset(tmp_path / "preset"), expected)
    actor.save_to_preset(tmp_path / "preset")
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    assert_equal_outputs(ActorCritic.from_preset(tmp_path / "preset"), outputs(actor))


def test_a_language_model_s_preset_gives_a_fresh_actor(tmp_path):
    model = helpers.lm("llama")
    ActorCritic(model)  # makes the configuration tell of tied embeddings
    model.save_to_preset(str(tmp_path / "preset"))
    actor = ActorCritic.from_preset(str(tmp_path / "preset"))
    assert not outputs(actor)["values"].any()


def test_a_missing_preset_names_what_is_possible(tmp_path):
    with pytest.raises(ValueError, match="No language model could be loaded"):
        ActorCritic.from_preset(tmp_path / "nothing")


def test_weights_survive_keras_checkpoints(tmp_path):
    actor = helpers.actor(critic=helpers.backbone(seed=5))
    expected = outputs(actor)
    actor.save_weights(tmp_path / "actor.weights.h5")
    helpers.filled(actor, seed=1)
    actor.load_weights(tmp_path / "actor.weights.h5")
    assert_equal_outputs(actor, expected)


@pytest.fixture(scope="module")
def writer():
    """An actor with a tokenizer and what it wrote in one trace."""
    actor = helpers.actor(texts=True)
    sampler = Sampler(length=5)
    prompts = ["abcab", "b", "ca"]
    return actor, sampler, prompts, actor.generate(prompts, sampler, seed=2)


def test_texts_in_texts_out(writer):
    actor, sampler, prompts, texts = writer
    assert isinstance(texts, list) and len(texts) == 3
    assert all(isinstance(text, str) for text in texts) and any(texts)
    assert not any("<" in text for text in texts)
    one = actor.generate(prompts[0], sampler, seed=2, jit_compile=False)
    assert one == texts[0]


def test_texts_are_those_of_the_token_ids(writer):
    actor, sampler, prompts, texts = writer
    tokenizer = actor.causal_lm.preprocessor.tokenizer
    rows = [[0, *np.array(tokenizer(text)).tolist()] for text in prompts]  # 0 starts every row
    ids, mask = np.zeros((3, 6), "int32"), np.zeros((3, 6), bool)
    for row, entries in enumerate(rows):
        ids[row, : len(entries)], mask[row, : len(entries)] = entries, True
    samples = actor.generate(
        {"token_ids": ids, "padding_mask": mask}, sampler, seed=2, jit_compile=False
    )
    for row, text in enumerate(texts):
        response = np.array(samples.token_ids[row])[np.array(samples.response_mask[row])]
        assert tokenizer.detokenize([i for i in response.tolist() if i]) == text or not text


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one"),
        (["a", 3], r"rows \[1\]"),
        (["a" * 40], "32"),
        ({"token_ids": [[1, 2]], "padding_mask": [[0, 1]]}, "padded on the right"),
        ({"token_ids": [[1, 2]], "padding_mask": [[0, 0]]}, "are empty"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(writer, prompts, message):
    with pytest.raises(ValueError, match=message):
        writer[0].generate(prompts, Sampler(length=20))


def test_batch_sizes_that_answer_nothing_are_refused(writer):
    for batch_size in (0, False):
        with pytest.raises(ValueError, match="`batch_size` must be"):
            writer[0].generate(["a"], Sampler(length=2), batch_size=batch_size)


def test_only_an_actor_is_an_actor(writer):
    assert require_actor(writer[0]) is writer[0]
    with pytest.raises(ValueError, match=r"must be an ActorCritic, .* of type GPT2CausalLM"):
        require_actor(writer[0].causal_lm)


def test_texts_without_a_tokenizer_are_refused():
    with pytest.raises(ValueError, match="no preprocessor"):
        helpers.actor().generate(["a"], Sampler(length=2))


def test_the_length_limit_is_exact():
    actor = helpers.actor(positions=16)
    actor.check_length(12, Sampler(length=4))
    with pytest.raises(ValueError, match=r"need 17 positions; the model has 16.*max_length=12"):
        actor.check_length(13, Sampler(length=4))
    narrow = helpers.actor(positions=32, critic=helpers.backbone(positions=8))
    with pytest.raises(ValueError, match="the model has 8"):
        narrow.check_length(12, Sampler(length=4))
    helpers.actor("llama").check_length(10_000, Sampler(length=4))


@pytest.mark.parametrize("model", [None, "gpt2", keras.Sequential(), 3])
def test_other_things_than_language_models_are_refused(model):
    with pytest.raises(ValueError, match="CausalLM"):
        rlhf.ActorCritic(model)


def test_critics_that_cannot_read_the_tokens_are_refused():
    with pytest.raises(ValueError, match="vocabulary of 23 and a critic with 20"):
        helpers.actor(critic=helpers.backbone(vocab=20))
    helpers.actor(critic=helpers.backbone(vocab=30))
    with pytest.raises(ValueError, match="text model"):
        helpers.actor(critic=keras.Sequential([keras.layers.Dense(1)]))
