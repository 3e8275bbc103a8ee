"""Files that are read in pieces, and what files of other programs look like."""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .._errors import ArgumentError, FileError, PackageError

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

    def head(self) -> bytes:
        """The first bytes of a file of which nothing has been read; they stay to be read."""
        return self._file.peek(32)[:32]

    def take(self, number: int) -> bytes:
        """The next bytes."""
        self.check(number)
        data = self._file.read(number)
        self._advance(len(data), number)
        return data

    def fill(self, array: np.ndarray[Any, Any]) -> None:
        """Read an array's bytes into its memory."""
        size = array.nbytes
        self.check(size)
        # As bytes, since not every dtype of `ml_dtypes` can be seen as a buffer.
        data = array.reshape(-1).view(np.uint8).data
        if size <= _PIECE:
            self._advance(self._file.readinto(data), size)
            return
        for start in range(0, size, _PIECE):
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
def opened(path: Path, progress: Progress | None = None) -> Iterator[Source]:
    """Open a file to read all of it through one descriptor, so that what has been checked is what is read.

    Raises:
        FileError: It is no regular file, or has been changed meanwhile.
    """
    # A pipe would wait for somebody to write into it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise FileError(f"{str(path)!r} is no regular file.")
        yield Source(file, path, progress)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise FileError(f"{str(path)!r} has been changed while it was read.\nRead it again.")


def named(path: Any) -> Path:
    """The path that a user has named.

    Raises:
        ArgumentError: It is no name of a file.
        FileError: The system cannot have such a name.
    """
    try:
        path = os.fsdecode(path)
    except TypeError:
        path = ""
    if not path or "\0" in path:
        raise ArgumentError("`path` must be the name of a file.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise FileError(
            f"{path!r} is no name that a file can have here: {error.reason}."
        ) from error
    return Path(os.path.expanduser(path))


def needed(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        PackageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageError(
            f"{purpose} needs the Python package {package!r}: {error}.\nInstall it: pip install {package}",
            name=package,
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
} | {
    bytes([0x80, protocol]): "a pickle of Python, which can run any code when it is read"
    for protocol in range(2, 6)
}


def kind_of(source: Source) -> str | None:
    """What a file is by its first bytes, None where they do not tell."""
    head = source.head()
    if not head:
        return "empty"
    # A header's length, then the header.
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= source.size:
        return SAFETENSORS
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


SAFETENSORS = "a safetensors file"
