"""Constructor calls of NNX modules, and saved models that describe them."""

import collections
import functools
import json
import typing

import flax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import floats
from conformance_nnx import Adapted, rngs
from flax import nnx
from modules_nnx import ConvNet, Forgetful
from support import run_code
from test_nnx import IMAGES, LABELS, assert_equal, model_of

import kerasflax
from kerasflax import ConfigError, FlaxLayer, LazyModule
from kerasflax.adapters._constructor import find_constructor_call
from kerasflax.saving._from_json import from_config
from kerasflax.saving._to_json import to_config


class Own(nnx.Module):
    """Takes submodules and keeps them."""

    def __init__(self, part, *, sizes=(1, 2), scale=None, rngs):
        self.part, self.sizes, self.scale = part, sizes, scale
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.part(x))


KNOWN = {
    "Linear": lambda: nnx.Linear(3, 4, use_bias=False, param_dtype=jnp.bfloat16, rngs=rngs()),
    "Conv": lambda: nnx.Conv(3, 4, (3, 3), strides=2, padding="VALID", rngs=rngs()),
    "Embed": lambda: nnx.Embed(5, 3, rngs=rngs()),
    "BatchNorm": lambda: nnx.BatchNorm(3, momentum=0.5, rngs=rngs()),
    "Dropout with streams": lambda: nnx.Dropout(0.3, rngs=rngs()),
    "Dropout without": lambda: nnx.Dropout(0.3),
    "Sequential": lambda: nnx.Sequential(
        nnx.Linear(3, 4, rngs=rngs()), nnx.relu, nnx.Dropout(0.5, rngs=rngs())
    ),
    "RNN": lambda: nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs())),
    "of a user": lambda: ConvNet(4, 0.25, activation=nnx.gelu, rngs=rngs()),
    "of parts": lambda: Own(nnx.Linear(3, 4, rngs=rngs()), sizes=[3, (4,)], scale=2.5, rngs=rngs()),
}


def streams(path):
    return path[-1] in ("key", "count")


@pytest.mark.parametrize("name", KNOWN)
def test_the_constructor_call_of_a_module_is_found_and_described(name):
    module = KNOWN[name]()
    config = json.loads(json.dumps(to_config(module, "module")))
    again = from_config(config, "module").make(nnx.Rngs(9))
    spec = [
        (path, type(v), v.get_value().shape, v.get_value().dtype)
        for path, v in nnx.to_flat_state(nnx.state(module))
    ]
    assert spec == [
        (path, type(v), v.get_value().shape, v.get_value().dtype)
        for path, v in nnx.to_flat_state(nnx.state(again))
    ]
    assert to_config(again, "module") == config


def test_the_description_has_only_arguments_that_are_not_the_default():
    assert to_config(nnx.Linear(3, 4, use_bias=False, rngs=rngs()), "module") == {
        "constructor": "flax.nnx:Linear",
        "arguments": [],
        "keywords": {"in_features": 3, "out_features": 4, "use_bias": False},
    }
    assert to_config(LazyModule(nnx.Linear, 3, out_features=4), "module") == {
        "constructor": "flax.nnx:Linear",
        "arguments": [3],
        "keywords": {"out_features": 4},
    }


@pytest.mark.parametrize("change", ["part", "field", "forgotten", "tied"])
def test_no_constructor_call_is_found_for_a_module_that_was_changed(change):
    module = ConvNet(4, rngs=rngs())
    if change == "part":
        module.head = nnx.Linear(4, 7, rngs=rngs())
    elif change == "field":
        module.norm.momentum = 0.3
    elif change == "tied":
        module.again = module.conv
    else:
        module = Forgetful(4, rngs=rngs())
    assert find_constructor_call(module) is None


@pytest.mark.parametrize(
    "module", [lambda: ConvNet(4, rngs=rngs()), lambda: LazyModule(ConvNet, 4)]
)
def test_a_loaded_model_trains_like_the_model_that_was_saved(module, tmp_path):
    layer = FlaxLayer(module(), seed=3)
    model = model_of(layer, (6, 6, 1))
    kerasflax.freeze(layer, "params/conv/kernel")
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_equal(loaded.layers[-1].flax_variables, layer.flax_variables)
    assert loaded.layers[-1].frozen == layer.frozen == ["params/conv/kernel"]
    np.testing.assert_array_equal(
        loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0)
    )
    model.reset_metrics()
    assert [loaded.train_on_batch(IMAGES, LABELS) for _ in range(2)] == [
        model.train_on_batch(IMAGES, LABELS) for _ in range(2)
    ]
    assert_equal(loaded.layers[-1].flax_variables, layer.flax_variables)
    clone = keras.models.clone_model(model)
    before = np.asarray(layer.flax_variables["params"]["head"]["kernel"])
    assert not np.array_equal(clone.layers[-1].flax_variables["params"]["head"]["kernel"], before)


