"""A layer's weights in Keras's files, by path.

Keras gives each layer a mapping from names to arrays. In `.weights.h5` and `.keras` files it is a
group of an HDF5 file. Each weight is named by its path, `params/Dense_0/kernel`, and HDF5 nests the
parts of the path. `%2E` stands for a part that is a dot, and a weight with other weights below it
gets the extra part `%`. A nested mapping cannot list what it contains, so one more array,
`index.json`, holds UTF-8 text that lists the weights:

    {"format_version": 1, "dtypes": {"params/Dense_0/kernel": "float32", ...}}

Paths that HDF5 does not accept, or that could clash with other names, get numbered names. The index
lists them too:

    {..., "names": {"params//kernel": "%0"}}
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any

import keras
import numpy as np

from .. import _dtypes, _host, _keras, _limits, _messages, _processes
from .._errors import FileError, VariablesError
from .._paths import SEPARATOR
from ..saving import _plan
from . import _variables

_FORMAT_VERSION = 1
_INDEX = "index.json"
# For a part that is a dot, for a weight with other weights below it, and before a number.
_DOT, _LEAF, _NUMBER = "%2E", "%", "%"
# Keras saves without compression, and a compressed chunk can expand to any size. These filters keep
# the size.
_SHUFFLE, _FLETCHER32 = 2, 3
_LARGEST_ITEM = np.dtype(np.clongdouble).itemsize
# HDF5 reads whole chunks, and a chunk can be larger than its array.
_LARGEST_CHUNK = 2**16
_LONGEST_PART = 2**10
_HARD_LINK = 0

Array = np.ndarray[Any, Any]


class _DamagedError(FileError, VariablesError):
    """The saved weights are not what a layer writes. Callers can catch either base class."""


def save(values: Mapping[str, Any], store: MutableMapping[str, Any]) -> None:
    """Write arrays by path into a layer's mapping.

    Raises:
        UnsupportedError: A value is split over several processes. Nothing has been written.
        VariablesError: There are more paths, or longer ones, than `load` reads. Nothing has been
            written.
    """
    problem = _limits.problem_of_paths(values)
    if problem:
        raise VariablesError(f"The weights cannot be saved: {problem}.")
    _processes.check_are_here(values)
    dtypes, numbered = {}, _numbered_names(values)
    names = _hdf5_names(values) | numbered
    for path, value in values.items():
        array = np.asarray(value)
        dtypes[path] = str(array.dtype)
        store[names[path]] = (
            array.view(_bits_dtype(array.dtype)) if _is_stored_as_bits(array.dtype) else array
        )
    index = {"format_version": _FORMAT_VERSION, "dtypes": dtypes} | (
        {"names": numbered} if numbered else {}
    )
    store[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)


def load(
    variables: Mapping[str, keras.Variable],
    store: Mapping[str, Any],
    layer_name: str,
    *,
    skip_mismatch: bool = False,
) -> None:
    """Set variables by path from a layer's mapping: all of them, or none.

    With `skip_mismatch`, set those that fit, and warn about the rest. Reads only arrays that have
    the shape of their variable, so memory is bounded by the layer's size.

    Warns:
        UserWarning: With `skip_mismatch`, if something does not fit. The message lists each weight
            by path, loaded or not.

    Raises:
        FileError: The mapping was not written by `save`, or is damaged. The error is also a
            VariablesError.
        VariablesError: The weights do not fit the layer. The message lists each by path.
    """
    dtypes, names = _read_index(store, layer_name)
    paths = {name: path for path, name in names.items()}
    arrays: dict[str, Array] = {}

    def use(name: str, found: Any) -> None:
        path, variable = paths[name], variables.get(paths[name])
        try:
            arrays[path] = _read_array(
                found, dtypes[path], None if variable is None else tuple(variable.shape)
            )
        except (ValueError, TypeError, OSError, RuntimeError, OverflowError) as error:
            # HDF5's own message for an object that it cannot read.
            text = _messages.printable(" ".join(str(error).split()))
            raise _damaged(
                layer_name, f"has {_messages.printable(path)}, which cannot be read: {text}"
            ) from error

    _visit(store, paths, use)
    missing = next((path for path in dtypes if path not in arrays), None)
    if missing is not None:
        raise _damaged(layer_name, f"lists {_messages.printable(missing)}, which is missing")
    arrays = {path: arrays[path] for path in dtypes}
    if skip_mismatch:
        fitted, problems = _variables.fit_by_path(variables, arrays)
        if problems:
            # Python would show the same text only once, and each load is another event.
            text = _partly_loaded(layer_name, fitted, problems)
            warnings.warn_explicit(text, UserWarning, "kerasflax", 0, registry={})
    else:
        fitted = _variables.fitted_by_path(
            variables,
            arrays,
            what=f"The saved state of the layer {layer_name!r}",
            advice="Load it into a model of the same layers, or pass"
            f" {_host.word('skip mismatch')} to load what fits.",
        )
    _variables.assign_through((variables[path], value) for path, value in fitted.items())


def _partly_loaded(layer_name: str, loaded: Iterable[str], problems: Mapping[str, str]) -> str:
    lines = [
        f"These weights of the layer {layer_name!r} could not be loaded:",
        *(f"  {path}: {problem}" for path, problem in problems.items()),
        "These were loaded:",
        *(f"  {path}" for path in loaded),
    ]
    return _messages.printable("\n".join(lines))


def _damaged(layer_name: str, problem: str) -> _DamagedError:
    return _DamagedError(f"The file is damaged: the layer {layer_name!r} {problem}.")


# Reading ------------------------------------------------------------------------------------------


def _read_array(found: Any, listed: np.dtype[Any], wanted: tuple[int, ...] | None) -> Array:
    """Read a numeric array. If it fits no variable, return a placeholder that takes no memory.

    Args:
        found: The dataset or array.
        listed: The dtype in the index.
        wanted: The shape of the variable, or None if there is no variable.

    Returns:
        The array, or an array of the same shape and dtype that repeats a single zero.
    """
    shape, dtype = _check_dataset(found)
    is_bits = _is_stored_as_bits(listed) and dtype == _bits_dtype(listed)
    if shape != wanted and (wanted is None or math.prod(shape) > 1):
        return np.broadcast_to(np.zeros((), listed if is_bits else dtype), shape)
    array = np.asarray(found[()])
    if array.dtype != dtype:
        array = array.view(dtype)
    return array.view(listed) if is_bits else array


def _check_dataset(found: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Check a dataset, without reading it, and return its shape and dtype.

    Raises:
        ValueError: It is not a numeric array, or reading it costs more than its size.
    """
    dtype, shape = getattr(found, "dtype", None), getattr(found, "shape", None)
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple):
        raise ValueError(f"it is not an array, but {type(found).__name__}")
    # HDF5 stores Keras's bfloat16 as an opaque type.
    is_bfloat16 = (
        dtype.kind == "V"
        and dtype.itemsize == 2
        and dtype.fields is None
        and dtype.subdtype is None
    )
    if (
        not (is_bfloat16 or dtype.kind in "biufc" or _is_stored_as_bits(dtype))
        or dtype.itemsize > _LARGEST_ITEM
    ):
        raise ValueError(f"it does not hold numbers, but {str(dtype)[:60]}")
    identifier = getattr(found, "id", None)
    if identifier is not None:
        made = identifier.get_create_plist()
        if made.get_external_count() or found.is_virtual:
            raise ValueError("its numbers are stored in another file")
        if {made.get_filter(i)[0] for i in range(made.get_nfilters())} - {_SHUFFLE, _FLETCHER32}:
            raise ValueError("it is compressed, and Keras saves without compression")
        chunk = found.chunks
        if chunk is not None and math.prod(chunk) * dtype.itemsize > max(
            _LARGEST_CHUNK, math.prod(shape) * dtype.itemsize
        ):
            raise ValueError(f"its chunks, of shape {chunk}, are larger than the array")
    return shape, _dtypes.named("bfloat16") if is_bfloat16 else dtype


