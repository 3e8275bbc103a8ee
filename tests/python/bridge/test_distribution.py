"""Weights and activations over several devices.

Most tests need eight devices. They run in a new process, which the first test starts.
"""

import itertools
import warnings

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from eight_devices import MESH, MODULES, Linen, X, Y, axes_of, both, model_of, on_eight
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P
from support import cpu_devices, environment, run_python

import kerasflax
from kerasflax import FlaxLayer, LazyModule, distribute
from kerasflax.bridge import _distribution


@pytest.mark.skipif("jax.device_count() >= 8", reason="this test starts such a process")
def test_the_tests_of_this_file_pass_on_eight_devices():
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    run = run_python("-m", "pytest", *options, __file__, env=environment(**cpu_devices(8)))
    assert run.returncode == 0, run.stdout
    assert "no tests ran" not in run.stdout


@pytest.fixture(autouse=True)
def no_distribution():
    yield
    distribute(None)


@on_eight
@both
def test_metadata_decides_where_weights_live(kind):
    distribute(MESH)
    assert axes_of(model_of(kind)[1]) == {"params/named/kernel": (None, "model")}


@on_eight
@both
def test_rules_name_the_mesh_axis_of_a_logical_one(kind):
    distribute(MESH, rules={"mlp": "model"})
    assert axes_of(model_of(kind)[1]) == {
        "params/named/kernel": (None, "model"),
        "params/logical/kernel": (None, "model"),
    }
    with nn.logical_axis_rules((("embed", "model"),)):
        distribute(MESH)
        assert axes_of(model_of(kind)[1])["params/logical/kernel"] == ("model",)


@on_eight
@both
def test_a_layout_comes_before_metadata_and_its_last_match_counts(kind):
    distribute(MESH, {"**/kernel": ("model",), "**/last/kernel": (("batch", "model"),)})
    assert axes_of(model_of(kind)[1]) == {
        **{f"params/{name}/kernel": ("model",) for name in ("named", "logical", "elsewhere")},
        "params/last/kernel": (("batch", "model"),),
    }


@on_eight
def test_auto_splits_the_largest_dimension_that_the_model_axis_divides():
    distribute(MESH, auto=True)
    layer = FlaxLayer(nn.Sequential([nn.Dense(128), nn.Dense(126), nn.BatchNorm(True)]))
    keras.Sequential([keras.Input((128,)), layer])
    assert axes_of(layer) == {
        "params/layers_0/kernel": (None, "model"),
        "params/layers_1/kernel": ("model",),
    }


@on_eight
@both
def test_a_model_parallel_of_the_users_own_gets_the_names_too(kind):
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*last/kernel"] = (None, "model")
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts))
    assert axes_of(model_of(kind)[1]) == {
        "params/named/kernel": (None, "model"),
        "params/last/kernel": (None, "model"),
    }


@on_eight
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("linen", {"mesh": {"batch": 8}}),
        ("nnx", {"mesh": MESH}),
        ("linen", {"mesh": MESH, "rules": {"mlp": "model", "embed": None}}),
        ("nnx", {"mesh": MESH, "layout": {"**/kernel": ("model",)}}),
        (
            "linen",
            {
                "mesh": {"data": 4, "tensor": 2},
                "layout": {"**/logical/kernel": (None, ("data", "tensor"))},
            },
        ),
        ("nnx", {"mesh": MESH, "auto": True}),
    ],
    ids=["data", "metadata", "rules", "layout", "both axes", "auto"],
)
def test_eight_devices_compute_the_numbers_of_one(kind, arguments, monkeypatch):
    # The weights of this module are too small to be split otherwise.
    monkeypatch.setattr(_distribution, "SMALLEST_SPLIT", 1)
    found = []
    for setting in ({"mesh": None}, arguments):
        distribute(**setting)
        keras.utils.set_random_seed(3)
        model, layer = model_of(kind)
        losses = model.fit(X, Y, batch_size=16, epochs=5, shuffle=False, verbose=0).history["loss"]
        eager = layer(X[:6])
        found.append(
            (
                losses,
                model.predict(X, batch_size=8, verbose=0),
                np.asarray(eager),
                {path: np.asarray(v.value) for path, v in layer.variables_by_path.items()},
            )
        )
        slots = {slot.path: slot.value.sharding for slot in model.optimizer.variables}
        for weight in layer.trainable_variables:
            (slot,) = (s for path, s in slots.items() if weight.path.replace("/", "_") in path)
            assert slot.is_equivalent_to(weight.value.sharding, weight.value.ndim)
    one, eight = found
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), list(one), list(eight)
    )


