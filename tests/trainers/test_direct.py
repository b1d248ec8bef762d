"""DPO, IPO, KTO and ORPO against the papers' equations, and at optima that can be computed."""

import h5py
import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf.models.windows import Reference
from kerasrlhf.trainers.kto import mismatched

METHODS = {"dpo": rlhf.DPO, "ipo": rlhf.IPO, "kto": rlhf.KTO, "orpo": rlhf.ORPO}
REFERRING = [name for name in METHODS if name != "orpo"]
# What a policy that is its reference loses, with the default beta of 0.1: log 2, (1 / 0.2)^2, 1/2.
FIRST = {"dpo": np.log(2.0), "ipo": 25.0, "kto": 0.5}

GENERATOR = np.random.default_rng(2)
PROMPTS = [GENERATOR.integers(1, helpers.VOCAB, n).tolist() for n in (1, 4, 2, 3)]
RESPONSES = [
    [GENERATOR.integers(1, helpers.VOCAB, n).tolist() for n in pair]
    for pair in ((3, 2), (1, 4), (4, 1), (2, 3))
]


def batch(prompts=PROMPTS, responses=RESPONSES, length=9, filler=7):
    """A preference batch; padding holds a token that means something elsewhere."""
    shape = (len(prompts), len(responses[0]), length)
    x = {"token_ids": np.full(shape, filler, "int32")}
    x["padding_mask"], x["response_mask"] = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, (prompt, candidates) in enumerate(zip(prompts, responses, strict=True)):
        for j, response in enumerate(candidates):
            end = len(prompt) + len(response)
            x["token_ids"][i, j, :end] = prompt + response
            x["padding_mask"][i, j, :end] = True
            x["response_mask"][i, j, len(prompt) : end] = True
    return x


X, Y = batch(), np.zeros(4, "float32")


def logprob(model, prompt, response):
    """Log-probabilities of a response's tokens, of one unpadded row, in float64."""
    ids = np.array([prompt + response])
    logits = np.array(model({"token_ids": ids, "padding_mask": np.ones_like(ids)}), "float64")[0]
    normal = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    return [normal[len(prompt) + t - 1, token] for t, token in enumerate(response)]


def log_ratio(policy, reference, prompt, response):
    return sum(logprob(policy, prompt, response)) - sum(logprob(reference, prompt, response))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


@pytest.fixture(scope="module")
def models():
    """A policy and a reference that differ."""
    return helpers.lm(seed=0), helpers.lm(seed=1)


@pytest.fixture(scope="module")
def ratios(models):
    """Log-ratios `[row][candidate]` by the loop above."""
    return np.array(
        [
            [log_ratio(*models, p, r) for r in pair]
            for p, pair in zip(PROMPTS, RESPONSES, strict=True)
        ]
    )


def loss_of(trainer, x=X):
    """The mean loss, eagerly."""
    return float(trainer.default_loss()(Y[: len(x["token_ids"])], trainer(x)))


def test_dpo_is_equation_7(models, ratios):
    dpo = rlhf.DPO(*models, beta=0.3)
    np.testing.assert_allclose(dpo(X), 0.3 * ratios, rtol=1e-4, atol=1e-5)
    expected = -np.log(sigmoid(0.3 * ratios[:, 0] - 0.3 * ratios[:, 1])).mean()
    assert loss_of(dpo) == pytest.approx(expected, rel=1e-5)


def test_a_margin_of_the_pairs_is_an_offset_for_dpo(models, ratios):
    margins = np.array([0.0, 2.0, -0.5, 1.0], "float32")[: len(PROMPTS)]
    dpo = rlhf.DPO(*models, beta=0.3)
    leads = 0.3 * (ratios[:, 0] - ratios[:, 1])
    found = dpo.default_loss()(margins, dpo(X))
    assert float(found) == pytest.approx(-np.log(sigmoid(leads - margins)).mean(), rel=1e-5)
    without = rlhf.losses.BradleyTerry(margin=None)(margins, dpo(X))
    assert float(without) == pytest.approx(-np.log(sigmoid(leads)).mean(), rel=1e-5)


