import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from support import environment, run_python

from kerasflax import read_variables, write_variables
from kerasflax.files import _replace

OLD, NEW = {"a": np.zeros(3, np.float32)}, {"a": np.ones(3, np.float32)}


@pytest.fixture
def quick_folder():
    """A folder in memory, if the system has one: a thousand writers would wait for a disk."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as folder:
        yield Path(folder)


def without_exchange(monkeypatch):
    monkeypatch.setattr(_replace, "_exchange", lambda: None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed writers are forks")
@pytest.mark.parametrize("how", ["kill", "interrupt"])
@pytest.mark.parametrize("kind", ["file", "folder", "journal"])
def test_a_writer_that_is_stopped_at_any_call_leaves_the_old_or_the_new_one_complete(
    kind, how, quick_folder
):
    name = "w.msgpack" if kind == "file" else "w"
    for which, tree in (("old", OLD), ("new", NEW)):
        (quick_folder / which).mkdir()
        write_variables(tree, quick_folder / which / name)
    done = run_python(Path(__file__).with_name("stops.py"), kind, how, quick_folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["old"] > 50
    assert result["new"] > 10
    assert (result["missing"] > 0) == (kind == "journal" and how == "kill")
    for state in result["states"]:
        value = read_variables(Path(state, name))["a"]
        assert value.tolist() in ([0] * 3, [1] * 3), state


STRACED = """
import os, signal, sys
import numpy as np
from kerasflax import write_variables
write_variables({"a": np.ones(3, np.float32)}, sys.argv[2])
for number in range(1, 1000):
    process = os.fork()
    if not process:
        signal.raise_signal(signal.SIGSTOP)
        write_variables({"a": np.ones(3, np.float32)}, sys.argv[1])
        os._exit(0)
    os.waitpid(process, os.WUNTRACED)
    inject = f"inject=%file,%desc:signal=KILL:when={number}"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(process)]
    tracer = os.posix_spawnp("strace", command, os.environ)
    while "TracerPid:\\t0" in open(f"/proc/{process}/status").read():
        assert os.waitpid(tracer, os.WNOHANG) == (0, 0), "strace cannot trace"
    os.kill(process, signal.SIGCONT)
    _, status = os.waitpid(process, 0)
    os.waitpid(tracer, 0)
    print(number, status, flush=True)
    sys.stdin.readline()
    if os.WIFEXITED(status):
        break
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_writer_that_is_killed_at_any_system_call_leaves_the_old_or_the_new_file_complete(
    quick_folder,
):
    path, other = quick_folder / "w.msgpack", quick_folder / "other.msgpack"
    write_variables(OLD, path)
    old = path.read_bytes()
    write_variables(NEW, other)
    new = other.read_bytes()
    found = []
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STRACED, path, other],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            assert path.read_bytes() in (old, new), line
            found.append(path.read_bytes() == new)
            path.write_bytes(old)
            process.stdin.write("\n")
            process.stdin.flush()
        error = process.stderr.read()
    if "strace" in error:
        pytest.skip("strace cannot trace here")
    assert process.returncode == 0, error
    assert found == sorted(found)
    assert found[-1]
    assert sum(not each for each in found) > 10
    write_variables(NEW, path)
    assert sorted(os.listdir(quick_folder)) == ["other.msgpack", "w.msgpack"]


@pytest.mark.parametrize("name", ["w.msgpack", "w"])
def test_the_staging_folder_of_a_writer_stays_until_the_writer_is_killed(name, tmp_path):
    write_variables(OLD, tmp_path / name)
    code = """
import sys
from pathlib import Path
from kerasflax.files import _replace
with _replace.replacing(Path(sys.argv[1])) as new:
    print(new, flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / name],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        staged = Path(process.stdout.readline().strip())
        write_variables(OLD, staged)
        write_variables(NEW, tmp_path / name)
        np.testing.assert_array_equal(
            read_variables(staged)["a"] if name == "w" else OLD["a"], OLD["a"]
        )
        assert staged.exists()
        process.kill()
    write_variables(NEW, tmp_path / name)
    assert os.listdir(tmp_path) == [name]


PAUSED = """
import os, sys
from pathlib import Path
from kerasflax.files import _replace
with _replace.replacing(Path(sys.argv[1])) as new:
    os.rename(sys.argv[2], new)
    print(new, flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def paused_in_process(path, source):
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED, path, source],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Path(process.stdout.readline().strip())
            _, error = process.communicate("\n", timeout=60)
            assert process.returncode == 0, error
        finally:
            process.kill()


@contextlib.contextmanager
def paused_in_thread(path, source):
    staged, is_written, goes_on, errors = [], threading.Event(), threading.Event(), []

    def write():
        try:
            with _replace.replacing(path) as new:
                os.rename(source, new)
                staged.append(new)
                is_written.set()
                assert goes_on.wait(60)
        except BaseException as error:
            errors.append(error)
            is_written.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert is_written.wait(60)
        yield staged[0]
    finally:
        goes_on.set()
        thread.join()
        assert not errors, errors


