"""The three steps behind one object: which are taken, in which order, and from what."""

import helpers
import keras
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf import rlhf as front

PROMPTS = ["ab", "bc", "cde", "ba"]
PAIRS = [{"prompt": p, "chosen": "aa", "rejected": "dd"} for p in PROMPTS]
DEMOS = [{"prompt": p, "response": "ab"} for p in PROMPTS]
SMALL = {"length": 3, "batch_size": 4, "learning_rate": 0.01, "jit_compile": False}


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    helpers.lm(texts=True).save_to_preset(str(folder))
    return folder


def make(preset, **options):
    return rlhf.RLHF(preset, PROMPTS, **{**SMALL, **options})


def weights(model):
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


class Begin(keras.callbacks.Callback):
    """What the parts are when reinforcement begins."""

    def __init__(self, made):
        super().__init__()
        self.made, self.seen, self.scores = made, [], []

    def on_train_begin(self, logs=None):
        made = self.made
        models = (made.actor.causal_lm, made.trainer.reference.causal_lm, made.reward)
        self.seen.append([weights(model) for model in models])
        responses, ended = made.actor.generate(
            PROMPTS, made.sampler, 0, return_ended=True, jit_compile=False
        )
        self.scores.append(made.reward.score(PROMPTS, responses, ended=ended))


@pytest.fixture(scope="module")
def trained(preset):
    """All three steps, then reinforcement once more."""
    keras.utils.set_random_seed(0)
    made = make(preset, preferences=PAIRS, demonstrations=DEMOS, update_epochs=2)
    made.build_model()
    parts = made.actor, made.reward, made.trainer
    start = [weights(made.actor.causal_lm), weights(made.reward)]
    begin = Begin(made)
    histories = [made.train(epochs, callbacks=[begin], verbose=0) for epochs in (2, 1)]
    assert all(a is b for a, b in zip(parts, (made.actor, made.reward, made.trainer), strict=True))
    return made, start, begin, histories


def test_reinforcement_begins_at_the_fine_tuned_model(trained):
    _, (lm, reward), begin, _ = trained
    actor, reference, fitted = begin.seen[0]
    assert np.abs(actor - lm).max() > 1e-3
    np.testing.assert_array_equal(reference, actor)
    assert np.abs(fitted - reward).max() > 1e-3


def test_the_policys_responses_score_mean_0_and_deviation_1(trained):
    *_, begin, _ = trained
    assert begin.scores[0].mean() == pytest.approx(0, abs=1e-4)
    assert begin.scores[0].std() == pytest.approx(1, abs=1e-4)


def test_training_again_only_reinforces(trained):
    made, _, begin, histories = trained
    _, reference, reward = begin.seen[0]
    np.testing.assert_array_equal(begin.seen[1][1], reference)
    np.testing.assert_array_equal(begin.seen[1][2], reward)
    assert [len(h.history["score"]) for h in histories] == [2, 1]
    assert int(made.trainer.iteration.numpy()) == 3
    assert int(made.trainer.optimizer.iterations.numpy()) == 3 * 2  # update_epochs


def test_the_policy_answers(trained):
    made = trained[0]
    answers = made.generate(["ab", "cde"])
    assert all(isinstance(x, str) for x in [*answers, made.generate("ab")]) and len(answers) == 2
    sampler = rlhf.Sampler(3, temperature=1.0)
    assert answers == made.actor.generate(["ab", "cde"], sampler, 0, jit_compile=False)


KINDS = {
    "ppo": rlhf.PPO, "rloo": rlhf.RLOO, "grpo": rlhf.GRPO, "dr_grpo": rlhf.GRPO,
    "reinforce++": rlhf.REINFORCEPlusPlus, "online_dpo": rlhf.OnlineDPO,
}  # fmt: skip


def test_every_algorithm_has_its_trainer(preset):
    assert set(KINDS) == set(front.ALGORITHMS)
    for name, kind in KINDS.items():
        options = {"kl_coef": 0.3, "seed": 5, "temperature": 0.6, "jit_compile": name != "ppo"}
        made = make(preset, reward=helpers.token_reward, algorithm=name, **options)
        made.build_model()
        assert (made.trainer.sampler.length, made.trainer.sampler.temperature) == (3, 0.6)
        assert made.trainer.jit_compile == (name != "ppo")
        assert float(made.trainer.optimizer.learning_rate) == pytest.approx(0.01)
        assert type(made.trainer) is kind
        assert getattr(made.trainer, "variant", name) == name
        assert float(made.trainer.kl.coef.numpy()) == pytest.approx(0.3)
        assert made.trainer.seed == 5


def test_the_batch_size_is_that_of_iterations(preset):
    made = make(preset, reward=helpers.token_reward, batch_size=2)
    made.build_model()
    made.train(verbose=0)
    assert int(made.trainer.iteration.numpy()) == len(PROMPTS) // 2


def test_a_reference_that_is_given_stays(preset):
    own = helpers.lm(seed=9)
    before = weights(own)
    made = make(preset, reward=helpers.token_reward, demonstrations=DEMOS, reference=own)
    made.build_model()
    made.train(verbose=0)
    assert made.trainer.reference.causal_lm is own
    np.testing.assert_array_equal(weights(own), before)


def test_a_reward_may_be_named(preset):
    made = make(preset, reward="kerasrlhf.tasks.sentiment:happy_words")
    made.build_model()
    assert made.reward is rlhf.tasks.sentiment.happy_words


ERRORS = {
    "algorithm": ({"algorithm": "reinforce"}, "Did you mean 'reinforce"),
    "neither": ({"reward": None}, "Received neither"),
    "both": ({"preferences": PAIRS}, "Received both"),
    "rate": ({"learning_rate": 0.0}, "learning_rate"),
    "batch": ({"batch_size": 0}, "batch_size"),
    "temperature": ({"temperature": -1.0}, "temperature"),
    "sampler": ({"sampler": rlhf.Sampler(4)}, r"makes \['sampler'\] itself"),
    "kl": ({"kl": rlhf.FixedKL(0.1)}, r"makes \['kl'\] itself.*kl_coef"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_nonsense_is_refused_at_once(case):
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        make("no_such_preset", **{"reward": helpers.token_reward, **options})


def test_what_is_not_there_cannot_be_used(preset):
    made = make(preset, reward=helpers.token_reward)
    for use in (made.train, lambda: made.generate("ab")):
        with pytest.raises(ValueError, match=r"Call `build_model\(\)`"):
            use()
    with pytest.raises(TypeError, match=r"has no argument `group`\. Did you mean `group_size`"):
        make(preset, reward=helpers.token_reward, group=2)
