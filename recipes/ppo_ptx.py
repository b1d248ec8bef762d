"""PPO that keeps its language: four ways to mix language modeling into reinforcement learning.

    python recipes/ppo_ptx.py
    python recipes/ppo_ptx.py --ptx-coef 0 --lm-every 2 --lm-steps 4
    python recipes/ppo_ptx.py --model runs/sft/model --reward runs/reward/model \\
        --prompts prompts.jsonl --texts texts.jsonl

`ptx_coef` adds the loss of a batch of texts to every update (PPO-ptx, Ouyang et al. 2022).
`lm_every` puts steps of language modeling between the iterations. `reverse_coef` adds the loss of
predicting the prompt from the response, and `reverse_reward` rewards responses that their prompt
can be recognized from. The report compares score, KL and the perplexity of held-out texts before
and after. `output` receives the policy (`model`, a keras-hub preset), `report.json` and curves for
TensorBoard (`logs`). A trial of seconds: `python recipes/ppo_ptx.py --preset smoke`.
"""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from kerasrlhf.cli.recipe import Progress, check_ranges, run

import keras

import kerasrlhf as rlhf


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a policy with PPO and language modeling.

    Args:
        prompts: A .jsonl, .json, .csv (also .gz) or .parquet file, or the name of a TFDS dataset;
            none for openings of unhappy stories.
        texts: A source of records with `text`, or with `prompt` and `response`, to model; none for
            stories that the model writes before it is trained.
        reward: A folder of a saved reward model, or a Python function of prompts and responses,
            as package.module:function or path/to/file.py:function.
        model: The initial policy: a keras-hub preset, a folder of one, or a Hugging Face folder.
        output: A folder for the results.
        ptx_coef: Weight of the texts' loss in every update; 0 for none.
        lm_every: Iterations between steps of language modeling alone; none for no such steps.
        lm_steps: Such steps in a row.
        reverse_coef: Weight of the loss of the prompt given the response; 0 for none.
        reverse_reward: Weight in the score of the prompt's mean log-probability given the
            response; 0 for none.
        iterations: Batches of prompts to sample, score and learn from.
        batch_size: Prompts of an iteration.
        text_batch_size: Texts of an update.
        text_length: Tokens of a text.
        template: How messages become a text: plain, chatml, gemma, llama3, mistral, phi3; a Python
            function (package.module:function or path/to/file.py:function); or a model's folder.
        held_out: Prompts kept back for the report; a multiple of batch_size. Of `texts` as many.
        response_length: Tokens of a response at most.
        temperature: Of sampling.
        learning_rate: Of Adam at the start; falls linearly to 0. Large models want 1e-6.
        kl_coef: Score units per nat of KL from the initial policy.
        update_epochs: Passes over the responses of an iteration.
        overwrite: Remove the results of an earlier run in output.
        strategy: The devices to train on: one, all of this machine (mirrored), those of other
            processes too (workers), or what there is (auto).
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    prompts: str | None = None
    texts: str | None = None
    reward: str = "kerasrlhf.tasks.sentiment:happy_words"
    model: str = rlhf.presets.TINY_STORIES
    output: pathlib.Path = pathlib.Path("runs/ppo_ptx")
    ptx_coef: float = 0.5
    lm_every: int | None = None
    lm_steps: int = 1
    reverse_coef: float = 0.0
    reverse_reward: float = 0.0
    iterations: int = 100
    batch_size: int = 64
    text_batch_size: int = 16
    text_length: int = 96
    template: str = "plain"
    held_out: int = 64
    response_length: int = 32
    temperature: float = 1.0
    learning_rate: float = 3e-4
    kl_coef: float = 0.05
    update_epochs: int = 2
    overwrite: bool = False
    strategy: Literal["auto", "one", "mirrored", "workers"] = "auto"
    jit_compile: bool = True
    seed: int = 0

    presets: ClassVar[dict] = {
        "smoke": {
            "output": pathlib.Path("runs/smoke/ppo_ptx"), "lm_every": 1, "reverse_coef": 0.1,
            "reverse_reward": 0.1, "iterations": 1, "batch_size": 4, "text_batch_size": 4,
            "text_length": 16, "held_out": 4, "response_length": 6, "update_epochs": 1,
            "jit_compile": False,
        }
    }  # fmt: skip

    def __post_init__(self):
        check_ranges(
            self,
            zero=["kl_coef", "ptx_coef", "reverse_coef", "reverse_reward", "seed"],
            at_least={"text_length": 9},
            multiples={"held_out": "batch_size"},
        )
        if self.lm_steps != 1 and self.lm_every is None:
            raise ValueError(
                f"`--lm-steps` has no effect without `--lm-every`. Received: {self.lm_steps}."
            )


