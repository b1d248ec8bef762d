"""Stock `fit` that goes on from `keras.callbacks.BackupAndRestore` ends as if nothing happened."""

import functools

import helpers
import keras
import numpy as np
import pytest

import kerasrlhf as rlhf

PAIRS = [
    {"prompt": "bcd" + "e" * n, "chosen": "fg" * (n % 3 + 1), "rejected": "h" * (7 - n)}
    for n in range(6)
]
MODELS = {"reward": rlhf.RewardModel, "dpo": rlhf.DPO, "lm": lambda causal_lm: causal_lm}


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise helpers.Crash


def trained(kind, folder, callbacks=(), lora=False, steps_per_epoch=None):
    keras.utils.set_random_seed(0)
    causal_lm = helpers.lm(texts=True)
    if lora:
        causal_lm.backbone.enable_lora(2)
    options = {"source": PAIRS, "preprocessor": causal_lm.preprocessor, "batch_size": 2}
    if kind == "lm":
        rows = [{"prompt": p["prompt"], "response": p["chosen"]} for p in PAIRS]
        dataset = rlhf.data.demonstrations(**{**options, "source": rows})
    else:
        dataset = rlhf.data.preferences(**options)
    model = MODELS[kind](causal_lm)
    loss = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(keras.optimizers.Adam(0.01), jit_compile=False, **(loss if kind == "lm" else {}))
    callbacks = [keras.callbacks.BackupAndRestore(folder), *callbacks]
    fit = functools.partial(model.fit, epochs=3, verbose=0, callbacks=callbacks)
    if steps_per_epoch is None:
        fit(dataset)
    else:
        fit(dataset.repeat(), steps_per_epoch=steps_per_epoch)
    return int(model.optimizer.iterations), model.get_weights()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("reward", {}),
        ("dpo", {}),
        ("lm", {}),
        ("dpo", {"lora": True}),
        ("lm", {"lora": True}),
        ("reward", {"steps_per_epoch": 2}),
    ],
    ids=["reward", "dpo", "lm", "dpo-lora", "lm-lora", "reward-endless"],
)
def test_a_shuffled_run_goes_on_where_it_was_stopped(kind, options, tmp_path):
    steps, whole = trained(kind, tmp_path / "whole", **options)
    with pytest.raises(helpers.Crash):
        trained(kind, tmp_path / "cut", [Stop()], **options)
    again, resumed = trained(kind, tmp_path / "cut", **options)
    assert steps == again
    for one, other in zip(whole, resumed, strict=True):
        assert np.array_equal(one, other)
