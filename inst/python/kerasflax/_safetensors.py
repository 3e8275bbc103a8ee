"""Files of safetensors: the package checks a file's header and writes files; the arrays are read here.

The package's own reading maps the file into memory and copies it, which counts twice, and it knows no 8-bit floats in NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ._errors import FileError, VariablesError
from ._files import Progress, Source, needed

Array = np.ndarray[Any, Any]

_METADATA = "__metadata__"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        **{"BOOL": np.bool_, "F16": np.float16, "F32": np.float32, "F64": np.float64, "C64": np.complex64},
        **{"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64},
        **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
        **{"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
        **{"F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz},
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}


def write(arrays: Mapping[str, Array], path: Path, metadata: Mapping[str, str]) -> None:
    """Write arrays by path."""
    package = needed("safetensors.numpy", "safetensors", "A `.safetensors` file")
    unknown = [f"  {path}: {array.dtype}" for path, array in arrays.items() if array.dtype not in _DTYPES.values()]
    if unknown or _METADATA in arrays:
        raise VariablesError(
            "A `.safetensors` file does not hold weights of these dtypes:\n" + "\n".join(unknown) + "\nWrite `.msgpack`."
            if unknown
            else f"A `.safetensors` file has another use for the name {_METADATA!r}.\nWrite `.msgpack`."
        )
    # Newer versions of the package make files that their owner alone can read.
    path.touch()
    mode = path.stat().st_mode
    # The package writes memory as it lies, whatever its order.
    rows = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # "flax", since some readers ask by what the file was written.
    package.save_file(rows, path, {"format": "flax", **metadata})
    path.chmod(mode)


def read(path: Path, progress: Progress | None = None) -> dict[str, Array]:
    """Read arrays by the names that they have in the file.

    Of tied weights a file may hold one, and name the others in its metadata: they become the same array.

    Raises:
        FileError: The file is damaged, or no safetensors file.
    """
    package = needed("safetensors", "safetensors", "A `.safetensors` file")
    try:
        with package.safe_open(path, framework="np"):
            pass
    except package.SafetensorError as error:
        raise FileError(f"{str(path)!r} is damaged, or no safetensors file: {error}.") from error
    with open(path, "rb") as file:
        source = Source(file, path, progress)
        length = int.from_bytes(source.take(8), "little")
        header = json.loads(source.take(length))
        metadata = header.pop(_METADATA, None) or {}
        unknown = [f"  {name}: {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in _DTYPES]
        if unknown:
            raise FileError(f"{str(path)!r} holds weights of dtypes that NumPy does not have:\n" + "\n".join(unknown))
        arrays = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            source.skip_to(8 + length + entry["data_offsets"][0])
            try:
                arrays[name] = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
            except ValueError as error:
                raise source.damaged(f"{name!r} has a shape that no array has: {error}") from error
            source.fill(arrays[name])
    tied = {name: arrays[kept] for name, kept in metadata.items() if kept in arrays and name not in arrays}
    return {name: arrays[name] for name in header} | tied
