import contextlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import keras
import msgpack
import numpy as np
import orbax.checkpoint
import pytest
import safetensors.flax
import safetensors.numpy
from flax import linen as nn
from flax import struct as flax_struct
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from kerasflax import (
    ArgumentError,
    FileError,
    FlaxLayer,
    NotBuiltError,
    PackageError,
    StateError,
    VariablesError,
    read_variables,
    write_variables,
)
from kerasflax.bridge._variables import named_leaves

SUFFIXES = [".msgpack", ".safetensors", ".orbax"]
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
TREE = {
    "params": {"Dense_0": {"kernel": ARRAY, "bias": ARRAY[0]}},
    "batch_stats": {"mean": ARRAY[1]},
}


def assert_same(tree, other):
    """To the bit: nesting, names, dtypes, shapes, values."""
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


# Round trips ------------------------------------------------------------------------------------------------------------

COMMON = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
COMMON += ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]
EVERYWHERE = [np.dtype(name) for name in COMMON]
MOST = EVERYWHERE + [
    np.dtype(name) for name in ["complex128", "int4", "int2", "float8_e4m3b11fnuz", "float8_e3m4"]
]
ALL = MOST + [np.dtype(name) for name in ["uint4", "uint2"]]


def arrays(dtypes, min_side=0):
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
    inner = st.recursive(
        leaves, lambda trees: st.dictionaries(names, trees, min_size=1, max_size=3), max_leaves=6
    )
    return st.dictionaries(names, inner, min_size=1, max_size=3)


NAMES = st.text("abé._ 0", min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(trees(arrays(ALL) | st.none() | st.just({}), NAMES | st.just("")))
def test_any_tree_comes_back_from_msgpack_to_the_bit_and_its_bytes_are_flaxs_own(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.msgpack")
        write_variables(tree, path)
        assert path.read_bytes() == flax.serialization.to_bytes(tree)
        assert_same(tree, read_variables(path))


@settings(deadline=None, max_examples=100)
@given(trees(arrays(EVERYWHERE), NAMES))
def test_any_tree_comes_back_from_safetensors_to_the_bit(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.safetensors")
        write_variables(tree, path)
        assert_same(tree, read_variables(path))


@pytest.mark.parametrize("name", ["", "/", "//"])
def test_an_orbax_checkpoint_holds_no_weight_without_a_name(name, tmp_path):
    with pytest.raises(VariablesError, match="no name"):
        write_variables({name: np.ones(2), "a": {name: np.ones(2)}}, tmp_path / "new")
    assert os.listdir(tmp_path) == []
    write_variables({"a": {name: np.ones(2)}}, tmp_path / "new")
    np.testing.assert_array_equal(read_variables(tmp_path / "new")["a"][name], np.ones(2))


@settings(deadline=None, max_examples=15)
@given(trees(arrays(MOST, min_side=1), NAMES))
def test_any_tree_comes_back_from_orbax_to_the_bit(tree):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        write_variables(tree, path)
        assert_same(tree, read_variables(path))


def test_flax_reads_what_is_written_and_is_read_itself(tmp_path):
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


def test_integer_names_survive_msgpack_and_are_text_elsewhere(tmp_path):
    tree = {"layers": {0: {"w": ARRAY}, 1: {"w": ARRAY + 1}}}
    write_variables(tree, tmp_path / "w.msgpack")
    assert (tmp_path / "w.msgpack").read_bytes() == flax.serialization.msgpack_serialize(tree)
    assert_same(tree, read_variables(tmp_path / "w.msgpack"))
    as_text = {"layers": {"0": {"w": ARRAY}, "1": {"w": ARRAY + 1}}}
    for suffix in SUFFIXES[1:]:
        write_variables(tree, tmp_path / f"w{suffix}")
        assert_same(as_text, read_variables(tmp_path / f"w{suffix}"))
        assert_same(tree, read_variables(tmp_path / f"w{suffix}", like=tree))


@pytest.mark.parametrize("shape", [(5, 7), (35,), (1, 35, 1)])
def test_an_array_in_chunks_is_read_into_one(shape, tmp_path, monkeypatch):
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


@flax_struct.dataclass
class Moments:
    mean: jax.Array
    count: int


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_boxes_sequences_and_keys_come_back_in_the_structure_asked_for(suffix, tmp_path):
    tree = {
        "params": {
            "w": nn.Partitioned(jnp.ones((2, 3), jnp.bfloat16), ("x", None)),
            "l": [jnp.zeros(2), (jnp.ones(1),)],
        },
        "state": {"m": Moments(jnp.arange(3), 4), "key": jax.random.key(7), "none": None},
    }
    path = tmp_path / f"w{suffix}"
    write_variables(tree, path)
    back = read_variables(path, like=tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert back["state"]["key"] == tree["state"]["key"]
    tree["state"]["key"] = back["state"]["key"] = None
    for path, leaf in named_leaves(tree).items():
        np.testing.assert_array_equal(named_leaves(back)[path], leaf)


def test_the_boxes_in_a_msgpack_file_are_flaxs(tmp_path):
    tree = {
        "params": {
            "w": nn.Partitioned(jnp.ones((2, 3)), ("x", None)),
            "l": [jnp.zeros(2), (jnp.ones(1),)],
        }
    }
    write_variables(tree, tmp_path / "w.msgpack")
    restored = flax.serialization.from_bytes(tree, (tmp_path / "w.msgpack").read_bytes())
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_safetensors_has_paths_as_names_and_the_metadata_given(tmp_path):
    path = tmp_path / "w.safetensors"
    write_variables(TREE, path, metadata={"trained": "here"})
    assert sorted(safetensors.flax.load_file(path)) == [
        "batch_stats/mean",
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ]
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "flax", "trained": "here"}


def test_a_file_is_as_readable_for_others_as_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    for suffix in SUFFIXES[:2]:
        write_variables(TREE, tmp_path / f"w{suffix}")
        assert (tmp_path / f"w{suffix}").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tied_weights_are_the_same_array_under_each_name(tmp_path):
    metadata = {"format": "pt", "lm_head.weight": "embed.weight", "license": "MIT"}
    safetensors.numpy.save_file({"embed.weight": ARRAY}, tmp_path / "w.safetensors", metadata)
    read = read_variables(tmp_path / "w.safetensors")
    assert read.keys() == {"embed.weight", "lm_head.weight"}
    assert read["lm_head.weight"] is read["embed.weight"]


@pytest.mark.parametrize("checkpointer", ["StandardCheckpointer", "PyTreeCheckpointer"])
def test_a_checkpoint_of_a_flax_program_is_read(checkpointer, tmp_path):
    tree = {
        "params": {"w": nn.Partitioned(jnp.ones(2), ("x",)), "l": [jnp.zeros(2)]},
        "step": 3,
        "none": None,
    }
    with getattr(orbax.checkpoint, checkpointer)() as writer:
        writer.save(tmp_path / "c", tree)
    like = {"params": {"w": jnp.ones(2), "l": [jnp.zeros(2)]}, "step": 3, "none": None}
    jax.tree.map(np.testing.assert_array_equal, read_variables(tmp_path / "c", like=like), like)


def test_a_flax_program_reads_a_checkpoint(tmp_path):
    write_variables(TREE, tmp_path / "c")
    with orbax.checkpoint.StandardCheckpointer() as reader:
        restored = reader.restore(tmp_path / "c", jax.tree.map(jnp.zeros_like, TREE))
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)


def test_a_directory_of_checkpoints_says_where_they_are(tmp_path):
    with orbax.checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, args=orbax.checkpoint.args.StandardSave(TREE))
    with pytest.raises(
        FileError, match=r"no Orbax checkpoint.*\nThere are checkpoints in it: .*/run/5/default"
    ):
        read_variables(tmp_path / "run")
    assert_same(TREE, read_variables(tmp_path / "run/5/default"))


# Layers and models ------------------------------------------------------------------------------------------------------


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(
            3, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("x", None))
        )(inputs)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("module", [nn.Dense(3), Boxed()], ids=["plain", "boxed"])
