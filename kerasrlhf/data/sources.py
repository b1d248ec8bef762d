"""Reading rows from memory, files, `tf.data` and TFDS, as plain Python values."""

import csv
import gzip
import json
import os
import pathlib

import numpy as np
import tensorflow as tf

_SUFFIXES = (".jsonl", ".json", ".csv")
_TFDS_PREFIX = "tfds:"
TEXT_COLUMNS = ("prompt", "response", "completion", "chosen", "rejected", "text", "messages")


def read(source, split="train", data_dir=None):
    """Reads all rows of a source.

    Args:
        source: Rows in memory (an iterable of dictionaries or strings); a path to a `.jsonl`,
            `.json` or `.csv` file, each also as `.gz`; an unbatched, finite `tf.data.Dataset` of
            strings or of dictionaries; or the name of a TFDS dataset, which is a `str` without
            path separator and file suffix. `"tfds:name/config:1.0.0"` is always a TFDS name.
        split: The split of a TFDS dataset; other sources ignore it.
        data_dir: Where TFDS keeps its prepared datasets; other sources ignore it.

    Returns:
        List of `dict` (or `str`) with Python values.

    Raises:
        ValueError: The file does not exist or is malformed (file and line are named), the
            dataset is infinite or batched, or `source` is none of the above.

    Example:

    >>> read(({"prompt": text} for text in ["a", "b"]))
    [{'prompt': 'a'}, {'prompt': 'b'}]
    >>> import tensorflow as tf
    >>> read(tf.data.Dataset.from_tensor_slices({"prompt": ["a"], "label": [1]}))
    [{'prompt': 'a', 'label': 1}]
    """
    if isinstance(source, tf.data.Dataset):
        return _read_dataset(source)
    if isinstance(source, str) and _is_tfds_name(source):
        return _read_tfds(source.removeprefix(_TFDS_PREFIX), split, data_dir)
    if isinstance(source, str | os.PathLike):
        return _read_file(pathlib.Path(source).expanduser())
    # Iterating over a pandas DataFrame gives its column names.
    if isinstance(source, dict) or hasattr(source, "itertuples") or not hasattr(source, "__iter__"):
        raise ValueError(
            "`source` must be an iterable of records (of a pandas DataFrame: "
            "`frame.to_dict('records')`), a path, a tf.data.Dataset or a TFDS name. "
            f"Received: {type(source).__name__}"
        )
    return list(source)


def _is_tfds_name(source):
    if source.startswith(_TFDS_PREFIX):
        return True
    looks_like_a_path = "/" in source or os.sep in source or pathlib.PurePath(source).suffix
    return not (looks_like_a_path or os.path.exists(source))


def _read_file(path):
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}. (Working directory: {os.getcwd()!r}.)")
    suffix = pathlib.Path(path.name.removesuffix(".gz")).suffix
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"Cannot tell the format of {str(path)!r}. Expected a name that ends with one of "
            f"{_SUFFIXES}, optionally followed by '.gz'."
        )
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        return {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}[suffix](file, path)


def _read_jsonl(file, path):
    rows = []
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
    return rows


def _read_json(file, path):
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error}).") from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} must hold a list of records. Received a JSON {type(rows).__name__}."
        )
    return rows


def _read_csv(file, path):
    reader = csv.DictReader(file)
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, line {reader.line_num}: expected {len(reader.fieldnames)} cells "
                f"({reader.fieldnames})."
            )
        rows.append(row)
    return rows


def _read_tfds(name, split, data_dir):
    # An import of seconds that the other sources do not need.
    import tensorflow_datasets as tfds

    return _read_dataset(tfds.load(name, split=split, data_dir=data_dir, shuffle_files=False))


def _read_dataset(dataset):
    spec = dataset.element_spec
    if not isinstance(spec, dict | tf.TensorSpec):
        raise ValueError(
            "A tf.data.Dataset of records must yield strings or dictionaries. Received elements "
            f"{spec}. Use `.map` to name the columns."
        )
    texts = [spec] if isinstance(spec, tf.TensorSpec) else _text_specs(spec)
    if any(text.shape.rank for text in texts):
        raise ValueError(
            f"Expected unbatched records. Received elements {spec}. Use `dataset.unbatch()`."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("Received an infinite tf.data.Dataset. Use `dataset.take(n)`.")
    return [_to_python(element) for element in dataset]


def _text_specs(spec):
    texts = (spec.get(column) for column in TEXT_COLUMNS)
    return [text for text in texts if isinstance(text, tf.TensorSpec) and text.dtype == tf.string]


def _to_python(value):
    """Python values for what a dataset yields; a sequence of dictionaries becomes a list."""
    if isinstance(value, dict):
        value = {key: _to_python(item) for key, item in value.items()}
        return _messages(value) if set(value) == {"role", "content"} else value
    if isinstance(value, tf.RaggedTensor):
        return _decode(value.to_list())
    if isinstance(value, tf.Tensor):
        value = value.numpy()
    return _decode(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _messages(columns):
    if not all(isinstance(column, list) for column in columns.values()):
        return columns
    pairs = zip(columns["role"], columns["content"], strict=True)
    return [{"role": role, "content": content} for role, content in pairs]


def _decode(value):
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value