def test_ipo_is_equation_17(models, ratios):
    ipo = rlhf.IPO(*models, beta=0.3)
    np.testing.assert_allclose(ipo(X), ratios, rtol=1e-4, atol=1e-5)
    expected = ((ratios[:, 0] - ratios[:, 1] - 1 / (2 * 0.3)) ** 2).mean()
    assert loss_of(ipo) == pytest.approx(expected, rel=1e-5)
    means = ratios / [[len(r) for r in pair] for pair in RESPONSES]
    ipo = rlhf.IPO(*models, beta=0.3, average=True)
    np.testing.assert_allclose(ipo(X), means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_is_equation_8(models, ratios, swapped):
    """The reference point, of one sign as the models stand, and clipped when they change places."""
    policy, reference = models[::-1] if swapped else models
    ratios = -ratios if swapped else ratios
    beta, weights = 0.3, (1.5, 0.5)
    others = [
        log_ratio(policy, reference, prompt, response)
        for i, prompt in enumerate(PROMPTS)
        for response in RESPONSES[(i + 1) % len(PROMPTS)]
    ]
    z0 = max(0.0, np.mean(others))
    assert (z0 > 0.1) is not swapped
    kto = rlhf.KTO(policy, reference, beta, *weights)
    np.testing.assert_allclose(kto(X), beta * (ratios - z0), rtol=1e-4, atol=1e-5)
    desirable = weights[0] * (1 - sigmoid(beta * (ratios[:, 0] - z0)))
    undesirable = weights[1] * (1 - sigmoid(beta * (z0 - ratios[:, 1])))
    assert loss_of(kto) == pytest.approx(np.mean([desirable, undesirable]), rel=1e-5)


def test_kto_of_single_responses_with_labels(models, ratios):
    """Each of the first responses; 1 is a wanted one."""
    x = {name: value[:, :1] for name, value in X.items()}
    labels, beta, weights = np.array([1, 0, 0, 1], "float32"), 0.3, (1.5, 0.5)
    others = [
        log_ratio(*models, prompt, RESPONSES[(i + 1) % len(PROMPTS)][0])
        for i, prompt in enumerate(PROMPTS)
    ]
    scores = beta * (ratios[:, 0] - max(0.0, np.mean(others)))
    kto = rlhf.KTO(*models, beta, *weights)
    np.testing.assert_allclose(kto(x), scores[:, None], rtol=1e-4, atol=1e-5)
    expected = np.where(
        labels > 0, weights[0] * (1 - sigmoid(scores)), weights[1] * (1 - sigmoid(-scores))
    )
    kto.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    loss, accuracy = kto.evaluate(x, labels, verbose=0)
    assert loss == pytest.approx(expected.mean(), rel=1e-5)
    assert accuracy == pytest.approx(np.mean((scores > 0) == (labels > 0)))


def test_kto_learns_from_single_responses():
    x, labels = {name: value[:, :1] for name, value in X.items()}, np.array([1, 0, 0, 1.0])
    kto = rlhf.KTO(helpers.lm())
    kto.compile(keras.optimizers.Adam(0.003), jit_compile=False)
    history = kto.fit(x, labels, batch_size=4, epochs=20, verbose=0).history
    assert history["loss"][0] == pytest.approx(0.5, rel=1e-5)
    assert history["accuracy"][-1] == 1.0
    assert ((np.array(kto(x))[:, 0] > 0) == (labels > 0)).all()


def test_orpo_is_equation_6(models):
    means = np.array(
        [
            [np.mean(logprob(models[0], p, r)) for r in pair]
            for p, pair in zip(PROMPTS, RESPONSES, strict=True)
        ]
    )
    odds = np.exp(means) / (1 - np.exp(means))
    ratio_loss = -np.log(sigmoid(np.log(odds[:, 0] / odds[:, 1])))
    orpo = rlhf.ORPO(models[0], coef=0.3)
    assert loss_of(orpo) == pytest.approx(np.mean(-means[:, 0] + 0.3 * ratio_loss), rel=1e-5)


def test_mismatched_pairs_are_each_prompt_with_the_next_responses():
    expected = batch(PROMPTS, RESPONSES[1:] + RESPONSES[:1])
    found = {name: np.array(x) for name, x in mismatched(X).items()}
    for name in ("padding_mask", "response_mask"):
        np.testing.assert_array_equal(found[name], expected[name])
    real = expected["padding_mask"]
    np.testing.assert_array_equal(found["token_ids"][real], expected["token_ids"][real])


def test_mismatched_responses_lose_what_does_not_fit():
    x = batch([[1, 2, 3], [4]], [[[5]], [[6, 7, 8]]], length=4)
    found = {name: np.array(value)[:, 0].tolist() for name, value in mismatched(x).items()}
    assert found["token_ids"][0] == [1, 2, 3, 6] and found["token_ids"][1][:2] == [4, 5]
    assert found["response_mask"] == [[False] * 3 + [True], [False, True, False, False]]
    assert found["padding_mask"] == [[True] * 4, [True, True, False, False]]
    empty = batch([[1, 2], [3]], [[[]], [[4, 5]]], length=4)
    assert np.array(mismatched(empty)["token_ids"])[:, 0, 0].tolist() == [1, 3]
    assert np.array(mismatched(empty)["response_mask"]).sum(axis=(1, 2)).tolist() == [2, 0]


def test_a_first_token_that_nothing_chose_is_not_counted(models):
    response = [5, 6, 7]
    expected = np.mean(logprob(models[0], response[:1], response[1:]))
    x = batch([[]], [[response, response]])
    np.testing.assert_allclose(rlhf.ORPO(models[0])(x), [[expected] * 2], rtol=1e-5)


def test_the_reference_has_no_gradient(models):
    dpo = rlhf.DPO(*models)
    with tf.GradientTape() as tape:
        logprobs = dpo.ref_logprobs({name: tf.constant(x) for name, x in X.items()})
    assert models[1].trainable_variables
    gradients = tape.gradient(logprobs, [v.value for v in models[1].trainable_variables])
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_nothing(models, name):
    trainer = METHODS[name](models[0]) if name == "orpo" else METHODS[name](*models)
    wide = batch(length=14, filler=3)
    np.testing.assert_allclose(trainer(wide), trainer(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_window_of_the_longest_response_changes_nothing_and_a_smaller_one_is_loud(models, name):
    given = models[:1] if name == "orpo" else models
    whole = np.array(METHODS[name](*given)(X))
    windowed = METHODS[name](*given, response_length=4)
    np.testing.assert_allclose(windowed(X), whole, rtol=1e-4, atol=1e-5)
    short = np.array(METHODS[name](*given, response_length=3)(X))
    too_long = np.array([[len(r) > 3 for r in pair] for pair in RESPONSES])
    expected = np.ones_like(too_long) if name == "kto" else too_long  # z0 is of the whole batch
    np.testing.assert_array_equal(np.isnan(short), expected)


def train_data(x=X):
    return tf.data.Dataset.from_tensors((x, Y[: len(x["token_ids"])]))


@pytest.fixture(scope="module", params=METHODS)
def fitted(request):
    """A trainer after a few updates under XLA, what it was before, and its history."""
    keras.utils.set_random_seed(0)
    trainer = METHODS[request.param](helpers.lm())
    trainer.compile(keras.optimizers.Adam(0.003), jit_compile=True)
    before = [np.array(w) for w in trainer.causal_lm.weights]
    scores = np.array(trainer(X))
    history = trainer.fit(train_data(), epochs=20, verbose=0).history
    return request.param, trainer, before, scores, history


def test_training_begins_where_the_policy_is_the_reference_and_learns(fitted):
    name, trainer, _, scores, history = fitted
    if name in FIRST:
        assert history["loss"][0] == pytest.approx(FIRST[name], rel=1e-5)
        np.testing.assert_allclose(scores, 0.0, atol=1e-5)
    assert history["loss"][-1] < history["loss"][0]
    assert history["accuracy"][-1] == 1.0
    scores = np.array(trainer(X))
    assert (scores[:, 0] > scores[:, 1]).all()


def test_training_changes_the_policy_alone(fitted):
    name, trainer, before, _, _ = fitted
    changed = [
        np.any(np.array(w) != b) for w, b in zip(trainer.causal_lm.weights, before, strict=True)
    ]
    assert all(changed)
    if name == "orpo":
        assert trainer.reference is None
        return
    assert trainer.reference.causal_lm is not trainer.causal_lm
    for weight, expected in zip(trainer.reference.causal_lm.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_checkpoint_holds_the_policy_and_nothing_frozen(fitted, tmp_path):
    name, trainer, _, _, _ = fitted
    assert len(trainer.weights) == len(trainer.causal_lm.weights)
    trainer.save_weights(tmp_path / "checkpoint.weights.h5")
    values = []
    with h5py.File(tmp_path / "checkpoint.weights.h5") as file:
        file.visititems(
            lambda path, x: (
                values.append(x.size)
                if isinstance(x, h5py.Dataset) and "optimizer" not in path
                else None
            )
        )
    assert sum(values) == trainer.causal_lm.count_params()
    again = METHODS[name](helpers.lm(seed=3))
    again.compile(keras.optimizers.Adam(0.003))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "checkpoint.weights.h5")
    for ours, theirs in zip(again.weights, trainer.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_predictions_are_the_scores(fitted):
    _, trainer, _, _, _ = fitted
    found = trainer.predict(X, verbose=0)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, trainer(X), rtol=1e-4, atol=1e-4)


def test_the_policy_is_saved_as_a_preset(tmp_path):
    causal_lm = helpers.lm(texts=True)
    dpo = rlhf.DPO(causal_lm)
    assert dpo.causal_lm is causal_lm
    dpo.causal_lm.save_to_preset(str(tmp_path / "policy"))
    again = rlhf.DPO(rlhf.ActorCritic.from_preset(tmp_path / "policy").causal_lm, causal_lm)
    np.testing.assert_allclose(again(X), 0.0, atol=1e-5)


@pytest.mark.parametrize("name", REFERRING)
def test_adapters_switched_off_are_the_reference(name):
    """No second copy, and where it stands does not move with the adapters or the biases."""
    causal_lm = helpers.lm()
    frozen = helpers.lm()
    causal_lm.backbone.enable_lora(2)
    trainer = METHODS[name](causal_lm)
    assert trainer.reference.causal_lm is causal_lm
    trainer.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    history = trainer.fit(train_data(), epochs=3, verbose=0).history
    assert history["loss"][0] == pytest.approx(FIRST[name], rel=1e-5)
    assert np.abs(np.array(trainer(X))).max() > 1e-2
    merged = METHODS[name](rlhf.models.lm_adapter.copy(causal_lm), Reference(frozen))
    np.testing.assert_allclose(trainer(X), merged(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_scores_are_float32_and_train(name):
    """Computing in bfloat16; in bfloat16 weights Adam would stand still, its `beta_2` being 1."""
    trainer = METHODS[name](helpers.lm(dtype="mixed_bfloat16", stddev=0.1))
    trainer.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    history = trainer.fit(train_data(), epochs=4, verbose=0).history
    assert trainer(X).dtype == "float32"
    if name in FIRST:
        assert history["loss"][0] == pytest.approx(FIRST[name], rel=1e-3)
    assert history["loss"][-1] < history["loss"][0]


OPTIONS = {
    "beta of dpo": (rlhf.DPO, {"beta": 0.2}),
    "beta of ipo": (rlhf.IPO, {"beta": 0.2}),
    "average": (rlhf.IPO, {"average": True}),
    "beta of kto": (rlhf.KTO, {"beta": 0.2}),
    "desirable_weight": (rlhf.KTO, {"desirable_weight": 2.0}),
    "undesirable_weight": (rlhf.KTO, {"undesirable_weight": 2.0}),
    "coef": (rlhf.ORPO, {"coef": 0.2}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_the_loss(models, name):
    cls, option = OPTIONS[name]
    given = models[:1] if cls is rlhf.ORPO else models
    assert abs(loss_of(cls(*given, **option)) - loss_of(cls(*given))) > 1e-3


def test_labels_may_be_smoothed_and_losses_replaced(models):
    """Conservative DPO: the loss at a policy that is its reference stays log 2."""
    dpo = rlhf.DPO(*models)
    smoothed = rlhf.losses.BradleyTerry(label_smoothing=0.2)
    scores = np.array(dpo(X), "float64")
    leads = scores[:, 0] - scores[:, 1]
    expected = -(0.8 * np.log(sigmoid(leads)) + 0.2 * np.log(sigmoid(-leads))).mean()
    dpo.compile(keras.optimizers.SGD(0.0), loss=smoothed, jit_compile=False)
    assert dpo.evaluate(X, Y, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


def test_rows_have_weights():
    """What the optimum below rests on: a weight of 0 leaves a row out."""
    results = []
    for rows in (slice(0, 4), slice(0, 2)):
        dpo = rlhf.DPO(helpers.lm(seed=0), helpers.lm(seed=1))
        dpo.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        x = {name: value[rows] for name, value in X.items()}
        weights = np.array([2.0, 1.0, 0.0, 0.0])[rows] * (2.0 if rows.stop == 4 else 1.0)
        dpo.train_on_batch(x, Y[rows], sample_weight=weights)
        results.append([np.array(w) for w in dpo.weights])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_two_replicas_train_what_one_trains(name):
    """KTO's reference point is one number, and its pairs reach across the replicas."""
    weights, losses = [], []
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    ):
        with strategy.scope():
            given = [helpers.lm(seed=0), helpers.lm(seed=1)][: 1 if name == "orpo" else 2]
            trainer = METHODS[name](*given)
            trainer.compile(keras.optimizers.SGD(0.01), jit_compile=False)
        losses.append(trainer.fit(data, epochs=3, verbose=0).history["loss"])
        weights.append([np.array(w) for w in trainer.weights])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def without(name):
    return {key: value for key, value in X.items() if key != name}


LM = helpers.lm()
ERRORS = {
    "model": (lambda: rlhf.DPO("gpt2_base_en"), "Expected a `keras_hub.models.CausalLM`"),
    "reference": (lambda: rlhf.KTO(LM, helpers.lm(vocab=25)), "need one vocabulary"),
    "itself": (lambda: rlhf.DPO(LM, LM), "is the model that is trained"),
    "beta of dpo": (lambda: rlhf.DPO(LM, beta=0.0), "`beta` must be above 0"),
    "beta of ipo": (lambda: rlhf.IPO(LM, beta=-1.0), "`beta` must be above 0"),
    "beta of kto": (lambda: rlhf.KTO(LM, beta=float("nan")), "`beta` must be a finite number"),
    "weight": (lambda: rlhf.KTO(LM, desirable_weight=-1.0), "`desirable_weight` must be at least"),
    "coef": (lambda: rlhf.ORPO(LM, coef=-0.1), "`coef` must be at least 0"),
    "length": (lambda: rlhf.ORPO(LM, response_length=0), "`response_length` must be at least 1"),
    "no response mask": (lambda: rlhf.ORPO(LM)(without("response_mask")), "`response_mask`"),
    "no dict": (lambda: rlhf.ORPO(LM)(X["token_ids"]), "Expected batches of `rlhf.data.prefer"),
    "one axis less": (
        lambda: rlhf.ORPO(LM)({name: value[:, 0] for name, value in X.items()}),
        "of one shape",
    ),
    "another length": (
        lambda: rlhf.ORPO(LM)({**X, "response_mask": X["response_mask"][..., 1:]}),
        "of one shape",
    ),
    "one row": (
        lambda: rlhf.KTO(LM)({name: value[:1] for name, value in X.items()}),
        "a batch of one row",
    ),
    "abstract": (lambda: rlhf.DirectTrainer(LM).compile(), "must define `default_loss`"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_input_is_refused(case):
    call, message = ERRORS[case]
    with pytest.raises((ValueError, NotImplementedError), match=message):
        call()


def test_a_lone_last_row_has_a_reference_point_of_zero(models, ratios):
    assert abs(ratios[3].mean()) > 0.1, "its own KL would be seen, under one of the two signs"
    data = tf.data.Dataset.from_tensor_slices(X).batch(3)
    for sign, given in ((1, models), (-1, models[::-1])):
        kto = rlhf.KTO(*given)
        kto.compile(jit_compile=False)
        expected = pytest.approx(sign * 0.1 * ratios[3], rel=1e-4)
        assert kto.predict(data, verbose=0)[3] == expected


class TestOptimum:
    """Every ordered pair of every response, weighed by how probable its label is."""

    TOKENS, PROMPTS, BETA = 4, [[1], [2, 0]], {"dpo": 0.5, "ipo": 0.15}
    STEPS = 300

    @pytest.fixture(scope="class", params=["dpo", "ipo"])
    def trained(self, request):
        keras.utils.set_random_seed(0)
        optimum = rlhf.evaluation.optimum
        responses = optimum.enumerate_responses(self.TOKENS, 2, stop_token_ids=[0])
        listed = [list(x) for x in responses.tuples()]
        scores = np.random.default_rng(3).normal(size=(2, len(listed)))
        wins = sigmoid(scores[:, :, None] - scores[:, None])  # of the second axis over the third
        rows = [
            (prompt, [listed[i], listed[j]], wins[p, i, j])
            for p, prompt in enumerate(self.PROMPTS)
            for i in range(len(listed))
            for j in range(len(listed))
            if i != j
        ]
        prompts, pairs, weights = (list(column) for column in zip(*rows, strict=True))
        causal_lm = helpers.lm(vocab=self.TOKENS)
        beta = self.BETA[request.param]
        trainer = METHODS[request.param](causal_lm, beta=beta)
        actor = rlhf.ActorCritic(causal_lm)
        read = optimum.ResponseLogprobs(actor, self.PROMPTS, responses)
        reference = read()
        x = batch(prompts, pairs, length=4, filler=0)
        labeled = (x, np.zeros(len(rows)), np.array(weights, "float32"))
        data = tf.data.Dataset.from_tensors(labeled).repeat(self.STEPS)
        rate = keras.optimizers.schedules.CosineDecay(0.02, self.STEPS)
        trainer.compile(keras.optimizers.Adam(rate), weighted_metrics=[])
        trainer.fit(data, verbose=0)
        means = wins.mean(axis=2)
        goals = (scores, means) if request.param == "dpo" else (means, scores)
        return beta, read(), reference, *goals

    def test_is_the_reference_tilted_by_what_the_paper_says(self, trained):
        """DPO by the score; IPO by the mean probability of winning, from its normal equations.

        For IPO the pair (i, j) draws `h_i - h_j` to `(p_ij - p_ji) / (2 beta) = (p_ij - 1/2) /
        beta`; least squares over all pairs of a list gives `h_i = mean over j of (p_ij - 1/2) /
        beta` up to a constant.
        """
        beta, found, reference, goal, other = trained
        optimum = rlhf.evaluation.optimum
        assert optimum.regret(found, reference, goal, beta) < 1e-3
        best = optimum.optimal_logprobs(reference, goal, beta)
        distance = 0.5 * np.abs(np.exp(found) - np.exp(best)).sum(axis=1)
        start = 0.5 * np.abs(np.exp(reference) - np.exp(best)).sum(axis=1)
        assert (distance < 0.005).all() and (start > 0.2).all()
        assert optimum.regret(found, reference, other, beta) > 0.1, "not the other's optimum"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("window", [None, 6])
def test_batches_of_other_lengths_are_read_by_the_same_trainer(name, window):
    """Keras traces the second length with an unknown one."""
    trainer = METHODS[name](helpers.lm(stddev=0.1), response_length=window)
    trainer.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    losses = [
        float(
            trainer.train_on_batch(batch(length=n), np.zeros(4, "int32"), return_dict=True)["loss"]
        )
        for n in (9, 12, 10)
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
