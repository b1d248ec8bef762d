"""What stock `fit` does before the first batch."""

import helpers
import keras
import pytest

import kerasrlhf as rlhf

PAIRS = [{"prompt": "bc", "chosen": "d", "rejected": "e"}] * 2
TEXTS = [{"prompt": "bc", "response": "d"}] * 2


@pytest.mark.parametrize(
    ("make", "load", "records"),
    [
        (rlhf.DPO, rlhf.data.preferences, PAIRS),
        (lambda causal_lm: causal_lm, rlhf.data.demonstrations, TEXTS),
    ],
    ids=["dpo", "lm"],
)
def test_an_update_is_traced_once(monkeypatch, make, load, records):
    """Also with an optimizer that keeps moments."""
    causal_lm = helpers.lm(texts=True)
    model, traces = make(causal_lm), []
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"loss": loss} if model is causal_lm else {}
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), jit_compile=False, **options)
    original = type(model).train_step

    def train_step(self, data):
        traces.append(self)
        return original(self, data)

    monkeypatch.setattr(type(model), "train_step", train_step)
    data = load(records, causal_lm.preprocessor, 2)
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(data, epochs=2, verbose=0)
    assert len(traces) == 1
    assert any(
        (v.numpy() != b).any() for v, b in zip(model.trainable_variables, before, strict=True)
    )
    assert int(model.optimizer.iterations.numpy()) == 2
