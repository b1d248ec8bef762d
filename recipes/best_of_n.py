"""Best of n: sample several responses, keep the best, and train the policy to give it at once.

    python recipes/best_of_n.py --n 8
    python recipes/best_of_n.py --model runs/sft/model --reward runs/reward/model \\
        --prompts prompts.jsonl

Choosing needs no training and moves the policy by at most `log n - (n - 1) / n` nats: the baseline
that reinforcement learning has to beat. Fine-tuning on the winners (rejection sampling, distilled)
pays for the n samples once. The report has the scores of one sample and of the best of n on
held-out prompts, before and after, and how far the distilled policy has gone. `output` receives the
winners (`winners.jsonl`, demonstrations for `recipes/sft.py`), the policy (`model`, a keras-hub
preset), `report.json` and curves for TensorBoard (`logs`). A trial of seconds:
`python recipes/best_of_n.py --preset smoke`.
"""

import dataclasses
import json
import pathlib
from typing import ClassVar

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras
import numpy as np

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """Chooses the best of n responses and distils the choice.

    Args:
        prompts: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset;
            none for openings of unhappy stories.
        reward: A folder of a saved reward model, or a Python function of prompts and responses,
            as package.module:function or path/to/file.py:function.
        model: The policy: a keras-hub preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        n: Responses to every prompt, at least 2.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        max_prompts: Prompts to learn from at most; none for all.
        held_out: Prompts kept back for the report.
        batch_size: Prompts answered at once, n rows each; winners of an update.
        response_length: Tokens of a response at most.
        temperature: Of sampling.
        epochs: Passes over the winners.
        learning_rate: Of Adam at the start; falls linearly to 0. Large models want 1e-5.
        overwrite: Remove the results of an earlier run in output.
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    prompts: str | None = None
    reward: str = "kerasrlhf.tasks.sentiment:happy_words"
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/best_of_n")
    n: int = 8
    template: str = "plain"
    max_prompts: int | None = None
    held_out: int = 64
    batch_size: int = 32
    response_length: int = 32
    temperature: float = 1.0
    epochs: int = 3
    learning_rate: float = 3e-4
    overwrite: bool = False
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict] = {
        "smoke": {
            "output": pathlib.Path("runs/smoke/best_of_n"), "n": 2, "max_prompts": 8,
            "held_out": 4, "batch_size": 4, "response_length": 6, "epochs": 1,
            "jit_compile": False,
        }
    }  # fmt: skip

    def __post_init__(self):
        check_ranges(self, zero=["seed"], at_least={"n": 2})


def main(config):
    progress = Progress(config.output, overwrite=config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. The policy twice: one copy is trained, the other stays to measure the KL to.
    actor, start = (rlhf.ActorCritic.from_preset(config.model) for _ in range(2))
    reward = rlhf.load_reward(config.reward)
    source = config.prompts or rlhf.tasks.sentiment.unhappy_openings()
    template = rlhf.data.dialogue.load_template(config.template)
    records = rlhf.data.records.load(source, text_column="prompt")
    rlhf.data.records.prompt_texts(records, template)  # raises for what is not a prompt
    # 2. Shuffle the prompts and hold some back.
    train, held_out = (
        [record["prompt"] for record in part]
        for part in rlhf.data.split(records, config.held_out, config.seed)
    )
    train = train[: config.max_prompts]
    sampler = rlhf.Sampler(config.response_length, temperature=config.temperature)

    def sample(prompts, seed):
        options = {"batch_size": config.batch_size, "jit_compile": config.jit_compile}
        options["template"] = template
        return rlhf.best_of_n(actor, reward, prompts, config.n, sampler, seed=seed, **options)

    def measure():
        scores = sample(held_out, config.seed + 1).scores
        return {
            "score": float(scores.mean()),
            "best_of_n": float(scores.max(axis=1).mean()),
            "kl": divergence(actor, start, held_out, sampler, config, template),
        }

    # 3. The score of one sample and of the best of n, before training.
    progress.step(f"Sampling {config.n} responses to {len(held_out)} held-out prompts")
    before = measure()
    # 4. Choose the best of n responses to each training prompt.
    progress.step(f"Sampling {config.n} responses to {len(train)} prompts")
    found = sample(train, config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found.demonstrations()]
    (config.output / "winners.jsonl").write_text("".join(lines), encoding="utf-8")
    winners = found.demonstrations()
    if not winners:
        raise ValueError("Every winner is empty: the policy ends before its first word.")
    # 5. Distill the choice: imitate the winners.
    progress.step(f"Fine-tuning on {len(winners)} winners")
    distil(config, actor.causal_lm, winners, template, progress.verbose)
    # 6. Measure again: one sample should score more than before.
    progress.step("Held-out prompts after training")
    after = measure()
    actor.save_to_preset(config.output / "model")

    bound = rlhf.best_of_n_kl(config.n)
    report = {
        "config": dataclasses.asdict(config),
        "train": {"mean": float(found.scores.mean()), "best": float(found.scores.max(1).mean())},
        "kl_bound": bound,
        "before": before,
        "after": after,
    }
    print(f"\n{'held-out prompts':<20}{'before':>10}{'distilled':>12}")
    for name in before:
        print(f"{name:<20}{before[name]:>10.3f}{after[name]:>12.3f}")
    print(f"choosing the best of {config.n} is a KL of at most {bound:.3f} nats a response")
    progress.finish(report)
    return report


def distil(config, lm, winners, template, verbose):
    """Fine-tunes on the best responses."""
    demos = rlhf.data.demonstrations(
        winners,
        lm.preprocessor,
        min(config.batch_size, len(winners)),
        seed=config.seed,
        drop_remainder=True,
        template=template,
    )
    rate = keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, config.epochs * len(demos), end_learning_rate=0.0
    )
    lm.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        jit_compile=config.jit_compile,
    )
    lm.fit(
        demos,
        epochs=config.epochs,
        shuffle=False,  # the dataset shuffles itself
        callbacks=[rlhf.callbacks.TensorBoard(config.output / "logs")],
        verbose=verbose,
    )


def divergence(actor, start, prompts, sampler, config, template):
    """KL of a policy to its start in nats a response, estimated on a sample to every prompt."""
    preprocessor = actor.causal_lm.preprocessor
    (batch,) = rlhf.data.prompts(
        [{"prompt": prompt} for prompt in prompts],
        preprocessor,
        len(prompts),
        shuffle=False,
        template=template,
    )
    # Samples of the policy, with their log-probabilities under the policy and its start.
    sampled = actor.generate(batch, sampler, config.seed + 2, jit_compile=config.jit_compile)
    stats = start.token_stats(
        sampled.token_ids, sampled.padding_mask, temperature=config.temperature
    )
    # k1 per token, summed over the response, estimates the KL of whole responses.
    lead = rlhf.functional.kl.k1(sampled.logprobs, stats.logprobs)
    totals = rlhf.functional.masking.masked_sum(lead, sampled.response_mask, axis=-1)
    return float(np.mean(totals))


if __name__ == "__main__":
    run(main, Config)
