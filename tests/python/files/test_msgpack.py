import os
import tempfile
import time
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from checkpoints import ALL, ARRAY, NAMES, TREE, arrays, assert_same, many_values, packed, trees
from flax import linen as nn
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasflax import FileError, VariablesError, read_variables, write_variables


@settings(deadline=None, max_examples=150)
@given(trees(arrays(ALL) | st.none() | st.just({}), NAMES | st.just("")))
def test_msgpack_returns_any_tree_bit_for_bit_and_has_the_bytes_of_flax(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.msgpack")
        write_variables(tree, path)
        assert path.read_bytes() == flax.serialization.to_bytes(tree)
        assert_same(tree, read_variables(path))


def test_flax_reads_our_files_and_we_read_files_of_flax(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables(freeze(TREE), path)
    assert_same(TREE, flax.serialization.msgpack_restore(path.read_bytes()))
    path.write_bytes(
        flax.serialization.to_bytes(
            {"step": 3, "rate": 0.5, "on": True, "z": 1 + 2j, "n": np.float16(2), "c": [1]}
        )
    )
    expected = {"step": 3, "rate": 0.5, "on": True, "z": 1 + 2j, "n": np.float16(2), "c": {"0": 1}}
    assert_same(expected, read_variables(path))


@pytest.mark.parametrize(
    "number",
    [0, 127, 128, 2**16, 2**32, 2**64 - 1, -1, -32, -33, -(2**15), -(2**31), -(2**63), 1e300],
)
def test_numbers_of_every_size_are_read(number, tmp_path):
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes({"n": number}))
    assert read_variables(tmp_path / "w.msgpack")["n"] == number


@pytest.mark.parametrize("shape", [(5, 7), (35,), (1, 35, 1)])
def test_an_array_in_chunks_is_read_into_a_single_array(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 32)
    tree = {
        "a": np.arange(35, dtype=np.float32).reshape(shape),
        "b": {"c": np.ones(9, np.float16)},
        "d": ARRAY[0],
    }
    path = tmp_path / "w.msgpack"
    write_variables(tree, path)
    assert path.read_bytes() == flax.serialization.to_bytes(tree)
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert_same(tree, read_variables(path))


def test_flax_restores_the_boxes_in_a_msgpack_file(tmp_path):
    tree = {
        "params": {
            "w": nn.Partitioned(jnp.ones((2, 3)), ("x", None)),
            "l": [jnp.zeros(2), (jnp.ones(1),)],
        }
    }
    write_variables(tree, tmp_path / "w.msgpack")
    restored = flax.serialization.from_bytes(tree, (tmp_path / "w.msgpack").read_bytes())
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_random_keys_are_written_as_their_data(tmp_path):
    write_variables({"key": jax.random.key(3)}, tmp_path / "w.msgpack")
    assert_same({"key": np.array([0, 3], np.uint32)}, read_variables(tmp_path / "w.msgpack"))


HOSTILE = {
    "no dict": msgpack.packb([1, 2]),
    "a number": b"\x05",
    "names 2**32 entries": b"\xdf\xff\xff\xff\xff",
    "names 2**32 items": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "an extension of 4 GB": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "a name of 4 GB": b"\x81\xdb\xff\xff\xff\xff",
    "bytes of 4 GB": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "a shape of 2**60": packed(shape=(2**60,)),
    "a shape of 2**120": packed(shape=(2**60, 2**60)),
    "a shape that overflows to 8 bytes": packed(shape=(2**62 + 2,)),
    "a negative shape": packed(shape=(-2,)),
    "two negative sizes": packed(shape=(-1, -2)),
    "a shape of text": packed(shape=("2",)),
    "a shape of floats": packed(shape=(2.0,)),
    "too many dimensions": packed(shape=(1,) * 65 + (2,)),
    "no shape": packed(shape=None),
    "dtype object": packed(dtype="object"),
    "dtype O": packed(dtype="O"),
    "dtype text": packed(dtype="str", data=b""),
    "dtype void": packed(dtype="void64", shape=(1,)),
    "a structured dtype": packed(dtype="i4,i4", shape=(1,)),
    "a dtype of dates": packed(dtype="datetime64[s]", shape=(1,)),
    "an unknown dtype": packed(dtype="float7"),
    "a dtype with a zero byte": packed(dtype="\0"),
    "too few bytes": packed(data=b"\0" * 7),
    "one part too many": packed(inner=msgpack.packb(((2,), "float32", b"\0" * 8, 1))),
    "an empty extension": packed(inner=b""),
    "bytes after the array": packed(inner=msgpack.packb(((2,), "float32", b"\0" * 8)) + b"\0"),
    "an unknown extension": packed(code=42),
    "a complex number of text": packed(code=2, inner=msgpack.packb(("a", "b"))),
    "a complex number of one part": packed(code=2, inner=msgpack.packb((1.0,))),
    "bytes instead of an array": msgpack.packb({"a": b"123"}),
    "a type that msgpack does not have": b"\x81\xa1a\xc1",
    "a name that is not UTF-8": b"\x81\xa1\xff\x01",
    "a duplicate name": b"\x82\xa1a\x01\xa1a\x01",
    "names of two kinds": b"\x82\xa1a\x01\x01\x01",
    "a name that is a list": b"\x81\x91\x01\x01",
    "a name that is None": b"\x81\xc0\x01",
    "dicts 100,000 deep": b"\x81\xa1a" * 100_000,
    "lists 100,000 deep": b"\x81\xa1a" + b"\x91" * 100_000,
    "a chunked array without entries": msgpack.packb({"__msgpack_chunked_array__": True}),
    "a chunked array without shape": msgpack.packb(
        {"__msgpack_chunked_array__": True, "a": 1, "b": 2}
    ),
    "a chunked array of 2**60": msgpack.packb(
        {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2**60},
            "chunks": {"0": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"\0" * 8)))},
        }
    ),
    "a chunked array of negative size": msgpack.packb(
        {
            "__msgpack_chunked_array__": True,
            "shape": {"0": -2},
            "chunks": {"0": msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"\0" * 8)))},
        }
    ),
    "chunks of two dimensions": msgpack.packb(
        {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2},
            "chunks": {"0": msgpack.ExtType(1, msgpack.packb(((1, 2), "float32", b"\0" * 8)))},
        }
    ),
    "too few chunks": msgpack.packb(
        {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {}}
    ),
}


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_msgpack_file_is_an_error_at_once(data, tmp_path):
    (tmp_path / "w.msgpack").write_bytes(data)
    with pytest.raises(FileError, match=r"damaged|holds no dict"):
        read_variables(tmp_path / "w.msgpack")


