"""What people get wrong, and the sentence that each mistake gets, before anything takes long.

Every entry is a name, a call, and a part of the message: what was received, what was expected or
how to mend it. No network may be copied and nothing may be sampled on the way there.
"""

import functools
import importlib.util
import math
import pathlib
import re
import sys
import types
import typing

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf import evaluation
from kerasrlhf.data import records
from kerasrlhf.models import lm_adapter
from kerasrlhf.types import require_int, require_number

Sampler, FixedKL, AdaptiveKL = rlhf.Sampler, rlhf.FixedKL, rlhf.AdaptiveKL
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
TINY = rlhf.presets.TINY_STORIES
ROOT = pathlib.Path(__file__).parents[1]


def brevity(responses):
    return [-len(r) for r in responses]


class Reward:
    def __call__(self, responses):
        return brevity(responses)


def checkpoint(name):
    return [keras.callbacks.ModelCheckpoint(name)]


class Kit:
    """Parts that the entries share; each is made when it is first used."""

    lm = functools.cached_property(lambda self: helpers.lm(texts=True))
    bare = functools.cached_property(lambda self: helpers.lm())
    prep = functools.cached_property(lambda self: helpers.preprocessor())
    actor = functools.cached_property(lambda self: rlhf.ActorCritic(self.lm))
    reward = functools.cached_property(lambda self: rlhf.RewardModel.from_causal_lm(self.lm))
    dpo = functools.cached_property(lambda self: self.compiled(rlhf.DPO(self.lm)))
    ppo = functools.cached_property(lambda self: self.compiled(self.make()))
    prompts = functools.cached_property(lambda self: rlhf.data.prompts(["ab", "cd"], self.prep, 2))
    texts = functools.cached_property(lambda self: rlhf.LanguageModeling(self.demos, coef=0.1))
    with_texts = functools.cached_property(lambda self: self.compiled(self.make(texts=self.texts)))
    pairs = functools.cached_property(lambda self: rlhf.data.preferences([PAIR], self.prep, 1))

    @functools.cached_property
    def demos(self):
        return rlhf.data.demonstrations([{"prompt": "a", "response": "b"}], self.prep, 1)

    @functools.cached_property
    def labeled(self):
        row = {"prompt": "a", "response": "b", "label": True}
        return rlhf.data.unpaired_preferences([row], self.prep, 1)

    def compiled(self, model):
        model.compile("adam", jit_compile=False)
        return model

    def make(self, actor=None, reward=brevity, reference=None, kind=rlhf.PPO, **options):
        options = {"sampler": Sampler(3), "kl": FixedKL(0.1), **options}
        return kind(self.actor if actor is None else actor, reward, reference, **options)


SAMPLERS = {
    "length of zero": ({"length": 0}, "`length` must be at least 1. Received: 0"),
    "length as text": ({"length": "8"}, "`length` must be an integer. Received: '8'"),
    "length as float": ({"length": 8.0}, "`length` must be an integer. Received: 8.0"),
    "length as bool": ({"length": True}, "`length` must be an integer. Received: True"),
    "no length": ({}, "missing 1 required positional argument: 'length'"),
    "name of another library": ({"max_tokens": 8}, "unexpected keyword argument 'max_tokens'"),
    "negative temperature": ({"length": 8, "temperature": -1}, "`temperature` must be at least 0"),
    "temperature nan": ({"length": 8, "temperature": math.nan}, "must be a finite number"),
    "temperature as text": ({"length": 8, "temperature": "0.7"}, "Received: '0.7'"),
    "huge temperature": ({"length": 8, "temperature": 10**400}, "must be a finite number"),
    "top_k of zero": ({"length": 8, "top_k": 0}, "`top_k` must be at least 1. Received: 0"),
    "top_p in top_k": ({"length": 8, "top_k": 0.9}, "`top_k` must be an integer. Received: 0.9"),
    "top_p in percent": ({"length": 8, "top_p": 90}, "`top_p` must be above 0.0 and at most 1.0"),
    "top_p as text": ({"length": 8, "top_p": "0.9"}, "`top_p` must be a finite number"),
    "top_p as bool": ({"length": 8, "top_p": True}, "`top_p` must be a finite number"),
    "top_p as list": ({"length": 8, "top_p": [0.9]}, "`top_p` must be a finite number"),
    "stop as text": ({"length": 8, "stop_token_ids": "."}, 'must be "auto", None or a sequence'),
    "one stop id": ({"length": 8, "stop_token_ids": 5}, "a sequence of token ids. Received: 5"),
    "stop as tokens": ({"length": 8, "stop_token_ids": ["."]}, "must be an integer. Received: '.'"),
    "negative stop": ({"length": 8, "stop_token_ids": [-1]}, "must be at least 0. Received: -1"),
    "min above length": ({"length": 4, "min_length": 9}, "`min_length` must be at most `length`"),
    "epsilon of one": ({"length": 8, "epsilon": 1.0}, "`epsilon` must be at least 0.0 and below 1"),
}
USES = {f"sampler: {name}": (lambda k, o=o: Sampler(**o), m) for name, (o, m) in SAMPLERS.items()}

CONTROLS = {
    "negative": (lambda: FixedKL(-1), "`coef` must be at least 0.0. Received: -1"),
    "text": (lambda: FixedKL("0.1"), "`coef` must be a finite number. Received: '0.1'"),
    "nan": (lambda: FixedKL(math.nan), "`coef` must be a finite number. Received: nan"),
    "target of a fixed one": (lambda: FixedKL(0.1, target=6), "{'target': 6}"),
    "adaptive without target": (lambda: AdaptiveKL(0.1), "'target' and 'horizon'"),
    "adaptive from zero": (lambda: AdaptiveKL(0, 6, 100), "`coef` must be above 0.0. Received: 0"),
    "target of zero": (lambda: AdaptiveKL(0.1, 0, 100), "`target` must be above 0.0. Received: 0"),
    "horizon as text": (lambda: AdaptiveKL(0.1, 6, "1e4"), "`horizon` must be a finite number"),
}
USES |= {f"kl: {name}": (lambda k, f=f: f(), m) for name, (f, m) in CONTROLS.items()}