@on_eight
@both
@pytest.mark.parametrize("size", [32, 8], ids=["one batch", "a last batch"])
def test_batches_that_the_devices_do_not_divide_give_the_numbers_of_one(kind, size):
    found = []
    data, options = (X[:13], Y[:13]), {"batch_size": size, "verbose": 0}
    for mesh in (None, {"batch": 8}):
        distribute(mesh)
        keras.utils.set_random_seed(3)
        model, _ = model_of(kind)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model.fit(*data, epochs=2, validation_data=data, **options)
            loss = model.evaluate(*data, **options)
            found.append((loss, model.predict(X[:13], **options)))
    assert {str(warning.message) for warning in warned} == {
        f"The axis 'batch' of size 8 does not divide a batch of {13 if size == 32 else 5}, and "
        "Keras splits all batches of an epoch alike: each device computes all of them. Make the "
        "size of each batch, also of the last one, a multiple of 8."
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@on_eight
def test_generators_are_distributed():
    distribute(MESH, {"**/kernel": (None, "model")})
    model, _ = model_of("linen")
    batches = ((X[:n], Y[:n]) for n in itertools.cycle((16, 8, 6)))
    model.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0)


@on_eight
@both
def test_a_model_without_an_input_shape_is_distributed_by_fit(kind):
    distribute(MESH, {"**/kernel": (None, "model")})
    layer = FlaxLayer(MODULES[kind](), name="net")
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    assert axes_of(layer) == axes_of(model_of(kind)[1])
    distribute(MESH, {"**/kernell": (None, "model")})
    model = keras.Sequential([FlaxLayer(MODULES[kind](), name="net")])
    model.compile("sgd", "mse")
    with pytest.raises(kerasflax.ArgumentError, match="kernell"):
        model.fit(X, Y, verbose=0)


@on_eight
def test_a_layout_without_axes_fits_any_variable():
    distribute(MESH, {"**": (None, None), "**/last/kernel": (None, "model")})
    model, layer = model_of("linen")
    model.fit(X, Y, verbose=0)
    assert axes_of(layer) == {"params/last/kernel": (None, "model")}


class Constrained(nn.Module):
    """Reports how its activation is split, by the lowered program."""

    @nn.compact
    def __call__(self, x):
        return nn.with_logical_constraint(nn.Dense(8)(x), ("rows", "mlp"))


class ConstrainedNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return jax.lax.with_sharding_constraint(self.linear(x), P(None, "model"))


@on_eight
@pytest.mark.parametrize(
    "module", [Constrained(), LazyModule(ConstrainedNnx)], ids=["linen", "nnx"]
)
def test_constraints_on_activations_take_effect(module):
    distribute(MESH, rules={"mlp": "model"})
    layer = FlaxLayer(module)
    layer.build((None, 8))
    outputs = layer(X)
    assert outputs.sharding.spec == P(None, "model")


@on_eight
@pytest.mark.parametrize("ended", [{"mesh": None}, {"mesh": MESH, "rules": {"rows": "batch"}}])
@pytest.mark.parametrize("is_of_flax", [False, True])
def test_a_layer_keeps_the_rules_of_its_build(ended, is_of_flax):
    rules = {"mlp": "model"}
    layer = FlaxLayer(Constrained())
    if is_of_flax:
        distribute(MESH)
        with nn.logical_axis_rules(tuple(rules.items())):
            layer.build((None, 8))
    else:
        distribute(MESH, rules=rules)
        layer.build((None, 8))
    distribute(**ended)
    assert layer(X).sharding.spec == P(None, "model")


@on_eight
@both
@pytest.mark.parametrize("is_given", [False, True])
def test_a_build_decides_once_where_a_variable_lives(kind, is_given, monkeypatch):
    variables = model_of(kind)[1].flax_variables if is_given else None
    asked = []

    def axes_of(self, path, *args, **kwargs):
        asked.append(path)
        return decided(self, path, *args, **kwargs)

    decided = _distribution.FlaxParallel.axes_of
    monkeypatch.setattr(_distribution.FlaxParallel, "axes_of", axes_of)
    distribute(MESH)
    layer = FlaxLayer(MODULES[kind](), variables=variables)
    layer.build((None, 8))
    paths = [variable.path for variable in layer.variables]
    assert sorted(asked) == sorted(paths)


