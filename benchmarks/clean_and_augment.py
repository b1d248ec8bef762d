"""Accuracy of a reward model before and after cleaning, and with each augmentation.

    python benchmarks/clean_and_augment.py --train hh_train.jsonl.gz --test hh_test.jsonl.gz \\
        --model smollm2 --wordnet /usr/share/wordnet --output runs/clean_and_augment.jsonl

The reward model is a linear head on the features of a language model that stays as it is: of each
text the last `--length` tokens go through its first `--layers` layers; the features are the mean of
their states. The head minimizes the Bradley-Terry loss with an L2
penalty that held-out training pairs choose. Features are computed once a text and kept in a file
next to the output, so that seeds and settings cost seconds.

- Cleaning: from all training pairs, by rules of `rlhf.data.clean`; also after the labels of 20 % of
  the pairs were swapped on purpose. Each seed leaves out another tenth of the pairs.
- Augmenting: each seed takes another 10 % of the pairs and adds what a rule of `rlhf.data.augment`
  makes of them.

Accuracy is that of the mean over seeds with a normal 95 % interval, on the test pairs; differences
are between means over seeds, with an interval over test pairs. Prints a JSON line a run, then
tables.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import kerasrlhf as rlhf
from kerasrlhf.evaluation import mean_interval

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
TEMPLATES = [
    "Please answer as well as you can: {prompt}",
    "{prompt} Explain it to me.",
    "I have a question. {prompt}",
]
TEXT_RULES = ("delete_words", "swap_words", "replace_words", "wrap_prompts", "cut_prompts")
REPEATED = ("near_duplicate_records", "near_duplicate_prompts", "near_duplicate_chosen")
LEAKED = ("leaked_responses", "near_leaked_prompts", "near_leaked_responses")


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--test", type=pathlib.Path, required=True)
    parser.add_argument("--model", default=rlhf.presets.TINY_STORIES, help="a preset or a folder")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--parts", nargs="*", default=["clean", "augment"])
    parser.add_argument("--rules", nargs="*", default=[*TEXT_RULES, "unrelated_response"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--fraction", type=float, default=0.1, help="of the pairs, to augment")
    parser.add_argument("--pairs", type=int, help="use no more training pairs")
    parser.add_argument("--wordnet", type=pathlib.Path, help="folder of the files of WordNet")
    parser.add_argument("--sampled", type=int, default=0, help="prompts for best_against_worst")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    return parser.parse_args()


class Features:
    """Vectors of texts, from a file where they are known."""

    def __init__(self, model, layers, length, path):
        self.actor = rlhf.ActorCritic.from_preset(model)
        lm = self.actor.causal_lm
        self.preprocessor, self.length, self.path = lm.preprocessor, length, path
        layers = min(layers, len(lm.backbone.transformer_layers))
        top = lm.backbone.transformer_layers[layers - 1]
        self.trunk = keras.Model(lm.backbone.inputs, top.output)
        self.settings = f"{pathlib.Path(model).name} {layers} {length}"
        self.known = {}
        if path.exists():
            with np.load(path) as file:
                if str(file["settings"]) == self.settings:
                    self.known = dict(zip(file["keys"].tolist(), file["values"], strict=True))

    @tf.function(jit_compile=True, reduce_retracing=False)
    def _states(self, ids, mask):
        hidden = self.trunk({"token_ids": ids, "padding_mask": mask})
        real = tf.cast(mask, tf.float32)
        return tf.einsum("blw,bl->bw", hidden, real) / tf.reduce_sum(real, axis=1)[:, None]

    def __call__(self, texts):
        """Returns float32 `(texts, features)`."""
        new = [text for text in dict.fromkeys(texts) if self.key(text) not in self.known]
        if new:
            self._compute(new)
        return np.stack([self.known[self.key(text)] for text in texts])

    @staticmethod
    def key(text):
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def _compute(self, texts):
        start = time.perf_counter()
        rows = rlhf.data.tokenize(texts, self.preprocessor)
        rows = [row[-self.length :] for row in rows]
        # Texts of similar lengths share a batch, and there are few shapes to compile.
        order = np.argsort([len(row) for row in rows], kind="stable")
        bar = keras.utils.Progbar(len(rows), unit_name="text")
        for first in range(0, len(order), 32):
            part = [rows[i] for i in order[first : first + 32]]
            width = -(-max(map(len, part)) // 32) * 32
            ids = np.zeros((32, width), "int32")
            mask = np.zeros((32, width), bool)
            mask[:, 0] = True  # rows that only fill the batch
            for i, row in enumerate(part):
                ids[i, : len(row)], mask[i, : len(row)] = row, True
            found = self._states(tf.constant(ids), tf.constant(mask)).numpy()
            for place, i in enumerate(order[first : first + 32]):
                self.known[self.key(texts[i])] = found[place]
            bar.update(min(first + 32, len(rows)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with rlhf.files.replacing(self.path) as temporary, temporary.open("wb") as file:
            keys, values = np.array([*self.known]), np.stack([*self.known.values()])
            np.savez(file, keys=keys, values=values, settings=self.settings)
        print(f"\n{len(texts)} texts in {time.perf_counter() - start:.0f} s", flush=True)

    def leads(self, records):
        """Returns the difference of the features of the two responses, `(pairs, features)`."""
        prompts, chosen, rejected = rlhf.data.records.preference_texts(records)
        vectors = [
            self([joined(*pair) for pair in zip(prompts, responses, strict=True)])
            for responses in (chosen, rejected)
        ]
        return vectors[0] - vectors[1]


def joined(prompt, response):
    return f"{prompt.rstrip()} {response.strip()}"


def fitted(leads, penalty):
    """Returns the head with the least Bradley-Terry loss and penalty, by Newton's method."""
    weights = np.zeros(leads.shape[1])
    for _ in range(6):
        chance = 0.5 * (1.0 + np.tanh(leads @ weights / 2.0))
        gradient = leads.T @ (chance - 1.0) / len(leads) + penalty * weights
        curvature = (leads.T * (chance * (1.0 - chance))) @ leads / len(leads)
        curvature[np.diag_indices_from(curvature)] += penalty
        weights -= np.linalg.solve(curvature, gradient)
    return weights


