"""Runs that two processes and one process must agree on; as a script, one of the processes.

    python worker_runs.py FOLDER CASE [CASE ...]

writes what happened to `FOLDER/CASE-INDEX.npz`, and what went wrong to `FOLDER/CASE-INDEX.txt`.
"""

import json
import os
import pathlib
import random
import signal
import sys

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    sys.path.append(str(pathlib.Path(__file__).parents[1]))

import helpers
import keras
import numpy as np
import tensorflow as tf
import trajectories

import kerasrlhf as rlhf
from kerasrlhf import workers as workers_module

ROWS = 7  # no number of workers or minibatches divides it
SAMPLER = rlhf.Sampler(4, temperature=0.8, stop_token_ids=(0, 4))


def batches(count):
    lengths = [1, 2, 3, 4, 5, 6, 3]
    made = [helpers.prompts(lengths, seed=seed) for seed in range(count)]
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *made)


def prompts(count):
    return tf.data.Dataset.from_tensor_slices(batches(count)).batch(ROWS)


class Reward:
    """A reward of tokens that counts what it scores, and can end its process."""

    def __init__(self, kill_in=None):
        self.kill_in, self.rows = kill_in, []

    def __call__(self, response_ids, trainer_state, log_metric, log_extra):
        if trainer_state.global_step == self.kill_in and rlhf.cluster.worker().index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.rows.append(len(response_ids))
        log_extra("length", [len(row) for row in response_ids])
        for row in response_ids:
            log_metric("first", row[0])
        return helpers.token_reward(response_ids)

    def get_config(self):
        return {}


def ppo(reward, folder):
    return helpers.ppo(
        helpers.actor(texts=True),
        reward,
        sampler=SAMPLER,
        kl=rlhf.AdaptiveKL(0.2, target=0.4, horizon=100),
        update_epochs=2,
        num_minibatches=2,
    )


def everything(reward, folder):
    """A critic of its own, adapters, text in every update, older rollouts and a reward model."""
    return helpers.ppo(
        trajectories.adapted_actor_with_critic(),
        {"tokens": (reward, 1.0), "model": (trajectories.reward_model(), 0.5)},
        sampler=SAMPLER,
        kl=rlhf.AdaptiveKL(0.2, target=0.4, horizon=100),
        texts=rlhf.LanguageModeling(trajectories.texts(3), coef=0.5),
        memory=rlhf.RolloutMemory(2, directory=folder / "memory"),
        micro_batches=2,
        update_epochs=1,
    )


def grpo(reward, folder):
    return rlhf.GRPO(
        helpers.actor(texts=True),
        reward,
        sampler=SAMPLER,
        kl=rlhf.FixedKL(0.1),
        group_size=2,
        num_minibatches=2,
    )


def half(reward, folder):
    """In float16, with a scale at which the first updates overflow."""
    made = helpers.ppo(helpers.actor(dtype="mixed_float16"), reward, sampler=SAMPLER)
    made.loss_scale.scale.assign(2.0**18)
    return made


# By name: what makes the trainer, whether with XLA, epochs, and the iteration that kills a worker.
CASES = {
    "ppo": (ppo, False, 5, None),
    "everything": (everything, True, 5, None),
    "grpo": (grpo, False, 5, None),
    "half": (half, False, 2, None),
    "killed": (ppo, False, 5, 2),
}


def random_metric(responses):
    """Differs between processes, which must not see different numbers."""
    return random.SystemRandom().random()


def fitted(name, folder, strategy=None):
    """Fits a case; returns the trainer, its history and the statistics of each iteration."""
    make, jit_compile, epochs, kill_in = CASES[name]
    strategy = strategy or tf.distribute.get_strategy()
    index = rlhf.cluster.worker(strategy).index
    state = folder / f"{name}-state"
    has_been_killed = (state / "resume.json").exists()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        reward = Reward(None if has_been_killed else kill_in)
        made = make(reward, folder)
        with_texts = made.actor.causal_lm.preprocessor is not None
        made.compile(
            trajectories.adam(global_clipnorm=0.1),
            jit_compile=jit_compile,
            metrics={"random": random_metric} if with_texts else None,
        )
        seen = []
        history = made.fit(
            prompts(epochs),
            steps_per_epoch=1,
            epochs=epochs,
            validation_data=prompts(2),
            callbacks=[
                rlhf.callbacks.Resume(state),
                rlhf.callbacks.Samples(2, path=folder / f"{name}-{index}.jsonl", printer=str),
                rlhf.callbacks.TensorBoard(folder / f"{name}-{index}-logs", samples=2, text_freq=2),
                keras.callbacks.CSVLogger(folder / f"{name}-{index}.csv"),
                keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda batch, logs: seen.append(dict(made.statistics))
                ),
            ],
            verbose=2,  # of the first worker alone
        ).history
    return made, reward, history, seen


