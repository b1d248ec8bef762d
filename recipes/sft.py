"""Step 1 of RLHF: supervised fine-tuning on demonstrations.

    python recipes/sft.py --model gpt2_base_en --data demos.jsonl --output runs/sft

The data has records with `prompt` and `response` (or `completion`), or with `text` or `messages`.
Only response tokens are learned. `output` receives the model (`model`, a keras-hub preset, which
`recipes/reward_model.py` and `recipes/ppo.py` take as `--model`), `report.json`, and curves for
TensorBoard (`logs`). A trial of seconds: `python recipes/sft.py --preset smoke`.
"""

import dataclasses
import math
import pathlib
from typing import ClassVar, Literal

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tunes a language model on demonstrations.

    Args:
        data: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset.
        model: A keras-hub preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        batch_size: Rows of an update.
        epochs: Passes over the data.
        learning_rate: Of Adam at the start; falls linearly to 0. Large models want 1e-5.
        response_column: The column to imitate, such as chosen; none for the usual names.
        all_turns: Whether all turns of the assistant are learned, not only the last one.
        max_length: Tokens of a row, prompt and response; none for what the model takes.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        on_error: What to do with rows that cannot be used: raise an error, or skip and count them.
        drop_longer_than: Tokens; longer rows are left out and counted. None for none.
        held_out: Fraction of the records that is kept back to measure perplexity.
        lora_rank: Rank of LoRA adapters, merged when the model is saved; 0 to train all weights.
        dtype: Of the weights, such as mixed_bfloat16; none for the preset's own.
        samples: Responses shown before and after.
        sample_length: Their tokens at most.
        temperature: Theirs.
        resume: Keep a backup of every epoch, and continue from it if there is one.
        overwrite: Remove the results of an earlier run in output.
        strategy: The devices to train on: one, all of this machine (mirrored), those of other
            processes too (workers), or what there is (auto).
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    data: str
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/sft")
    batch_size: int = 16
    epochs: int = 1
    learning_rate: float = 1e-4
    response_column: str | None = None
    all_turns: bool = False
    max_length: int | None = None
    template: str = "plain"
    on_error: Literal["raise", "skip"] = "raise"
    drop_longer_than: int | None = None
    held_out: float = 0.1
    lora_rank: int = 0
    dtype: str | None = None
    samples: int = 3
    sample_length: int = 48
    temperature: float = 0.7
    resume: bool = False
    overwrite: bool = False
    strategy: Literal["auto", "one", "mirrored", "workers"] = "auto"
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict] = {
        "smoke": {
            "data": str(pathlib.Path(__file__).with_name("smoke.jsonl")),
            "output": pathlib.Path("runs/smoke/sft"),
            "batch_size": 4,
            "epochs": 2,
            "learning_rate": 1e-3,
            "held_out": 0.25,
            "samples": 2,
            "sample_length": 12,
            "jit_compile": False,
        }
    }

    def __post_init__(self):
        check_ranges(
            self, zero=["lora_rank", "samples", "seed", "temperature"], fractions=["held_out"]
        )


