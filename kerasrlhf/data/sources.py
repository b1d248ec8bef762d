"""Reading rows from memory, files, `tf.data` and TFDS, as plain Python values."""

from __future__ import annotations

import difflib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from kerasrlhf.data import formats

_TFDS_PREFIX = "tfds:"
_SHOWN = 60
# More rows than any data set of texts that is held in memory; an endless iterator has more.
_MOST_ROWS = 10_000_000
Source: TypeAlias = Iterable[Any] | str | os.PathLike[str] | tf.data.Dataset
TEXT_COLUMNS = ("prompt", "response", "completion", "chosen", "rejected", "text", "messages")


def read(
    source: Source, split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> list[Any]:
    """Reads all rows of a source.

    Args:
        source: Rows in memory (an iterable of dictionaries or strings; a generator is read once);
            a path to a `.jsonl`, `.json` or `.csv` file, each also as `.gz`, or to a `.parquet`
            file; an unbatched, finite `tf.data.Dataset` of strings or of dictionaries; or the name
            of a TFDS dataset, which is a str without path separator and file suffix.
            `"tfds:name/config:1.0.0"` is always a TFDS name.
        split: str. The split of a TFDS dataset; other sources ignore it. Defaults to `"train"`.
        data_dir: str, path or None. Where TFDS keeps its prepared datasets; other sources ignore
            it. Defaults to the directory that TFDS uses.

    Returns:
        list of dict (or str) with Python values, which every function of `kerasrlhf.data` accepts
        as a source.

    Raises:
        ValueError: If the file does not exist or is malformed (file and line are named), TFDS does
            not know the name, the dataset is infinite or batched, an iterator does not end within
            ten million rows, or `source` is none of the above.

    Example:
        >>> import tensorflow as tf
        >>> rlhf.data.read(({"prompt": text} for text in ["a", "b"]))
        [{'prompt': 'a'}, {'prompt': 'b'}]
        >>> rlhf.data.read(tf.data.Dataset.from_tensor_slices({"prompt": ["a"], "label": [1]}))
        [{'prompt': 'a', 'label': 1}]
    """
    # Datasets first: they are iterable too.
    if isinstance(source, tf.data.Dataset):
        return _read_dataset(source)
    if isinstance(source, str):
        return _read_named(source, split, data_dir)
    if isinstance(source, os.PathLike):
        return _read_path(pathlib.Path(source))
    return _read_memory(source)


def _read_memory(source: Any) -> list[Any]:
    # Iterating over a pandas DataFrame returns its column names, over bytes numbers.
    is_table = isinstance(source, dict) or hasattr(source, "itertuples")
    if is_table or isinstance(source, bytes) or not hasattr(source, "__iter__"):
        raise ValueError(
            "`source` must be an iterable of records (of a pandas DataFrame: "
            "`frame.to_dict('records')`; of a single record: `[record]`), a path, a "
            f"tf.data.Dataset or a TFDS name. Received: {_short(source)} of type "
            f"{type(source).__name__}."
        )
    # A list of file names would pass as a list of texts.
    rows = list(source) if hasattr(source, "__len__") else _ending(source)
    if rows and all(isinstance(row, str | os.PathLike) and _is_file_name(row) for row in rows):
        raise ValueError(
            f"Received a list of file names, {_short(rows)}, where records were expected. Pass one "
            "path, or join the files: `[*rlhf.data.records.load(one), "
            "*rlhf.data.records.load(other)]`."
        )
    return rows


def _ending(iterator: Iterable) -> list[Any]:
    """Returns the rows of an iterator, whose number is limited: it may be endless."""
    rows = list(itertools.islice(iterator, _MOST_ROWS + 1))
    if len(rows) > _MOST_ROWS:
        raise ValueError(
            f"The iterator did not end after {_MOST_ROWS:,} rows. Take the first n with "
            "`itertools.islice(rows, n)`, or pass `list(rows)` if it does end."
        )
    return rows


def _is_file_name(name: str | os.PathLike[str]) -> bool:
    return formats.suffix(name) in formats.SUFFIXES


def _read_named(source: str, split: str, data_dir: str | os.PathLike[str] | None) -> list[Any]:
    """Returns the rows of the file or TFDS dataset that a string names."""
    path = pathlib.Path(source).expanduser()
    if source.startswith(_TFDS_PREFIX):
        return _read_tfds(source.removeprefix(_TFDS_PREFIX), split, data_dir)
    # Whatever looks like neither a file nor a text is the name of a TFDS dataset.
    looks_like_a_path = "/" in source or os.sep in source or path.suffix or os.path.exists(path)
    is_text = source.split() != [source] and not _is_file_name(source)
    if is_text and not os.path.isfile(path):
        raise ValueError(
            f"Received the string {_short(source)}, which is not the name of a file. A string "
            f"names a file or a TFDS dataset. Texts are passed as a list: [{_short(source)}]."
        )
    if looks_like_a_path:
        return _read_path(path)
    similar, differs_in_ending = formats.similar_file(path)
    if differs_in_ending:
        raise ValueError(
            f"There is no file {source!r}. Did you mean {str(similar)!r}? (A TFDS dataset of this "
            f"name is {_TFDS_PREFIX + source!r}.)"
        )
    return _read_tfds(source, split, data_dir, similar)


def _read_path(path: pathlib.Path) -> list[Any]:
    path = path.expanduser()
    if os.path.isfile(path):
        return formats.read_file(path)
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


def _read_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    similar_file: pathlib.Path | None = None,
) -> list[Any]:
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
    return _read_dataset(dataset)


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


def _read_dataset(dataset: tf.data.Dataset) -> list[Any]:
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
    return _ending(_python_rows(dataset))


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
        return _messages(value) if set(value) == {"role", "content"} else value
    if isinstance(value, tf.RaggedTensor):
        return _decode(value.to_list())
    if isinstance(value, tf.Tensor):
        value = value.numpy()
    return _decode(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _messages(columns: dict[str, Any]) -> Any:
    if not all(isinstance(column, list) for column in columns.values()):
        return columns
    pairs = zip(columns["role"], columns["content"], strict=True)
    return [{"role": role, "content": content} for role, content in pairs]


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value