ARGUMENTS = {
    "language model as actor": (
        lambda k: {"actor": k.lm},
        "must be an ActorCritic, for example `ActorCritic.from_causal_lm(lm)`",
    ),
    "preset as actor": (
        lambda k: {"actor": "gpt2_base_en"},
        "Received: 'gpt2_base_en' of type str",
    ),
    "actor and reward swapped": (
        lambda k: {"actor": brevity, "reward": k.actor},
        "`actor` must be an ActorCritic",
    ),
    "reward as text": (lambda k: {"reward": "a.py:f"}, "Received: 'a.py:f' of type str"),
    "no reward": (lambda k: {"reward": None}, "must be a RewardModel or a function"),
    "reward as number": (lambda k: {"reward": 1.0}, "Received: 1.0 of type float"),
    "language model as reward": (lambda k: {"reward": k.lm}, "a Keras model of type GPT2CausalLM"),
    "reference as text": (lambda k: {"reference": "gpt2"}, "Received: 'gpt2' of type str"),
    "actor as reference": (lambda k: {"reference": k.actor}, "Pass `reference=None` for a frozen"),
    "length as sampler": (lambda k: {"sampler": 8}, "`Sampler(length=...)`. Received: 8"),
    "class as sampler": (lambda k: {"sampler": Sampler}, "must be a `Sampler(length=...)`"),
    "greedy": (lambda k: {"sampler": Sampler(3, temperature=0)}, "temperature must be above 0"),
    "coefficient as kl": (lambda k: {"kl": 0.1}, "must be a FixedKL or an AdaptiveKL. Received"),
    "class as kl": (lambda k: {"kl": FixedKL}, "must be a FixedKL or an AdaptiveKL"),
    "group of zero": (lambda k: {"group_size": 0}, "`group_size` must be at least 1. Received: 0"),
    "epochs as float": (lambda k: {"update_epochs": 2.0}, "`update_epochs` must be an integer"),
    "no minibatch": (lambda k: {"num_minibatches": 0}, "`num_minibatches` must be at least 1"),
    "micro-batches as text": (lambda k: {"micro_batches": "2"}, "`micro_batches` must be an int"),
    "seed of None": (lambda k: {"seed": None}, "`seed` must be an integer. Received: None"),
    "negative seed": (lambda k: {"seed": -1}, "`seed` must be at least 0 and at most"),
    "large seed": (lambda k: {"seed": 2**63}, "at most 9223372036854775807"),
    "reduction": (lambda k: {"loss_reduction": "mean"}, "must be one of ['token', 'sequence'"),
    "target_kl of zero": (lambda k: {"target_kl": 0}, "`target_kl` must be above 0"),
    "entropy as text": (lambda k: {"entropy_coef": "0"}, "`entropy_coef` must be a finite number"),
    "memory as int": (
        lambda k: {"memory": 8},
        "`memory` must be a RolloutMemory. Received: 8 of type int",
    ),
    "shaping as dict": (
        lambda k: {"shaping": {"clip": 1.0}},
        "`shaping` must be a RewardShaping. Received: {'clip': 1.0} of type dict",
    ),
    "empty dict as shaping": (lambda k: {"shaping": {}}, "Received: {} of type dict"),
    "class as shaping": (
        lambda k: {"shaping": rlhf.RewardShaping},
        "Pass `shaping=RewardShaping(...)`",
    ),
    "dataset as texts": (lambda k: {"texts": k.demos}, "`texts` must be a LanguageModeling"),
    "number as warmup": (lambda k: {"warmup": 3}, "`warmup` must be a CriticWarmup. Received: 3"),
    "number as prompt prediction": (
        lambda k: {"prompt_prediction": 0.1},
        "`prompt_prediction` must be a PromptPrediction. Received: 0.1",
    ),
    "misspelled": (
        lambda k: {"update_epoch": 2},
        "`PPO` has no argument `update_epoch`. Did you mean `update_epochs`?",
    ),
    "name of another library": (
        lambda k: {"clip_range": 0.2},
        "`PPO` has no argument `clip_range`. Did you mean `cliprange`?",
    ),
    "learning rate": (lambda k: {"learning_rate": 1e-5}, "`PPO` has no argument `learning_rate`"),
}
USES |= {f"ppo: {name}": (lambda k, f=f: k.make(**f(k)), m) for name, (f, m) in ARGUMENTS.items()}

