"""Preferences without a reward model: DPO, IPO, KTO or ORPO.

    python recipes/dpo.py --model runs/sft/model --data pairs.jsonl --output runs/dpo
    python recipes/dpo.py --method orpo --model gpt2_base_en --data pairs.jsonl

The data has records with `prompt`, `chosen` and `rejected`; a column `source`, if there is one,
splits the accuracy into groups. DPO, IPO and KTO start from a fine-tuned model and stay near it;
ORPO fine-tunes on the way. `output` receives the policy (`model`, a keras-hub preset),
`report.json`, and curves for TensorBoard (`logs`). A trial of seconds:
`python recipes/dpo.py --preset smoke`.
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
    """Trains a policy on preference pairs directly.

    Args:
        data: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset.
        method: The loss.
        model: The initial policy and, except for orpo, its reference: a keras-hub preset, a folder
            of one, or a Hugging Face folder.
        output: A folder for the results.
        beta: Of dpo, ipo and kto: the smaller, the further from the reference.
        label_smoothing: Of dpo: the probability that a label is wrong.
        coef: Of orpo: the weight of the odds ratio in addition to the likelihood.
        batch_size: Pairs of an update.
        epochs: Passes over the pairs.
        learning_rate: Of Adam at the start; falls linearly to 0. Large models want 1e-6.
        max_length: Tokens of a row, prompt and response; none for what the model takes.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        on_error: What to do with rows that cannot be used: raise an error, or skip and count them.
        drop_longer_than: Tokens; longer rows are left out and counted. None for none.
        held_out: Fraction of the pairs that is kept back to measure accuracy.
        samples: Held-out prompts that are answered before and after.
        response_length: Tokens of those responses at most.
        lora_rank: Rank of LoRA adapters, merged when the policy is saved; 0 to train all weights.
            With adapters the reference costs no second model.
        dtype: Of the weights, such as mixed_bfloat16; none for the preset's own.
        resume: Keep a backup of every epoch, and continue from it if there is one.
        overwrite: Remove the results of an earlier run in output.
        strategy: The devices to train on: one, all of this machine (mirrored), those of other
            processes too (workers), or what there is (auto).
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    data: str
    method: Literal["dpo", "ipo", "kto", "orpo"] = "dpo"
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/dpo")
    beta: float = 0.1
    label_smoothing: float = 0.0
    coef: float = 0.1
    batch_size: int = 16
    epochs: int = 1
    learning_rate: float = 1e-5
    max_length: int | None = None
    template: str = "plain"
    on_error: Literal["raise", "skip"] = "raise"
    drop_longer_than: int | None = None
    held_out: float = 0.1
    samples: int = 3
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
            "output": pathlib.Path("runs/smoke/dpo"),
            "batch_size": 6,
            "epochs": 3,
            "learning_rate": 1e-3,
            "held_out": 0.25,
            "samples": 2,
            "response_length": 8,
            "jit_compile": False,
        }
    }

    def __post_init__(self):
        check_ranges(
            self,
            zero=["coef", "label_smoothing", "lora_rank", "samples", "seed"],
            fractions=["held_out"],
        )
        if self.label_smoothing >= 0.5:
            raise ValueError(
                f"`--label-smoothing` must be below 0.5. Received: {self.label_smoothing}."
            )
        if self.label_smoothing and self.method != "dpo":
            raise ValueError(
                f"`--label-smoothing` is an option of --method dpo. Received: {self.method!r}."
            )


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Split the records into pairs to learn from and pairs to measure on.
    records = rlhf.data.records.load(config.data, on_error=config.on_error)
    train, held_out = rlhf.data.split(records, config.held_out, config.seed)
    # 2. The initial policy; `ActorCritic` serves to sample responses.
    options = {"dtype": config.dtype} if config.dtype else {}
    actor = rlhf.ActorCritic.from_preset(config.model, **options)
    if config.lora_rank:
        actor.causal_lm.backbone.enable_lora(config.lora_rank)
    # 3. Pairs as batches of token ids, and the trainer.
    template = rlhf.data.dialogue.load_template(config.template)
    pairs, unseen = read_pairs(config, actor.causal_lm.preprocessor, train, held_out, template)
    # Records that were left out have no score: the accuracies must not count them.
    left_out = {*unseen.report.skipped, *unseen.report.dropped}
    held_out = [record for i, record in enumerate(held_out) if i not in left_out]
    longest = max(data.report.longest_response for data in (pairs, unseen))
    trainer = build(config, actor.causal_lm, longest, config.epochs * len(pairs))

    # 4. Measure, train, and measure again.
    prompts = read_prompts(config, held_out, template)
    progress.step("Held-out pairs before training")
    before, responses_before = measure(
        config, trainer, actor, unseen, prompts, template, progress.verbose
    )
    callbacks = [rlhf.callbacks.TensorBoard(config.output / "logs")]
    if config.resume:
        callbacks.append(keras.callbacks.BackupAndRestore(config.output / "state"))
    progress.step("Training")
    trainer.fit(
        pairs,
        validation_data=unseen,
        epochs=config.epochs,
        shuffle=False,  # the dataset shuffles itself
        callbacks=callbacks,
        verbose=progress.verbose,
    )
    progress.step("Held-out pairs after training")
    after, responses_after = measure(
        config, trainer, actor, unseen, prompts, template, progress.verbose
    )
    # 5. Report, and save the policy.
    samples = zip(prompts, responses_before, responses_after, strict=True)
    report = {
        "config": dataclasses.asdict(config),
        "before": before,
        "after": after,
        **accuracies(trainer.predict(unseen, verbose=0), held_out),
        "samples": [dict(zip(("prompt", "before", "after"), x, strict=True)) for x in samples],
    }
    show(report)
    with rlhf.files.replacing_preset(config.output / "model") as folder:
        actor.causal_lm.save_to_preset(str(folder))
    progress.finish(report)
    return report