def main(config):
    progress = Progress(config.output, overwrite=config.overwrite)
    keras.utils.set_random_seed(config.seed)
    # 1. Prompts for reinforcement, and texts for language modeling.
    actor = rlhf.ActorCritic.from_preset(config.model)
    prompts, unseen = read_prompts(config, actor.causal_lm.preprocessor)
    progress.step("Texts")
    unseen_texts, texts = read_texts(config, actor)
    print(f"{len(texts)} texts, for example\n  {texts[0]!r}")
    ppo, judge = build(config, actor, texts)

    def measure():
        found = judge.evaluate(unseen, verbose=progress.verbose, return_dict=True)
        return {**found, "perplexity": rlhf.evaluation.perplexity(actor.causal_lm, unseen_texts)}

    # 2. Measure, train, and measure again: the score should rise, the perplexity should not.
    progress.step("Held-out prompts and texts before training")
    before = measure()
    progress.step("Training")
    ppo.fit(
        prompts.repeat(),
        steps_per_epoch=config.iterations,
        shuffle=False,  # the dataset shuffles itself
        callbacks=[rlhf.callbacks.TensorBoard(config.output / "logs")],
        verbose=progress.verbose,
    )
    progress.step("Held-out prompts and texts after training")
    after = measure()
    # 3. Save the policy, and report.
    actor.save_to_preset(config.output / "model")
    for name in before:
        print(f"held-out {name:<11}{before[name]:>10.3f}{after[name]:>10.3f}")
    report = {"config": dataclasses.asdict(config), "before": before, "after": after}
    progress.finish(report)
    return report


def build(config, actor, texts):
    """Returns the compiled trainer, and another whose score is the reward alone."""
    common = {
        "actor": actor,
        "reward": rlhf.load_reward(config.reward),
        "sampler": rlhf.Sampler(config.response_length, temperature=config.temperature),
        "kl": rlhf.FixedKL(config.kl_coef),
        "seed": config.seed,
    }
    options = {"update_epochs": config.update_epochs}
    if config.ptx_coef or config.lm_every:
        # A loss in every update, or steps between iterations.
        options["texts"] = rlhf.LanguageModeling(
            demonstrations(config, actor.causal_lm.preprocessor, texts),
            coef=config.ptx_coef,
            every=config.lm_every,
            steps=config.lm_steps,
        )
    if config.reverse_coef or config.reverse_reward:
        # Language modeling in reverse: from the response to its prompt.
        options["prompt_prediction"] = rlhf.PromptPrediction(
            coef=config.reverse_coef, reward=config.reverse_reward
        )
    # With `reverse_reward` the trainer's own score has another meaning: the judge has none of it.
    ppo, judge = rlhf.PPO(**common, **options), rlhf.PPO(**common)
    steps = ppo.updates_in(config.iterations)
    rate = keras.optimizers.schedules.PolynomialDecay(config.learning_rate, steps, 0.0)
    ppo.compile(keras.optimizers.Adam(rate, epsilon=1e-5), jit_compile=config.jit_compile)
    judge.compile(jit_compile=config.jit_compile)
    return ppo, judge


def read_prompts(config, preprocessor):
    """Returns shuffled prompts to train on, and those that are kept back."""
    source = config.prompts or rlhf.tasks.sentiment.unhappy_openings()
    records = rlhf.data.records.load(source, text_column="prompt")
    train, held_out = rlhf.data.split(records, config.held_out, config.seed)
    template = rlhf.data.dialogue.load_template(config.template)
    batches = {"batch_size": config.batch_size, "pad_to_multiple_of": 8, "template": template}
    print(f"{len(train)} prompts, {len(held_out)} held out")
    return (
        rlhf.data.prompts(train, preprocessor, seed=config.seed, **batches),
        rlhf.data.prompts(held_out, preprocessor, shuffle=False, **batches),
    )


def demonstrations(config, preprocessor, texts):
    """Returns batches of texts to model."""
    return rlhf.data.demonstrations(
        [{"text": text} for text in texts],
        preprocessor,
        config.text_batch_size,
        max_length=config.text_length,
        end_token_id=None,  # the texts may go on
        seed=config.seed,
        drop_remainder=True,
    )


def read_texts(config, actor):
    """Returns texts to measure perplexity on, and texts to learn from."""
    if config.texts:
        records = rlhf.data.records.load(config.texts)
        template = rlhf.data.dialogue.load_template(config.template)
        pairs = rlhf.data.records.demonstration_texts(records, template)
        texts = [prompt + response for prompt, response in zip(*pairs, strict=True)]
        train, held_out = rlhf.data.split(texts, config.held_out, config.seed)
        return held_out, train
    # Without texts, the model's own stories show how it wrote before training.
    openings = ["Once upon a time", "One day", "There was"] * 64  # of at most 8 tokens
    sampler = rlhf.Sampler(config.text_length - 8, temperature=config.temperature)
    written = actor.generate(openings, sampler, config.seed, jit_compile=config.jit_compile)
    return rlhf.tasks.stories.HELD_OUT, [a + b for a, b in zip(openings, written, strict=True)]


if __name__ == "__main__":
    run(main, Config)
