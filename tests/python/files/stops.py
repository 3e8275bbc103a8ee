"""Stop writers at every call of a C function, system calls included, for `test_replace.py`.

    python stops.py KIND HOW FOLDER

KIND is `file`, `folder` (which exchanges names if the system can) or `journal` (a folder, without
an exchange). HOW is `kill` or `interrupt`. For each n a writer is stopped at its n-th call. After
that, the path must hold the complete old or new one, and the next writer must leave nothing but
what it has written.

Prints JSON: how often the old and the new one were found, and folders with copies of the resulting
states, one of each kind, for the public readers.
"""

import filecmp
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

# Not through the package: a process that has imported JAX takes ten times as long to fork.
sys.path.insert(0, str(Path(__file__).parents[3] / "inst/python/kerasflax/files"))
import _replace

kind, how, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
name = "w.msgpack" if kind == "file" else "w"
old, new = folder / "old" / name, folder / "new" / name
if kind == "journal":
    _replace._exchange = lambda: None


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def same(one, other):
    if not one.is_dir():
        return one.exists() and filecmp.cmp(one, other, shallow=False)
    compared = filecmp.dircmp(one, other)
    files = [
        each for path in other.rglob("*") if (each := path.relative_to(other)) and path.is_file()
    ]
    unmatched = [*compared.left_only, *compared.right_only]
    return not unmatched and all(
        filecmp.cmp(one / each, other / each, shallow=False) for each in files
    )


def write(path, source):
    with _replace.replacing(path) as staged:
        if source.is_dir():
            # In several steps, so that a writer can be stopped between them.
            os.mkdir(staged)
            for each in sorted(os.listdir(source)):
                os.rename(source / each, staged / each)
        else:
            data = source.read_bytes()
            with open(staged, "wb") as file:
                file.write(data[:10])
                file.flush()
                file.write(data[10:])


class Stop:
    # Between the end of one call and the start of the next, the disk does not change. But the stack
    # does, so an interrupt there unwinds other blocks.
    events = {"kill": ["c_call"], "interrupt": ["c_call", "c_return"]}[how]

    def __init__(self, number):
        self.left = number

    def __call__(self, frame, event, argument):
        if event not in self.events or argument is sys.setprofile:
            return
        self.left -= 1
        if self.left == 0:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def stopped(number, path, source):
    """Whether the writer was stopped."""
    stop = Stop(number)
    if how == "kill":
        process = os.fork()
        if process:
            return os.waitpid(process, 0)[1] != 0
    try:
        sys.setprofile(stop)
        write(path, source)
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    if how == "kill":
        os._exit(0)
    return stop.left <= 0


def state_of(place, source):
    """Describe the files at a place, without their random names."""
    found = []
    for path in sorted(place.rglob("*")):
        parts = path.relative_to(place).parts
        if len(parts) < 3:
            found.append("/".join("staging" if part.startswith(".") else part for part in parts))
    return json.dumps([same(place / name, old), same(place / name, new), found])


warnings.filterwarnings("ignore", message=".*os.fork")
counts, states, number, was_stopped = {"old": 0, "new": 0, "missing": 0}, {}, 0, True
# Write once, so that what happens only once, such as an import, is not counted.
(folder / "warm").mkdir()
copy(new, folder / "warm/source")
write(folder / "warm" / name, folder / "warm/source")
while was_stopped:
    number += 1
    place, source = folder / "at", folder / "source"
    place.mkdir()
    copy(old, place / name)
    copy(new, source)
    was_stopped = stopped(number, place / name, source)
    shutil.rmtree(source, ignore_errors=True)
    source.unlink(missing_ok=True)
    state = state_of(place, source)
    if state not in states:
        states[state] = str(folder / f"state{number}")
        shutil.copytree(place, states[state])
    if not (place / name).exists():
        counts["missing"] += 1
        assert kind == "journal", (number, state)
        _replace.finish(place / name)
    is_old, is_new = same(place / name, old), same(place / name, new)
    assert is_old or is_new, (number, state)
    counts["new" if is_new else "old"] += 1
    copy(new, source)
    write(place / name, source)
    assert same(place / name, new), (number, state)
    assert os.listdir(place) == [name], (number, state, os.listdir(place))
    shutil.rmtree(place)
    shutil.rmtree(source, ignore_errors=True)
    source.unlink(missing_ok=True)
assert is_new, "a writer that was not stopped did not write"
print(json.dumps(counts | {"states": list(states.values()), "tries": number}))
