"""Scores of steps: where they are read, how they are learned and kept."""

import helpers
import keras
import numpy as np
import pytest

from kerasrlhf import data
from kerasrlhf.models import lm_adapter
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_model import RewardModel

SEPARATOR = "t"  # a letter in place of a line break, for which the tokenizer has no token
T = 20  # its id
GOOD, BAD = "abcdef", "nopqrs"


def process_model(**options):
    model = ProcessRewardModel(helpers.lm(texts=True, **options), separator=SEPARATOR)
    helpers.filled(model.score_head, seed=6)
    return model


@pytest.fixture(scope="module")
def model():
    return process_model()


def ends_by_hand(row):
    """Places where the steps of one response end, read from left to right; 0 is the end token."""
    ends, in_step = [], False
    for place, token in enumerate(row):
        if token == T and in_step:
            ends.append(place)
        in_step = token not in (T, 0) or (token == 0 and in_step)
    return ends if ends and not in_step else sorted({*ends, len(row) - 1})


def test_where_steps_end(model):
    generator = np.random.default_rng(0)
    ids = np.where(generator.random((300, 9)) < 0.4, T, generator.integers(1, 19, (300, 9)))
    starts = generator.integers(0, 5, 300).astype("int32")
    stops = starts + generator.integers(1, 5, 300)
    ids[np.arange(150), stops[:150] - 1] = 0
    mask = np.arange(9) < stops[:, None]
    found = np.array(model.step_ends(ids.astype("int32"), mask, starts))
    for row, start, stop, places in zip(ids, starts, stops, found, strict=True):
        expected = [start + end for end in ends_by_hand(row[start:stop])]
        assert np.flatnonzero(places).tolist() == expected, (row, start, stop)


@pytest.mark.parametrize(
    ("response", "ends"),
    [
        ([1, T, 2, 0], [1, 3]),
        ([1, T, T, 2, 0], [1, 4]),  # a run of separators ends one step
        ([T, 1, 0], [2]),  # and one at the beginning none
        ([1, T, 0], [1]),  # the end token alone is no step
        ([1, T, T], [1]),
        ([1, T, 2], [1, 2]),  # a last step of one token
        ([1, T, T, 0], [1]),
        ([0], [0]),  # every response has one step at least
        ([T, 0], [1]),
        ([T], [0]),
        ([1, 2], [1]),
    ],
)
def test_ends_of_one_response(model, response, ends):
    row = np.array([[5, T, *response, 7, T]], "int32")  # a prompt before it, padding behind it
    mask = np.arange(row.shape[1]) < 2 + len(response)
    found = np.array(model.step_ends(row, mask[None], np.array([2], "int32")))
    assert np.flatnonzero(found[0]).tolist() == [2 + end for end in ends]


