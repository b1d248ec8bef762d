"""Algorithms on tasks whose best policy is known: regret against episodes and seconds.

    python benchmarks/known_optimum.py --output runs/optimum.jsonl --plot runs/optimum.png
    python benchmarks/known_optimum.py --tasks counting --seeds 0 --coef 0.5 --no-exact
    python benchmarks/known_optimum.py --algorithms rloo dr_grpo --coef 0.5 --adaptive none
    python benchmarks/known_optimum.py --algorithms grpo --episodes 240000 --adaptive none
    python benchmarks/known_optimum.py --random 12 --seeds 0 --coef 0.1 0.5 --episodes 30000

A GPT-2 of 2 layers and width 64 answers 4 prompts with at most 4 of 8 tokens, 256 episodes an
iteration, and learns from them and, by most algorithms, again from some of the last rollouts. All
responses are listed, so the best value `b log Z` and that of the policy are exact: regret 0 is the
best policy, 1 the reference (`kerasrlhf.evaluation.optimum`). `grpo`, which has another objective,
is judged by where that comes to rest (`kerasrlhf.evaluation.grpo_optimum`): KL to that policy, in
units of the reference's, which for the best policy is the regret. One setting serves all tasks.
`exact` is Adam on the exact gradient with no sampling, clipping or critic, for as many updates.

Prints a JSON line a run, then a table.
"""

import argparse
import itertools
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import optimum_report
import optimum_tasks
from exact_gradient import ExactTrainer
from optimum_tasks import HARDER, KINDS, LENGTH, MORE_KINDS, PROMPTS, STOP, TASKS, VOCAB

import kerasrlhf as rlhf
from kerasrlhf.evaluation import grpo_optimum, optimum

ALL = TASKS | HARDER
BATCH, RATE, EPISODES = 256, 2e-3, 60_000
SETTING = {
    "update_epochs": 4,
    "num_minibatches": 1,
    "lam": 1.0,
    # At the optimum every response to a prompt returns the same: advantages, and with them the
    # noise of the gradient, vanish. Whitening would bring them back to variance 1.
    "whiten_advantages": False,
    "cliprange": 0.1,
    "cliprange_value": 100.0,  # never reached: off
    "vf_coef": 0.5,
    # The noise of sampling limits the final regret, and rollouts are few: each is learned from
    # four times, the last three from a memory of 8, whose responses count at most once.
    "memory": {"capacity": 8, "reuse": 3},
}
GROUPED = {name: SETTING[name] for name in ("update_epochs", "num_minibatches", "cliprange")}
GROUPED |= {"memory": {"capacity": 4, "reuse": 1}}
ALGORITHMS = {
    "ppo": (rlhf.PPO, SETTING),
    "rloo": (rlhf.RLOO, {**GROUPED, "group_size": 4}),
    # Most small groups have no hit, and what is divided by their standard deviation is noise.
    "grpo_kl_in_reward": (rlhf.GRPO, {**GROUPED, "group_size": 64, "kl_place": "reward"}),
    "dr_grpo": (rlhf.GRPO, {**GROUPED, "group_size": 4, "variant": "dr_grpo"}),
    # These scale advantages to unit variance: more updates on a rollout would learn its noise.
    "grpo": (rlhf.GRPO, {**GROUPED, "group_size": 64, "update_epochs": 2, "memory": None}),
    "reinforce++": (rlhf.REINFORCEPlusPlus, {**GROUPED, "update_epochs": 2, "memory": None}),
    "online_dpo": (
        rlhf.OnlineDPO,
        {"update_epochs": 4, "num_minibatches": 4, "memory": GROUPED["memory"]},
    ),
}
MARKS = (*(i / 200 for i in range(1, 10)), 0.05, *(i / 10 for i in range(1, 11)))
# Judged by the coefficient that it ends with.
ADAPTIVE = {"coef": 0.2, "target": 3.0, "horizon": 10_000}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=["ppo"])
    parser.add_argument("--tasks", nargs="*", choices=list(ALL), default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--coef", nargs="+", type=float, default=[0.5, 0.1])
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument(
        "--memory",
        type=int,
        help="rollouts to reuse from; 0: each is used once. By default as the algorithm has it",
    )
    parser.add_argument(
        "--random",
        type=int,
        default=0,
        help="that many random tasks with random reference networks, in place of --tasks, and for "
        "each of --seeds a random one",
    )
    parser.add_argument("--draw", type=int, default=0, help="which random tasks these are")
    parser.add_argument(
        "--kinds", nargs="+", choices=[*KINDS, *MORE_KINDS], default=list(KINDS), help="of them"
    )
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--adaptive",
        choices=[*ALL, "none"],
        default="smooth",
        help="task that the first algorithm learns with an adaptive coefficient too",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="lines are added to this file; all of it is reported"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="PNG")
    parser.add_argument(
        "--seconds",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="plot against seconds too; misleading where a run was not alone on the machine",
    )
    return parser.parse_args()


