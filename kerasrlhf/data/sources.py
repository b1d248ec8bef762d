"""Reading rows from memory, files, `tf.data`, TFDS and Hugging Face, as plain Python values."""

from __future__ import annotations

import difflib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from kerasrlhf.data import formats, hub_datasets
from kerasrlhf.data.places import Broken, Located
from kerasrlhf.data.renaming import Renaming
from kerasrlhf.data.schema import MESSAGES

_TFDS_PREFIX = "tfds:"
_SHOWN = 60
_MESSAGES = [{*keys} for keys in MESSAGES.values()]
# More rows than any data set of texts that is held in memory; an endless iterator has more.
_MOST_ROWS = 10_000_000
Source: TypeAlias = Iterable[Any] | str | os.PathLike[str] | tf.data.Dataset
TEXT_COLUMNS = ("prompt", "response", "completion", "chosen", "rejected", "text", "messages")


class Opened(NamedTuple):
    """A source that is being read.

    Attributes:
        path: path or None. The file, if it is one.
        rows: Iterator of pairs of the line where a row begins, or None, and the row, or
            `kerasrlhf.data.places.Broken`.
    """

    path: pathlib.Path | None
    rows: Iterator[tuple[int | None, Any]]


def read(
    source: Source,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Any]:
    """Reads all rows of a source.

    Args:
        source: Rows in memory (an iterable of dictionaries or strings; a generator is read once);
            a path to a `.jsonl`, `.json` or `.csv` file, each also as `.gz`, or to a `.parquet`
            file; an unbatched, finite `tf.data.Dataset` of strings or of dictionaries; a
            `datasets.Dataset` or `IterableDataset` of Hugging Face; a `kerasrlhf.data.Stream`; or
            the name of a TFDS dataset, which is a str without path separator and file suffix.
            `"tfds:name/config:1.0.0"` is always a TFDS name.
        split: str. The split of a TFDS dataset; other sources ignore it. Defaults to `"train"`.
        data_dir: str, path or None. Where TFDS keeps its prepared datasets; other sources ignore
            it. Defaults to the directory that TFDS uses.
        columns: dict from str, the name that a column gets, to str, its name in the source, or
            None. Other columns keep their names. Defaults to None.

    Returns:
        list of dict (or str) with Python values, which every function of `kerasrlhf.data` accepts
        as a source.

    Raises:
        ValueError: If the file does not exist or is malformed (file and line are named), TFDS does
            not know the name, the dataset is infinite or batched, an iterator does not end within
            ten million rows, no row has one of `columns`, or `source` is none of the above.

    Example:
        >>> import tensorflow as tf
        >>> rlhf.data.read(({"prompt": text} for text in ["a", "b"]))
        [{'prompt': 'a'}, {'prompt': 'b'}]
        >>> rlhf.data.read(tf.data.Dataset.from_tensor_slices({"prompt": ["a"], "label": [1]}))
        [{'prompt': 'a', 'label': 1}]
        >>> rlhf.data.read([{"question": "a", "id": 3}], columns={"prompt": "question"})
        [{'prompt': 'a', 'id': 3}]
    """
    rows = located(source, split, data_dir, columns)
    rows.check()
    # A plain list: callers may sort it or leave rows out.
    return list(rows)