def main(config):
    progress = Progress(config.output, config.resume, config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Split the records into demonstrations to learn from and others to measure on.
    records = rlhf.data.records.load(config.data, on_error=config.on_error)
    if config.response_column:
        records = imitating(records, config.response_column)
    train, held_out = rlhf.data.split(records, config.held_out, config.seed)
    # 2. The language model; `ActorCritic` serves to sample responses.
    options = {"dtype": config.dtype} if config.dtype else {}
    actor = rlhf.ActorCritic.from_preset(config.model, **options)
    lm = actor.causal_lm
    if config.lora_rank:
        lm.backbone.enable_lora(config.lora_rank)
    # 3. Demonstrations as batches of token ids, and the loss.
    template = rlhf.data.dialogue.load_template(config.template)
    demos, unseen = read_demonstrations(config, lm.preprocessor, train, held_out, template)
    compile_lm(config, lm, updates=config.epochs * len(demos))

    prompts, references = opening(held_out, config.samples, template, config.on_error)
    sampler = rlhf.Sampler(config.sample_length, temperature=config.temperature)

    def measure():
        nats = float(lm.evaluate(unseen, verbose=progress.verbose, return_dict=True)["nats"])
        options = {"jit_compile": config.jit_compile, "parse_special": template != "plain"}
        if not prompts:
            return nats, []
        return nats, actor.generate(prompts, sampler, config.seed, **options)

    # 4. Measure, train, and measure again.
    progress.step("Held-out demonstrations before training")
    nats_before, before = measure()
    callbacks = [rlhf.callbacks.TensorBoard(config.output / "logs")]
    if config.resume:
        callbacks.append(keras.callbacks.BackupAndRestore(config.output / "state"))
    progress.step("Training")
    lm.fit(
        demos,
        validation_data=unseen,
        epochs=config.epochs,
        shuffle=False,  # the dataset shuffles itself
        callbacks=callbacks,
        verbose=progress.verbose,
    )
    progress.step("Held-out demonstrations after training")
    nats, after = measure()
    # 5. Save the model, and report.
    with rlhf.files.replacing_preset(config.output / "model") as folder:
        lm.save_to_preset(str(folder))
    report = {
        "config": dataclasses.asdict(config),
        "nats_per_token": {"before": nats_before, "after": nats},
        "perplexity": {"before": math.exp(nats_before), "after": math.exp(nats)},
        "samples": [
            {"prompt": p, "before": b, "after": a}
            for p, b, a in zip(prompts, before, after, strict=True)
        ],
    }
    show(report, references)
    progress.finish(report)
    return report


def read_demonstrations(config, preprocessor, train, held_out, template):
    """Returns the demonstrations to learn from, and those that are kept back."""
    common = {
        "max_length": config.max_length,
        "all_turns": config.all_turns,
        "template": template,
        "on_error": config.on_error,
        "drop_longer_than": config.drop_longer_than,
        "seed": config.seed,
    }
    demos = rlhf.data.demonstrations(
        train, preprocessor, config.batch_size, drop_remainder=True, **common
    )
    unseen = rlhf.data.demonstrations(
        held_out, preprocessor, config.batch_size, shuffle=False, **common
    )
    print(f"{demos.report.rows} demonstrations, {unseen.report.rows} held out; {demos.report}")
    return demos, unseen


def compile_lm(config, lm, updates):
    """Compiles the language model with a loss in nats per response token."""
    rate = keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, updates, end_learning_rate=0.0
    )
    lm.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        # The loss is a mean of batches; this metric is the mean over all response tokens.
        weighted_metrics=[
            keras.metrics.SparseCategoricalCrossentropy(name="nats", from_logits=True)
        ],
        # Keras cannot compile with XLA around several replicas.
        jit_compile=config.jit_compile and rlhf.cluster.replicas() == 1,
    )


def imitating(records, column):
    """Returns records whose response is in another column."""
    if not all(column in row for row in records):
        raise ValueError(f"--response-column: not every record has a column {column!r}.")
    names = ("prompt", "ended")
    # Other columns would be read in place of the one that was asked for.
    kept = [{name: row[name] for name in names if name in row} for row in records]
    return [{**row, "response": record[column]} for row, record in zip(kept, records, strict=True)]


def opening(records, count, template, on_error):
    """Returns prompts to show (the first words if there is only a text) and their responses."""

    def read(rows):
        return rlhf.data.records.demonstration_texts(rows, template)

    # Twice as many records as needed: some of them may be left out.
    texts = rlhf.data.records.select(records[: 2 * max(count, 1)], read, on_error).values
    pairs = [(p, r) if p else split_words(r) for p, r in zip(*texts, strict=True)][:count]
    return [p[-400:] for p, _ in pairs], [r for _, r in pairs]


def split_words(text, words=5):
    """Returns the first words, and the rest unchanged."""
    prompt = " ".join(text.split(" ")[:words])
    return prompt, text[len(prompt) :]


def show(report, references):
    """Prints samples and perplexities."""
    for sample, reference in zip(report["samples"], references, strict=True):
        shown = {"prompt": sample["prompt"], "demonstration": reference, **sample}
        for name, text in shown.items():
            print(f"{name:>14}: {text!r}")
        print()
    before, after = report["perplexity"].values()
    print(f"perplexity on held-out responses: {before:.2f} -> {after:.2f}")


if __name__ == "__main__":
    run(main, Config)
