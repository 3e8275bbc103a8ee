"""Functions of the user in saved models, as methods and in fields."""

import functools
import json
import os
import sys

import jax
import keras
import named
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from samples import twice
from support import run_code

from kerasflax import ConfigError, FlaxLayer, LazyModule
from kerasflax.saving._from_json import from_config
from kerasflax.saving._to_json import to_config

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


def config_of(layer):
    return json.loads(json.dumps(layer.get_config()))


def linen():
    return named.Net()


def of_nnx():
    return named.NnxNet(3, rngs=nnx.Rngs(0))


# A static method of the other class is found as well: the classes are in one Python module.
METHODS = {
    "a function": named.encode,
    "a partial": functools.partial(named.encode, by=3.0),
    "a static method": named.Net.outside,
    "registered": twice,
}


@pytest.mark.parametrize("make", [linen, of_nnx])
@pytest.mark.parametrize("name", METHODS)
def test_a_function_beside_the_modules_class_is_found_again(name, make):
    layer = FlaxLayer(nn.Dense(4) if name == "registered" else make(), METHODS[name], seed=1)
    layer = FlaxLayer(nn.Dense(4) if name == "registered" else make(), METHODS[name], seed=1)
    outputs = layer(X)
    again = FlaxLayer.from_config(config_of(layer))
    again(X)
    again.flax_variables = layer.flax_variables
    np.testing.assert_array_equal(again(X), outputs)
    assert config_of(again) == config_of(layer)


@pytest.mark.parametrize("make", [linen, of_nnx])
def test_a_partial_of_the_modules_own_method_is_saved_by_the_methods_name(make):
    module = make()
    layer = FlaxLayer(module, functools.partial(type(module).scaled, by=4.0), seed=1)
    assert config_of(layer)["method"] == {
        "partial": "scaled",
        "arguments": [],
        "keywords": {"by": 4.0},
    }
    outputs = layer(X)
    again = FlaxLayer.from_config(config_of(layer))
    again(X)
    again.flax_variables = layer.flax_variables
    np.testing.assert_array_equal(again(X), outputs)
    for name in ("__init__", "apply", "nothing"):
        with pytest.raises(ConfigError, match="no method"):
            FlaxLayer.from_config(config_of(layer) | {"method": {"partial": name}})


FIELDS = {
    "a function": named.normalise,
    "a partial": functools.partial(named.normalise, by=4.0),
    "a compiled function": named.compiled,
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_holds_a_users_function(name):
    module = named.Net(function=FIELDS[name])
    again = from_config(json.loads(json.dumps(to_config(module, "net"))), "net")
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        again.init_with_output(key, X)[0], module.init_with_output(key, X)[0]
    )
    nnx_module = LazyModule(named.NnxNet, 3, function=FIELDS[name])
    again = from_config(json.loads(json.dumps(to_config(nnx_module, "net"))), "net")
    np.testing.assert_array_equal(again.make(nnx.Rngs(1))(X), nnx_module.make(nnx.Rngs(1))(X))
    sequence = nn.Sequential([FIELDS[name], named.Net()])
    again = from_config(json.loads(json.dumps(to_config(sequence, "net"))), "net")
    np.testing.assert_array_equal(again.layers[0](X), FIELDS[name](X))


def test_a_function_that_is_a_fields_default_stays_the_classs_own():
    class Defaults(nn.Module):
        function: object = functools.partial(twice, None)
        other: object = run_code

    node = to_config(Defaults(), "net")
    assert "other" not in node["fields"]
    assert from_config(node, "net").other is run_code


def test_a_factory_is_found_beside_the_class_of_its_module():
    layer = FlaxLayer(LazyModule(named.make_nnx, 3), seed=1)
    config = config_of(layer)
    assert config["module"]["constructor"] == {"function": "named:make_nnx"}
    assert config["module"]["class"] == "named:NnxNet"
    np.testing.assert_array_equal(FlaxLayer.from_config(config)(X), layer(X))
    partial = FlaxLayer(LazyModule(functools.partial(named.NnxNet, 3)), seed=1)
    assert config_of(partial)["module"]["constructor"] == "named:NnxNet"
    np.testing.assert_array_equal(FlaxLayer.from_config(config_of(partial))(X), partial(X))


