"""Files and folders that take the place of older ones: at every instant the old one or the new one is there, whole.

What is new is written in a folder of its own beside its place, the staging folder, and moved into place by one call of the
system. A file replaces another by `rename`; a folder exchanges names with another (`renameat2`, on macOS `renamex_np`).

Where the system or the file system has no such exchange, a folder takes two calls: the old one moves to `old` in the staging
folder, then `new` takes its place. A process that ends between the two leaves the path empty, and `old` and `new` side by
side. These two names are the journal: `finish` does the second call, for the next reader or writer of the path.

A writer holds a lock on its staging folder, which the system drops when the process ends, however it ends. What has no lock is
left over from a killed writer, and the next writer of the same path removes it.
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
except ImportError:  # Windows, which does not let a file go that somebody has open.
    fcntl = None  # type: ignore[assignment]

_NEW, _OLD, _DONE, _LOCK = "new", "old", "done", "lock"


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Give a name under which to write a file or folder, which takes the path's place if nothing went wrong.

    Until then what is there stays as it is. What killed writers of the same path have left is removed.

    Args:
        path: The path, without links.
        suffix: How the name must end.
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
    """Put the new folder in its place for a writer that has moved the old one away and could do no more."""
    # Only a folder can be missing, and the newest of several journals is right: the others' folders were in place before it.
    for folder in sorted(_staging_folders(path), key=_time_of, reverse=True):
        if os.path.lexists(path):
            return
        _finish(folder, path)


def _finish(folder: Path, path: Path) -> None:
    # Of an old folder alone the writer had done everything: who has removed the new one since does not want the old one.
    if not (os.path.lexists(folder / _OLD) and os.path.lexists(folder / _NEW)):
        return
    for name in (_NEW, _OLD):
        # Another process may do the same at the same time: one of the two succeeds.
        with contextlib.suppress(OSError):
            os.rename(folder / name, path)
            _sync_folder(path.parent)
            return


# Staging folders --------------------------------------------------------------------------------------------------------


def _prefix(path: Path) -> str:
    # Short, since names have a limit; the digest tells paths apart that begin alike.
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    return f".{path.name[:32]}.{digest}."


def _staging_folders(path: Path) -> list[Path]:
    prefix = _prefix(path)
    try:
        with os.scandir(path.parent) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        # A folder that may be written and not listed, or none: writing says so.
        return []


def _time_of(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _staged(path: Path) -> tuple[Path, IO[bytes]]:
    """Make a staging folder and lock it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        # Another writer may take the folder for a left-over before it is locked.
        lock = _locked(folder, is_own=True)
        if lock is not None:
            return folder, lock


def _locked(folder: Path, *, is_own: bool) -> IO[bytes] | None:
    """Lock a staging folder until the result is closed; None if another process holds it or it is gone.

    A file system without locks cannot tell whether a writer lives: there one's own folder counts as locked, and no other does.
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
    """Finish, then remove, what killed writers of a path have left."""
    if not os.path.lexists(path):
        finish(path)
    for folder in _staging_folders(path):
        with contextlib.suppress(OSError):
            lock = _locked(folder, is_own=False)
            if lock is not None:
                with lock:
                    _discard(folder, path)
                    # A writer that has made this folder, and has not locked it yet, finds it gone and makes another.
                    _remove(folder)
                # Where an open file cannot be removed.
                _remove(folder)


def _discard(folder: Path, path: Path) -> None:
    """Remove what a staging folder holds, unless it is the last of its kind; the lock stays, to be held until then."""
    if os.path.lexists(folder / _OLD):
        if not os.path.lexists(path):
            _finish(folder, path)
        if not os.path.lexists(path):
            return
        # From here on nobody takes what is left for a journal.
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
    """Remove a staging folder that is empty but for its lock."""
    with contextlib.suppress(OSError):
        if not set(os.listdir(folder)) - {_LOCK}:
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


# One call of the system -------------------------------------------------------------------------------------------------


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    try:
        # Does what is wanted where nothing is, or an empty folder.
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
        # Either a reader has been faster, or another writer, whose folder then counts as the later one.
        if not os.path.lexists(path):
            if os.path.lexists(old):
                os.rename(old, path)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once, or return False where that cannot be done."""
    call = _exchange()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


def _exchange() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two names; it returns 0 if it has done so."""
    try:
        if sys.platform == "darwin":
            renamex_np = ctypes.CDLL(None).renamex_np
            return lambda one, other: renamex_np(one, other, ctypes.c_uint(2))
        if sys.platform.startswith("linux"):
            renameat2 = ctypes.CDLL(None).renameat2
            here = ctypes.c_int(-100)
            return lambda one, other: renameat2(here, one, here, other, ctypes.c_uint(2))
    except (AttributeError, OSError):
        # A library of C that is older than the call, or has not got it.
        pass
    return None


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder and all in it, to its disk."""
    if not path.is_dir():
        # Windows asks for a file that may be written.
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
    """Have the system write the names in a folder to its disk, where it knows how to."""
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
