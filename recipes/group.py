"""Policy gradients without a critic: GRPO, Dr. GRPO or RLOO.

    python recipes/group.py --algorithm rloo
    python recipes/group.py --model runs/sft/model --reward runs/reward/model \\
        --prompts prompts.jsonl

Several responses are sampled for every prompt, and each is compared with the others. `grpo`: the
advantage is the score less the mean of the group, in standard deviations of the group, and the KL
is in the loss. `dr_grpo` divides neither by the standard deviation nor by the length of a response,
and has the KL in the reward. `rloo` subtracts the mean of the other responses and follows the plain
gradient. Without options a storyteller learns to continue happily. `output` receives the policy
(`model`, a keras-hub preset), `report.json`, curves for TensorBoard (`logs`), and the state of the
run (`state`), which `--resume` continues. A trial of seconds:
`python recipes/group.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a policy with GRPO, Dr. GRPO or RLOO.

    Args:
        algorithm: How responses to a prompt are compared.
        prompts: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset;
            none for openings of unhappy stories.
        reward: A folder of a saved reward model, or a Python function of prompts and responses,
            as package.module:function or path/to/file.py:function.
        model: The initial policy: a keras-hub preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        iterations: Batches of prompts to sample, score and learn from.
        batch_size: Prompts of an iteration.
        group_size: Responses to every prompt, at least 2.
        held_out: Prompts kept back for validation; a multiple of batch_size.
        validate_every: Iterations between validations and saved states; divides iterations.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        on_error: What to do with rows that cannot be used: raise an error, or skip and count them.
        drop_longer_than: Tokens; longer rows are left out and counted. None for none.
        prompt_length: Tokens of a prompt; none for what the model takes.
        response_length: Tokens of a response at most.
        temperature: Of sampling.
        learning_rate: Of Adam at the start; falls linearly to 0. Large models want 1e-6.
        kl_coef: Score units per nat of KL from the initial policy; 0 for none.
        update_epochs: Passes over the responses of an iteration; 1 stays on policy.
        num_minibatches: Updates of a pass.
        cliprange: How far the ratio counts, as in PPO; none for the algorithm's own: 0.2, and no
            limit for rloo.
        cliprange_high: Of grpo and dr_grpo: how far upward, if that differs (clip-higher, 0.28).
        mask_overlong: Leave out responses without end token.
        missing_end_score: Score of a response without end token; none for the reward's own.
        resume: Continue from the state in output.
        overwrite: Remove the results of an earlier run in output.
        on_change: What to do if settings are not those of the run that is resumed, such as more
            iterations, over which the learning rate falls to 0.
        strategy: The devices to train on: one, all of this machine (mirrored), those of other
            processes too (workers), or what there is (auto).
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    algorithm: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    prompts: str | None = None
    reward: str = "kerasrlhf.tasks.sentiment:happy_words"
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/group")
    iterations: int = 100
    batch_size: int = 8
    group_size: int = 8
    held_out: int = 64
    validate_every: int = 20
    template: str = "plain"
    on_error: Literal["raise", "skip"] = "raise"
    drop_longer_than: int | None = None
    prompt_length: int | None = None
    response_length: int = 32
    temperature: float = 1.0
    learning_rate: float = 3e-4
    kl_coef: float = 0.04
    update_epochs: int = 1
    num_minibatches: int = 1
    cliprange: float | None = None
    cliprange_high: float | None = None
    mask_overlong: bool = False
    missing_end_score: float | None = None
    resume: bool = False
    overwrite: bool = False
    on_change: Literal["refuse", "warn"] = "refuse"
    strategy: Literal["auto", "one", "mirrored", "workers"] = "auto"
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict] = {
        "smoke": {
            "output": pathlib.Path("runs/smoke/group"), "iterations": 2, "batch_size": 4,
            "group_size": 2, "held_out": 4, "validate_every": 2, "response_length": 6,
            "jit_compile": False,
        }
    }  # fmt: skip

    def __post_init__(self):
        check_ranges(
            self,
            zero=["kl_coef", "seed"],
            signed=["missing_end_score"],
            at_least={"group_size": 2},
            multiples={"held_out": "batch_size", "iterations": "validate_every"},
        )
        if self.cliprange_high is not None and self.algorithm == "rloo":
            raise ValueError(
                "`--cliprange-high` is an option of --algorithm grpo and dr_grpo. Received: "
                f"{self.cliprange_high} with --algorithm rloo."
            )


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. The trainer, prompts to train on, and others to measure on.
    resume = rlhf.callbacks.Resume(
        config.output / "state", every=config.validate_every, on_change=config.on_change
    )
    trainer = build(config)
    prompts, unseen = read_prompts(config, trainer.actor.causal_lm.preprocessor)
    # 2. Measure, train with a validation after each epoch, and measure again.
    progress.step("Held-out prompts before training")
    before = trainer.evaluate(unseen, verbose=progress.verbose, return_dict=True)
    progress.step("Training")
    trainer.fit(
        prompts.repeat(),
        steps_per_epoch=config.validate_every,
        epochs=config.iterations // config.validate_every,
        validation_data=unseen,
        shuffle=False,  # the dataset shuffles itself
        callbacks=[resume, rlhf.callbacks.TensorBoard(config.output / "logs")],
        verbose=progress.verbose,
    )
    progress.step("Held-out prompts after training")
    after = trainer.evaluate(unseen, verbose=progress.verbose, return_dict=True)
    # 3. Save the policy, and report.
    trainer.actor.save_to_preset(config.output / "model")
    for name in before:
        print(f"held-out {name:<8}{before[name]:>10.3f}{after[name]:>10.3f}")
    report = {"config": dataclasses.asdict(config), "before": before, "after": after}
    progress.finish(report)
    return report


def build(config):
    """Returns the compiled trainer."""
    options = {
        "sampler": rlhf.Sampler(config.response_length, temperature=config.temperature),
        "kl": rlhf.FixedKL(config.kl_coef),
        "group_size": config.group_size,
        "update_epochs": config.update_epochs,
        "num_minibatches": config.num_minibatches,
        "mask_overlong": config.mask_overlong,
        "shaping": rlhf.RewardShaping(missing_end_score=config.missing_end_score),
        "seed": config.seed,
    }
    # Left out, so that each algorithm has its own default.
    if config.cliprange is not None:
        options["cliprange"] = config.cliprange
    actor = rlhf.ActorCritic.from_preset(config.model)
    reward = rlhf.load_reward(config.reward)
    if config.algorithm == "rloo":
        trainer = rlhf.RLOO(actor, reward, **options)
    else:
        options |= {"variant": config.algorithm, "cliprange_high": config.cliprange_high}
        trainer = rlhf.GRPO(actor, reward, **options)
    # The rate reaches 0 with the last update of the run (N5).
    rate = keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, trainer.updates_in(config.iterations), end_learning_rate=0.0
    )
    trainer.compile(keras.optimizers.Adam(rate, epsilon=1e-5), jit_compile=config.jit_compile)
    return trainer


def read_prompts(config, preprocessor):
    """Returns shuffled prompts to train on, and those that are kept back."""
    source = config.prompts or rlhf.tasks.sentiment.unhappy_openings()
    records = rlhf.data.records.load(source, text_column="prompt", on_error=config.on_error)
    train, held_out = rlhf.data.split(records, config.held_out, config.seed)
    prompts, unseen = (
        rlhf.data.prompts(
            part,
            preprocessor,
            config.batch_size,
            max_length=config.prompt_length,
            # Similar lengths get one shape, so that XLA compiles once.
            pad_to_multiple_of=8,
            template=rlhf.data.dialogue.load_template(config.template),
            on_error=config.on_error,
            drop_longer_than=config.drop_longer_than,
            shuffle=shuffle,
            seed=config.seed,
        )
        for part, shuffle in ((train, True), (held_out, False))
    )
    print(f"{len(train)} prompts, {len(held_out)} held out; {prompts.report}")
    return prompts, unseen


if __name__ == "__main__":
    run(main, Config)
