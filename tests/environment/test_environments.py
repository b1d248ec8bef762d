"""The environments keep to Gymnasium's interface, and their episodes end where they should."""

import importlib.util
import pathlib
import sys
import warnings

import gymnasium
import helpers
import numpy as np
import pytest
import worlds
from gymnasium.utils.env_checker import check_env

import kerasrlhf as rlhf
from kerasrlhf.models.reward_model import RewardModel

every = pytest.mark.parametrize("name", worlds.MAKERS)


@pytest.fixture(scope="module")
def lm():
    return helpers.lm(texts=True, positions=64)


def arguments(name, lm, **options):
    """The arguments of `gymnasium.make`."""
    if name != "kerasrlhf/Dialogue-v0":
        reward, prompts, sampler = worlds.weighted_length, worlds.RECORDS, 4
    else:
        reward, prompts, sampler = worlds.said_goal, worlds.TALKS, 3
        talk = {"user": worlds.echo, "turns": 3, "user_length": 4, "template": worlds.template}
        options = {**talk, **options}
    return {"prompts": prompts, "reward": reward, "causal_lm": lm, "sampler": sampler, **options}


@every
def test_gymnasium_finds_nothing_to_complain_about(name, lm):
    environment = gymnasium.make(name, **arguments(name, lm))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment.unwrapped)
    shown = gymnasium.make(name, **arguments(name, lm), render_mode="ansi")
    shown.reset(seed=1)
    before = shown.render()
    shown.step(shown.action_space.sample())
    assert isinstance(before, str) and shown.render().startswith(before)
    assert environment.unwrapped.spec.make().unwrapped.causal_lm is lm


@every
def test_seeds_are_reproducible(name, lm):
    environment = gymnasium.make(name, **arguments(name, lm))

    def run():
        environment.action_space.seed(5)
        environment.reset(seed=3)
        runs = [
            worlds.episode(environment, lambda _: environment.action_space.sample())
            for _ in range(6)
        ]
        return [(rewards, worlds.tokens_of(steps[-1][0])) for rewards, steps in runs]

    first, again = run(), run()
    assert first == again
    assert len({tuple(ids) for _, ids in first}) > 1


@every
def test_they_vectorize(name, lm):
    vector = gymnasium.make_vec(name, num_envs=3, **arguments(name, lm))
    single = gymnasium.make(name, **arguments(name, lm))
    observations, _ = vector.reset(seed=7)
    vector.action_space.seed(2)
    actions = vector.action_space.sample()
    observations, rewards, terminated, truncated, _ = vector.step(actions)
    assert observations["token_ids"].shape[0] == 3 and rewards.shape == (3,)
    for i in range(3):
        single.reset(seed=7 + i)
        observation, reward, *ends, _ = single.step(actions[i])
        assert worlds.tokens_of(observation) == worlds.tokens_of(
            {key: value[i] for key, value in observations.items()}
        )
        assert (reward, *ends) == (rewards[i], terminated[i], truncated[i])
    vector.close()


@pytest.mark.slow
def test_they_vectorize_in_processes(tmp_path):
    """Workers load the model by the name of its preset: networks are not sent to them."""
    preset = tmp_path / "lm"
    helpers.lm(texts=True).save_to_preset(preset)
    vector = gymnasium.make_vec(
        "kerasrlhf/Token-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
        prompts=worlds.LETTERS,
        reward=len_of,
        causal_lm=str(preset),
        sampler=rlhf.Sampler(2, stop_token_ids=None),
    )
    try:
        vector.reset(seed=0)
        actions = np.array([3, 5])
        assert vector.step(actions)[1].tolist() == [0.0, 0.0]
        observations, rewards, terminated, truncated, _ = vector.step(actions)
        assert rewards.tolist() == [2.0, 2.0] and truncated.all() and not terminated.any()
        ended = [
            worlds.tokens_of({key: value[i] for key, value in observations.items()})[-2:]
            for i in range(2)
        ]
        assert ended == [[3, 3], [5, 5]]
    finally:
        vector.close()