def test_saving_an_unknown_constructor_call_warns_what_loading_needs(tmp_path):
    model = model_of(FlaxLayer(Forgetful(4, rngs=rngs())), (3,))
    with pytest.warns(
        UserWarning,
        match="arguments with which the Forgetful was created are unknown.*custom_objects",
    ):
        model.save(tmp_path / "m.keras")
    with pytest.raises(ConfigError, match=r"custom_objects=\{'Forgetful': make_forgetful\}"):
        keras.models.load_model(tmp_path / "m.keras")
    loaded = keras.models.load_model(
        tmp_path / "m.keras", custom_objects={"Forgetful": lambda rngs: Forgetful(4, rngs=rngs)}
    )
    np.testing.assert_array_equal(
        loaded.predict(floats(2, 3), verbose=0), model.predict(floats(2, 3), verbose=0)
    )
    changed = model_of(FlaxLayer(Adapted(rngs())), (2,))
    changed.save(tmp_path / "a.keras")
    keras.models.load_model(tmp_path / "a.keras")


class Scaled(nnx.Module):
    """Keeps something else under the name of an argument. All but `rngs` have defaults."""

    def __init__(self, units=4, *, scale=2.0, rngs):
        self.linear, self.half = nnx.Linear(3, units, rngs=rngs), scale / 2
        self.units = f"{units} units"

    def __call__(self, x):
        return self.linear(x) * self.half


CUSTOM = {
    "the class": Scaled,
    "a partial of the class": functools.partial(Scaled, 4, scale=2.0),
    "a function": lambda rngs: Scaled(rngs=rngs),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_objects_may_hold_the_class_or_a_factory(name, tmp_path):
    model = model_of(FlaxLayer(Scaled(rngs=rngs())), (3,))
    signature = r"`make_scaled\(rngs\)` that returns `Scaled\(units, \*, scale, rngs\)`"
    with pytest.warns(UserWarning, match=signature):
        model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", custom_objects={"Scaled": CUSTOM[name]})
    np.testing.assert_array_equal(
        loaded.predict(floats(2, 3), verbose=0), model.predict(floats(2, 3), verbose=0)
    )


def test_a_custom_object_that_cannot_create_the_module_is_refused_with_the_reason():
    with pytest.warns(UserWarning, match=r"make_forgetful\(rngs\)"):
        node = to_config(Forgetful(4, rngs=rngs()), "module")
    for given, problem in (
        (Forgetful, "whose arguments are not in the file: units"),
        (functools.partial(nnx.Linear, 3), "not in the file: out_features"),
        (lambda: None, "is not a function of `rngs`"),
        (3, "is not a function of `rngs`"),
    ):
        with (
            keras.saving.custom_object_scope({"Forgetful": given}),
            pytest.raises(ConfigError, match=problem) as caught,
        ):
            from_config(node, "module")
        assert "custom_objects={'Forgetful': make_forgetful}" in caught.value.advice


@keras.saving.register_keras_serializable(package="tests")
def not_a_factory(path=None):
    raise AssertionError("A file must not call it.")


@keras.saving.register_keras_serializable(package="tests")
def make_linear(units, rngs):
    return nnx.Linear(3, units, rngs=rngs)


def test_a_factory_is_saved_by_its_registered_name_or_else_as_unknown(tmp_path):
    model = model_of(FlaxLayer(LazyModule(make_linear, 5)), (3,))
    assert model.layers[-1].get_config()["module"] == {
        "constructor": {"registered": "tests>make_linear"},
        "arguments": [5],
        "keywords": {},
    }
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        loaded.predict(floats(2, 3), verbose=0), model.predict(floats(2, 3), verbose=0)
    )
    with pytest.warns(UserWarning, match="the Linear was created are unknown"):
        assert to_config(LazyModule(lambda rngs: nnx.Linear(3, 4, rngs=rngs)), "module") == {
            "custom": "flax.nnx:Linear"
        }


