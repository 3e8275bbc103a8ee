"""Orbax checkpoints: directories, which the orbax-checkpoint package writes and reads."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import _limits, _messages, _paths
from .._errors import FileError, VariablesError
from .._paths import SEPARATOR
from ..bridge import _variables
from . import _replace
from ._source import Places, Progress, needed

PyTree = Any

_MARK = "_METADATA"
# Orbax joins the names above an array with it.
_JOINT = "."
# Orbax's writers coordinate through a name that is not unique to a thread.
_ONE_AT_A_TIME = threading.RLock()
_PURPOSE = (
    "An Orbax checkpoint, the format of a path without the suffix `.msgpack` or `.safetensors`,"
)

# Bytes to request at once. Orbax reads a whole request at once and needs twice its size while it
# reads. A request takes about 40 ms.
_BATCH = 2**25
# Bytes of one chunk of an array. Without this limit an array is a single chunk, and reading it
# takes twice its size, compressed and decompressed.
_CHUNK = 2**25
# The largest factor by which a compressor shrinks data. A checkpoint that claims more is damaged.
_MOST_COMPRESSION = 2**16
# How often to read a checkpoint again if others replace it during the read.
_MOST_TRIES = 10


def write(tree: PyTree, named: Mapping[str, np.ndarray[Any, Any] | jax.Array], path: Path) -> None:
    """Write nested dicts of arrays.

    Args:
        tree: The nested dicts.
        named: The arrays in them, by path.
        path: The directory to create.

    Raises:
        OSError: Orbax cannot write the directory.
        PackageError: Orbax or TensorStore is not installed.
        VariablesError: The format cannot hold a name or an array.
    """
    orbax = needed("orbax.checkpoint", "orbax-checkpoint", _PURPOSE)
    tensorstore = needed("tensorstore", "tensorstore", _PURPOSE)
    advice = "Write a `.msgpack` file."
    if not named:
        raise VariablesError("An Orbax checkpoint must hold at least one array.", advice=advice)
    problems = {}
    for name, array in named.items():
        reasons = []
        try:
            tensorstore.dtype(array.dtype.name)
        except (TypeError, ValueError):
            reasons.append(f"has the dtype {array.dtype}")
        if not array.size:
            reasons.append(f"has no elements, its shape is {array.shape}")
        if reasons:
            problems[name] = " and ".join(reasons)
    leaves = list(_paths.names_of_leaves(tree))
    # Some versions of Orbax lose a weight without a name.
    problems |= {
        repr(SEPARATOR.join(names)): "has no name for Orbax"
        for names in leaves
        if not _joined(names)
    }
    if problems:
        raise VariablesError(
            "An Orbax checkpoint cannot hold these weights.", problems=problems, advice=advice
        )
    twins = _twins(leaves)
    if twins:
        raise VariablesError(
            f"Orbax joins names with {_JOINT!r}, and would keep only one of two weights.",
            problems=_problems_of_twins(twins),
            advice=advice,
        )
    try:
        with _ONE_AT_A_TIME, orbax.StandardCheckpointer() as checkpointer:
            in_chunks = jax.tree.map(lambda _: orbax.SaveArgs(chunk_byte_size=_CHUNK), tree)
            checkpointer.save(path.absolute(), _as_arrays(tree), save_args=in_chunks)
    except OSError:
        raise
    except Exception as error:
        # If the disk is full, Orbax and TensorStore raise exceptions of any class.
        raise OSError(_messages.first_line(error)) from error


def _as_arrays(tree: PyTree) -> PyTree:
    """The tree with NumPy arrays for numbers; of a JAX array, each process writes its part."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.asarray(x), tree)


