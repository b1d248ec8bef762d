"""Scores: where they are read, how they are learned, moved and saved."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf import replica
from kerasrlhf.losses import BradleyTerry
from kerasrlhf.metrics import PreferenceAccuracy
from kerasrlhf.models import generation, lm_adapter
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.types import Sampler

PROMPTS = ["abc", "ca", "b", "aab"] * 2
RESPONSES = ["de", "fgh", "a", "", "b", "edc", "hh", "g"]


def reward_model(family="gpt2", **options):
    model = RewardModel(helpers.lm(family, **options))
    helpers.filled(model.score_head, seed=6)
    return model


def pairs(rows=8, length=5):
    """Preference pairs: the preferred response is of low ids, the other of high ones."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1, helpers.VOCAB, (rows, 2, length))
    ids[:, 0, 2:] = generator.integers(1, 12, (rows, length - 2))
    ids[:, 1, 2:] = generator.integers(12, 23, (rows, length - 2))
    ends = generator.integers(3, length + 1, (rows, 2, 1))
    return {"token_ids": ids.astype("int32"), "padding_mask": np.arange(length) < ends}


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_the_score_is_read_at_the_last_real_token(family):
    """N3, N7: whatever stands behind it, and however much, changes nothing."""
    model = reward_model(family)
    batch = helpers.prompts([6, 3, 1])
    scores = np.array(model(batch))
    assert scores.shape == (3,) and scores.dtype == "float32" and len({*scores}) == 3
    wide = helpers.widened(batch, 5)
    wide["token_ids"][1, 3:] = 17
    np.testing.assert_allclose(model(wide), scores, atol=1e-5)
    alone = {"token_ids": batch["token_ids"][1:2, :3], "padding_mask": np.ones((1, 3), bool)}
    np.testing.assert_allclose(model(alone), scores[1:2], atol=1e-5)
    for position in range(3):  # every token up to the last counts
        changed = {**batch, "token_ids": batch["token_ids"].copy()}
        changed["token_ids"][1, position] = (changed["token_ids"][1, position] + 1) % 23
        assert abs(np.array(model(changed))[1] - scores[1]) > 1e-4


def test_the_score_is_gain_times_head_plus_bias():
    model = reward_model()
    batch = helpers.prompts([6, 3])
    hidden = lm_adapter.hidden_states(model.backbone, batch["token_ids"], batch["padding_mask"])
    states = np.stack([hidden[0, 5], hidden[1, 2]])
    kernel, bias = model.score_head.get_weights()
    model.gain.assign(3.0)
    model.bias.assign(-0.5)
    np.testing.assert_allclose(model(batch), 3 * (states @ kernel + bias) - 0.5, rtol=1e-4)


def test_the_head_starts_as_published():
    """N8."""
    kernels = [RewardModel(helpers.backbone(seed=s)).score_head for s in range(40)]
    drawn = np.concatenate([np.array(head.kernel) for head in kernels])
    assert np.std(drawn) == pytest.approx(17**-0.5, rel=0.1)
    assert abs(np.mean(drawn)) < 0.05
    assert not any(float(head.bias) for head in kernels)


def test_candidates_are_scored_as_rows():
    model = reward_model()
    batch = pairs()
    scores = np.array(model(batch))
    assert scores.shape == (8, 2)
    for candidate in range(2):
        rows = {name: x[:, candidate] for name, x in batch.items()}
        np.testing.assert_allclose(model(rows), scores[:, candidate], atol=1e-5)
    assert model.compute_output_shape({"token_ids": (8, 2, 5), "padding_mask": (8, 2, 5)}) == (8, 2)


def test_gain_and_bias_of_scores_are_not_trained():
    model = reward_model()
    assert not any(v is model.gain or v is model.bias for v in model.trainable_variables)
    assert len(model.trainable_variables) == len(model.backbone.trainable_variables) + 2


@pytest.fixture(scope="module")
def fitted():
    """A language model, and a reward model made from it that was fitted to separable pairs."""
    keras.utils.set_random_seed(0)
    causal_lm = helpers.lm(texts=True, dropout=0.0)
    before = [np.array(w) for w in causal_lm.weights]
    model = RewardModel.from_causal_lm(causal_lm)
    model.compile(keras.optimizers.Adam(0.02))
    data = tf.data.Dataset.from_tensors((pairs(), np.zeros(8, "float32")))
    history = model.fit(data, epochs=30, verbose=0).history
    return causal_lm, before, model, history