@on_eight
@both
def test_the_table_of_weights_says_how_each_is_split_and_what_a_device_holds(kind):
    before = kerasflax.parameters(model_of(kind)[0])
    assert list(before)[-1] == "trainable"
    layout = {"**/last/kernel": (("batch", "model"),), "**/last/bias": ("model",)}
    distribute(MESH, layout)
    model, layer = model_of(kind)
    model.fit(X, Y, verbose=0)
    table = kerasflax.parameters(model, stats=True)
    assert list(table)[7:12] == ["trainable", "sharding", "devices", "bytes_per_device", "mean"]
    found = dict(zip(table["path"], table["sharding"], strict=True))
    assert {path: axes for path, axes in found.items() if axes} == {
        "net/params/named/kernel": (None, "model"),
        "net/params/last/kernel": (("batch", "model"), None),
        "net/params/last/bias": ("model",),
    }
    held = {
        f"net/{path}": {
            shard.device: shard.data.nbytes for shard in variable.value.addressable_shards
        }
        for path, variable in layer.variables_by_path.items()
    }
    for path, count, each in zip(
        table["path"], table["devices"], table["bytes_per_device"], strict=True
    ):
        assert set(held[path].values()) == {each}
        assert len(held[path]) == count == 8
    distribute(None)
    # The weights stay where they are.
    assert kerasflax.parameters(model)["sharding"] == table["sharding"]


@on_eight
def test_an_axis_of_size_one_splits_nothing_in_the_table():
    distribute({"batch": 8, "model": 1}, {"**/kernel": ("model", "batch")})
    layer = FlaxLayer(nn.Dense(8))
    layer.build((None, 8))
    assert kerasflax.parameters(layer)["sharding"] == [(), (None, "batch")]


def test_a_distribution_over_one_device_is_one_in_the_table():
    layer = FlaxLayer(nn.Dense(8))
    layer.build((None, 8))
    assert "devices" not in kerasflax.parameters(layer)
    distribute({"batch": 1})
    table = kerasflax.parameters(layer)
    assert table["devices"] == [1, 1]
    assert table["sharding"] == [(), ()]
    assert table["bytes_per_device"] == table["bytes"]


