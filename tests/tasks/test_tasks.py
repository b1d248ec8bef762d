"""Tasks make demonstrations, prompts, rewards and metrics of records."""

import importlib.util
import itertools
import json
import sys

import keras
import numpy as np
import pytest

import kerasrlhf as rlhf
from kerasrlhf.tasks import task as task_lib

seqeval = pytest.mark.skipif(
    importlib.util.find_spec("seqeval") is None, reason="needs the package seqeval"
)
rouge = pytest.mark.skipif(
    importlib.util.find_spec("rouge_score") is None, reason="needs the package rouge-score"
)
vader = pytest.mark.skipif(
    importlib.util.find_spec("vaderSentiment") is None, reason="needs the package vaderSentiment"
)


def measured(task, records, responses):
    """Metrics by name, called as a trainer calls them."""
    found = rlhf.evaluation.measure(task.metrics(), task.prompts(records), responses, resamples=20)
    return {name: interval.mean for name, interval in found.items()}


def scored(task, records, responses):
    """Parts of the reward by name, called as a trainer calls them."""
    episodes = rlhf.evaluation.measures.episodes_of(task.prompts(records), responses)
    columns = rlhf.rollouts.scoring.text_columns(episodes)
    parts = rlhf.rollouts.weighted.parts_of(task.rewards())
    called = rlhf.rollouts.scoring.call_all([part.reward for part in parts], columns)
    return {part.name: list(x) for part, x in zip(parts, called, strict=True)}


# Classification.

REVIEWS = [
    {"text": "Great!", "label": 1},
    {"text": "Cold food.", "label": 0},
    {"text": "Loved it.", "label": 1},
    {"text": "Never again.", "label": 0},
]
LABELS = rlhf.tasks.Classification({1: "positive", 0: "negative"})


def test_labels_are_read_as_people_write_them():
    answers = [" Positive.", '"negative"\nText: more', " positive, I think", " POSITIVE "]
    assert [LABELS.read(x) for x in answers[:2]] == ["positive", "negative"]
    found = scored(LABELS, REVIEWS, answers)
    assert found == {"correct": [1.0, 1.0, 0.0, 0.0], "valid": [1.0, 1.0, 0.0, 1.0]}


def test_metrics_of_labels():
    answers = [" positive", " positive", " positive", " unsure"]
    found = measured(LABELS, REVIEWS, answers)
    assert found["accuracy"] == 0.5 and found["valid"] == 0.75
    # positive: 2 hits of 3 answers and 2 targets; negative: none.
    assert found["macro_f1"] == pytest.approx((2 * 2 / (3 + 2) + 0) / 2)


def test_macro_f1_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    task = rlhf.tasks.Classification(["a", "b", "c"])
    wanted, given = (generator.choice(["a", "b", "c"], 50).tolist() for _ in range(2))
    expected = metrics.f1_score(wanted, given, average="macro")
    assert task.macro_f1(given, wanted) == pytest.approx(expected)


def test_a_model_that_may_only_answer_with_labels():
    logprobs = np.log([[0.2, 0.1], [0.1, 0.7]])
    assert LABELS.chosen(logprobs) == [" positive", " negative"]
    assert LABELS.choices == [" positive", " negative"]


@pytest.mark.parametrize("labels", [["a"], ["a", "A"], ["a", "."], {1: "a", 2: "a"}])
def test_labels_need_different_words(labels):
    with pytest.raises(ValueError, match="two or more different words"):
        rlhf.tasks.Classification(labels)


def test_wrong_records_are_named():
    with pytest.raises(ValueError, match=r"Unknown label 2. Expected one of \[1, 0\]"):
        LABELS.demonstrations([{"text": "a", "label": 2}])
    with pytest.raises(ValueError, match=r"does not fit a record with the columns \['label'\]"):
        LABELS.prompts([{"label": 1}])
    with pytest.raises(ValueError, match=r"1 of 2 records have no target to imitate: rows \[1\]"):
        LABELS.demonstrations([REVIEWS[0], {"text": "a"}])
    # Prompts without a target can still be answered.
    assert LABELS.prompts([{"text": "a"}])[0]["target"] is None


# Named entities.

SENTENCES = [
    {"tokens": ["Anna", "Smith", "left", "Paris", "."],
     "tags": ["B-person", "I-person", "O", "B-location", "O"]},
    {"tokens": ["Nothing", "here", "."], "tags": ["O", "O", "O"]},
    {"tokens": ["Paris", "Paris"], "tags": ["B-location", "B-location"]},
]  # fmt: skip
ENTITIES = rlhf.tasks.NER(["person", "location"])


