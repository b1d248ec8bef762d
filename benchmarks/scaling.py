"""Weak scaling of PPO iterations: more workers, the same rows for each.

    python benchmarks/scaling.py --workers 1 2 --layers 6 --heads 6 --width 384 --rows 4

Each worker is a process on one core, so that two of them do not share what one has; `--logical`
has one process with as many logical devices instead, which share its cores. One JSON line for each
number of workers: the median iteration, where its time goes, and the bytes that an update sums. Of
the time

    compute      is what one worker needs for its rows alone,
    collectives  is that of the sums and exchanges of an iteration, timed by themselves,
    host         is the rest: what every worker does for the rows of all.

`--paper` prints what the sums would take on GPUs, from bytes and bandwidths.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

SHAPE = ("layers", "heads", "width", "vocabulary", "prompt", "response")


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in zip(SHAPE, (6, 6, 384, 50257, 32, 32), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", type=int, default=4, help="prompts of a worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--logical", action="store_true", help="logical devices of one process")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--update-epochs", type=int, default=4)
    parser.add_argument("--num-minibatches", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--result", help="of a worker, where it writes")
    return parser.parse_args()


def main():
    args = parse_args()
    if args.result:
        measure(args)
        return
    alone = None
    for workers in args.workers:
        found = run(args, workers)
        alone = alone or found["iteration"]
        print(json.dumps(split(found, alone)), flush=True)
    if args.paper:
        for line in on_paper(found["bytes"]):
            print(line)


def run(args, workers):
    """Starts the workers, and returns what the first one measured."""
    from kerasrlhf.cli.launching import Launch

    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"
        command = [sys.executable, *sys.argv, "--result", str(result), "--workers", str(workers)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if Launch(command, 1 if args.logical else workers, environment=environment).wait():
            raise SystemExit("A worker has failed.")
        return json.loads(result.read_text())


def measure(args):
    """Trains in this worker, and writes times and bytes if it is the first."""
    (count,) = args.workers
    if not args.logical:
        index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})

    import keras
    import numpy as np
    import tensorflow as tf

    import kerasrlhf as rlhf

    if args.logical:
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, devices)
    strategy = rlhf.cluster.strategy()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        ppo = build(args)
        ids = np.random.default_rng(0).integers(
            2, args.vocabulary, (count * args.rows, args.prompt)
        )
        batch = {"token_ids": ids.astype("int32"), "padding_mask": np.ones(ids.shape, bool)}
        seconds = [ppo.iterate(dict(batch))["time/iteration"] for _ in range(args.iterations)]
        sums, exchanges = collectives(ppo, strategy)
    updates = args.update_epochs * args.num_minibatches
    if rlhf.cluster.is_chief():
        record = {
            "workers": count,
            "iteration": statistics.median(seconds[1:]),
            "collectives": updates * sums + exchanges,
            "bytes": 4 * sum(int(np.prod(v.shape)) for v in ppo.trainable_variables),
            "updates": updates,
        }
        pathlib.Path(args.result).write_text(json.dumps(record))


def build(args):
    import keras
    import keras_hub

    import kerasrlhf as rlhf

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=args.vocabulary,
        num_layers=args.layers,
        num_heads=args.heads,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
        max_sequence_length=1024,
        dropout=0.0,
    )
    if args.lora_rank:
        backbone.enable_lora(args.lora_rank)
    ppo = rlhf.PPO(
        rlhf.ActorCritic(keras_hub.models.GPT2CausalLM(backbone)),
        lambda response_ids: [len(set(row)) for row in response_ids],
        sampler=rlhf.Sampler(args.response, stop_token_ids=()),
        kl=rlhf.FixedKL(0.05),
        update_epochs=args.update_epochs,
        num_minibatches=args.num_minibatches,
    )
    ppo.compile(keras.optimizers.Adam(1e-5, epsilon=1e-5))
    return ppo


def collectives(ppo, strategy):
    """Returns the seconds of one sum of all gradients, and of the exchanges of an iteration."""
    import tensorflow as tf

    if strategy.num_replicas_in_sync == 1:
        return 0.0, 0.0

    def on_replica(gradients):
        context = tf.distribute.get_replica_context()
        own = [tf.identity(x) for x in gradients]
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        return tf.add_n([tf.reshape(x, [-1])[0] for x in summed])

    @tf.function
    def run(gradients):
        return strategy.run(on_replica, args=(gradients,))

    gradients = [tf.zeros(v.shape) for v in ppo.trainable_variables]

    def sum_all():
        tf.nest.map_structure(
            lambda x: x.numpy(), strategy.experimental_local_results(run(gradients))
        )

    def exchange_all():
        # The prompts, the scores of functions, and the check of samples and scores.
        for _ in range(3):
            ppo.workers.exchange([0.0] * 1000)

    return timed(sum_all), timed(exchange_all)


def timed(function, times=5):
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])  # the first one traces


def split(found, alone):
    """Returns the record of a run with the parts of its time."""
    whole = found["iteration"]
    inside = min(found["collectives"], whole - alone) if whole > alone else 0.0
    parts = {"compute": min(alone, whole), "collectives": inside}
    parts["host"] = whole - sum(parts.values())
    shares = {f"{name}_share": round(value / whole, 3) for name, value in parts.items()}
    times = {name: round(value, 3) for name, value in {**found, **parts}.items()}
    return {**times, "collectives_alone": round(found["collectives"], 3), **shares}


def on_paper(size):
    """Yields what a ring takes for a sum of `size` bytes, on links between and inside machines."""
    yield f"an update sums {size / 1e6:.0f} MB; each device sends 2 (N - 1) / N of them"
    links = {"NVLink, 200 GB/s": 2e11, "100 Gb/s": 1.25e10, "10 Gb/s": 1.25e9}
    for gpus in (8, 16, 32, 64):
        sent = 2 * (gpus - 1) / gpus * size
        times = (f"{1e3 * sent / rate:.1f} ms at {name}" for name, rate in links.items())
        yield f"{gpus:>3} GPUs: {', '.join(times)}"


if __name__ == "__main__":
    main()