USES |= {
    "ppo: no sampler": (lambda k: rlhf.PPO(k.actor, brevity, kl=FixedKL(0.1)), "'sampler'"),
    "ppo: no kl": (lambda k: rlhf.PPO(k.actor, brevity, sampler=Sampler(3)), "'kl'"),
    "grpo: variant": (lambda k: k.make(kind=rlhf.GRPO, variant="dr"), '"grpo" or "dr_grpo"'),
    "actor: preset name": (lambda k: rlhf.ActorCritic("gpt2"), "CausalLM.from_preset("),
    "actor: backbone": (lambda k: rlhf.ActorCritic(k.lm.backbone), "of type GPT2Backbone"),
    "actor: class": (lambda k: rlhf.ActorCritic(type(k.lm)), "of type type"),
    "actor: of an actor": (lambda k: rlhf.ActorCritic(k.actor), "of type ActorCritic"),
    "actor: critic by name": (lambda k: rlhf.ActorCritic(k.lm, "gpt2"), "'gpt2' of type str"),
    "actor: its own critic": (lambda k: rlhf.ActorCritic(k.lm, k.lm), "Pass `critic=None`"),
    "actor: misspelled preset": (
        lambda k: rlhf.ActorCritic.from_preset("gpt2_bose_en"),
        "could be loaded from the preset 'gpt2_bose_en'",
    ),
    "reward model: preset name": (lambda k: rlhf.RewardModel("gpt2"), "'gpt2' of type str"),
    "reward model: actor": (
        lambda k: rlhf.RewardModel.from_causal_lm(k.actor),
        "of type ActorCritic",
    ),
    "ensemble: none": (lambda k: rlhf.RewardEnsemble([]), "two or more models"),
    "ensemble: texts": (lambda k: rlhf.RewardEnsemble(["a", "b"]), "Received: 2 of ['str']"),
    "ensemble: aggregate": (
        lambda k: rlhf.RewardEnsemble([k.reward, k.reward], aggregate="median"),
        'must be "mean", "uwo" or "min"',
    ),
    "memory: none": (lambda k: rlhf.RolloutMemory(0), "`capacity` must be at least 1"),
    "memory: folder first": (lambda k: rlhf.RolloutMemory("runs"), "`capacity` must be an integer"),
    "load_reward: missing": (lambda k: rlhf.load_reward("runs/none"), "path/to/file.py:function"),
    "dpo: preset name": (lambda k: rlhf.DPO("gpt2"), "Received: 'gpt2' of type str"),
    "dpo: actor": (lambda k: rlhf.DPO(k.actor), "of type ActorCritic"),
    "dpo: beta second": (lambda k: rlhf.DPO(k.lm, 0.1), "Received: 0.1 of type float"),
    "dpo: beta as text": (lambda k: rlhf.DPO(k.lm, beta="0.1"), "`beta` must be a finite number"),
    "dpo: unknown": (lambda k: rlhf.DPO(k.lm, lr=1), "{'lr': 1}"),
    "ipo: beta nan": (lambda k: rlhf.IPO(k.lm, beta=math.nan), "`beta` must be a finite number"),
    "orpo: coef as text": (lambda k: rlhf.ORPO(k.lm, coef="1"), "`coef` must be a finite number"),
    "shaping: unknown": (lambda k: rlhf.RewardShaping(clipp=1.0), "clipp"),
    "shaping: no effect": (
        lambda k: rlhf.RewardShaping(overlong_penalty=2.0),
        "`overlong_penalty` has no effect without `overlong_buffer`",
    ),
    "shaping: clip of zero": (lambda k: rlhf.RewardShaping(clip=0), "`clip` must be above 0"),
    "texts: prompts": (
        lambda k: rlhf.LanguageModeling(k.prompts, coef=0.1),
        "must be a dataset as `rlhf.data.demonstrations` returns it",
    ),
    "texts: no effect": (lambda k: rlhf.LanguageModeling(k.demos), "no effect with `coef=0`"),
    "warmup of none": (lambda k: rlhf.CriticWarmup(0), "`iterations` must be at least 1"),
    "prompt prediction: no effect": (lambda k: rlhf.PromptPrediction(), "both weights 0"),
    "memory: reuse": (lambda k: rlhf.RolloutMemory(2, reuse=-1), "`reuse` must be at least 0"),
    "kl: place": (lambda k: FixedKL(0.1, place="rewards"), '`place` must be "reward" or "loss"'),
    "kl: k1 in the loss": (
        lambda k: FixedKL(0.1, place="loss", estimator="k1"),
        "k1 in the loss does nothing",
    ),
}

USES |= {
    "compile: optimizer by wrong name": (lambda k: k.ppo.compile("adamm"), "adamm"),
    "compile: learning rate": (lambda k: k.ppo.compile(1e-5), "1e-05"),
    "compile: loss": (lambda k: k.ppo.compile("adam", loss="mse"), "'loss'"),
    "compile: metrics": (lambda k: k.ppo.compile("adam", metrics=["accuracy"]), "'accuracy'"),
    "compile: dpo with a rate": (lambda k: k.dpo.compile(1e-5), "1e-05"),
}

FIT = {
    "texts": (lambda k: ([["Tom"]], {}), "`rlhf.data.prompts(source"),
    "one text": (lambda k: (["Tom was sad."], {}), "Received: 'Tom was sad.' of type str"),
    "a path": (lambda k: ([pathlib.Path("a.jsonl")], {}), "The source may be a list of texts"),
    "records": (lambda k: ([[{"prompt": "a"}]], {}), "`rlhf.data.prompts(source"),
    "an array": (lambda k: ([np.ones((2, 3))], {}), "of type ndarray"),
    "nothing": (lambda k: ([], {}), "`x` must be a dataset as `rlhf.data.prompts("),
    "pairs": (lambda k: ([k.pairs], {}), "as from `rlhf.data.preferences` (pairs"),
    "demonstrations": (lambda k: ([k.demos], {}), "as from `rlhf.data.demonstrations` (rows"),
    "labeled responses": (lambda k: ([k.labeled], {}), "with labels, for KTO"),
    "single rows": (lambda k: ([k.prompts.unbatch()], {}), "need `.batch(batch_size)`"),
    "a dataset of texts": (
        lambda k: ([tf.data.Dataset.from_tensors(["a"])], {}),
        "Expected batches as from `rlhf.data.prompts`",
    ),
    "a record": (lambda k: ([{"prompt": "a"}], {}), "a dict of ['prompt']"),
    "targets": (lambda k: ([k.prompts, [1]], {}), "`y` should not be passed"),
    "validation texts": (
        lambda k: ([k.prompts], {"validation_data": ["a"]}),
        "`validation_data` must be a dataset as `rlhf.data.prompts(source",
    ),
    "validation pairs": (
        lambda k: ([k.prompts], {"validation_data": k.pairs}),
        "`validation_data` has other batches. Expected batches as from `rlhf.data.prompts`",
    ),
    "no epochs": (lambda k: ([k.prompts], {"epochs": 0}), "`epochs` must be at least 1"),
    "epochs as text": (lambda k: ([k.prompts], {"epochs": "2"}), "`epochs` must be an integer"),
    "epochs as float": (lambda k: ([k.prompts], {"epochs": 1.5}), "`epochs` must be an integer"),
    "no steps": (lambda k: ([k.prompts], {"steps_per_epoch": 0}), "must be at least 1"),
    "misspelled": (lambda k: ([k.prompts], {"epoch": 2}), "unexpected keyword argument 'epoch'"),
    "callback class": (
        lambda k: ([k.prompts], {"callbacks": [keras.callbacks.EarlyStopping]}),
        "Pass `EarlyStopping(...)`",
    ),
    "callback by name": (
        lambda k: ([k.prompts], {"callbacks": "tensorboard"}),
        "Received: 'tensorboard' of type str",
    ),
}
USES |= {
    f"fit: {name}": (lambda k, f=f: k.ppo.fit(*f(k)[0], **f(k)[1]), m)
    for name, (f, m) in FIT.items()
}

