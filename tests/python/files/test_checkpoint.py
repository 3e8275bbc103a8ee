import os
import subprocess
import sys
import tempfile
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import keras
import numpy as np
import orbax.checkpoint
import pytest
import safetensors.flax
import safetensors.numpy
from checkpoints import (
    ARRAY,
    SUFFIXES,
    TREE,
    assert_same,
    entry,
    leaves_of,
    many_values,
    tensors,
    trees,
)
from flax import linen as nn
from flax import struct as flax_struct
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_python

from kerasflax import (
    ArgumentError,
    FileError,
    FlaxLayer,
    NotBuiltError,
    StateError,
    VariablesError,
    read_variables,
    write_variables,
)
from kerasflax.bridge._variables import named_leaves
from kerasflax.files import _sink


def test_integer_names_survive_in_msgpack_and_become_text_in_other_formats(tmp_path):
    tree = {"layers": {0: {"w": ARRAY}, 1: {"w": ARRAY + 1}}}
    write_variables(tree, tmp_path / "w.msgpack")
    assert (tmp_path / "w.msgpack").read_bytes() == flax.serialization.msgpack_serialize(tree)
    assert_same(tree, read_variables(tmp_path / "w.msgpack"))
    as_text = {"layers": {"0": {"w": ARRAY}, "1": {"w": ARRAY + 1}}}
    for suffix in SUFFIXES[1:]:
        write_variables(tree, tmp_path / f"w{suffix}")
        assert_same(as_text, read_variables(tmp_path / f"w{suffix}"))
        assert_same(tree, read_variables(tmp_path / f"w{suffix}", like=tree))


@flax_struct.dataclass
class Moments:
    mean: jax.Array
    count: int


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_boxes_sequences_and_random_keys_have_the_structure_of_like(suffix, tmp_path):
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


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    for suffix in SUFFIXES[:2]:
        write_variables(TREE, tmp_path / f"w{suffix}")
        assert (tmp_path / f"w{suffix}").stat().st_mode == (tmp_path / "other").stat().st_mode


# Layers and models --------------------------------------------------------------------------------


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(
            3, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("x", None))
        )(inputs)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("module", [nn.Dense(3), Boxed()], ids=["plain", "boxed"])
def test_a_layer_takes_the_variables_of_a_file_without_conversion(module, suffix, tmp_path):
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


def test_the_variables_of_a_model_are_written_by_layer(tmp_path):
    written = model()
    write_variables(written, tmp_path / "w.msgpack")
    read = read_variables(tmp_path / "w.msgpack", like=written)
    assert read.keys() == {"outer", "inner"}
    np.testing.assert_array_equal(
        read["inner"]["params"]["kernel"],
        written.layers[1].layers[0].flax_variables["params"]["kernel"],
    )


def test_the_error_for_a_model_without_a_flax_layer_names_its_layers(tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ArgumentError, match="holds no Flax layer; it holds Dense"):
        write_variables(other, tmp_path / "w.msgpack")


def test_an_unbuilt_layer_cannot_be_written(tmp_path):
    with pytest.raises(NotBuiltError):
        write_variables(FlaxLayer(nn.Dense(3)), tmp_path / "w.msgpack")


# `like` and `rename` ------------------------------------------------------------------------------


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
        f"{str(path)!r} does not fit the module in 3 places:\n"
        "  params/Dense_0/scale: missing, expected float32(2, 3)\n"
        "  params/Dense_0/bias: not in the module, got float32(3)\n"
        "  params/Dense_0/kernel: expected float32(3, 2), got shape (2, 3)\n"
        "If only the names differ, map them with `rename`."
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_a_model_is_read_for_its_layer_and_a_file_of_a_layer_for_its_model(
    suffix, tmp_path
):
    layer = FlaxLayer(nn.Dense(3), name="net-1")
    model = keras.Sequential([keras.Input((2,)), layer])
    path, other = tmp_path / f"model{suffix}", tmp_path / f"layer{suffix}"
    write_variables(model, path)
    write_variables(layer, other)
    read = read_variables(path, like=layer)
    np.testing.assert_array_equal(read["params"]["kernel"], layer.variables[1])
    read = read_variables(other, like=model)
    np.testing.assert_array_equal(read["net-1"]["params"]["kernel"], layer.variables[1])


