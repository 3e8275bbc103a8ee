"""`inst/examples/torch_file.py` reads what PyTorch 1.13.1 wrote, and refuses all but tensors."""

import importlib.util
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kerasflax import read_variables

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "inst" / "examples" / "torch_file.py"
# `write.py` in this folder wrote them.
FILES = Path(__file__).parent / "fixtures" / "torch"
BASE = np.arange(24, dtype="f4").reshape(4, 6)
EXPECTED = {
    "a": BASE.T,
    "b": BASE[1:3, ::2],
    "bf": np.full(2, 1.5, ml_dtypes.bfloat16),
    "e": np.zeros((0, 3), "f4"),
    "h": np.ones(3, "f2"),
    "n.i": np.arange(3),
    "n.p": np.ones((2, 2), "f4"),
}

spec = importlib.util.spec_from_file_location("torch_file", SCRIPT)
torch_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torch_file)

each_format = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def write(path, zipped, tree, memory=b""):
    """Write a pickle, and the memory of the storage "0", in one of PyTorch's two formats."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", tree)
            archive.writestr("model/data/0", memory)
    else:
        opening = torch_file.MAGIC, 1001, {"little_endian": True}
        before = [pickle.dumps(value, 2) for value in opening]
        after = pickle.dumps(["0"], 2) + struct.pack("<q", len(memory) // 4) + memory
        path.write_bytes(b"".join(before) + tree + after)
    return path


def part(value):
    """The bytes of a value inside a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def pickle_of(offset, shape, strides):
    """A dict that holds the tensor "w" of four numbers, as PyTorch pickles it."""
    storage = part("storage") + b"ctorch\nFloatStorage\n" + part("0") + part("cpu") + part(4)
    where = part(offset) + part(shape) + part(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + where + hooks + b"tR"
    return b"\x80\x02}" + part("w") + call + b"s."


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["zip.pth", "old.pth"])
def test_files_of_pytorch_are_read_with_views_empty_tensors_and_nested_dicts(name):
    assert_equal(torch_file.read(FILES / name), EXPECTED)


@each_format
def test_a_file_written_by_hand_is_read(zipped, tmp_path):
    memory = np.array([1, 2, 3, 4], "<f4")
    path = write(tmp_path / "w.pth", zipped, pickle_of(1, (3, 1), (1, 7)), memory.tobytes())
    assert_equal(torch_file.read(path), {"w": memory[1:, None]})


@pytest.mark.parametrize("name", ["zip.pth", "old.pth"])
def test_the_script_writes_a_file_that_kerasflax_reads(name, tmp_path):
    target = tmp_path / "w.safetensors"
    done = subprocess.run(
        [sys.executable, SCRIPT, FILES / name, target], capture_output=True, text=True, check=True
    )
    assert done.stdout == "7 tensors\n"
    assert_equal(read_variables(target), EXPECTED)


def test_a_pickled_module_is_refused():
    with pytest.raises(pickle.UnpicklingError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
        torch_file.read(FILES / "module.pth")


class Call:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@each_format
@pytest.mark.parametrize("function", [os.system, eval, open, getattr, __import__])
def test_other_names_are_refused_and_nothing_runs(function, zipped, tmp_path):
    target = tmp_path / "ran"
    argument = f"touch '{target}'" if function is os.system else f"open({str(target)!r}, 'w')"
    tree = pickle.dumps({"w": Call(function, argument)}, 2)
    message = f"{function.__name__}, which is not a tensor"
    with pytest.raises(pickle.UnpicklingError, match=message):
        torch_file.read(write(tmp_path / "w.pth", zipped, tree))
    assert not target.exists()


@each_format
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (2,), (2**40,)),
        (0, (3,), (-1,)),
        (0, (3, 2), (-1, 3)),
        (-1, (1,), (1,)),
    ],
)
def test_a_tensor_beyond_its_memory_is_refused(offset, shape, strides, zipped, tmp_path):
    path = write(tmp_path / "w.pth", zipped, pickle_of(offset, shape, strides), bytes(16))
    with pytest.raises(ValueError, match="beyond its memory"):
        torch_file.read(path)


# `tensor.expand()` repeats a number by a stride of 0: a small file of 10**12 numbers.
@each_format
@pytest.mark.parametrize(
    ("shape", "strides"),
    [((10**6, 10**6), (0, 0)), ((10**12,), (0,)), ((2**62, 4), (0, 0)), ((5,), (0,))],
)
def test_a_tensor_with_more_numbers_than_its_memory_is_refused(shape, strides, zipped, tmp_path):
    path = write(tmp_path / "w.pth", zipped, pickle_of(0, shape, strides), bytes(16))
    count = math.prod(shape)
    message = f"'w' would have {count} numbers, but the file holds 4 for it"
    with pytest.raises(ValueError, match=message):
        torch_file.read(path)


def test_another_pickle_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a file of PyTorch")):
        torch_file.read(path)
