"""Files of safetensors: the package checks a file's header and writes files; the arrays are read here.

The package's own reading maps the file into memory and copies it, which counts twice, and it knows no 8-bit floats in NumPy.
It opens the file by its name: what it has checked may be another file than the one that is read, so that all of the header is
checked here as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .. import _limits
from .._errors import ArgumentError, FileError, VariablesError
from ._source import Source, needed

Array = np.ndarray[Any, Any]

_METADATA = "__metadata__"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        **{
            "BOOL": np.bool_,
            "F16": np.float16,
            "F32": np.float32,
            "F64": np.float64,
            "C64": np.complex64,
        },
        **{"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64},
        **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
        **{
            "BF16": ml_dtypes.bfloat16,
            "F8_E4M3": ml_dtypes.float8_e4m3fn,
            "F8_E5M2": ml_dtypes.float8_e5m2,
        },
        **{"F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz},
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}
# As the package has it.
_LONGEST_HEADER = 10**8
# Whose files name tied weights in their metadata: those of PyTorch, which need not say so.
_NAMING_TIES = ("pt", None)
_FORMAT = "format"
_Entry = tuple[str, list[int], list[int]]


def write(arrays: Mapping[str, Array], path: Path, metadata: Mapping[str, str]) -> None:
    """Write arrays by path.

    Raises:
        ArgumentError: A text in the metadata would be taken for something else.
        OSError: The package cannot write the file.
        VariablesError: The format has no place for a name or dtype.
    """
    package = needed("safetensors.numpy", "safetensors", "A `.safetensors` file")
    errors = needed("safetensors", "safetensors", "A `.safetensors` file")
    unknown = [
        f"  {path}: {array.dtype}"
        for path, array in arrays.items()
        if array.dtype not in _DTYPES.values()
    ]
    if unknown or _METADATA in arrays:
        raise VariablesError(
            "A `.safetensors` file does not hold weights of these dtypes:\n"
            + "\n".join(unknown)
            + "\nWrite `.msgpack`."
            if unknown
            else f"A `.safetensors` file has another use for the name {_METADATA!r}.\nWrite `.msgpack`."
        )
    # "flax", since some readers ask by what the file was written.
    metadata = {_FORMAT: "flax", **metadata}
    ties = _ties(metadata, arrays)
    if ties:
        raise ArgumentError(
            "In `metadata` a text that is the path of a weight makes its name a tied weight, in a file of PyTorch:\n"
            + "\n".join(f"  {name}: {kept}" for name, kept in ties.items())
            + "\nGive another text, or leave `format` out."
        )
    # Newer versions of the package make files that their owner alone can read.
    path.touch()
    mode = path.stat().st_mode
    # The package writes memory as it lies, whatever its order.
    rows = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        package.save_file(rows, path, metadata)
    except errors.SafetensorError as error:
        # The package has no other error, if the disk is full.
        raise OSError(str(error)) from error
    path.chmod(mode)


def read(source: Source) -> dict[str, Array]:
    """Read arrays by the names that they have in the file.

    Of tied weights a file of PyTorch may hold one, and name the others in its metadata: they become the same array.

    Raises:
        FileError: The file is damaged, or no safetensors file.
    """
    package = needed("safetensors", "safetensors", "A `.safetensors` file")
    path = source.path
    try:
        with package.safe_open(path, framework="np"):
            pass
    except package.SafetensorError as error:
        raise FileError(f"{str(path)!r} is damaged, or no safetensors file: {error}.") from error
    header, metadata = _header(source)
    if not _DTYPES.keys() >= {dtype for dtype, _, _ in header.values()}:
        unknown = [
            f"  {name}: {dtype}" for name, (dtype, _, _) in header.items() if dtype not in _DTYPES
        ]
        raise FileError(
            f"{str(path)!r} holds weights of dtypes that NumPy does not have:\n"
            + "\n".join(unknown)
        )
    end, arrays = 0, {}
    ordered = sorted(header.items(), key=lambda item: item[1][2])
    for name, (dtype, shape, offsets) in ordered:
        begin, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        if offsets != [begin, end]:
            raise source.damaged(
                f"{name!r} lies at the bytes {offsets}, where {[begin, end]} are expected"
            )
    if end != source.size - source.position:
        raise source.damaged(
            f"{source.size - source.position} bytes follow, where {end} are announced"
        )
    for name, (dtype, shape, _) in ordered:
        try:
            array = arrays[name] = np.empty(shape, _DTYPES[dtype])
        except (ValueError, OverflowError) as error:
            raise source.damaged(f"{name!r} has a shape that no array has: {error}") from error
        source.fill(array)
    tied = {name: arrays[kept] for name, kept in _ties(metadata, arrays).items()}
    return {name: arrays[name] for name in header} | tied


def _ties(metadata: Mapping[str, str], arrays: Mapping[str, Array]) -> dict[str, str]:
    """Of each weight that a file names in its metadata alone, the weight that it is."""
    if metadata.get(_FORMAT) not in _NAMING_TIES:
        return {}
    named = {
        name: kept for name, kept in metadata.items() if name != _FORMAT and name not in arrays
    }
    return {name: kept for name, kept in named.items() if kept in arrays}


def _header(source: Source) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Dtype, shape and place of each array, and the metadata; the arrays come next."""
    length = int.from_bytes(source.take(8), "little")
    if length > _LONGEST_HEADER:
        raise source.damaged(f"its header has {length} bytes")
    text = source.take(length)
    try:
        header = json.loads(text.decode(), parse_constant=_no_constant)
        metadata = header.pop(_METADATA, None) or {}
        if not (
            isinstance(metadata, dict)
            and all(isinstance(part, str) for item in metadata.items() for part in item)
        ):
            raise ValueError("its metadata are no texts")
        entries = {name: _entry(name, entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise source.damaged(f"its header cannot be read: {error}") from error
    problem = _limits.problem_of_paths([*entries, *metadata])
    if problem:
        raise source.damaged(problem)
    return entries, metadata


def _entry(name: str, entry: Any) -> _Entry:
    if not name.isascii():
        # Lone surrogates, which JSON can write, are in no name that others read.
        name.encode()
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    # Whether the numbers fit is said where the array is made.
    are_sizes = (
        type(shape) is list
        and {int}.issuperset(map(type, shape))
        and list(map(type, offsets)) == [int, int]
    )
    if not are_sizes or type(dtype) is not str:
        raise ValueError(f"{name!r} has no dtype, shape and offsets")
    return dtype, shape, offsets


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")