def test_a_file_of_a_layer_of_which_a_model_has_two_lacks_one_level(tmp_path):
    layers = [FlaxLayer(nn.Dense(2), name=name) for name in ("a", "b")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    path = tmp_path / "layer.msgpack"
    write_variables(layers[0], path)
    with pytest.raises(VariablesError) as error:
        read_variables(path, like=model)
    assert str(error.value) == (
        f"{str(path)!r} lacks one level: `like` has these variables in 'a' or 'b'.\n"
        r"""Pass `rename={"(.*)": "a/\\1"}`."""
    )
    with pytest.raises(VariablesError, match="b/params/kernel: missing"):
        read_variables(path, like=model, rename={"(.*)": "a/\\1"})
    read = read_variables(path, like=model, rename={"(.*)": "a/\\1"}, skip="b/**")
    np.testing.assert_array_equal(read["a"]["params"]["kernel"], layers[0].variables[1])


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_leaf_that_is_not_a_number_is_listed_and_nothing_is_written(suffix, tmp_path):
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
        "Only arrays of numbers, in nested dicts, can be written.\n"
        "  a: the names must be all text, or all integers, got 'b', 'c', 3\n"
        "  a/b: str is not an array of numbers\n"
        "  d/0: ndarray is not an array of numbers\n"
        "  d/1: Array has been deleted"
    )
    assert "  e: ShapeDtypeStruct is not an array of numbers" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_weights_that_a_format_cannot_hold_lists_them(tmp_path):
    tree = {
        "a": np.ones(2, np.complex128),
        "b": ARRAY,
        "c": np.ones((0, 2)),
        "d": np.ones(2).astype("uint4"),
    }
    with pytest.raises(
        VariablesError,
        match=r"\n  a: has the dtype complex128\n  d: has the dtype uint4\nWrite a `.msgpack` file",
    ):
        write_variables(tree, tmp_path / "w.safetensors")
    with pytest.raises(
        VariablesError,
        match=r"\n  c: has no elements, its shape is \(0, 2\)\n  d: has the dtype uint4\nWrite a",
    ):
        write_variables(tree, tmp_path / "w")
    with pytest.raises(VariablesError, match="must hold at least one array"):
        write_variables({}, tmp_path / "w")
    with pytest.raises(VariablesError, match="__metadata__: the format reserves this name"):
        write_variables({"__metadata__": ARRAY}, tmp_path / "w.safetensors")
    with pytest.raises(StateError, match="Two variables have the path a/b"):
        write_variables({"a/b": ARRAY, "a": {"b": ARRAY}}, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_only_the_old_file(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_sink.Sink, "write", fail)
    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointer, "save", fail)
    with pytest.raises(FileError, match=r"cannot be written: No space left on device\."):
        write_variables({"a": ARRAY}, path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert_same(TREE, read_variables(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_file_is_replaced_and_links_are_followed(suffix, tmp_path):
    (tmp_path / "real").mkdir()
    path, link = tmp_path / f"real/w{suffix}", tmp_path / f"link{suffix}"
    write_variables({"old": ARRAY}, path)
    link.symlink_to(path)
    write_variables(TREE, link)
    assert link.is_symlink()
    assert_same(TREE, read_variables(path))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["w.pt", "w.h5", "w.RDS"])
def test_suffixes_of_other_programs_are_refused(name, tmp_path):
    with pytest.raises(ArgumentError, match=f"cannot write a file like '{name}'"):
        write_variables(TREE, tmp_path / name)


def test_only_a_checkpoint_or_a_regular_file_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileError, match="not an Orbax checkpoint, so it cannot be replaced"):
        write_variables(TREE, tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "w.msgpack").mkdir()
    with pytest.raises(FileError, match=r"is a directory, but `\.msgpack` is the suffix of a file"):
        write_variables(TREE, tmp_path / "w.msgpack")
    with pytest.raises(FileError, match="cannot be written: No such file or directory"):
        write_variables(TREE, tmp_path / "none/w.msgpack")
    with pytest.raises(FileError, match="cannot be written: Not a directory"):
        write_variables(TREE, tmp_path / "thesis.tex/w.msgpack")
    with pytest.raises(FileError, match="cannot be written: File name too long"):
        write_variables(TREE, tmp_path / ("x" * 300 + ".msgpack"))
    os.mkfifo(tmp_path / "pipe.msgpack")
    with pytest.raises(FileError, match="not a regular file, so it cannot be replaced"):
        write_variables(TREE, tmp_path / "pipe.msgpack")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_can_have_the_maximum_length_of_the_system(suffix, tmp_path):
    path = tmp_path / ("x" * (255 - len(suffix)) + suffix)
    write_variables(TREE, path)
    assert_same(TREE, read_variables(path))


def test_a_link_to_itself_is_replaced(tmp_path):
    (tmp_path / "w.msgpack").symlink_to(tmp_path / "w.msgpack")
    write_variables(TREE, tmp_path / "w.msgpack")
    assert_same(TREE, read_variables(tmp_path / "w.msgpack"))


def test_errors_about_arguments_name_the_argument(tmp_path):
    with pytest.raises(
        ArgumentError,
        match="`variables` must be a layer, a model, or a dict of variables, got list",
    ):
        write_variables([ARRAY], tmp_path / "w.msgpack")
    for path in (None, "", "a\0b.msgpack"):
        with pytest.raises(ArgumentError, match="`file` must be the name of a file"):
            write_variables(TREE, path)
    with pytest.raises(ArgumentError, match=r"Only `\.safetensors` files have `metadata`"):
        write_variables(TREE, tmp_path / "w.msgpack", metadata={})
    with pytest.raises(ArgumentError, match="`metadata` must be text by name"):
        write_variables(TREE, tmp_path / "w.safetensors", metadata={"a": 1})


def test_the_error_for_a_path_that_is_not_a_file_says_what_it_is(tmp_path):
    with pytest.raises(FileError, match="There is no file"):
        read_variables(tmp_path / "w.msgpack")
    (tmp_path / "w.msgpack").mkdir()
    with pytest.raises(FileError, match=r"is a directory, but `\.msgpack` is the suffix of a file"):
        read_variables(tmp_path / "w.msgpack")
    os.mkfifo(tmp_path / "pipe.msgpack")
    with pytest.raises(FileError, match="neither a file nor a directory"):
        read_variables(tmp_path / "pipe.msgpack")
    with pytest.raises(FileError, match="is a directory without an Orbax checkpoint"):
        read_variables(tmp_path)
    with pytest.raises(ArgumentError, match="`file` must be the name of a file"):
        read_variables(3)


# Names that a format joins, or reserves -----------------------------------------------------------

NASTY = [
    *("", ".", "..", "/", "/etc", "a/b", "a", "b", "a.b", "%2E", "%", "%0", "\0", "a\0", "A"),
    *("\u00e9", "e\u0301", "1", "value", "flax", "format", "__metadata__"),
    *("__msgpack_chunked_array__", "index.json", "\ud800", "x" * 255),
    *(" ", "\n", "'", "\\", "None"),
]
NASTY_TREES = trees(
    st.integers(0, 255).map(lambda i: np.full(2, i, np.uint8)), st.sampled_from(NASTY)
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_names_are_kept_or_refused_before_anything_is_written(suffix):
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
        r"would keep only one of two weights\.\n  'a/b': has the same name in Orbax as 'a.b'",
    ),
    "joined with an empty name": (
        {".b": ARRAY, "": {"b": ARRAY}},
        ".orbax",
        "would keep only one of two weights",
    ),
    "joined deeper": (
        {"x": {"a.b": {"c": ARRAY}, "a": {"b.c": ARRAY}}},
        ".orbax",
        r"'x/a/b.c': has the same name in Orbax as 'x/a.b/c'",
    ),
    "separators at the end": (
        {"a": ARRAY, "a/": ARRAY + 1},
        ".orbax",
        "would keep only one of two weights",
    ),
    "nothing but separators": (
        {"": ARRAY, "/": ARRAY + 1},
        ".orbax",
        r"  '': has no name for Orbax\n  '/': has no name for Orbax",
    ),
    "a separator": (
        {"a/b": ARRAY},
        ".safetensors",
        r"no name can contain '/'\.\n  a/b: the names are 'a/b'\n",
    ),
    "a root": ({"/etc": ARRAY}, ".safetensors", r"\n  /etc: the names are '/etc'\n"),
    "a mark": (
        {"p": {"__msgpack_chunked_array__": ARRAY}},
        ".msgpack",
        r"reserves the name .*\n  p/__msgpack_chunked_array__: a dict with this name is an array",
    ),
    "a mark that is not the first": (
        {"a": ARRAY, "__msgpack_chunked_array__": ARRAY},
        ".msgpack",
        "is an array in chunks",
    ),
    "an integer too large": ({2**64: ARRAY}, ".msgpack", "integer of more than 64 bits"),
    "a name too long": ({"x" * (2**16 + 1): ARRAY}, ".msgpack", "more than 65536 bytes"),
    **{
        f"a surrogate{s}": (
            {"p": {"\ud800": ARRAY}},
            s,
            r"  p: the name '\\ud800' is not valid Unicode",
        )
        for s in SUFFIXES
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_error_for_a_name_that_would_be_lost_names_it_and_the_old_file_stays(case, tmp_path):
    tree, suffix, message = REFUSED[case]
    path = tmp_path / f"w{suffix}"
    write_variables(TREE, path)
    with pytest.raises(VariablesError, match=message) as error:
        write_variables(tree, path)
    str(error.value).encode()
    assert_same(TREE, read_variables(path))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tree_that_is_too_deep_to_be_read_is_not_written(suffix, tmp_path):
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
def test_the_field_of_a_box_and_a_weight_of_the_same_path_stay_distinct(suffix, tmp_path):
    safetensors.numpy.save_file({"a": ARRAY, "a/value": ARRAY + 1}, tmp_path / "w.safetensors")
    if suffix != ".safetensors":
        write_variables({"a": ARRAY, "b": {"value": ARRAY + 1}}, tmp_path / f"w{suffix}")
    rename = {"b/value": "a/value"}
    with pytest.raises(VariablesError, match="a/value: not in the module"):
        read_variables(tmp_path / f"w{suffix}", rename=rename, like={"a": ARRAY})


# Disks --------------------------------------------------------------------------------------------

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
def test_the_error_for_a_file_over_the_size_limit_of_the_system_names_it(limit, tmp_path):
    pytest.importorskip("resource")
    paths = [tmp_path / f"w{suffix}" for suffix in SUFFIXES]
    for path in paths:
        write_variables(TREE, path)
    done = run_python("-c", LIMITED, limit, *paths)
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux mounts a tmpfs")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_only_the_old_file(suffix, small_disk):
    path = small_disk / f"w{suffix}"
    write_variables(TREE, path)
    with pytest.raises(FileError, match=r"w\..*cannot be written"):
        write_variables({"a": np.random.default_rng(0).random(2**18)}, path)
    assert os.listdir(small_disk) == [path.name]
    assert_same(TREE, read_variables(path))


# Time and memory ----------------------------------------------------------------------------------

MEASURE = """
import sys
import safetensors
import kerasflax

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    tree = kerasflax.read_variables(path)
    print(peak() - before)
    del tree
"""


@pytest.mark.usefixtures("optimized")
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="only Linux can reset the peak of memory",
)
def test_reading_takes_no_more_memory_than_the_arrays(tmp_path):
    size = 2**27
    paths = []
    for count in (1, 32):
        tree = {f"a{i}": np.ones(size // count, np.uint8) for i in range(count)}
        for suffix in SUFFIXES[:2]:
            paths.append(tmp_path / f"w{count}{suffix}")
            write_variables(tree, paths[-1])
    output = run_python("-c", MEASURE, *paths, check=True)
    assert all(int(line) < 1.1 * size for line in output.stdout.split()), output.stdout


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
def test_no_file_takes_more_than_seconds_and_its_size_in_memory(case, tmp_path):
    pytest.importorskip("resource")
    suffix, make = COSTLY[case]
    paths = [tmp_path / f"small{suffix}", tmp_path / f"w{suffix}"]
    write_variables(TREE, paths[0])
    paths[1].write_bytes(make())
    done = run_python("-c", COST, *paths, check=True)
    costs = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(costs) == 6, done.stderr
    assert all(seconds < 10 for seconds, _ in costs), costs
    unit = 1 if sys.platform == "darwin" else 1024
    assert (costs[-1][1] - costs[2][1]) * unit < 2**29 + 20 * paths[1].stat().st_size, costs
