"""Pretrains the small story model that comes with the package (`kerasrlhf/presets/tiny_stories`).

A small Llama 3 of keras-hub with its own byte-level tokenizer learns from stories that a teacher
model writes, mixed with real ones, and is then finished on whole real stories. From the root of
the repository:

    python recipes/pretrain_tiny.py --output kerasrlhf/presets/tiny_stories
"""

import dataclasses
import gzip
import json
import pathlib
import re

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import tokenizers

import kerasrlhf as rlhf

# `Llama3Tokenizer` expects all but the first of these; padding must be id 0.
SPECIAL_TOKENS = ["<|pad|>", "<|begin_of_text|>", "<|end_of_text|>"]
SPECIAL_TOKENS += ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Size and training of the model.

    Args:
        stories: Real stories to learn from, compressed JSON lines with `text`.
        test_stories: Real stories for the figures at the end.
        teacher: A keras-hub preset of a language model that writes the other stories.
        sampled: Where the teacher's stories are kept; read when it exists.
        output: The folder of the preset.
        rounds: Sampling rounds; the temperature rises from 0.7 to 1 in every four of them.
        rows: Stories of a round.
        vocabulary_size: Tokens, with padding (0), start and end.
        length: Context in tokens.
        layers: Transformer layers.
        width: Size of the hidden states.
        heads: Attention heads; half as many for keys and values.
        batch_size: Rows of an update.
        epochs: Passes over the mixture of sampled and real text.
        final_epochs: Passes over whole real stories; the best one on held-out stories is kept.
        learning_rate: Highest rate of the mixture; falls to a tenth in a cosine.
        final_learning_rate: Highest rate of the last phase; falls to zero in a cosine.
        held_out: Real training stories kept back to choose the last epoch.
        jit_compile: Compile with XLA.
        seed: Of everything random.
    """

    stories: pathlib.Path = pathlib.Path("../shared/data/tinystories_train.jsonl.gz")
    test_stories: pathlib.Path = pathlib.Path("../shared/data/tinystories_test.jsonl.gz")
    teacher: pathlib.Path = pathlib.Path("../shared/models/stories260k/keras")
    sampled: pathlib.Path = pathlib.Path("runs/pretrain_tiny/sampled.jsonl.gz")
    output: pathlib.Path = pathlib.Path("runs/pretrain_tiny/preset")
    rounds: int = 52
    rows: int = 256
    vocabulary_size: int = 2048
    length: int = 256
    layers: int = 4
    width: int = 160
    heads: int = 4
    batch_size: int = 16
    epochs: int = 5
    final_epochs: int = 4
    learning_rate: float = 4e-3
    final_learning_rate: float = 6e-4
    held_out: int = 72
    jit_compile: bool = True
    seed: int = 0

    def __post_init__(self):
        rlhf.cli.check_ranges(self, zero=["seed"], multiples={"width": "heads"})


def read(path):
    """Returns the texts of a file of compressed JSON lines."""
    if not path.exists():
        raise ValueError(f"No stories at {path}. Give a .jsonl.gz file whose lines have `text`.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def write(actor, rows, temperature, seed, jit_compile):
    """Lets a language model write.

    Returns:
        `rows` pairs: a text, and whether the model ended it within its context.
    """
    preprocessor = actor.causal_lm.preprocessor
    tokenizer, length = preprocessor.tokenizer, preprocessor.sequence_length
    # Models that know no end begin the next story instead.
    stops = (tokenizer.end_token_id, tokenizer.start_token_id)
    sampler = rlhf.Sampler(length - 1, temperature, stop_token_ids=stops)
    starts = np.full((rows, 1), tokenizer.start_token_id, "int32")
    prompts = {"token_ids": starts, "padding_mask": np.ones((rows, 1), bool)}
    samples = actor.generate(prompts, sampler, seed=seed, jit_compile=jit_compile)
    inside = samples.response_mask.numpy() & ~np.isin(samples.token_ids, stops)
    ids = zip(samples.token_ids.numpy(), inside, strict=True)
    texts = [tokenizer.detokenize(row[mask].tolist()).strip() for row, mask in ids]
    return list(zip(texts, samples.ended.numpy().tolist(), strict=True))


def is_good(text):
    """Returns whether a text has a usual length, ends like a sentence and says nothing twice."""
    sentences = [s for s in re.split(r'(?<=[.!?])["”]?\s+', text) if len(s) > 12]
    ended = len(text) >= 200 and re.search(r'[.!?]["”]?$', text)
    return len(set(sentences)) == len(sentences) > 2 and bool(ended)


def teacher_stories(config, teacher):
    """Returns good stories of the teacher at several temperatures.

    Cool ones read better; warm ones keep the student's probabilities calibrated.
    """
    if not config.sampled.exists():
        actor, texts = rlhf.ActorCritic(teacher), []
        # Sampling is slow: the stories are kept in a file, and read when it exists.
        for i in range(config.rounds):
            temperature = 0.7 + 0.1 * (i % 4)
            stories = write(actor, config.rows, temperature, i, config.jit_compile)
            texts += [text for text, ended in stories if ended and is_good(text)]
            print(f"round {i + 1} of {config.rounds}: {len(texts)} stories", flush=True)
        with (
            rlhf.files.replacing(config.sampled) as path,
            gzip.open(path, "wt", encoding="utf-8") as file,
        ):
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return read(config.sampled)


def make_tokenizer(texts, size):
    """Returns a byte-level `Llama3Tokenizer` of `size` tokens, trained on `texts`."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        # All 256 bytes, so that every text can be tokenized.
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    model = json.loads(model.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    return keras_hub.tokenizers.Llama3Tokenizer(vocabulary=model["vocab"], merges=merges)


def make_model(config):
    """Returns a new `Llama3CausalLM`; untied, because keras-hub forgets tied embeddings."""
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=config.vocabulary_size,
        num_layers=config.layers,
        num_query_heads=config.heads,
        num_key_value_heads=config.heads // 2,
        hidden_dim=config.width,
        intermediate_dim=config.width * 8 // 3 // 16 * 16,
        rope_max_wavelength=10_000,
        layer_norm_epsilon=1e-5,
    )
    return keras_hub.models.Llama3CausalLM(backbone)