USES |= {
    "evaluate: texts": (
        lambda k: k.ppo.evaluate(["a"]),
        "`x` must be a dataset as `rlhf.data.prompts(",
    ),
    "evaluate: pairs": (lambda k: k.ppo.evaluate(k.pairs), "`rlhf.data.preferences`"),
    "predict": (lambda k: k.ppo.predict(k.prompts), "`trainer.actor.generate(prompts, sampler)`"),
    "fit: checkpoint of a whole model": (
        lambda k: k.with_texts.fit(k.prompts, callbacks=checkpoint("x.keras")),
        "save_weights_only=True",
    ),
    "fit: checkpoint with the way out": (
        lambda k: k.with_texts.fit(k.prompts, callbacks=checkpoint("x.keras")),
        "`rlhf.callbacks.Resume(directory)`, or the policy with `trainer.actor.save_to_preset",
    ),
    "save": (
        lambda k: k.with_texts.save("x.keras"),
        "PPO cannot be saved as one Keras model",
    ),
    "save with the reason": (
        lambda k: k.with_texts.save("x.keras"),
        "The reason: `texts` has a dataset",
    ),
    "iterate: texts": (lambda k: k.ppo.iterate(["a"]), "Received: ['a'] of type list"),
    "iterate: dataset": (lambda k: k.ppo.iterate(k.prompts), "of type TokenizedDataset"),
    "actor: fit": (lambda k: k.actor.fit(k.demos), "call `compile()`"),
    "dpo: fit prompts": (lambda k: k.dpo.fit(k.prompts), "`rlhf.data.preferences`"),
    "dpo: fit demonstrations": (lambda k: k.dpo.fit(k.demos), "`rlhf.data.preferences`"),
    "dpo: resume": (
        lambda k: k.dpo.fit(k.pairs, callbacks=[rlhf.callbacks.Resume("x")], verbose=0),
        "`keras.callbacks.BackupAndRestore`",
    ),
}

GENERATE = {
    "no prompts": ([[], Sampler(3)], "at least one entry"),
    "numbers": ([[1], Sampler(3)], "Received 1 of type int"),
    "records": ([[{"prompt": "a"}], Sampler(3)], "{'prompt': 'a'}"),
    "bytes": ([[b"a"], Sampler(3)], "of type bytes"),
    "nested": ([[["a"]], Sampler(3)], "of type list"),
    "beyond the positions": (["a", Sampler(300)], "the model has 32"),
    "no sampler": (["a"], "'sampler'"),
}
USES |= {
    f"generate: {name}": (lambda k, a=a: k.actor.generate(*a), m)
    for name, (a, m) in GENERATE.items()
}
USES |= {
    "generate: batch of zero": (
        lambda k: k.actor.generate("a", Sampler(3), batch_size=0),
        "`batch_size` must be at least 1",
    ),
    "generate: name of another library": (
        lambda k: k.actor.generate("a", max_length=3),
        "unexpected keyword argument 'max_length'",
    ),
    "generate: no tokenizer": (
        lambda k: rlhf.ActorCritic(k.bare).generate("a", Sampler(3)),
        "the model has no preprocessor",
    ),
}

USES |= {
    "score: lengths": (lambda k: k.reward.score(["a"], ["b", "c"]), "1 prompts and 2 responses"),
    "score: nothing": (lambda k: k.reward.score([], []), "at least one"),
    "score: numbers": (lambda k: k.reward.score([1], [2]), "of type int"),
    "score: records": (lambda k: k.reward.score([PAIR], ["b"]), "{'prompt': 'a'"),
    "score: responses missing": (lambda k: k.reward.score(["a"]), "'responses'"),
    "score: ended": (
        lambda k: k.reward.score(["a"], ["b"], ended=[1, 0]),
        "`ended` must be a bool",
    ),
    "normalize: lengths": (
        lambda k: k.reward.normalize(["a"], responses=["b", "c"]),
        "1 prompts and 2 responses",
    ),
    "normalize: nothing": (lambda k: k.reward.normalize([], responses=[]), "at least one"),
    "best of one": (lambda k: best(k, n=1), "`n` must be at least 2"),
    "best of a float": (lambda k: best(k, n=2.0), "`n` must be an integer. Received: 2.0"),
    "best of n: swapped": (lambda k: best(k, n=Sampler(3), sampler=2), "`n` must be an integer"),
    "best of n: no prompts": (lambda k: best(k, prompts=[]), "at least one entry"),
    "best of n: batch": (lambda k: best(k, batch_size=0), "`batch_size` must be at least 1"),
    "best of n: reward": (lambda k: best(k, reward="f"), "Received: 'f' of type str"),
    "best of n: greedy": (lambda k: best(k, sampler=Sampler(3, temperature=0)), "temperature"),
    "kl of best of none": (lambda k: rlhf.best_of_n_kl(0), "`n` must be at least 1"),
}


def best(kit, **changes):
    arguments = {"reward": brevity, "prompts": ["a"], "n": 2, "sampler": Sampler(3), **changes}
    return rlhf.best_of_n(kit.actor, **arguments)


def prompts(source, **options):
    return lambda k: rlhf.data.prompts(source, k.prep, **{"batch_size": 1, **options})


