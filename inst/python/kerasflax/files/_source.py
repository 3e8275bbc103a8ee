"""Reading a file with checked lengths, and recognizing files of other programs."""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import _host, _messages
from .._errors import ArgumentError, FileError, PackageError

Progress = Callable[[int, int], object]
# The sharding of each array to read, by path; None for a NumPy array. All others are left out, and
# a `jax.ShapeDtypeStruct` stands for each.
Places = Mapping[str, Any]

# Bytes that show the kind of a file, compressed or not.
_HEAD = 1024
# Bytes read or written at once. Progress is reported between two pieces.
PIECE = 2**24


class Source:
    """A file that is read from start to end.

    Each length is checked against the bytes that remain before it is used.

    Attributes:
        path: The path of the file, for messages.
        size: The size of the file in bytes.
        position: The number of bytes that have been read.
    """

    def __init__(self, file: BufferedReader, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._file = file
        self._progress = progress
        self._reported = -1

    def head(self) -> bytes:
        """Peek at the first bytes of the file, before anything has been read."""
        return self._file.peek(_HEAD)[:_HEAD]

    def take(self, number: int) -> bytes:
        """Read the next bytes."""
        self.check(number)
        data = self._file.read(number)
        self._advance(len(data), number)
        return data

    def fill(self, array: np.ndarray[Any, Any]) -> None:
        """Read the bytes of an array into its memory."""
        size = array.nbytes
        self.check(size)
        # View it as bytes: some dtypes of `ml_dtypes` do not support the buffer protocol.
        data = array.reshape(-1).view(np.uint8).data
        if size <= PIECE:
            self._advance(self._file.readinto(data), size)
            return
        for start in range(0, size, PIECE):
            piece = data[start : start + PIECE]
            self._advance(self._file.readinto(piece), len(piece))

    def skip(self, number: int) -> None:
        """Go past the next bytes without reading them."""
        self.check(number)
        self._file.seek(number, os.SEEK_CUR)
        self._advance(number, number)

    def check(self, number: int) -> None:
        """Refuse a length that goes beyond the end of the file.

        Raises:
            FileError: Fewer than `number` bytes remain.
        """
        left = self.size - self.position
        if number > left:
            raise self.damaged(
                f"it announces {number} more bytes, but {left} remain; it is truncated, or one of"
                " its lengths is wrong"
            )

    def damaged(self, problem: str) -> FileError:
        """An error that says what is wrong with the file, and at which byte."""
        return FileError(f"{str(self.path)!r} is damaged at byte {self.position}: {problem}.")

    def _advance(self, number: int, wanted: int) -> None:
        self.position += number
        if number < wanted:
            raise self.damaged("it became shorter while it was read")
        is_due = self.position - self._reported >= PIECE or self.position == self.size
        if self._progress and is_due:
            self._reported = self.position
            self._progress(self.position, self.size)


@contextlib.contextmanager
def opened(path: Path, progress: Progress | None = None) -> Iterator[Source]:
    """Open a file to read it through a single descriptor, so that the bytes checked are those read.

    Raises:
        FileError: It is not a regular file, or it changed while it was read.
        OSError: The system cannot open the file.
    """
    # Without `O_NONBLOCK`, opening a pipe waits until another process writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise FileError(f"{str(path)!r} is not a regular file.")
        yield Source(file, path, progress)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise FileError(
                f"{str(path)!r} was changed while it was read.", advice="Read it again."
            )


def named(path: Any, argument: str = "path") -> Path:
    """Convert a user's argument to a path.

    Args:
        path: The user's value.
        argument: The name of the argument, for messages.

    Raises:
        ArgumentError: The argument is not the name of a file.
        FileError: The file system cannot represent the name.
    """
    try:
        path = os.fsdecode(path)
    except TypeError:
        path = ""
    if not path or "\0" in path:
        raise ArgumentError(f"`{argument}` must be the name of a file.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise FileError(
            f"{path!r} cannot be the name of a file on this system: {error.reason}."
        ) from error
    return Path(os.path.expanduser(path))


def needed(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        PackageError: The package is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageError(
            f"{purpose} requires the Python package {package!r}, which cannot be imported: "
            f"{_messages.first_line(error)}.",
            advice=f"{_host.word('install', package)}.",
            name=package,
        ) from error


SAFETENSORS = "a safetensors file"
_GZIP = b"\x1f\x8b"
_R_FILES = (b"X\n\0\0\0", b"RDX")
_MAGIC = {
    b"PK\x03\x04": "a zip archive, like PyTorch's `.pt`, Keras's `.keras` and NumPy's `.npz` files",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, like Keras's `.weights.h5` files",
    _GZIP: "compressed with gzip; decompress it first",
    _R_FILES[0]: "an R object; read it in R with `readRDS()`",
    _R_FILES[1]: "a file of R's `save()`; read it in R with `load()`",
    b"\x93NUMPY": "a NumPy array (`.npy`)",
    b"GGUF": "a GGUF file, for llama.cpp",
    b"version https://git-lfs": "a Git LFS pointer; download the file itself with `git lfs pull`",
    b"<": "a web page; the download did not return the file itself",
    b"{": "text, possibly JSON",
} | {
    bytes([0x80, protocol]): "a Python pickle, which can run any code when it is read"
    for protocol in range(2, 6)
}


def kind_of(source: Source) -> str | None:
    """Describe a file by its first bytes; None if they are not those of a known kind."""
    head = source.head()
    if not head:
        return "empty"
    # The length of the header, then the header.
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= source.size:
        return SAFETENSORS
    if head.startswith(_GZIP):
        # R compresses its files.
        with contextlib.suppress(zlib.error):
            start = zlib.decompressobj(wbits=31).decompress(head, 5)
            head = start if start.startswith(_R_FILES) else head
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