def test_targets_of_entities_are_read_as_the_entities():
    targets = [ENTITIES.target(record) for record in SENTENCES]
    assert targets == [
        " person: Anna Smith; location: Paris",
        " none",
        " location: Paris; location: Paris",
    ]
    read = [ENTITIES.read(target) for target in targets]
    assert read[:2] == [[("person", "Anna Smith"), ("location", "Paris")], []]


@seqeval
def test_targets_have_the_best_scores():
    targets = [ENTITIES.target(record) for record in SENTENCES]
    found = scored(ENTITIES, SENTENCES, targets)
    assert found == {"f1": [1.0] * 3, "format": [1.0] * 3}
    assert set(measured(ENTITIES, SENTENCES, targets).values()) == {1.0}


@seqeval
@pytest.mark.parametrize(
    ("response", "f1", "form"),
    [
        (" person: Anna Smith", 2 / 3, 1.0),
        (" person: Anna; location: Paris", 0.5, 1.0),  # one wrong border
        (" location: Anna Smith; location: Paris", 0.5, 1.0),  # one wrong type
        (" person: Anna Smith; location: Paris; person: Tom", 0.8, 1.0),  # one made up
        (" location: Paris; location: Paris; person: Anna Smith", 0.8, 1.0),  # one twice
        (" none", 0.0, 1.0),
        ("", 0.0, 0.0),
        (" Anna Smith and Paris", 0.0, 0.0),
        (" person: Anna Smith, location: Paris; ", 0.0, 0.0),
        (" city: Paris", 0.0, 0.0),
        (" person:", 0.0, 0.0),
        (" person: Anna Smith; location: Paris\nText: more", 1.0, 1.0),
    ],
)
def test_errors_of_entities_are_scored(response, f1, form):
    found = scored(ENTITIES, SENTENCES[:1], [response])
    assert found["f1"] == pytest.approx([f1]) and found["format"] == [form]


@seqeval
def test_f1_is_that_of_all_entities_together():
    responses = [" person: Anna Smith", " location: here", "?"]
    found = measured(ENTITIES, SENTENCES, responses)
    # One of two answers is right, and one of four entities was found.
    assert found["precision"] == 0.5 and found["recall"] == 0.25
    assert found["f1"] == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    assert found["format"] == pytest.approx(2 / 3)
    assert measured(ENTITIES, SENTENCES, ["?"] * 3)["f1"] == 0.0


def test_entities_of_tags_without_a_beginning():
    entities = rlhf.tasks.ner.entities_of(
        ["a", "b", "c", "d"], ["I-person", "I-person", "B-person", "I-location"]
    )
    assert entities == [("person", "a b"), ("person", "c"), ("location", "d")]
    with pytest.raises(ValueError, match="2 tokens and 1 tags"):
        rlhf.tasks.ner.entities_of(["a", "b"], ["O"])


@pytest.mark.parametrize("types", [[], ["a:b"], [" "], ["a;b"]])
def test_types_are_part_of_the_format(types):
    with pytest.raises(ValueError, match="`types` must be names of entities"):
        rlhf.tasks.NER(types)


# Summaries.

ARTICLES = [
    {
        "document": "The quick brown fox jumps over the lazy dog.",
        "summaries": ["A fox jumps.", "x"],
    },
    {"document": "It rained all day in the town.", "summary": "It rained."},
]


@rouge
def test_summaries_have_the_score_of_their_best_reference():
    task = rlhf.tasks.Summarization(words=(2, 4))
    found = scored(task, ARTICLES, [" A fox jumps.", " It rained all day and all day it rained"])
    assert found["rouge"][0] == 1.0 and found["rouge"][1] == pytest.approx(2 * 2 / (2 + 9))
    assert found["length"] == [0.0, -1.0]
    # it rained, rained all, all day, day and, and all, all day, day it, it rained: two of eight.
    assert found["repetition"] == [0.0, pytest.approx(2 / 8)]
    metrics = measured(task, ARTICLES, [" x", " It rained."])
    assert metrics["rouge1"] == metrics["rougeL"] == 1.0
    assert metrics["rouge2"] == 0.5 and metrics["words"] == 1.5


@rouge
def test_a_summary_without_reference_is_no_summary_to_score():
    with pytest.raises(ValueError, match="at least one reference"):
        rlhf.tasks.summarization.rouge(["a"], [[]])


def test_documents_are_cut_at_words():
    task = rlhf.tasks.Summarization(template="{document} TL;DR", document_words=2)
    assert task.prompts(ARTICLES)[1]["prompt"] == "It rained TL;DR"
    assert task.demonstrations(ARTICLES)[0]["response"] == " A fox jumps."


