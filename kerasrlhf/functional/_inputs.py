"""Casts and checks that every pure function applies to its arguments first."""

from typing import Any, TypeAlias

from keras import ops

# `types.Tensor` is the same; this package imports nothing else of ours.
Tensor: TypeAlias = Any


def float32(x: Tensor) -> Tensor:
    """Returns anything array-like as a float32 tensor."""
    return ops.cast(ops.convert_to_tensor(x), "float32")


def boolean(mask: Tensor) -> Tensor:
    """Returns a mask of booleans or of zeros and ones as a bool tensor."""
    return ops.cast(ops.convert_to_tensor(mask), "bool")


def check_same_shape(**tensors: Tensor) -> None:
    """Raises a `ValueError` if statically known shapes differ; unknown sizes match anything."""
    names = list(tensors)
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    for name, shape in zip(names[1:], shapes[1:], strict=True):
        if not _compatible(shapes[0], shape):
            raise ValueError(
                f"`{names[0]}` has the shape {shapes[0]} and `{name}` the shape {shape}, but both "
                "must have the same. Cut or pad them to one shape; nothing is broadcast here."
            )


def check_rank(name: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
    """Raises a `ValueError` if `tensor` does not have exactly the named axes."""
    if len(tensor.shape) != len(axes):
        expected = f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
        raise ValueError(
            f"`{name}` has the shape {tuple(tensor.shape)}, expected {expected}. Reshape it."
        )


def check_candidates(name: str, scores: Tensor) -> None:
    """Raises a `ValueError` if `scores` is not `(batch, candidates)` with at least 2 candidates."""
    check_rank(name, scores, ("batch", "candidates"))
    if scores.shape[1] is not None and scores.shape[1] < 2:
        raise ValueError(
            f"`{name}` has the shape {tuple(scores.shape)}, expected (batch, candidates) with at "
            "least 2 candidates. Stack the preferred one and the others along axis 1."
        )


def check_unit_interval(name: str, value: float | Tensor) -> None:
    """Raises a `ValueError` if a Python number is outside [0, 1]; tensors are not checked."""
    # A tensor has no value while it is traced.
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"`{name}` is {value}, expected a number from 0 to 1, both included.")


def check_positive(name: str, value: float | Tensor) -> None:
    """Raises a `ValueError` if a Python number is not above 0; tensors are not checked."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"`{name}` is {value}, expected a number above 0.")


def _compatible(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    # None is a size that is unknown while tracing.
    return len(shape) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(shape, other, strict=True)
    )
