import json
import os
import resource
import sys
import tempfile
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import any_tree
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import LINEN
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src.saving.saving_lib import H5IOStore
from modules import ConvNet

import kerasflax
from kerasflax import FileError, FlaxLayer, NotBuiltError, VariablesError
from kerasflax.bridge import _weights_file
from kerasflax.bridge._variables import named_leaves

X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


def model_of(module, seed, shape=X.shape[1:], **arguments):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, FlaxLayer(module, seed=seed, name="net", **arguments)(inputs))
    model.compile("adam", "mse")
    return model


def test_the_next_training_step_after_loading_is_the_same(tmp_path):
    model = model_of(ConvNet(), 1)
    model.fit(X, Y, epochs=2, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = model_of(ConvNet(), 2)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))
    # Older versions of Keras continue the mean of the last epoch.
    model.reset_metrics()
    losses = [m.train_on_batch(X, Y) for m in (model, other)]
    assert losses[0] == losses[1]
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


class Holder(keras.Model):
    """A model that only holds a layer, which may take any inputs."""

    def __init__(self, layer):
        super().__init__()
        self.net = layer
        self.built = True


@pytest.mark.parametrize("name", LINEN)
def test_every_variable_is_in_the_file_under_its_path(name, tmp_path):
    case = LINEN[name]

    def model():
        layer = FlaxLayer(case.module, method=case.method, name="net")
        layer(
            jax.tree.map(lambda x: keras.Input(batch_shape=x.shape, dtype=str(x.dtype)), case.first)
        )
        return layer, Holder(layer)

    layer, saved = model()
    other, loaded = model()
    saved.save_weights(tmp_path / "m.weights.h5")
    loaded.load_weights(tmp_path / "m.weights.h5")
    variables = layer.variables_by_path
    assert variables.keys() == other.variables_by_path.keys()
    with h5py.File(tmp_path / "m.weights.h5") as file:
        names = []
        file.visit(names.append)
        (index,) = (name for name in names if name.endswith("/index.json"))
        group = file[index].parent
        for path, variable in variables.items():
            np.testing.assert_array_equal(variable, other.variables_by_path[path], err_msg=path)
            assert group[path].shape == tuple(variable.shape)
    np.testing.assert_array_equal(layer.seed_generator.state, other.seed_generator.state)


@settings(deadline=None, max_examples=50)
@given(any_tree.trees)
def test_any_tree_is_loaded_with_the_same_bits(tree):
    layer, other = any_tree.layer_of(tree), any_tree.layer_of(jax.tree.map(np.zeros_like, tree))
    with tempfile.TemporaryDirectory() as folder:
        Holder(layer).save_weights(Path(folder, "m.weights.h5"))
        Holder(other).load_weights(Path(folder, "m.weights.h5"))
    found = named_leaves(other.flax_variables["state"])
    for path, expected in named_leaves(tree).items():
        got = np.asarray(found[path])
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), path
        assert got.tobytes() == expected.tobytes(), path


