"""Step 2 of RLHF: a reward model from preference pairs.

    python recipes/reward_model.py --model runs/sft/model --data pairs.jsonl --output runs/reward

The data has records with `prompt`, `chosen` and `rejected`, or `prompt` and `responses`, best
first; a column `margin` is how far the chosen score should lead; a column `source`, if there is
one, splits the accuracy into groups. `output` receives the reward model (`model`, which
`recipes/ppo.py` takes as `--reward`), `report.json`, and curves for TensorBoard (`logs`). A trial
of seconds: `python recipes/reward_model.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras
import numpy as np

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a reward model on preference pairs.

    Args:
        data: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset.
        model: Where the reward model starts: the fine-tuned language model, as a keras-hub
            preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        batch_size: Pairs of an update.
        loss: What is minimized; of two responses they are the same. Margins are bradley_terry's.
        center: Coefficient that keeps the scores' mean near 0, such as 0.01; 0 for none.
        ensemble: Reward models, each with a seed of its own; with several, their mean less their
            standard deviation is the score.
        epochs: Passes over the pairs; more than one overfits soon.
        learning_rate: Of Adam at the start; falls linearly to 0. Large models want 1e-5.
        max_length: Tokens of a row, prompt and response; none for what the model takes.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        on_error: What to do with rows that cannot be used: raise an error, or skip and count them.
        drop_longer_than: Tokens; longer rows are left out and counted. None for none.
        held_out: Fraction of the pairs that is kept back to measure accuracy.
        bins: Rows of the table that compares accuracy with the size of the score difference.
        normalize: Prompts whose sampled responses should have scores of mean 0 and standard
            deviation 1, before and after training; 0 to leave the scores as they are.
        response_length: Tokens of those responses at most.
        lora_rank: Rank of LoRA adapters, merged when the model is saved; 0 to train all weights.
        dtype: Of the weights, such as mixed_bfloat16; none for the preset's own.
        resume: Keep a backup of every epoch, and continue from it if there is one.
        overwrite: Remove the results of an earlier run in output.
        strategy: The devices to train on: one, all of this machine (mirrored), those of other
            processes too (workers), or what there is (auto).
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    data: str
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/reward")
    batch_size: int = 16
    loss: Literal["bradley_terry", "plackett_luce", "best_of_k"] = "bradley_terry"
    center: float = 0.0
    ensemble: int = 1
    epochs: int = 1
    learning_rate: float = 1e-4
    max_length: int | None = None
    template: str = "plain"
    on_error: Literal["raise", "skip"] = "raise"
    drop_longer_than: int | None = None
    held_out: float = 0.1
    bins: int = 5
    normalize: int = 256
    response_length: int = 32
    lora_rank: int = 0
    dtype: str | None = None
    resume: bool = False
    overwrite: bool = False
    strategy: Literal["auto", "one", "mirrored", "workers"] = "auto"
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict] = {
        "smoke": {
            "data": str(pathlib.Path(__file__).with_name("smoke.jsonl")),
            "output": pathlib.Path("runs/smoke/reward"),
            "batch_size": 4,
            "epochs": 2,
            "learning_rate": 1e-3,
            "held_out": 0.25,
            "bins": 2,
            "normalize": 8,
            "response_length": 8,
            "jit_compile": False,
        }
    }

    def __post_init__(self):
        check_ranges(
            self, zero=["center", "lora_rank", "normalize", "seed"], fractions=["held_out"]
        )


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Split the records into pairs to learn from and pairs to measure on.
    records = rlhf.data.records.load(config.data, on_error=config.on_error)
    train, held_out = rlhf.data.split(records, config.held_out, config.seed)
    # 2. The policy: reward models start as its backbone, and it answers prompts to normalize by.
    options = {"dtype": config.dtype} if config.dtype else {}
    policy = rlhf.ActorCritic.from_preset(config.model, **options)
    pairs = Pairs(config, policy, train, held_out)

    # 3. Train one reward model, or several with different seeds.
    members = [member(config, pairs, index, progress) for index in range(config.ensemble)]
    reward = members[0] if len(members) == 1 else rlhf.RewardEnsemble(members)
    # 4. Score the held-out pairs, then bring the scores to mean 0 and variance 1 (N9).
    progress.step("Scores of held-out pairs")
    # On the scale that the loss was minimized at, where differences are log odds.
    scores = np.asarray(reward.predict(pairs.unseen, verbose=progress.verbose), "float64")
    gain, bias = 1.0, 0.0
    if config.normalize:
        progress.step("Normalizing by sampled responses")
        gain, bias = pairs.normalize(reward)
    # 5. Report, and save the reward model.
    report = {"config": dataclasses.asdict(config), **figures(scores, pairs.held_out, config.bins)}
    report |= {"gain": gain, "bias": bias}
    show(report)
    reward.save_to_preset(config.output / "model")
    progress.finish(report)
    return report


class Pairs:
    """The pairs to learn from and those that are kept back, in the policy's tokens."""

    def __init__(self, config, policy, train, held_out):
        self.config, self.policy, self.train = config, policy, train
        self.template = rlhf.data.dialogue.load_template(config.template)
        self.unseen = self.batches(held_out, shuffle=False)
        # Records that were left out have no score: the figures must not count them.
        left_out = {*self.unseen.report.skipped, *self.unseen.report.dropped}
        self.held_out = [record for i, record in enumerate(held_out) if i not in left_out]
        print(f"{len(train)} pairs, {len(held_out)} held out; {self.unseen.report}")

    def batches(self, records, **options):
        """Returns a dataset of records."""
        return rlhf.data.preferences(
            records,
            self.policy.causal_lm.preprocessor,
            self.config.batch_size,
            max_length=self.config.max_length,
            template=self.template,
            on_error=self.config.on_error,
            drop_longer_than=self.config.drop_longer_than,
            **options,
        )

    def normalize(self, reward):
        """Rescales a reward model by what the policy answers; returns gain and bias."""

        def read(rows):
            return rlhf.data.records.preference_texts(rows, self.template)

        rows = self.train[: self.config.normalize]
        prompts = rlhf.data.records.select(rows, read, self.config.on_error).values[0]
        return reward.normalize(
            # The ends of long prompts, which leave room for a response.
            [prompt[-400:] for prompt in prompts],
            policy=self.policy,
            sampler=rlhf.Sampler(self.config.response_length),
            parse_special=self.template != "plain",
        )


