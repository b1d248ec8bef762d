"""One place decides what a model can read, and every way in goes through it."""

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf.data.limits import Guard, Limits, has_tokens_of

PAIRS = [
    {"prompt": "bc", "chosen": "defghi", "rejected": "j"},
    {"prompt": "b", "chosen": "d", "rejected": "ef"},
]
LM = helpers.lm(texts=True)
OTHER = helpers.preprocessor(helpers.VOCAB - 2)  # fewer letters, and `aa` is another id


def pairs(preprocessor=None, **options):
    return rlhf.data.preferences(PAIRS, preprocessor or LM.preprocessor, 2, **options)


def compiled(make=rlhf.DPO, **options):
    model = make(LM, **options)
    model.compile("sgd", jit_compile=False)
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def arrays(dataset):
    return [*dataset.as_numpy_iterator()]


def generated(batches):
    yield from batches


# The same batches in every form that `fit` takes.
FORMS = {
    "ours": lambda: (pairs(),),
    "mapped": lambda: (pairs().map(lambda x, y: (x, y)),),
    "arrays": lambda: arrays(pairs())[0],
    "PyDataset": lambda: (Batches(arrays(pairs())),),
    "generator": lambda: (generated(arrays(pairs())),),
}


class TestResponsesBeyondTheWindow:
    """A window that is shorter than a response scores it NaN, and NaN would be all weights."""

    @pytest.mark.parametrize("name", FORMS)
    @pytest.mark.parametrize("make", [rlhf.DPO, rlhf.ORPO], ids=["DPO", "ORPO"])
    def test_fit_refuses_them(self, make, name):
        model = compiled(make, response_length=6)
        before = model.get_weights()
        with pytest.raises(ValueError, match=r"`response_length=6` is less .* 7 tokens"):
            model.fit(*FORMS[name](), verbose=0)
        for one, other in zip(before, model.get_weights(), strict=True):
            assert np.array_equal(one, other)

    def test_so_do_the_other_ways_in(self):
        model, (x, y) = compiled(rlhf.IPO, response_length=6), arrays(pairs())[0]
        for run in (
            lambda: model.evaluate(pairs(), verbose=0),
            lambda: model.predict(pairs(), verbose=0),
            lambda: model.train_on_batch(x, y),
            lambda: model.test_on_batch(x, y),
            lambda: model.predict_on_batch(x),
        ):
            with pytest.raises(ValueError, match="`response_length=6`"):
                run()

    def test_validation_data_is_checked_before_training(self):
        model = compiled(response_length=6)
        short = pairs().map(lambda x, y: ({k: v[1:] for k, v in x.items()}, y[1:]))
        with pytest.raises(ValueError, match="`response_length=6`"):
            model.fit(short, validation_data=pairs(), verbose=0)
        assert int(model.optimizer.iterations) == 0

    def test_a_window_of_the_longest_response_is_enough(self):
        longest = pairs().report.longest_response
        model = compiled(response_length=longest)
        for form in ("ours", "mapped", "arrays", "PyDataset"):
            assert np.isfinite(model.evaluate(*FORMS[form](), verbose=0)[0])


def ppo(**options):
    made = helpers.ppo(rlhf.ActorCritic(LM), **options)
    made.compile(jit_compile=False)
    return made


def texts(preprocessor=None):
    rows = [{"prompt": "b", "response": "c"}] * 2
    return rlhf.data.demonstrations(rows, preprocessor or LM.preprocessor, 2)


@pytest.mark.parametrize(
    "run",
    [
        lambda: compiled().fit(pairs(OTHER), verbose=0),
        lambda: compiled(rlhf.RewardModel).fit(pairs(OTHER), verbose=0),
        lambda: compiled().fit(pairs(), validation_data=pairs(OTHER), verbose=0),
        lambda: LM.fit(texts(OTHER), verbose=0),
        lambda: ppo().fit(rlhf.data.prompts(["b", "c"], OTHER, 2), verbose=0),
        lambda: ppo(texts=rlhf.LanguageModeling(texts(OTHER), coef=1.0)),
    ],
    ids=["dpo", "reward", "validation", "lm", "ppo", "ptx"],
)
def test_tokens_of_another_tokenizer_are_refused(run):
    with pytest.raises(ValueError, match=r"another vocabulary .*21 tokens.*23 tokens"):
        run()


def test_a_model_without_a_tokenizer_takes_ids_that_it_has():
    small = rlhf.DPO(helpers.lm(vocab=20))
    small.compile("sgd", jit_compile=False)
    with pytest.raises(ValueError, match=r"tokenizer has 23 tokens.* 20"):
        small.fit(pairs(), verbose=0)


def test_a_tokenizer_with_more_tokens_has_those_of_another():
    ours, same = (helpers.preprocessor().tokenizer for _ in range(2))
    assert has_tokens_of(ours, same) and not has_tokens_of(ours, OTHER.tokenizer)


class TestIdsOutsideTheVocabulary:
    IDS = np.array([[1, 2, 23], [1, 23, 0]], "int32")
    MASK = np.array([[1, 1, 1], [1, 0, 0]], bool)
    MESSAGE = r"below 23.*Received: \[23\]"

    def test_padding_may_be_any_id(self):
        Limits.of([LM.backbone]).check_ids(self.IDS[1:], self.MASK[1:])

    def test_prompts(self):
        batch = {"token_ids": self.IDS, "padding_mask": self.MASK}
        sampler = rlhf.Sampler(length=2)
        with pytest.raises(ValueError, match=self.MESSAGE):
            rlhf.ActorCritic(LM).generate(batch, sampler)
        with pytest.raises(ValueError, match=self.MESSAGE):
            ppo().iterate({name: tf.constant(x) for name, x in batch.items()})

    def test_training_data(self):
        x, y = arrays(pairs())[0]
        x = {**x, "token_ids": np.where(x["token_ids"] == 2, 23, x["token_ids"])}
        for data in ((x, y), (tf.data.Dataset.from_tensors((x, y)),)):
            with pytest.raises(ValueError, match=self.MESSAGE):
                compiled(rlhf.RewardModel).fit(*data, verbose=0)

    def test_texts_for_language_modeling(self):
        x, *rest = arrays(texts())[0]
        x = {**x, "token_ids": x["token_ids"] + 21}
        data = tf.data.Dataset.from_tensors((x, *rest))
        made = ppo(texts=rlhf.LanguageModeling(data, coef=1.0))
        with pytest.raises(ValueError, match="below 23"):
            made.iterate(helpers.prompts([2, 3]))

    def test_texts_of_a_tokenizer_that_was_put_there_later(self):
        model = helpers.lm(texts=True)
        reward = rlhf.RewardModel(model)
        reward.preprocessor = helpers.preprocessor(25)
        with pytest.raises(ValueError, match="below 23"):
            reward.score(["b"], ["aa"])

    def test_stop_tokens(self):
        actor = rlhf.ActorCritic(LM)
        sampler = rlhf.Sampler(length=2, stop_token_ids=[3, 99])
        with pytest.raises(ValueError, match=r"`stop_token_ids` must be .*below 23.*\[99\]"):
            actor.generate(["b"], sampler)
        with pytest.raises(ValueError, match="`stop_token_ids`"):
            helpers.ppo(actor, sampler=sampler)


def test_a_guard_leaves_other_errors_alone():
    guard = Guard(Limits.of([LM.backbone]))
    with pytest.raises(KeyError), guard.raising():
        raise KeyError("other")
