"""A layer's weights in Keras's files, by path.

Keras gives each layer a mapping from names to arrays, in `.weights.h5` and in `.keras` a group of an HDF5 file. A weight's name
there is its path, `params/Dense_0/kernel`, which HDF5 nests (with `%2E` for a name that is a dot, and `%` below it for a
weight below which there are others). Beside the weights stands one more array, `index.json`: UTF-8 text that lists them,
since a nested mapping does not tell what else it holds.

    {"format_version": 1, "dtypes": {"params/Dense_0/kernel": "float32", ...}}

The few paths that cannot be names in HDF5, or would be those of others, have names made of numbers, and the index says which:

    {..., "names": {"params//kernel": "%0"}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from typing import Any

import keras
import numpy as np

from .. import _dtypes, _limits
from .._errors import FileError, VariablesError
from .._paths import SEPARATOR
from ..saving import _plan
from . import _variables

_FORMAT_VERSION = 1
_INDEX = "index.json"
# A name that is a dot, a weight below which there are others, and what comes before a number, if that is a name.
_DOT, _LEAF, _NUMBER = "%2E", "%", "%"
# What Keras writes is not compressed, and a filter may unpack a chunk of any size to any other. These two keep the size.
_SHUFFLE, _FLETCHER32 = 2, 3
_LARGEST_ITEM = np.dtype(np.clongdouble).itemsize
# HDF5 unpacks a chunk whole, and a chunk may be larger than the array.
_LARGEST_CHUNK = 2**16
_LONGEST_PART = 2**10
_HARD_LINK = 0

Array = np.ndarray[Any, Any]


class _DamagedError(FileError, VariablesError):
    """The weights in a file are not what a layer saves, and so fit no layer either: callers know it by both names."""


def save(values: Mapping[str, Any], store: MutableMapping[str, Any]) -> None:
    """Write arrays by path into a layer's mapping.

    Raises:
        VariablesError: There are more, or longer paths, than are read again; nothing has been written.
    """
    problem = _limits.problem_of_paths(values)
    if problem:
        raise VariablesError(f"The weights cannot be saved: {problem}.")
    dtypes, numbered = {}, _numbered(values)
    names = _names(values) | numbered
    for path, value in values.items():
        array = np.asarray(value)
        dtypes[path] = str(array.dtype)
        store[names[path]] = array.view(_bits(array.dtype)) if _is_foreign(array.dtype) else array
    index = {"format_version": _FORMAT_VERSION, "dtypes": dtypes} | (
        {"names": numbered} if numbered else {}
    )
    store[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)


def load(
    variables: Mapping[str, keras.Variable], store: Mapping[str, Any], layer_name: str
) -> None:
    """Set variables by path from a layer's mapping: all of them, or none.

    Only what has the shape of its variable is read, so that the memory that it takes is that of the layer.

    Raises:
        FileError: The mapping was not written by `save`, or is damaged. It is a VariablesError as well.
        VariablesError: It does not fit; every place is listed by path.
    """
    dtypes, names = _read_index(store, layer_name)
    paths = {name: path for path, name in names.items()}
    arrays: dict[str, Array] = {}

    def use(name: str, found: Any) -> None:
        path, variable = paths[name], variables.get(paths[name])
        try:
            arrays[path] = _array(
                found, dtypes[path], None if variable is None else tuple(variable.shape)
            )
        except (ValueError, TypeError, OSError, RuntimeError, OverflowError) as error:
            # What HDF5 says of what it cannot read.
            text = _limits.printable(str(error))
            raise _damaged(
                layer_name, f"has {_limits.printable(path)}, which cannot be read: {text}"
            ) from error

    _visit(store, paths, use)
    missing = next((path for path in dtypes if path not in arrays), None)
    if missing is not None:
        raise _damaged(layer_name, f"lists {_limits.printable(missing)}, which is not there")
    fitted = _variables.fitted_by_path(
        variables,
        {path: arrays[path] for path in dtypes},
        what=f"What the file holds for the layer {layer_name!r}",
        advice="Load it into a model made of the same layers.",
    )
    _variables.assign_through((variables[path], value) for path, value in fitted.items())


def _damaged(layer_name: str, problem: str) -> _DamagedError:
    return _DamagedError(f"The file is damaged: the layer {layer_name!r} {problem}.")


# Reading ----------------------------------------------------------------------------------------------------------------


def _array(found: Any, listed: np.dtype[Any], wanted: tuple[int, ...] | None) -> Array:
    """An array of numbers; of one that fits no variable only the shape and dtype, which take no memory."""
    shape, dtype = _checked(found)
    is_bits = _is_foreign(listed) and dtype == _bits(listed)
    if shape != wanted and (wanted is None or math.prod(shape) > 1):
        return np.broadcast_to(np.zeros((), listed if is_bits else dtype), shape)
    array = np.asarray(found[()])
    if array.dtype != dtype:
        array = array.view(dtype)
    return array.view(listed) if is_bits else array


def _checked(found: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of numbers, of which nothing has been read.

    Raises:
        ValueError: It is something else, or costs more than its size.
    """
    dtype, shape = getattr(found, "dtype", None), getattr(found, "shape", None)
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple):
        raise ValueError(f"it is no array, but {type(found).__name__}")
    # Keras's bfloat16 is opaque to HDF5.
    is_bfloat16 = (
        dtype.kind == "V"
        and dtype.itemsize == 2
        and dtype.fields is None
        and dtype.subdtype is None
    )
    if (
        not (is_bfloat16 or dtype.kind in "biufc" or _is_foreign(dtype))
        or dtype.itemsize > _LARGEST_ITEM
    ):
        raise ValueError(f"it holds no numbers, but {str(dtype)[:60]}")
    identifier = getattr(found, "id", None)
    if identifier is not None:
        made = identifier.get_create_plist()
        if made.get_external_count() or found.is_virtual:
            raise ValueError("its numbers lie in another file")
        if {made.get_filter(i)[0] for i in range(made.get_nfilters())} - {_SHUFFLE, _FLETCHER32}:
            raise ValueError("it is compressed, which what Keras saves is not")
        chunk = found.chunks
        if chunk is not None and math.prod(chunk) * dtype.itemsize > max(
            _LARGEST_CHUNK, math.prod(shape) * dtype.itemsize
        ):
            raise ValueError(f"its chunks, of shape {chunk}, are larger than it")
    return shape, _dtypes.named("bfloat16") if is_bfloat16 else dtype