def optimizer(steps):
    rate = keras.optimizers.schedules.PolynomialDecay(RATE, steps, 0.0)  # N5
    return keras.optimizers.Adam(rate, epsilon=1e-5)


class Bench:
    """A model with its trainer, compiled once for all tasks of one kind.

    Args:
        ends: whether token 0 ends a response.
        episodes: of a whole run.
        algorithm: key of `ALGORITHMS`.
        memory: number of recent rollouts to sample from, to learn from them again; 0 for none.
            None: as in `ALGORITHMS`.
    """

    def __init__(self, ends, episodes, algorithm="ppo", memory=None):
        stops = (STOP,) if ends else ()
        self.algorithm = algorithm
        self.responses = optimum.enumerate_responses(VOCAB, LENGTH, stops)
        self.iterations = episodes // BATCH
        self.reward = optimum_tasks.TableReward()
        trainer, setting = ALGORITHMS[algorithm]
        setting = dict(setting)
        kept = setting.pop("memory")
        if memory is not None:
            # `--memory` replaces the capacity, or with 0 the memory.
            kept = {**(kept or {}), "capacity": memory} if memory else None
        self.trainer = trainer(
            rlhf.ActorCritic(optimum_tasks.language_model()),
            self.reward,
            sampler=rlhf.Sampler(LENGTH, stop_token_ids=stops or None),
            kl=rlhf.FixedKL(0.1, place=setting.pop("kl_place", None)),
            memory=rlhf.RolloutMemory(**kept) if kept else None,
            **setting,
        )
        self.batch = optimum_tasks.prompt_batch(BATCH // self.trainer.group_size)
        self.updates = self.trainer.updates_in(self.iterations)
        self.trainer.compile(optimizer(self.updates))
        # Exact log-probabilities of all responses, for the regret.
        self.read, self._read_reference = (
            optimum.ResponseLogprobs(model, PROMPTS, self.responses)
            for model in (self.trainer.actor, self.trainer.reference)
        )
        self._exact = None
        self._start_from_now()
        for _ in range(2):  # compiles; the second uses the memory
            self.trainer.iterate(self.batch)

    def _start_from_now(self):
        self.reference = self._read_reference()
        self._initial = [v.numpy() for v in self.trainer.trainable_variables]
        self._resting = {}

    def refer_to(self, seed, scale=1.0):
        """Samples another reference network, which is also the initial actor."""
        self.reset(self.trainer.optimizer)  # the value head
        for model in (self.trainer.actor, self.trainer.reference):
            optimum_tasks.draw_weights(model.causal_lm.backbone, seed, scale)
        self._start_from_now()

    def random(self, drawn):
        """Returns the task of a `RandomTask` under its reference network."""
        self.refer_to(drawn.reference, drawn.scale)
        return drawn.task(np.exp(self.reference).mean(axis=0))

    def table(self, task):
        """Returns the scores of every response, float64 `(prompts, responses)`."""
        return self.reward.fill(task, self.responses.tuples())

    def regret(self, logprobs, task, coef):
        """Returns 0 for the best policy (for `grpo` its resting point), 1 for the reference."""
        scores = self.table(task)
        if self.algorithm != "grpo":
            return optimum.regret(logprobs, self.reference, scores, coef)
        # The resting point takes an iteration to find: once for a task and coefficient.
        if (task, coef) not in self._resting:
            self._resting[task, coef] = grpo_optimum.resting_logprobs(
                self.reference, scores, self.responses, coef, self.trainer.group_size
            )
        return grpo_optimum.relative_divergence(logprobs, self.reference, self._resting[task, coef])

    def reset(self, optimizer, seed=0):
        """Resets weights, an optimizer and the trainer to the start of a run."""
        for variable, value in zip(self.trainer.trainable_variables, self._initial, strict=True):
            variable.assign(value)
        for variable in optimizer.variables:  # of Adam with a schedule, all 0 at the start
            variable.assign(keras.ops.zeros_like(variable))
        self.trainer.reset(seed)

    def sampled(self, task, kl, seed):
        """Trains from the reference on.

        Returns:
            `(episodes, seconds, log-probabilities)` at every mark; seconds of iterations alone.
        """
        # Fill the reward's table, and start from the reference.
        self.table(task)
        self.reset(self.trainer.optimizer, seed)
        self.trainer.kl = kl
        marks = {max(1, round(mark * self.iterations)) for mark in MARKS}
        curve, seconds = [], 0.0
        for iteration in range(1, self.iterations + 1):
            seconds += self.trainer.iterate(self.batch)["time/iteration"]
            if iteration in marks:
                curve.append((iteration * BATCH, seconds, self.read()))
        return curve

    def exact(self, task, coef):
        """Returns the same curve by exact gradients; a step counts as one update of PPO."""
        if self._exact is None:
            prompts = np.array(PROMPTS, "int32")
            self._exact = ExactTrainer(
                self.trainer.actor.causal_lm, prompts, self.responses, optimizer(self.updates)
            )
        scores = self.table(task)
        self.reset(self._exact.optimizer)
        marks = {max(1, round(mark * self.updates)) for mark in MARKS}
        return [
            (step / self.trainer.updates_per_iteration * BATCH, seconds, logprobs)
            for step, seconds, logprobs in self._exact.run(
                self.reference, scores, coef, self.updates, marks
            )
        ]


def record(bench, name, task, coef, curve, **labels):
    """Returns one run as a JSON line."""
    scores = bench.table(task)
    reference = bench.reference
    last = curve[-1][-1]
    return {
        "task": name,
        "coef": round(float(coef), 4),
        **labels,
        "episodes": [round(episodes) for episodes, _, _ in curve],
        "seconds": [round(seconds, 2) for _, seconds, _ in curve],
        "regret": [float(f"{bench.regret(logprobs, task, coef):.4g}") for *_, logprobs in curve],
        "best_value": _mean(optimum.best_value(reference, scores, coef)),
        "value": _mean(optimum.value(last, reference, scores, coef)),
        "score": _mean(optimum.value(last, reference, scores, 0.0)),
        "kl": _mean(np.sum(np.exp(last) * (last - reference), axis=1)),
    }


def _mean(values):
    return round(float(np.mean(values)), 4)


def label(algorithm, args):
    """Returns the algorithm with the options that differ from the defaults."""
    memory = "" if args.memory is None else f", memory {args.memory}"
    episodes = "" if args.episodes == EPISODES else f", {args.episodes:,} episodes"
    return algorithm + memory + episodes


def runs(args):
    """Yields every run as a dict."""
    # One bench for each algorithm and kind of task: building it compiles.
    benches = {}

    def bench(algorithm, ends):
        key = algorithm, ends
        if key not in benches:
            benches[key] = Bench(ends, args.episodes, algorithm, args.memory)
        return benches[key]

    def sampled(found, name, task, kl, seed, system):
        curve = found.sampled(task, kl, seed)
        return record(found, name, task, kl.coef.numpy(), curve, system=system, seed=seed)

    if args.random:
        names = optimum_tasks.random_tasks(args.random, args.draw, args.kinds, args.coef)
        for (name, drawn), algorithm in itertools.product(names.items(), args.algorithms):
            found = bench(algorithm, False)
            task = found.random(drawn)
            for seed in args.seeds:
                kl = rlhf.FixedKL(drawn.coef)
                yield sampled(found, name, task, kl, drawn.seed + seed, label(algorithm, args))
        return
    first = args.algorithms[0]
    # Exact gradients follow the shared objective, which published GRPO does not have.
    exact = next((name for name in args.algorithms if name != "grpo"), None)
    for name, coef in itertools.product(args.tasks, args.coef):
        task = ALL[name]
        for algorithm, seed in itertools.product(args.algorithms, args.seeds):
            found, kl = bench(algorithm, task.ends), rlhf.FixedKL(coef)
            yield sampled(found, name, task, kl, seed, label(algorithm, args))
        if args.exact and exact:
            found = bench(exact, task.ends)
            yield record(found, name, task, coef, found.exact(task, coef), system="exact")
    if args.adaptive != "none":
        task = ALL[args.adaptive]
        for seed in args.seeds:
            kl = rlhf.AdaptiveKL(**ADAPTIVE)
            yield sampled(bench(first, task.ends), args.adaptive, task, kl, seed, "adaptive")


def kept(path):
    """Returns the lines of a file, if there is one."""
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main():
    args = parse_args()
    keras.utils.set_random_seed(0)
    lines = []
    for line in runs(args):
        lines.append(line)
        print(json.dumps(line), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    lines = kept(args.output) or lines
    print(optimum_report.random_table(lines) if args.random else optimum_report.table(lines))
    if len(args.algorithms) > 1 and not args.random:
        print(optimum_report.by_system(lines))
    if args.plot:
        optimum_report.draw(lines, args.plot, args.seconds)


if __name__ == "__main__":
    main()
