"""Files that are read in pieces and written whole or not at all, and what files of other programs look like."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ._errors import FileError, PackageError

Progress = Callable[[int, int], object]

# What is read at once: between two pieces progress is shown.
_PIECE = 2**24


class Source:
    """A file that is read from its beginning to its end, every length checked against what is left of it.

    Attributes:
        path: The file's path, for messages.
        size: Its size in bytes.
        position: How many bytes have been read.
    """

    def __init__(self, file: BufferedReader, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._file = file
        self._progress = progress
        self._shown = -1

    def take(self, number: int) -> bytes:
        """The next bytes."""
        self.check(number)
        data = self._file.read(number)
        self._advance(len(data), number)
        return data

    def fill(self, array: np.ndarray[Any, Any]) -> None:
        """Read an array's bytes into its memory."""
        self.check(array.nbytes)
        # As bytes, since not every dtype of `ml_dtypes` can be seen as a buffer.
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._advance(self._file.readinto(piece), len(piece))

    def skip_to(self, position: int) -> None:
        """Go on at another position."""
        self._file.seek(position)
        self.position = position

    def check(self, number: int) -> None:
        """Refuse a length that goes beyond the file's end."""
        left = self.size - self.position
        if number > left:
            raise self.damaged(
                f"{number} more bytes are announced where {left} are left: it has been cut short, or its lengths lie"
            )

    def damaged(self, problem: str) -> FileError:
        """An error that says what is wrong with the file, and where."""
        return FileError(f"{str(self.path)!r} is damaged at byte {self.position}: {problem}.")

    def _advance(self, number: int, wanted: int) -> None:
        self.position += number
        if number < wanted:
            raise self.damaged("it has become shorter while it was read")
        if self._progress and (self.position - self._shown >= _PIECE or self.position == self.size):
            self._shown = self.position
            self._progress(self.position, self.size)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write a file or directory under, which takes the path's place when nothing went wrong.

    Until then what is there stays as it is. A directory is moved aside before its successor takes its place.
    """
    # Short, since a name has an end.
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:32]}.", dir=path.parent))
    new, old = folder / "new", folder / "old"
    try:
        yield new
        if new.is_dir():
            _replace_directory(path, new, old)
        else:
            with open(new, "rb+") as file:
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, new)
            os.replace(new, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace_directory(path: Path, new: Path, old: Path) -> None:
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise


def needed(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        PackageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageError(
            f"{purpose} needs the Python package {package!r}: {error}.\nInstall it: pip install {package}", name=package
        ) from error


_MAGIC = {
    b"PK\x03\x04": "a zip archive, as PyTorch's `.pt`, Keras's `.keras` and NumPy's `.npz` are",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras's `.weights.h5` is",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"\x93NUMPY": "an array of NumPy (`.npy`)",
    b"GGUF": "a GGUF file, as llama.cpp reads it",
    b"version https://git-lfs": "a pointer of Git LFS in the place of the file; fetch the file itself by `git lfs pull`",
    b"<": "a web page; what was downloaded is not the file",
    b"{": "text, JSON perhaps",
} | {bytes([0x80, protocol]): "a pickle of Python, which can run any code when it is read" for protocol in range(2, 6)}


def kind_of(path: Path) -> str | None:
    """What a file is by its first bytes, None where they do not tell."""
    with open(path, "rb") as file:
        head = file.read(32)
    if not head:
        return "empty"
    # A header's length, then the header.
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return SAFETENSORS
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


SAFETENSORS = "a safetensors file"
