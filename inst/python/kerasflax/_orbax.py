"""Orbax checkpoints: directories, written and read by the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ._errors import FileError, VariablesError
from ._files import Progress, needed

PyTree = Any

_MARK = "_METADATA"
_PURPOSE = "An Orbax checkpoint, which is what a path without `.msgpack` or `.safetensors` stands for,"

# Orbax reads what it is asked for at once, and needs twice its size meanwhile. Asking costs some 40 ms.
_BATCH = 2**25
# What an array is written in. Without it an array is one chunk, and reading that takes its size twice: as it lies, and opened.
_CHUNK = 2**25
# A compressor makes at most so much of a byte; a checkpoint that claims more lies.
_MOST_COMPRESSION = 2**16


def write(tree: PyTree, named: Mapping[str, np.ndarray[Any, Any]], path: Path) -> None:
    """Write nested dicts of arrays; by path, too, what they hold."""
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
    if problems or not named:
        raise VariablesError(
            "Orbax does not store such arrays:\n" + "\n".join(problems or ["  none at all"]) + "\nWrite `.msgpack`."
        )
    with orbax.StandardCheckpointer() as checkpointer:
        in_chunks = jax.tree.map(lambda _: orbax.SaveArgs(chunk_byte_size=_CHUNK), tree)
        checkpointer.save(path.absolute(), jax.tree.map(np.asarray, tree), save_args=in_chunks)


def read(path: Path, progress: Progress | None = None) -> dict[str, PyTree]:
    """Read nested dicts of arrays, without being told what to expect.

    Raises:
        FileError: The directory holds no checkpoint, or a damaged one.
    """
    if not is_checkpoint(path):
        inside = sorted(str(mark.parent) for mark in _marks(path))
        hint = (
            f"There are checkpoints in it: {', '.join(inside[:5])}."
            if inside
            else "Give the directory that Orbax wrote the tree into."
        )
        raise FileError(f"{str(path)!r} is a directory that is no Orbax checkpoint (it has no `{_MARK}`).\n{hint}")
    orbax = needed("orbax.checkpoint", "orbax-checkpoint", _PURPOSE)
    try:
        return _read(orbax, path.absolute(), progress)
    except (FileError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise FileError(f"{str(path)!r} is damaged, or an Orbax checkpoint of another kind: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Whether a directory holds an Orbax checkpoint of a tree."""
    return (path / _MARK).is_file()


def _marks(path: Path) -> Iterator[Path]:
    """In a directory of steps (as a `CheckpointManager` makes it), where its checkpoints are."""
    yield from path.glob(f"*/{_MARK}")
    yield from path.glob(f"*/*/{_MARK}")


def _read(orbax: Any, path: Path, progress: Progress | None) -> dict[str, PyTree]:
    present = _present(path)
    with orbax.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise FileError(f"{str(path)!r} is damaged: a file in it is missing, or cannot be read.")
        known, treedef = jax.tree.flatten(metadata.tree)
        sizes = [_bytes(entry) for entry in known]
        if sum(sizes) > _MOST_COMPRESSION * present:
            raise FileError(f"{str(path)!r} is damaged: {present} bytes cannot hold arrays of {sum(sizes)} bytes.")
        if any(_is_overfilled(entry) for entry in known):
            raise FileError(f"{str(path)!r} is damaged: a chunk of an array is announced to be larger than the array.")
        as_numpy = jax.tree.unflatten(treedef, [orbax.RestoreArgs(restore_type=np.ndarray)] * len(known))
        arrays: list[Any] = []
        for batch in _batches(sizes):
            wanted = [entry if i in batch else orbax.PLACEHOLDER for i, entry in enumerate(known)]
            arguments = orbax.args.PyTreeRestore(item=jax.tree.unflatten(treedef, wanted), restore_args=as_numpy)
            restored = jax.tree.leaves(checkpointer.restore(path, args=arguments))
            arrays += [restored[i] for i in batch]
            if progress:
                progress(sum(sizes[: batch.stop]), sum(sizes))
        tree: dict[str, PyTree] = jax.tree.unflatten(treedef, arrays)
        return tree


def _present(path: Path) -> int:
    """The bytes that are there, once nothing is there that has no end."""
    files = [file for file in path.rglob("*") if not file.is_dir()]
    for file in files:
        if not file.is_file():
            raise FileError(f"{str(path)!r} is damaged: {str(file.relative_to(path))!r} in it is no file.")
    return sum(file.stat().st_size for file in files)


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
