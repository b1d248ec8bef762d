"""Records for training and validation, and mixtures of sources."""

import collections

import pytest

from kerasrlhf import data

ASK = {"role": "user", "content": "2 + 2?"}
HH = "Human: Hi\n\nAssistant:"


def rows(prompts):
    return [{"prompt": prompt, "response": str(i)} for i, prompt in enumerate(prompts)]


def test_no_record_is_lost_and_no_prompt_is_on_both_sides():
    records = rows([f"Prompt {i % 37}" for i in range(200)])
    train, held_out = data.split(records, 0.2, seed=3)
    assert sorted(r["response"] for r in train + held_out) == sorted(r["response"] for r in records)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held_out}
    assert 35 <= len(held_out) <= 40
    assert (train, held_out) == data.split(records, 0.2, seed=3)
    assert held_out != data.split(records, 0.2, seed=4)[1]


def test_different_prompts_are_split_exactly():
    train, held_out = data.split([str(i) for i in range(20)], 8)
    assert (len(train), len(held_out)) == (12, 8)
    assert {*train, *held_out} == {str(i) for i in range(20)}
    assert len(data.split(rows("abcde"), 0.01)[1]) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "Hi  there"}, {"prompt": "hi there\n"}),
        ({"prompt": [ASK]}, {"prompt": [{"content": "2 + 2?", "role": "user"}]}),
        ({"messages": [ASK, {"role": "assistant", "content": "4"}]}, {"prompt": [ASK]}),
        ({"chosen": HH + " A.", "rejected": HH + " B."}, {"prompt": HH}),
        ({"text": "Once"}, {"text": "once"}),
        ({"prompt": "It\u2019s late"}, {"prompt": "It's late"}),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}], "chosen": 1}, {"prompt": [ASK]}),
    ],
)
def test_forms_of_one_prompt_stay_together(one, other):
    others = [{"prompt": f"Something else {i}"} for i in range(6)]
    for seed in range(5):
        train, held_out = data.split([one, *others, other], 4, seed)
        assert (one in held_out) == (other in held_out)
        assert len(train) + len(held_out) == 8


def test_records_without_a_prompt_are_each_their_own():
    train, held_out = data.split([{"chosen": "a", "rejected": "b"}, {"x": 1}, {"x": 1}], 1)
    assert (len(train), len(held_out)) == (2, 1)


def test_splits_that_cannot_be_made():
    with pytest.raises(ValueError, match="Cannot keep back 1 of 4 records with 1 different"):
        data.split(rows("aaaa"), 1)
    with pytest.raises(ValueError, match="Cannot keep back 4 of 4"):
        data.split(rows("abcd"), 4)
    for bad in (0, -1, 1.0, "2", True):
        with pytest.raises(ValueError, match="`held_out`"):
            data.split(rows("abcd"), bad)


def test_sources_are_mixed_in_proportion():
    sources = [[f"{name}{i}" for i in range(size)] for name, size in (("a", 50), ("b", 30))]
    mixed = data.mix(sources, weights=[3, 1], rows=40, seed=1)
    assert collections.Counter(x[0] for x in mixed) == {"a": 30, "b": 10}
    assert len({*mixed}) == 40
    assert {"a", "b"} == {x[0] for x in mixed[:20]} == {x[0] for x in mixed[20:]}
    assert mixed == data.mix(sources, weights=[3, 1], rows=40, seed=1)
    assert mixed != data.mix(sources, weights=[3, 1], rows=40, seed=2)
    # As many as there are: 50 of the first go with 16 or 17 of the second.
    assert len(data.mix(sources, weights=[3, 1])) == 66
    assert sorted(data.mix(sources)) == sorted(sources[0] + sources[1])


def test_mixtures_that_cannot_be_made():
    sources = [["a"] * 5, ["b"] * 5]
    with pytest.raises(ValueError, match=r"source 0 has 5 of 9\. .*`rows` can be 6 at most"):
        data.mix(sources, weights=[3, 1], rows=12)
    with pytest.raises(ValueError, match="for each of the 2 sources"):
        data.mix(sources, weights=[1.0])
    with pytest.raises(ValueError, match=r"`weights\[1\]` must be above 0"):
        data.mix(sources, weights=[1.0, 0.0])
    with pytest.raises(ValueError, match="at least one source"):
        data.mix([])
    with pytest.raises(ValueError, match="The source has no rows"):
        data.mix([["a"], []])
