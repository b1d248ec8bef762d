"""Trainers of the package take an environment in place of prompts and reward."""

import gymnasium
import helpers
import keras
import numpy as np
import pytest
import test_agents
import worlds

import kerasrlhf as rlhf
from kerasrlhf.trainers.kl_control import FixedKL
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.trainers.rloo import RLOO

SAMPLER = rlhf.Sampler(length=4)


def trained(reward, causal_lm, *args, trainer=PPO, **options):
    """A trainer after a `fit`, and the scores of every iteration."""
    actor = rlhf.ActorCritic(causal_lm)
    options = {"sampler": SAMPLER, "kl": FixedKL(0.1), "update_epochs": 1, **options}
    ppo = trainer(actor, reward, **options)
    ppo.compile(keras.optimizers.SGD(0.2), jit_compile=False)
    seen = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(np.array(ppo.last.raw_scores))
    )
    ppo.fit(*args, epochs=2, verbose=0, callbacks=[note])
    return ppo, seen


def prompts(lm):
    return rlhf.data.prompts(worlds.RECORDS, lm.preprocessor, 2, seed=4)


def test_an_environment_trains_as_prompts_and_reward_do():
    """Bit for bit, and steps by the sampled tokens have the same rewards and ends."""
    direct, directly = (lm := helpers.lm(texts=True)), prompts(lm)
    ppo, scores = trained(worlds.weighted_length, direct, directly)
    own = helpers.lm(texts=True)
    environment = gymnasium.make(
        "kerasrlhf/Token-v0",
        prompts=prompts(own),
        reward=worlds.weighted_length,
        causal_lm=own,
        sampler=SAMPLER,
    )
    through, others = trained(environment, own)
    assert len(scores) == len(others) == 4
    np.testing.assert_array_equal(scores, others)
    for ours, theirs in zip(direct.get_weights(), own.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert through.statistics.keys() == ppo.statistics.keys()
    assert through.environment is environment.unwrapped and ppo.environment is None
    assert through.reward is worlds.weighted_length
    # Step by step, from the prompt of each row.
    numbers = {
        tuple(prompt.token_ids): i for i, prompt in enumerate(environment.unwrapped._prompts)
    }
    rollout = helpers.arrays(through.last.rollout)
    for row, score in enumerate(through.last.raw_scores):
        start, inside = rollout["prompt_lengths"][row], rollout["response_mask"][row]
        number = numbers[tuple(rollout["token_ids"][row, :start].tolist())]
        ids = iter(rollout["token_ids"][row][inside].tolist())
        rewards, steps = worlds.episode(
            environment, lambda _, ids=ids: next(ids), options={"prompt": number}
        )
        assert sum(rewards) == score and len(rewards) == inside.sum()
        assert steps[-1][1] == rollout["ended"][row]
        assert steps[-1][3]["response"] == through.last.episodes.responses[row]


def test_records_have_batches_of_fit_and_other_trainers_take_environments_too():
    environment = worlds.response_env()
    rloo, scores = trained(environment, helpers.lm(texts=True), trainer=RLOO, group_size=2)
    assert [len(x) for x in scores] == [8, 8]  # all four prompts, two responses to each
    assert rloo.evaluate(return_dict=True, verbose=0)["score"] > 0
    history = rloo.fit(batch_size=2, verbose=0)
    assert rloo.iteration == 4 and history.history["score"]


def test_ppo_reaches_the_optimum_of_a_dialogue():
    """Both replies are to be the letter that the user said: 1 each, and no more is possible."""
    lm = helpers.lm(texts=True, vocab=6, positions=32)
    talks = [{"prompt": [{"role": "user", "content": text}]} for text in "abcd"] * 8

    def template(messages, add_generation_prompt=False):
        return "".join(message["content"] for message in messages)

    def user(messages):
        return {"a": "b", "b": "a"}.get(messages[0]["content"], "c")

    def repeated(messages):
        texts = [[m["content"] for m in dialogue] for dialogue in messages]
        return [float(a == b) + float(c == d) for a, b, c, d in texts]

    environment = rlhf.environment.DialogueEnv(
        talks,
        repeated,
        lm,
        rlhf.Sampler(1, stop_token_ids=None),
        user,
        turns=2,
        user_length=1,
        template=template,
    )
    ppo = PPO(
        rlhf.ActorCritic(lm),
        environment,
        sampler=environment.sampler,
        kl=FixedKL(0.0),
        num_minibatches=2,
        update_epochs=2,
    )
    ppo.compile(keras.optimizers.Adam(0.02, epsilon=1e-5), jit_compile=False)
    history = ppo.fit(batch_size=32, epochs=60, verbose=0).history["score"]
    assert history[0] < 1.0
    assert np.mean(history[-5:]) > 1.9
    greedy = rlhf.Sampler(1, temperature=0.0, stop_token_ids=None)
    for text in "abcd":
        environment.reset(options={"prompt": "abcd".index(text)})
        reward, done = 0.0, False
        while not done:
            row = environment._prompt.token_ids + environment._said
            batch = {"token_ids": np.array([row]), "padding_mask": np.ones((1, len(row)), bool)}
            found = ppo.actor.generate(batch, greedy, jit_compile=False)
            _, reward, *ends, _ = environment.step(np.asarray(found.token_ids)[0, -1:])
            done = any(ends)
        assert reward == 2.0


@pytest.fixture(scope="module")
def actor():
    return rlhf.ActorCritic(helpers.lm(texts=True))


class Other(gymnasium.Env):
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    observation_space = gymnasium.spaces.Discrete(3)


class Stepping(rlhf.environment.TokenEnv):
    def step(self, action):
        return super().step(action)


def test_what_a_trainer_cannot_train_on_is_refused(actor):
    lm, other = actor.causal_lm, helpers.lm(texts=True, vocab=20)
    letters, reward = worlds.LETTERS, worlds.weighted_length
    ours = rlhf.environment.TokenEnv(letters, reward, lm, 4)
    vector = gymnasium.vector.SyncVectorEnv([lambda: ours])
    timed = gymnasium.wrappers.TimeLimit(ours, 2)
    refused = {
        r"cannot train on Other, whose actions are Box.*`DialogueEnv`": Other(),
        r"Pass one environment, not SyncVectorEnv with 1": vector,
        r"The wrappers \['TimeLimit'\] would have no effect": timed,
        r"Stepping defines `step`": Stepping(letters, reward, lm, 4),
        r"are 20 tokens, and the actor has 23": rlhf.environment.TokenEnv(
            letters, reward, other, 4
        ),
        r"have length=5 and 4\. Pass `sampler=environment": rlhf.environment.TokenEnv(
            letters, reward, lm, 5
        ),
    }
    for message, environment in refused.items():
        with pytest.raises(ValueError, match=message):
            PPO(actor, environment, sampler=SAMPLER, kl=FixedKL(0.1))


def test_prompts_besides_an_environment_are_refused(actor, tmp_path):
    environment = worlds.token_env(prompts=prompts(actor.causal_lm))
    ppo = PPO(actor, environment, sampler=environment.sampler, kl=FixedKL(0.1))
    ppo.compile(jit_compile=False)
    with pytest.raises(ValueError, match=r"TokenEnv has its own prompts.*leave out `x`"):
        ppo.fit(prompts(actor.causal_lm))
    with pytest.raises(ValueError, match=r"are batches already. Received `batch_size=2`"):
        ppo.fit(batch_size=2)
    with pytest.raises(ValueError, match="its environment has prompts"):
        ppo.save(tmp_path / "ppo.keras")
    plain = PPO(actor, worlds.weighted_length, sampler=SAMPLER, kl=FixedKL(0.1))
    plain.compile(jit_compile=False)
    with pytest.raises(ValueError, match=r"`x` must be a dataset as `rlhf.data.prompts"):
        plain.fit()
    # What determines a run has the rules of the environment.
    talking = worlds.dialogue_env(lm=actor.causal_lm, turns=2)
    made = PPO(actor, talking, sampler=rlhf.Sampler(3), kl=FixedKL(0.1))
    made.compile(jit_compile=False)
    assert made.settings()["environment.dialogue.turns"] == 2
    assert not any(name.startswith("environment") for name in plain.settings())


def test_ppo_finds_the_response_of_the_tabular_agent():
    """The same toy as for Q-learning, sampled by the compiled loop."""
    environment = test_agents.toy()
    ppo = PPO(
        rlhf.ActorCritic(environment.unwrapped.causal_lm),
        environment,
        sampler=environment.unwrapped.sampler,
        kl=FixedKL(0.0),
        group_size=32,
        update_epochs=2,
        num_minibatches=2,
        entropy_coef=0.02,
    )
    ppo.compile(keras.optimizers.Adam(0.02, epsilon=1e-5), jit_compile=False)
    scores = ppo.fit(epochs=50, verbose=0).history["score"]
    assert scores[0] < test_agents.OPTIMUM - 0.5
    assert np.mean(scores[-5:]) > test_agents.OPTIMUM - 0.1