def test_a_nested_function_is_found_in_custom_objects_and_in_the_registry():
    layer = FlaxLayer(nn.Dense(3), named.nested(), seed=1)
    config = config_of(layer)
    with pytest.raises(ConfigError, match=r"custom_objects=\{'inner': inner\}"):
        FlaxLayer.from_config(config)
    with keras.saving.custom_object_scope({"inner": named.nested()}):
        again = FlaxLayer.from_config(config)
    np.testing.assert_array_equal(again(X), layer(X))
    keras.saving.register_keras_serializable("tests", "any_name")(named.nested())
    np.testing.assert_array_equal(FlaxLayer.from_config(config)(X), layer(X))


UNNAMED = {
    "a lambda": (lambda module, inputs: module(inputs), "it is a lambda"),
    "a closure": (named.closure(3), "uses `by` of the function around it"),
    "a partial of a closure": (functools.partial(named.closure(3)), "uses `by`"),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_a_function_without_a_name_of_its_own_cannot_be_saved(name):
    function, problem = UNNAMED[name]
    with pytest.raises(ConfigError, match=problem) as caught:
        FlaxLayer(nn.Dense(3), function).get_config()
    assert "`def`" in caught.value.advice
    assert "functools.partial" in caught.value.advice
    with pytest.raises(ConfigError, match=rf"Net\.function.*{problem}"):
        FlaxLayer(named.Net(function=function)).get_config()


def test_a_function_whose_name_stands_for_another_object_cannot_be_saved(monkeypatch):
    layer = FlaxLayer(named.Net(), named.encode)
    monkeypatch.setattr(named, "encode", named.normalise)
    with pytest.raises(ConfigError, match="encode stands for another object in named"):
        layer.get_config()


# Names that a file may not use.
FOREIGN = {
    "an imported function": "named:imported_function",
    "an imported module": "named:not_a_function",
    "a class": "named:Net",
    "a function of the standard library": "os:makedirs",
    "a function that Flax has imported": "flax.linen.module:dataclass_transform",
    "a function of another module": "support:run_code",
    "a function of kerasflax": "kerasflax._models:save_model",
    "a private part": "named:encode.__globals__",
    "no name": "named:",
    "no module": "encode",
    "a module that is not imported": "antigravity:fly",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_may_not_name_a_function_from_elsewhere(name):
    before = set(sys.modules)
    node = {"function": FOREIGN[name]}
    config = config_of(FlaxLayer(named.Net()))
    for change in (
        {"method": node},
        {"method": {"partial": node, "keywords": {"path": "x"}}},
        {"module": {"object": "named:Net", "fields": {"function": node}}},
        {"module": {"constructor": node, "class": "named:NnxNet"}},
    ):
        with pytest.raises(ConfigError):
            FlaxLayer.from_config(config | change)
    assert set(sys.modules) == before


def test_a_function_is_refused_if_the_file_names_no_class_of_its_module():
    config = config_of(FlaxLayer(nn.Dense(3))) | {"method": {"function": "named:encode"}}
    with pytest.raises(ConfigError, match="defines no module class that the file names") as caught:
        FlaxLayer.from_config(config)
    assert "custom_objects={'encode': encode}" in caught.value.advice
    with keras.saving.custom_object_scope({"encode": named.encode}):
        assert FlaxLayer.from_config(config).method is named.encode


def test_data_that_looks_like_a_class_does_not_name_one():
    function = {"function": "named:encode"}
    looks = {"dict": {"object": "named:Net", "type": "named:Net"}}
    config = config_of(FlaxLayer(nn.Dense(3)))
    for change in (
        {"method": {"partial": function, "keywords": {"by": looks}}},
        {"method": {"partial": function, "keywords": {"type": "named:Net"}}},
        {"method": {"partial": function, "keywords": {"by": {"type": "named:Net"}}}},
    ):
        with pytest.raises(ConfigError, match="defines no module class that the file names"):
            FlaxLayer.from_config(config | change)
    fields = {"value": [looks, function]}
    with pytest.raises(ConfigError, match="defines no module class that the file names"):
        from_config({"object": "samples:Holder", "fields": fields}, "it")


def test_a_partials_arguments_must_fit_its_function():
    config = config_of(FlaxLayer(named.Net()))
    for keywords in ({"nothing": 1}, {"__class__": 1}):
        node = {"partial": {"function": "named:encode"}, "keywords": keywords}
        with pytest.raises(ConfigError, match="has no such argument"):
            FlaxLayer.from_config(config | {"method": node})


def test_a_new_process_finds_functions_in_its_script_and_beside_an_imported_class(tmp_path):
    (tmp_path / "netpackage.py").write_text(
        "from flax import linen as nn\n"
        "from typing import Any\n"
        "def normalise(x): return x / 2\n"
        "class Net(nn.Module):\n"
        "    function: Any = None\n"
        "    @nn.compact\n"
        "    def __call__(self, inputs):\n"
        "        return nn.Dense(2)(self.function(inputs))\n"
        "def encode(module, inputs, training): return 3 * module(inputs)\n"
    )
    begin = """
        import functools, keras, numpy as np, kerasflax
        from kerasflax import FlaxLayer
        {define}
    """
    make = (
        begin
        + """
        layer = FlaxLayer(Net(functools.partial(normalise)), encode, seed=3)
        model = keras.Sequential([keras.Input((4,)), layer])
        model.save({path!r})
        print(model.predict(np.ones((1, 4)), verbose=0).tolist())
    """
    )
    load = (
        begin
        + """
        try:
            print(keras.models.load_model({path!r}).predict(np.ones((1, 4)), verbose=0).tolist())
        except kerasflax.ConfigError as error:
            print(error)
    """
    )
    script = (tmp_path / "netpackage.py").read_text().replace("\n", "\n        ")
    search = os.pathsep.join([str(tmp_path), *sys.path])
    for name, define in {
        "script": script,
        "package": "from netpackage import Net, encode, normalise",
    }.items():
        path = str(tmp_path / f"{name}.keras")
        expected = run_code(make.format(define=define, path=path), PYTHONPATH=search)
        assert run_code(load.format(define=define, path=path), PYTHONPATH=search) == expected
    # The class is there, but not the function.
    only_class = script.partition("def encode")[0]
    path = str(tmp_path / "script.keras")
    missing = run_code(load.format(define=only_class, path=path), PYTHONPATH=search)
    assert "`method` is the function 'encode', which was defined in a Python script" in missing
    assert "custom_objects={'encode': encode}" in missing


# Settings beside a module -------------------------------------------------------------------------


def test_a_dataclass_or_enum_of_the_modules_package_is_found_without_a_declared_type():
    settings = {"a": named.Settings(5), "b": [named.Kind.WIDE]}
    module = named.Net(settings=settings)
    node = json.loads(json.dumps(to_config(module, "net")))
    assert from_config(node, "net") == module
    acting = {"object": "named:Acting", "fields": {"width": 1}}
    with pytest.raises(ConfigError, match="runs its own code"):
        from_config({"object": "named:Net", "fields": {"settings": acting}}, "net")
    values = node["fields"]["settings"]["dict"]
    for alone in (values["a"], values["b"]):
        with pytest.raises(ConfigError, match="names no module of its package"):
            from_config(alone, "net")


def test_a_flag_that_combines_members_cannot_be_saved():
    one = named.Net(settings=named.Flags.B)
    assert from_config(to_config(one, "Net"), "Net") == one
    with pytest.raises(ConfigError, match=r"Net\.settings cannot be saved.*class named\.Flags"):
        to_config(named.Net(settings=named.Flags.A | named.Flags.B), "Net")


class Unknown:
    def __repr__(self):
        return "many\nlines\n" * 100


def test_an_object_of_an_unknown_class_is_named_in_one_line_with_the_way_out():
    with pytest.raises(ConfigError) as caught:
        FlaxLayer(named.Net(settings={"a": Unknown()})).get_config()
    assert caught.value.what == (
        f"Net.settings['a'] cannot be saved: it is an object of class {__name__}.Unknown."
    )
    assert "register_keras_serializable()" in caught.value.advice
    assert "build the object in it" in caught.value.advice