def member(config, pairs, index, progress):
    """Returns a reward model that was trained with the member's seed."""
    seed = config.seed + index
    keras.utils.set_random_seed(seed)
    reward = rlhf.RewardModel.from_causal_lm(pairs.policy.causal_lm)
    if config.lora_rank:
        reward.backbone.enable_lora(config.lora_rank)
    # Before training too, so that it starts from scores of a known scale (N9).
    if config.normalize:
        progress.step("Normalizing by sampled responses")
        pairs.normalize(reward)
    folder = config.output if config.ensemble == 1 else config.output / f"member_{index}"
    train = pairs.batches(pairs.train, seed=seed, drop_remainder=True)
    progress.step(f"Training reward model {index + 1} of {config.ensemble}")
    fit(config, reward, train, pairs.unseen, folder, progress.verbose)
    return reward


def figures(scores, records, bins):
    """Returns accuracy, by source too, and calibration of scores `(records, candidates)`."""
    first, second = np.triu_indices(scores.shape[1], 1)  # every pair of a ranking
    chosen, rejected = scores[:, first].ravel(), scores[:, second].ravel()
    # The record of each pair, for its source.
    rows = np.repeat(np.arange(len(records)), len(first))
    sourced = [i for i, row in enumerate(rows) if "source" in records[row]]
    by_source = {}
    if sourced:
        names = [str(records[rows[i]]["source"]) for i in sourced]
        by_source = rlhf.evaluation.accuracy_by_group(chosen[sourced], rejected[sourced], names)
    calibration = rlhf.evaluation.calibration(chosen, rejected, bins)
    return {
        "accuracy": rlhf.evaluation.preference_accuracy(chosen, rejected)._asdict(),
        "by_source": {source: accuracy._asdict() for source, accuracy in by_source.items()},
        "calibration": [row._asdict() for row in calibration],
    }


def fit(config, reward, pairs, unseen, folder, verbose):
    """Trains one reward model, with curves and backups in `folder`."""
    rate = keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, config.epochs * len(pairs), end_learning_rate=0.0
    )
    losses = {
        "bradley_terry": rlhf.losses.BradleyTerry,
        "plackett_luce": rlhf.losses.PlackettLuce,
        "best_of_k": rlhf.losses.BestOfK,
    }
    reward.compile(
        keras.optimizers.Adam(rate, epsilon=1e-5),
        losses[config.loss](center_coef=config.center),
        # Keras cannot compile with XLA around several replicas.
        jit_compile=config.jit_compile and rlhf.cluster.replicas() == 1,
    )
    callbacks = [rlhf.callbacks.TensorBoard(folder / "logs")]
    if config.resume:
        callbacks.append(keras.callbacks.BackupAndRestore(folder / "state"))
    reward.fit(
        pairs,
        validation_data=unseen,
        epochs=config.epochs,
        shuffle=False,  # the dataset shuffles itself
        callbacks=callbacks,
        verbose=verbose,
    )


def show(report):
    """Prints the figures as tables."""
    groups = {"all pairs": report["accuracy"], **report["by_source"]}
    print(f"\n{'held-out pairs':<24}{'pairs':>7}{'accuracy':>10}   95 % interval")
    for name, x in groups.items():
        interval = f"{x['low']:.3f} to {x['high']:.3f}"
        print(f"{name:<24}{x['pairs']:>7}{x['accuracy']:>10.3f}   {interval}")
    print(f"\n{'score difference':<24}{'pairs':>7}{'accuracy':>10}   promised")
    for x in report["calibration"]:
        print(
            f"{x['difference']:<24.3f}{x['pairs']:>7}{x['accuracy']:>10.3f}   {x['promised']:.3f}"
        )
    print(f"\ngain {report['gain']:.3f}, bias {report['bias']:.3f}")


if __name__ == "__main__":
    run(main, Config)
