"""Orbax checkpoints: directories, written and read by the package."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import _limits
from .._errors import FileError, VariablesError
from .._paths import SEPARATOR
from . import _replace
from ._source import Progress, needed

PyTree = Any

_MARK = "_METADATA"
# What Orbax makes one name of the names above an array with.
_JOINT = "."
# Orbax's writers wait for each other by a name that writers of other threads use as well.
_ONE_AT_A_TIME = threading.RLock()
_PURPOSE = (
    "An Orbax checkpoint, which is what a path without `.msgpack` or `.safetensors` stands for,"
)

# Orbax reads what it is asked for at once, and needs twice its size meanwhile. Asking costs some 40 ms.
_BATCH = 2**25
# What an array is written in. Without it an array is one chunk, and reading that takes its size twice: as it lies, and opened.
_CHUNK = 2**25
# A compressor makes at most so much of a byte; a checkpoint that claims more lies.
_MOST_COMPRESSION = 2**16
# How often a checkpoint is read that others replace while it is read.
_MOST_TRIES = 10


def write(tree: PyTree, named: Mapping[str, np.ndarray[Any, Any]], path: Path) -> None:
    """Write nested dicts of arrays; by path, too, what they hold.

    Raises:
        OSError: Orbax cannot write the folder.
        VariablesError: The format has no place for a name or array.
    """
    orbax = needed("orbax.checkpoint", "orbax-checkpoint", _PURPOSE)
    tensorstore = needed("tensorstore", "tensorstore", _PURPOSE)
    problems = []
    for name, array in named.items():
        try:
            tensorstore.dtype(array.dtype.name)
        except (TypeError, ValueError):
            problems.append(f"  {name}: {array.dtype}")
        if not array.size:
            problems.append(f"  {name}: no elements, shape {array.shape}")
    leaves = list(_limits.names_of_leaves(tree))
    # Some versions of Orbax lose such a weight.
    problems += [f"  {SEPARATOR.join(names)!r}: no name" for names in leaves if not _joined(names)]
    if problems or not named:
        raise VariablesError(
            "Orbax does not store such arrays:\n"
            + "\n".join(problems or ["  none at all"])
            + "\nWrite `.msgpack`."
        )
    twins = _twins(leaves)
    if twins:
        raise VariablesError(
            f"Orbax joins names by {_JOINT!r} and would keep one of two weights:\n"
            + "\n".join(f"  {' and '.join(map(repr, pair))}" for pair in twins)
            + "\nWrite `.msgpack`."
        )
    try:
        with _ONE_AT_A_TIME, orbax.StandardCheckpointer() as checkpointer:
            in_chunks = jax.tree.map(lambda _: orbax.SaveArgs(chunk_byte_size=_CHUNK), tree)
            checkpointer.save(path.absolute(), jax.tree.map(np.asarray, tree), save_args=in_chunks)
    except OSError:
        raise
    except Exception as error:
        # Orbax and TensorStore have errors of any class, if the disk is full.
        raise OSError(_first_line(error)) from error


def _twins(leaves: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Pairs of weights, by path, that Orbax keeps under one name."""
    first: dict[str, str] = {}
    twins = []
    for names in leaves:
        path = SEPARATOR.join(names)
        other = first.setdefault(_joined(names), path)
        if other is not path:
            twins.append((other, path))
    return twins


def _joined(names: Sequence[str]) -> str:
    """The one name of a weight: TensorStore leaves out separators at an end of it, and those that follow another."""
    return SEPARATOR.join(part for part in _JOINT.join(names).split(SEPARATOR) if part)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read(path: Path, progress: Progress | None = None) -> dict[str, PyTree]:
    """Read nested dicts of arrays, without being told what to expect.

    A checkpoint that has been replaced meanwhile is read again, so that what is returned is of one of them.

    Raises:
        FileError: The directory holds no checkpoint, or a damaged one.
    """
    for _ in range(_MOST_TRIES):
        _replace.finish(Path(os.path.realpath(path)))
        before = _identity(path)
        try:
            tree = _read_once(path, progress)
        except FileError:
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return tree
    raise FileError(f"{str(path)!r} is replaced again and again while it is read.")


def _identity(path: Path) -> tuple[int, ...]:
    """What no two checkpoints at a path have in common."""
    try:
        return tuple(n for each in (path, path / _MARK) for n in _identity_of(os.stat(each)))
    except OSError:
        return ()