def token_rows(tokenizer, texts):
    """Returns the token ids of each text between the start and the end token."""
    start, end = tokenizer.start_token_id, tokenizer.end_token_id
    return [np.array([start, *ids, end], "int32") for ids in tokenizer(texts)]


def windows(rows, length):
    """Returns all tokens in rows of `length + 1`; rows overlap by one token."""
    stream = np.concatenate(rows)
    # Rows of inputs and next tokens: the last token of a row is the first of the next.
    starts = range(0, len(stream) - length, length)
    return np.stack([stream[start : start + length + 1] for start in starts])


def whole_stories(tokenizer, texts, length):
    """Returns one story per row from position 0 on, cut or padded to `length + 1`."""
    filled = np.full((len(texts), length + 1), tokenizer.pad_token_id, "int32")
    for i, row in enumerate(token_rows(tokenizer, texts)):
        filled[i, : len(row)] = row[: length + 1]
    return filled


def dataset(rows, batch_size, tokenizer):
    """Returns full batches of (inputs, next tokens, weights), in a new order at every pass.

    A start token is never to be predicted: what follows an end is not the model's to decide.
    """
    # Position t predicts token t + 1.
    mask, targets = rows != tokenizer.pad_token_id, rows[:, 1:]
    weights = mask[:, 1:] & (targets != tokenizer.start_token_id)
    inputs = {"token_ids": rows[:, :-1], "padding_mask": mask[:, :-1]}
    data = tf.data.Dataset.from_tensor_slices((inputs, targets, weights.astype("float32")))
    return data.shuffle(len(rows), seed=0).batch(batch_size, drop_remainder=True)