def len_of(response_ids):
    return [len(row) for row in response_ids]


def test_an_end_token_terminates_and_the_length_truncates():
    environment = worlds.token_env(reward=len_of)
    for tokens, ends in {
        (3, 0): [(False, False), (True, False)],
        (3, 4, 5, 6): [(False, False)] * 3 + [(False, True)],
        # An end token in the last place is an end.
        (3, 4, 5, 0): [(False, False)] * 3 + [(True, False)],
    }.items():
        left = iter(tokens)
        rewards, steps = worlds.episode(environment, lambda _, left=left: next(left))
        assert [step[1:3] for step in steps[1:]] == ends
        assert rewards == [0.0] * (len(tokens) - 1) + [float(len(tokens))]


def test_stop_strings_and_the_least_length():
    sampler = rlhf.Sampler(5, stop_token_ids=[3], stop_strings="de", min_length=2)
    environment = worlds.token_env(
        reward=lambda responses: [len(r) for r in responses], sampler=sampler
    )
    # Letters are tokens: c is 3, d is 4, e is 5. A stop does not count as the first token.
    for text, length in (("cc", 2), ("ade", 1), ("dde", 1), ("dabde", 3)):
        ids = iter(environment.encode(text + "c" * (5 - len(text))))
        rewards, steps = worlds.episode(environment, lambda _, ids=ids: next(ids))
        assert steps[-1][1] and len(rewards) == len(text)
        assert rewards[-1] == length and steps[-1][3]["response"] == text[:length]


def test_whole_responses_are_scored_as_their_tokens_are():
    one, whole = worlds.token_env(), worlds.response_env()
    generator = np.random.default_rng(1)
    for number in range(one.num_prompts):
        action = generator.integers(0, helpers.VOCAB, 4)
        action[2] = 0 if number == 1 else action[2]
        tokens = iter(action)
        rewards, steps = worlds.episode(
            one, lambda _, t=tokens: next(t), options={"prompt": number}
        )
        whole.reset(options={"prompt": number})
        observation, reward, terminated, truncated, info = whole.step(action)
        assert reward == sum(rewards)
        ended, _, expected = steps[-1][1:]
        assert (terminated, truncated, info) == (True, False, {**expected, "ended": ended})
        assert worlds.tokens_of(observation) == worlds.tokens_of(steps[-1][0])
        assert ended == (number == 1)


def test_rewards_of_every_kind(lm):
    """A reward model scores the tokens; a list is a weighted sum; None counts as 0."""
    model = RewardModel.from_causal_lm(lm)
    helpers.filled(model.score_head, seed=3)
    reward = {"model": (model, 2.0), "length": (len_of, 0.5), "none": lambda responses: [None]}
    environment = worlds.response_env(reward=reward)
    environment.reset(options={"prompt": 2})
    action = np.array([4, 5, 0, 9])
    observation, score, *_ = environment.step(action)
    ids = np.array([worlds.tokens_of(observation)])
    prompt = ids.shape[1] - 3
    expected = model.read(ids, ids >= 0, np.array([prompt])).scores
    assert score == pytest.approx(2.0 * float(expected[0]) + 0.5 * 3, rel=1e-5)


def test_a_dialogue_goes_on_until_the_user_or_the_turns_end_it():
    environment = worlds.dialogue_env()
    _, info = environment.reset(options={"prompt": 0})
    assert info == {"prompt": "sabt"}
    # The reply `acd` is cut by its length, `cd` ended by the end token, `eee` silences the user.
    _, reward, *ends, info = environment.step(environment.encode("acd"))
    assert (reward, ends, info) == (0.0, [False, False], {"answer": "db"})
    _, _, *ends, info = environment.step(environment.encode("cd"))
    assert (ends, info) == ([False, False], {"answer": "db"})
    _, reward, *ends, info = environment.step(environment.encode("cee"))
    assert ends == [False, True] and reward == 3.0  # all three hold the goal `c`
    assert info["response"] == "acdsdbtcdsdbtcee"
    assert [m["content"] for m in environment.messages] == ["ab", "acd", "db", "cd", "db", "cee"]
    # The user ends it: terminated.
    environment.reset(options={"prompt": 0})
    _, reward, *ends, _ = environment.step(environment.encode("e"))
    assert (reward, ends) == (0.0, [True, False])
    with pytest.raises(ValueError, match=r"Call `reset\(\)` first"):
        environment.step(environment.encode("e"))


