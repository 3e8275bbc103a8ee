"""Numeric dtypes by name.

Names are looked up in a table. `np.dtype` would parse them: it accepts much more than names, and
raises exceptions of many classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np


def _known() -> Mapping[str, np.dtype[Any]]:
    signed: list[type[np.generic]] = [np.int8, np.int16, np.int32, np.int64]
    unsigned: list[type[np.generic]] = [np.uint8, np.uint16, np.uint32, np.uint64]
    floats: list[type[np.generic]] = [np.float16, np.float32, np.float64, np.longdouble]
    # `ml_dtypes` also has the functions `finfo` and `iinfo`.
    small = [
        dtype
        for dtype in vars(ml_dtypes).values()
        if isinstance(dtype, type) and issubclass(dtype, np.generic)
    ]
    kinds: list[type[np.generic]] = [
        np.bool_,
        *signed,
        *unsigned,
        *floats,
        np.complex64,
        np.complex128,
        np.clongdouble,
        *small,
    ]
    return {np.dtype(kind).name: np.dtype(kind) for kind in kinds}


_DTYPES = _known()


def named(name: object) -> np.dtype[Any]:
    """Look up a numeric dtype.

    Args:
        name: The name of the dtype. It may come from a file, so it can be any object.

    Raises:
        ValueError: No numeric dtype has this name.
    """
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        text = repr(name)
        shortened = text if len(text) <= 60 else text[:57] + "..."
        raise ValueError(f"{shortened} is not a numeric dtype")
    return dtype