def outcome(name, folder, strategy=None):
    """What a case computed, as arrays."""
    made, reward, history, seen = fitted(name, folder, strategy)
    found = {f"weights/{i}": np.asarray(v) for i, v in enumerate(made.variables)}
    found |= {f"slots/{i}": np.asarray(v) for i, v in enumerate(made.optimizer.variables)}
    found |= {f"history/{key}": np.asarray(values) for key, values in history.items()}
    for i, statistics in enumerate(seen):
        for key, value in statistics.items():
            if not key.startswith("time/"):
                found[f"statistics/{i}/{key}"] = np.asarray(value)
    if made.last is not None:
        found["token_ids"] = np.asarray(made.last.rollout.token_ids)
        found["scores"] = np.asarray(made.last.rollout.scores)
        found["lengths"] = np.asarray(made.last.episodes.columns["length"])
    return found | {"own/rows": np.asarray(reward.rows)}


PAIRS = [
    {"prompt": "bcd" + "e" * n, "chosen": "fg" * (n % 3 + 1), "rejected": "h" * (5 - n)}
    for n in range(5)
]
# Models that stock `fit` trains, with their data; the last batch has fewer rows than workers.
FITS = {
    "fit-reward": (rlhf.RewardModel, rlhf.data.preferences, PAIRS),
    "fit-dpo": (rlhf.DPO, rlhf.data.preferences, PAIRS),
    "fit-kto": (rlhf.KTO, rlhf.data.preferences, PAIRS),
    "fit-lm": (
        lambda causal_lm: causal_lm,
        rlhf.data.demonstrations,
        [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in PAIRS],
    ),
}


def stock_fit(name, folder, strategy=None):
    """What stock `fit` of Keras makes of a model, as arrays."""
    make, load, records = FITS[name]
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        causal_lm = helpers.lm(texts=True, stddev=0.2)
        made = make(causal_lm)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        options = {"loss": loss} if name == "fit-lm" else {}
        made.compile(keras.optimizers.SGD(0.1), jit_compile=False, **options)
        dataset = load(records, causal_lm.preprocessor, 4)
        history = made.fit(dataset, epochs=2, validation_data=dataset, verbose=0).history
        measured = made.evaluate(dataset, verbose=0)
        predicted = made.predict(dataset, verbose=0) if name == "fit-reward" else 0.0
    found = {f"weights/{i}": np.asarray(v) for i, v in enumerate(made.variables)}
    found |= {f"history/{key}": np.asarray(values) for key, values in history.items()}
    return found | {"evaluate": np.asarray(measured), "predict": np.asarray(predicted)}


def exchange(name, folder, strategy):
    """What workers say to each other, and what each hears of the other's mistakes."""
    place = workers_module.Workers(strategy)
    said = place.exchange({"index": place.index, "text": "ab" * place.index})
    chosen = place.by_chief("choosing", lambda: place.index + 7)
    heard = []

    def fail():
        if place.index == 1:
            raise ValueError("a bad score")

    for mistake in (
        lambda: place.together("scoring", fail),
        lambda: place.check_same(prompts=[1, 2], scores=np.full(2, place.index)),
        lambda: rlhf.cluster.strategy("one") and place.check_same(settings={"a": 1}),
    ):
        try:
            mistake()
        except (ValueError, RuntimeError) as error:
            heard.append(f"{type(error).__name__}: {error}")
    record = {"said": said, "chosen": chosen, "heard": heard, "part": str(place.own_part(7))}
    (folder / f"exchange-{place.index}.json").write_text(json.dumps(record))
    return {}


def main(folder, *names):
    strategy = rlhf.cluster.strategy()
    # As in the tests: graphs that run a few times are not worth optimizing.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    folder, index = pathlib.Path(folder), rlhf.cluster.worker().index
    for name in names:
        try:
            run = exchange if name == "exchange" else stock_fit if name in FITS else outcome
            np.savez(folder / f"{name}-{index}.npz", **run(name, folder, strategy))
        except BaseException as error:
            (folder / f"{name}-{index}.txt").write_text(f"{type(error).__name__}: {error}")
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
