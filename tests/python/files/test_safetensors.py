import json
import struct
import tempfile
from pathlib import Path

import pytest
import safetensors.flax
import safetensors.numpy
from checkpoints import ARRAY, EVERYWHERE, NAMES, TREE, arrays, assert_same, entry, tensors, trees
from hypothesis import given, settings

from kerasflax import ArgumentError, FileError, read_variables, write_variables
from kerasflax.bridge._variables import named_leaves


@settings(deadline=None, max_examples=100)
@given(trees(arrays(EVERYWHERE), NAMES))
def test_safetensors_returns_any_tree_bit_for_bit(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.safetensors")
        write_variables(tree, path)
        assert_same(tree, read_variables(path))


def test_a_safetensors_file_has_paths_as_names_and_the_given_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    write_variables(TREE, path, metadata={"trained": "here"})
    assert sorted(safetensors.flax.load_file(path)) == [
        "batch_stats/mean",
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ]
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "flax", "trained": "here"}


def test_tied_weights_are_the_same_array_under_each_name(tmp_path):
    metadata = {"format": "pt", "lm_head.weight": "embed.weight", "license": "MIT"}
    safetensors.numpy.save_file({"embed.weight": ARRAY}, tmp_path / "w.safetensors", metadata)
    read = read_variables(tmp_path / "w.safetensors")
    assert read.keys() == {"embed.weight", "lm_head.weight"}
    assert read["lm_head.weight"] is read["embed.weight"]


HOSTILE_TENSORS = {
    "a header of 2**60 bytes": tensors({}, length=2**60),
    "a header larger than the file": tensors({"a": entry()}, length=10_000),
    "a header that is not JSON": tensors(b"{'a': 1}"),
    "a header that is a list": tensors([1]),
    "a header 100,000 deep": tensors(b'{"a":' * 100_000),
    "a list 100,000 deep": tensors(b'{"a":' + b"[" * 100_000),
    "overlapping arrays": tensors({"a": entry(), "b": entry()}),
    "a hole": tensors({"a": entry(), "b": entry(offsets=(16, 24))}, b"\0" * 24),
    "a shape of 2**60": tensors({"a": entry(shape=(2**60,))}),
    "a shape that overflows": tensors({"a": entry(shape=(2**62 + 2,))}),
    "a negative shape": tensors({"a": entry(shape=(-2,))}),
    "offsets backwards": tensors({"a": entry(offsets=(8, 0))}),
    "an offset of 2**60": tensors({"a": entry(offsets=(0, 2**60))}),
    "too many dimensions": tensors({"a": entry(shape=(1,) * 65 + (2,))}),
    "an empty shape that overflows": tensors(
        {"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b""
    ),
    "dtype object": tensors({"a": entry(dtype="object")}),
    "metadata that is not text": tensors({"__metadata__": {"a": 1}, "a": entry()}),
    "bytes that belong to no array": tensors({"a": entry()}, b"\0" * 9),
}


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("data", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_a_hostile_safetensors_file_is_an_error_at_once(data, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(
        FileError, match=r"is damaged, or is not a safetensors file|a shape that no array can have"
    ):
        read_variables(tmp_path / "w.safetensors")


def test_the_error_for_a_dtype_that_numpy_lacks_names_it(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(tensors({"a": entry(shape=(2, 8), dtype="F4")}))
    with pytest.raises(
        FileError, match=r"dtypes that NumPy does not have\.\n  a: has the dtype F4"
    ):
        read_variables(tmp_path / "w.safetensors")


def test_metadata_is_read_as_tied_weights_only_in_files_of_pytorch(tmp_path):
    path = tmp_path / "w.safetensors"
    tree = {"flax": ARRAY, "pt": ARRAY + 1, "params": {"w": ARRAY + 2}}
    write_variables(tree, path, metadata={"note": "params/w", "format2": "flax"})
    assert_same(tree, read_variables(path))
    with pytest.raises(
        ArgumentError,
        match=r"is the path of a weight names a tied weight(.|\n)*note: is the path 'params/w'",
    ):
        write_variables(tree, path, metadata={"note": "params/w", "format": "pt"})
    assert_same(tree, read_variables(path))
    # A file that says that PyTorch wrote it.
    safetensors.numpy.save_file({"pt": ARRAY}, path, {"format": "pt"})
    assert_same({"pt": ARRAY}, read_variables(path))


def test_the_bytes_that_are_read_are_checked_if_the_file_is_replaced_meanwhile(
    tmp_path, monkeypatch
):
    path = tmp_path / "w.safetensors"
    write_variables({"a": ARRAY, "b": ARRAY + 1}, path)
    original = path.read_bytes()
    overlapping = original.replace(b"[24,48]", b"[00,24]").replace(b"[00,24]", b"[0,24] ")
    assert overlapping != original
    safe_open = safetensors.safe_open

    def replaced(*arguments, **options):
        result = safe_open(*arguments, **options)
        path.write_bytes(overlapping)
        return result

    monkeypatch.setattr(safetensors, "safe_open", replaced)
    with pytest.raises(FileError, match=r"w\.safetensors"):
        read_variables(path)


def test_dicts_above_weights_count_as_values(tmp_path):
    # These paths share no names, so each adds 256 dicts and weights.
    paths = [f"{i}" + "/b" * 255 for i in range(5_000)]
    header = json.dumps(
        {path: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for path in paths}
    ).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FileError, match="holds more than 1048576 values"):
        read_variables(tmp_path / "w.safetensors")
    paths = ["b/" * 254 + f"{i}" for i in range(5_000)]
    header = json.dumps(
        {path: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for path in paths}
    ).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert len(named_leaves(read_variables(tmp_path / "w.safetensors"))) == 5_000