def test_a_score_is_the_head_s_output_where_a_step_ends(model):
    ids = np.array([[3, 4, 5, T, 6, 7, 0, 9], [3, 4, T, 5, 0, T, T, 1]], "int32")
    mask = np.arange(8) < np.array([[7], [5]])
    scored = model.read(ids, mask, np.array([2, 1], "int32"))
    hidden = np.array(lm_adapter.hidden_states(model.backbone, ids, mask))
    kernel, bias = model.score_head.get_weights()
    expected = np.zeros((2, 8))
    for row, place in ((0, 3), (0, 6), (1, 2), (1, 4)):
        expected[row, place] = hidden[row, place] @ kernel + bias
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)
    assert not np.any(scored.spread)
    every = np.array(model({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(every, hidden @ kernel + bias, atol=1e-5)
    assert model.compute_output_shape({"token_ids": (2, 8), "padding_mask": (2, 8)}) == (2, 8)


def test_texts_score_the_sum_of_their_steps(model):
    """A separator in the prompt ends no step."""
    prompts, responses = ["atbc", "d"], ["efghtij", "atbtc"]
    found = model.score(prompts, responses, batch_size=2, ended=False)
    for index, ends in ((0, (5 + 4, 5 + 6)), (1, (2 + 1, 2 + 3, 2 + 4))):
        (ids,) = data.tokenize([prompts[index] + responses[index]], model.preprocessor)
        row = np.array([[0, *ids]], "int32")  # 0 starts every row
        every = np.array(model({"token_ids": row, "padding_mask": np.ones(row.shape, bool)}))
        assert found[index] == pytest.approx(every[0, list(ends)].sum(), abs=1e-4)


def steps(rows, seed):
    """Steps of good letters are right, those of bad ones wrong, whatever came before."""
    generator = np.random.default_rng(seed)
    records = []
    for _ in range(rows):
        labels = generator.integers(0, 2, generator.integers(1, 4)).tolist()
        texts = ["".join(generator.choice([*(GOOD if x else BAD)], 2)) for x in labels]
        records.append({"prompt": "gh", "steps": texts, "labels": labels})
    return records


@pytest.fixture(scope="module")
def fitted():
    keras.utils.set_random_seed(0)
    model = ProcessRewardModel(helpers.lm(texts=True), separator=SEPARATOR)
    model.compile(keras.optimizers.Adam(0.02), jit_compile=False)
    dataset = data.stepwise(steps(32, 0), model.preprocessor, 16, separator=SEPARATOR)
    return model, model.fit(dataset, epochs=60, verbose=0).history


def test_steps_are_learned(fitted):
    """Loss and accuracy count labeled positions alone: chance is log 2."""
    model, history = fitted
    assert set(history) == {"loss", "accuracy"}
    assert history["loss"][-1] < 0.1 < 0.4 < history["loss"][0]
    assert history["accuracy"][-1] == 1.0
    unseen = data.stepwise(steps(32, 1), model.preprocessor, 32, separator=SEPARATOR)
    loss, accuracy = model.evaluate(unseen, verbose=0)
    (x, y, weight) = next(unseen.as_numpy_iterator())
    logits = np.array(model(x), "float64")
    right = (logits > 0) == (y > 0.5)
    assert accuracy == pytest.approx((right * weight).sum() / weight.sum(), abs=1e-5)
    assert accuracy > 0.85
    nats = np.log1p(np.exp(logits)) - y * logits
    assert loss == pytest.approx((nats * weight).sum() / weight.sum(), rel=1e-3)


def test_learned_steps_are_read_where_they_were_labeled(fitted):
    model, _ = fitted
    for records in (steps(8, 0), steps(8, 3)):
        x, _, weight = next(
            data.stepwise(
                records, model.preprocessor, 8, separator=SEPARATOR, shuffle=False
            ).as_numpy_iterator()
        )
        starts = np.full(8, 3, "int32")
        ends = model.step_ends(x["token_ids"], x["padding_mask"], starts)
        np.testing.assert_array_equal(ends, weight > 0)
    good, bad, mixed = model.score(["gh"] * 3, ["abtcdtef", "notpqtrs", "abtpqtef"], 3)
    assert good > mixed > bad and good > 0 > bad


def test_a_preset_gives_back_scores_and_separator(fitted, tmp_path):
    model, _ = fitted
    model.save_to_preset(tmp_path / "preset")
    again = ProcessRewardModel.from_preset(tmp_path / "preset")
    assert again.separator == SEPARATOR
    ids = np.array([[3, 4, 5, T, 6, 7, 0, 9]], "int32")
    arguments = ids, np.ones(ids.shape, bool), np.array([2], "int32")
    np.testing.assert_array_equal(again.read(*arguments).scores, model.read(*arguments).scores)


def test_what_cannot_be_used_is_named():
    with pytest.raises(ValueError, match="finds the ends of steps by its tokenizer"):
        ProcessRewardModel(helpers.backbone())
    for separator in ("\n", ""):
        with pytest.raises(ValueError, match="No token of the tokenizer holds the separator"):
            ProcessRewardModel(helpers.lm(texts=True), separator=separator)
    with pytest.raises(ValueError, match="zero of their own"):
        process_model().normalize(["a"], responses=["b"])


def test_a_reward_model_has_one_score_a_response():
    assert not RewardModel(helpers.backbone()).is_per_token