def train(model, data, epochs, learning_rate, end, jit_compile, validation=None):
    """Trains with Muon for matrices and Adam for the rest; the rate falls to a fraction `end`."""
    # A short warmup from a tenth of the rate, then a cosine.
    steps = epochs * len(data)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 10, steps, end, warmup_target=learning_rate, warmup_steps=steps // 20
    )
    optimizer = keras.optimizers.Muon(
        schedule, weight_decay=0.05, adam_beta_2=0.98, global_clipnorm=1.0
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, weighted_metrics=[], jit_compile=jit_compile)
    best = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    callbacks = [best] if validation else []
    model.fit(
        data,
        validation_data=validation,
        epochs=epochs,
        callbacks=callbacks,
        shuffle=False,  # the data set does it
        verbose=2,
    )


def save(model, folder):
    """Saves a preset that computes in float32 and stores its weights in float16."""
    # float16 halves the file; loading converts the weights to float32.
    half = type(model.backbone).from_config(model.backbone.get_config() | {"dtype": "float16"})
    half.set_weights(model.backbone.get_weights())
    with rlhf.files.replacing_preset(folder) as temporary:
        model.save_to_preset(str(temporary))
        half.save_weights(str(temporary / "model.weights.h5"))


def report(config, model, teacher):
    """Prints losses of student and teacher on the test stories, and a few samples."""
    texts = read(config.test_stories)
    # Both read the same text: the words before whichever context is the first to be full.
    for lm in (model, teacher):
        tokens, length = lm.preprocessor.tokenizer, lm.preprocessor.sequence_length
        texts = [tokens.detokenize(tokens(text)[: length - 1]) for text in texts]
    texts = [text.rpartition(" ")[0] for text in texts]
    nats, counts = rlhf.evaluation.negative_log_likelihood(model, texts)
    theirs, _ = rlhf.evaluation.negative_log_likelihood(teacher, texts)
    characters = sum(map(len, texts))
    print(f"{model.count_params():,} parameters, {config.vocabulary_size} tokens")
    print(
        f"held-out perplexity {np.exp(nats.sum() / counts.sum()):.3f} a token; nats a character "
        f"{nats.sum() / characters:.4f}, teacher {theirs.sum() / characters:.4f}, "
        f"ratio {nats.sum() / theirs.sum():.3f}"
    )
    actor = rlhf.ActorCritic(model)
    for temperature in (0.7, 1.0):
        stories = write(actor, 32, temperature, config.seed, config.jit_compile)
        print(f"\n[temperature {temperature}] {sum(ended for _, ended in stories)} of 32 ended")
        print("\n\n".join(text for text, _ in stories[:2]))


def main(config):
    """Samples, trains, saves and reports; returns the `CausalLM`."""
    keras.utils.set_random_seed(config.seed)
    if not config.teacher.exists():
        raise ValueError(f"No teacher at {config.teacher}. Give a folder with a keras-hub preset.")
    # 1. Stories of the teacher and real ones, and a tokenizer for both.
    teacher = keras_hub.models.CausalLM.from_preset(str(config.teacher))
    real, sampled = read(config.stories), teacher_stories(config, teacher)
    held_out, real = real[: config.held_out], real[config.held_out :]
    tokenizer = make_tokenizer(sampled + real, config.vocabulary_size)
    model = make_model(config)

    # 2. Learn the language from the mixture, in windows of a shuffled stream of tokens.
    rows = token_rows(tokenizer, sampled + real)
    order = np.random.default_rng(config.seed).permutation(len(rows))
    mixture = windows([rows[i] for i in order], config.length)
    print(f"{len(sampled)} sampled stories, {len(real)} real ones, {mixture.size:,} tokens")
    data = dataset(mixture, config.batch_size, tokenizer)
    train(model, data, config.epochs, config.learning_rate, 0.1, config.jit_compile)
    # 3. Finish on whole real stories, which begin at position 0 as prompts do.
    data, validation = (
        dataset(whole_stories(tokenizer, part, config.length), config.batch_size, tokenizer)
        for part in (real, held_out)
    )
    rate = config.final_learning_rate
    train(model, data, config.final_epochs, rate, 0.0, config.jit_compile, validation)
    # Only now, because `fit` would run it on the token ids.
    model.preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer, config.length)
    save(model, config.output)
    report(config, model, teacher)
    return model


if __name__ == "__main__":
    rlhf.cli.run(main, Config)
