"""The task of `algorithms.py` and `language_modeling.py`: unhappy openings, happy continuations.

The reward is VADER's sentiment of the continuation itself, without a reward model between what is
trained and what is measured. All trainers share one actor, which is reset before every run, and one
judge, which measures it on held-out openings.
"""

import json
import time

import keras
import numpy as np

import kerasrlhf as rlhf
from kerasrlhf import evaluation
from kerasrlhf.tasks import sentiment, stories

ROWS, HELD_OUT = 64, 256
RATE = 5e-4


def reward(responses):
    """Returns the sentiment of every response, in [-1, 1]."""
    return sentiment.vader_scores(responses)


class Bench:
    """The storyteller with its task.

    Args:
        length: int, tokens of a continuation.
        kl_coef: float, score units per nat, of every trainer.
        iterations: int, of a run; the learning rate falls to 0 over them.
    """

    def __init__(self, length, kl_coef, iterations):
        self.length, self.kl_coef, self.iterations = length, kl_coef, iterations
        self.actor = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES)
        self.sampler = rlhf.Sampler(length, temperature=1.0)
        openings = sentiment.unhappy_openings(seed=0)
        self.held_out, self.training = openings[:HELD_OUT], openings[HELD_OUT:]
        self.unseen = self._prompts(self.held_out, HELD_OUT // 2, shuffle=False)
        self._initial = [v.numpy() for v in self.actor.trainable_variables]
        self.reference = None
        # The judge's reference, a copy of the start, serves all trainers.
        self._judge = self.trainer(rlhf.PPO)
        self._judge.compile()
        self.reference = self._judge.reference

    def _prompts(self, openings, rows, **options):
        preprocessor = self.actor.causal_lm.preprocessor
        return rlhf.data.prompts(openings, preprocessor, rows, pad_to_multiple_of=8, **options)

    def prompts(self, rows, seed):
        """Returns endless batches of openings to learn from."""
        return iter(self._prompts(self.training, rows, seed=seed).repeat())

    def trainer(self, algorithm, **options):
        """Returns a trainer of the shared actor, not yet compiled."""
        return algorithm(
            self.actor,
            reward,
            self.reference,
            sampler=self.sampler,
            kl=rlhf.FixedKL(self.kl_coef),
            **options,
        )

    def compile(self, trainer):
        """Compiles a trainer of the shared actor, one iteration included; returns it."""
        trainer.compile(self.optimizer(trainer.updates_in(self.iterations)))
        trainer.iterate(next(self.prompts(ROWS // trainer.group_size, seed=0)))
        return trainer

    def optimizer(self, updates):
        """Returns Adam; its rate falls linearly to 0 over so many updates."""
        rate = keras.optimizers.schedules.PolynomialDecay(RATE, updates, 0.0)
        return keras.optimizers.Adam(rate, epsilon=1e-5)

    def restore(self):
        """Resets the actor to its start."""
        for variable, value in zip(self.actor.trainable_variables, self._initial, strict=True):
            variable.assign(value)

    def reset(self, optimizer):
        """Resets the actor and an optimizer to their start."""
        self.restore()
        for variable in optimizer.variables:  # of Adam with a schedule, all 0 at the start
            variable.assign(keras.ops.zeros_like(variable))

    def measure(self):
        """Returns score and KL of the present actor on held-out openings."""
        found = self._judge.evaluate(self.unseen, verbose=0, return_dict=True)
        return {name: round(found[name], 4) for name in ("score", "kl")}

    def language(self):
        """Returns what training may cost: perplexity of unseen stories, distinct bigrams."""
        texts = self.actor.generate(self.held_out, self.sampler, seed=1)
        perplexity = evaluation.perplexity(self.actor.causal_lm, stories.HELD_OUT)
        return {
            "perplexity": round(perplexity, 3),
            "distinct_2": round(evaluation.distinct_n(texts, 2), 4),
        }

    def run(self, trainer, seed, marks):
        """Trains from the start on, and measures at the marks.

        Args:
            trainer: on-policy trainer, as `compile` returns it.
            seed: int.
            marks: set of iterations.

        Returns:
            Dict of lists `episodes`, `seconds` (of iterations alone), `score` and `kl`.
        """
        self.reset(trainer.optimizer)
        trainer.reset(seed)
        prompts = self.prompts(ROWS // trainer.group_size, seed)
        steps = (trainer.iterate(batch)["time/iteration"] for batch in prompts)
        return self.curve(steps, marks)

    def curve(self, steps, marks):
        """Measures after some steps; a step is `ROWS` episodes, and its value its seconds."""
        points, seconds = [], 0.0
        for step in range(max(marks) + 1):
            # Step 0 is the start, before any training.
            seconds += next(steps) if step else 0.0
            if step in marks:
                points.append({"episodes": step * ROWS, "seconds": seconds, **self.measure()})
        return {
            name: [round(point[name], 4) for point in points]
            for name in ("episodes", "seconds", "score", "kl")
        }

    def annotated_pairs(self, count, seed):
        """Returns preference records of samples of the start, and the seconds of sampling.

        The happier response of a pair is chosen.
        """
        self.restore()
        prompts = [self.training[i % len(self.training)] for i in range(count)]
        self.actor.generate(prompts, self.sampler, batch_size=ROWS)  # compiles
        start = time.perf_counter()
        sampled = [
            self.actor.generate(prompts, self.sampler, 2 * seed + i, batch_size=ROWS)
            for i in range(2)
        ]
        scores = [reward(texts) for texts in sampled]
        rows = zip(prompts, *sampled, np.subtract(*scores), strict=True)
        # Ties and empty responses teach no preference.
        pairs = [
            {"prompt": p, "chosen": a if lead > 0 else b, "rejected": b if lead > 0 else a}
            for p, a, b, lead in rows
            if lead != 0 and a and b
        ]
        return pairs, time.perf_counter() - start

    def own_stories(self, count=192, length=96):
        """Returns batches of texts that the start writes."""
        self.restore()
        openings = ["Once upon a time", "One day", "There was"] * (count // 3)
        sampler = rlhf.Sampler(length, temperature=1.0)
        written = self.actor.generate(openings, sampler, batch_size=ROWS)
        return rlhf.data.demonstrations(
            [{"text": a + b} for a, b in zip(openings, written, strict=True)],
            self.actor.causal_lm.preprocessor,
            batch_size=16,
            end_token_id=None,  # they may go on
            drop_remainder=True,
        )


class Lines:
    """Results as JSON lines; a run that is in the file is not done again.

    Args:
        path: file, or None to keep nothing.
    """

    def __init__(self, path):
        self.path, self.rows = path, []
        if path is not None and path.is_file():
            self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def has(self, **labels):
        """Returns whether there is a run with these labels."""
        return any(labels.items() <= row.items() for row in self.rows)

    def add(self, row):
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def marks(iterations):
    """Returns the iterations that are measured after: close at first, and the last."""
    fractions = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
    return {round(fraction * iterations) for fraction in fractions}


def spread(values, digits=3):
    """Returns the mean and, of several values, the standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