DTYPES = [
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "uint32",
    "bool",
    "float32",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_any_dtype_are_loaded_with_the_same_bits(dtype, tmp_path):
    values = jnp.arange(-3, 4).astype(dtype)

    class Values(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("state", "values", lambda: jnp.zeros(7, dtype))
            return x

    layer, other = FlaxLayer(Values(), name="net"), FlaxLayer(Values(), name="net")
    models = [Holder(each) for each in (layer, other)]
    for each in (layer, other):
        each(np.ones((1, 2), np.float32))
    layer.flax_variables = {"state": {"values": values}}
    models[0].save_weights(tmp_path / "m.weights.h5")
    models[1].load_weights(tmp_path / "m.weights.h5")
    restored = other.flax_variables["state"]["values"]
    assert restored.dtype == values.dtype
    np.testing.assert_array_equal(restored, values)


def test_weights_in_several_files_are_loaded(tmp_path):
    layers = [
        FlaxLayer(nn.Sequential([nn.Dense(256), nn.Dense(256)]), name="net", seed=seed)
        for seed in (1, 2)
    ]
    models = [keras.Sequential([keras.Input((256,)), layer]) for layer in layers]
    models[0].save_weights(tmp_path / "m.weights.json", max_shard_size=0.0003)
    assert len(list(tmp_path.glob("*.h5"))) > 1
    models[1].load_weights(tmp_path / "m.weights.json")
    for path, leaf in named_leaves(layers[0].flax_variables).items():
        np.testing.assert_array_equal(
            leaf, named_leaves(layers[1].flax_variables)[path], err_msg=path
        )


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_loading_a_file_that_does_not_fit_lists_every_place_and_sets_nothing(tmp_path):
    model_of(nn.Sequential([nn.Dense(3), nn.Dense(2)]), 1, (4,)).save_weights(
        tmp_path / "m.weights.h5"
    )
    other = model_of(nn.Sequential([nn.Dense(5)]), 2, (4,))
    before = named_leaves(other.get_layer("net").flax_variables)
    with pytest.raises(ValueError, match="could not be loaded") as error:
        other.load_weights(tmp_path / "m.weights.h5")
    assert (
        "The saved state of the layer 'net' does not fit the module in 4 places:\n"
        "  params/layers_0/bias: expected float32(5), got shape (3)\n"
        "  params/layers_0/kernel: expected float32(4, 5), got shape (4, 3)\n"
        "  params/layers_1/bias: not in the module, got float32(2)\n"
        "  params/layers_1/kernel: not in the module, got float32(3, 2)\n"
        "Load it into a model of the same layers, or pass `skip_mismatch=True` to load what fits."
    ) in str(error.value)
    for path, leaf in named_leaves(other.get_layer("net").flax_variables).items():
        np.testing.assert_array_equal(leaf, before[path])


def linen_net(units):
    return nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.Dense(units)])


class NnxNet(nnx.Module):
    def __init__(self, units, rngs):
        self.body, self.norm = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, units, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(self.body(x))))


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize(
    ("make", "head"),
    [
        (linen_net, "params/layers_2"),
        (lambda units: kerasflax.LazyModule(NnxNet, units), "params/head"),
    ],
    ids=["linen", "nnx"],
)
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_skip_mismatch_loads_each_weight_that_fits_and_lists_both_kinds(
    make, head, suffix, tmp_path
):
    saved, other = (model_of(make(units), units, (4,)) for units in (2, 5))
    path = tmp_path / f"m{suffix}"
    if suffix == ".keras":
        kerasflax.save_model(saved, path)
    else:
        saved.save_weights(path)
    before, there = (
        {path: np.asarray(value) for path, value in layer.variables_by_path.items()}
        for layer in (other.get_layer("net"), saved.get_layer("net"))
    )
    with pytest.raises(ValueError, match="could not be loaded"):
        other.load_weights(path)
    with pytest.warns(UserWarning, match="could not be loaded") as warned:
        other.load_weights(path, skip_mismatch=True)
    (warning,) = warned
    assert str(warning.message).startswith(
        "These weights of the layer 'net' could not be loaded:\n"
        f"  {head}/bias: expected float32(5), got shape (2)\n"
        f"  {head}/kernel: expected float32(3, 5), got shape (3, 2)\n"
        "These were loaded:\n"
    )
    loaded = str(warning.message).partition("loaded:\n")[2].partition("loaded:\n")[2].split()
    assert set(loaded) == {*before, "seed_generator/seed_generator_state"} - {
        f"{head}/bias",
        f"{head}/kernel",
    }
    for path, value in other.get_layer("net").variables_by_path.items():
        expected = before if path.startswith(head) else there
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_skip_mismatch_lists_weights_that_only_the_file_or_only_the_layer_has(tmp_path):
    model_of(nn.Sequential([nn.Dense(3), nn.Dense(3)]), 1, (4,)).save_weights(
        tmp_path / "m.weights.h5"
    )
    other = model_of(nn.Sequential([nn.Dense(3), nn.tanh, nn.LayerNorm()]), 2, (4,))
    with pytest.warns(UserWarning, match="could not be loaded") as warned:
        other.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    (warning,) = warned
    text = str(warning.message)
    assert "  params/layers_1/kernel: not in the module, got float32(3, 3)\n" in text
    assert "  params/layers_2/scale: missing, expected float32(3)\n" in text