USES |= {
    "prompts: one text": (prompts("Tom was sad."), "Texts are passed as a list: ['Tom was sad.']"),
    "prompts: missing file": (prompts("none/such.jsonl"), "There is no file 'none/such.jsonl'"),
    "prompts: None": (prompts(None), "Received: None of type NoneType"),
    "prompts: columns": (prompts({"prompt": ["a"]}), "must be an iterable of records"),
    "prompts: file names": (prompts(["a.jsonl", "b.jsonl"]), "a list of file names"),
    "prompts: no rows": (prompts([]), "no rows. Received: []"),
    "prompts: numbers": (prompts([1, 2]), "neither dictionaries nor strings"),
    "prompts: empty text": (prompts(["a", ""]), "an empty 'prompt': rows 1"),
    "prompts: no column": (prompts([{"text": "a"}]), "Expected a column 'prompt'"),
    "prompts: no text": (prompts([{"prompt": 3}]), "no text"),
    "prompts: unknown role": (
        prompts([{"prompt": [{"role": "x", "content": "a"}]}]),
        "Unknown role 'x'",
    ),
    "prompts: infinite": (
        prompts(tf.data.Dataset.from_tensors("a").repeat()),
        "Use `dataset.take(n)`",
    ),
    "prompts: batched": (prompts(tf.data.Dataset.from_tensors(["a"])), "`dataset.unbatch()`"),
    "prompts: batch of zero": (prompts(["a"], batch_size=0), "`batch_size` must be"),
    "prompts: batch as text": (prompts(["a"], batch_size="8"), "Received: '8'"),
    "prompts: batch as bool": (prompts(["a"], batch_size=True), "Received: True"),
    "prompts: max_length": (prompts(["a"], max_length=0), "`max_length` must be an integer"),
    "prompts: seed": (prompts(["a"], seed=None), "`seed` must be an integer"),
    "prompts: large seed": (prompts(["a"], seed=2**64), "`seed` must be at least 0 and at most"),
    "prompts: template": (prompts(["a"], template="chat"), "Unknown template 'chat'"),
    "prompts: unknown": (prompts(["a"], shuffel=True), "'shuffel'"),
    "prompts: nothing left": (prompts(["a"], batch_size=4, drop_remainder=True), "drop_remainder"),
    "preferences: prompts": (
        lambda k: rlhf.data.preferences(["a"], k.prep, 1),
        "Expected a column 'chosen' or 'responses'",
    ),
    "preferences: one response": (
        lambda k: rlhf.data.preferences([{"prompt": "a", "responses": ["b"]}], k.prep, 1),
        "two or more texts in 'responses'",
    ),
    "demonstrations: pairs": (
        lambda k: rlhf.data.demonstrations([PAIR], k.prep, 1),
        "Expected a column 'response' or 'completion'",
    ),
    "labeled responses: label": (
        lambda k: rlhf.data.unpaired_preferences(
            [{"prompt": "a", "response": "b", "label": "good"}], k.prep, 1
        ),
        "'label'",
    ),
    "load: a number": (lambda k: records.load(5), "Received: 5 of type int"),
}

USES |= {
    "tensorboard: samples": (lambda k: rlhf.callbacks.TensorBoard("x", -1), "`samples` must be"),
    "tensorboard: no folder": (lambda k: rlhf.callbacks.TensorBoard(None), "not NoneType"),
    "resume: every": (lambda k: rlhf.callbacks.Resume("x", every=0), "`every` must be"),
    "samples: none": (lambda k: rlhf.callbacks.Samples(count=0), "`count` must be"),
    "samples: one text": (lambda k: rlhf.callbacks.Samples(prompts="a"), "must be"),
    "perplexity: one text": (lambda k: evaluation.perplexity(k.lm, "a"), "For one text pass"),
    "perplexity: nothing": (lambda k: evaluation.perplexity(k.lm, []), "at least one entry"),
    "perplexity: numbers": (lambda k: evaluation.perplexity(k.lm, [1]), "of type int"),
    "perplexity: no tokenizer": (lambda k: evaluation.perplexity(k.bare, ["a"]), "no preprocessor"),
    "loss: margin": (lambda k: rlhf.losses.BradleyTerry(margin="x"), 'a number or "labels"'),
    "loss: one candidate": (
        lambda k: rlhf.losses.BradleyTerry()(np.zeros(2), np.zeros((2, 1))),
        "at least 2 candidates",
    ),
    "loss: no candidates": (
        lambda k: rlhf.losses.BradleyTerry()(np.zeros(2), np.zeros(2)),
        "expected (batch, candidates)",
    ),
    "loss: ipo of zero": (lambda k: rlhf.losses.IPOLoss(0), "`beta` must be above 0"),
    "loss: weight": (lambda k: rlhf.losses.KTOLoss(-1), "`desirable_weight` must be at least 0"),
    "loss: reduction": (lambda k: rlhf.losses.BradleyTerry(reduction="avg"), "reduction=avg"),
    "whiten: shapes": (
        lambda k: rlhf.functional.masking.whiten(np.zeros((2, 3)), np.ones((2, 4))),
        "(2, 3) and `mask` the shape (2, 4)",
    ),
    "gae: gamma": (
        lambda k: rlhf.functional.returns.gae(*[np.zeros((1, 2))] * 2, np.ones((1, 2)), 2.0),
        "`gamma` is 2.0",
    ),
}