def located(
    source: Source,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Located:
    """Returns all rows of a source with their places; those that cannot be read are empty.

    Args:
        source: As in `read`.
        split: str. As in `read`. Defaults to `"train"`.
        data_dir: str, path or None. As in `read`. Defaults to None.
        columns: dict or None. As in `read`. Defaults to None.

    Returns:
        `kerasrlhf.data.places.Located`.

    Raises:
        ValueError: As `read`, except for rows that cannot be read.
    """
    renaming = Renaming(columns)
    if isinstance(source, Located):
        return source.with_rows([renaming(row) for row in source])
    opened = open_source(source, split, data_dir, _MOST_ROWS)
    rows: list[Any] = []
    lines: list[int] = []
    broken: dict[int, str] = {}
    for line, row in opened.rows:
        if isinstance(row, Broken):
            broken[len(rows)], row = row.reason, {}
        rows.append(renaming(row))
        lines += [] if line is None else [line]
    renaming.check(str(opened.path or "the source"))
    if opened.path is None:
        refuse_file_names(rows)
    return Located(rows, opened.path, lines or None, broken)


def open_source(
    source: Source,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    most: int | None = None,
) -> Opened:
    """Begins to read a source, whose rows come one by one.

    Args:
        source: As in `read`.
        split: str. As in `read`. Defaults to `"train"`.
        data_dir: str, path or None. As in `read`. Defaults to None.
        most: int or None. More rows of an iterator or a dataset are an error. Defaults to None:
            any number is fine.

    Returns:
        `Opened`.

    Raises:
        ValueError: As `read`; some of its errors are raised by the iterator.
    """
    # Datasets first: they are iterable too.
    if isinstance(source, tf.data.Dataset):
        return Opened(None, _without_lines(_dataset_rows(source, most)))
    if isinstance(source, str):
        return _open_named(source, split, data_dir, most)
    if isinstance(source, os.PathLike):
        return _open_path(pathlib.Path(source))
    if hub_datasets.is_one(source):
        return Opened(None, _without_lines(map(_joined_messages, hub_datasets.rows(source))))
    return Opened(None, _without_lines(_memory_rows(source, most)))


def _without_lines(rows: Iterable[Any]) -> Iterator[tuple[None, Any]]:
    return ((None, row) for row in rows)


def _memory_rows(source: Any, most: int | None) -> Iterable[Any]:
    # Iterating over a pandas DataFrame returns its column names, over bytes numbers.
    is_table = isinstance(source, dict) or hasattr(source, "itertuples")
    if is_table or isinstance(source, bytes) or not hasattr(source, "__iter__"):
        raise ValueError(
            "`source` must be an iterable of records (of a pandas DataFrame: "
            "`frame.to_dict('records')`; of a single record: `[record]`), a path, a "
            f"tf.data.Dataset or a TFDS name. Received: {_short(source)} of type "
            f"{type(source).__name__}."
        )
    return source if hasattr(source, "__len__") else _ending(source, most)


def refuse_file_names(rows: Sequence[Any]) -> None:
    """Raises an error for a list of file names, which would pass as a list of texts."""
    if rows and all(isinstance(row, str | os.PathLike) and _is_file_name(row) for row in rows):
        raise ValueError(
            f"Received a list of file names, {_short(rows)}, where records were expected. Pass one "
            "path, or join the files: `[*rlhf.data.records.load(one), "
            "*rlhf.data.records.load(other)]`."
        )


def _ending(iterator: Iterable, most: int | None) -> Iterator[Any]:
    """Yields the rows of an iterator, whose number is limited: it may be endless."""
    for number, row in enumerate(iterator):
        if number == most:
            raise ValueError(
                f"The iterator did not end after {most:,} rows. Take the first n with "
                "`itertools.islice(rows, n)`, or pass `list(rows)` if it does end."
            )
        yield row


def _is_file_name(name: str | os.PathLike[str]) -> bool:
    return formats.suffix(name) in formats.SUFFIXES


def _open_named(
    source: str, split: str, data_dir: str | os.PathLike[str] | None, most: int | None
) -> Opened:
    """Opens the file or TFDS dataset that a string names."""
    path = pathlib.Path(source).expanduser()
    if source.startswith(_TFDS_PREFIX):
        return _open_tfds(source.removeprefix(_TFDS_PREFIX), split, data_dir, most)
    # Whatever looks like neither a file nor a text is the name of a TFDS dataset.
    looks_like_a_path = "/" in source or os.sep in source or path.suffix or os.path.exists(path)
    is_text = source.split() != [source] and not _is_file_name(source)
    if is_text and not os.path.isfile(path):
        raise ValueError(
            f"Received the string {_short(source)}, which is not the name of a file. A string "
            f"names a file or a TFDS dataset. Texts are passed as a list: [{_short(source)}]."
        )
    if looks_like_a_path:
        return _open_path(path)
    similar, differs_in_ending = formats.similar_file(path)
    if differs_in_ending:
        raise ValueError(
            f"There is no file {source!r}. Did you mean {str(similar)!r}? (A TFDS dataset of this "
            f"name is {_TFDS_PREFIX + source!r}.)"
        )
    return _open_tfds(source, split, data_dir, most, similar)


def _open_path(path: pathlib.Path) -> Opened:
    path = path.expanduser()
    if os.path.isfile(path):
        return Opened(path, formats.rows(path))
    similar, _ = formats.similar_file(path)
    folder = " It is a folder." if os.path.isdir(path) else ""
    raise ValueError(
        f"There is no file {str(path)!r}.{folder}"
        + (f" Did you mean {str(similar)!r}?" if similar else "")
        + f" (Working directory: {os.getcwd()!r}.)"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _open_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    most: int | None,
    similar_file: pathlib.Path | None = None,
) -> Opened:
    # An import of seconds that the other sources do not need.
    import tensorflow_datasets as tfds

    _check_tfds_name(tfds, name, data_dir, similar_file)
    try:
        dataset = tfds.load(name, split=split, data_dir=data_dir, shuffle_files=False)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"TFDS cannot load the split {split!r} of {name!r}: {reason}") from error
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(f"`split` must name one split, such as 'train'. Received: {split!r}.")
    return Opened(None, _without_lines(_dataset_rows(dataset, most)))