def _visit(
    store: Mapping[str, Any], names: Collection[str], use: Callable[[str, Any], None]
) -> None:
    """Call a function with each name that is there, and what it stands for: of HDF5 the dataset, not its numbers."""
    if getattr(store, "_h5_entry_group", None) is None:
        for name in names:
            if name in store:
                use(name, store[name])
        return
    # Keras's own lookup reads all of a dataset, and goes through all names above it for each.
    wanted = _variables.nested(dict(zip(names, names, strict=True)))
    for group in _groups(store):
        stack = [(group, wanted)]
        while stack:
            above, below = stack.pop()
            for part, deeper in below.items():
                found = _linked(above, part)
                if not isinstance(deeper, dict):
                    if found is not None:
                        use(deeper, found)
                elif hasattr(found, "keys"):
                    stack.append((found, deeper))


def _groups(store: Any) -> Iterator[Any]:
    """The groups of HDF5 that a layer has, one in each of Keras's files; each is open while it is in use."""
    files = getattr(store, "current_shard_filenames", None)
    if files is None:
        yield store._h5_entry_group
        return
    try:
        for file in files:
            store._switch_h5_file(file, mode="r")
            yield store._h5_entry_group
    finally:
        store._restore_h5_file()


def _linked(group: Any, name: str) -> Any:
    """What a group holds under one name, None for nothing. Links, which may lead to other files, are not followed."""
    if not hasattr(group, "id"):
        return group.get(name)
    try:
        # A name with a separator would be a path, and links on it be followed.
        if SEPARATOR not in name and group.id.links.get_info(name.encode()).type == _HARD_LINK:
            return group[name]
    except (KeyError, OSError, RuntimeError, ValueError):
        pass
    return None