def _twins(leaves: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Find pairs of weights, by path, that have the same name in Orbax."""
    first: dict[str, str] = {}
    twins = []
    for names in leaves:
        path = SEPARATOR.join(names)
        other = first.setdefault(_joined(names), path)
        if other is not path:
            twins.append((other, path))
    return twins


def _problems_of_twins(twins: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {repr(path): f"has the same name in Orbax as {other!r}" for other, path in twins}


def _joined(names: Sequence[str]) -> str:
    """The single name of a weight in Orbax.

    TensorStore drops separators at either end of it, and repeated ones.
    """
    return SEPARATOR.join(part for part in _JOINT.join(names).split(SEPARATOR) if part)


def read(
    path: Path, progress: Progress | None = None, places: Places | None = None
) -> dict[str, PyTree]:
    """Read nested dicts of arrays, of any structure.

    With `places`, read what they name, where they say; without, NumPy arrays of everything.

    If the checkpoint is replaced during the read, it is read again, so that all arrays come from
    the same one.

    Raises:
        FileError: The directory holds no checkpoint, or a damaged one.
        PackageError: Orbax is not installed.
    """
    for _ in range(_MOST_TRIES):
        _replace.finish(Path(os.path.realpath(path)))
        before = _identity(path)
        try:
            tree = _read_once(path, progress, places)
        except FileError:
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return tree
    raise FileError(f"{str(path)!r} was replaced {_MOST_TRIES} times while it was read.")


def _identity(path: Path) -> tuple[int, ...]:
    """Values that differ between any two checkpoints at a path."""
    try:
        return tuple(n for each in (path, path / _MARK) for n in _identity_of(os.stat(each)))
    except OSError:
        return ()


def _identity_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _read_once(path: Path, progress: Progress | None, places: Places | None) -> dict[str, PyTree]:
    if not is_checkpoint(path):
        inside = sorted(str(mark.parent) for mark in _marks(path))
        # The files of `flax.training.checkpoints`.
        inside += sorted(str(file) for file in path.glob("checkpoint_*") if file.is_file())
        raise FileError(
            f"{str(path)!r} is a directory without an Orbax checkpoint: it has no `{_MARK}`.",
            advice=f"Give one of the checkpoints in it: {', '.join(inside[:5])}."
            if inside
            else "Give the directory into which Orbax wrote the tree.",
        )
    orbax = needed("orbax.checkpoint", "orbax-checkpoint", _PURPOSE)
    try:
        return _read(orbax, path.absolute(), progress, places)
    except (FileError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise FileError(
            f"{str(path)!r} is damaged, or is an Orbax checkpoint of another kind:"
            f" {_messages.first_line(error)}"
        ) from error


def is_checkpoint(path: Path) -> bool:
    """Whether a directory holds an Orbax checkpoint of a tree."""
    return (path / _MARK).is_file()


def _marks(path: Path) -> Iterator[Path]:
    """Find the checkpoints in a directory of steps, like those of a `CheckpointManager`."""
    yield from path.glob(f"*/{_MARK}")
    yield from path.glob(f"*/*/{_MARK}")


def _read(
    orbax: Any, path: Path, progress: Progress | None, places: Places | None
) -> dict[str, PyTree]:
    size = _size(path)
    with _ONE_AT_A_TIME, orbax.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise FileError(
                f"{str(path)!r} is damaged: one of its files is missing or cannot be read."
            )
        problem = _limits.problem_of_tree(metadata.tree)
        if problem:
            raise FileError(f"{str(path)!r} is damaged: {problem}.")
        known, treedef = jax.tree.flatten(metadata.tree)
        twins = _twins(_paths.names_of_leaves(metadata.tree))
        if twins:
            raise FileError(
                f"{str(path)!r} has one array for two weights.", problems=_problems_of_twins(twins)
            )
        sizes = [_bytes(entry) for entry in known]
        total = sum(sizes)
        if total > _MOST_COMPRESSION * size:
            raise FileError(
                f"{str(path)!r} is damaged: {size} bytes cannot hold arrays of {total} bytes."
            )
        if any(_is_overfilled(entry) for entry in known):
            raise FileError(
                f"{str(path)!r} is damaged: a chunk of an array is larger than the array itself."
            )
        # From the number of each array to where it goes.
        numbers = jax.tree.unflatten(treedef, range(len(known)))
        placed = dict.fromkeys(range(len(known)))
        if places is not None:
            named = _variables.named_leaves(numbers)
            placed = {number: places[path] for path, number in named.items() if path in places}
        restore_args = jax.tree.map(lambda i: _restore_args(orbax, placed.get(i)), numbers)
        arrays: list[Any] = [
            jax.ShapeDtypeStruct(entry.shape, entry.dtype)  # type: ignore[no-untyped-call]
            for entry in known
        ]
        for batch in _batches([size if i in placed else 0 for i, size in enumerate(sizes)]):
            chosen = placed.keys() & batch
            if not chosen:
                continue
            wanted = [entry if i in chosen else orbax.PLACEHOLDER for i, entry in enumerate(known)]
            arguments = orbax.args.PyTreeRestore(
                item=jax.tree.unflatten(treedef, wanted), restore_args=restore_args
            )
            restored = jax.tree.leaves(checkpointer.restore(path, args=arguments))
            for i in chosen:
                arrays[i] = restored[i]
            if progress:
                progress(sum(sizes[: batch.stop]), total)
        tree: dict[str, PyTree] = jax.tree.unflatten(treedef, arrays)
        return tree


def _restore_args(orbax: Any, sharding: Any) -> Any:
    if sharding is None:
        return orbax.RestoreArgs(restore_type=np.ndarray)
    return orbax.ArrayRestoreArgs(sharding=sharding)


def _size(path: Path) -> int:
    """Add up the bytes of all files in a directory.

    Raises:
        FileError: Something in it is not a regular file, and reading it might never end.
    """
    total = 0
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                    continue
                # Links to files are accepted, because download caches consist of them. A link to a
                # folder could lead anywhere.
                size = _size_of(entry)
                if size is None:
                    inside = os.path.relpath(entry.path, path)
                    raise FileError(f"{str(path)!r} is damaged: {inside!r} in it is not a file.")
                total += size
    return total


def _size_of(entry: os.DirEntry[str]) -> int | None:
    """The size of a regular file, None for anything else."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _is_overfilled(entry: Any) -> bool:
    """Whether the chunks of an array are larger than the array; a reader would allocate them."""
    chunk = getattr(getattr(entry, "storage", None), "chunk_shape", None) or ()
    return any(size > max(most, 1) for size, most in zip(chunk, entry.shape or (), strict=False))


def _bytes(entry: Any) -> int:
    return int(np.prod(entry.shape or (), dtype=object)) * np.dtype(entry.dtype).itemsize


def _batches(sizes: list[int]) -> Iterator[range]:
    start, total = 0, 0
    for i, size in enumerate(sizes):
        total += size
        if total >= _BATCH or i == len(sizes) - 1:
            yield range(start, i + 1)
            start, total = i + 1, 0