FRONT = {
    "misspelled algorithm": ({"algorithm": "pppo"}, "Did you mean 'ppo'?"),
    "class as algorithm": ({"algorithm": rlhf.PPO}, "There are ['ppo'"),
    "reward and pairs": ({"preferences": [PAIR]}, "Received both"),
    "no reward": ({"reward": None}, "Received neither"),
    "negative rate": ({"learning_rate": -1}, "`learning_rate` must be above 0"),
    "rate as text": ({"learning_rate": "1e-5"}, "`learning_rate` must be a finite number"),
    "batch of zero": ({"batch_size": 0}, "`batch_size` must be at least 1"),
    "negative kl": ({"kl_coef": -1}, "must be at least 0"),
    "length of zero": ({"length": 0}, "`length` must be at least 1"),
    "sampler": ({"sampler": Sampler(3)}, "makes ['sampler'] itself"),
}
USES |= {
    f"RLHF: {name}": (lambda k, o=o: rlhf.RLHF(TINY, ["a"], **{"reward": brevity, **o}), m)
    for name, (o, m) in FRONT.items()
}
USES |= {
    "RLHF: train first": (
        lambda k: rlhf.RLHF(TINY, ["a"], reward=brevity).train(),
        "Call `build_model()` before `train()`",
    ),
    "RLHF: generate first": (
        lambda k: rlhf.RLHF(TINY, ["a"], reward=brevity).generate("a"),
        "Call `build_model()` before `generate()`",
    ),
}