def index(**changes):
    text = json.dumps({"format_version": 1, "dtypes": {"params/kernel": "float32"}} | changes)
    return {"index.json": np.frombuffer(text.encode(), np.uint8)}


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({}, "it holds nothing"),
        ({"0": np.ones(3)}, "it holds 0"),
        ({"index.json": np.frombuffer(b"\xff{", np.uint8)}, "cannot be read"),
        ({"index.json": np.frombuffer(b"[" * 100_000, np.uint8)}, "cannot be read"),
        ({"index.json": np.frombuffer(b"[1]", np.uint8)}, "cannot be read"),
        (index(format_version=2), "the format version is 2"),
        (index(dtypes=["params/kernel"]), "cannot be read"),
        (index(dtypes={"params/kernel": 3}), "cannot be read"),
        (index(), "lists params/kernel, which is missing"),
        (index(dtypes={}), "params/kernel: missing"),
    ],
)
def test_an_error_says_why_a_file_is_foreign_or_damaged(store, message):
    layer = FlaxLayer(nn.Dense(3, use_bias=False))
    layer(np.ones((1, 2), np.float32))
    with pytest.raises(VariablesError) as error:
        layer.load_own_variables(store)
    assert message in str(error.value)


def test_loading_into_a_layer_without_variables_raises_an_error():
    with pytest.raises(NotBuiltError):
        FlaxLayer(nn.Dense(3)).load_own_variables({})


# Names, damage and costs --------------------------------------------------------------------------


class Value:
    """The parts of a Keras variable that a store uses."""

    def __init__(self, value):
        self.value = np.asarray(value)
        self.shape, self.dtype = self.value.shape, str(self.value.dtype)

    def assign(self, value):
        self.value = np.asarray(value)


NASTY = [
    "",
    ".",
    "..",
    "%2E",
    "%",
    "%0",
    "%1",
    "\0",
    "a",
    "A",
    "a.b",
    "index.json",
    "é",
    "\ud800",
    "x" * 2000,
    "vars",
    " ",
    "\n",
]
PATHS = st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map("/".join)


def saved(variables, path):
    store = H5IOStore(path, mode="w")
    try:
        _weights_file.save(
            {path: variable.value for path, variable in variables.items()}, store.make("layers/net")
        )
    finally:
        store.close()


def loaded(variables, path):
    store = H5IOStore(path, mode="r")
    try:
        _weights_file.load(variables, store.get("layers/net"), "net")
    finally:
        store.close()


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(PATHS, st.integers(0, 255), min_size=1, max_size=8))
def test_weights_with_any_names_are_loaded(values):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.weights.h5")
        saved({name: Value(np.full(2, value, np.uint8)) for name, value in values.items()}, path)
        variables = {name: Value(np.zeros(2, np.uint8)) for name in values}
        loaded(variables, path)
    assert {name: variable.value.tolist() for name, variable in variables.items()} == {
        name: [value] * 2 for name, value in values.items()
    }


