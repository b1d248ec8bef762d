"""Pretrains the small story model that comes with the package (`kerasrlhf/presets/tiny_stories`).

A Llama 3 shape of keras-hub with a byte-level tokenizer of its own learns from stories that a
teacher model writes, mixed with real ones, and is then finished on whole real stories. From the
root of the repository:

    python recipes/pretrain_tiny.py --output kerasrlhf/presets/tiny_stories
"""

import dataclasses
import gzip
import itertools
import json
import pathlib
import re

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import tokenizers

from kerasrlhf import cli

# `Llama3Tokenizer` expects all but the first of these; padding must be id 0.
SPECIAL_TOKENS = ["<|pad|>", "<|begin_of_text|>", "<|end_of_text|>"]
SPECIAL_TOKENS += ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What the model is made of and how long it learns.

    Args:
        stories: Real stories to learn from, compressed JSON lines with `text`.
        test_stories: Real stories for the figures at the end.
        teacher: A keras-hub preset of Llama shape that writes the other stories.
        sampled: Where the teacher's stories are kept; read when it exists.
        output: The folder of the preset.
        rounds: Sampling rounds, each of 256 rows of 512 tokens.
        vocabulary_size: Tokens, with padding (0), start and end.
        length: Context in tokens.
        layers: Transformer layers.
        width: Size of the hidden states.
        heads: Attention heads; half as many for keys and values.
        batch_size: Rows of an update.
        epochs: Passes over the mixture of sampled and real text.
        real_copies: How often real text stands in the mixture.
        final_epochs: Passes over whole real stories; the best one on held-out stories is kept.
        learning_rate: Highest rate of the mixture; falls to a tenth in a cosine.
        final_learning_rate: Highest rate of the last phase; falls to zero in a cosine.
        held_out: Real training stories kept back to choose the last epoch.
        seed: Of everything random.
    """

    stories: pathlib.Path = pathlib.Path("../shared/data/tinystories_train.jsonl.gz")
    test_stories: pathlib.Path = pathlib.Path("../shared/data/tinystories_test.jsonl.gz")
    teacher: pathlib.Path = pathlib.Path("../shared/models/stories260k/keras")
    sampled: pathlib.Path = pathlib.Path("runs/pretrain_tiny/sampled.jsonl.gz")
    output: pathlib.Path = pathlib.Path("runs/pretrain_tiny/preset")
    rounds: int = 31
    vocabulary_size: int = 2048
    length: int = 256
    layers: int = 4
    width: int = 160
    heads: int = 4
    batch_size: int = 16
    epochs: int = 5
    real_copies: int = 1
    final_epochs: int = 4
    learning_rate: float = 4e-3
    final_learning_rate: float = 6e-4
    held_out: int = 72
    seed: int = 0


def read(path):
    """The records of a file of compressed JSON lines: list of `dict` with `text`."""
    if not path.exists():
        raise ValueError(f"No stories at {path}. Give a .jsonl.gz file whose lines have `text`.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def sampler(lm, rows, segment=64):
    """A function that lets a model of Llama shape write `rows` streams of text at once.

    Args:
        lm: `keras_hub.models.LlamaCausalLM`.
        rows: Streams.
        segment: Tokens after which the key-value cache grows; one compiled program for each size.

    Returns:
        `write(length, temperatures, start, seed)`: token ids `(rows, length)`, the start excluded.
    """
    backbone = lm.backbone
    head_dim = backbone.hidden_dim // backbone.num_query_heads
    shape = (rows, 2, 0, backbone.num_key_value_heads, head_dim)

    @tf.function(jit_compile=True)
    def extend(token, caches, temperatures, position, seed):
        def step(i, token, caches, written):
            x, kept = backbone.token_embedding(token[:, None]), []
            for layer, cache in zip(backbone.transformer_layers, caches, strict=True):
                index = position + i
                x, cache = layer(
                    x, self_attention_cache=cache, self_attention_cache_update_index=index
                )
                kept.append(cache)
            logits = backbone.token_embedding(backbone.layer_norm(x), reverse=True)[:, 0]
            uniform = tf.random.stateless_uniform(tf.shape(logits), [seed, index], 1e-7, 1.0)
            gumbel = -tf.math.log(-tf.math.log(uniform))
            token = tf.argmax(logits / temperatures[:, None] + gumbel, -1, output_type=tf.int32)
            return i + 1, token, kept, tf.tensor_scatter_nd_update(written, [[i]], token[None])

        caches = [tf.pad(c, [[0, 0], [0, 0], [0, segment], [0, 0], [0, 0]]) for c in caches]
        state = (0, token, caches, tf.zeros((segment, rows), "int32"))
        _, token, caches, written = tf.while_loop(lambda i, *_: i < segment, step, state)
        return token, caches, tf.transpose(written)

    def write(length, temperatures, start, seed):
        token, written = tf.fill([rows], start), []
        caches = [tf.zeros(shape)] * backbone.num_layers
        for position in range(0, length, segment):
            token, caches, ids = extend(
                token, caches, temperatures, tf.constant(position), tf.constant(seed)
            )
            written.append(ids)
        return tf.concat(written, 1).numpy()

    return write


def split_stories(rows, tokenizer):
    """The good stories of token streams as records of `text` and `complete`.

    The last story of a row is rarely at its end; it is kept up to its last whole word, because
    half of the text would be lost otherwise and the stories left over would be the short ones.
    """
    records = []
    for row in rows:
        borders = [-1, *np.flatnonzero(row == tokenizer.start_token_id), len(row)]
        for first, last in itertools.pairwise(borders):
            text = tokenizer.detokenize(row[first + 1 : last].tolist())
            complete = bool(last < len(row))
            text = text.strip() if complete else text.rpartition(" ")[0]
            records.append({"text": text, "complete": complete})
    return [record for record in records if is_good(**record)]


def is_good(text, complete):
    """Whether a text is of a usual length, ends as a sentence does and says nothing twice."""
    sentences = [s for s in re.split(r'(?<=[.!?])["”]?\s+', text) if len(s) > 12]
    ended = len(text) >= 200 and re.search(r'[.!?]["”]?$', text)
    return len(set(sentences)) == len(sentences) > 2 and bool(ended or not complete)


def teacher_stories(config, teacher):
    """Stories of the teacher at temperatures from 0.7 to 1: cool ones read better, warm ones
    keep the student's probabilities honest."""
    if not config.sampled.exists():
        write, temperatures = sampler(teacher, 256), tf.linspace(0.7, 1.0, 256)
        tokenizer, records = teacher.preprocessor.tokenizer, []
        for seed in range(config.rounds):
            rows = write(512, temperatures, tokenizer.start_token_id, seed)
            records += split_stories(rows, tokenizer)
            print(f"round {seed + 1} of {config.rounds}: {len(records)} stories", flush=True)
        config.sampled.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(config.sampled, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return read(config.sampled)


def make_tokenizer(texts, size):
    """A byte-level `Llama3Tokenizer` of `size` tokens, trained on `texts`."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    model = json.loads(model.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    return keras_hub.tokenizers.Llama3Tokenizer(vocabulary=model["vocab"], merges=merges)


def make_model(config):
    """A new `Llama3CausalLM`; untied embeddings, because keras-hub forgets that they are tied."""
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


def token_stream(tokenizer, records):
    """All stories in one row of token ids, each after the start token; whole ones with the end."""
    start, end, rows = tokenizer.start_token_id, tokenizer.end_token_id, []
    for record, ids in zip(records, tokenizer([r["text"] for r in records]), strict=True):
        rows.append([start, *ids, end] if record.get("complete", True) else [start, *ids])
    return np.concatenate(rows).astype("int32")


def windows(stream, length):
    """A token stream in rows of `length + 1`; the last token of a row is the first of the next."""
    starts = range(0, len(stream) - length, length)
    return np.stack([stream[start : start + length + 1] for start in starts])


def whole_stories(tokenizer, records, length):
    """One story a row, begun at position 0, cut or padded to `length + 1`."""
    rows = np.full((len(records), length + 1), tokenizer.pad_token_id, "int32")
    for i, record in enumerate(records):
        ids = token_stream(tokenizer, [record])[: length + 1]
        rows[i, : len(ids)] = ids
    return rows


def dataset(rows, batch_size, tokenizer):
    """Full batches of (inputs, next tokens, weights), in a new order at every pass.

    A start token is never to be predicted: it follows stories that are cut off, and a model that
    had learned it would break off too.
    """
    mask, targets = rows != tokenizer.pad_token_id, rows[:, 1:]
    weights = mask[:, 1:] & (targets != tokenizer.start_token_id)
    inputs = {"token_ids": rows[:, :-1], "padding_mask": mask[:, :-1]}
    data = tf.data.Dataset.from_tensor_slices((inputs, targets, weights.astype("float32")))
    return data.shuffle(len(rows), seed=0).batch(batch_size, drop_remainder=True)


def train(model, data, epochs, learning_rate, end, validation=None):
    """Muon for matrices and Adam for the rest, at a rate that falls to `end` times the highest."""
    steps = epochs * len(data)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 10, steps, end, warmup_target=learning_rate, warmup_steps=steps // 20
    )
    optimizer = keras.optimizers.Muon(
        schedule, weight_decay=0.05, adam_beta_2=0.98, global_clipnorm=1.0
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, weighted_metrics=[], jit_compile=True)
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
    model.save_to_preset(str(folder))
    half = type(model.backbone).from_config(model.backbone.get_config() | {"dtype": "float16"})
    half.set_weights(model.backbone.get_weights())
    half.save_weights(str(folder / "model.weights.h5"))


def nats(model, texts):
    """Mean loss of texts, each after the start token and without an end: per character, token."""
    tokenizer = model.preprocessor.tokenizer
    rows = [[tokenizer.start_token_id, *np.array(row).tolist()] for row in map(tokenizer, texts)]
    total, width = 0.0, max(map(len, rows))
    for i in range(0, len(rows), 16):
        ids = np.array([row + [0] * (width - len(row)) for row in rows[i : i + 16]], "int32")
        mask = np.array([[j < len(row) for j in range(width)] for row in rows[i : i + 16]])
        logits = model({"token_ids": ids, "padding_mask": mask})[:, :-1]
        losses = keras.losses.sparse_categorical_crossentropy(ids[:, 1:], logits, from_logits=True)
        total += float(keras.ops.sum(losses * mask[:, 1:].astype("float32")))
    return total / sum(map(len, texts)), total / sum(len(row) - 1 for row in rows)


def report(config, model, teacher):
    """Prints losses of student and teacher on the test stories, and a few samples."""
    tokenizer = model.preprocessor.tokenizer
    texts = [record["text"] for record in read(config.test_stories)]
    # Both read the same text: the words before whichever context is the first to be full.
    for lm in (model, teacher):
        tokens, length = lm.preprocessor.tokenizer, lm.preprocessor.sequence_length
        texts = [tokens.detokenize(tokens(text)[: length - 1]) for text in texts]
    texts = [text.rpartition(" ")[0] for text in texts]
    (ours, per_token), (theirs, _) = nats(model, texts), nats(teacher, texts)
    print(f"{model.count_params():,} parameters, {tokenizer.vocabulary_size()} tokens")
    print(
        f"held-out perplexity {np.exp(per_token):.3f} a token; nats a character {ours:.4f}, "
        f"teacher {theirs:.4f}, ratio {ours / theirs:.3f}"
    )
    temperatures = tf.constant([0.7] * 32 + [1.0] * 32)
    rows = sampler(model, 64)(config.length, temperatures, tokenizer.start_token_id, config.seed)
    ends = [np.flatnonzero(row == tokenizer.end_token_id) for row in rows]
    print(f"ended within {config.length} tokens: {sum(len(end) > 0 for end in ends)} of 64")
    for i in (0, 1, 32):
        story = rows[i, : ends[i][0] if len(ends[i]) else None].tolist()
        print(f"\n[temperature {temperatures[i]:.1f}] {tokenizer.detokenize(story)}")


def main(config):
    """Samples, trains, saves and reports; returns the `CausalLM`."""
    keras.utils.set_random_seed(config.seed)
    if not config.teacher.exists():
        raise ValueError(f"No teacher at {config.teacher}. Give a keras-hub preset of Llama shape.")
    teacher = keras_hub.models.CausalLM.from_preset(str(config.teacher))
    real, sampled = read(config.stories), teacher_stories(config, teacher)
    held_out, real = real[: config.held_out], real[config.held_out :]
    tokenizer = make_tokenizer([r["text"] for r in sampled + real], config.vocabulary_size)
    model = make_model(config)

    mixture = sampled + real * config.real_copies
    mixture = [mixture[i] for i in np.random.default_rng(config.seed).permutation(len(mixture))]
    mixture = windows(token_stream(tokenizer, mixture), config.length)
    print(f"{len(sampled)} sampled stories, {len(real)} real ones, {mixture.size:,} tokens")
    data = dataset(mixture, config.batch_size, tokenizer)
    train(model, data, config.epochs, config.learning_rate, end=0.1)
    data, validation = (
        dataset(whole_stories(tokenizer, part, config.length), config.batch_size, tokenizer)
        for part in (real, held_out)
    )
    rate = config.final_learning_rate
    train(model, data, config.final_epochs, rate, end=0.0, validation=validation)
    # Only now, because `fit` would run it on the token ids.
    model.preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer, config.length)
    save(model, config.output)
    report(config, model, teacher)
    return model


if __name__ == "__main__":
    main(cli.parse(Config))
