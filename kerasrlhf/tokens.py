"""Between texts and token ids, the same for every keras-hub tokenizer.

keras-hub tokenizers return ragged tensors, arrays or lists, depending on their kind and workflow;
here ids are lists of `int`, without start, end and padding.
"""

import numpy as np

_CHUNK = 1024


def tokenize(texts, preprocessor):
    """Tokenizes texts, adding nothing.

    Args:
        texts: List of `str`.
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.

    Returns:
        List of lists of `int`, one per text.

    Raises:
        ValueError: The tokenizer pads, adds tokens of its own, or returns strings.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
    >>> tokenize(["ab", "ba", ""], tokenizer)
    [[3], [2, 1], []]
    """
    tokenizer = _tokenizer(preprocessor)
    texts = list(texts)
    rows = [[] for _ in texts]
    # Empty texts stay out: not every tokenizer keeps a row for them.
    filled = [index for index, text in enumerate(texts) if text]
    for chunk in (filled[i : i + _CHUNK] for i in range(0, len(filled), _CHUNK)):
        ids = _to_lists(tokenizer([texts[index] for index in chunk]))
        for index, row in zip(chunk, ids, strict=True):
            rows[index] = row
    return rows


def detokenize(rows, preprocessor):
    """Turns token ids into texts, leaving out start, end and padding tokens.

    Only ids that the tokenizer declares as special tokens are left out. A padding id that is an
    ordinary token (0 is "!" in GPT-2) is kept: pass the real tokens of a row, without padding.

    Args:
        rows: List of lists of `int`, or of 1D integer arrays.
        preprocessor: A keras-hub preprocessor, or the tokenizer itself.

    Returns:
        List of `str`.

    Raises:
        ValueError: As `tokenize`.

    Example:

    >>> import keras_hub
    >>> vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    >>> tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["a b"])
    >>> detokenize([[0, 3, 2, 0], [0]], tokenizer)
    ['abb', '']
    """
    tokenizer = _tokenizer(preprocessor)
    special = _special_ids(tokenizer)
    rows = [[int(i) for i in row if int(i) not in special] for row in rows]
    texts = [""] * len(rows)
    filled = [index for index, row in enumerate(rows) if row]
    for chunk in (filled[i : i + _CHUNK] for i in range(0, len(filled), _CHUNK)):
        decoded = tokenizer.detokenize([rows[index] for index in chunk])
        for index, text in zip(chunk, _to_texts(decoded), strict=True):
            texts[index] = text
    return texts


def start_ids(preprocessor):
    """The ids that open every row: the start token, where preprocessor and tokenizer have one.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`.

    Returns:
        List of one `int`, or an empty list.

    Example:

    >>> import types
    >>> tokenizer = types.SimpleNamespace(start_token_id=1)
    >>> start_ids(types.SimpleNamespace(tokenizer=tokenizer, add_start_token=True))
    [1]
    """
    start = getattr(_tokenizer(preprocessor), "start_token_id", None)
    return (
        [int(start)] if getattr(preprocessor, "add_start_token", True) and start is not None else []
    )


def end_ids(preprocessor, end_token_id="auto"):
    """The ids that close every response in training data.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`.
        end_token_id: `"auto"` takes the tokenizer's end token when the preprocessor adds it; an
            `int` names another token; `None` means no token.

    Returns:
        List of one `int`, or an empty list.

    Raises:
        ValueError: The id is outside the vocabulary.

    Example:

    >>> import types
    >>> tokenizer = types.SimpleNamespace(end_token_id=2, vocabulary_size=lambda: 9)
    >>> preprocessor = types.SimpleNamespace(tokenizer=tokenizer, add_end_token=True)
    >>> end_ids(preprocessor), end_ids(preprocessor, 5), end_ids(preprocessor, None)
    ([2], [5], [])
    """
    tokenizer = _tokenizer(preprocessor)
    if end_token_id == "auto":
        add = getattr(preprocessor, "add_end_token", True)
        end_token_id = getattr(tokenizer, "end_token_id", None) if add else None
    if end_token_id is None:
        return []
    if isinstance(end_token_id, str) or not 0 <= end_token_id < tokenizer.vocabulary_size():
        raise ValueError(
            "`end_token_id` must be 'auto', None, or an id below the vocabulary size "
            f"{tokenizer.vocabulary_size()}. Received: {end_token_id!r}"
        )
    return [int(end_token_id)]


def closed(rows, end, whole):
    """Rows of ids with `end` behind those that are whole and do not end in it already.

    Args:
        rows: List of lists of `int`.
        end: As `end_ids` gives it.
        whole: List of `bool`.

    Example:

    >>> closed([[5], [6, 2], [7]], [2], [True, True, False])
    [[5, 2], [6, 2], [7]]
    """
    return [
        ids + end if is_whole and ids[-1:] != end else ids
        for ids, is_whole in zip(rows, whole, strict=True)
    ]


