"""Replace a file or folder in one step, so that either the old or the new one is always there.

A writer creates a folder of its own next to the path, the staging folder, writes the new file or
folder in it, and moves the result into place with one system call. A file replaces the old one by
`rename`. A folder exchanges names with the old one (`renameat2`; on macOS `renamex_np`).

If the system or the file system has no exchange, replacing a folder takes two calls: the writer
moves the old folder to `old` in the staging folder, then moves `new` to the path. If its process
ends between the two, nothing is at the path, and the staging folder holds both `old` and `new`.
These two names are the journal: the next reader or writer of the path calls `finish`, which makes
the second call.

A writer locks its staging folder, and the system releases the lock when the process ends, no matter
how. A staging folder without a lock is left over from a killed writer, and the next writer of the
same path removes it.

This file imports nothing from the package, because the tests load it on its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which does not delete a file while it is open.
    fcntl = None  # type: ignore[assignment]

_NEW, _OLD, _DONE, _LOCK = "new", "old", "done", "lock"


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield a name to write a file or folder to, and then move it to the path.

    If the block raises, the path stays as it is. What killed writers of the same path have left
    over is removed.

    Args:
        path: The path, with symbolic links resolved.
        suffix: The suffix of the name.

    Yields:
        A name in a new folder next to the path. Nothing exists under that name.

    Raises:
        OSError: The file or folder cannot be moved to the path.
    """
    _clean(path)
    folder, lock = _staged(path)
    new = folder / (_NEW + suffix)
    try:
        with lock:
            try:
                yield new
                _sync(new)
                if new.is_dir():
                    _replace_folder(new, path, folder / _OLD)
                    _sync_folder(folder)
                else:
                    if path.exists():
                        shutil.copymode(path, new)
                    os.replace(new, path)
                _sync_folder(path.parent)
            finally:
                _discard(folder, path)
    finally:
        _remove(folder)


def finish(path: Path) -> None:
    """Move the new folder into place if a killed writer had already moved the old one away."""
    # Only a folder can be missing. Of several journals the newest is right, because the folders of
    # the older ones had been in place before its own.
    for folder in sorted(_staging_folders(path), key=_time_of, reverse=True):
        if os.path.lexists(path):
            return
        _finish(folder, path)


def _finish(folder: Path, path: Path) -> None:
    # If only `old` is there, the writer did move the new folder into place, and somebody removed it
    # later. The old one must not come back.
    if not (os.path.lexists(folder / _OLD) and os.path.lexists(folder / _NEW)):
        return
    for name in (_NEW, _OLD):
        # If another process does the same at the same time, one of the two succeeds.
        with contextlib.suppress(OSError):
            os.rename(folder / name, path)
            _sync_folder(path.parent)
            return


# Staging folders ----------------------------------------------------------------------------------


def _prefix(path: Path) -> str:
    # Names have a maximum length, so the prefix is short. The digest distinguishes paths that begin
    # with the same characters.
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return f".{path.name[:32]}.{digest}."


def _staging_folders(path: Path) -> list[Path]:
    prefix = _prefix(path)
    try:
        with os.scandir(path.parent) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        # The parent cannot be listed, or is not a folder; writing will raise if it cannot proceed.
        return []


def _time_of(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _staged(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a staging folder and lock it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        # Before the lock, another writer may remove the folder as left over; then create another.
        lock = _locked(folder, is_own=True)
        if lock is not None:
            return folder, lock


def _locked(folder: Path, *, is_own: bool) -> IO[bytes] | None:
    """Lock a staging folder until the returned file is closed.

    On a file system without locks nobody can tell whether a writer is alive. A writer's own folder
    then counts as locked, and the folder of any other writer cannot be locked.

    Args:
        folder: The staging folder.
        is_own: Whether the caller has created it.

    Returns:
        The open lock file; None if another writer, in this process or another, holds the lock, or
        if the folder is gone.
    """
    file = folder / _LOCK
    if fcntl is None and not is_own:
        try:
            file.unlink(missing_ok=True)
        except OSError:
            return None
    try:
        lock = open(file, "a+b", buffering=0)  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):
        return None
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES) or not is_own:
                lock.close()
                return None
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(file)):
            return lock
    lock.close()
    return None


def _clean(path: Path) -> None:
    """Finish the work of killed writers of a path, then remove what they have left over."""
    if not os.path.lexists(path):
        finish(path)
    for folder in _staging_folders(path):
        with contextlib.suppress(OSError):
            lock = _locked(folder, is_own=False)
            if lock is not None:
                with lock:
                    _discard(folder, path)
                    # A writer that has created this folder but not locked it yet will find it gone,
                    # and create another.
                    _remove(folder)
                # Once more, for systems that cannot delete an open file.
                _remove(folder)


def _discard(folder: Path, path: Path) -> None:
    """Remove the contents of a staging folder, except for the lock file, which is still in use.

    If nothing can be moved to the path, the contents stay: they are the only copy.
    """
    if os.path.lexists(folder / _OLD):
        if not os.path.lexists(path):
            _finish(folder, path)
        if not os.path.lexists(path):
            return
        # Without `old` the folder is no longer a journal.
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder / _OLD, folder / _DONE)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _remove(folder: Path) -> None:
    """Remove a staging folder if it holds nothing but its lock file."""
    with contextlib.suppress(OSError):
        if not set(os.listdir(folder)) - {_LOCK}:
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


# System calls -------------------------------------------------------------------------------------


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    try:
        # Enough if nothing is at the path, or an empty folder.
        os.rename(new, path)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not path.is_dir():
            raise
    if _exchanged(new, path):
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, old)
        _sync_folder(path.parent)
    try:
        os.rename(new, path)
    except OSError:
        # If something is at the path, a reader has finished this writer's work, or another writer
        # was faster, and its folder counts as the later one.
        if not os.path.lexists(path):
            if os.path.lexists(old):
                os.rename(old, path)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; return False if the system cannot do so."""
    call = _exchange()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


def _exchange() -> Callable[[bytes, bytes], int] | None:
    """The system call that exchanges two names and returns 0 on success; None if there is none."""
    try:
        if sys.platform == "darwin":
            renamex_np = ctypes.CDLL(None).renamex_np
            return lambda one, other: renamex_np(one, other, ctypes.c_uint(2))
        if sys.platform.startswith("linux"):
            renameat2 = ctypes.CDLL(None).renameat2
            here = ctypes.c_int(-100)
            return lambda one, other: renameat2(here, one, here, other, ctypes.c_uint(2))
    except (AttributeError, OSError):
        # The C library does not have the call.
        pass
    return None


def _sync(path: Path) -> None:
    """Flush a file, or a folder and everything in it, to the disk."""
    if not path.is_dir():
        # Windows flushes only files that are open for writing.
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return
    for folder, _, files in os.walk(path, topdown=False):
        for file in files:
            _sync(Path(folder, file))
        _sync_folder(Path(folder))


def _sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, if the system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
    finally:
        os.close(descriptor)