def _read_index(
    store: Mapping[str, Any], layer_name: str
) -> tuple[dict[str, np.dtype[Any]], dict[str, str]]:
    """The weights' dtypes, and their names in the mapping, by path."""
    problem = f"The file holds no weights of a Flax module for the layer {layer_name!r}"
    texts: list[bytes] = []
    try:
        _visit(store, [_INDEX], lambda _, found: texts.append(_text(found)))
        index: Any = json.loads(texts[0]) if texts else {"format_version": None}
        version = index["format_version"]
        if version == _FORMAT_VERSION:
            return _listed(index)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        OSError,
        RuntimeError,
    ) as error:
        raise _DamagedError(
            f"{problem}: `{_INDEX}` in it cannot be read: {_limits.printable(str(error))}."
        ) from error
    if not texts:
        raise _DamagedError(
            f"{problem}: it names {', '.join(sorted(store.keys())[:5]) or 'nothing'}.\n"
            "Weights are saved by path, and loaded into a model made of the same layers."
        )
    raise _DamagedError(
        f"{problem} that this version of kerasflax reads: the format's version is {_plan.shown(version)}."
    )


def _text(found: Any) -> bytes:
    (size,), dtype = _checked(found)
    if dtype != np.uint8:
        raise ValueError(f"it is no text, but numbers of {dtype}")
    identifier = getattr(found, "id", None)
    stored = size if identifier is None else identifier.get_storage_size()
    if size > stored:
        raise ValueError(f"{stored} bytes do not hold a text of {size} bytes")
    return np.asarray(found[()]).tobytes()


def _listed(index: Any) -> tuple[dict[str, np.dtype[Any]], dict[str, str]]:
    problem = _limits.problem_of_paths(index["dtypes"])
    if problem:
        raise ValueError(problem)
    dtypes = {path: _dtypes.named(dtype) for path, dtype in index["dtypes"].items()}
    numbered = index.get("names", {})
    if any(
        path not in dtypes or name != _number(i) for i, (path, name) in enumerate(numbered.items())
    ):
        raise ValueError("it has names for what it does not list")
    return dtypes, _names(dtypes) | numbered


# Names ------------------------------------------------------------------------------------------------------------------


def _names(paths: Collection[str]) -> dict[str, str]:
    """Paths as HDF5 takes them: a dot alone is the group itself there, and a group is no array."""
    parts = {
        path: [_DOT if name == "." else name for name in path.split(SEPARATOR)] for path in paths
    }
    groups: dict[str, Any] = {}
    for names in parts.values():
        node = groups
        for name in names:
            node = node.setdefault(name, {})
    return {
        path: SEPARATOR.join([*names, _LEAF] if _has_children(groups, names) else names)
        for path, names in parts.items()
    }


def _has_children(groups: Mapping[str, Any], names: list[str]) -> bool:
    node = groups
    for name in names:
        node = node[name]
    return bool(node)


def _numbered(paths: Collection[str]) -> dict[str, str]:
    """Names made of numbers, for paths that HDF5 does not take, or whose names could be those of others."""
    odd = [
        path
        for path in paths
        if not all(map(_is_plain, path.split(SEPARATOR))) or path.split(SEPARATOR)[0] == _INDEX
    ]
    return {path: _number(i) for i, path in enumerate(odd)}


def _is_plain(part: str) -> bool:
    if not part or part.startswith(_NUMBER) or "\0" in part:
        return False
    try:
        return len(part.encode()) <= _LONGEST_PART
    except UnicodeEncodeError:
        return False


def _number(i: int) -> str:
    return f"{_NUMBER}{i}"


# Dtypes -----------------------------------------------------------------------------------------------------------------


def _is_foreign(dtype: np.dtype[Any]) -> bool:
    """Whether HDF5 has no such dtype, and Keras no way to write it: the 8-bit floats, kept as their bits."""
    return dtype.isbuiltin == 2 and dtype.name != "bfloat16"


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"uint{8 * dtype.itemsize}")
