"""The user's arrays never share memory with a layer's variables.

Keras's training step donates the memory of variables, which deletes every array that shares it.
The tests try each way to pass arrays in and to take them out. They run on one device with the other
tests, and on eight devices in new processes (see the last tests), where KERASFLAX_TEST_DISTRIBUTION
names how Keras distributes variables.
"""

import functools
import json
import os
import pathlib

import flax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import cpu_devices, environment, key_data, run_python

import kerasflax
from kerasflax import FlaxLayer, LazyModule
from kerasflax.bridge._memory import copied, placed

DISTRIBUTION = os.environ.get("KERASFLAX_TEST_DISTRIBUTION")
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 8)).astype(np.float32)
Y = RANDOM.normal(size=(16, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def distribution():
    if DISTRIBUTION == "data":
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    elif DISTRIBUTION == "model":
        mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[".*kernel"] = (None, "model")
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(
                layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
            )
        )
    yield
    keras.distribution.set_distribution(None)


class Linen(nn.Module):
    """Sows a weight, and keeps a copy of it in the state; with batch statistics."""

    @nn.compact
    def __call__(self, inputs, training=False):
        hidden = nn.Dense(8)
        x = hidden(inputs)
        kernel = hidden.variables["params"]["kernel"]
        self.sow("intermediates", "kernel", kernel)
        followed = self.variable("followed", "kernel", lambda: kernel)
        if not self.is_initializing():
            followed.value = kernel
        x = nn.BatchNorm(momentum=0.5)(x, use_running_average=not training)
        return nn.Dense(4)(x)


class Nnx(nnx.Module):
    """The same, with dropout, whose random keys are state."""

    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(8, 4, rngs=rngs)
        self.followed = nnx.BatchStat(self.hidden.kernel.get_value())

    def __call__(self, inputs):
        self.sow(nnx.Intermediate, "kernel", self.hidden.kernel.get_value())
        self.followed.set_value(self.hidden.kernel.get_value())
        return self.out(self.dropout(self.norm(self.hidden(inputs))))


def lazy():
    return LazyModule(Nnx)


def instance():
    return Nnx(rngs=nnx.Rngs(0))


MODULES = {"linen": Linen, "nnx": lazy}
# Each of the two runs on eight devices checks the owners of arrays with one kind: what depends on
# the kind has been checked on one device.
KINDS = {"model": ["linen"], "data": ["nnx"]}.get(DISTRIBUTION, list(MODULES))


def spans(tree):
    """Return the memory of the arrays in a tree.

    Returns:
        (device, address of the first byte, address after the last byte) of each shard. The device
        of a NumPy array is None.
    """
    found = set()
    for leaf in jax.tree.leaves(tree):
        leaf = key_data(leaf) if isinstance(leaf, jax.Array) else leaf
        if isinstance(leaf, np.ndarray) and leaf.size:
            found.add((None, leaf.ctypes.data, leaf.ctypes.data + leaf.nbytes))
        elif isinstance(leaf, jax.Array) and leaf.size:
            for shard in leaf.addressable_shards:
                start = shard.data.unsafe_buffer_pointer()
                found.add((shard.device, start, start + shard.data.nbytes))
    return found


def overlaps(one, other):
    """Return the pairs of spans that overlap. NumPy arrays can share the memory of a CPU device."""
    others = spans(other)
    return [
        (a, b)
        for a in spans(one)
        for b in others
        if a[1] < b[2] and b[1] < a[2] and (None in (a[0], b[0]) or a[0] == b[0])
    ]


def held(layer):
    """Return the arrays that hold the layer's variables and its seed."""
    return [variable.value for variable in layer.variables]


def numbers(tree):
    """Return copies of the leaves as NumPy arrays; random keys as their data."""
    leaves = jax.tree.leaves(tree)
    return [np.array(key_data(leaf) if isinstance(leaf, jax.Array) else leaf) for leaf in leaves]


def assert_equal(tree, expected):
    for value, number in zip(numbers(tree), expected, strict=True):
        np.testing.assert_array_equal(value, number)


def model_of(layer):
    model = keras.Sequential([keras.Input((8,)), layer])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def train(model, callbacks=()):
    history = model.fit(
        X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    model.predict(X, batch_size=8, verbose=0)
    return history.history["loss"]


def check_owned_by_user(tree, model):
    """Check that a model neither shares the memory of the user's arrays nor changes them."""
    assert spans(tree)
    layer = model.layers[-1]
    assert not overlaps(tree, held(layer))
    before, weights = numbers(tree), numbers(held(layer))
    train(model)
    assert_equal(tree, before)
    assert any(
        not np.array_equal(*pair) for pair in zip(numbers(held(layer)), weights, strict=True)
    )
    assert not overlaps(tree, held(layer))
    # The layer's variables share no memory with each other either: donating one would delete both.
    assert len(spans(held(layer))) == sum(len(spans(value)) for value in held(layer))
    # The same holds for eager calls, and for training steps after them.
    layer(X)
    assert not overlaps(tree, held(layer))
    train(model)
    assert_equal(tree, before)


# One array ----------------------------------------------------------------------------------------


DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "int32",
    "uint32",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "float8_e4m3fn",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 2)])