@pytest.mark.parametrize("words", [(0, 4), (5, 4)])
def test_a_range_of_words(words):
    with pytest.raises(ValueError, match="at least"):
        rlhf.tasks.Summarization(words=words)


# Sentiment.


@vader
def test_sentiment_of_texts_and_of_openings():
    task = rlhf.tasks.Sentiment(words=2)
    records = [{"text": "The food was awful."}, {"prompt": "The room", "response": " was great."}]
    assert task.prompts(records)[0]["target"] == " was awful."
    assert [row["prompt"] for row in task.demonstrations(records)] == ["The food", "The room"]
    found = scored(task, records, [" was awful awful awful awful.", " was great."])
    assert found["sentiment"][0] < 0 < found["sentiment"][1]
    assert found["repetition"][0] > 0 == found["repetition"][1]
    assert measured(task, records, [" was awful.", " was great."])["positive"] == 0.5


def test_sentiment_by_a_function_is_measured_by_another():
    def brevity(responses):
        return [-len(text) for text in responses]

    task = rlhf.tasks.Sentiment(brevity)
    assert task.rewards()["sentiment"] is brevity
    assert task.measured is rlhf.tasks.sentiment._vader
    with pytest.raises(ValueError, match=r"'bert'"):
        rlhf.tasks.Sentiment("bert")


# Dialogue.


def test_replies_are_judged_by_another_model():
    def longer(prompts, responses):
        return [float(len(text)) for text in responses]

    def question(prompts, responses):
        return [float("?" in text) for text in responses]

    task = rlhf.tasks.Dialogue(longer, question)
    records = [{"prompt": "Human: Hi!\n\nAssistant:", "chosen": "Hello.", "rejected": "No."}] * 2
    assert scored(task, records, [" A.", " Who?"])["preference"] == [3.0, 5.0]
    found = measured(task, records, [" A.", " Who?"])
    assert found["judge"] == 0.5 and found["win"] == 0.5
    assert task.preferences(records)[0]["chosen"] == " Hello."


def test_messages_need_no_blank():
    prompt = [{"role": "user", "content": "Hi!"}]
    assert rlhf.tasks.dialogue.reply(prompt, "Hello.") == "Hello."
    assert rlhf.tasks.dialogue.reply("A: ", "Hello.") == "Hello."
    assert rlhf.tasks.dialogue.reply("A:", " Hello.") == " Hello."


# Arithmetic.


def test_solutions_of_problems_are_right():
    task = rlhf.tasks.Arithmetic()
    records = rlhf.tasks.arithmetic.problems(200, steps=3, seed=1)
    assert len({record["question"] for record in records}) == 200
    targets = [task.target(record) for record in records]
    assert scored(task, records, targets) == {"correct": [1.0] * 200, "format": [1.0] * 200}
    for record in records:
        lines = record["solution"].removesuffix(".").split(". ")
        values = [line.split(" = ") for line in lines]
        # Every calculation holds and begins with the result of the one before.
        assert all(eval(left) == int(right) for left, right in values)
        assert all(b[0].split()[0] == a[1] for a, b in itertools.pairwise(values))
        assert int(values[-1][1]) == record["answer"] and len(values) == 3
        assert values[0][0].split()[0] in record["question"]
    assert records == rlhf.tasks.arithmetic.problems(200, steps=3, seed=1)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" The answer is 7.", 7),
        (" The answer is 1,204", 1204),
        (" the answer is $-3.", -3),
        (" The answer is 5. No, the answer is 6.", 6),
        (" 7", None),
        ("", None),
    ],
)
def test_answers_are_read(response, answer):
    assert rlhf.tasks.Arithmetic.read(response) == answer


def test_more_problems_than_there_are():
    with pytest.raises(ValueError, match="Found only"):
        rlhf.tasks.arithmetic.problems(10**5, steps=1, largest=5)


# All tasks.

