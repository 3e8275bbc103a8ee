"""Writing a new file, with reports of how much of it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from ._source import PIECE, Progress


class Sink:
    """A new file that is written from start to end, and reports its progress.

    Args:
        file: The file.
        total: The bytes that will be written, or slightly fewer.
        progress: Called with the number of bytes written so far and the total.
    """

    def __init__(self, file: BufferedWriter, total: int, progress: Progress | None = None) -> None:
        self._file = file
        self._total = total
        self._progress = progress
        self._position = self._reported = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            self._position += self._file.write(view[start : start + PIECE])
            # `finish` reports the total.
            is_due = self._position - self._reported >= PIECE and self._position < self._total
            if self._progress and is_due:
                self._reported = self._position
                self._progress(self._position, self._total)

    def write_array(self, array: np.ndarray[Any, Any]) -> None:
        """Write the bytes of an array, in C order."""
        rows = np.ascontiguousarray(array)
        # View it as bytes: some dtypes of `ml_dtypes` do not support the buffer protocol.
        self.write(rows.reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Report that everything is written."""
        self._file.flush()
        if self._progress:
            self._progress(self._total, self._total)


@contextlib.contextmanager
def created(path: Path, total: int, progress: Progress | None = None) -> Iterator[Sink]:
    """Create a file to write.

    Raises:
        OSError: The file cannot be created or written.
    """
    with open(path, "xb") as file:
        sink = Sink(file, total, progress)
        yield sink
        sink.finish()