def test_a_file_with_too_many_values_is_refused(tmp_path):
    (tmp_path / "w.msgpack").write_bytes(many_values(2**20))
    with pytest.raises(FileError, match="holds more than 1048576 values"):
        read_variables(tmp_path / "w.msgpack")


def test_a_file_with_two_weights_of_one_path_is_an_error(tmp_path):
    (tmp_path / "w.msgpack").write_bytes(
        flax.serialization.msgpack_serialize({"a/b": ARRAY, "a": {"b": ARRAY}})
    )
    with pytest.raises(FileError, match="cannot be told apart"):
        read_variables(tmp_path / "w.msgpack", rename={"x": "y"})


def test_the_dtype_of_a_file_is_not_parsed(tmp_path):
    for dtype in ("(1,", "f4,", "[", "(2,)float32", "float32 ", "=f4"):
        (tmp_path / "w.msgpack").write_bytes(packed(dtype=dtype))
        with pytest.raises(FileError, match="is not a numeric dtype"):
            read_variables(tmp_path / "w.msgpack")


def test_a_dict_of_many_integers_is_refused_by_readers_and_writers(tmp_path):
    size = 2**16
    # The hashes of these integers collide.
    keys = [i * (2**32) % (2**61 - 1) for i in range(1, size)]
    tree = {"a": dict.fromkeys(keys, np.float32(1))}
    with pytest.raises(VariablesError, match="a dict has more than 4096 integer keys"):
        write_variables(tree, tmp_path / "w.msgpack")
    assert os.listdir(tmp_path) == []
    (tmp_path / "w.msgpack").write_bytes(msgpack.packb(tree["a"] | {1: None}, default=float))
    start = time.process_time()
    with pytest.raises(FileError, match="a dict has more than 4096 integer keys"):
        read_variables(tmp_path / "w.msgpack")
    assert time.process_time() - start < 1
    write_variables({"a": dict.fromkeys(range(4096), np.float32(1))}, tmp_path / "w.msgpack")
    assert len(read_variables(tmp_path / "w.msgpack")["a"]) == 4096
