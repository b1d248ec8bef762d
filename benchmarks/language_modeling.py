"""Benefits and costs of mixing language modeling into PPO.

    python benchmarks/language_modeling.py --output runs/language_modeling.jsonl

The embedded storyteller is pushed hard toward happy continuations (`happy_stories.py`, a small
coefficient of the KL), with and without each way to keep its language: `LanguageModeling` in every
update or in steps between iterations, and `PromptPrediction` as a loss or in the reward. The texts
are stories that it wrote itself before. Score, KL and distinct bigrams are those of continuations
of 256 held-out openings, the perplexity that of stories that were not trained on.

Prints a JSON line a run, then a table. Runs that `--output` holds already are not done again.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from happy_stories import Bench, Lines, spread

import kerasrlhf as rlhf

EPOCHS = 2
# Which argument of the trainer a variant sets, and with which values of its option object.
VARIANTS = {
    "nothing": None,
    "LanguageModeling(coef=0.2)": ("texts", {"coef": 0.2}),
    "LanguageModeling(coef=1)": ("texts", {"coef": 1.0}),
    "LanguageModeling(every=1, steps=2)": ("texts", {"every": 1, "steps": 2}),
    "PromptPrediction(coef=0.2)": ("prompt_prediction", {"coef": 0.2}),
    "PromptPrediction(reward=0.2)": ("prompt_prediction", {"reward": 0.2}),
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--length", type=int, default=32, help="tokens of a response")
    parser.add_argument("--kl-coef", type=float, default=0.01)
    parser.add_argument(
        "--output", type=pathlib.Path, help="lines are added to this file; all of it is reported"
    )
    return parser.parse_args()


def compiled(bench, variant):
    """Returns PPO with one way of language modeling."""
    options = {}
    if variant is not None:
        argument, values = variant
        if argument == "texts":
            options[argument] = rlhf.LanguageModeling(bench.own_stories(), **values)
        else:
            options[argument] = rlhf.PromptPrediction(**values)
    return bench.compile(bench.trainer(rlhf.PPO, update_epochs=EPOCHS, **options))


def table(lines):
    """Returns Markdown: the start, then a row for each variant."""
    rows = [
        "| PPO with | seeds | score | KL | perplexity of stories "
        "| distinct bigrams | s an iteration |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {}
    for line in lines:
        found.setdefault(line["variant"], []).append(line)
    for name, runs in found.items():
        score, kl = ([run[x][-1] for run in runs] for x in ("score", "kl"))
        # Seconds of iterations alone, without those of measuring.
        seconds = [run["seconds"][-1] / max(run["iterations"], 1) for run in runs]
        language = [[run[x] for run in runs] for x in ("perplexity", "distinct_2")]
        cells = [spread(score), spread(kl, 2), *(spread(x, 2) for x in language)]
        cells += [f"{sum(seconds) / len(seconds):.2f}"]
        rows.append(" | ".join([f"| {name}", str(len(runs)), *cells]) + " |")
    return "\n".join(rows)


def main():
    args = parse_args()
    keras.utils.set_random_seed(0)
    tf.get_logger().setLevel("ERROR")
    lines, bench = Lines(args.output), None
    setting = {"iterations": args.iterations, "length": args.length, "kl_coef": args.kl_coef}
    start = {"variant": "(the start)", "seed": 0, **setting}
    for name in args.variants:
        trainer = None
        for seed in args.seeds:
            labels = {"variant": name, "seed": seed, **setting}
            if lines.has(**labels):
                continue
            bench = bench or Bench(args.length, args.kl_coef, args.iterations)
            if not lines.has(**start):
                # The figures of the start, once, to compare the variants with.
                curve = bench.curve(iter(()), {0})
                lines.add({**start, **curve, **bench.language()})
            trainer = trainer or compiled(bench, VARIANTS[name])
            began = time.perf_counter()
            curve = bench.run(trainer, seed, {args.iterations})
            wall = round(time.perf_counter() - began, 1)
            lines.add({**labels, **curve, **bench.language(), "wall": wall})
    print(table(lines.rows))


if __name__ == "__main__":
    main()
