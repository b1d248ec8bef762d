"""The whole of RLHF on the embedded model, in about three minutes on two cores.

    python recipes/quickstart.py

Stories open unhappily. A simulated annotator compares pairs of continuations and, with the noise
of the Bradley-Terry model, prefers the happier one. A reward model learns from the comparisons,
PPO trains the storyteller against the reward model, and a report says what changed: the score that
was trained on (proxy), the sentiment that was meant (gold), the distance from the model that we
started from (KL), and what it cost in language ability (perplexity of stories, diversity).
"""

import dataclasses
import json
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras
import keras_hub

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """The quickstart's options.

    Args:
        output: Folder for the report, the curves, the TensorBoard logs and the policy.
        overwrite: Remove the results of an earlier run in output.
        pairs: Comparisons that the annotator makes.
        noise: The annotator's noise, in units of sentiment (-1 to 1).
        length: Tokens of a continuation.
        temperature: Of the sampling.
        reward_epochs: Passes of the reward model over its comparisons.
        reward_learning_rate: Of the reward model.
        batch_size: Episodes of a PPO iteration.
        epochs: Epochs of PPO.
        iterations: Iterations of an epoch.
        update_epochs: Passes over the episodes of an iteration.
        num_minibatches: Optimizer steps a pass.
        learning_rate: Of PPO; falls linearly to 0.
        kl_coef: The KL coefficient at the start.
        kl_target: Nats a continuation that the KL coefficient steers to.
        kl_horizon: Episodes; smaller steers faster.
        held_out: Openings that nothing is trained on, for the report.
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    output: pathlib.Path = pathlib.Path("runs/quickstart")
    overwrite: bool = False
    pairs: int = 2048
    noise: float = 0.15
    length: int = 32
    temperature: float = 0.8
    reward_epochs: int = 2
    reward_learning_rate: float = 3e-4
    batch_size: int = 64
    epochs: int = 10
    iterations: int = 8
    update_epochs: int = 2
    num_minibatches: int = 1
    learning_rate: float = 5e-4
    kl_coef: float = 0.22
    kl_target: float = 6.0
    kl_horizon: float = 3000.0
    held_out: int = 256
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict[str, dict]] = {
        "smoke": {
            "pairs": 64, "length": 8, "reward_epochs": 1, "batch_size": 16, "epochs": 2,
            "iterations": 1, "held_out": 16, "output": pathlib.Path("runs/smoke/quickstart"),
            "jit_compile": False,
        }
    }  # fmt: skip

    def __post_init__(self):
        check_ranges(self, zero=["noise", "seed"], at_least={"pairs": 8})


def main(config: Config) -> dict:
    """Runs everything and returns the report."""
    # The folder of the quickstart itself is replaced without asking.
    is_default = config.output == Config.output
    progress = Progress(config.output, overwrite=config.overwrite or is_default)
    keras.utils.set_random_seed(config.seed)
    lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
    actor = rlhf.ActorCritic.from_causal_lm(lm)
    sampler = rlhf.Sampler(config.length, temperature=config.temperature)
    openings = rlhf.tasks.sentiment.unhappy_openings(seed=config.seed)
    held_out, training = openings[: config.held_out], openings[config.held_out :]

    progress.step("Held-out stories before training")
    before = answer(config, actor, held_out, sampler, config.seed + 1)
    perplexity_before = rlhf.evaluation.perplexity(lm, rlhf.tasks.stories.HELD_OUT)

    progress.step("1. Comparisons of a simulated annotator")
    comparisons = compare_pairs(config, actor, sampler, training)
    # Hold back an eighth, to see whether the reward model has learned what generalizes.
    cut = len(comparisons) * 7 // 8
    pairs = rlhf.data.preferences(comparisons[:cut], lm.preprocessor, batch_size=32)
    unseen = rlhf.data.preferences(comparisons[cut:], lm.preprocessor, batch_size=32)
    print(f"{cut} to learn from, {len(comparisons) - cut} to test on, for example")
    print(json.dumps(comparisons[0], indent=2))

    progress.step("2. Reward model")
    reward = rlhf.RewardModel.from_causal_lm(lm)
    reward.compile(
        keras.optimizers.Adam(config.reward_learning_rate), jit_compile=config.jit_compile
    )
    reward.fit(pairs, epochs=config.reward_epochs, verbose=progress.verbose)
    accuracy = reward.evaluate(unseen, return_dict=True, verbose=0)["accuracy"]
    print(f"It orders {accuracy:.1%} of the unseen comparisons as the annotator did.")
    # Scores of the start get mean 0 and variance 1, so that the KL coefficient has a scale (N9).
    reward.normalize(held_out, responses=before[0], ended=before[1])

    progress.step("3. PPO")
    # `rows` collects the statistics of each iteration for the plot.
    ppo, rows = build(config, actor, reward, sampler), []
    batches = {"batch_size": config.batch_size, "pad_to_multiple_of": 8}
    prompts = rlhf.data.prompts(training, lm.preprocessor, seed=config.seed, **batches)
    ppo.fit(
        prompts.repeat(),
        epochs=config.epochs,
        steps_per_epoch=config.iterations,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: rows.append(dict(ppo.statistics))
            ),
            rlhf.callbacks.TensorBoard(config.output / "logs"),
        ],
        verbose=progress.verbose,
    )

    progress.step("4. Before and after")
    # The same openings and random numbers as before training.
    after = answer(config, actor, held_out, sampler, config.seed + 1)
    unseen = rlhf.data.prompts(held_out, lm.preprocessor, shuffle=False, **batches)
    kl = ppo.evaluate(unseen, return_dict=True, verbose=0)["kl"]
    old, new = (measure(reward, held_out, *answers) for answers in (before, after))
    report = {
        "reward_model_accuracy": accuracy,
        "kl": kl,
        "kl_target": config.kl_target,
        "perplexity_of_stories": [
            perplexity_before,
            rlhf.evaluation.perplexity(lm, rlhf.tasks.stories.HELD_OUT),
        ],
        **{name: [old[name], new[name]] for name in old},
        "samples": ranked(held_out, before[0], after[0]),
    }
    show(report)
    actor.save_to_preset(config.output / "model")
    plot(rows, config.output / "curves.png", config.kl_target)
    progress.finish(report)
    return report


def build(config, actor, reward, sampler):
    """Returns the compiled trainer; its learning rate falls to 0."""
    # The reference is the actor as it is now; the KL to it is steered to a target (N21).
    ppo = rlhf.PPO(
        actor,
        reward,
        sampler=sampler,
        kl=rlhf.AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon),
        update_epochs=config.update_epochs,
        num_minibatches=config.num_minibatches,
        seed=config.seed,
    )
    steps = ppo.updates_in(config.epochs * config.iterations)
    schedule = keras.optimizers.schedules.PolynomialDecay(config.learning_rate, steps, 0.0)
    ppo.compile(keras.optimizers.Adam(schedule, epsilon=1e-5), jit_compile=config.jit_compile)
    return ppo


def answer(config, actor, prompts, sampler, seed):
    """Returns continuations, and whether each has ended by itself."""
    return actor.generate(
        prompts, sampler, seed=seed, return_ended=True, jit_compile=config.jit_compile
    )


def compare_pairs(config, actor, sampler, openings):
    """Returns preference records: two continuations of each opening, compared by VADER."""
    prompts = [openings[index % len(openings)] for index in range(config.pairs)]
    # Two continuations with different random numbers.
    texts, ended = zip(
        *(answer(config, actor, prompts, sampler, config.seed + i) for i in (2, 3)),
        strict=True,
    )
    happiness = [rlhf.tasks.sentiment.vader_scores(responses) for responses in texts]
    return rlhf.tasks.sentiment.simulated_preferences(
        prompts, *texts, *happiness, noise=config.noise, seed=config.seed, ended=ended
    )


def measure(reward, openings, texts, ended):
    """Returns figures of continuations for the report; intervals are of 95 %."""
    return {
        "proxy": rlhf.evaluation.mean_interval(reward.score(openings, texts, ended=ended)),
        "gold": rlhf.evaluation.mean_interval(rlhf.tasks.sentiment.vader_scores(texts)),
        "distinct_2": rlhf.evaluation.distinct_n(texts, 2),
        "words": sum(len(text.split()) for text in texts) / len(texts),
    }


def ranked(openings, before, after):
    """Returns the openings with the best, the median and the worst continuation after training."""
    gold = [rlhf.tasks.sentiment.vader_scores(texts) for texts in (before, after)]
    order = sorted(range(len(openings)), key=lambda i: gold[1][i], reverse=True)
    ranks = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [
        {
            "rank": rank,
            "opening": openings[i],
            "before": before[i],
            "after": after[i],
            "gold": [float(scores[i]) for scores in gold],
        }
        for rank, i in ranks.items()
    ]


def plot(rows, path, kl_target):
    """Writes score, KL, entropy and explained variance against iterations as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    names = {
        "objective/score": "score (reward model)",
        "objective/kl": "KL to the reference, nats a response",
        "objective/entropy": "entropy, nats a response",
        "value/explained_variance": "explained variance of the critic",
    }
    for axis, (name, title) in zip(axes.flat, names.items(), strict=True):
        axis.plot(range(1, len(rows) + 1), [row[name] for row in rows])
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
    axes.flat[1].axhline(kl_target, linestyle="--", color="gray", label="target")
    axes.flat[1].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def show(report):
    """Prints the report."""
    print(f"{'':28}{'before':>24}{'after':>24}")
    for name, title in (
        ("gold", "gold: VADER sentiment"),
        ("proxy", "proxy: reward model"),
        ("perplexity_of_stories", "perplexity of stories"),
        ("distinct_2", "distinct bigrams"),
        ("words", "words"),
    ):
        cells = [x if isinstance(x, float) else str(x) for x in report[name]]
        cells = [f"{x:.3f}" if isinstance(x, float) else x for x in cells]
        print(f"{title:28}{cells[0]:>24}{cells[1]:>24}")
    print(f"KL {report['kl']:.2f} nats a continuation, target {report['kl_target']:.2f}\n")
    print("The openings with the best, the median and the worst continuation, and its sentiment:")
    for sample in report["samples"]:
        print(f"{sample['rank']}: {sample['opening']}")
        for time, score in zip(("before", "after"), sample["gold"], strict=True):
            print(f"  {time:6} {score:+.2f}  {sample[time].strip()!r}")


if __name__ == "__main__":
    run(main, Config)