def _visit(
    store: Mapping[str, Any], names: Collection[str], use: Callable[[str, Any], None]
) -> None:
    """Call a function with each existing name and its object: for HDF5, the unread dataset."""
    if not _keras.is_hdf5_store(store):
        for name in names:
            if name in store:
                use(name, store[name])
        return
    # Keras's own lookup would read all of each dataset, and search every name above it.
    wanted = _variables.nested(dict(zip(names, names, strict=True)))
    for group in _keras.hdf5_groups(store):
        stack = [(group, wanted)]
        while stack:
            above, below = stack.pop()
            for part, deeper in below.items():
                found = _get_child(above, part)
                if not isinstance(deeper, dict):
                    if found is not None:
                        use(deeper, found)
                elif hasattr(found, "keys"):
                    stack.append((found, deeper))


def _get_child(group: Any, name: str) -> Any:
    """Return the object under a name in a group, or None. Follows only hard links."""
    if not hasattr(group, "id"):
        return group.get(name)
    try:
        # A name with a separator would be a path, and HDF5 would follow links along it.
        if SEPARATOR not in name and group.id.links.get_info(name.encode()).type == _HARD_LINK:
            return group[name]
    except (KeyError, OSError, RuntimeError, ValueError):
        pass
    return None


def _read_index(
    store: Mapping[str, Any], layer_name: str
) -> tuple[dict[str, np.dtype[Any]], dict[str, str]]:
    """Return the dtypes and the stored names of the weights, by path.

    Raises:
        FileError: The mapping has no valid index.
    """
    problem = f"The file holds no weights of a Flax module for the layer {layer_name!r}"
    texts: list[bytes] = []
    try:
        _visit(store, [_INDEX], lambda _, found: texts.append(_read_text(found)))
        index: Any = json.loads(texts[0]) if texts else {"format_version": None}
        version = index["format_version"]
        if version == _FORMAT_VERSION:
            return _parse_index(index)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        OSError,
        RuntimeError,
    ) as error:
        reason = _messages.printable(" ".join(str(error).split()))
        raise _DamagedError(f"{problem}: its `{_INDEX}` cannot be read: {reason}.") from error
    if not texts:
        raise _DamagedError(
            f"{problem}: it holds {', '.join(sorted(store.keys())[:5]) or 'nothing'}.",
            advice="Load weights into a model of the same layers as the saved one.",
        )
    raise _DamagedError(
        f"{problem} that this version of kerasflax can read: "
        f"the format version is {_plan.summary(version)}."
    )


