"""Small environments: prompts, rewards and users of the tests."""

import helpers
import numpy as np
import tensorflow as tf

import kerasrlhf as rlhf

LETTERS = ["abc", "b", "abcdefg", "ca"]
RECORDS = [{"prompt": text, "weight": float(i + 1)} for i, text in enumerate(LETTERS)]
TALKS = [
    {"prompt": [{"role": "user", "content": text}], "goal": goal}
    for text, goal in (("ab", "c"), ("b", "d"), ("dcb", "e"), ("cc", "f"))
]


def template(messages, add_generation_prompt=False):
    """Letters say who speaks: `s` the user, `t` the assistant."""
    marks = {"system": "", "user": "s", "assistant": "t"}
    return (
        "".join([marks[m["role"]] + m["content"] for m in messages]) + "t" * add_generation_prompt
    )


def weighted_length(responses, weight):
    """Uses texts and a column: the letters `a` count as the record says."""
    return [w * r.count("a") + 0.25 * len(r) for r, w in zip(responses, weight, strict=True)]


def echo(messages):
    """Repeats the last letter that the policy said, and is silent after an `e`."""
    said = messages[-1]["content"]
    return None if "e" in said else said[-1:] + "b"


def said_goal(replies, goal):
    """How many replies hold the letter of the record."""
    return [sum(g in r for r in texts) for texts, g in zip(replies, goal, strict=True)]


def token_env(reward=weighted_length, prompts=RECORDS, sampler=4, **options):
    return rlhf.environment.TokenEnv(prompts, reward, helpers.lm(texts=True), sampler, **options)


def response_env(reward=weighted_length, prompts=RECORDS, sampler=4, **options):
    return rlhf.environment.ResponseEnv(prompts, reward, helpers.lm(texts=True), sampler, **options)


def dialogue_env(reward=said_goal, user=echo, sampler=3, **options):
    options = {"turns": 3, "user_length": 4, "template": template, **options}
    lm = options.pop("lm", None) or helpers.lm(texts=True, positions=64)
    return rlhf.environment.DialogueEnv(TALKS, reward, lm, sampler, user, **options)


MAKERS = {
    "kerasrlhf/Token-v0": token_env,
    "kerasrlhf/Response-v0": response_env,
    "kerasrlhf/Dialogue-v0": dialogue_env,
}


def bare(lengths=(2, 3), vocab=4, columns=3):
    """A dataset of ids for models without a tokenizer."""
    return tf.data.Dataset.from_tensors(helpers.prompts(lengths, columns=columns, vocab=vocab))


def episode(environment, choose, **options):
    """Acts until the end; returns the rewards and the last step."""
    observation, info = environment.reset(**options)
    rewards, done, steps = [], False, [(observation, info)]
    while not done:
        observation, reward, terminated, truncated, info = environment.step(choose(observation))
        rewards.append(reward)
        steps.append((observation, terminated, truncated, info))
        done = terminated or truncated
    return rewards, steps


def tokens_of(observation):
    return np.asarray(observation["token_ids"])[observation["padding_mask"].astype(bool)].tolist()
