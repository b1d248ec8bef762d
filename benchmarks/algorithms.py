"""Algorithms compared on one task: reward against KL, against episodes and against seconds.

    python benchmarks/algorithms.py --output runs/algorithms.jsonl --plot runs/algorithms.png
    python benchmarks/algorithms.py --algorithms PPO RLOO --seeds 0 --iterations 10

The embedded storyteller continues unhappy openings, 64 responses an iteration; the reward is the
sentiment of the continuation (`happy_stories.py`). Every algorithm takes two updates an iteration
on all its responses, with the same Adam, the same coefficient of the KL and, where it clips, the
same range. Score and KL are measured on 256 held-out openings. DPO, IPO, KTO and ORPO learn from as
many responses of the start, in pairs, once through; best of n only chooses, and its KL is the bound
`log n - (n - 1) / n`.

Prints a JSON line a run, then a table. Runs that `--output` holds already are not done again.
"""

import argparse
import functools
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import algorithms_report
import keras
import tensorflow as tf
from happy_stories import ROWS, Bench, Lines, marks, reward

import kerasrlhf as rlhf

EPOCHS = 2
ALGORITHMS = {
    "PPO": (rlhf.PPO, {}),
    "PPO, lam 1, not whitened": (rlhf.PPO, {"lam": 1.0, "whiten_advantages": False}),
    "RLOO": (rlhf.RLOO, {"group_size": 4, "cliprange": 0.2}),
    "GRPO": (rlhf.GRPO, {"group_size": 4}),
    "Dr. GRPO": (rlhf.GRPO, {"group_size": 4, "variant": "dr_grpo"}),
    "REINFORCE++": (rlhf.REINFORCEPlusPlus, {}),
    "OnlineDPO": (rlhf.OnlineDPO, {"group_size": 2}),
}
# How they are made. `beta` is the KL coefficient of the others, here without a scale of scores.
OFFLINE = {
    "DPO": lambda bench: rlhf.DPO(bench.actor.causal_lm, bench.reference, beta=bench.kl_coef),
    "IPO": lambda bench: rlhf.IPO(bench.actor.causal_lm, bench.reference, beta=bench.kl_coef),
    "KTO": lambda bench: rlhf.KTO(bench.actor.causal_lm, bench.reference, beta=bench.kl_coef),
    "ORPO": lambda bench: rlhf.ORPO(bench.actor.causal_lm),
}
CHOICES = (*ALGORITHMS, *OFFLINE, "best of n")
COUNTS = (2, 4, 8, 16)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algorithms", nargs="*", choices=CHOICES, default=CHOICES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--length", type=int, default=32, help="tokens of a response")
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument(
        "--output", type=pathlib.Path, help="lines are added to this file; all of it is reported"
    )
    parser.add_argument("--plot", type=pathlib.Path, help="PNG")
    return parser.parse_args()


@functools.cache
def on_policy(bench, name):
    """Returns the compiled trainer of an algorithm, the same for all seeds."""
    algorithm, options = ALGORITHMS[name]
    return bench.compile(bench.trainer(algorithm, update_epochs=EPOCHS, **options))


def run_offline(bench, name, seed):
    """Runs DPO or a relative on pairs of the start's own responses, batch by batch."""
    # As many responses as on-policy runs sample: two for each pair.
    pairs, sampling = bench.annotated_pairs(bench.iterations * ROWS // 2, seed)
    batches = rlhf.data.preferences(
        pairs,
        bench.actor.causal_lm.preprocessor,
        ROWS // 2,
        end_token_id=None,  # the length has cut them
        seed=seed,
        drop_remainder=True,
    )
    trainer = OFFLINE[name](bench)
    trainer.compile(bench.optimizer(EPOCHS * bench.iterations))
    for x, y in batches.take(1):  # compiles
        trainer.train_on_batch(x, y)
    # The batch that compiled has also trained.
    bench.reset(trainer.optimizer)

    def steps():
        for x, y in batches.repeat():  # ties are no pairs, so a few batches come twice
            start = time.perf_counter()
            for _ in range(EPOCHS):
                trainer.train_on_batch(x, y)
            yield time.perf_counter() - start + sampling / bench.iterations

    return bench.curve(steps(), marks(bench.iterations))


def run_best_of_n(bench, seed):
    """Returns the scores of the best of n, for every n."""
    start = time.perf_counter()
    found = rlhf.best_of_n(
        bench.actor, reward, bench.held_out, COUNTS[-1], bench.sampler, batch_size=16, seed=seed
    )
    seconds = round(time.perf_counter() - start, 2)
    # 16 responses are several groups of n: their mean is a better estimate than one group.
    groups = {n: found.scores.reshape(-1, n).max(axis=1).mean() for n in COUNTS}
    return {
        "n": list(COUNTS),
        "score": [round(float(score), 4) for score in groups.values()],
        "kl": [round(rlhf.best_of_n_kl(n), 4) for n in COUNTS],
        "seconds": seconds,
    }


def run(bench, name, seed):
    """Returns one run as a dict."""
    if name == "best of n":
        bench.restore()
        return run_best_of_n(bench, seed)
    if name in OFFLINE:
        curve = run_offline(bench, name, seed)
    else:
        curve = bench.run(on_policy(bench, name), seed, marks(bench.iterations))
    return {**curve, **bench.language()}


def main():
    args = parse_args()
    keras.utils.set_random_seed(0)
    tf.get_logger().setLevel("ERROR")
    lines, bench = Lines(args.output), None
    setting = {"iterations": args.iterations, "length": args.length, "kl_coef": args.kl_coef}
    for name in args.algorithms:
        for seed in args.seeds:
            labels = {"algorithm": name, "seed": seed, **setting}
            if lines.has(**labels):
                continue
            # Built for the first run that is not in the file yet.
            bench = bench or Bench(args.length, args.kl_coef, args.iterations)
            start = time.perf_counter()
            found = run(bench, name, seed)
            lines.add({**labels, **found, "wall": round(time.perf_counter() - start, 1)})
    print(algorithms_report.table(lines.rows))
    if args.plot:
        algorithms_report.draw(lines.rows, args.plot)


if __name__ == "__main__":
    main()