EXAMPLES = {
    "sentiment": (rlhf.tasks.Sentiment("words"), {"text": "We went there and it was fun."}),
    "classification": (LABELS, REVIEWS[0]),
    "ner": (ENTITIES, SENTENCES[0]),
    "summarization": (rlhf.tasks.Summarization(), ARTICLES[0]),
    "arithmetic": (rlhf.tasks.Arithmetic(), rlhf.tasks.arithmetic.problems(1)[0]),
    "dialogue": (
        rlhf.tasks.Dialogue(lambda prompts, responses: [0.0] * len(responses)),
        {"prompt": "Human: Hi!\n\nAssistant:", "chosen": "Hello.", "rejected": "No."},
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_records_of_a_task_are_data_of_the_package(name):
    task, record = EXAMPLES[name]
    (demonstration,) = task.demonstrations([record])
    (prompt,) = task.prompts([record])
    assert demonstration["prompt"] == prompt["prompt"]
    assert demonstration["response"] == prompt["target"]
    assert json.loads(json.dumps(prompt)) == prompt
    assert not any(s in demonstration["response"] for s in task.stop_strings)
    assert task.sampler().matches_policy and task.decoder().temperature == 0


def test_a_column_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"needs a column 'a' or 'b'. Found: \['c'\]"):
        task_lib.column({"c": 1}, "a", "b")


MISSING = {
    "seqeval.metrics.sequence_labeling": lambda: ENTITIES.sentence_f1([" none"], [["a"]], [["O"]]),
    "rouge_score.rouge_scorer": lambda: rlhf.tasks.summarization._scorer.__wrapped__("rougeL"),
    "vaderSentiment.vaderSentiment": lambda: rlhf.tasks.sentiment.vader_scores(["a"]),
}


@pytest.mark.parametrize("module", MISSING)
def test_a_library_that_is_missing_is_named(module, monkeypatch):
    # Python raises an `ImportError` for None.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"needs the package \S+\. Run `pip install \"kerasrlhf\["):
        MISSING[module]()


def test_a_task_trains_and_is_validated():
    """The whole path: demonstrations, prompts, rewards with names, and metrics in the history."""
    lm = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES).causal_lm
    task = rlhf.tasks.Classification({1: "happy", 0: "sad"}, "{text} It was", length=4)
    records = [{"text": x, "label": y} for x, y in (("Tom ran.", 1), ("Mia fell.", 0))] * 2
    demos = rlhf.data.demonstrations(task.demonstrations(records), lm.preprocessor, 4)
    assert demos.report.rows == 4
    prompts = rlhf.data.prompts(task.prompts(records), lm.preprocessor, 4)
    ppo = rlhf.PPO(
        rlhf.ActorCritic(lm),
        task.rewards(),
        sampler=task.sampler(),
        kl=rlhf.FixedKL(0.1),
        update_epochs=1,
    )
    optimizer = keras.optimizers.SGD(0.0)
    ppo.compile(
        optimizer, metrics=task.metrics(), validation_sampler=task.decoder(), run_eagerly=True
    )
    history = ppo.fit(prompts, validation_data=prompts, verbose=0).history
    assert {"val_accuracy", "val_macro_f1", "val_valid"} <= set(history)
    assert {"reward/correct", "reward/valid"} <= set(ppo.statistics)


@pytest.mark.slow
def test_choices_are_scored_as_the_model_scores_them():
    lm = rlhf.ActorCritic.from_preset(rlhf.presets.TINY_STORIES).causal_lm
    prompts, choices = ["Tom was", "It was a very, very"], [" sad", " very happy", " big"]
    for ended in (True, False):
        found = rlhf.evaluation.choice_logprobs(
            lm, prompts, choices, ended=ended, batch_size=1, jit_compile=False
        )
        for i, prompt in enumerate(prompts):
            records = [{"prompt": prompt, "response": c, "ended": ended} for c in choices]
            ((x, _, weight),) = rlhf.data.demonstrations(
                records, lm.preprocessor, len(choices), shuffle=False
            )
            stats = rlhf.ActorCritic(lm).token_stats(x["token_ids"], x["padding_mask"])
            expected = np.sum(np.asarray(stats.logprobs)[:, 1:] * np.asarray(weight)[:, :-1], -1)
            np.testing.assert_allclose(found[i], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="different texts"):
        rlhf.evaluation.choice_logprobs(lm, prompts, [" a", " a"])


def test_corpus_metrics_have_bootstrap_intervals():
    responses = [" positive", " negative"] * 30
    records = [REVIEWS[0], REVIEWS[2]] * 30
    found = rlhf.evaluation.measure(LABELS.metrics(), LABELS.prompts(records), responses)
    assert found["accuracy"] == rlhf.evaluation.fraction_interval(0.5, 60)
    f1 = found["macro_f1"]
    assert f1.mean == pytest.approx(2 * 30 / 90) and f1.low < f1.mean < f1.high
    # Another count of rows, another width.
    few = rlhf.evaluation.measure(LABELS.metrics(), LABELS.prompts(records[:10]), responses[:10])
    assert few["macro_f1"].high - few["macro_f1"].low > f1.high - f1.low
    with pytest.raises(ValueError, match="2 prompts and 1 responses"):
        rlhf.evaluation.measure([len], ["a", "b"], ["c"])
