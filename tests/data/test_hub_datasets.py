"""Rows of the datasets of Hugging Face; without their package, of objects that behave alike."""

import pytest

from kerasrlhf import data

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
ROWS = [{"prompt": text, "label": i, "messages": TALK} for i, text in enumerate("abcde")]


class Rows:
    """What this package uses of a `datasets.Dataset`."""

    def __init__(self, rows, transform=None):
        self.rows, self.transform = rows, transform
        self.column_names = [*rows[0]]
        self.format = {"type": "custom" if transform else None, "columns": self.column_names}

    @classmethod
    def from_list(cls, rows):
        return cls(rows)

    def with_format(self, kind, columns=None):
        chosen = columns or self.column_names
        return Rows([{name: row[name] for name in chosen} for row in self.rows])

    def with_transform(self, transform):
        return Rows(self.rows, transform)

    def to_iterable_dataset(self):
        return self

    def iter(self, batch_size):
        for first in range(0, len(self.rows), batch_size):
            some = self.rows[first : first + batch_size]
            yield {name: [row[name] for row in some] for name in self.column_names}

    def __iter__(self):
        if self.transform is None:
            raise AssertionError("rows one by one are slow")
        for row in self.rows:
            batch = self.transform({name: [cell] for name, cell in row.items()})
            yield {name: cells[0] for name, cells in batch.items()}


class Splits(dict):
    """The same of a `datasets.DatasetDict`."""

    column_names = property(lambda self: {name: part.column_names for name, part in self.items()})

    def with_format(self, kind):
        return self


@pytest.fixture(params=["datasets", "alike"])
def hub(request):
    if request.param == "alike":
        return Rows, Splits
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset, datasets.DatasetDict


def test_rows_are_python_values(hub, gpt2):
    dataset = hub[0].from_list(ROWS)
    assert data.read(dataset) == data.read(dataset.to_iterable_dataset()) == ROWS
    assert data.read(dataset.with_format("numpy")) == ROWS
    some = dataset.with_format("numpy", columns=["prompt", "label"])
    assert data.read(some) == [{"prompt": row["prompt"], "label": row["label"]} for row in ROWS]
    # Loaders take it, in memory and as a stream.
    for source in (dataset, data.Stream(dataset), data.Stream(dataset.to_iterable_dataset())):
        (batch,) = data.prompts(source, gpt2, 5, shuffle=False).as_numpy_iterator()
        assert batch["prompt"].tolist() == [b"a", b"b", b"c", b"d", b"e"]


def test_a_transformation_of_the_user_is_applied(hub):
    dataset = hub[0].from_list([{"prompt": "a"}, {"prompt": "b"}])
    upper = dataset.with_transform(lambda batch: {"prompt": [x.upper() for x in batch["prompt"]]})
    assert data.read(upper) == [{"prompt": "A"}, {"prompt": "B"}]


def test_messages_as_a_dict_of_lists_are_messages(hub):
    columns = {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}
    dataset = hub[0].from_list([{"messages": columns}])
    assert data.read(dataset) == [{"messages": TALK}]


def test_a_dict_of_splits_names_them(hub):
    dataset = hub[0].from_list(ROWS)
    splits = hub[1]({"train": dataset, "test": dataset})
    for read in (data.read, lambda source: list(data.Stream(source))):
        message = r"Received a \w+ of Hugging Face with the splits \['train', 'test'\].*\['train'\]"
        with pytest.raises(ValueError, match=message):
            read(splits)