# Constructors: refused before the reference is copied.
LATE = {
    "gamma of two": ({"gamma": 2}, "`gamma` must be at least 0.0 and at most 1.0. Received: 2"),
    "lam as text": ({"lam": "0.95"}, "`lam` must be a finite number. Received: '0.95'"),
    "cliprange of zero": ({"cliprange": 0}, "`cliprange` must be above 0.0. Received: 0"),
    "vf_coef negative": ({"vf_coef": -1}, "`vf_coef` must be at least 0.0"),
    "dual_clip": ({"dual_clip": 0.5}, "`dual_clip` must be above 1.0"),
    "whitening as text": ({"whiten_advantages": "no"}, "`whiten_advantages` must be True or False"),
    "mask_overlong as text": ({"mask_overlong": "no"}, "`mask_overlong` must be True or False"),
}
USES |= {f"ppo: {name}": (lambda k, o=o: k.make(**o), m) for name, (o, m) in LATE.items()}
USES |= {
    "ppo: class as reward": (lambda k: k.make(reward=Reward), "is the class Reward. Pass"),
    "grpo: group of one": (lambda k: k.make(kind=rlhf.GRPO, group_size=1), "must be at least 2"),
    "grpo: cliprange": (lambda k: k.make(kind=rlhf.GRPO, cliprange=0), "`cliprange` must be above"),
    "rloo: group of one": (lambda k: k.make(kind=rlhf.RLOO, group_size=1), "must be at least 2"),
    "rloo: cliprange": (lambda k: k.make(kind=rlhf.RLOO, cliprange=-1), "must be above 0"),
    "reinforce++: gamma": (
        lambda k: k.make(kind=rlhf.REINFORCEPlusPlus, gamma=-1),
        "`gamma` must be at least 0.0",
    ),
    "online dpo: labels": (
        lambda k: k.make(kind=rlhf.OnlineDPO, labels="x"),
        '`labels` must be "soft" or "hard"',
    ),
    "online dpo: no kl": (
        lambda k: k.make(kind=rlhf.OnlineDPO, kl=FixedKL(0)),
        "with 0 nothing is learn",
    ),
    "compile: xla as text": (
        lambda k: k.ppo.compile("adam", jit_compile="no"),
        "`jit_compile` must be True or False. Received: 'no'",
    ),
    # Data of another kind, and whole-model checkpoints.
    "dpo: fit texts": (lambda k: k.dpo.fit(["a"]), "`rlhf.data.preferences(source"),
    "dpo: fit a path": (lambda k: k.dpo.fit("pairs.jsonl"), "of type str"),
    "dpo: fit labeled responses": (lambda k: k.dpo.fit(k.labeled), "as from `rlhf.data.unpaired"),
    "dpo: validate with prompts": (
        lambda k: k.dpo.fit(k.pairs, validation_data=k.prompts),
        "`validation_data` has other batches",
    ),
    "dpo: checkpoint of a whole model": (
        lambda k: k.dpo.fit(k.pairs, callbacks=checkpoint("x.keras")),
        "`causal_lm.save_to_preset(directory)`",
    ),
    "dpo: save": (lambda k: k.dpo.save("x.keras"), "DPO cannot be saved as one Keras model"),
    "reward model: fit prompts": (lambda k: k.reward.fit(k.prompts), "as from `rlhf.data.prompts`"),
    "reward model: fit demonstrations": (
        lambda k: k.reward.fit(k.demos),
        "as from `rlhf.data.demonstrations`",
    ),
    "reward model: fit labeled": (lambda k: k.reward.fit(k.labeled), "with labels, for KTO"),
    "reward model: fit texts": (lambda k: k.reward.fit(["a"]), "`rlhf.data.preferences(source"),
    "reward model: checkpoint": (
        lambda k: k.reward.fit(k.pairs, callbacks=checkpoint("x.keras")),
        "or the model with `save_to_preset(directory)`",
    ),
    "language model: fit prompts": (lambda k: k.lm.fit(k.prompts), "as from `rlhf.data.prompts`"),
    "language model: fit pairs": (lambda k: k.lm.fit(k.pairs), "as from `rlhf.data.preferences`"),
    # Texts in and out.
    "generate: float as sampler": (
        lambda k: k.actor.generate("x", 8.0),
        "`sampler` must be a `Sampler(length=...)`. Received: 8.0",
    ),
    "generate: length of zero": (lambda k: k.actor.generate("x", 0), "`length` must be at least 1"),
    "generate: schedule": (
        lambda k: k.actor.generate("x", Sampler(3, temperature=lambda iteration: 1.0)),
        "is a schedule over the iterations of a trainer",
    ),
    "generate: swapped": (lambda k: k.actor.generate(Sampler(3), "x"), "Received: 'x' of type str"),
    "generate: record": (lambda k: k.actor.generate({"prompt": "a"}, Sampler(3)), "['prompt']"),
    "generate: half a batch": (
        lambda k: k.actor.generate({"token_ids": [[1]]}, Sampler(3)),
        "must have `token_ids` and `padding_mask`",
    ),
    "generate: seed of None": (
        lambda k: k.actor.generate("a", Sampler(3), None),
        "`seed` must be an integer. Received: None",
    ),
    "generate: large seed": (
        lambda k: k.actor.generate("a", Sampler(2), seed=2**63),
        "`seed` must be at least 0 and at most",
    ),
    "generate: seed as float": (
        lambda k: k.actor.generate("a", Sampler(3), 1.5),
        "`seed` must be an integer. Received: 1.5",
    ),
    "score: one text": (lambda k: k.reward.score("a", "b"), "For one text pass `[text]`"),
    "score: batch of zero": (
        lambda k: k.reward.score(["a"], ["b"], batch_size=0),
        "`batch_size` must be at least 1",
    ),
    "normalize: std of zero": (
        lambda k: k.reward.normalize(["a", "b"], std=0.0, responses=["b", "c"]),
        "`std` must be above 0",
    ),
    "normalize: mean as text": (
        lambda k: k.reward.normalize(["a", "b"], mean="0", responses=["b", "c"]),
        "`mean` must be a finite number. Received: '0'",
    ),
    "normalize: reward model as policy": (
        lambda k: k.reward.normalize(["a", "b"], policy=k.reward),
        "of type RewardModel",
    ),
    "normalize: float as sampler": (
        lambda k: k.reward.normalize(["a", "b"], policy=k.actor, sampler=8.0),
        "`sampler` must be a `Sampler(length=...)`",
    ),
    "best of n: schedule": (
        lambda k: best(k, sampler=Sampler(3, temperature=lambda iteration: 1.0)),
        "is a schedule over the iterations of a trainer",
    ),
    "best of n: length as sampler": (lambda k: best(k, sampler=8), "Received: 8 of type int"),
    "best of n: one text": (lambda k: best(k, prompts="Tom"), "For one text pass `[text]`"),
    "best of n: class": (lambda k: best(k, reward=Reward), "is the class Reward"),
    "best of n: seed": (lambda k: best(k, seed=None), "`seed` must be an integer"),
    "best of n: large seed": (lambda k: best(k, seed=2**63), "`seed` must be at least 0 and at"),
    "best of n: language model": (
        lambda k: rlhf.best_of_n(k.lm, brevity, ["a"], 2, Sampler(3)),
        "`actor` must be an ActorCritic",
    ),
    "perplexity: actor": (lambda k: evaluation.perplexity(k.actor, ["a"]), "of type ActorCritic"),
    "perplexity: swapped": (lambda k: evaluation.perplexity(["a"], k.lm), "of type list"),
    "perplexity: batch of zero": (
        lambda k: evaluation.perplexity(k.lm, ["ab"], batch_size=0),
        "`batch_size` must be at least 1",
    ),
    "perplexity: length of zero": (
        lambda k: evaluation.perplexity(k.lm, ["ab"], max_length=0),
        "`max_length` must be at least 2",
    ),
    "distinct_n: one text": (lambda k: evaluation.distinct_n("a b"), "For one text pass `[text]`"),
    # Smaller ones.
    "prompts: language model": (
        lambda k: rlhf.data.prompts(["a"], k.lm, 1),
        "such as `causal_lm.preprocessor`",
    ),
    "prompts: shuffle as text": (prompts(["a"], shuffle="no"), "`shuffle` must be True or False"),
    "load_reward: function": (lambda k: rlhf.load_reward(brevity), "of type function"),
    "ensemble: one model": (lambda k: rlhf.RewardEnsemble(k.reward), "must be a list of reward"),
    "process reward model: separator": (
        lambda k: rlhf.ProcessRewardModel(k.lm, separator=3),
        "`separator` must be a string. Received: 3",
    ),
    "samples: printer": (lambda k: rlhf.callbacks.Samples(printer="x"), "must be a function of a"),
    "loss: smoothing": (lambda k: rlhf.losses.BradleyTerry(label_smoothing=1.5), "at most 1.0"),
    "loss: smoothing as text": (
        lambda k: rlhf.losses.BradleyTerry(label_smoothing="0.1"),
        "`label_smoothing` must be a finite number",
    ),
    "loss: margin nan": (lambda k: rlhf.losses.BradleyTerry(margin=math.nan), "finite number"),
    "RLHF: loaded model": (lambda k: rlhf.RLHF(k.lm, ["a"], reward=brevity), "or a folder"),
    "RLHF: one text": (
        lambda k: rlhf.RLHF(TINY, "Tom was sad.", reward=brevity),
        "Texts are passed as a list",
    ),
    "RLHF: no prompts": (lambda k: rlhf.RLHF(TINY, [], reward=brevity), "no rows. Received: []"),
}
FRONT_LATE = {
    "greedy": ({"temperature": 0}, "`temperature` must be above 0"),
    "seed as text": ({"seed": "0"}, "`seed` must be an integer. Received: '0'"),
    "xla as text": ({"jit_compile": "no"}, "`jit_compile` must be True or False"),
    "reward as number": ({"reward": 3}, "Received: 3 of type int"),
    "reward as numbers": ({"reward": [1.0]}, "Received: 1.0 of type float"),
    "class as reward": ({"reward": Reward}, "is the class Reward"),
}
USES |= {
    f"RLHF: {name}": (lambda k, o=o: rlhf.RLHF(TINY, ["a"], **{"reward": brevity, **o}), m)
    for name, (o, m) in FRONT_LATE.items()
}


USES |= {
    "RLHF: unknown option": (
        lambda k: rlhf.RLHF(TINY, ["a"], reward=brevity, update_epoch=3),
        "`PPO` has no argument `update_epoch`. Did you mean `update_epochs`?",
    ),
    "reward without parameters": (lambda k: k.make(reward=lambda: [0.0]), "without parameters"),
    "compile: a rate as optimizer": (
        lambda k: k.ppo.compile(1e-5),
        "such as `keras.optimizers.Adam(1e-5)`, or the name of one. Received: 1e-05",
    ),
    "reward model: a rate as optimizer": (
        lambda k: k.reward.compile(1e-5),
        "`optimizer` must be a Keras optimizer",
    ),
}