def test_separable_preferences_are_learned(fitted):
    """P11; loss and metric are there without asking."""
    _, _, model, history = fitted
    assert isinstance(model.loss, BradleyTerry)
    (accuracy,) = {*history} - {"loss"}
    assert accuracy == PreferenceAccuracy().name
    assert history[accuracy][0] < 1.0 and history[accuracy][-1] == 1.0
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    scores = np.array(model(pairs()))
    assert (scores[:, 0] > scores[:, 1] + 1).all()


def test_the_language_model_is_copied(fitted):
    causal_lm, before, model, _ = fitted
    for weight, expected in zip(causal_lm.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert causal_lm.trainable and causal_lm.trainable_variables
    changed = [
        np.any(np.array(w) != b)
        for w, b in zip(model.backbone.weights, causal_lm.backbone.weights, strict=True)
    ]
    assert all(changed)
    assert len(model.weights) == len(model.backbone.weights) + 4, "the policy is not a part of it"


def test_a_reward_model_uses_a_given_model_as_it_is():
    causal_lm = helpers.lm(texts=True)
    model = RewardModel(causal_lm)
    assert model.backbone is causal_lm.backbone
    assert model.preprocessor is causal_lm.preprocessor


def test_the_first_preference_loss_is_that_of_equal_scores():
    model = reward_model()
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    for weight in model.score_head.weights:
        weight.assign(keras.ops.zeros_like(weight))
    results = model.evaluate(pairs(), np.zeros(8), verbose=0, return_dict=True)
    assert results["loss"] == pytest.approx(np.log(2), rel=1e-5)


@pytest.fixture(scope="module")
def scorer():
    model = reward_model(texts=True)
    return model, model.score(PROMPTS, RESPONSES)


def test_texts_are_scored_as_their_tokens(scorer):
    """0 starts every row and ends the responses that are whole."""
    model, scores = scorer
    tokenizer = model.preprocessor.tokenizer
    some = np.arange(len(PROMPTS)) % 2 == 0
    for ended, found in (
        ([True] * 8, scores),
        ([False] * 8, model.score(PROMPTS, RESPONSES, ended=False)),
        (some, model.score(PROMPTS, RESPONSES, ended=some)),
    ):
        for index in (0, 1, 3):
            ids = [0, *tokenizer(PROMPTS[index])]
            if RESPONSES[index]:
                ids += [*tokenizer(RESPONSES[index])]
            ids = np.array([ids + [0] * int(ended[index])], "int32")
            expected = model({"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)})
            assert found[index] == pytest.approx(float(expected[0]), abs=1e-4)
    with pytest.raises(ValueError, match=r"one for each of the 8 responses\. Received 2"):
        model.score(PROMPTS, RESPONSES, ended=[True, False])


def test_texts_score_as_the_pairs_that_were_learned_from(scorer):
    """`data.preferences` ends responses; a score of texts and one of its rows are the same."""
    model, _ = scorer
    pairs = [
        {"prompt": p, "chosen": r, "rejected": r + "c"}
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
        if r
    ]
    ((rows, _),) = rlhf.data.preferences(pairs, model.preprocessor, len(pairs), shuffle=False)
    expected = np.array(model({k: rows[k] for k in ("token_ids", "padding_mask")}))
    for column, name in enumerate(("chosen", "rejected")):
        texts = ([pair[k] for pair in pairs] for k in ("prompt", name))
        np.testing.assert_allclose(model.score(*texts), expected[:, column], atol=1e-4)


def test_batches_do_not_change_the_scores(scorer):
    model, scores = scorer
    assert scores.shape == (8,) and scores.dtype == "float32"
    np.testing.assert_allclose(model.score(PROMPTS, RESPONSES, batch_size=3), scores, atol=1e-5)


def test_long_texts_keep_their_end_and_the_start_token(scorer):
    """A row that is too long is scored as `data.preferences` makes it, and a warning says so."""
    model, _ = scorer
    prompts = ["b" * 60 + "c" * 28, "g" * 40 + "c" * 28, "c" * 28, "c" * 27 + "b"]
    with pytest.warns(UserWarning, match="2 prompts were cut at their front"):
        *same, other = model.score(prompts, ["def"] * 4, ended=False)
    np.testing.assert_allclose(same, same[2], atol=1e-5)
    assert abs(other - same[2]) > 1e-4


def test_rows_are_not_padded_beyond_the_model_s_positions():
    model = reward_model(texts=True, positions=20)
    with pytest.warns(UserWarning, match="to fit 20 tokens"):
        assert np.isfinite(model.score(["abc", "c" * 40], ["de", "f"])).all()


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["a", "b"], ["c"], "2 prompts and 1 responses"),
        ([], [], "at least one"),
        (["a", None], ["b", "c"], r"rows \[1\]"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(scorer, prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        scorer[0].score(prompts, responses)


def test_scoring_texts_needs_a_tokenizer():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        reward_model().score(["a"], ["b"])


def test_normalized_scores_have_the_mean_and_deviation_asked_for():
    """N9: also when gain and bias have been set before."""
    model = reward_model(texts=True)
    raw = model.score(PROMPTS, RESPONSES)
    gain, bias = model.normalize(PROMPTS, responses=RESPONSES)
    assert gain == pytest.approx(1 / raw.std(), rel=1e-4)
    assert bias == pytest.approx(-raw.mean() / raw.std(), abs=1e-4)
    for mean, std in ((0.0, 1.0), (2.0, 0.5), (2.0, 0.5)):
        model.normalize(PROMPTS, mean, std, responses=RESPONSES)
        scores = model.score(PROMPTS, RESPONSES)
        assert scores.mean() == pytest.approx(mean, abs=1e-4)
        assert scores.std() == pytest.approx(std, rel=1e-4)
    gain, _ = model.normalize(PROMPTS, -1.0, std=None, responses=RESPONSES)  # P15
    scores = model.score(PROMPTS, RESPONSES)
    assert scores.mean() == pytest.approx(-1.0, abs=1e-4)
    assert scores.std() == pytest.approx(0.5, rel=1e-4)


def test_normalizing_on_responses_of_the_model_it_came_from(fitted):
    """N9: sampled from the language model, whose weights stay; the same seed, the same texts."""
    causal_lm, before, model, _ = fitted
    sampler = Sampler(length=4)
    prompts = PROMPTS * 2
    constants = model.normalize(prompts, 1.0, 2.0, sampler=sampler, seed=5)
    responses, ended = ActorCritic(causal_lm).generate(
        prompts,
        sampler,
        seed=replica.stream(5, "normalize"),
        return_ended=True,
        jit_compile=False,
    )
    scores = model.score(prompts, responses, ended=ended)
    assert scores.mean() == pytest.approx(1.0, abs=1e-3)
    assert scores.std() == pytest.approx(2.0, rel=1e-3)
    assert constants == (float(model.gain), float(model.bias))
    for weight, expected in zip(causal_lm.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_normalizing_on_a_given_policy(monkeypatch):
    """An actor, or its language model."""
    model = reward_model(texts=True)
    asked = []

    ended = np.arange(len(RESPONSES)) % 2 == 0

    def generate(causal_lm, prompts, sampler, seed, return_ended, template, parse_special):
        asked.append((causal_lm, prompts, sampler, seed))
        return RESPONSES, ended

    monkeypatch.setattr(generation, "generate", generate)
    policy = helpers.actor(texts=True)
    seed = replica.stream(3, "normalize")
    for given in (policy, policy.causal_lm):
        model.normalize(PROMPTS, policy=given, seed=3)
        assert asked.pop() == (policy.causal_lm, PROMPTS, Sampler(length=32), seed)
    with pytest.raises(ValueError, match=r"`keras_hub\.models\.CausalLM`"):
        model.normalize(PROMPTS, policy=model)
    assert model.score(PROMPTS, RESPONSES, ended=ended).mean() == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(ValueError, match="needs responses of the initial policy"):
        model.normalize(PROMPTS)
    with pytest.raises(ValueError, match="scores are equal"):
        model.normalize(["a", "a"], responses=["b", "b"])


@pytest.mark.parametrize("family", helpers.FAMILIES)
@pytest.mark.parametrize("texts", [False, True])
def test_a_preset_gives_back_the_same_scores(family, texts, tmp_path):
    if family == "llama" and texts:
        pytest.skip("the tokenizer of the helpers is GPT-2's")
    model = reward_model(family, texts=texts)
    model.gain.assign(1.0 / 3.0)
    model.bias.assign(-0.7)
    batch = helpers.prompts([6, 3, 1])
    expected = np.array(model(batch))
    model.save_to_preset(tmp_path / "preset")
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    again = RewardModel.from_preset(tmp_path / "preset")
    np.testing.assert_array_equal(again(batch), expected)
    assert (again.preprocessor is not None) == texts
    if texts:
        np.testing.assert_array_equal(again.score(["ab"], ["cd"]), model.score(["ab"], ["cd"]))


def test_weights_hold_gain_and_bias_but_no_initial_policy(tmp_path):
    causal_lm = helpers.lm(texts=True)
    model = RewardModel.from_causal_lm(causal_lm)
    assert model.initial_policy is causal_lm
    assert not {id(v) for v in model.variables} & {id(v) for v in causal_lm.variables}
    model.gain.assign(1.0 / 3.0)
    model.bias.assign(-0.7)
    batch = helpers.prompts([6, 3, 1])
    expected = np.array(model(batch))
    model.save_weights(tmp_path / "reward.weights.h5")
    again = RewardModel(helpers.backbone(seed=5))
    assert again.initial_policy is None
    again.load_weights(tmp_path / "reward.weights.h5")
    np.testing.assert_array_equal(again(batch), expected)
    assert (float(again.gain), float(again.bias)) == (float(model.gain), float(model.bias))


def test_a_reward_model_from_a_language_model_s_preset(tmp_path):
    causal_lm = helpers.lm(texts=True)
    ActorCritic(causal_lm).save_to_preset(tmp_path / "preset")
    model = RewardModel.from_preset(tmp_path / "preset")
    for ours, theirs in zip(model.backbone.weights, causal_lm.backbone.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(model.weights) == len(model.backbone.weights) + 4
    assert (float(model.gain), float(model.bias)) == (1.0, 0.0)


def test_responses_come_from_the_preset_whatever_training_did(tmp_path):
    """N9: `from_preset` samples from the language model of the preset, not from the trained one."""
    causal_lm = helpers.lm(texts=True)
    ActorCritic(causal_lm).save_to_preset(tmp_path / "preset")
    model = RewardModel.from_preset(tmp_path / "preset")
    helpers.filled(model.backbone, seed=8)
    helpers.filled(model.score_head, seed=6)
    sampler = Sampler(length=4)
    model.normalize(PROMPTS * 2, 1.0, 2.0, sampler=sampler, seed=5)
    responses, ended = ActorCritic(causal_lm).generate(
        PROMPTS * 2,
        sampler,
        seed=replica.stream(5, "normalize"),
        return_ended=True,
        jit_compile=False,
    )
    scores = model.score(PROMPTS * 2, responses, ended=ended)
    assert scores.mean() == pytest.approx(1.0, abs=1e-3)
    assert scores.std() == pytest.approx(2.0, rel=1e-3)


def test_output_embeddings_are_no_part_of_training():
    """Keras would warn that their gradients do not exist, and warnings are errors here."""
    causal_lm = helpers.lm("llama", tie_word_embeddings=False)
    model = RewardModel.from_causal_lm(causal_lm)
    assert len(model.trainable_variables) == len(model.weights) - 3  # and gain and bias
    assert len(causal_lm.trainable_variables) == len(causal_lm.weights)
    model.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    model.fit(pairs(), np.zeros(8, "float32"), verbose=0)
    assert len(RewardModel(causal_lm).trainable_variables) == len(model.trainable_variables)


def test_the_dtype_of_a_preset_holds(tmp_path):
    reward_model().save_to_preset(tmp_path / "preset")
    model = RewardModel.from_preset(tmp_path / "preset", dtype="bfloat16")
    assert model.backbone.compute_dtype == "bfloat16"
    assert model(helpers.prompts([3])).dtype == "float32"


@pytest.mark.parametrize("model", [None, "gpt2", keras.Sequential()])
def test_other_things_than_text_models_are_refused(model):
    with pytest.raises(ValueError, match="text model"):
        RewardModel(model)
    with pytest.raises(ValueError, match="CausalLM"):
        RewardModel.from_causal_lm(model)


def test_two_replicas_fit_what_one_fits():
    weights = []
    data = tf.data.Dataset.from_tensor_slices((pairs(), np.zeros(8, "float32"))).batch(8)
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    ):
        with strategy.scope():
            model = reward_model()
            model.compile(keras.optimizers.SGD(0.1))
        model.fit(data, epochs=2, verbose=0)
        weights.append([np.array(w) for w in model.weights])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
