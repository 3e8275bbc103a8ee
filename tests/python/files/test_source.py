import contextlib
import gzip
import os
import pickle
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
from checkpoints import SUFFIXES, TREE, Runs, assert_same, in_plain_files, packed
from hypothesis import given, settings
from hypothesis import strategies as st
from support import little_memory, run_python

from kerasflax import FileError, PackageError, read_variables, write_variables


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_variables(TREE, "~/w.msgpack")
    assert (tmp_path / "w.msgpack").exists()
    assert_same(TREE, read_variables("~/w.msgpack"))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_the_error_for_a_missing_package_names_it(suffix, tmp_path, monkeypatch):
    write_variables(TREE, tmp_path / f"w{suffix}")
    for module in ("safetensors", "safetensors.numpy", "orbax.checkpoint"):
        monkeypatch.setitem(sys.modules, module, None)
    package = {".safetensors": "safetensors", ".orbax": "orbax-checkpoint"}[suffix]
    uses = [read_variables]
    if suffix == ".orbax":
        uses.append(lambda path: write_variables(TREE, path))
    for use in uses:
        with pytest.raises(PackageError, match=f"pip install {package}") as error:
            use(tmp_path / f"w{suffix}")
        assert error.value.name == package


def test_a_safetensors_file_is_written_without_the_package(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        for module in ("safetensors", "safetensors.numpy"):
            without.setitem(sys.modules, module, None)
        write_variables(TREE, tmp_path / "w.safetensors")
    assert_same(TREE, read_variables(tmp_path / "w.safetensors"))


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_truncated_file_is_an_error_wherever_it_ends(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)
    original = path.read_bytes()
    for i in range(20):
        path.write_bytes(original[: len(original) * i // 20])
        with pytest.raises(FileError, match=r"damaged|is empty"):
            read_variables(path)
    path.write_bytes(original + b"\0")
    with pytest.raises(FileError, match="damaged"):
        read_variables(path)


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: packed() + data) | st.data()
)
def test_any_bytes_either_are_read_or_raise_a_file_error(data):
    if not isinstance(data, bytes):
        damaged = bytearray(flax.serialization.to_bytes(TREE))
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        data = bytes(damaged)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.msgpack")
        path.write_bytes(data)
        with little_memory(), contextlib.suppress(FileError):
            read_variables(path)
        path = Path(folder, "w.safetensors")
        path.write_bytes(struct.pack("<Q", len(data)) + data)
        with little_memory(), pytest.raises(FileError):
            read_variables(path)


FOREIGN = {
    "zip": (b"PK\x03\x04\x14\0\0\0", "is a zip archive, like PyTorch's"),
    "pickle": (pickle.dumps(Runs()), "is a Python pickle"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08", "is compressed with gzip"),
    "R object": (gzip.compress(b"X\n\0\0\0\3" + bytes(range(256))), "is an R object; .* `readRDS"),
    "plain R object": (b"X\n\0\0\0\3\0", "is an R object; read it in R with `readRDS"),
    "R workspace": (gzip.compress(b"RDX3\nX\n" + bytes(999)), "is a file of R's `save"),
    "JSON": (b'{"a": 1}', "is text, possibly JSON"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html>", "is a web page"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("name", ["w.msgpack", "w.safetensors", "w.pt", "w.bin", "w.ckpt", "w"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_the_error_for_a_foreign_file_says_what_it_is(kind, name, tmp_path):
    data, message = FOREIGN[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileError, match=rf"{message}(.|\n)*Give a `.msgpack` file"):
        read_variables(tmp_path / name)


def test_the_error_for_a_safetensors_file_under_another_suffix_says_so(tmp_path):
    write_variables(TREE, tmp_path / "w.safetensors")
    for name in ("w.msgpack", "w.bin"):
        (tmp_path / name).write_bytes((tmp_path / "w.safetensors").read_bytes())
        with pytest.raises(FileError, match="is a safetensors file"):
            read_variables(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_progress_rises_to_the_total(suffix, tmp_path):
    write_variables(
        {"a": np.ones(5_000_000), "b": {"c": np.ones(5_000_000)}}, tmp_path / f"w{suffix}"
    )
    calls = []
    read_variables(tmp_path / f"w{suffix}", progress=lambda *done: calls.append(done))
    assert len(calls) >= 2
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] == {total for _, total in calls}.pop()


@pytest.mark.parametrize("path", ["\ud800.msgpack", "\ud800.safetensors", "\ud800"])
def test_the_error_for_a_name_that_the_system_cannot_represent_names_it(path, tmp_path):
    for use in (read_variables, lambda path: write_variables(TREE, path)):
        with pytest.raises(
            FileError, match=r"\\ud800.* cannot be the name of a file on this system"
        ):
            use(f"{tmp_path}/{path}")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables(TREE, path)
    data = path.read_bytes()
    with pytest.raises(FileError, match="was changed while it was read"):
        read_variables(path, progress=lambda *_: path.write_bytes(data + b"\0"))


PIPED = """
import sys
from kerasflax import FileError, import_model, read_variables
for path in sys.argv[1:]:
    try:
        read_variables(path) if not path.endswith("hlo") else import_model(path)
    except FileError:
        print("refused")
"""


def test_readers_never_wait_for_a_pipe(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    os.mkfifo(outside / "0.0")
    paths = []
    for i, where in enumerate(["params.Dense_0.kernel", "d", "ocdbt.process_0"]):
        paths.append(tmp_path / f"c{i}")
        in_plain_files(paths[-1]) if i == 0 else write_variables(TREE, paths[-1])
        shutil.rmtree(paths[-1] / where, ignore_errors=True)
        (paths[-1] / where).symlink_to(outside)
    paths.append(tmp_path / "linked")
    in_plain_files(paths[-1])
    shutil.copy(paths[-1] / "params.Dense_0.kernel/.zarray", outside)
    shutil.rmtree(paths[-1] / "params.Dense_0.kernel")
    (paths[-1] / "params.Dense_0.kernel").symlink_to("../outside")
    for name in ("p.msgpack", "p.safetensors", "p", "p.hlo"):
        os.mkfifo(tmp_path / name)
        paths.append(tmp_path / name)
    paths.append(tmp_path / "mark")
    paths[-1].mkdir()
    os.mkfifo(paths[-1] / "_METADATA")
    done = run_python("-c", PIPED, *paths, timeout=120)
    assert done.stdout.split() == ["refused"] * len(paths), done.stderr