def _identity_of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _read_once(path: Path, progress: Progress | None) -> dict[str, PyTree]:
    if not is_checkpoint(path):
        inside = sorted(str(mark.parent) for mark in _marks(path))
        hint = (
            f"There are checkpoints in it: {', '.join(inside[:5])}."
            if inside
            else "Give the directory that Orbax wrote the tree into."
        )
        raise FileError(
            f"{str(path)!r} is a directory that is no Orbax checkpoint (it has no `{_MARK}`).\n{hint}"
        )
    orbax = needed("orbax.checkpoint", "orbax-checkpoint", _PURPOSE)
    try:
        return _read(orbax, path.absolute(), progress)
    except (FileError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise FileError(
            f"{str(path)!r} is damaged, or an Orbax checkpoint of another kind: {_limits.printable(str(error))}"
        ) from error


def is_checkpoint(path: Path) -> bool:
    """Whether a directory holds an Orbax checkpoint of a tree."""
    return (path / _MARK).is_file()


def _marks(path: Path) -> Iterator[Path]:
    """In a directory of steps (as a `CheckpointManager` makes it), where its checkpoints are."""
    yield from path.glob(f"*/{_MARK}")
    yield from path.glob(f"*/*/{_MARK}")


def _read(orbax: Any, path: Path, progress: Progress | None) -> dict[str, PyTree]:
    present = _present(path)
    with _ONE_AT_A_TIME, orbax.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise FileError(
                f"{str(path)!r} is damaged: a file in it is missing, or cannot be read."
            )
        problem = _limits.problem_of_tree(metadata.tree)
        if problem:
            raise FileError(f"{str(path)!r} is damaged: {problem}.")
        known, treedef = jax.tree.flatten(metadata.tree)
        twins = _twins(_limits.names_of_leaves(metadata.tree))
        if twins:
            raise FileError(
                f"{str(path)!r} has one array for two weights: {' and '.join(map(repr, twins[0]))}."
            )
        sizes = [_bytes(entry) for entry in known]
        if sum(sizes) > _MOST_COMPRESSION * present:
            raise FileError(
                f"{str(path)!r} is damaged: {present} bytes cannot hold arrays of {sum(sizes)} bytes."
            )
        if any(_is_overfilled(entry) for entry in known):
            raise FileError(
                f"{str(path)!r} is damaged: a chunk of an array is announced to be larger than the array."
            )
        as_numpy = jax.tree.unflatten(
            treedef, [orbax.RestoreArgs(restore_type=np.ndarray)] * len(known)
        )
        arrays: list[Any] = []
        for batch in _batches(sizes):
            wanted = [entry if i in batch else orbax.PLACEHOLDER for i, entry in enumerate(known)]
            arguments = orbax.args.PyTreeRestore(
                item=jax.tree.unflatten(treedef, wanted), restore_args=as_numpy
            )
            restored = jax.tree.leaves(checkpointer.restore(path, args=arguments))
            arrays += [restored[i] for i in batch]
            if progress:
                progress(sum(sizes[: batch.stop]), sum(sizes))
        tree: dict[str, PyTree] = jax.tree.unflatten(treedef, arrays)
        return tree


def _present(path: Path) -> int:
    """The bytes that are there, once nothing is there that has no end."""
    total = 0
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                    continue
                # A link to a file may be: caches of downloads consist of them. One to a folder may lead anywhere.
                size = _size_of(entry)
                if size is None:
                    inside = os.path.relpath(entry.path, path)
                    raise FileError(f"{str(path)!r} is damaged: {inside!r} in it is no file.")
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
    """Whether chunks are larger than their array: they would be allocated whole."""
    chunk = getattr(getattr(entry, "storage", None), "chunk_shape", None) or ()
    return any(size > max(whole, 1) for size, whole in zip(chunk, entry.shape or (), strict=False))


def _bytes(entry: Any) -> int:
    return int(np.prod(entry.shape or (), dtype=object)) * np.dtype(entry.dtype).itemsize


def _batches(sizes: list[int]) -> Iterator[range]:
    start, total = 0, 0
    for i, size in enumerate(sizes):
        total += size
        if total >= _BATCH or i == len(sizes) - 1:
            yield range(start, i + 1)
            start, total = i + 1, 0