def test_reading_a_file_is_all_there_is_to_an_import(module, suffix, tmp_path):
    layer = FlaxLayer(module, seed=1)
    expected = layer(ARRAY)
    write_variables(layer, tmp_path / f"w{suffix}")
    imported = FlaxLayer(module, variables=read_variables(tmp_path / f"w{suffix}"), seed=2)
    np.testing.assert_array_equal(imported(ARRAY), expected)
    fitted = read_variables(tmp_path / f"w{suffix}", like=layer)
    assert jax.tree.structure(fitted) == jax.tree.structure(layer.flax_variables)


def model():
    inner = keras.Sequential([keras.Input((3,)), FlaxLayer(nn.Dense(2), name="inner")])
    return keras.Sequential(
        [keras.Input((3,)), FlaxLayer(nn.Dense(3), name="outer"), inner, keras.layers.Dense(1)]
    )


def test_a_model_is_written_by_layer(tmp_path):
    written = model()
    write_variables(written, tmp_path / "w.msgpack")
    read = read_variables(tmp_path / "w.msgpack", like=written)
    assert read.keys() == {"outer", "inner"}
    np.testing.assert_array_equal(
        read["inner"]["params"]["kernel"],
        written.layers[1].layers[0].flax_variables["params"]["kernel"],
    )


def test_a_model_without_a_flax_layer_names_what_it_holds(tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ArgumentError, match="holds no Flax layer; it holds Dense"):
        write_variables(other, tmp_path / "w.msgpack")


def test_a_layer_that_is_not_built_says_so(tmp_path):
    with pytest.raises(NotBuiltError):
        write_variables(FlaxLayer(nn.Dense(3)), tmp_path / "w.msgpack")


# `like` and `rename` ----------------------------------------------------------------------------------------------------


