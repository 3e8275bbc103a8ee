"""How messages show values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _host


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape, such as `(None, 3)`."""
    sizes = [_host.word("none") if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)})"


def spec_text(array: Any) -> str:
    """The dtype and shape of an array or spec, such as `float32(None, 3)`."""
    if not array.shape:
        return f"{_article(str(array.dtype))} scalar"
    return f"{array.dtype}{shape_text(array.shape)}"


def value_text(value: Any) -> str:
    """The class of any value, and the value if it is short, as the user's language has them."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    shown = _host.shown(value)
    if shown is not None:
        return shown
    if value is None:
        return "None"
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def printable(path: str) -> str:
    """Escape the parts of a path that are not valid Unicode, for a message."""
    return path.encode(errors="backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for a message of ours.

    Returns:
        Text that is valid Unicode; the name of the exception's class if it has no message.
    """
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def _article(dtype: str) -> str:
    # "an int32", and "a uint32", which is pronounced "you-int".
    return f"an {dtype}" if dtype.startswith("i") else f"a {dtype}"
