"""What the scripts of this folder share: options, random prompts, and the line they print."""

import argparse
import json
import random
import resource
import statistics
import time

SIZES = {
    "layers": 6,
    "heads": 6,
    "width": 384,
    "vocabulary": 50257,
    "batch": 32,
    "prompt": 32,
    "response": 32,
    "ppo_epochs": 4,
    "mini_batches": 4,
    "iterations": 4,
}


def parse_args(description):
    """The options that `ppo_iteration.py --compare` passes, and the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in {**SIZES, "threads": 2}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    if args.batch % args.mini_batches:
        parser.error("--mini-batches must divide --batch")
    return args


def prompts(args):
    """Rows of random token ids for every iteration; the first two and last two ids are special."""
    generator = random.Random(0)
    ids = range(2, args.vocabulary - 2)
    return [
        [generator.choices(ids, k=args.prompt) for _ in range(args.batch)]
        for _ in range(args.iterations)
    ]


class Clock:
    """Notes the time at the start and after every iteration."""

    def __init__(self):
        self.marks = []

    def mark(self):
        self.marks.append(time.perf_counter())

    def seconds(self):
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def report(system, args, seconds, **more):
    """Prints the line that `ppo_iteration.py --compare` reads."""
    steady = seconds[1:] or seconds
    median = statistics.median(steady)
    line = {
        "system": system,
        "seconds_first": round(seconds[0], 3),
        "seconds_median": round(median, 3),
        "seconds_min": round(min(steady), 3),
        "episodes_per_second": round(args.batch / median, 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        **more,
        **vars(args),
    }
    print(json.dumps(line), flush=True)