def _read_text(found: Any) -> bytes:
    (size,), dtype = _check_dataset(found)
    if dtype != np.uint8:
        raise ValueError(f"it is not text, but numbers of {dtype}")
    identifier = getattr(found, "id", None)
    stored = size if identifier is None else identifier.get_storage_size()
    if size > stored:
        raise ValueError(f"{stored} bytes cannot hold a text of {size} bytes")
    return np.asarray(found[()]).tobytes()


def _parse_index(index: Any) -> tuple[dict[str, np.dtype[Any]], dict[str, str]]:
    problem = _limits.problem_of_paths(index["dtypes"])
    if problem:
        raise ValueError(problem)
    dtypes = {path: _dtypes.named(dtype) for path, dtype in index["dtypes"].items()}
    numbered = index.get("names", {})
    if any(
        path not in dtypes or name != _numbered_name(i)
        for i, (path, name) in enumerate(numbered.items())
    ):
        raise ValueError("its names do not match the weights that it lists")
    return dtypes, _hdf5_names(dtypes) | numbered


# Names --------------------------------------------------------------------------------------------


def _hdf5_names(paths: Collection[str]) -> dict[str, str]:
    """Return the HDF5 name of each path.

    In HDF5, a dot stands for the group itself, and a group cannot also be an array.
    """
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


def _numbered_names(paths: Collection[str]) -> dict[str, str]:
    """Return numbered names for the paths that HDF5 does not accept, or that could clash."""
    odd = [
        path
        for path in paths
        if not all(map(_is_plain, path.split(SEPARATOR))) or path.split(SEPARATOR)[0] == _INDEX
    ]
    return {path: _numbered_name(i) for i, path in enumerate(odd)}


def _is_plain(part: str) -> bool:
    if not part or part.startswith(_NUMBER) or "\0" in part:
        return False
    try:
        return len(part.encode()) <= _LONGEST_PART
    except UnicodeEncodeError:
        return False


def _numbered_name(i: int) -> str:
    return f"{_NUMBER}{i}"


# Dtypes -------------------------------------------------------------------------------------------


def _is_stored_as_bits(dtype: np.dtype[Any]) -> bool:
    """Whether neither HDF5 nor Keras can store a dtype: the 8-bit floats. Their bits are stored."""
    return dtype.isbuiltin == 2 and dtype.name != "bfloat16"


def _bits_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"uint{8 * dtype.itemsize}")
