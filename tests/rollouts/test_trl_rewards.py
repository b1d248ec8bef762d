"""Reward functions of the kinds that TRL's documentation shows run unchanged in a trainer."""

import asyncio
import functools
import json
import re

import helpers
import numpy as np
import pytest

from kerasrlhf.rollouts.pools import RewardPool
from kerasrlhf.types import Sampler

WANTED = 3


def close_to_length(completion_ids, **kwargs):
    """Prefers responses of one length in tokens."""
    return [-abs(WANTED - len(ids)) / WANTED for ids in completion_ids]


def has_format(completions, **kwargs):
    """Whether the assistant's message has a given form."""
    texts = [completion[0]["content"] for completion in completions]
    return [1.0 if re.fullmatch(r"[a-m]+\w*", text) else 0.0 for text in texts]


def is_correct(completions, ground_truth, **kwargs):
    """Compares the first letter with the record's answer."""
    found = [re.match(r"[a-z]", completion) for completion in completions]
    return [float(bool(m) and m.group() == t) for m, t in zip(found, ground_truth, strict=True)]


def math_reward(prompts, completions, task, **kwargs):
    """Applies to the records of one task."""
    return [
        len(set(prompt) & set(completion)) / 4 if t == "math" else None
        for prompt, completion, t in zip(prompts, completions, task, strict=True)
    ]


def code_reward(prompts, completions, task, **kwargs):
    return [
        float(len(completion)) if t == "code" else None
        for completion, t in zip(completions, task, strict=True)
    ]


async def judged(prompts, completions, **kwargs):
    """Asks a slow judge about all responses at the same time."""

    async def verdict(completion):
        await asyncio.sleep(0.001)
        return completion.count("a") - 0.5

    return await asyncio.gather(*map(verdict, completions))


def curriculum(completions, trainer_state, **kwargs):
    """Asks for more as training proceeds."""
    needed = 1 + 2 * trainer_state.global_step
    return [float(len(completion) >= needed) for completion in completions]


def logs(completions, ground_truth, log_metric=None, log_extra=None, **kwargs):
    """Logs what it has found."""
    scores = [float(t in c) for c, t in zip(completions, ground_truth, strict=True)]
    if log_extra:
        log_extra("contains", ["yes" if score else "no" for score in scores])
    if log_metric:
        log_metric("accuracy", sum(scores) / len(scores))
    return scores


class Blocklist:
    """A callable object with a state of its own."""

    def __init__(self, letters):
        self.letters = letters

    def __call__(self, completions, **kwargs):
        return np.array([-sum(c in self.letters for c in text) for text in completions])


def repeats(completions, penalty, **kwargs):
    return [penalty * (len(text) - len(set(text))) for text in completions]


def answers_the_question(prompts, completions, answer, **kwargs):
    """Reads both sides of a dialogue, and a column."""
    asked = [prompt[-1]["content"] for prompt in prompts]
    given = [completion[0]["content"] for completion in completions]
    return [
        float(a in text) + float(question[-1] in text)
        for text, a, question in zip(given, answer, asked, strict=True)
    ]


async def polite(prompts, completions, log_metric=None, **kwargs):
    """Asks a slow judge about the messages of a dialogue."""

    async def verdict(prompt, completion):
        await asyncio.sleep(0.001)
        assert prompt[-1]["role"] == "user" and completion[0]["role"] == "assistant"
        return float(len(completion[0]["content"]) > 2)

    scores = await asyncio.gather(*map(verdict, prompts, completions))
    if log_metric:
        log_metric("polite_fraction", sum(scores) / len(scores))
    return scores


PLAIN = {
    "length": (close_to_length, 0.5),
    "correct": (is_correct, 2.0),
    "math": math_reward,
    "code": (code_reward, 0.25),
    "judged": judged,
    "curriculum": curriculum,
    "logs": (logs, 0.0),
    "blocklist": (Blocklist("abc"), 0.1),
    "repeats": functools.partial(repeats, penalty=-0.25),
}
DIALOGUE = {
    "has_format": has_format,
    "answers_the_question": (answers_the_question, 3.0),
    "polite": (polite, 0.5),
    # The same in parts, two responses at a time.
    "pooled": (RewardPool(polite, workers=3, rows=2, timeout=60.0), 0.5),
}
LETTERS = "acegikmo"


def batch_of(records, texts):
    """A batch as `data.prompts` makes it: ids, texts and records."""
    rows = helpers.prompts([4, 2, 3, 1])
    return rows | {"prompt": texts, "record": [json.dumps(record) for record in records]}