def test_every_mismatch_is_listed(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables(TREE, path)
    like = {
        "params": {"Dense_0": {"kernel": ARRAY.T, "scale": ARRAY}},
        "batch_stats": {"mean": ARRAY[1]},
    }
    with pytest.raises(VariablesError) as error:
        read_variables(path, like=like)
    assert str(error.value) == (
        f"What {str(path)!r} holds does not fit the module in 3 places:\n"
        "  params/Dense_0/scale: missing, expected float32(2, 3)\n"
        "  params/Dense_0/bias: not in the module, got float32(3)\n"
        "  params/Dense_0/kernel: expected float32(3, 2), got shape (2, 3)\n"
        "Where names alone differ, `rename` can map them."
    )


HUGGING_FACE = {
    "encoder.layer.0.weight": ARRAY,
    "encoder.layer.0.bias": ARRAY[0],
    "encoder.layer.1.weight": ARRAY + 1,
    "encoder.layer.1.bias": ARRAY[1],
    "position_ids": np.arange(3),
}
PATTERNS = {
    r"encoder\.layer\.(\d+)\.weight": r"params/layers_\1/kernel",
    r"encoder\.layer\.(\d+)\.(\w+)": r"params/layers_\1/\2",
    "position.*": None,
}
MAPPED = {"params": {f"layers_{i}": {"kernel": ARRAY + i, "bias": ARRAY[i]} for i in range(2)}}


def by_hand(path):
    if path == "position_ids":
        return None
    _, _, number, name = path.split(".")
    return f"params/layers_{number}/{'kernel' if name == 'weight' else name}"


@pytest.mark.parametrize("rename", [PATTERNS, by_hand], ids=["patterns", "function"])
@pytest.mark.parametrize("like", [None, MAPPED])
def test_foreign_names_are_mapped_and_reported(rename, like, tmp_path):
    safetensors.numpy.save_file(HUGGING_FACE, tmp_path / "w.safetensors")
    reports = []
    assert_same(
        MAPPED,
        read_variables(tmp_path / "w.safetensors", rename=rename, like=like, report=reports.append),
    )
    (report,) = reports
    assert report.mapped["encoder.layer.1.weight"] == "params/layers_1/kernel"
    assert (list(report.left_over), list(report.missing)) == (["position_ids"], [])


def test_a_report_of_what_does_not_fit_comes_before_the_error_which_shows_it(tmp_path):
    safetensors.numpy.save_file(HUGGING_FACE, tmp_path / "w.safetensors")
    like = {"params": {"layers_0": {"kernel": ARRAY, "bias": ARRAY[0]}, "head": ARRAY}}
    reports = []
    with pytest.raises(VariablesError) as error:
        read_variables(
            tmp_path / "w.safetensors", rename=PATTERNS, like=like, report=reports.append
        )
    assert str(reports[0]) == (
        "Mapped (and 0 as they were):\n"
        "  encoder.layer.0.bias -> params/layers_0/bias\n"
        "  encoder.layer.0.weight -> params/layers_0/kernel\n"
        "Left over:\n"
        "  encoder.layer.1.bias\n"
        "  encoder.layer.1.weight\n"
        "  position_ids\n"
        "Missing:\n"
        "  params/head"
    )
    assert "params/layers_1/bias: not in the module" in str(error.value)
    assert "encoder.layer.1.bias -> params/layers_1/bias" in str(error.value)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            {".*bias": "params/b"},
            r"sends two weights to 'params/b': 'encoder.layer.0.bias' and 'encoder.layer.1.bias'",
        ),
        ({"(": "x"}, "must have regular expressions as names"),
        ({3: "x"}, "must have regular expressions as names"),
        ({"(.*)": r"\2"}, r"cannot replace .* by '\\\\2'"),
        ({"(.*)": 4}, "cannot replace"),
        (lambda path: 3, "must give a path, or None"),
        (3, "must be a dict from patterns"),
    ],
)
def test_a_rename_that_makes_no_sense_says_why(rename, message, tmp_path):
    safetensors.numpy.save_file(HUGGING_FACE, tmp_path / "w.safetensors")
    with pytest.raises(ArgumentError, match=message):
        read_variables(tmp_path / "w.safetensors", rename=rename)


def test_a_weight_below_another_has_the_rest_of_its_path_as_its_name_and_can_be_renamed(tmp_path):
    safetensors.numpy.save_file(
        {"a": ARRAY, "a/b": ARRAY, "c/d": ARRAY, "c/d/e/f": ARRAY}, tmp_path / "w.safetensors"
    )
    expected = {"a": ARRAY, "a/b": ARRAY, "c": {"d": ARRAY, "d/e/f": ARRAY}}
    assert_same(expected, read_variables(tmp_path / "w.safetensors"))
    safetensors.numpy.save_file({"a": ARRAY, "a/b": ARRAY}, tmp_path / "w.safetensors")
    assert_same(
        {"w": ARRAY, "a": {"b": ARRAY}},
        read_variables(tmp_path / "w.safetensors", rename={"a": "w"}),
    )