def test_what_the_user_gets_and_may_return():
    seen = []

    def user(messages, goal, unknown=7):
        seen.append((messages, goal, unknown))
        messages[-1]["content"] = "changed"
        return "b"

    environment = worlds.dialogue_env(user=user, turns=2)
    environment.reset(options={"prompt": 1})
    environment.step(environment.encode("a"))
    assert seen[0][1:] == ("d", 7)
    assert environment.messages[1]["content"] == "a"

    async def later(messages, **columns):
        return columns["goal"]

    environment = worlds.dialogue_env(user=later)
    environment.reset(options={"prompt": 1})
    assert environment.step(environment.encode("a"))[4] == {"answer": "d"}
    environment = worlds.dialogue_env(user=lambda messages: 3)
    environment.reset()
    with pytest.raises(ValueError, match="must return a string, or None"):
        environment.step(environment.encode("a"))
    environment = worlds.dialogue_env(user=lambda messages: "bbbbb")
    environment.reset()
    with pytest.warns(UserWarning, match="more than `user_length=4`"):
        *_, terminated, truncated, _ = environment.step(environment.encode("a"))
    assert truncated and not terminated


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm: worlds.token_env(reward=3), "`reward` must be a RewardModel"),
        (lambda lm: worlds.token_env(sampler="long"), r"must be a `Sampler\(length=...\)`"),
        (lambda lm: worlds.token_env(prompts=[]), "no"),
        (lambda lm: worlds.token_env(prompts=worlds.bare().repeat()), "infinite"),
        (lambda lm: worlds.token_env(render_mode="human"), "`render_mode` must be"),
        (lambda lm: worlds.token_env(sampler=40), "need"),
        (lambda lm: worlds.dialogue_env(user="hello"), "`user` must be a function"),
        (lambda lm: worlds.dialogue_env(turns=0), "`turns` must be at least 1"),
        (
            lambda lm: rlhf.environment.DialogueEnv(
                ["abc"], worlds.said_goal, lm, 3, worlds.echo, user_length=4
            ),
            "begins with messages",
        ),
        (
            lambda lm: rlhf.environment.DialogueEnv(
                rlhf.data.prompts(worlds.TALKS, lm.preprocessor, 2, template=worlds.template),
                worlds.said_goal,
                lm,
                3,
                worlds.echo,
                turns=2,
                user_length=4,
            ),
            "another template",
        ),
        (
            lambda lm: rlhf.environment.TokenEnv(["abc"], len_of, helpers.lm(), 3),
            "need a tokenizer",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message, lm):
    with pytest.raises(ValueError, match=message):
        make(lm)


def test_bad_actions_are_refused():
    environment = worlds.token_env()
    with pytest.raises(ValueError, match="Call `reset"):
        environment.step(1)
    environment.reset()
    for action in (-1, helpers.VOCAB, 1.5, "a", [1, 2]):
        with pytest.raises(ValueError, match="An action is a token id from 0 to 22"):
            environment.step(action)
    with pytest.raises(ValueError, match="There are 4 prompts"):
        environment.reset(options={"prompt": 4})
    whole = worlds.response_env()
    whole.reset()
    with pytest.raises(ValueError, match="an array of 4 token ids"):
        whole.step([1, 2])
    with pytest.raises(ValueError, match="has 6 tokens, and a reply has 4 at most"):
        whole.encode("abcdef")


def test_without_gymnasium_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    path = pathlib.Path(rlhf.environment.__file__)
    spec = importlib.util.spec_from_file_location("environment_without_gymnasium", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r'pip install "kerasrlhf\[environment\]"'):
        module.TokenEnv  # noqa: B018
    assert not hasattr(module, "Other")
