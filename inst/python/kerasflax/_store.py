"""A layer's weights in Keras's files, by path.

Keras gives each layer a mapping from names to arrays, in `.weights.h5` and in `.keras` a group of an HDF5 file. A weight's name
there is its path, `params/Dense_0/kernel`, which HDF5 nests (with `%2E` for a name that is a dot, and `%` below it for a
weight below which there are others). Beside the weights stands one more array, `index.json`: UTF-8 text that lists them,
since a nested mapping does not tell what else it holds.

    {"format_version": 1, "dtypes": {"params/Dense_0/kernel": "float32", ...}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import keras
import numpy as np

from . import _variables
from ._errors import VariablesError
from ._paths import SEPARATOR

_FORMAT_VERSION = 1
_INDEX = "index.json"


def save(variables: Mapping[str, keras.Variable], store: MutableMapping[str, Any]) -> None:
    """Write variables by path into a layer's mapping."""
    dtypes, names = {}, _names(variables)
    for path, variable in variables.items():
        array = np.asarray(variable.value)
        dtypes[path] = str(array.dtype)
        store[names[path]] = array.view(_bits(array.dtype)) if _is_foreign(array.dtype) else array
    index = json.dumps({"format_version": _FORMAT_VERSION, "dtypes": dtypes})
    store[_INDEX] = np.frombuffer(index.encode(), np.uint8)


def load(variables: Mapping[str, keras.Variable], store: Mapping[str, Any], layer_name: str) -> None:
    """Set variables by path from a layer's mapping: all of them, or none.

    Raises:
        VariablesError: The mapping was not written by `save`, or does not fit; it lists every place by path.
    """
    dtypes = _read_index(store, layer_name)
    arrays, names = {}, _names(dtypes)
    for path, dtype in dtypes.items():
        try:
            array = np.asarray(store[names[path]])
        except KeyError:
            raise VariablesError(f"The file is damaged: the layer {layer_name!r} lists {path}, which is not there.") from None
        arrays[path] = array.view(dtype) if _is_foreign(dtype) and array.dtype == _bits(dtype) else array
    fitted = _variables.fitted_by_path(
        variables,
        arrays,
        what=f"What the file holds for the layer {layer_name!r}",
        advice="Load it into a model made of the same layers.",
    )
    _variables.assign_through((variables[path], value) for path, value in fitted.items())


def _read_index(store: Mapping[str, Any], layer_name: str) -> dict[str, np.dtype[Any]]:
    problem = f"The file holds no weights of a Flax module for the layer {layer_name!r}"
    if _INDEX not in store:
        raise VariablesError(
            f"{problem}: it names {', '.join(sorted(store.keys())[:5]) or 'nothing'}.\n"
            "Weights are saved by path, and loaded into a model made of the same layers."
        )
    try:
        index = json.loads(np.asarray(store[_INDEX]).tobytes())
        version = index["format_version"]
        if version == _FORMAT_VERSION:
            return {path: np.dtype(dtype) for path, dtype in index["dtypes"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise VariablesError(f"{problem}: `{_INDEX}` in it cannot be read: {error}.") from error
    raise VariablesError(f"{problem} that this version of kerasflax reads: the format's version is {version!r}.")


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Paths as HDF5 takes them: a dot alone is the group itself there, and a group is no array."""
    parts = {path: ["%2E" if name == "." else name for name in path.split(SEPARATOR)] for path in paths}
    groups = {tuple(names[:i]) for names in parts.values() for i in range(1, len(names))}
    return {path: SEPARATOR.join([*names, "%"] if tuple(names) in groups else names) for path, names in parts.items()}


def _is_foreign(dtype: np.dtype[Any]) -> bool:
    """Whether HDF5 has no such dtype, and Keras no way to write it: the 8-bit floats, kept as their bits."""
    return dtype.isbuiltin == 2 and dtype.name != "bfloat16"


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"uint{8 * dtype.itemsize}")
