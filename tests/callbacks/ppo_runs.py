"""A small PPO run that can be built again from the same seeds."""

import helpers
import keras
import keras_hub

import kerasrlhf as rlhf
from kerasrlhf.trainers.iterative import Replay

TEXTS = ["ab", "cde", "f", "gh", "ijk", "l", "mn", "op"]


class Run:
    """Everything that a script would build: model, trainer, data.

    Building traces the compiled functions, which takes seconds; `again` gives a run of the same
    start without it.
    """

    def __init__(
        self,
        seed=0,
        lora=False,
        optimizer=None,
        vocab=helpers.VOCAB,
        dtype=None,
        jit_compile=False,
        trained=False,
        **options,
    ):
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=vocab,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=32,
            dropout=0.0,
            dtype=dtype,
        )
        preprocessor = helpers.preprocessor(vocab)
        language_model = keras_hub.models.GPT2CausalLM(helpers.filled(backbone), preprocessor)
        if lora:
            keras.utils.set_random_seed(5)
            language_model.backbone.enable_lora(2)
        if trained:
            helpers.filled(language_model.backbone, seed=4)
        self.trainer = rlhf.PPO(
            rlhf.ActorCritic(language_model),
            lambda prompts, responses: self.reward(prompts, responses),
            sampler=rlhf.Sampler(length=4),
            update_epochs=2,
            num_minibatches=2,
            seed=seed,
            **{"kl": rlhf.AdaptiveKL(0.2, target=0.05, horizon=20), **options},
        )
        optimizer = optimizer or keras.optimizers.Adam(1e-2)
        self.trainer.compile(optimizer, jit_compile=jit_compile)
        self._start = self.variables()
        self._load_data()

    def _load_data(self):
        self.reward = letters
        preprocessor = self.trainer.actor.causal_lm.preprocessor
        self.prompts = rlhf.data.prompts(TEXTS, preprocessor, batch_size=4, seed=1)
        self.held_out = rlhf.data.prompts(TEXTS[:4], preprocessor, batch_size=4, shuffle=False)

    def again(self, reward=None):
        """This run as it was before its first iteration."""
        self.trainer.reset(self.trainer.seed)
        self.trainer.replay = Replay()
        for variable, value in zip(self._variables(), self._start, strict=True):
            variable.assign(value)
        self._load_data()
        self.reward = reward or letters
        return self

    def fit(self, epochs=2, callbacks=(), validate=False, **options):
        """`epochs` of two iterations; returns all variables and the history afterward."""
        if validate:
            options["validation_data"] = self.held_out
        history = self.trainer.fit(
            self.prompts, epochs=epochs, callbacks=list(callbacks), verbose=0, **options
        )
        return self.variables(), history.history

    def _variables(self):
        return [*self.trainer.variables, *self.trainer.optimizer.variables]

    def variables(self):
        return [keras.ops.convert_to_numpy(v).copy() for v in self._variables()]


def letters(prompts, responses):
    return [response.count("a") - 0.1 * len(response) for response in responses]