def test_a_copy_survives_the_donation_of_the_array(shape, dtype):
    array = jnp.ones(shape, dtype)
    copy = copied(array)
    assert not overlaps(array, copy)
    assert copy.dtype == dtype
    jax.jit(lambda x: x + x if x.dtype != bool else ~x, donate_argnums=0)(array)
    np.testing.assert_array_equal(np.asarray(copy, np.complex64), np.ones(shape))


def test_the_memory_of_a_numpy_array_is_copied():
    array = np.ones(1024, np.float32)
    copy = placed(copied(array))
    array[:] = 0
    np.testing.assert_array_equal(copy, np.ones(1024))


def test_values_in_another_byte_order_are_set():
    layer = FlaxLayer(nn.Dense(4))
    layer.build((None, 3))
    kernel, bias = np.arange(12, dtype=">f4").reshape(3, 4), np.ones(4, ">f4")
    layer.flax_variables = {"params": {"kernel": kernel}}
    np.testing.assert_array_equal(layer.variables_by_path["params/kernel"].value, kernel)
    given = FlaxLayer(nn.Dense(4), variables={"params": {"kernel": kernel, "bias": bias}})
    given.build((None, 3))
    np.testing.assert_array_equal(given.variables_by_path["params/kernel"].value, kernel)


def test_inside_a_trace_an_array_is_copied_immediately():
    array = jnp.arange(3.0)
    copies = []
    jax.jit(lambda x: copies.append(placed(copied(array))) or x)(1.0)
    np.testing.assert_array_equal(copies[0], array)


def test_a_copy_is_committed_to_a_device_only_if_the_array_is():
    device = jax.devices()[0]
    assert copied(jax.device_put(np.ones(3), device)).committed
    assert not copied(jnp.ones(3)).committed
    assert not placed(np.ones(3)).committed


# Ways in ------------------------------------------------------------------------------------------


@functools.cache
def initial(kind):
    layer = FlaxLayer(MODULES[kind](), seed=1)
    layer.build((None, 8))
    return jax.tree.map(lambda leaf: np.array(key_data(leaf)), layer.flax_variables)


def user_variables(kind):
    """The user's variables, as JAX arrays."""
    return jax.tree.map(jnp.array, initial(kind))


def user_arrays(kind):
    """The user's variables, as NumPy arrays."""
    return jax.tree.map(np.array, initial(kind))


def in_by_variables(kind, _):
    variables = user_variables(kind)
    return variables, model_of(FlaxLayer(MODULES[kind](), variables=variables))


def in_by_frozen_variables(kind, _):
    variables = flax.core.freeze(user_variables(kind))
    return variables, model_of(FlaxLayer(MODULES[kind](), variables=variables))