def pad_id(preprocessor):
    """The id written into padding. It carries no meaning: masks say what is padding.

    Args:
        preprocessor: A keras-hub `CausalLMPreprocessor`.

    Returns:
        An `int`; 0 when the tokenizer has no padding token.

    Example:

    >>> import types
    >>> pad_id(types.SimpleNamespace(tokenizer=types.SimpleNamespace(pad_token_id=3)))
    3
    """
    return int(getattr(_tokenizer(preprocessor), "pad_token_id", None) or 0)


def encode(texts, preprocessor):
    """Tokenizes texts as the beginning of rows: with the start token, where the model has one.

    Args:
        texts: List of `str`.
        preprocessor: A keras-hub `CausalLMPreprocessor`.

    Returns:
        List of lists of `int`, one per text.

    Raises:
        ValueError: No texts, an entry that is not a `str`, or no preprocessor.
    """
    texts = list(texts)
    if preprocessor is None:
        raise ValueError(
            "Texts need a tokenizer, and the model has no preprocessor. Attach one, or pass "
            "`token_ids` and `padding_mask`."
        )
    bad = [index for index, text in enumerate(texts) if not isinstance(text, str)]
    if bad or not texts:
        what = f"other things at rows {bad[:5]}" if bad else "nothing"
        raise ValueError(f"Expected a list of strings, at least one. Received {what}.")
    start = start_ids(preprocessor)
    rows = [start + row for row in tokenize(texts, preprocessor)]
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(
            f"The texts of rows {empty[:5]} are empty; a row needs one token at least."
        )
    return rows


def padded(rows, multiple=1):
    """Rows of ids as one array, padded on the right.

    Args:
        rows: List of lists of `int`.
        multiple: The length is rounded up to a multiple of this.

    Returns:
        `int32` array `(rows, length)` and its bool mask of real tokens.

    Example:

    >>> ids, mask = padded([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[True, True, True], [True, False, False]])
    """
    length = -(-max(map(len, rows)) // multiple) * multiple
    token_ids = np.zeros((len(rows), length), "int32")
    mask = np.arange(length)[None] < np.array([len(row) for row in rows])[:, None]
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = row
    return token_ids, mask


def check_right_padded(token_ids, padding_mask):
    """Raises a `ValueError` for rows that are not real tokens followed by padding.

    Args:
        token_ids: `(rows, length)` integers.
        padding_mask: `(rows, length)`, true at real tokens.

    Raises:
        ValueError: Other shapes, a row without a token, or padding before a token.

    Example:

    >>> check_right_padded([[5, 6, 0]], [[True, True, False]])
    """
    mask, shape = np.asarray(padding_mask, bool), np.asarray(token_ids).shape
    if mask.ndim != 2 or mask.shape != shape or not mask.size:
        raise ValueError(
            "Expected `token_ids` and `padding_mask` of one shape (rows, length). Received: "
            f"{shape} and {mask.shape}."
        )
    bad = np.flatnonzero(~mask[:, 0] | (mask[:, 1:] & ~mask[:, :-1]).any(axis=1))
    if bad.size:
        raise ValueError(
            "Rows must begin with a real token and be padded on the right. Rows "
            f"{bad[:5].tolist()} are empty or have padding before a token (padding_mask "
            f"{mask[bad[0]].astype(int).tolist()})."
        )


def masked_rows(token_ids, mask):
    """The ids at true positions.

    Args:
        token_ids: `(rows, length)` integers.
        mask: `(rows, length)` booleans.

    Returns:
        List of lists of `int`.

    Example:

    >>> masked_rows([[5, 6, 7]], [[False, True, True]])
    [[6, 7]]
    """
    ids, mask = np.asarray(token_ids), np.asarray(mask, bool)
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def _tokenizer(preprocessor):
    tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
    if tokenizer is None:
        raise ValueError(
            "A tokenizer is needed. Received a preprocessor without one (or None): pass "
            "`causal_lm.preprocessor` of a model that was made with its preprocessor."
        )
    for option in ("sequence_length", "add_bos", "add_eos"):
        if getattr(tokenizer, option, None):
            raise ValueError(
                f"{type(tokenizer).__name__} was made with {option}="
                f"{getattr(tokenizer, option)!r}, which adds tokens to every text. Leave it out."
            )
    return tokenizer


def _special_ids(tokenizer):
    """Ids of the start, end and padding tokens, as far as they are special tokens."""
    names = ("start_token_id", "end_token_id", "pad_token_id")
    return {getattr(tokenizer, name, None) for name in names} & {*tokenizer.special_token_ids}


def _to_lists(ids):
    if hasattr(ids, "to_list"):
        ids = ids.to_list()
    rows = [np.asarray(row).tolist() for row in ids]
    if any(isinstance(token, str | bytes) for row in rows for token in row[:1]):
        raise ValueError("The tokenizer returns strings. Make it with dtype='int32'.")
    return rows


def _to_texts(texts):
    texts = texts.numpy() if hasattr(texts, "numpy") else texts
    return [
        text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)
        for text in texts
    ]
