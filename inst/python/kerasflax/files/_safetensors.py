"""Safetensors files: the package checks the header; this file reads and writes the arrays.

The package itself reads by mapping the file into memory and copying it, which counts twice, and its
NumPy interface does not support 8-bit floats. It writes a file in one call, which can neither
report progress nor be interrupted.

The package opens the file by name, so the file it has checked may not be the file that is read
here. Therefore this file checks the whole header again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from .. import _limits, _messages, _processes
from .._errors import ArgumentError, FileError, VariablesError
from . import _sink
from ._source import Places, Progress, Source, needed

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
# The package's own limit.
_LONGEST_HEADER = 10**8
# The arrays begin at a multiple of this number of bytes.
_ALIGNMENT = 8
# PyTorch's files list tied weights in their metadata. Their `format` is "pt", or missing.
_TIED_FORMATS = ("pt", None)
_FORMAT = "format"
_Entry = tuple[str, list[int], list[int]]


def write(
    arrays: Mapping[str, Array],
    path: Path,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Write arrays by path.

    Args:
        arrays: The arrays.
        path: The file to create.
        metadata: Text by name.
        progress: Called with the number of bytes written so far and their total.

    Raises:
        ArgumentError: An entry of the metadata would be read as a tied weight.
        OSError: The file cannot be written.
        VariablesError: The format has no place for a name or dtype.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    problems = {
        _messages.printable(path): f"has the dtype {array.dtype}"
        for path, array in arrays.items()
        if array.dtype not in names
    }
    if _METADATA in arrays:
        problems[_METADATA] = "the format reserves this name"
    if problems:
        raise VariablesError(
            "A `.safetensors` file cannot hold these weights.",
            problems=problems,
            advice="Write a `.msgpack` file.",
        )
    # Some readers check which framework wrote the file.
    metadata = {_FORMAT: "flax", **metadata}
    ties = _ties(metadata, arrays)
    if ties:
        raise ArgumentError(
            'In a file whose `format` is "pt", an entry of `metadata` that is the path of a weight'
            " names a tied weight.",
            problems={name: f"is the path {kept!r}" for name, kept in ties.items()},
            advice="Give the entry another text, or leave `format` out.",
        )
    # Each array begins at a multiple of its item size, so that readers can map it into memory.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {_METADATA: metadata}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = len(text).to_bytes(8, "little") + text
    with _sink.created(path, len(start) + end, progress) as sink:
        sink.write(start)
        for _, array in ordered:
            sink.write_array(array)


def read(source: Source, places: Places | None = None) -> dict[str, Any]:
    """Read arrays by their names in the file.

    A file of PyTorch may hold one of several tied weights and list the others in its metadata. All
    their names then refer to the same array.

    Args:
        source: The file.
        places: What to read, and where to; None for NumPy arrays of everything.

    Raises:
        FileError: The file is damaged, or is not a safetensors file.
        PackageError: safetensors is not installed.
    """
    package = needed("safetensors", "safetensors", "A `.safetensors` file")
    path = source.path
    try:
        with package.safe_open(path, framework="np"):
            pass
    except package.SafetensorError as error:
        raise FileError(
            f"{str(path)!r} is damaged, or is not a safetensors file: {error}."
        ) from error
    header, metadata = _header(source)
    unknown = {
        _messages.printable(name): f"has the dtype {_messages.printable(dtype)}"
        for name, (dtype, _, _) in header.items()
        if dtype not in _DTYPES
    }
    if unknown:
        raise FileError(
            f"{str(path)!r} holds weights with dtypes that NumPy does not have.", problems=unknown
        )
    ties = _ties(metadata, header)
    wanted = None if places is None else {ties.get(n, n): place for n, place in places.items()}
    end, arrays = 0, {}
    ordered = sorted(header.items(), key=lambda item: item[1][2])
    for name, (dtype, shape, offsets) in ordered:
        begin, end = end, end + math.prod(shape) * _DTYPES[dtype].itemsize
        if offsets != [begin, end]:
            raise source.damaged(
                f"{name!r} has the offsets {offsets}, but {[begin, end]} are expected"
            )
    if end != source.size - source.position:
        raise source.damaged(
            f"{source.size - source.position} bytes follow its header, which announces {end}"
        )
    for name, (dtype, shape, _) in ordered:
        try:
            arrays[name] = _read_array(source, tuple(shape), _DTYPES[dtype], name, wanted)
        except (ValueError, OverflowError) as error:
            raise source.damaged(f"{name!r} has a shape that no array can have: {error}") from error
    tied = {name: arrays[kept] for name, kept in ties.items()}
    return {name: arrays[name] for name in header} | tied


def _read_array(
    source: Source, shape: tuple[int, ...], dtype: np.dtype[Any], name: str, wanted: Places | None
) -> Any:
    if wanted is not None and name not in wanted:
        source.skip(math.prod(shape) * dtype.itemsize)
        return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
    sharding = (wanted or {}).get(name)
    if sharding is not None:
        return _processes.from_rows(shape, dtype, sharding, source.fill)
    array = np.empty(shape, dtype)
    source.fill(array)
    return array


def _ties(metadata: Mapping[str, str], arrays: Mapping[str, Any]) -> dict[str, str]:
    """Find tied weights: from each name that only the metadata has to the weight it refers to."""
    if metadata.get(_FORMAT) not in _TIED_FORMATS:
        return {}
    named = {
        name: kept for name, kept in metadata.items() if name != _FORMAT and name not in arrays
    }
    return {name: kept for name, kept in named.items() if kept in arrays}


def _header(source: Source) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Read the dtype, shape and offsets of each array, and the metadata."""
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
            raise ValueError("its metadata is not all text")
        entries = {name: _entry(name, entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise source.damaged(f"its header cannot be read: {error}") from error
    problem = _limits.problem_of_paths([*entries, *metadata])
    if problem:
        raise source.damaged(problem)
    return entries, metadata


def _entry(name: str, entry: Any) -> _Entry:
    if not name.isascii():
        # Raises for lone surrogates, which JSON can hold but other readers refuse.
        name.encode()
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    # `read` checks whether the numbers agree.
    are_sizes = (
        type(shape) is list
        and {int}.issuperset(map(type, shape))
        and list(map(type, offsets)) == [int, int]
    )
    if not are_sizes or type(dtype) is not str:
        raise ValueError(f"{name!r} does not have a dtype, a shape and offsets")
    return dtype, shape, offsets


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")