class Large(nn.Module):
    """Has weights that are split, large and whole for three reasons, and small."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.ones
        split = self.param("split", nn.with_partitioning(init, (None, "model")), (64, 128))
        typo = self.param("typo", nn.with_partitioning(init, (None, "modle")), (64, 256))
        plain = self.param("plain", init, (65, 65))
        self.param("small", init, (64, 63))
        self.variable("cache", "state", init, None, (64, 192))
        return x + split.sum() + typo.sum() + plain.sum()


@on_eight
def test_a_build_names_the_large_variables_that_every_device_holds():
    distribute(MESH)
    with pytest.warns(UserWarning, match="Each of the 8 devices holds") as warned:
        keras.Sequential([keras.Input((1,)), FlaxLayer(Large(), name="large")])
    assert [str(warning.message).splitlines() for warning in warned] == [
        [
            "Each of the 8 devices holds these variables of the layer 'large' whole, and each "
            "variable is more than 1% of the layer:",
            "  params/typo: (64, 256), 64.00 KB; the module's metadata names no axis of the mesh",
            "  cache/state: (64, 192), 48.00 KB",
            "  params/plain: (65, 65), 16.50 KB",
            'To split them, pass `auto=True` or `layout={"**/kernel": (None, "model")}`. To leave '
            'one whole without this warning, pass `layout={"**/params/typo": ()}`.',
        ]
    ]
    distribute(MESH, {"**/params/typo": (), "**/state": ("model",)}, auto=True)
    with pytest.warns(UserWarning, match="'model' of size 4 divides no dimension\n.*pass `layout"):
        FlaxLayer(Large()).build((None, 1))


@on_eight
def test_a_build_under_a_layout_map_names_what_the_map_does_not():
    mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*typo"] = (None, None)
    layouts[".*cache/state"] = (None, "model")
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts))
    with pytest.warns(UserWarning, match="whole") as warned:
        FlaxLayer(Large()).build((None, 1))
    lines = str(warned[0].message).splitlines()
    assert lines[1:] == [
        "  params/plain: (65, 65), 16.50 KB",
        "Add their paths to the layout map of the distribution.",
    ]


@on_eight
@pytest.mark.parametrize("mesh", [{"batch": 8}, {"batch": 8, "model": 1}, {"batch": 1}])
def test_data_parallelism_names_nothing(mesh):
    distribute(mesh)
    FlaxLayer(Large()).build((None, 1))


@on_eight
@both
def test_an_axis_that_does_not_divide_is_an_error_with_the_paths(kind):
    distribute({"batch": 1, "model": 8}, {"**/bias": ("model",)})
    with pytest.raises(
        kerasflax.ShapeError,
        match=r"params/last/bias: 'model' of size 8 does not divide 4 in \(4\), by `layout`",
    ):
        model_of(kind)
    distribute({"batch": 2, "model": 4}, {"**/bias": (None, "model")})
    with pytest.raises(kerasflax.ShapeError, match=r"bias: 2 axes for the shape \(8\)"):
        model_of(kind)


@on_eight
def test_a_pattern_that_fits_nothing_is_an_error_with_the_paths():
    distribute(MESH, {"**/kernell": (None, "model")})
    model, _ = model_of("linen")
    with pytest.raises(kerasflax.ArgumentError, match=r"(?s)'\*\*/kernell'.*net/params/.*/kernel"):
        model.fit(X, Y, verbose=0)


@on_eight
def test_weights_of_keras_layers_follow_layout_and_auto():
    distribute(MESH, {"**/bias": ("model",)}, auto=True)
    layer = keras.layers.Dense(128)
    layer.build((None, 64))
    assert layer.kernel.value.sharding.spec == P(None, "model")
    assert layer.bias.value.sharding.spec == P("model")


@on_eight
def test_a_layer_from_before_the_distribution_is_an_error():
    model, layer = model_of("linen")
    distribute(MESH)
    with pytest.raises(
        kerasflax.StateError, match=r"built without a distribution.*batch=2 x model"
    ):
        model.predict(X, verbose=0)
    distribute({"batch": 8})
    model, layer = model_of("linen")
    distribute(MESH)
    problem = (
        "The layer 'net' was built on the mesh batch=8, but the distribution now has the mesh "
        "batch=2 x model=4."
    )
    for call in (layer, model):
        with pytest.raises(kerasflax.StateError) as error:
            call(X)
        # Keras adds nothing.
        assert error.value.what == problem
        assert error.value.advice.startswith("Set the distribution first")
    # Keras 3.13 quotes the error in one of its own.
    with pytest.raises((kerasflax.StateError, RuntimeError), match=problem):
        model.fit(X, Y, verbose=0)
    distribute(None)
    assert layer(X).shape == (16, 4)


@on_eight
def test_values_that_a_user_gives_are_split_as_initial_ones_are():
    module, names = Linen(), ("params", "dropout")
    variables = module.init(dict.fromkeys(names, jax.random.key(0)), X)
    distribute(MESH)
    layer = model_of("linen", variables=variables)[1]
    assert axes_of(layer) == {"params/named/kernel": (None, "model")}
    distribute({"batch": 1, "model": 8}, {"**/last/kernel": (None, "model")})
    with pytest.raises(kerasflax.ShapeError, match="params/last/kernel"):
        model_of("linen", variables=variables)


class Counts(nn.Module):
    """A module whose state may be given in another shape."""

    @nn.compact
    def __call__(self, inputs):
        counts = self.variable("state", "counts", jnp.zeros, (6,))
        return nn.Dense(4)(inputs) + counts.value.sum()


@on_eight
def test_state_is_split_in_the_shape_in_which_it_is_given():
    distribute(MESH, {"**/state/counts": ("model",)})
    variables = Counts().init(jax.random.key(0), X)
    with pytest.raises(kerasflax.ShapeError, match="does not divide 6"):
        FlaxLayer(Counts())(X)
    variables["state"]["counts"] = jnp.ones(8)
    layer = FlaxLayer(Counts(), variables=variables)
    np.testing.assert_allclose(layer(X), Counts().apply(variables, X), rtol=1e-5)
    assert layer.variables_by_path["state/counts"].value.sharding.spec == P("model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([{}], "`mesh` must be the sizes"),
        ([[2, 4]], "`mesh` must be the sizes"),
        ([{"batch": 0}], "'batch' must be a whole number"),
        ([{"batch": True}], "'batch' must be a whole number"),
        ([{"batch": 1.5}], "'batch' must be a whole number"),
        ([{"batch": 999}], "The mesh has 999 devices, but there are"),
        ([{"batch": 1}, {"a": ("modle",)}], "`layout` for 'a' names the axis 'modle', but"),
        ([{"batch": 1}, {"a": ("batch", "batch")}], "uses the mesh's axis 'batch' twice"),
        ([{"batch": 1}, {"a": (1,)}], "must name a mesh axis or None"),
        ([{"batch": 1}, {"a": 1}], "must name a mesh axis or None for each dimension, got int 1"),
        ([{"batch": 1}, {"a": ((),)}], "must name a mesh axis or None for each dimension"),
        ([{"batch": 1}, {1: ("batch",)}], "`layout` must be a dict"),
        ([{"batch": 1}, {"": ("batch",)}], "`layout` must be a dict"),
        ([{"batch": 1}, [("a", "batch")]], "`layout` must be a dict"),
        ([{"": 1}], "`mesh` must be the sizes"),
        ([1], "`mesh` must be the sizes"),
        ([{"batch": "1"}], "'batch' must be a whole number"),
        ([{"batch": -1}], "'batch' must be a whole number"),
        ([{"batch": None}], "'batch' must be a whole number"),
        ([{"batch": float("nan")}], "'batch' must be a whole number"),
        ([None, {"a": ("batch",)}], "`mesh` is None"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(kerasflax.ArgumentError, match=message):
        distribute(*arguments)
    assert keras.distribution.distribution() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"auto": "yes"}, "`auto` must be True or False, got str 'yes'"),
        ({"auto": None}, "`auto` must be True or False, got None"),
        ({"rules": True}, "`rules` must give a mesh axis for each logical axis, got bool True"),
        ({"rules": "ab"}, "`rules` must give a mesh axis for each"),
        ({"rules": {"mlp": 1}}, "`rules` for 'mlp' must name a mesh axis or None, got int 1"),
        ({"devices": "cpu:0"}, "`devices` must be a list of devices, got str 'cpu:0'"),
        ({"devices": 1}, "`devices` must be a list of devices, got int 1"),
        ({"devices": [0]}, "`devices` must contain names of devices, got int 0"),
        ({"devices": []}, "The mesh has 1 devices, but `devices` has 0[.]"),
        ({"devices": ["cpu:0", "cpu:0"]}, "`devices` has cpu:0 twice"),
        ({"devices": ["cpu:99"]}, "There is no device 'cpu:99'[.] The devices are: "),
        ({"devices": ["abacus:0"]}, "There is no device 'abacus:0'[.] The devices are: "),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(kerasflax.ArgumentError, match=message):
        distribute({"batch": 1}, **arguments)
    assert keras.distribution.distribution() is None


def test_devices_are_those_of_jax_or_their_names():
    first = jax.devices()[0]
    for devices in ([first], [f"{first.platform}:{first.id}"], np.array([first])):
        distribution = distribute({"batch": 1}, devices=devices)
        assert distribution.device_mesh.backend_mesh.devices.tolist() == [first]


def test_auto_needs_a_second_axis_and_rules_name_axes_of_the_mesh():
    with pytest.raises(kerasflax.ArgumentError, match="the mesh has 'batch' alone"):
        distribute({"batch": 1}, auto=True)
    with pytest.raises(kerasflax.ArgumentError, match="`rules` for 'mlp' names the axis 'model'"):
        distribute({"batch": 1}, rules={"mlp": "model"})
    with pytest.raises(kerasflax.ArgumentError, match="must give a mesh axis for each"):
        distribute({"batch": 1}, rules=["mlp"])


def test_the_mesh_none_ends_the_distribution():
    assert distribute({"batch": 1.0}) is keras.distribution.distribution()
    assert distribute(None) is None
    assert keras.distribution.distribution() is None