class Head:
    """A reward model on features, with the penalty that held-out original pairs choose.

    Args:
        original: leads of the pairs, `(pairs, features)`.
        extra: list of leads that go with each pair, `(any, features)`, fitted with it only.
        seed: of the pairs that are held out.
    """

    def __init__(self, original, extra, seed):
        everything = np.concatenate([original, *extra])
        self.scale = np.sqrt(np.mean(everything**2, axis=0)) + 1e-6
        held = np.zeros(len(original), bool)
        held[np.random.default_rng(seed).permutation(len(original))[: len(original) // 5]] = True
        part = np.concatenate(
            [original[~held], *(x for x, h in zip(extra, held, strict=True) if not h)]
        )
        found = [
            np.mean(np.logaddexp(0, -(original[held] / self.scale) @ fitted(part / self.scale, x)))
            for x in PENALTIES
        ]
        self.penalty = PENALTIES[int(np.argmin(found))]
        self.weights = fitted(everything / self.scale, self.penalty) / self.scale

    def right(self, leads):
        """Returns whether each pair is ranked as it is labeled."""
        return leads @ self.weights > 0


def no_extra(leads):
    return [leads[:0]] * len(leads)


def out_of_fold(leads, seed, folds=5):
    """Returns margins of heads that were not fitted on the pair."""
    fold = np.random.default_rng(seed).permutation(len(leads)) % folds
    margins = np.zeros(len(leads))
    for i in range(folds):
        kept = leads[fold != i]
        margins[fold == i] = leads[fold == i] @ Head(kept, no_extra(kept), seed).weights
    return margins


def swapped(records, rows):
    """Returns records with the labels of some rows swapped."""
    rows = {*rows}
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i in rows else row
        for i, row in enumerate(records)
    ]


def cleaning(args, features, train, test, add):
    test_leads = features.leads(test)
    for seed in args.seeds:
        random = np.random.default_rng(seed)
        records = [train[i] for i in np.sort(random.permutation(len(train))[: -len(train) // 10])]
        noisy = swapped(records, random.permutation(len(records))[: len(records) // 5])
        for name, rows, rules in (
            ("all pairs", records, None),
            ("default rules", records, []),
            ("and repeated texts", records, REPEATED),
            ("and leaked texts", records, (*REPEATED, *LEAKED)),
            ("and label noise", records, (*REPEATED, *LEAKED, "label_noise")),
            ("20 % swapped", noisy, None),
            ("20 % swapped, label noise removed", noisy, ["label_noise"]),
        ):
            kept = rows
            if rules is not None:
                margins = (
                    out_of_fold(features.leads(rows), seed) if "label_noise" in rules else None
                )
                named = [*rlhf.data.auditing.cleaning.SAFE_RULES, *rules]
                kept = rlhf.data.clean(rows, named, test, margins=margins).records
            leads = features.leads(kept)
            head = Head(leads, no_extra(leads), seed)
            add("clean", name, seed, len(kept), head, test_leads)


def augmenting(args, features, train, test, add):
    test_leads = features.leads(test)
    synonyms = "wordnet" if args.wordnet is None else wordnet(args.wordnet)
    size = round(args.fraction * len(train))
    for seed in args.seeds:
        order = np.random.default_rng(seed).permutation(len(train))
        records = [train[i] for i in order[:size]]
        leads = features.leads(records)
        base = Head(leads, no_extra(leads), seed)
        add("augment", "nothing", seed, size, base, test_leads)
        twice = features.leads([train[i] for i in order[: 2 * size]])
        add(
            "augment",
            "as many other pairs",
            seed,
            2 * size,
            Head(twice, no_extra(twice), seed),
            test_leads,
        )
        for rule in args.rules:
            options = {"synonyms": synonyms if rule == "replace_words" else None}
            options["templates"] = TEMPLATES
            if rule == "best_against_worst":
                options["sample"] = sampler(features, base, args.sampled, seed)
            augmented = rlhf.data.augment(records, [rule], **options, seed=seed)
            new, sources = augmented.records[size:], augmented.report.added[rule]
            extra = no_extra(leads)
            for source, lead in zip(sources, features.leads(new), strict=True):
                extra[source] = np.concatenate([extra[source], lead[None]])
            head = Head(leads, extra, seed)
            add("augment", rule, seed, size + len(new), head, test_leads)


def sampler(features, head, count, seed, longest=96):
    """Returns a function that samples responses and scores them with a head."""

    def reply(text):
        return text.split("\n\nHuman:")[0]

    def score(prompts, responses):
        texts = [joined(p, reply(r) or ".") for p, r in zip(prompts, responses, strict=True)]
        return features(texts) @ head.weights

    def sample(prompts):
        rows = rlhf.data.tokenize(prompts, features.preprocessor)
        short = [p for p, row in zip(prompts, rows, strict=True) if len(row) <= longest][:count]
        found = rlhf.best_of_n(
            features.actor, score, short, 4, rlhf.Sampler(length=48), batch_size=32, seed=seed
        )
        pairs = [
            {**pair, "chosen": reply(pair["chosen"]), "rejected": reply(pair["rejected"])}
            for pair in found.preferences()
        ]
        return [pair for pair in pairs if pair["chosen"].strip() and pair["rejected"].strip()]

    return sample


def wordnet(folder):
    """Returns the function that finds synonyms in the files of WordNet 3, by the first sense."""
    index, data = {}, {}
    for part in ("noun", "verb", "adj", "adv"):
        data[part] = (folder / f"data.{part}").read_bytes()
        for line in (folder / f"index.{part}").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                index.setdefault(fields[0], []).append((part, int(fields[-int(fields[2])])))

    def find(word):
        for part, start in index.get(word, ()):
            fields = data[part][start : data[part].index(b"\n", start)].decode().split()
            for synonym in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
                yield re.sub(r"\(.*\)", "", synonym).replace("_", " ")

    return find


def table(lines, part):
    """Returns the lines of one part as a Markdown table."""
    names = [*dict.fromkeys(line["name"] for line in lines if line["part"] == part)]
    right = {
        name: np.array([x["right"] for x in lines if (x["part"], x["name"]) == (part, name)], float)
        for name in names
    }
    shown = ["| pairs | rows | accuracy | difference |", "|---|---|---|---|"]
    for name in names:
        rows = np.mean([x["rows"] for x in lines if (x["part"], x["name"]) == (part, name)])
        base = "20 % swapped" if name.startswith("20 %") else names[0]
        accuracy, difference = mean_interval(right[name].mean(axis=1)), ""
        if name != base:
            difference = mean_interval(right[name].mean(axis=0) - right[base].mean(axis=0))
        shown.append(f"| {name} | {rows:.0f} | {accuracy} | {difference} |")
    return "\n".join(shown)


def main():
    args = parse_args()
    train, test = (rlhf.data.read(path) for path in (args.train, args.test))
    train = train[: args.pairs]
    path = args.output.with_suffix(".features.npz")
    features = Features(args.model, args.layers, args.length, path)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines = []

    def add(part, name, seed, rows, head, test_leads):
        right = head.right(test_leads)
        line = {"part": part, "name": name, "seed": seed, "rows": rows, "penalty": head.penalty}
        print(json.dumps({**line, "accuracy": round(float(right.mean()), 4)}), flush=True)
        lines.append({**line, "right": right.astype(int).tolist()})

    for part, measure in (("clean", cleaning), ("augment", augmenting)):
        if part in args.parts:
            measure(args, features, train, test, add)
            print(f"\n{table(lines, part)}\n", flush=True)
    with rlhf.files.replacing(args.output) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