def read_pairs(config, preprocessor, train, held_out, template):
    """Returns the pairs to learn from, and those that are kept back."""
    common = {
        "max_length": config.max_length,
        "template": template,
        "on_error": config.on_error,
        "drop_longer_than": config.drop_longer_than,
        "seed": config.seed,
    }
    pairs = rlhf.data.preferences(
        train, preprocessor, config.batch_size, drop_remainder=True, **common
    )
    unseen = rlhf.data.preferences(
        held_out, preprocessor, config.batch_size, shuffle=False, **common
    )
    print(f"{len(train)} pairs, {len(held_out)} held out; {pairs.report}")
    return pairs, unseen


def read_prompts(config, records, template):
    """Returns the prompts that are answered before and after."""

    def read(rows):
        return rlhf.data.records.preference_texts(rows, template)

    return rlhf.data.records.select(records, read, config.on_error).values[0][: config.samples]


def measure(config, trainer, actor, unseen, prompts, template, verbose):
    """Returns the metrics on held-out pairs, and responses to the prompts."""
    found = trainer.evaluate(unseen, verbose=verbose, return_dict=True)
    if not prompts:
        return found, []
    return found, actor.generate(
        prompts,
        rlhf.Sampler(config.response_length),
        seed=config.seed,
        jit_compile=config.jit_compile,
        parse_special=template != "plain",
    )


def accuracies(scores, records):
    """Returns how often the chosen response has the higher score, by source too."""
    scores = np.asarray(scores, "float64")
    # Of a ranking, the best must beat all others.
    chosen, rejected = scores[:, 0], scores[:, 1:].max(axis=1)
    sourced = [i for i, record in enumerate(records) if "source" in record]
    by_source = {}
    if sourced:
        names = [str(records[i]["source"]) for i in sourced]
        by_source = rlhf.evaluation.accuracy_by_group(chosen[sourced], rejected[sourced], names)
    return {
        "accuracy": rlhf.evaluation.preference_accuracy(chosen, rejected)._asdict(),
        "by_source": {source: accuracy._asdict() for source, accuracy in by_source.items()},
    }


def build(config, causal_lm, response_length, updates):
    """Returns the compiled trainer."""
    loss = None
    # ORPO needs no reference; the others compare with the policy at the start.
    if config.method == "orpo":
        trainer = rlhf.ORPO(causal_lm, coef=config.coef, response_length=response_length)
    else:
        method = {"dpo": rlhf.DPO, "ipo": rlhf.IPO, "kto": rlhf.KTO}[config.method]
        trainer = method(causal_lm, beta=config.beta, response_length=response_length)
    if config.label_smoothing:
        loss = rlhf.losses.BradleyTerry(label_smoothing=config.label_smoothing)
    rate = keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, updates, end_learning_rate=0.0
    )
    trainer.compile(
        keras.optimizers.Adam(rate, epsilon=1e-5),
        loss=loss,
        metrics=[rlhf.metrics.PreferenceAccuracy(), rlhf.metrics.PreferenceMargin()],
        # Keras cannot compile with XLA around several replicas.
        jit_compile=config.jit_compile and rlhf.cluster.replicas() == 1,
    )
    return trainer


def show(report):
    """Prints the figures as tables."""
    print(f"\n{'held-out pairs':<24}{'before':>10}{'after':>10}")
    for name in report["before"]:
        print(f"{name:<24}{report['before'][name]:>10.3f}{report['after'][name]:>10.3f}")
    groups = {"all pairs": report["accuracy"], **report["by_source"]}
    print(f"\n{'after':<24}{'pairs':>7}{'accuracy':>10}   95 % interval")
    for name, x in groups.items():
        interval = f"{x['low']:.3f} to {x['high']:.3f}"
        print(f"{name:<24}{x['pairs']:>7}{x['accuracy']:>10.3f}   {interval}")
    for sample in report["samples"]:
        print(f"\n  prompt: {sample['prompt']!r}")
        for moment in ("before", "after"):
            print(f"{moment:>8}: {sample[moment]!r}")


if __name__ == "__main__":
    run(main, Config)
