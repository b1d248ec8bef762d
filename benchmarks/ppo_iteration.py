"""Time PPO iterations on a randomly initialized GPT-2: one JSON line on stdout.

    python benchmarks/ppo_iteration.py --layers 6 --heads 6 --width 384 --batch 32 \
        --prompt 32 --response 32 --ppo-epochs 4 --mini-batches 4 --iterations 4

An iteration is a whole one: sampling, scoring with reference, critic and reward network,
advantages, and `ppo-epochs * mini-batches` optimizer steps. The median leaves out the first
iteration, which compiles. `--critic separate` has the four networks that other trainers have;
`shared` puts the value head on the actor's trunk.

    python benchmarks/ppo_iteration.py --compare ../trl/bin/python trl_ppo.py [--rounds 2]

runs this benchmark and a peer's script from the peer's own interpreter in turn, with the same
options, and prints the ratio of their medians and of their peak memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

SIZES = (
    "layers",
    "heads",
    "width",
    "vocabulary",
    "batch",
    "prompt",
    "response",
    "ppo_epochs",
    "mini_batches",
    "iterations",
)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = (6, 6, 384, 50257, 32, 32, 32, 4, 4, 4)
    for name, default in zip(SIZES, defaults, strict=True):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--critic", choices=["shared", "separate"], default="separate")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--sampling", action="store_true", help="time sampling alone, and keras-hub's generate"
    )
    parser.add_argument("--compare", nargs=2, metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--rounds", type=int, default=2, help="of --compare")
    return parser.parse_args()


def build_lm(args):
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=args.vocabulary,
        num_layers=args.layers,
        num_heads=args.heads,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
        max_sequence_length=1024,
        dropout=0.0,
        dtype=args.dtype,
    )
    return keras_hub.models.GPT2CausalLM(backbone)


def build_trainer(args):
    import keras

    import kerasrlhf as rlhf

    lm = build_lm(args)
    # Four networks with `--critic separate`: actor, critic, reference and reward.
    critic = build_lm(args).backbone if args.critic == "separate" else None
    trainer = rlhf.PPO(
        rlhf.ActorCritic(lm, critic=critic),
        rlhf.RewardModel(build_lm(args).backbone),
        sampler=rlhf.Sampler(args.response),
        kl=rlhf.FixedKL(0.05),
        update_epochs=args.ppo_epochs,
        num_minibatches=args.mini_batches,
        micro_batches=args.micro_batches,
    )
    trainer.compile(keras.optimizers.Adam(1e-5, epsilon=1e-5))
    return trainer


def prompts(args):
    import numpy as np

    # Random ids, without those that may be special.
    rows = np.random.default_rng(0).integers(
        2, args.vocabulary - 2, (args.iterations, args.batch, args.prompt)
    )
    mask = np.ones(rows.shape[1:], bool)
    return [{"token_ids": ids.astype("int32"), "padding_mask": mask} for ids in rows]


def peak_gb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def measure(args):
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    trainer = build_trainer(args)
    runs = [trainer.iterate(batch) for batch in prompts(args)]
    parts = {
        name: [run[f"time/{name}"] for run in runs]
        for name in ("iteration", "rollout", "score", "update")
    }
    # The first iteration compiles.
    steady = {name: values[1:] or values for name, values in parts.items()}
    median = {name: statistics.median(values) for name, values in steady.items()}
    actor = trainer.actor.causal_lm.backbone
    return {
        "system": "kerasrlhf",
        "parameters_m": round(actor.count_params() / 1e6, 2),
        "seconds_first": round(parts["iteration"][0], 3),
        "seconds_median": round(median["iteration"], 3),
        "seconds_min": round(min(steady["iteration"]), 3),
        "seconds_rollout": round(median["rollout"], 3),
        "seconds_score": round(median["score"], 3),
        "seconds_update": round(median["update"], 3),
        "optimizer_steps_per_iteration": int(trainer.optimizer.iterations.numpy())
        // args.iterations,
        "tokens_per_second": round(args.batch * args.response / median["rollout"], 1),
        "episodes_per_second": round(args.batch / median["iteration"], 3),
        "finite": bool(np.isfinite([run["loss/total"] for run in runs]).all()),
        "peak_rss_gb": peak_gb(),
        **{name: getattr(args, name) for name in (*SIZES, "critic", "micro_batches", "dtype")},
    }


def measure_sampling(args):
    """Times our sampling (with logprobs and values) and keras-hub's `generate`, in turn."""
    import time

    import keras
    import numpy as np

    import kerasrlhf as rlhf

    keras.utils.set_random_seed(0)
    lm = build_lm(args)
    actor, sampler = rlhf.ActorCritic(lm), rlhf.Sampler(args.response)
    lm.compile(sampler="random")
    seconds = {"ours": [], "keras_hub": []}
    for index, batch in enumerate(prompts(args)):
        start = time.perf_counter()
        # Reading a result waits for it.
        np.asarray(actor.generate(batch, sampler, seed=index).logprobs)
        middle = time.perf_counter()
        # keras-hub expects room for the response in the batch.
        padded = {
            "token_ids": np.pad(batch["token_ids"], [(0, 0), (0, args.response)]),
            "padding_mask": np.pad(batch["padding_mask"], [(0, 0), (0, args.response)]),
        }
        lm.generate(padded, stop_token_ids=None)
        seconds["ours"].append(middle - start)
        seconds["keras_hub"].append(time.perf_counter() - middle)
    tokens = args.batch * args.response
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        **{f"tokens_per_second_{name}": round(tokens / s, 1) for name, s in median.items()},
        "ratio": round(median["keras_hub"] / median["ours"], 2),
        **{name: getattr(args, name) for name in SIZES},
    }


def run_json(command):
    """Returns the last line of a command's output, as JSON."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args):
    sizes = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in SIZES]
    python, script = args.compare
    here = [sys.executable, os.path.abspath(__file__), *sizes, f"--critic={args.critic}"]
    here += [f"--micro-batches={args.micro_batches}", f"--dtype={args.dtype}"]
    ours, peers = [], []
    # In turn, so that a change of the machine's load affects both.
    for _ in range(args.rounds):
        ours.append(run_json(here))
        peers.append(run_json([python, script, *sizes]))
        for line in (ours[-1], peers[-1]):
            print(json.dumps(line), flush=True)
    ratios = [p["seconds_median"] / o["seconds_median"] for o, p in zip(ours, peers, strict=True)]
    memory = [o["peak_rss_gb"] / p["peak_rss_gb"] for o, p in zip(ours, peers, strict=True)]
    return {
        "peer": peers[0]["system"],
        "times_the_peers_rate": [round(r, 2) for r in ratios],
        "memory_ratio": [round(m, 2) for m in memory],
        **{name: getattr(args, name) for name in (*SIZES, "critic")},
    }


def main():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    args = parse_args()
    if args.compare:
        result = compare(args)
    else:
        result = measure_sampling(args) if args.sampling else measure(args)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