def test_the_names_in_hdf5_are_those_of_format_version_1(tmp_path):
    saved({"a": Value([1.0]), "a/b": Value([2.0]), "c/.": Value([3.0])}, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        names = []
        file["layers/net/vars"].visititems(
            lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
        )
        index = json.loads(file["layers/net/vars/index.json"][()].tobytes())
    assert sorted(names) == ["a/%", "a/b", "c/%2E", "index.json"]
    assert index.keys() == {"format_version", "dtypes"}


def test_a_tree_that_is_nested_too_deeply_is_not_saved(tmp_path):
    with pytest.raises(VariablesError, match="nests deeper than 256 levels"):
        saved({"a/" * 300: Value([1.0])}, tmp_path / "m.h5")


def tampered(tmp_path, change, shape=(3,)):
    """Save two weights, change one in the file, and load both."""
    saved(
        {"w": Value(np.ones(shape, np.float32)), "v": Value(np.ones(3, np.float32))},
        tmp_path / "m.h5",
    )
    with h5py.File(tmp_path / "m.h5", "a") as file:
        group = file["layers/net/vars"]
        del group["w"]
        change(group)
    variables = {"w": Value(np.zeros(3, np.float32)), "v": Value(np.zeros(3, np.float32))}
    try:
        loaded(variables, tmp_path / "m.h5")
    finally:
        assert variables["v"].value.tolist() == [0] * 3, "nothing is set"


def external(group):
    with h5py.File(group.file.filename + ".other", "w") as other:
        other["w"] = np.ones(3, np.float32)
    group["w"] = h5py.ExternalLink(group.file.filename + ".other", "w")


def fifo(group):
    os.mkfifo(group.file.filename + ".pipe")
    group["w"] = h5py.ExternalLink(group.file.filename + ".pipe", "w")


def bomb(group):
    """Write 12 bytes in a chunk that expands to 600 MB. HDF5 expands all of it."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((3,))
    for _ in range(2):
        made.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (9,))
    packer = zlib.compressobj(9)
    packed = b"".join([packer.compress(bytes(2**20)) for _ in range(600)] + [packer.flush()])
    space = h5py.h5s.create_simple((3,))
    dataset = h5py.h5d.create(group.id, b"w", h5py.h5t.IEEE_F32LE, space, made)
    dataset.write_direct_chunk((0,), zlib.compress(packed, 9), 0)


def peak():
    """Return the peak memory of the process in bytes. Linux reports kilobytes, and macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


DAMAGE = {
    "strings": lambda group: group.create_dataset("w", data=["a", "b", "c"]),
    "bytes": lambda group: group.create_dataset("w", data=np.array([b"a", b"b", b"c"])),
    "bytes without an end": lambda group: group.create_dataset("w", (3,), dtype="S1000000"),
    "a compound": lambda group: group.create_dataset("w", data=np.zeros(3, "f4,i4")),
    "references": lambda group: group.create_dataset(
        "w", data=[group.ref] * 3, dtype=h5py.ref_dtype
    ),
    "nothing": lambda group: group.create_dataset("w", data=h5py.Empty("f4")),
    "arrays in an array": lambda group: group.create_dataset("w", (3,), dtype="(2,)f4"),
    "opaque": lambda group: group.create_dataset("w", data=np.zeros(3, "V7")),
    "a group": lambda group: group.create_group("w"),
    "a datatype": lambda group: group.__setitem__("w", np.dtype("f4")),
    "a soft link": lambda group: group.__setitem__("w", h5py.SoftLink("/layers/net/vars/v")),
    "a link to itself": lambda group: group.__setitem__("w", h5py.SoftLink("w")),
    "another file": external,
    "a pipe": fifo,
    "numbers elsewhere": lambda group: group.create_dataset(
        "w", (3,), "f4", external=[("/etc/passwd", 0, 12)]
    ),
    "a chunk of 4 GB": lambda group: group.create_dataset(
        "w", (3,), "f4", chunks=(2**29,), maxshape=(None,), fillvalue=1
    ),
    "compressed": lambda group: group.create_dataset(
        "w", data=np.ones(3, "f4"), compression="gzip"
    ),
    "compressed twice": lambda group: bomb(group),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_an_error_names_a_weight_that_is_not_a_numeric_array(case, tmp_path):
    before = peak()
    with pytest.raises(
        FileError, match=r"The file is damaged: the layer 'net' (has|lists) w, which"
    ) as error:
        tampered(tmp_path, DAMAGE[case])
    assert isinstance(error.value, VariablesError)
    assert peak() < before + 2**28


@pytest.mark.parametrize("shape", [(2**30,), (2**40,), (2**30, 2**30)])
def test_a_weight_of_another_shape_is_not_read(shape, tmp_path):
    def change(group):
        group.create_dataset(
            "w", shape, "f4", chunks=(2**20,) * len(shape[:1]) + (1,) * len(shape[1:])
        )

    tracemalloc.start()
    try:
        with pytest.raises(VariablesError, match="w: expected float32\\(3\\), got shape"):
            tampered(tmp_path, change)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def with_index(tmp_path, text, **options):
    saved({"w": Value([1.0])}, tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        group = file["layers/net/vars"]
        del group["index.json"]
        group.create_dataset("index.json", data=np.frombuffer(text, np.uint8), **options)
    loaded({"w": Value([0.0])}, tmp_path / "m.h5")


def an_index(paths):
    return json.dumps({"format_version": 1, "dtypes": dict.fromkeys(paths, "float32")}).encode()


@pytest.mark.parametrize(
    "paths",
    [
        ["a/" * 15_000],
        ["a/" * 255 + str(i) for i in range(2000)],
        ["w" + "/value" * 200] * 1,
        [f"w{i}" for i in range(50_000)],
    ],
)
def test_the_time_and_memory_to_read_an_index_are_bounded(paths, tmp_path):
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises((FileError, VariablesError)):
            with_index(tmp_path, an_index(paths))
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 8


def test_an_index_that_expands_beyond_its_stored_size_is_not_read(tmp_path):
    with pytest.raises(FileError, match="is compressed, and Keras saves without compression"):
        with_index(tmp_path, b" " * 2**28, compression="gzip")
    saved({"w": Value([1.0])}, tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5", "a") as file:
        del file["layers/net/vars/index.json"]
        file["layers/net/vars"].create_dataset("index.json", (2**28,), "u1")
    with pytest.raises(FileError, match="0 bytes cannot hold a text of 268435456 bytes"):
        loaded({"w": Value([0.0])}, tmp_path / "n.h5")


def test_an_error_shortens_a_long_format_version():
    with pytest.raises(FileError) as error:
        _weights_file.load(
            {},
            {
                "index.json": np.frombuffer(
                    json.dumps({"format_version": "x" * 10**6}).encode(), np.uint8
                )
            },
            "net",
        )
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "dtype", ["(1,", "f4,", "object", "str", "(2,)f4", 3, None, ["f4"], "datetime64[s]"]
)
def test_an_invalid_dtype_in_the_index_raises_a_file_error(dtype):
    with pytest.raises(FileError, match="is not a numeric dtype"):
        _weights_file.load(
            {"params/kernel": Value([1.0])}, index(dtypes={"params/kernel": dtype}), "net"
        )


@pytest.mark.parametrize(
    "names",
    [{"params/kernel": "/etc"}, {"other": "%0"}, {"params/kernel": "%1"}, 3, {"params/kernel": 0}],
)
def test_an_invented_name_in_the_index_is_refused(names):
    with pytest.raises(FileError, match="cannot be read"):
        _weights_file.load({"params/kernel": Value([1.0])}, index(names=names), "net")


@pytest.mark.parametrize(("action", "count"), [("default", 2), ("ignore", 0)])
def test_each_load_that_skips_weights_warns_even_with_the_same_text(tmp_path, action, count):
    model, other = (
        keras.Sequential([keras.Input((3,)), FlaxLayer(nn.Dense(units), name="same")])
        for units in (2, 4)
    )
    model.save_weights(tmp_path / "m.weights.h5")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        for _ in range(2):
            other.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    assert len([each for each in caught if "could not be loaded" in str(each.message)]) == count
