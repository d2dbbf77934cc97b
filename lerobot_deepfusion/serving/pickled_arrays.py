"""numpy's arrays and numbers, built from what a message says of them; nothing of numpy's own unpickling is called.

numpy's `_reconstruct`, `scalar` and `dtype` take object types, subclasses and any state from a pickle. Here an array
is plain numbers, its bytes are all there, and its size is that of its bytes: none can ask for more memory than
the message itself takes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from .pickle_reader import Call, Name
from .refusal import invalid, quoted

# numpy 2 and, behind its old name, numpy 1.
MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")
RECONSTRUCT = {f"{module}._reconstruct" for module in MULTIARRAY}  # pickle protocol 4
SCALAR = {f"{module}.scalar" for module in MULTIARRAY}
FROM_BUFFER = {"numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"}  # pickle protocol 5
NDARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"
NUMPY_NAMES = RECONSTRUCT | SCALAR | FROM_BUFFER | {NDARRAY, DTYPE}

PLAIN = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}
MAX_AXES = 4


def is_array(value: Any) -> bool:
    """Whether the message describes an array here."""
    return isinstance(value, Call) and value.path in RECONSTRUCT | FROM_BUFFER


def read_array(value: Any, what: str) -> np.ndarray:
    """An array of its own memory.

    Args:
        value: what `read_pickle` found.
        what: it is, for the message of an error.

    Raises:
        Refused: if it is no array of plain numbers, or its bytes are not as many as its shape needs.
    """
    order: Literal["C", "F"]
    match value:
        case Call(path, (Name(path="numpy.ndarray"), (0,), b"b"), (1, shape, dtype, bool(fortran), bytes(data))) if (
            path in RECONSTRUCT
        ):
            order = "F" if fortran else "C"
        case Call(path, (bytes() | bytearray() as data, dtype, shape, "C" | "F" as stated), None) if (
            path in FROM_BUFFER
        ):
            order = stated
        case _:
            raise invalid(f"{what} is {_called(value)}; expected an array of numbers")
    kind = _read_dtype(dtype, what)
    if not (
        type(shape) is tuple
        and len(shape) <= MAX_AXES
        and all(type(length) is int and 0 <= length <= len(data) for length in shape)
        and math.prod(shape) * kind.itemsize == len(data)
    ):
        raise invalid(f"{what} has {len(data)} bytes of {kind}, which do not fill the shape that it states")
    array = np.frombuffer(data, kind).reshape(shape, order=order)
    return array.astype(kind.newbyteorder("="), order="C")  # a copy that can be written to, as torch wants it


def read_number(value: Any, what: str) -> bool | int | float:
    """One number: Python's or numpy's, or an array without axes.

    Raises:
        Refused: if it is something else.
    """
    if type(value) in (bool, int, float):
        return value
    match value:
        case Call(path, (dtype, bytes(data)), None) if path in SCALAR:
            kind = _read_dtype(dtype, what)
            if kind.itemsize == len(data):
                return np.frombuffer(data, kind)[0].item()
    if is_array(value):
        array = read_array(value, what)
        if array.ndim == 0:
            return array.item()
        raise invalid(f"{what} is an array of the shape {array.shape}; expected one number")
    raise invalid(f"{what} is {_called(value)}; expected a number")


def _read_dtype(value: Any, what: str) -> np.dtype:
    """A type of plain numbers: no objects, texts, dates, fields or types within types."""
    match value:
        case Call(
            "numpy.dtype", (str(code), False, True), (3, "|" | "<" | ">" as order, None, None, None, -1, -1, 0)
        ):
            if code in PLAIN:
                return np.dtype(code).newbyteorder(order)
            raise invalid(f"{what} is an array of type {quoted(code)}; expected one of {', '.join(sorted(PLAIN))}")
    raise invalid(f"{what} is an array whose type is no plain number's")


def _called(value: Any) -> str:
    return f"what {value.path} makes" if isinstance(value, Call | Name) else quoted(value)
