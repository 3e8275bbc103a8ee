"""Trees of variables, and damaged files, that the tests of several formats share."""

import json
import os
import struct

import msgpack
import numpy as np
import orbax.checkpoint
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

SUFFIXES = [".msgpack", ".safetensors", ".orbax"]
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
TREE = {
    "params": {"Dense_0": {"kernel": ARRAY, "bias": ARRAY[0]}},
    "batch_stats": {"mean": ARRAY[1]},
}


def assert_same(tree, other):
    """Compare nesting, names, dtypes, shapes and values, bit for bit."""
    if isinstance(tree, dict):
        assert isinstance(other, dict)
        assert tree.keys() == other.keys()
        for name in tree:
            assert_same(tree[name], other[name])
    elif tree is None:
        assert other is None
    else:
        tree = np.asarray(tree)
        assert isinstance(other, np.ndarray)
        assert (other.dtype, other.shape) == (tree.dtype, tree.shape)
        assert other.tobytes() == tree.tobytes()


# Dtypes, by the formats that hold them.
COMMON = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
COMMON += ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]
EVERYWHERE = [np.dtype(name) for name in COMMON]
MOST = EVERYWHERE + [
    np.dtype(name) for name in ["complex128", "int4", "int2", "float8_e4m3b11fnuz", "float8_e3m4"]
]
ALL = MOST + [np.dtype(name) for name in ["uint4", "uint2"]]


def arrays(dtypes, min_side=0):
    """Strategy for arrays of these dtypes, of up to four dimensions, in C or Fortran order."""

    @st.composite
    def draw_array(draw):
        dtype = draw(st.sampled_from(dtypes))
        shape = draw(st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=min_side, max_side=4))
        size = int(np.prod(shape, dtype=int))
        if dtype.name in ("bool", "int4", "int2", "uint4", "uint2"):
            return (
                np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
                .astype(dtype)
                .reshape(shape)
            )
        data = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
        array = np.frombuffer(data, dtype).reshape(shape)
        return array if draw(st.booleans()) else np.asfortranarray(array) if array.ndim else array

    return draw_array()


def trees(leaves, names):
    """Strategy for nested dicts."""
    inner = st.recursive(
        leaves, lambda trees: st.dictionaries(names, trees, min_size=1, max_size=3), max_leaves=6
    )
    return st.dictionaries(names, inner, min_size=1, max_size=3)


NAMES = st.text("abé._ 0", min_size=1, max_size=4)


def in_plain_files(path):
    """Write `TREE` as an Orbax checkpoint with a folder for each array."""
    with orbax.checkpoint.Checkpointer(
        orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=False)
    ) as writer:
        writer.save(path, TREE)


def packed(shape=(2,), dtype="float32", data=b"\0" * 8, code=1, inner=None):
    """A msgpack file with one array, or another extension."""
    inner = msgpack.packb((shape, dtype, data)) if inner is None else inner
    return msgpack.packb({"a": msgpack.ExtType(code, inner)})


def many_values(count, value=b"\x80"):
    """A msgpack file with one list."""
    return b"\x81\xa1a\xdd" + struct.pack(">I", count) + value * count


def tensors(header, data=b"\0" * 8, length=None):
    """A safetensors file, whose header may be bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    """The header's entry for one array of a safetensors file."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class Runs:
    """A class whose pickle ends the process when it is loaded."""

    def __reduce__(self):
        return os.abort, ()


def leaves_of(tree, above=()):
    """The leaves of nested dicts by the names above them."""
    if not isinstance(tree, dict):
        return {above: tree}
    return {
        names: leaf
        for name, below in tree.items()
        for names, leaf in leaves_of(below, (*above, name)).items()
    }