def _check_tfds_name(
    tfds: ModuleType,
    name: str,
    data_dir: str | os.PathLike[str] | None,
    similar_file: pathlib.Path | None,
) -> None:
    """Raises an error for an unknown name, without the network that the search of TFDS needs."""
    try:
        builder, _ = tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError:
        builder = None
    if builder is not None and builder.namespace:
        return  # Only the servers of that community know its datasets.
    known = tfds.list_builders(with_community_datasets=False)
    folders = [str(x) for x in tfds.core.utils.file_utils.list_data_dirs(data_dir)]
    # Known to TFDS, or prepared in one of its folders.
    plain = name if builder is None else str(builder)
    if plain in known or any(tf.io.gfile.isdir(os.path.join(x, plain)) for x in folders):
        return
    near = [similar_file] if similar_file else []
    near += difflib.get_close_matches(plain.lower(), known, n=3)
    raise ValueError(
        f"There is no file {_short(name)} in {os.getcwd()!r}, and no TFDS dataset of that name, "
        f"neither known nor prepared in {folders}."
        + (f" Did you mean {' or '.join(repr(str(x)) for x in near)}?" if near else "")
        + " A file needs its ending, such as 'pairs.jsonl'; texts are passed as a list."
    )


def _dataset_rows(dataset: tf.data.Dataset, most: int | None) -> Iterator[Any]:
    spec = dataset.element_spec
    if not isinstance(spec, dict | tf.TensorSpec):
        raise ValueError(
            "A tf.data.Dataset of records must yield strings or dictionaries. Received elements "
            f"{spec}. Use `.map` to name the columns."
        )
    # A batch shows in the rank of its texts; other columns may be arrays.
    texts = [spec] if isinstance(spec, tf.TensorSpec) else _text_specs(spec)
    if any(text.shape.rank for text in texts):
        raise ValueError(
            f"Expected unbatched records. Received elements {spec}. Use `dataset.unbatch()`."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("Received an infinite tf.data.Dataset. Use `dataset.take(n)`.")
    return _ending(_python_rows(dataset), most)


def _python_rows(dataset: tf.data.Dataset) -> Iterator[Any]:
    for index, element in enumerate(dataset):
        try:
            yield _to_python(element)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Row {index} of the dataset has bytes that are not UTF-8 ({error}). Decode or "
                "drop the column with `dataset.map`."
            ) from error


def _text_specs(spec: dict[str, Any]) -> list[tf.TensorSpec]:
    texts = (spec.get(column) for column in TEXT_COLUMNS)
    return [text for text in texts if isinstance(text, tf.TensorSpec) and text.dtype == tf.string]


def _to_python(value: Any) -> Any:
    """Returns Python values for an element; a sequence of dictionaries becomes a list."""
    if isinstance(value, dict):
        value = {key: _to_python(item) for key, item in value.items()}
        # TFDS has a list of messages as one dict of two lists.
        return _messages(value) if {*value} in _MESSAGES else value
    if isinstance(value, tf.RaggedTensor):
        return _decode(value.to_list())
    if isinstance(value, tf.Tensor):
        value = value.numpy()
    return _decode(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _joined_messages(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of Hugging Face with messages as lists, not as one dict of two lists."""
    return {
        name: _messages(cell) if isinstance(cell, dict) and {*cell} in _MESSAGES else cell
        for name, cell in row.items()
    }


def _messages(columns: dict[str, Any]) -> Any:
    if not all(isinstance(column, list) for column in columns.values()):
        return columns
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value