def in_by_numpy(kind, _):
    variables = user_arrays(kind)
    return variables, model_of(FlaxLayer(MODULES[kind](), variables=variables))


def in_by_assignment(kind, _):
    variables, model = user_variables(kind), model_of(FlaxLayer(MODULES[kind](), seed=2))
    model.layers[-1].flax_variables = variables
    return variables, model


def in_by_assignment_of_numpy(kind, _):
    variables, model = user_arrays(kind), model_of(FlaxLayer(MODULES[kind]()))
    model.layers[-1].flax_variables = variables
    return variables, model


def in_by_assignment_after_training(kind, _):
    variables, model = user_variables(kind), model_of(FlaxLayer(MODULES[kind](), seed=2))
    train(model)
    model.layers[-1].flax_variables = variables
    return variables, model


def in_by_assignment_of_another_layers(kind, _):
    giver, model = (
        model_of(FlaxLayer(MODULES[kind](), seed=3)),
        model_of(FlaxLayer(MODULES[kind]())),
    )
    model.layers[-1].flax_variables = giver.layers[-1].flax_variables
    return held(giver.layers[-1]), model


def in_by_a_callback(kind, _):
    variables, model = user_variables(kind), model_of(FlaxLayer(MODULES[kind]()))

    def assign(epoch, logs):
        model.layers[-1].flax_variables = variables

    train(model, [keras.callbacks.LambdaCallback(on_epoch_end=assign)])
    return variables, model


def in_by_a_file(suffix):
    def way(kind, folder):
        kerasflax.write_variables(user_variables(kind), folder / f"w{suffix}")
        variables = kerasflax.read_variables(folder / f"w{suffix}")
        return variables, model_of(FlaxLayer(MODULES[kind](), variables=variables))

    return way


def in_by_a_file_like_the_layer(kind, folder):
    model = model_of(FlaxLayer(MODULES[kind](), seed=2))
    kerasflax.write_variables(user_variables(kind), folder / "w.msgpack")
    variables = kerasflax.read_variables(folder / "w.msgpack", like=model.layers[-1])
    model.layers[-1].flax_variables = variables
    return variables, model


def in_by_weights(kind, folder):
    giver, model = (
        model_of(FlaxLayer(MODULES[kind](), seed=3)),
        model_of(FlaxLayer(MODULES[kind]())),
    )
    giver.save_weights(folder / "m.weights.h5")
    model.load_weights(folder / "m.weights.h5")
    return held(giver.layers[-1]), model


def in_by_a_saved_model(kind, folder):
    giver = model_of(FlaxLayer(MODULES[kind](), seed=3))
    train(giver)
    kerasflax.save_model(giver, folder / "m.keras")
    return held(giver.layers[-1]), keras.saving.load_model(folder / "m.keras")


def in_by_clone(kind, _):
    giver = model_of(FlaxLayer(MODULES[kind](), seed=3))
    model = keras.models.clone_model(giver)
    model.set_weights(giver.get_weights())
    model.compile("sgd", "mse")
    return held(giver.layers[-1]), model


def in_by_config(kind, _):
    giver = model_of(FlaxLayer(MODULES[kind](), seed=3))
    return held(giver.layers[-1]), model_of(FlaxLayer.from_config(giver.layers[-1].get_config()))


def in_by_an_instance(kind, _):
    module = instance()
    return nnx.state(module), model_of(FlaxLayer(module))


def in_by_an_instance_and_variables(kind, _):
    module, kernel = instance(), jnp.ones((8, 8))
    variables = {"params": {"hidden": {"kernel": kernel}}}
    return (nnx.state(module), kernel), model_of(FlaxLayer(module, variables=variables))


def in_by_a_method_of_an_instance(kind, _):
    module = instance()
    return nnx.state(module), model_of(FlaxLayer(module, module.__call__))


def in_by_what_a_layer_gave(kind, _):
    giver = model_of(FlaxLayer(lazy(), seed=3))
    module = giver.layers[-1].to_flax()
    return (nnx.state(module), held(giver.layers[-1])), model_of(FlaxLayer(module))