# Writing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_number_is_listed_and_nothing_is_written(suffix, tmp_path):
    deleted = jnp.ones(2)
    deleted.delete()
    tree = {
        "a": {"b": "text", "c": ARRAY, 3: ARRAY},
        "d": [np.array([None]), deleted],
        "e": jax.ShapeDtypeStruct((2,), "float32"),
    }
    with pytest.raises(VariablesError) as error:
        write_variables(tree, tmp_path / f"w{suffix}")
    assert str(error.value).startswith(
        "Arrays of numbers below names can be written, and these are none:\n"
        "  a: a dict by 'b', 'c', 3; names are all texts, or all integers\n"
        "  a/b: str is no array of numbers\n"
        "  d/0: ndarray is no array of numbers\n"
        "  d/1: Array has been deleted"
    )
    assert "  e: ShapeDtypeStruct is no array of numbers" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold_is_listed(tmp_path):
    tree = {
        "a": np.ones(2, np.complex128),
        "b": ARRAY,
        "c": np.ones((0, 2)),
        "d": np.ones(2).astype("uint4"),
    }
    with pytest.raises(VariablesError, match=r"\n  a: complex128\n  d: uint4\nWrite `.msgpack`"):
        write_variables(tree, tmp_path / "w.safetensors")
    with pytest.raises(
        VariablesError, match=r"\n  c: no elements, shape \(0, 2\)\n  d: uint4\nWrite `.msgpack`"
    ):
        write_variables(tree, tmp_path / "w")
    with pytest.raises(VariablesError, match="none at all"):
        write_variables({}, tmp_path / "w")
    with pytest.raises(VariablesError, match="another use for the name '__metadata__'"):
        write_variables({"__metadata__": ARRAY}, tmp_path / "w.safetensors")
    with pytest.raises(StateError, match="Two variables have the path a/b"):
        write_variables({"a/b": ARRAY, "a": {"b": ARRAY}}, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_file_and_nothing_else(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(msgpack, "packb", fail)
    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "save", fail)
    with pytest.raises(FileError, match=r"cannot be written: No space left on device\."):
        write_variables({"a": ARRAY}, path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert_same(TREE, read_variables(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_file_is_replaced_and_a_link_followed(suffix, tmp_path):
    (tmp_path / "real").mkdir()
    path, link = tmp_path / f"real/w{suffix}", tmp_path / f"link{suffix}"
    write_variables({"old": ARRAY}, path)
    link.symlink_to(path)
    write_variables(TREE, link)
    assert link.is_symlink()
    assert_same(TREE, read_variables(path))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["w.pt", "w.h5", "w.RDS"])
def test_a_suffix_of_other_programs_is_refused(name, tmp_path):
    with pytest.raises(ArgumentError, match=f"No file like '{name}' is written"):
        write_variables(TREE, tmp_path / name)


def test_a_directory_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileError, match="no Orbax checkpoint that another could replace"):
        write_variables(TREE, tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "w.msgpack").mkdir()
    with pytest.raises(FileError, match=r"is a directory, and `\.msgpack` a file"):
        write_variables(TREE, tmp_path / "w.msgpack")
    with pytest.raises(FileError, match="cannot be written: No such file or directory"):
        write_variables(TREE, tmp_path / "none/w.msgpack")
    with pytest.raises(FileError, match="cannot be written: Not a directory"):
        write_variables(TREE, tmp_path / "thesis.tex/w.msgpack")
    with pytest.raises(FileError, match="cannot be written: File name too long"):
        write_variables(TREE, tmp_path / ("x" * 300 + ".msgpack"))
    os.mkfifo(tmp_path / "pipe.msgpack")
    with pytest.raises(FileError, match="no file that another could replace"):
        write_variables(TREE, tmp_path / "pipe.msgpack")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_may_be_as_long_as_the_system_lets_it_be(suffix, tmp_path):
    path = tmp_path / ("x" * (255 - len(suffix)) + suffix)
    write_variables(TREE, path)
    assert_same(TREE, read_variables(path))


def test_a_link_to_itself_is_replaced(tmp_path):
    (tmp_path / "w.msgpack").symlink_to(tmp_path / "w.msgpack")
    write_variables(TREE, tmp_path / "w.msgpack")
    assert_same(TREE, read_variables(tmp_path / "w.msgpack"))


def test_arguments_of_another_kind_say_so(tmp_path):
    with pytest.raises(
        ArgumentError,
        match="`variables` must be a layer, a model, or a dict of variables, got list",
    ):
        write_variables([ARRAY], tmp_path / "w.msgpack")
    for path in (None, "", "a\0b.msgpack"):
        with pytest.raises(ArgumentError, match="`path` must be the name of a file"):
            write_variables(TREE, path)
    with pytest.raises(ArgumentError, match=r"`metadata` is for `\.safetensors` files alone"):
        write_variables(TREE, tmp_path / "w.msgpack", metadata={})
    with pytest.raises(ArgumentError, match="`metadata` must hold texts"):
        write_variables(TREE, tmp_path / "w.safetensors", metadata={"a": 1})


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_variables(TREE, "~/w.msgpack")
    assert (tmp_path / "w.msgpack").exists()
    assert_same(TREE, read_variables("~/w.msgpack"))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_package_that_is_missing_is_asked_for_by_name(suffix, tmp_path, monkeypatch):
    write_variables(TREE, tmp_path / f"w{suffix}")
    for module in ("safetensors", "safetensors.numpy", "orbax.checkpoint"):
        monkeypatch.setitem(sys.modules, module, None)
    package = {".safetensors": "safetensors", ".orbax": "orbax-checkpoint"}[suffix]
    for use in (lambda path: read_variables(path), lambda path: write_variables(TREE, path)):
        with pytest.raises(PackageError, match=f"pip install {package}") as error:
            use(tmp_path / f"w{suffix}")
        assert error.value.name == package


def test_random_keys_are_written_as_their_data(tmp_path):
    write_variables({"key": jax.random.key(3)}, tmp_path / "w.msgpack")
    assert_same({"key": np.array([0, 3], np.uint32)}, read_variables(tmp_path / "w.msgpack"))


# Damaged, foreign and hostile files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**23


@pytest.fixture
def small_memory():
    with little_memory():
        yield


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("suffix", SUFFIXES[:2])
def test_a_truncated_file_says_so_wherever_it_ends(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)
    whole = path.read_bytes()
    for i in range(20):
        path.write_bytes(whole[: len(whole) * i // 20])
        with pytest.raises(FileError, match=r"damaged|is empty"):
            read_variables(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileError, match="damaged"):
        read_variables(path)


@pytest.mark.filterwarnings("ignore")
def test_a_truncated_checkpoint_is_an_error_or_whole(tmp_path):
    write_variables(TREE, tmp_path / "w")
    for file in [each for each in (tmp_path / "w").rglob("*") if each.is_file()]:
        whole = file.read_bytes()
        failed = 0
        for i in range(0, 20, 5):
            file.write_bytes(whole[: len(whole) * i // 20])
            try:
                assert_same(TREE, read_variables(tmp_path / "w"))
            except FileError:
                failed += 1
        file.write_bytes(whole)
        if file.name in ("_METADATA", "manifest.ocdbt") and file.parent == tmp_path / "w":
            assert failed


def in_plain_files(path):
    with orbax.checkpoint.Checkpointer(
        orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=False)
    ) as writer:
        writer.save(path, TREE)


def test_a_checkpoint_with_chunks_larger_than_its_arrays_is_refused_before_they_are_allocated(
    tmp_path,
):
    in_plain_files(tmp_path / "c")
    assert_same(TREE, read_variables(tmp_path / "c"))
    description = tmp_path / "c/params.Dense_0.kernel/.zarray"
    description.write_text(
        json.dumps(json.loads(description.read_text()) | {"chunks": [2**40, 2**20]})
    )
    with pytest.raises(
        FileError, match="a chunk of an array is announced to be larger than the array"
    ):
        read_variables(tmp_path / "c")


def test_a_checkpoint_that_holds_what_is_no_file_is_refused(tmp_path):
    in_plain_files(tmp_path / "c")
    data = tmp_path / "c/params.Dense_0.kernel/0.0"
    data.unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(data)
        with pytest.raises(FileError, match=r"'params.Dense_0.kernel/0.0' in it is no file"):
            read_variables(tmp_path / "c")
        data.unlink()


@pytest.mark.parametrize(
    "name",
    ["_CHECKPOINT_METADATA", "_METADATA", "aggregate", "checkpoint", "array_metadatas/process_0"],
)
def test_a_pickle_in_a_checkpoint_is_not_loaded(name, tmp_path):
    write_variables(TREE, tmp_path / "c")
    (tmp_path / "c" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "c" / name).write_bytes(pickle.dumps(Runs()))
    with contextlib.suppress(FileError):
        assert_same(TREE, read_variables(tmp_path / "c"))


def packed(shape=(2,), dtype="float32", data=b"\0" * 8, code=1, inner=None):
    inner = msgpack.packb((shape, dtype, data)) if inner is None else inner
    return msgpack.packb({"a": msgpack.ExtType(code, inner)})


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
    "a dtype of text that is none": packed(dtype="\0"),
    "too few bytes": packed(data=b"\0" * 7),
    "a part too many": packed(inner=msgpack.packb(((2,), "float32", b"\0" * 8, 1))),
    "an empty extension": packed(inner=b""),
    "bytes after the array": packed(inner=msgpack.packb(((2,), "float32", b"\0" * 8)) + b"\0"),
    "an unknown extension": packed(code=42),
    "a complex number of text": packed(code=2, inner=msgpack.packb(("a", "b"))),
    "a complex number of one part": packed(code=2, inner=msgpack.packb((1.0,))),
    "bytes in the place of an array": msgpack.packb({"a": b"123"}),
    "a type that msgpack has not": b"\x81\xa1a\xc1",
    "a name that is no UTF-8": b"\x81\xa1\xff\x01",
    "a name twice": b"\x82\xa1a\x01\xa1a\x01",
    "names of two kinds": b"\x82\xa1a\x01\x01\x01",
    "a name that is a list": b"\x81\x91\x01\x01",
    "a name that is None": b"\x81\xc0\x01",
    "dicts 100,000 deep": b"\x81\xa1a" * 100_000,
    "lists 100,000 deep": b"\x81\xa1a" + b"\x91" * 100_000,
    "a chunked array without anything": msgpack.packb({"__msgpack_chunked_array__": True}),
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


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: packed() + data) | st.data()
)
def test_no_bytes_make_reading_fail_in_another_way(data):
    if not isinstance(data, bytes):
        whole = bytearray(flax.serialization.to_bytes(TREE))
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        data = bytes(whole)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.msgpack")
        path.write_bytes(data)
        with little_memory(), contextlib.suppress(FileError):
            read_variables(path)
        path = Path(folder, "w.safetensors")
        path.write_bytes(struct.pack("<Q", len(data)) + data)
        with little_memory(), pytest.raises(FileError):
            read_variables(path)


def many_values(count, value=b"\x80"):
    return b"\x81\xa1a\xdd" + struct.pack(">I", count) + value * count


def test_more_values_than_any_tree_has_are_refused(tmp_path):
    (tmp_path / "w.msgpack").write_bytes(many_values(2**20))
    with pytest.raises(FileError, match="holds more than 1048576 values"):
        read_variables(tmp_path / "w.msgpack")


def tensors(header, data=b"\0" * 8, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE_TENSORS = {
    "a header of 2**60 bytes": tensors({}, length=2**60),
    "a header larger than the file": tensors({"a": entry()}, length=10_000),
    "a header that is no JSON": tensors(b"{'a': 1}"),
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
    "metadata that is no text": tensors({"__metadata__": {"a": 1}, "a": entry()}),
    "bytes that are no array's": tensors({"a": entry()}, b"\0" * 9),
}


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("data", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_a_hostile_safetensors_file_is_an_error_at_once(data, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(
        FileError, match=r"is damaged, or no safetensors file|a shape that no array has"
    ):
        read_variables(tmp_path / "w.safetensors")


def test_a_dtype_that_numpy_has_not_is_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(tensors({"a": entry(shape=(2, 8), dtype="F4")}))
    with pytest.raises(FileError, match=r"dtypes that NumPy does not have:\n  a: F4"):
        read_variables(tmp_path / "w.safetensors")


class Runs:
    def __reduce__(self):
        return os.abort, ()


FOREIGN = {
    "zip": (b"PK\x03\x04\x14\0\0\0", "is a zip archive, as PyTorch's"),
    "pickle": (pickle.dumps(Runs()), "is a pickle of Python"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08", "is compressed by gzip"),
    "JSON": (b'{"a": 1}', "is text, JSON perhaps"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html>", "is a web page"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("name", ["w.msgpack", "w.safetensors", "w.pt", "w.bin", "w.ckpt", "w"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_says_what_it_is(kind, name, tmp_path):
    data, message = FOREIGN[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileError, match=rf"{message}(.|\n)*What can be read: `.msgpack`"):
        read_variables(tmp_path / name)


def test_a_file_of_the_right_kind_under_a_wrong_name_says_so(tmp_path):
    write_variables(TREE, tmp_path / "w.safetensors")
    for name in ("w.msgpack", "w.bin"):
        (tmp_path / name).write_bytes((tmp_path / "w.safetensors").read_bytes())
        with pytest.raises(FileError, match="is a safetensors file"):
            read_variables(tmp_path / name)


def test_what_is_no_file_says_so(tmp_path):
    with pytest.raises(FileError, match="There is no file"):
        read_variables(tmp_path / "w.msgpack")
    (tmp_path / "w.msgpack").mkdir()
    with pytest.raises(FileError, match=r"is a directory, and `\.msgpack` a file"):
        read_variables(tmp_path / "w.msgpack")
    os.mkfifo(tmp_path / "pipe.msgpack")
    with pytest.raises(FileError, match="neither a file nor a directory"):
        read_variables(tmp_path / "pipe.msgpack")
    with pytest.raises(FileError, match="is a directory that is no Orbax checkpoint"):
        read_variables(tmp_path)
    with pytest.raises(ArgumentError, match="`path` must be the name of a file"):
        read_variables(3)


# Memory and progress ----------------------------------------------------------------------------------------------------


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


MEASURE = """
import sys
import safetensors
import kerasflax

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    tree = kerasflax.read_variables(path)
    print(peak() - before)
    del tree
"""


def test_a_large_array_is_written_to_a_checkpoint_in_chunks(tmp_path):
    write_variables({"a": np.zeros((2**24, 3), np.float32)}, tmp_path / "c")
    with orbax.checkpoint.PyTreeCheckpointer() as reader:
        entry = reader.metadata(tmp_path / "c").item_metadata.tree["a"]
    assert 4 * np.prod(entry.storage.chunk_shape) <= 2**25


@pytest.mark.usefixtures("optimized")
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux tells the peak of memory"
)
def test_reading_takes_the_memory_of_the_arrays_and_no_more(tmp_path):
    size = 2**27
    paths = []
    for count in (1, 32):
        tree = {f"a{i}": np.ones(size // count, np.uint8) for i in range(count)}
        for suffix in SUFFIXES[:2]:
            paths.append(tmp_path / f"w{count}{suffix}")
            write_variables(tree, paths[-1])
    source = str(Path(__file__).parents[2] / "inst/python")
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(int(line) < 1.1 * size for line in output.stdout.split()), output.stdout


# Names that a format joins, or takes for something else -------------------------------------------------------------------


def leaves_of(tree, above=()):
    if not isinstance(tree, dict):
        return {above: tree}
    return {
        names: leaf
        for name, below in tree.items()
        for names, leaf in leaves_of(below, (*above, name)).items()
    }


NASTY = [
    "",
    ".",
    "..",
    "/",
    "/etc",
    "a/b",
    "a",
    "b",
    "a.b",
    "%2E",
    "%",
    "%0",
    "\0",
    "a\0",
    "A",
    "\u00e9",
    "e\u0301",
    "1",
]
NASTY += [
    "value",
    "flax",
    "format",
    "__metadata__",
    "__msgpack_chunked_array__",
    "index.json",
    "\ud800",
    "x" * 255,
]
NASTY += [" ", "\n", "'", "\\", "None"]
NASTY_TREES = trees(
    st.integers(0, 255).map(lambda i: np.full(2, i, np.uint8)), st.sampled_from(NASTY)
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_names_come_back_or_are_refused_before_anything_is_written(suffix):
    @settings(deadline=None, max_examples=25 if suffix == ".orbax" else 300)
    @given(NASTY_TREES)
    def check(tree):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"w{suffix}")
            try:
                write_variables(tree, path)
            except (VariablesError, StateError):
                assert not os.listdir(folder)
                return
            expected = leaves_of(tree)
            assert_same(tree, read_variables(path))
            if suffix == ".msgpack":
                assert_same(tree, flax.serialization.msgpack_restore(path.read_bytes()))
            if suffix == ".safetensors":
                named = {"/".join(names): leaf for names, leaf in expected.items()}
                assert_same(named, safetensors.numpy.load_file(path))
            # By path, as with `like`.
            assert_same(tree, read_variables(path, like=tree))
            moved = {f"moved{i}": leaf for i, leaf in enumerate(expected.values())}
            targets = {"/".join(names): f"moved{i}" for i, names in enumerate(expected)}
            assert_same(moved, read_variables(path, rename=lambda path: targets[path], like=moved))

    check()


REFUSED = {
    "joined": (
        {"a.b": ARRAY, "a": {"b": ARRAY}},
        ".orbax",
        r"would keep one of two weights:\n  'a.b' and 'a/b'",
    ),
    "joined with nothing": (
        {".b": ARRAY, "": {"b": ARRAY}},
        ".orbax",
        "would keep one of two weights",
    ),
    "joined deeper": (
        {"x": {"a.b": {"c": ARRAY}, "a": {"b.c": ARRAY}}},
        ".orbax",
        r"'x/a.b/c' and 'x/a/b.c'",
    ),
    "ends that are left out": (
        {"a": ARRAY, "a/": ARRAY + 1},
        ".orbax",
        "would keep one of two weights",
    ),
    "nothing but what is left out": (
        {"": ARRAY, "/": ARRAY + 1},
        ".orbax",
        r"  '': no name\n  '/': no name",
    ),
    "a separator": ({"a/b": ARRAY}, ".safetensors", r"have a '/' in a name:\n  'a/b'\n"),
    "a root": ({"/etc": ARRAY}, ".safetensors", r"\n  '/etc'\n"),
    "a mark": (
        {"p": {"__msgpack_chunked_array__": ARRAY}},
        ".msgpack",
        r"array in pieces .*:\n  p/__msgpack_chunked_array__",
    ),
    "a mark that is not the first": (
        {"a": ARRAY, "__msgpack_chunked_array__": ARRAY},
        ".msgpack",
        "array in pieces",
    ),
    "an integer too large": ({2**64: ARRAY}, ".msgpack", "integer of more than 64 bits"),
    "a name too long": ({"x" * (2**16 + 1): ARRAY}, ".msgpack", "more than 65536 bytes"),
    **{
        f"a surrogate{s}": (
            {"p": {"\ud800": ARRAY}},
            s,
            r"  p: the name '\\ud800' is no text of Unicode",
        )
        for s in SUFFIXES
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_that_would_be_lost_is_named_and_the_old_file_kept(case, tmp_path):
    tree, suffix, message = REFUSED[case]
    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)
    with pytest.raises(VariablesError, match=message) as error:
        write_variables(tree, path)
    str(error.value).encode()
    assert_same(TREE, read_variables(path))
    assert os.listdir(tmp_path) == [path.name]


def test_a_checkpoint_in_which_two_weights_have_one_array_is_refused(tmp_path):
    with orbax.checkpoint.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "c", {"a.b": np.ones(2), "a": {"b": np.zeros(2)}})
    with pytest.raises(FileError, match=r"one array for two weights: .*'a[./]b' and 'a[./]b'"):
        read_variables(tmp_path / "c")


def test_a_text_in_the_metadata_is_a_text(tmp_path):
    path = tmp_path / "w.safetensors"
    tree = {"flax": ARRAY, "pt": ARRAY + 1, "params": {"w": ARRAY + 2}}
    write_variables(tree, path, metadata={"note": "params/w", "format2": "flax"})
    assert_same(tree, read_variables(path))
    with pytest.raises(
        ArgumentError,
        match=r"the path of a weight makes its name a tied weight(.|\n)*note: params/w",
    ):
        write_variables(tree, path, metadata={"note": "params/w", "format": "pt"})
    assert_same(tree, read_variables(path))
    # A file of PyTorch that says what it is.
    safetensors.numpy.save_file({"pt": ARRAY}, path, {"format": "pt"})
    assert_same({"pt": ARRAY}, read_variables(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tree_is_as_deep_as_can_be_read_or_refused(suffix, tmp_path):
    def deep(levels):
        tree = ARRAY
        for _ in range(levels):
            tree = {"n": tree}
        return tree

    write_variables(deep(256), tmp_path / f"w{suffix}")
    assert_same(deep(256), read_variables(tmp_path / f"w{suffix}"))
    for levels in (257, 10_000):
        with pytest.raises(VariablesError, match="nests deeper than 256 levels"):
            write_variables(deep(levels), tmp_path / f"d{suffix}")
        with pytest.raises(VariablesError, match="nests deeper than 256 levels"):
            read_variables(tmp_path / f"w{suffix}", like=deep(levels))
    cyclic = {"a": ARRAY}
    cyclic["b"] = cyclic
    with pytest.raises(VariablesError, match="nests deeper than 256 levels"):
        write_variables(cyclic, tmp_path / f"d{suffix}")
    assert os.listdir(tmp_path) == [f"w{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_field_of_a_box_and_a_weight_beside_it_are_two(suffix, tmp_path):
    safetensors.numpy.save_file({"a": ARRAY, "a/value": ARRAY + 1}, tmp_path / "w.safetensors")
    if suffix != ".safetensors":
        write_variables({"a": ARRAY, "b": {"value": ARRAY + 1}}, tmp_path / f"w{suffix}")
    rename = {"b/value": "a/value"}
    with pytest.raises(VariablesError, match="a/value: not in the module"):
        read_variables(tmp_path / f"w{suffix}", rename=rename, like={"a": ARRAY})


def test_weights_of_a_file_that_have_one_path_are_an_error_of_the_file(tmp_path):
    (tmp_path / "w.msgpack").write_bytes(
        flax.serialization.msgpack_serialize({"a/b": ARRAY, "a": {"b": ARRAY}})
    )
    with pytest.raises(FileError, match="cannot be told apart"):
        read_variables(tmp_path / "w.msgpack", rename={"x": "y"})


# Disks, pipes and names of files ------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
import numpy as np
from kerasflax import FileError, write_variables
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
for path in sys.argv[2:]:
    try:
        write_variables({"params": {"w": np.random.default_rng(0).random(2**18)}}, path)
    except FileError as error:
        assert repr(path) in str(error) and "cannot be written" in str(error), error
        print("refused")
"""


@pytest.mark.parametrize("limit", [1000, 2**20])
def test_a_file_that_is_too_large_for_the_system_is_an_error_that_names_it(limit, tmp_path):
    pytest.importorskip("resource")
    paths = [tmp_path / f"w{suffix}" for suffix in SUFFIXES]
    for path in paths:
        write_variables(TREE, path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "inst/python")}
    arguments = [sys.executable, "-c", LIMITED, str(limit), *map(str, paths)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused"] * 3, done.stderr
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in paths)
    for path in paths:
        assert_same(TREE, read_variables(path))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has file systems in memory")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_costs_no_file(suffix, small_disk):
    path = small_disk / f"w{suffix}"
    write_variables(TREE, path)
    with pytest.raises(FileError, match=r"w\..*cannot be written"):
        write_variables({"a": np.random.default_rng(0).random(2**18)}, path)
    assert os.listdir(small_disk) == [path.name]
    assert_same(TREE, read_variables(path))


@pytest.mark.parametrize("path", ["\ud800.msgpack", "\ud800.safetensors", "\ud800"])
def test_a_name_that_the_system_does_not_have_is_an_error_that_names_it(path, tmp_path):
    for use in (read_variables, lambda path: write_variables(TREE, path)):
        with pytest.raises(FileError, match=r"\\ud800.* is no name that a file can have here"):
            use(f"{tmp_path}/{path}")


def test_a_file_that_becomes_another_one_while_it_is_read_is_checked_as_it_is(
    tmp_path, monkeypatch
):
    path = tmp_path / "w.safetensors"
    write_variables({"a": ARRAY, "b": ARRAY + 1}, path)
    whole = path.read_bytes()
    overlapping = whole.replace(b"[24,48]", b"[00,24]").replace(b"[00,24]", b"[0,24] ")
    assert overlapping != whole
    safe_open = safetensors.safe_open

    def replaced(*arguments, **options):
        result = safe_open(*arguments, **options)
        path.write_bytes(overlapping)
        return result

    monkeypatch.setattr(safetensors, "safe_open", replaced)
    with pytest.raises(FileError, match=r"w\.safetensors"):
        read_variables(path)


def test_a_file_that_is_changed_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "w.msgpack"
    write_variables(TREE, path)
    data = path.read_bytes()
    with pytest.raises(FileError, match="has been changed while it was read"):
        read_variables(path, progress=lambda *_: path.write_bytes(data + b"\0"))


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "c"
    write_variables({"a": ARRAY, "b": ARRAY}, path)
    metadata = orbax.checkpoint.PyTreeCheckpointer.metadata
    replaced = []

    def once(*arguments):
        result = metadata(*arguments)
        if not replaced:
            replaced.append(True)
            write_variables({"a": ARRAY + 1, "b": ARRAY + 1}, path)
        return result

    monkeypatch.setattr(orbax.checkpoint.PyTreeCheckpointer, "metadata", once)
    assert_same({"a": ARRAY + 1, "b": ARRAY + 1}, read_variables(path))


PIPED = """
import sys
from kerasflax import FileError, import_model, read_variables
for path in sys.argv[1:]:
    try:
        read_variables(path) if not path.endswith("hlo") else import_model(path)
    except FileError:
        print("refused")
"""


def test_a_pipe_is_not_waited_for_wherever_it_is(tmp_path):
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "inst/python")}
    arguments = [sys.executable, "-c", PIPED, *map(str, paths)]
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["refused"] * len(paths), done.stderr


def test_a_checkpoint_of_links_to_files_is_read_as_caches_hold_it(tmp_path):
    write_variables(TREE, tmp_path / "c")
    for i, file in enumerate(
        each for each in sorted((tmp_path / "c").rglob("*")) if each.is_file()
    ):
        file.rename(tmp_path / f"blob{i}")
        file.symlink_to(tmp_path / f"blob{i}")
    assert_same(TREE, read_variables(tmp_path / "c"))


# What a file may cost -----------------------------------------------------------------------------------------------------

COSTLY = {
    "a path of 60,000 names": (".safetensors", lambda: tensors({"a/" * 60_000: entry()})),
    "many paths of 256 names": (".safetensors", lambda: many_tensors("a/" * 255, 2000)),
    "dicts 100,000 deep": (".msgpack", lambda: b"\x81\xa1a" * 100_000),
    "a million values": (".msgpack", lambda: many_values(2**20 - 10)),
    "a million values 200 deep": (
        ".msgpack",
        lambda: b"\x81\xa1a" * 200 + many_values(2**20 - 300),
    ),
    "long names above many values": (
        ".msgpack",
        lambda: (b"\x81\xda\xff\xff" + b"x" * 0xFFFF) * 20 + many_values(2**20 - 100, b"\x01"),
    ),
    "a metadata of 100,000 ties": (".safetensors", lambda: many_ties(100_000)),
}


def many_tensors(prefix, count):
    header = {f"{prefix}{i}": entry(offsets=(8 * i, 8 * i + 8)) for i in range(count)}
    return tensors(header, b"\0" * 8 * count)


def many_ties(count):
    return tensors({"__metadata__": {f"t{i}": "a" for i in range(count)}, "a": entry()})


COST = """
import resource, sys, time
import numpy as np
from kerasflax import KerasFlaxError, read_variables
for path in sys.argv[1:]:
    for options in ({}, {"rename": {"nothing": "x"}}, {"like": {"w": np.ones(2)}}):
        start = time.process_time()
        try:
            read_variables(path, **options)
        except KerasFlaxError:
            pass
        print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("case", COSTLY)
def test_a_file_costs_no_more_than_seconds_and_its_size(case, tmp_path):
    pytest.importorskip("resource")
    suffix, make = COSTLY[case]
    paths = [tmp_path / f"small{suffix}", tmp_path / f"w{suffix}"]
    write_variables(TREE, paths[0])
    paths[1].write_bytes(make())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "inst/python")}
    arguments = [sys.executable, "-c", COST, *map(str, paths)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    costs = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(costs) == 6, done.stderr
    assert all(seconds < 10 for seconds, _ in costs), costs
    unit = 1 if sys.platform == "darwin" else 1024
    assert (costs[-1][1] - costs[2][1]) * unit < 2**29 + 20 * paths[1].stat().st_size, costs


def test_a_dtype_that_is_no_name_is_no_syntax(tmp_path):
    for dtype in ("(1,", "f4,", "[", "(2,)float32", "float32 ", "=f4"):
        (tmp_path / "w.msgpack").write_bytes(packed(dtype=dtype))
        with pytest.raises(FileError, match="is no dtype of numbers"):
            read_variables(tmp_path / "w.msgpack")


def test_a_dict_of_many_integers_is_refused_by_readers_and_writers(tmp_path):
    size = 2**16
    # Of such integers each is looked for where the others are.
    keys = [i * (2**32) % (2**61 - 1) for i in range(1, size)]
    tree = {"a": dict.fromkeys(keys, np.float32(1))}
    with pytest.raises(VariablesError, match="a dict has more than 4096 integers as names"):
        write_variables(tree, tmp_path / "w.msgpack")
    assert os.listdir(tmp_path) == []
    (tmp_path / "w.msgpack").write_bytes(msgpack.packb(tree["a"] | {1: None}, default=float))
    start = time.process_time()
    with pytest.raises(FileError, match="a dict has more than 4096 integers as names"):
        read_variables(tmp_path / "w.msgpack")
    assert time.process_time() - start < 1
    write_variables({"a": dict.fromkeys(range(4096), np.float32(1))}, tmp_path / "w.msgpack")
    assert len(read_variables(tmp_path / "w.msgpack")["a"]) == 4096


def test_the_dicts_above_weights_count_as_values(tmp_path):
    # Without names in common each path has 256 dicts and weights.
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