@pytest.fixture(scope="module")
def kit():
    made = Kit()
    made.compiled(made.reward)
    # What a call may need but must not make itself.
    assert [made.ppo, made.dpo, made.reward, made.prompts, made.pairs, made.demos, made.labeled]
    assert made.with_texts
    return made


@pytest.mark.parametrize("name", USES)
def test_a_bad_use_is_refused_at_once_with_a_sentence_that_helps(kit, name, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a network was copied, or something was sampled")

    monkeypatch.setattr(lm_adapter, "copy", never)
    monkeypatch.setattr(rlhf.ActorCritic, "sample", never)
    monkeypatch.setattr("socket.getaddrinfo", never)
    use, message = USES[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        use(kit)
    assert message in " ".join(str(caught.value).split())


def test_numpy_scalars_are_numbers(kit):
    sampler = Sampler(np.int64(3), np.float32(0.5), np.int32(4), np.float64(0.5), np.array([1, 2]))
    assert sampler == Sampler(3, 0.5, 4, 0.5, (1, 2))
    assert [type(x) for x in (sampler.length, sampler.temperature)] == [int, float]
    assert float(FixedKL(np.float64(0.25)).coef) == 0.25
    trainer = kit.make(
        group_size=np.int64(2), update_epochs=np.int32(3), entropy_coef=np.float32(0.5)
    )
    assert (trainer.group_size, trainer.update_epochs, trainer.entropy_coef) == (2, 3, 0.5)
    assert len(rlhf.data.prompts(["a", "b"], kit.prep, np.int64(1))) == 2
    assert rlhf.callbacks.Samples(count=np.int64(2)).count == 2


def test_bounds_are_named_together():
    assert require_number("x", 0.5, minimum=0, below=1) == 0.5
    with pytest.raises(ValueError, match=r"`x` must be at least 0 and below 1\. Received: 1\."):
        require_number("x", 1, minimum=0, below=1)
    with pytest.raises(ValueError, match=r"`n` must be at least 1 and at most 3\. Received: 4\."):
        require_int("n", 4, minimum=1, maximum=3)


class TestScopes:
    """All of a trainer belongs to one strategy, or none of it."""

    @pytest.fixture
    def strategy(self):
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def test_a_trainer_from_outside(self, strategy):
        trainer = helpers.ppo(helpers.actor())
        with strategy.scope(), pytest.raises(ValueError, match=r"inside one `with strategy\.scope"):
            trainer.compile("adam", jit_compile=False)

    def test_an_actor_from_outside(self, strategy):
        actor = helpers.actor()
        with strategy.scope(), pytest.raises(ValueError, match="PPO and its actor, such as"):
            helpers.ppo(actor).compile("adam", jit_compile=False)

    def test_a_fit_inside_of_what_was_compiled_outside(self, strategy, kit):
        with strategy.scope(), pytest.raises(ValueError, match="MirroredStrategy that training"):
            kit.ppo.fit(kit.prompts)

    def test_an_optimizer_from_outside(self, strategy):
        with strategy.scope():
            trainer = helpers.ppo(helpers.actor())
        with pytest.raises(ValueError, match="variables of the optimizer"):
            trainer.compile("adam", jit_compile=False)

    def test_an_actor_from_inside(self, strategy):
        with strategy.scope():
            actor = helpers.actor()
        with pytest.raises(ValueError, match="without a distribution strategy"):
            helpers.ppo(actor).compile("adam", jit_compile=False)


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / f"recipes/{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        hints = typing.get_type_hints(module.Config)
    return module.Config, hints


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_of_a_recipe_has_a_range(name):
    config, hints = load(name)
    values = getattr(config, "presets", {}).get("smoke", {})
    config(**values)
    for field, kind in hints.items():
        kinds = {kind} | ({*kind.__args__} if isinstance(kind, types.UnionType) else set())
        for bad in (math.nan, "1", True) if kinds & {int, float} else ():
            with pytest.raises(ValueError, match=f"`--{field.replace('_', '-')}` must be"):
                config(**{**values, field: bad})
        if kinds & {int, float} and field != "missing_end_score":
            with pytest.raises(ValueError, match=f"`--{field.replace('_', '-')}` must be"):
                config(**{**values, field: -1})
        if kind is bool:
            with pytest.raises(ValueError, match=f"`--{field.replace('_', '-')}` must be True or"):
                config(**{**values, field: "no"})


RECIPE_USES = {
    "negative rate": ("ppo", {"learning_rate": -1.0}, "`--learning-rate` must be above 0"),
    "no rate": ("sft", {"learning_rate": 0.0}, "`--learning-rate` must be above 0"),
    "no temperature": ("group", {"temperature": 0.0}, "`--temperature` must be above 0"),
    "no validation": ("group", {"validate_every": 0}, "`--validate-every` must be at least 1"),
    "no epochs": ("dpo", {"epochs": 0}, "`--epochs` must be at least 1"),
    "fraction in percent": ("sft", {"held_out": 10.0}, "`--held-out` must be above 0 and below 1"),
    "one response": ("group", {"group_size": 1}, "`--group-size` must be at least 2"),
    "unknown loss": ("reward_model", {"loss": "hinge"}, "`--loss` must be one of"),
    "path as text": ("ppo", {"output": "runs"}, "`--output` must be a path"),
    "parts": ("ppo", {"held_out": 12}, "must be a multiple of `--batch-size`. Received: 12 and 8"),
    "steering nothing": ("ppo", {"kl_coef": 0.0}, "add --kl-target none"),
}


@pytest.mark.parametrize("case", RECIPE_USES)
def test_a_recipe_refuses_its_options_before_it_loads_anything(case):
    name, options, message = RECIPE_USES[case]
    config, _ = load(name)
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**{**config.presets["smoke"], **options})