@pytest.mark.parametrize(
    "node",
    [
        {"constructor": "os:system", "arguments": ["true"]},
        {"constructor": "subprocess:Popen", "arguments": [["true"]]},
        {"constructor": "keras.layers:Lambda", "arguments": []},
        {"constructor": "flax.linen:Dense:x"},
        {"constructor": {"function": "os:system"}},
        {"constructor": {"session": "system"}},
        {"constructor": {"registered": "tests>not_a_factory"}, "arguments": ["file"]},
        {"custom": "tests:tests>not_a_factory"},
        {"constructor": {"registered": "builtins>eval"}},
        {"constructor": 3},
        {"constructor": "flax.nnx:Linear", "arguments": {"in": 3}},
        {"constructor": "flax.nnx:Linear", "keywords": [3]},
        {"constructor": "flax.nnx:Linear", "keywords": {"rngs": 3}},
        {"constructor": "flax.nnx:Linear", "code": "x"},
        {"custom": 3},
        {"custom": "os:system"},
    ],
)
def test_a_description_with_foreign_code_or_wrong_parts_is_an_error(node):
    with pytest.raises(kerasflax.KerasFlaxError):
        from_config(node, "module")


def test_a_description_with_arguments_that_the_constructor_refuses_is_an_error():
    config = FlaxLayer(nnx.Linear(3, 4, rngs=rngs())).get_config()
    config["module"]["keywords"]["in_features"] = "three"
    with pytest.raises(ConfigError, match=r"cannot be created as described: .*three"):
        FlaxLayer.from_config(config)


def test_a_new_process_finds_the_class_in_the_script(tmp_path):
    define = """
        class Net(nnx.Module):
            def __init__(self, units, rngs):
                self.units = units
                self.linear = nnx.Linear(4, units, rngs=rngs)
                self.dropout = nnx.Dropout(0.5, rngs=rngs)
            def __call__(self, x):
                return self.dropout(self.linear(x))
    """
    make = f"""
        import keras, numpy as np, kerasflax
        from flax import nnx
        {define}
        model = keras.Sequential([keras.Input((4,)), kerasflax.FlaxLayer(Net(2, nnx.Rngs(3)))])
        model.compile("sgd", "mse")
        model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
        model.save({str(tmp_path / "m.keras")!r})
        model.reset_metrics()
        print(model.train_on_batch(np.ones((2, 4)), np.ones((2, 2))))
        print(model.predict(np.ones((1, 4)), verbose=0).tolist())
    """
    load = f"""
        import keras, numpy as np, kerasflax
        from flax import nnx
        {define}
        model = keras.models.load_model({str(tmp_path / "m.keras")!r})
        print(model.train_on_batch(np.ones((2, 4)), np.ones((2, 2))))
        print(model.predict(np.ones((1, 4)), verbose=0).tolist())
    """

    expected = run_code(make)
    assert run_code(load) == expected


@pytest.mark.parametrize("suffix", [".msgpack", ".safetensors", ".weights.h5"])
def test_values_survive_writing_to_a_file_and_reading_it(tmp_path, suffix):
    layer = FlaxLayer(ConvNet(4, rngs=rngs()))
    model = model_of(layer, (6, 6, 1))
    other = FlaxLayer(LazyModule(ConvNet, 4), seed=5)
    other_model = model_of(other, (6, 6, 1))
    path = tmp_path / f"v{suffix}"
    if suffix == ".weights.h5":
        model.save_weights(path)
        other_model.load_weights(path)
    else:
        kerasflax.write_variables(layer, path)
        other.flax_variables = kerasflax.read_variables(path)
        direct = FlaxLayer(LazyModule(ConvNet, 4), variables=kerasflax.read_variables(path))
        np.testing.assert_array_equal(direct(IMAGES), layer(IMAGES))
    assert_equal(other.flax_variables, layer.flax_variables)
    assert jax.tree.structure(other.flax_variables) == jax.tree.structure(layer.flax_variables)