def run(reward, batch, iterations):
    """What a trainer keeps of each iteration: its batch's episodes and its statistics."""
    acting = helpers.actor(texts=True)
    sampler = Sampler(length=5, stop_token_ids=(0, 3))
    trainer = helpers.ppo(acting, reward, sampler=sampler, group_size=2, update_epochs=1)
    trainer.compile("sgd", run_eagerly=True)
    kept = []
    for _ in range(iterations):
        trainer.iterate(batch)
        kept.append((trainer.last, trainer.statistics))
    return kept


@pytest.fixture(scope="module")
def plain():
    records = [
        {"prompt": "ab", "task": task, "ground_truth": letter}
        for task, letter in zip(("math", "code", "math", "other"), LETTERS, strict=False)
    ]
    return run(PLAIN, batch_of(records, ["ab", "cd", "ef", "gh"]), iterations=2)


TASKS = ["math", "math", "code", "code", "math", "math", "other", "other"]
TRUTHS = [letter for letter in LETTERS[:4] for _ in range(2)]
TEXTS = ["ab", "ab", "cd", "cd", "ef", "ef", "gh", "gh"]
EXPECTED = {
    "length": lambda text, i, step: None,  # counts tokens: compared below
    "correct": lambda text, i, step: text[:1] == TRUTHS[i],
    "math": lambda text, i, step: len({*text} & {*TEXTS[i]}) / 4 if TASKS[i] == "math" else np.nan,
    "code": lambda text, i, step: len(text) if TASKS[i] == "code" else np.nan,
    "judged": lambda text, i, step: text.count("a") - 0.5,
    "curriculum": lambda text, i, step: len(text) >= 1 + 2 * step,
    "logs": lambda text, i, step: TRUTHS[i] in text,
    "blocklist": lambda text, i, step: -sum(text.count(c) for c in "abc"),
    "repeats": lambda text, i, step: -0.25 * (len(text) - len({*text})),
}


@pytest.mark.parametrize("name", PLAIN)
def test_functions_of_texts(plain, name):
    for step, (last, statistics) in enumerate(plain):
        responses = last.episodes.responses
        expected = [EXPECTED[name](text, i, step) for i, text in enumerate(responses)]
        if name == "length":
            counts = np.sum(last.rollout.response_mask, axis=1)
            expected = -np.abs(WANTED - counts) / WANTED
        expected = np.array(expected, "float32")
        np.testing.assert_allclose(last.part_scores[name], expected, rtol=1e-6)
        assert statistics[f"reward/{name}"] == pytest.approx(np.nanmean(expected), abs=1e-6)


def test_the_score_is_the_weighted_sum_of_what_applies(plain):
    weights = np.array([x[1] if isinstance(x, tuple) else 1.0 for x in PLAIN.values()])
    for last, statistics in plain:
        parts = np.stack([*last.part_scores.values()])
        expected = np.nansum(weights[:, None] * parts, axis=0)
        np.testing.assert_allclose(last.raw_scores, expected, rtol=1e-5)
        assert len(set(expected.tolist())) > 4
        assert "objective/unscored" not in statistics


def test_what_functions_log_is_in_statistics_and_columns(plain):
    for last, statistics in plain:
        contained = [t in c for t, c in zip(TRUTHS, last.episodes.responses, strict=True)]
        assert last.episodes.columns["contains"] == ["yes" if x else "no" for x in contained]
        assert statistics["reward/accuracy"] == pytest.approx(np.mean(contained))
        assert last.episodes.columns["task"] == TASKS


def test_functions_of_dialogues():
    """`completions` and `prompts` are messages; what people see are texts."""
    questions = [[{"role": "user", "content": text}] for text in ("ab", "cd", "ef", "gh")]
    questions[0].insert(0, {"role": "system", "content": "Be short."})
    records = [{"prompt": q, "answer": a} for q, a in zip(questions, LETTERS, strict=False)]
    ((last, statistics),) = run(DIALOGUE, batch_of(records, ["rendered"] * 4), iterations=1)
    responses = last.episodes.responses
    form = [float(bool(re.fullmatch(r"[a-m]+\w*", text))) for text in responses]
    right = [float(TRUTHS[i] in t) + float(TEXTS[i][-1] in t) for i, t in enumerate(responses)]
    assert last.part_scores["has_format"].tolist() == form
    assert last.part_scores["answers_the_question"].tolist() == right
    polite = [float(len(text) > 2) for text in responses]
    for name in ("polite", "pooled"):
        assert last.part_scores[name].tolist() == polite
    assert statistics["reward/polite_fraction"] == pytest.approx(np.mean(polite))
    np.testing.assert_allclose(last.raw_scores, np.array(form) + 3.0 * np.array(right) + polite)
    assert 0 < sum(form) < 8 and sum(right) > 0
    assert statistics["reward/has_format"] == pytest.approx(np.mean(form))
    assert last.episodes.prompts == ["rendered"] * 8
