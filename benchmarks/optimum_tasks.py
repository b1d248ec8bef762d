"""The tasks of `known_optimum.py`, and the model that learns them.

Responses have at most four of eight tokens. A task is a function of prompt and response, both
tuples of token ids; `ends` says that token 0 closes a response. Rare answers score high enough for
the best policy at b = 0.5 to give them often: otherwise the task would be to tell small
probabilities apart from a handful of hits.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import keras_hub
import numpy as np

VOCAB, LENGTH, STOP = 8, 4, 0
PROMPTS = ((1,), (3,), (5,), (7,))


class Task(NamedTuple):
    """A score for responses to prompts.

    score: of a prompt and a response.
    text: the definition in one line.
    ends: whether token 0 ends a response.
    """

    score: Callable[[tuple, tuple], float]
    text: str
    ends: bool = False


def counting(token):
    return lambda prompt, response: float(response.count(token))


def palindrome(score):
    """Returns a score for palindromes of different tokens."""

    def found(prompt, response):
        return score * (response == response[::-1] and len(set(response)) == LENGTH // 2)

    return found


def smooth_table(seed=11):
    """A random number for each token at each place and each pair of neighbors, summed.

    Over all responses the sums are scaled to mean 0 and standard deviation 1.
    """
    generator = np.random.default_rng(seed)
    single = generator.normal(size=(LENGTH, VOCAB))
    pair = generator.normal(size=(LENGTH - 1, VOCAB, VOCAB))

    def raw(response):
        singles = sum(single[t, token] for t, token in enumerate(response))
        return singles + sum(pair[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(response)))

    # All 4,096 responses, so that the scale is exact.
    table = {y: raw(y) for y in itertools.product(range(VOCAB), repeat=LENGTH)}
    mean, deviation = np.mean(list(table.values())), np.std(list(table.values()))
    return lambda prompt, response: (table[response] - mean) / deviation


def prefix(wanted, score=4.0):
    """Returns a score for responses that begin with some tokens."""
    return lambda prompt, response: score * (response[: len(wanted)] == wanted)


def scattered(count=16, seed=5):
    """Returns a score of 4 for some responses that have nothing in common."""
    # A response is a number to base 8, with its tokens as digits.
    chosen = np.random.default_rng(seed).choice(VOCAB**LENGTH, count, replace=False)
    wanted = {tuple(np.base_repr(i, VOCAB).zfill(LENGTH)) for i in chosen}
    return lambda prompt, response: 4.0 * (tuple(map(str, response)) in wanted)


def ended_sum(prompt, response):
    return 2.0 * (response[-1] == STOP and sum(response) % 4 == 0)


def count_up(step=1):
    """Returns a score: the number of tokens that continue the prompt in steps of one size."""

    def score(prompt, response):
        wanted = [(prompt[0] + step * place) % VOCAB for place in range(1, LENGTH + 1)]
        return float(sum(a == b for a, b in zip(response, wanted, strict=True)))

    return score


TASKS = {
    "counting": Task(counting(2), "number of tokens that are 2"),
    "palindrome": Task(palindrome(2.0), "2 for a palindrome of two different tokens (56 of 4,096)"),
    "smooth": Task(smooth_table(), "random number per token and neighboring pair, summed"),
    "sparse": Task(prefix((2, 6, 1)), "4 for beginning with 2, 6, 1: one response in 512"),
    "ended": Task(ended_sum, "2 if token 0 ends it and its tokens sum to a multiple of 4", True),
    "prompted": Task(count_up(), "number of tokens that count up from the prompt"),
}
# Run by name only: at b = 0.5 the best policy is close to the start, and to
# tell a good answer takes more hits than there are.
HARDER = {
    "palindrome_1": Task(palindrome(1.0), "1 for a palindrome of two different tokens"),
    "scattered": Task(scattered(), "4 for each of 16 random responses of 4,096"),
}


# Kinds of random tasks, and the coefficients that each is sampled for. The score of an answer is
# in proportion to its chance, as above.
KINDS = ("palindrome", "table", "sparse")
MORE_KINDS = ("counting", "prompted")
COEFS = (0.1, 0.5)
# Of reference networks. The small one makes them nearly uniform, as GPT-2's own initialization
# does; what is then learned moves far from them.
SCALES = (0.2, 1.0)


class RandomTask(NamedTuple):
    """The random choices of a task before its reference network is known.

    kind: of `KINDS` or `MORE_KINDS`.
    coef: KL coefficient.
    reference: seed of the reference network's weights.
    scale: of these weights, as in `draw_weights`.
    seed: of the trainer.
    draw: seed of the scores.
    """

    kind: str
    coef: float
    reference: int
    scale: float
    seed: int
    draw: int

    def task(self, chances):
        """Returns the task.

        Args:
            chances: float `(responses,)`, probabilities of all responses of `LENGTH` tokens in
                lexicographic order under the reference network, means over the prompts.
        """
        generator = np.random.default_rng(self.draw)
        token = int(generator.integers(VOCAB))
        if self.kind == "palindrome":
            score = 1.0 if self.coef < 0.25 else 2.0
            return Task(palindrome(score), f"{score:g} for a palindrome of two different tokens")
        if self.kind == "table":
            return Task(smooth_table(self.draw), "random numbers, summed")
        if self.kind == "counting":
            return Task(counting(token), f"number of tokens that are {token}")
        if self.kind == "prompted":
            step = 1 + token // 2
            return Task(count_up(step), f"number of tokens that go on in steps of {step}")
        # Drawn from the reference: what it never begins with could not be found by sampling.
        chosen = generator.choice(len(chances), p=chances / chances.sum())
        wanted = np.unravel_index(chosen, (VOCAB,) * LENGTH)[:3]
        wanted = tuple(int(i) for i in wanted)
        return Task(prefix(wanted), f"4 for beginning with {wanted}")


def random_tasks(count, seed, kinds=KINDS, coefs=COEFS):
    """Returns random tasks by name; reference scales, kinds and coefficients take turns.

    Args:
        count: int, how many.
        seed: int. Tasks of different seeds have nothing in common.
        kinds, coefs: what to choose from.
    """
    turns = itertools.cycle(itertools.product(SCALES, kinds, coefs))
    found = {}
    for index, (scale, kind, coef) in enumerate(itertools.islice(turns, count)):
        reference, own, draw = map(int, np.random.default_rng((seed, index)).integers(1, 2**31, 3))
        found[f"{kind} {seed}.{index}"] = RandomTask(kind, coef, reference, scale, own, draw)
    return found


class TableReward:
    """A reward function that looks responses up; the table is filled again for another task."""

    def __init__(self):
        self._table = {}

    def fill(self, task, responses):
        """Stores the scores of all responses; returns them, float64 `(prompts, responses)`."""
        self._table = {(p, r): task.score(p, r) for p in PROMPTS for r in responses}
        return np.array([[self._table[p, r] for r in responses] for p in PROMPTS])

    def __call__(self, prompt_ids, response_ids):
        pairs = zip(prompt_ids, response_ids, strict=True)
        return [self._table.get((tuple(p), tuple(r)), 0.0) for p, r in pairs]


def language_model(seed=0):
    """Returns a GPT-2 of 2 layers and width 64 whose random weights prefer some tokens.

    Kernels are N(0, 1/fan-in), embeddings N(0, 0.1^2), biases 0. With seed 0 the responses to the
    four prompts have entropies of 6.8 to 7.5 nats (uniform: 8.3); the likeliest has probability
    0.026 and the least likely 1e-7.
    """
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCAB,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=256,
        max_sequence_length=8,
        dropout=0.0,
    )
    draw_weights(backbone, seed)
    return keras_hub.models.GPT2CausalLM(backbone)


def draw_weights(backbone, seed, scale=1.0):
    """Assigns random weights, `scale` times those that `language_model` describes."""
    generator = np.random.default_rng(seed)
    for variable in backbone.weights:
        if variable.name == "embeddings":
            variable.assign(generator.normal(0.0, scale * 0.1, variable.shape))
        elif variable.name == "kernel":
            deviation = scale / np.sqrt(_fan_in(variable))
            variable.assign(generator.normal(0.0, deviation, variable.shape))


def _fan_in(kernel):
    """Returns the inputs of a unit: in output projections all axes but the last, else the first."""
    out = "attention_output" in kernel.path
    return np.prod(kernel.shape[:-1]) if out else kernel.shape[0]


def prompt_batch(rows):
    """Returns a batch in which every prompt is equally frequent."""
    ids = np.tile(np.array(PROMPTS, "int32"), (rows // len(PROMPTS), 1))
    return {"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)}