def test_whole_floats_are_converted_for_modules_that_a_factory_creates():
    def make(rngs):
        return nnx.Sequential(
            nnx.Conv(1.0, 2, kernel_size=[3.0, 3.0], rngs=rngs), nnx.Linear(2.0, 3.0, rngs=rngs)
        )

    layer = FlaxLayer(LazyModule(make))
    assert layer(np.ones((2, 5, 5, 1))).shape == (2, 5, 5, 3)
    with pytest.raises(
        kerasflax.FieldError, match=r"`in_features` must be a whole number, got 2.5"
    ):
        FlaxLayer(LazyModule(lambda rngs: nnx.Linear(2.5, 3, rngs=rngs)))
    # Elsewhere, Flax is unchanged.
    with pytest.raises(TypeError):
        nnx.Linear(2.0, 3, rngs=rngs())


def test_a_factory_may_return_a_lazy_module():
    module = LazyModule(lambda rngs: LazyModule(nnx.Linear, 3, 4)).make(nnx.Rngs(1))
    np.testing.assert_array_equal(
        module.kernel[...], nnx.Linear(3, 4, rngs=nnx.Rngs(1)).kernel[...]
    )


def test_the_modules_code_runs_once_at_build_and_once_for_each_mode():
    runs = []

    class Counted(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)

        def __call__(self, x):
            runs.append(self.norm.use_running_average)
            return self.norm(self.linear(x))

    model = model_of(FlaxLayer(Counted(rngs())), (3,))
    assert runs == [True]
    model.compile("sgd", "mse")
    for _ in range(2):
        model.fit(floats(4, 3), floats(4, 2), verbose=0)
        model.predict(floats(4, 3), verbose=0)
        model.evaluate(floats(4, 3), floats(4, 2), verbose=0)
    assert sorted(runs[1:]) == [False, True]


def leaky(slope):
    return lambda x: jnp.where(x > 0, x, slope * x)


LEAKY = leaky(0.1)


class Leaky(nnx.Module):
    def __init__(self, activation=LEAKY, *, rngs):
        self.activation = activation
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.activation(self.linear(x))


def test_functions_with_the_same_code_but_other_captured_values_are_different_arguments():
    assert find_constructor_call(Leaky(leaky(0.1), rngs=rngs())).keywords == {}
    assert list(find_constructor_call(Leaky(leaky(0.3), rngs=rngs())).keywords) == ["activation"]


def test_a_factory_may_call_a_module_that_sows():
    class Sows(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            self.sow(nnx.Intermediate, "x", x)
            return self.linear(x)

    def make(rngs):
        module = Sows(rngs)
        module(jnp.ones((1, 3)))
        return module

    layer = FlaxLayer(LazyModule(make))
    layer(floats(4, 3))
    assert sorted(layer.flax_variables) == ["params"]
    np.testing.assert_array_equal(layer.sown["intermediates"]["x"][0], floats(4, 3))


class Pair(typing.NamedTuple):
    first: object
    second: object


def test_arguments_arrive_as_they_were_given():
    given = (
        flax.core.FrozenDict({"out": 2}),
        collections.OrderedDict(b=1, a=2),
        Pair(1, [2, 3]),
        [Pair(4, (5,)), {"x": flax.core.FrozenDict({"y": 6})}],
    )
    arrived = []

    class Net(nnx.Module):
        def __init__(self, *arguments, rngs):
            arrived.append(arguments)
            self.linear = nnx.Linear(3, arguments[0]["out"], rngs=rngs)

        def __call__(self, x):
            return self.linear(x)

    assert FlaxLayer(LazyModule(Net, *given))(floats(2, 3)).shape == (2, 2)
    for arguments in arrived:
        assert repr(arguments) == repr(given)


def test_lazy_modules_in_any_container_are_created():
    class Holder(nnx.Module):
        def __init__(self, parts, pair, *, rngs):
            assert type(parts) is flax.core.FrozenDict
            assert type(pair) is Pair
            self.inner, self.outer = parts["inner"], pair.second

        def __call__(self, x):
            return self.outer(self.inner(x))

    parts = flax.core.FrozenDict({"inner": LazyModule(nnx.Linear, 3, 4)})
    pair = Pair(0, LazyModule(nnx.Linear, 4, 2))
    layer = FlaxLayer(LazyModule(Holder, parts, pair), seed=1)
    outputs = layer(floats(2, 3))
    np.testing.assert_allclose(outputs, layer.to_flax()(floats(2, 3)), rtol=1e-6)
    assert sorted(layer.variables_by_path) == [
        "params/inner/bias",
        "params/inner/kernel",
        "params/outer/bias",
        "params/outer/kernel",
    ]
