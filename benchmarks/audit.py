"""Seconds and memory of `rlhf.data.audit`, and what it finds.

    python benchmarks/audit.py
    python benchmarks/audit.py --source pairs.jsonl --against test.jsonl --page runs/audit.html

Without `--source` the records are made: pairs of a prompt of 20 words and two responses of 20 to
100 words, resampled with the frequencies of words in language (Zipf), of which some hundreds repeat
earlier ones; and a twentieth as many held-out pairs. Prints the summary of the report, the seconds
on the clock and of the processors, and the most memory that the process had, TensorFlow included.
"""

import argparse
import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import kerasrlhf as rlhf


def synthetic(pairs, seed=0):
    """Pairs of resampled words; every 200th repeats the one before it, but for a word."""
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice([*"abcdefghijklmnop"], 6)) for _ in range(20_000)])
    random = np.random.default_rng(seed)
    odds = 1.0 / np.arange(1, len(words) + 1)
    odds = np.cumsum(odds / odds.sum())

    def text(size):
        return " ".join(words[np.searchsorted(odds, random.random(size))])

    records = []
    for row in range(pairs):
        if row % 200 == 199:
            copy = {name: f"{text} indeed" for name, text in records[-1].items()}
            records.append(copy)
            continue
        sizes = random.integers(20, 100, 2)
        records.append({"prompt": text(20), "chosen": text(sizes[0]), "rejected": text(sizes[1])})
    return records


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000, help="synthetic records")
    parser.add_argument("--source", help="a file of records instead")
    parser.add_argument("--against", help="a file of held-out records")
    parser.add_argument("--page", help="where to write the report as HTML")
    parser.add_argument("--clean", action="store_true", help="also apply the default rules")
    return parser.parse_args()


def main():
    args = parse_args()
    if args.source:
        records, against = rlhf.data.read(args.source), args.against
    else:
        records, against = synthetic(args.pairs), synthetic(args.pairs // 20, seed=1)
    start, busy = time.perf_counter(), time.process_time()
    report = rlhf.data.audit(records, against, verbose=True)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(f"\n{report}\n")
    if args.page:
        report.save(args.page)
    if args.clean:
        start = time.perf_counter()
        print(rlhf.data.clean(records, against=against).report)
        print(f"clean: {time.perf_counter() - start:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"audit of {len(records)} records: {seconds:.1f} s, {busy:.1f} s of the processors")
    print(f"memory: {peak:.2f} GB at most")


if __name__ == "__main__":
    main()