WAYS_IN = {
    name.removeprefix("in_by_"): way
    for name, way in list(globals().items())
    if name.startswith("in_by_") and name != "in_by_a_file"
} | {
    f"a file {suffix or 'of Orbax'}": in_by_a_file(suffix)
    for suffix in (".msgpack", ".safetensors", "")
}
WAYS_FOR_NNX_ONLY = {
    "an_instance",
    "an_instance_and_variables",
    "a_method_of_an_instance",
    "what_a_layer_gave",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS_IN)
def test_arrays_that_the_user_passes_in_stay_the_users(way, kind, tmp_path):
    if way in WAYS_FOR_NNX_ONLY and kind == "linen":
        pytest.skip("a Linen module holds no values")
    if way == "a file of Orbax":
        pytest.importorskip("orbax.checkpoint")
    check_owned_by_user(*WAYS_IN[way](kind, tmp_path))


class Returning(nn.Module):
    """Returns its weights, and one from a compiled submodule."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", nn.initializers.ones, (8, 4))
        compiled = nn.jit(Part)(name="part")()
        return {"x": inputs @ kernel, "kernel": kernel, "again": kernel, "compiled": compiled}


class Part(nn.Module):
    @nn.compact
    def __call__(self):
        return self.param("bias", nn.initializers.ones, (4,))


def test_a_weight_that_a_call_returns_belongs_to_the_user():
    layer = FlaxLayer(Returning())
    outputs = layer(X)
    assert not overlaps(outputs, held(layer))
    layer.flax_variables = {"params": {"kernel": np.zeros((8, 4))}}
    np.testing.assert_array_equal(outputs["kernel"], np.ones((8, 4)))


# Ways out -----------------------------------------------------------------------------------------


def out_by_flax_variables(model, _):
    return model.layers[-1].flax_variables


def out_by_to_flax(model, _):
    flax = model.layers[-1].to_flax()
    return nnx.state(flax) if isinstance(flax, nnx.Module) else flax[1]


def out_by_sown(model, _):
    model.layers[-1](X)
    sown = model.layers[-1].sown
    (kernel,) = sown["intermediates"]["kernel"]
    name = "Dense_0" if isinstance(model.layers[-1].module, Linen) else "hidden"
    np.testing.assert_array_equal(
        kernel, model.layers[-1].variables_by_path[f"params/{name}/kernel"].value
    )
    return sown


def out_by_state_that_follows(model, _):
    layer = model.layers[-1]
    layer(X)
    return layer.flax_variables


def out_by_a_callback(model, _):
    taken = []
    take = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: taken.append(model.layers[-1].flax_variables)
    )
    train(model, [take])
    return taken


def out_by_a_file(model, folder):
    kerasflax.write_variables(model, folder / "w.safetensors")
    return kerasflax.read_variables(folder / "w.safetensors", like=model)


def out_by_parameters(model, _):
    kerasflax.parameters(model, stats=True)
    return model.layers[-1].flax_variables


def out_by_freezing(model, _):
    with pytest.warns(UserWarning, match="Compile it again"):
        kerasflax.freeze(model, "**/bias")
    with pytest.warns(UserWarning, match="Compile it again"):
        kerasflax.unfreeze(model, "**/bias")
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model.layers[-1].flax_variables


def out_by_export(model, folder):
    pytest.importorskip("flatbuffers")
    if DISTRIBUTION:
        # Only computations on one device can be exported.
        return model.layers[-1].flax_variables
    kerasflax.export_model(model, folder / "m.stablehlo")
    return [kerasflax.import_model(folder / "m.stablehlo")(X), model.layers[-1].flax_variables]


WAYS_OUT = {
    name.removeprefix("out_by_"): way
    for name, way in list(globals().items())
    if name.startswith("out_by_")
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_the_user_takes_out_belong_to_the_user(kind, tmp_path):
    model = model_of(FlaxLayer(MODULES[kind](), seed=1))
    train(model)
    taken = {name: way(model, tmp_path) for name, way in WAYS_OUT.items()}
    for name, tree in taken.items():
        assert spans(tree), name
        assert not overlaps(tree, held(model.layers[-1])), name
    check_owned_by_user(taken, model)


# Eight devices ------------------------------------------------------------------------------------

FILES = ("w.msgpack", "w.safetensors")


def test_this_file_uses_every_public_name_that_takes_or_returns_arrays():
    source = pathlib.Path(__file__).read_text()
    names = {name for name in kerasflax.__all__ if not name.endswith("Error")} - {
        "Report",
        "distribute",
    }
    assert {name for name in names if name not in source} == set()


def results(kind, folder):
    """Train a model: its losses, predictions and variables. Files hold its first variables."""
    model = model_of(FlaxLayer(MODULES[kind](), variables=user_arrays(kind), seed=5))
    for name in FILES:
        kerasflax.write_variables(model.layers[-1], folder / f"{kind}-{name}")
    losses = train(model)
    model.save(folder / f"{kind}.keras")
    loaded = keras.saving.load_model(folder / f"{kind}.keras")
    values = jax.tree.map(
        lambda leaf: np.asarray(key_data(leaf)).tolist(), model.layers[-1].flax_variables
    )
    return {
        "losses": losses,
        "values": values,
        "predicted": model.predict(X, batch_size=8, verbose=0).tolist(),
        "loaded": [np.asarray(value).tolist() for value in held(loaded.layers[-1])],
    }


@pytest.mark.parametrize("kind", MODULES)
def test_arrays_taken_out_have_the_sharding_of_the_variables(kind):
    layer = model_of(FlaxLayer(MODULES[kind](), variables=user_variables(kind))).layers[-1]
    name = "Dense_0" if kind == "linen" else "hidden"
    kernel = layer.flax_variables["params"][name]["kernel"]
    assert len(kernel.sharding.device_set) == (8 if DISTRIBUTION else 1)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {
        (8, 2) if DISTRIBUTION == "model" else (8, 8)
    }
    layer.flax_variables = jax.tree.map(np.asarray, initial(kind))
    assert layer.variables_by_path[f"params/{name}/kernel"].value.sharding == kernel.sharding


@pytest.mark.skipif(not DISTRIBUTION, reason="the last test runs this in a new process")
@pytest.mark.parametrize("kind", MODULES)
def test_results_on_eight_devices_are_written_to_files(kind):
    folder = pathlib.Path(os.environ["KERASFLAX_TEST_RESULTS"])
    assert len(jax.devices()) == 8
    (folder / f"{kind}.json").write_text(json.dumps(results(kind, folder)))


# Arrays in other places ---------------------------------------------------------------------------


def on_another_device(array):
    return jax.device_put(array, jax.devices()[5])


def on_another_mesh(array):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[4:]), ("other",))
    spec = (
        jax.sharding.PartitionSpec("other")
        if array.ndim and array.shape[0] % 4 == 0
        else jax.sharding.PartitionSpec()
    )
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))


def in_the_hosts_memory(array):
    device = jax.devices()[0]
    return jax.device_put(
        array, jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
    )


@pytest.mark.skipif("jax.device_count() < 8", reason="the last tests run this on eight devices")
@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("elsewhere", [on_another_device, on_another_mesh, in_the_hosts_memory])
def test_arrays_in_other_places_are_moved_to_where_keras_keeps_variables(elsewhere, assigned):
    expected = held(model_of(FlaxLayer(Linen())).layers[-1])
    variables = jax.tree.map(elsewhere, user_variables("linen"))
    model = model_of(FlaxLayer(Linen(), variables=None if assigned else variables))
    if assigned:
        model.layers[-1].flax_variables = variables
    for value, like in zip(held(model.layers[-1]), expected, strict=True):
        assert value.sharding.is_equivalent_to(like.sharding, value.ndim), (
            value.sharding,
            like.sharding,
        )
    assert_equal(model.layers[-1].flax_variables, numbers(variables))
    check_owned_by_user(variables, model)


@pytest.mark.skipif("jax.device_count() < 8", reason="the last tests run this on eight devices")
@pytest.mark.parametrize("elsewhere", [on_another_device, on_another_mesh])
def test_an_instance_in_another_place_is_moved_to_where_keras_keeps_variables(elsewhere):
    module = instance()
    nnx.update(module, jax.tree.map(elsewhere, nnx.state(module)))
    check_owned_by_user(nnx.state(module), model_of(FlaxLayer(module)))


def test_deleted_arrays_are_an_error_that_names_their_paths():
    variables, layer = user_variables("linen"), model_of(FlaxLayer(Linen())).layers[-1]
    variables["params"]["Dense_1"]["kernel"].delete()
    module = instance()
    module.out.kernel.get_value().delete()
    with pytest.raises(
        kerasflax.VariablesError, match="params/Dense_1/kernel: the array has been deleted"
    ):
        layer.flax_variables = variables
    with pytest.raises(
        kerasflax.VariablesError, match="params/Dense_1/kernel: the array has been deleted"
    ):
        model_of(FlaxLayer(Linen(), variables=variables))
    with pytest.raises(
        kerasflax.VariablesError, match="params/out/kernel: the array has been deleted"
    ):
        model_of(FlaxLayer(module))


def test_an_array_that_cannot_be_moved_is_an_error_that_names_its_path(monkeypatch):
    # JAX's message for an array on the devices of another process.
    def device_put(*args, **kwargs):
        raise ValueError(
            "device_put's second argument must represent addressable devices\nand more"
        )

    layer = model_of(FlaxLayer(Linen())).layers[-1]
    before = numbers(held(layer))
    monkeypatch.setattr(jax, "device_put", device_put)
    with pytest.raises(
        kerasflax.VariablesError,
        match=r"params/Dense_1/bias: cannot be moved from .* addressable dev",
    ):
        layer.flax_variables = {"params": {"Dense_1": {"bias": jnp.ones(4)}}}
    monkeypatch.undo()
    assert_equal(held(layer), before)


def on_eight_devices(folder, *arguments, distribution=None):
    """Run tests of this file in a new process that has eight devices."""
    variables = {"KERASFLAX_TEST_RESULTS": str(folder), **cpu_devices(8)}
    if distribution:
        variables["KERASFLAX_TEST_DISTRIBUTION"] = distribution
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    run = run_python("-m", "pytest", *options, __file__, *arguments, env=environment(**variables))
    assert run.returncode == 0, run.stdout


@pytest.mark.skipif("jax.device_count() >= 8", reason="this test starts such a process")
def test_arrays_in_other_places_are_moved_without_a_distribution_too(tmp_path):
    on_eight_devices(tmp_path, "-k", "in_other_places_are_moved_to or an_instance_in")


@pytest.mark.skipif("jax.device_count() >= 8", reason="this test starts such a process")
@pytest.mark.parametrize("distribution_name", ["data", "model"])
def test_eight_devices_give_the_same_results_as_one(distribution_name, tmp_path):
    on_eight_devices(tmp_path, distribution=distribution_name)
    for kind in MODULES:
        own = tmp_path / "own"
        own.mkdir(exist_ok=True)
        expected, found = results(kind, own), json.loads((tmp_path / f"{kind}.json").read_text())
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
        np.testing.assert_allclose(found["predicted"], expected["predicted"], rtol=1e-4, atol=1e-5)
        for value, number in zip(
            jax.tree.leaves(found["values"]), jax.tree.leaves(expected["values"]), strict=True
        ):
            np.testing.assert_allclose(value, number, rtol=1e-4, atol=1e-5)
        for value, number in zip(found["loaded"], expected["loaded"], strict=True):
            np.testing.assert_allclose(value, number, rtol=1e-4, atol=1e-5)
        for name in FILES:
            assert (tmp_path / f"{kind}-{name}").read_bytes() == (
                own / f"{kind}-{name}"
            ).read_bytes()
