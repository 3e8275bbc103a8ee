"""What the processes of one job do together: hold an array in parts, and write a file once.

Each process runs the same script, and what is named here must be called in all of them, in the same
order: it waits for the others. In a job of one process, nothing waits.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from . import _host
from ._errors import UnsupportedError

_Result = TypeVar("_Result")

# JAX's name for memory of the host from which a device can copy directly.
_HOST = "pinned_host"
# Bytes of the rows that are in memory at once.
_BLOCK = 2**25


def are_several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def is_local(array: Any) -> bool:
    """Whether an array is on devices of this process alone."""
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def is_here(array: Any) -> bool:
    """Whether this process can read all values of an array."""
    return is_local(array) or array.is_fully_replicated


def check_are_here(arrays: Mapping[str, Any]) -> None:
    """Check that this process can read all values of arrays, given by path, as Keras must.

    Raises:
        UnsupportedError: An array is split over several processes.
    """
    for path, array in arrays.items():
        if not is_here(array):
            raise UnsupportedError(
                f"Keras cannot save {path}, which is split over several processes.",
                advice=f"Write an Orbax checkpoint, in all processes: {_host.word('checkpoint')}.",
            )


def put(array: Any, sharding: Any) -> jax.Array:
    """Do `jax.device_put`, also if the array is in this process and the sharding in several.

    Every process must have the whole array, of which it copies its own part, or that part alone.
    `jax.device_put` would send the array around, to check that it is the same everywhere.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if not is_local(array):
        return _with_kind(array, sharding)
    values = np.asarray(array)
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: np.array(values[index])
    )


def _with_kind(array: jax.Array, sharding: Any) -> jax.Array:
    """Move an array in several processes; if its parts stay on their devices, without a program.

    The program of JAX 0.8.1 for another kind of memory fails on several CPUs.
    """
    kind = sharding.memory_kind
    if not array.sharding.with_memory_kind(kind).is_equivalent_to(sharding, array.ndim):
        return jax.device_put(array, sharding)
    parts = [
        jax.device_put(part.data, SingleDeviceSharding(part.device, memory_kind=kind))
        for part in array.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)


def on_host(sharding: Any) -> Any:
    """The same parts of an array in the host's memory, if the devices' platform offers that."""
    kinds = {memory.kind for memory in next(iter(sharding.device_set)).addressable_memories()}
    return sharding.with_memory_kind(_HOST) if _HOST in kinds else sharding


def from_rows(
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Any,
    fill: Callable[[np.ndarray[Any, Any]], None],
) -> jax.Array:
    """Create an array from its rows, of which each process keeps its part.

    Args:
        shape: The shape of the whole array.
        dtype: The dtype.
        sharding: The sharding.
        fill: Fills an array with the next rows. It is called until all rows have been read.
    """
    places = {
        device: tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    # Several devices may hold the same part.
    parts = {
        _ends(index): (index, np.empty([end - start for start, end in _ends(index)], dtype))
        for index in places.values()
    }
    length = shape[0] if shape else 1
    step = max(1, _BLOCK // max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize))
    for start in range(0, length, step):
        block = np.empty((min(step, length - start), *shape[1:]), dtype)
        fill(block)
        for index, part in parts.values():
            _take_rows(part, block, start, index)
    kind = sharding.memory_kind
    arrays = [
        jax.device_put(parts[_ends(index)][1], SingleDeviceSharding(device, memory_kind=kind))
        for device, index in places.items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _ends(index: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
    """Where slices start and end. Before Python 3.12, slices are not hashable."""
    return tuple((part.start, part.stop) for part in index)


def _take_rows(
    part: np.ndarray[Any, Any], block: np.ndarray[Any, Any], start: int, index: tuple[slice, ...]
) -> None:
    """Copy what a block of rows, which begins at `start`, has of a part of the array."""
    if not index:
        part[...] = block[0]
        return
    rows, *others = index
    low, high = max(start, rows.start), min(start + len(block), rows.stop)
    if low < high:
        part[low - rows.start : high - rows.start] = block[
            (slice(low - start, high - start), *others)
        ]


def gathered(array: Any) -> Any:
    """Return an array as NumPy's, with the parts of all processes."""
    if is_here(array):
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def agreed(step: Callable[[], _Result]) -> _Result:
    """Take a step in each process, and raise an error in all of them if it fails in one.

    Raises:
        Exception: The error of this process.
        OSError: The step has failed in another process.
    """
    if not are_several():
        return step()
    error = result = None
    try:
        result = step()
    except Exception as own_error:
        # Whatever it is, the other processes must not wait for this one.
        error = own_error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
    if error:
        raise error
    if failed.size:
        raise OSError(f"process {failed[0]} failed; see its error")
    return result  # type: ignore[return-value]


def replace_together(
    replacing: Callable[[], contextlib.AbstractContextManager[Path]],
    write: Callable[[Path], None],
    *,
    by_all: bool,
) -> None:
    """Write a file or folder under another name, and then move it to its path.

    Args:
        replacing: Yields the other name and moves the file, as `files._replace.replacing`. The
            first process calls it.
        write: Writes the file.
        by_all: Whether all processes write, each its part; otherwise the first one does.

    Raises:
        Exception: The error of this process.
        OSError: Another process has failed.
    """
    if not are_several():
        with replacing() as new:
            write(new)
        return
    stack = contextlib.ExitStack()

    def write_own_part(new: Path) -> None:
        if by_all or is_first():
            write(new)

    # If writing fails, the context manager must learn of it, or it would move the file.
    with contextlib.ExitStack() as undone:
        undone.push(stack)
        own = agreed(lambda: str(stack.enter_context(replacing())) if is_first() else "")
        new = Path(_from_first(own))
        agreed(lambda: write_own_part(new))
        undone.pop_all()
    agreed(stack.close)


def _from_first(path: str) -> str:
    """The first process's path, in all processes."""
    data = np.frombuffer(os.fsencode(path), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.array(data.size)))
    held = multihost_utils.broadcast_one_to_all(data if is_first() else np.zeros(length, np.uint8))
    return os.fsdecode(np.asarray(held, np.uint8).tobytes())
