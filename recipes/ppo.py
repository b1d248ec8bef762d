"""Step 3 of RLHF: proximal policy optimization against a reward.

    python recipes/ppo.py --model runs/sft/model --reward runs/reward/model --prompts prompts.jsonl
    python recipes/ppo.py --model gpt2_base_en --reward my_reward.py:score --prompts prompts.jsonl

The prompts are records with `prompt`; their other columns reach a reward function by name. `output`
receives the policy with its critic (`model`, a keras-hub preset), `report.json`, samples
(`samples.jsonl`), curves for TensorBoard (`logs`), and the state of the run (`state`): started
again with `--resume`, an interrupted run continues as if nothing had happened. A trial of seconds:
`python recipes/ppo.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a policy with PPO.

    Args:
        prompts: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset.
        reward: A folder of a saved reward model, or a Python function of prompts and responses,
            as package.module:function or path/to/file.py:function.
        model: The initial policy: a keras-hub preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        iterations: Batches of prompts to sample, score and learn from.
        batch_size: Prompts of an iteration.
        held_out: Prompts kept back for validation; a multiple of batch_size.
        validate_every: Iterations between validations; divides iterations.
        save_every: Iterations between states.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        on_error: What to do with rows that cannot be used: raise an error, or skip and count them.
        drop_longer_than: Tokens; longer rows are left out and counted. None for none.
        prompt_length: Tokens of a prompt; none for what the model takes.
        response_length: Tokens of a response at most.
        temperature: Of sampling.
        learning_rate: Of Adam at the start.
        decay: Whether the learning rate falls linearly to 0.
        kl_coef: Score units per nat of KL from the initial policy.
        kl_target: Nats a response that the coefficient is steered to; none keeps it fixed.
        kl_horizon: Episodes; a smaller one steers faster.
        update_epochs: Passes over the responses of an iteration.
        num_minibatches: Updates of a pass.
        micro_batches: Parts that an update is computed in, to save memory.
        missing_end_score: Score of a response without end token; none for the reward's own.
        lora_rank: Rank of LoRA adapters, merged when the policy is saved; 0 to train all weights.
        dtype: Of the weights, such as mixed_bfloat16; none for the preset's own.
        samples: Responses shown at every validation.
        strategy: The devices to train on: one, all of this machine (mirrored), those of other
            processes too (workers), or what there is (auto).
        resume: Continue from the state in output.
        overwrite: Remove the results of an earlier run in output.
        on_change: What to do if settings are not those of the run that is resumed, such as more
            iterations, over which the learning rate falls to 0.
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    prompts: str
    reward: str
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/ppo")
    iterations: int = 200
    batch_size: int = 64
    held_out: int = 64
    validate_every: int = 20
    save_every: int = 10
    template: str = "plain"
    on_error: Literal["raise", "skip"] = "raise"
    drop_longer_than: int | None = None
    prompt_length: int | None = None
    response_length: int = 48
    temperature: float = 1.0
    learning_rate: float = 3e-5
    decay: bool = True
    kl_coef: float = 0.1
    kl_target: float | None = 6.0
    kl_horizon: int = 10_000
    update_epochs: int = 4
    num_minibatches: int = 4
    micro_batches: int = 1
    missing_end_score: float | None = None
    lora_rank: int = 0
    dtype: str | None = None
    samples: int = 3
    strategy: Literal["auto", "one", "mirrored", "workers"] = "auto"
    resume: bool = False
    overwrite: bool = False
    on_change: Literal["refuse", "warn"] = "refuse"
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict] = {
        "smoke": {
            "prompts": str(pathlib.Path(__file__).with_name("smoke.jsonl")),
            "reward": f"{__file__}:brevity", "output": pathlib.Path("runs/smoke/ppo"),
            "iterations": 2, "batch_size": 8, "held_out": 8, "validate_every": 1, "save_every": 1,
            "response_length": 8, "update_epochs": 1, "num_minibatches": 2, "samples": 2,
            "jit_compile": False,
        },
        # Huang et al. 2024, arXiv 2403.17031 (detail P20): a million episodes. The rest of its
        # numbers, from gamma to the value coefficient, are the defaults of PPO.
        "tldr": {
            "iterations": 1_000_000 // 512, "batch_size": 512, "held_out": 512,
            "validate_every": 63, "response_length": 53, "temperature": 0.7, "learning_rate": 3e-6,
            "decay": True, "kl_coef": 0.05, "kl_target": None, "update_epochs": 4,
            "num_minibatches": 1, "missing_end_score": -1.0,
        },
    }  # fmt: skip

    def __post_init__(self):
        check_ranges(
            self,
            zero=["kl_coef", "lora_rank", "seed"],
            signed=["missing_end_score"],
            multiples={"held_out": "batch_size", "iterations": "validate_every"},
        )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                "`--kl-coef` must be above 0 to be steered to `--kl-target`. Received: 0. For none "
                "at all add --kl-target none."
            )


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Callbacks: the state of the run, samples, and curves.
    resume = rlhf.callbacks.Resume(
        config.output / "state", every=config.save_every, on_change=config.on_change
    )
    samples = rlhf.callbacks.Samples(
        config.samples, every=config.validate_every, path=config.output / "samples.jsonl"
    )
    curves = rlhf.callbacks.TensorBoard(config.output / "logs", samples=config.samples)
    # 2. The trainer, prompts to train on, and others to measure on.
    ppo = build(config)
    prompts, unseen = read_prompts(config, ppo.actor.causal_lm.preprocessor)
    progress.step("Held-out prompts before training")
    # 3. Figures before training. On a resume, `fit` loads the state only afterward.
    before, shown_before = measure(ppo, unseen, progress.verbose)
    # 4. Train: each batch of prompts is one iteration, and an epoch ends with a validation.
    progress.step("Training")
    ppo.fit(
        prompts.repeat(),
        steps_per_epoch=config.validate_every,
        epochs=config.iterations // config.validate_every,
        validation_data=unseen,
        shuffle=False,  # the dataset shuffles itself
        callbacks=[resume, curves, samples],
        verbose=progress.verbose,
    )
    # 5. Measure again on the same prompts, with the same random numbers.
    progress.step("Held-out prompts after training")
    after, shown_after = measure(ppo, unseen, progress.verbose)
    # 6. Save the policy with its critic, and report.
    ppo.actor.save_to_preset(config.output / "model")
    report = {"config": dataclasses.asdict(config), "before": before, "after": after}
    report["samples"] = pairs(shown_before, shown_after, config.samples)
    show(report)
    progress.finish(report)
    return report


def build(config):
    """Returns the compiled trainer."""
    actor = rlhf.ActorCritic.from_preset(
        config.model, **({"dtype": config.dtype} if config.dtype else {})
    )
    if config.lora_rank:
        # Before the trainer is built: its reference is then the model without adapters.
        actor.causal_lm.backbone.enable_lora(config.lora_rank)
    # The KL to the initial policy keeps the language; a target adapts its coefficient (N21).
    kl = rlhf.FixedKL(config.kl_coef)
    if config.kl_target is not None:
        kl = rlhf.AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
    ppo = rlhf.PPO(
        actor,
        rlhf.load_reward(config.reward),
        sampler=rlhf.Sampler(config.response_length, temperature=config.temperature),
        kl=kl,
        update_epochs=config.update_epochs,
        num_minibatches=config.num_minibatches,
        micro_batches=config.micro_batches,
        shaping=rlhf.RewardShaping(missing_end_score=config.missing_end_score),
        seed=config.seed,
    )
    rate = config.learning_rate
    if config.decay:
        # The rate reaches 0 with the last update of the run (N5).
        updates = ppo.updates_in(config.iterations)
        rate = keras.optimizers.schedules.PolynomialDecay(rate, updates, end_learning_rate=0.0)
    # Adam's epsilon of the original implementation (N22).
    ppo.compile(keras.optimizers.Adam(rate, epsilon=1e-5), jit_compile=config.jit_compile)
    return ppo


def read_prompts(config, preprocessor):
    """Returns shuffled prompts to train on, and those that are kept back."""
    records = rlhf.data.records.load(config.prompts, text_column="prompt", on_error=config.on_error)
    train, held_out = rlhf.data.split(records, config.held_out, config.seed)
    prompts, unseen = (
        rlhf.data.prompts(
            part,
            preprocessor,
            config.batch_size,
            max_length=config.prompt_length,
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


def measure(ppo, unseen, verbose):
    """Returns score, KL and length on held-out prompts, and the responses to the first of them."""
    figures = ppo.evaluate(unseen, verbose=verbose, return_dict=True)
    return figures, ppo.collect(next(iter(unseen)))


def pairs(before, after, count):
    """Returns prompts with the responses and scores of two moments."""
    moments = ((shown.episodes.responses, shown.raw_scores.tolist()) for shown in (before, after))
    names = ("prompt", "before", "score_before", "after", "score_after")
    rows = zip(before.episodes.prompts, *(x for pair in moments for x in pair), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows][:count]


def show(report):
    """Prints what came out."""
    print(f"\n{'held-out prompts':<18}{'before':>10}{'after':>10}")
    for name, value in report["before"].items():
        print(f"{name:<18}{value:>10.3f}{report['after'][name]:>10.3f}")
    for sample in report["samples"]:
        print(f"\n  prompt: {sample['prompt']!r}")
        for moment in ("before", "after"):
            print(f"{moment:>8}: {sample['score_' + moment]:8.3f}  {sample[moment]!r}")


def brevity(responses):
    """The reward of the smoke preset: short words."""
    return [-sum(map(len, r.split())) / max(len(r.split()), 1) for r in responses]


if __name__ == "__main__":
    run(main, Config)