@pytest.mark.parametrize("paused", [paused_in_process, paused_in_thread])
@pytest.mark.parametrize("is_there", [True, False], ids=["replaces", "creates"])
@pytest.mark.parametrize("name", ["w.msgpack", "w"])
def test_a_writer_finishes_after_others_have_written_the_same_path(
    name, is_there, paused, tmp_path, tmp_path_factory
):
    path, source = tmp_path / name, tmp_path_factory.mktemp("source") / name
    write_variables(OLD, source)
    if is_there:
        write_variables(NEW, path)
    with paused(path, source) as staged:
        for _ in range(2):
            write_variables(NEW, path)
            assert staged.exists()
            assert read_variables(path)["a"].tolist() == [1] * 3
    assert read_variables(path)["a"].tolist() == [0] * 3
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_reader_always_finds_a_folder_while_it_is_replaced(has_exchange, tmp_path, monkeypatch):
    if not has_exchange:
        without_exchange(monkeypatch)
    path = tmp_path / "w"
    write_variables(OLD, path)
    shutil.copytree(path, tmp_path / "new")
    seen = []
    rename, exchanged = os.rename, _replace._exchanged

    def look(*arguments, call):
        result = call(*arguments)
        if path.name in (Path(arguments[0]).name, Path(arguments[1]).name):
            seen.append(read_variables(path)["a"].tolist())
        return result

    monkeypatch.setattr(os, "rename", lambda *arguments: look(*arguments, call=rename))
    monkeypatch.setattr(_replace, "_exchanged", lambda *arguments: look(*arguments, call=exchanged))
    write_variables(NEW, path)
    assert seen
    assert all(value in ([0] * 3, [1] * 3) for value in seen)
    assert seen[-1] == [1] * 3
    assert sorted(os.listdir(tmp_path)) == ["new", "w"]


def test_the_old_folder_returns_if_the_new_one_cannot_be_moved_into_place(tmp_path, monkeypatch):
    without_exchange(monkeypatch)
    path = tmp_path / "w"
    write_variables(OLD, path)
    rename = os.rename

    def fail(source, target):
        if Path(source).name == "new":
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="cannot be written"):
        write_variables(NEW, path)
    assert os.listdir(tmp_path) == ["w"]
    assert read_variables(path)["a"].tolist() == [0] * 3


def test_left_overs_stay_on_a_file_system_without_locks(tmp_path, monkeypatch):
    if _replace.fcntl is None:
        pytest.skip("this system has no locks")

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    left_over = Path(
        tempfile.mkdtemp(prefix=_replace._prefix(tmp_path / "w.msgpack"), dir=tmp_path)
    )
    monkeypatch.setattr(_replace.fcntl, "flock", refuse)
    write_variables(NEW, tmp_path / "w.msgpack")
    # Nobody can tell whether its writer is alive.
    assert sorted(os.listdir(tmp_path)) == sorted([left_over.name, "w.msgpack"])
    monkeypatch.undo()
    write_variables(NEW, tmp_path / "w.msgpack")
    assert os.listdir(tmp_path) == ["w.msgpack"]


def test_an_open_file_counts_as_a_lock_on_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(_replace, "fcntl", None)
    left_over = Path(
        tempfile.mkdtemp(prefix=_replace._prefix(tmp_path / "w.msgpack"), dir=tmp_path)
    )
    (left_over / "lock").touch()
    write_variables(NEW, tmp_path / "w.msgpack")
    assert os.listdir(tmp_path) == ["w.msgpack"]


def test_a_killed_writer_does_not_bring_back_a_folder_that_was_removed_later(tmp_path, monkeypatch):
    without_exchange(monkeypatch)
    path = tmp_path / "w"
    write_variables(OLD, path)
    code = """
import os, sys
import numpy as np
from kerasflax.files import _replace
from kerasflax import write_variables
replace = _replace._replace_folder
def replace_and_end(*arguments):
    replace(*arguments)
    os._exit(3)
_replace._exchange, _replace._replace_folder = lambda: None, replace_and_end
write_variables({"a": np.ones(3, np.float32)}, sys.argv[1])
"""
    assert run_python("-c", code, path).returncode == 3
    assert read_variables(path)["a"].tolist() == [1] * 3
    shutil.rmtree(path)
    with pytest.raises(OSError, match="There is no file"):
        read_variables(path)
    write_variables(OLD, path)
    write_variables(OLD, path)
    assert os.listdir(tmp_path) == ["w"]


@pytest.mark.parametrize("count", [3])
def test_writers_of_orbax_in_several_threads_do_not_deadlock(count, tmp_path):
    code = """
import sys, threading
import numpy as np
from kerasflax import read_variables, write_variables
errors = []
def write(number):
    try:
        path = f"{sys.argv[1]}/{number}"
        for size in range(1, 6):
            write_variables({f"c{i}": np.full(10, number, np.float32) for i in range(size)}, path)
            values = read_variables(path)
            assert {float(value[0]) for value in values.values()} == {number}
            assert len(values) == size
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=write, args=(number,)) for number in range(int(sys.argv[2]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
"""
    done = run_python("-c", code, tmp_path, count, timeout=100)
    assert done.returncode == 0, done.stderr
