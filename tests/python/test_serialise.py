import base64
import dataclasses
import enum
import functools
import importlib
import json
import marshal
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from fixtures import write
from flax import linen as nn
from modules import MLP, ConvNet

from kerasflax import ConfigError, FlaxLayer, ModuleError, freeze
from kerasflax._models import check_savable
from kerasflax._serialise import from_config, to_config
from kerasflax._trees import Form, simplify

FIXTURES = Path(write.__file__).parent
X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


class Kind(enum.Enum):
    WIDE = 1
    DEEP = 2


@dataclasses.dataclass
class Settings:
    width: int
    kind: Kind = Kind.WIDE
    sizes: list = dataclasses.field(default_factory=list)


Pair = namedtuple("Pair", ["a", "b"])


class Holder(nn.Module):
    """Whatever a field may hold."""

    value: Any = None
    part: nn.Module | None = None

    @nn.compact
    def __call__(self, inputs):
        return (self.part or nn.Dense(3))(inputs)


@flax.struct.dataclass
class Two:
    a: Any
    b: Any


class Declares(nn.Module):
    """Makes the data classes above known as what fields of modules hold."""

    settings: Settings | None = None
    pairs: "tuple[Pair, ...]" = ()
    inputs: "dict[str, Two]" = dataclasses.field(default_factory=dict)


class Sum(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs.a) + inputs.b


@keras.saving.register_keras_serializable(package="tests")
class Scale:
    def __init__(self, by):
        self.by = by

    def get_config(self):
        return {"by": self.by}

    def __eq__(self, other):
        return isinstance(other, Scale) and self.by == other.by

    __hash__ = None


@keras.saving.register_keras_serializable(package="tests")
def twice(module, inputs):
    return module(module(inputs))


@keras.saving.register_keras_serializable(package="tests")
def make_folder(path):
    os.mkdir(path)


def again(value):
    return from_config(json.loads(json.dumps(to_config(value, "value"))), "value")


# Values -----------------------------------------------------------------------------------------------------------------

VALUES = {
    "None": None,
    "numbers": [1, 2.5, True, 2**70, 1e-300, 1 + 2j, complex("nan"), float("inf"), -0.0],
    "text": "a \N{SNOWMAN}",
    "tuple": (1, (2.0, [3, ()])),
    "dict": {"a": 1, "b": {"c": (1,)}, "object": "os:system"},
    "dict by number": {1: "a", (2, "x"): None},
    "frozen dict": flax.core.freeze({"a": {"b": (1, 2)}}),
    "sets": [{1, 2}, frozenset({"a"})],
    "dtype": [np.dtype("float16"), jnp.dtype("bfloat16"), jnp.float32, jnp.bfloat16, np.float64, float, int],
    "functions": [nn.relu, jax.nn.gelu, jnp.tanh, jax.lax.rsqrt, nn.initializers.zeros, nn.dot_product_attention, jnp.add],
    "partial": functools.partial(nn.leaky_relu, negative_slope=0.3),
    "class": [nn.BatchNorm, functools.partial(nn.Conv, use_bias=False)],
    "enum": [Kind.DEEP, jax.lax.Precision.HIGHEST],
    "dataclass": Settings(3, Kind.DEEP, [1, (2,)]),
    "named tuple": Pair(1, {"x": 2}),
    "partition": jax.sharding.PartitionSpec("data", None, ("a", "b")),
    "registered": [Scale(3.0), twice],
}


def through_r(node):
    """What R makes of JSON, and hands back: a list of one scalar is that scalar, and integers are of 32 bits."""
    if isinstance(node, list):
        items = [through_r(item) for item in node]
        return items[0] if len(items) == 1 and isinstance(items[0], (bool, int, float, str)) else items
    if isinstance(node, dict):
        return {key: through_r(item) for key, item in node.items()}
    return (node + 2**31) % 2**32 - 2**31 if type(node) is int else node


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name):
    value = VALUES[name]
    got = again(value)
    assert type(got) is type(value)
    if name in ("numbers", "partial", "class"):
        assert repr(got) == repr(value)
    else:
        assert got == value


def test_a_config_goes_through_r():
    value = [
        [1],
        ["a"],
        [[True]],
        (2.5,),
        {"a": [3]},
        [None],
        [],
        {3},
        {1: [2]},
        jax.sharding.PartitionSpec("data"),
        Pair([0], ()),
    ]
    layer = FlaxLayer(Holder(value, part=nn.Conv(3, (2,))), seed=2**32 - 1)
    layer._memory.frozen = ("params/part/bias",)
    config = json.loads(json.dumps(layer.get_config()))
    again = FlaxLayer.from_config(through_r(config))
    assert again.module.value == value
    assert [type(item) for item in again.module.value] == [type(item) for item in value]
    assert again.get_config() == config
    form = simplify({"b": None, "a": 1})[1]
    assert Form.from_config(through_r(json.loads(json.dumps(form.get_config())))) == form


ARRAYS = [
    np.float16(0.1),
    np.int8(-3),
    np.arange(6.0).reshape(2, 3),
    np.zeros((0, 3), np.uint8),
    np.array(True),
    np.array([np.nan, np.inf, -0.0], np.float32),
    np.array([1 + 2j], np.complex64),
    np.array([2**64 - 1], np.uint64),
    jnp.array([1.5, 3], jnp.bfloat16),
    jnp.float32(2),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{type(array).__name__}-{array.dtype}")
def test_arrays_come_back_to_the_bit(array):
    got = again(array)
    assert type(got) is type(array)
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert np.asarray(got).tobytes() == np.asarray(array).tobytes()


INITIALIZERS = {
    "normal": nn.initializers.normal(0.02),
    "normal of a dtype": nn.initializers.normal(0.02, jnp.bfloat16),
    "lecun": nn.initializers.lecun_normal(in_axis=0, out_axis=1, batch_axis=()),
    "variance scaling": nn.initializers.variance_scaling(2.0, "fan_avg", "uniform"),
    "truncated": nn.initializers.truncated_normal(0.3, lower=-1.0, upper=1.5),
    "orthogonal": nn.initializers.orthogonal(0.5, column_axis=0),
    "uniform": nn.initializers.uniform(3),
    "constant": nn.initializers.constant(7.0),
    "constant array": nn.initializers.constant(np.arange(4.0).reshape(2, 2)),
    "ones": nn.initializers.ones_init(),
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_give_the_same_values(name):
    key = jax.random.key(3)
    expected = INITIALIZERS[name](key, (2, 2))
    got = again(INITIALIZERS[name])(key, (2, 2))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_partitioned_initializers_keep_their_names():
    init = again(nn.with_partitioning(nn.initializers.normal(0.3), (None, "model")))
    box = init(jax.random.key(0), (2, 3))
    assert box.names == (None, "model")
    np.testing.assert_array_equal(box.value, nn.initializers.normal(0.3)(jax.random.key(0), (2, 3)))


MODULES = {
    "dense": nn.Dense(3, dtype=jnp.float16, kernel_init=nn.initializers.normal(0.3)),
    "sequential": nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]),
    "nested": Holder(Settings(2), part=Holder(value={"a": (nn.relu,)}, part=nn.Dense(3, name="inner"))),
    "lists and dicts of modules": Holder([nn.Dense(1), {"a": nn.Conv(2, (3,))}], part=nn.Dense(3)),
    "rnn": nn.RNN(nn.LSTMCell(4), time_major=False),
    "weight norm": nn.WeightNorm(nn.Dense(3)),
    "attention": nn.MultiHeadDotProductAttention(2, qkv_features=4, precision=jax.lax.Precision.HIGHEST),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_come_back_with_the_same_outputs(name):
    x = jnp.linspace(0, 1, 40).reshape(2, 5, 4)
    outputs = [module.init_with_output(jax.random.key(1), x) for module in (MODULES[name], again(MODULES[name]))]
    assert jax.tree.structure(outputs[0]) == jax.tree.structure(outputs[1])
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_what_holds_itself_cannot_be_saved():
    value = []
    value.append(value)
    with pytest.raises(ConfigError, match="Holder"):
        FlaxLayer(Holder(value)).get_config()


def test_a_config_can_be_read_by_a_person():
    config = FlaxLayer(nn.Dense(3, kernel_init=nn.initializers.normal(0.5)), name="net", seed=1).get_config()
    assert json.loads(json.dumps(config)) == config
    assert config["format_version"] == 1
    assert config["module"] == {
        "object": "flax.linen:Dense",
        "fields": {"features": 3, "kernel_init": {"initializer": "jax.nn.initializers:normal", "arguments": {"stddev": 0.5}}},
    }


UNSAVABLE = {
    "lambda": (nn.Sequential([nn.Dense(3), lambda x: x]), r"Sequential\.layers\[1\]"),
    "deep": (Holder({"a": [object()]}), r"Holder\.value\['a'\]\[0\]"),
    "text array": (Holder(np.array(["a"])), r"Holder\.value"),
    "key": (Holder(jax.random.key(0)), r"Holder\.value"),
    "with a mesh": (Holder(nn.with_partitioning(nn.relu, (None,), mesh=object())), r"Holder\.value"),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_what_cannot_be_saved_is_named_by_its_path(name):
    module, path = UNSAVABLE[name]
    with pytest.raises(ConfigError, match=path):
        FlaxLayer(module).get_config()


def test_a_method_is_saved_by_name_or_registered():
    def config_of(module, method):
        return json.loads(json.dumps(FlaxLayer(module, method).get_config()))

    module = nn.Dense(5)
    for method in ("__call__", module.__call__, nn.Dense.__call__, twice):
        layer = FlaxLayer.from_config(config_of(module, method))
        layer(np.ones((1, 5), np.float32))
    assert layer.method is twice
    with pytest.raises(ConfigError, match="`method`"):
        config_of(module, lambda module, inputs: module(inputs))


# Models -----------------------------------------------------------------------------------------------------------------


def model_of(module, **arguments):
    model = keras.Sequential([keras.Input(X.shape[1:]), FlaxLayer(module, name="net", **arguments)])
    model.compile("adam", "mse")
    return model


def test_a_loaded_model_goes_on_as_the_saved_one_would(tmp_path):
    model = model_of(ConvNet(), regularizers={"params/**/kernel": keras.regularizers.L2(0.01)})
    freeze(model, "net/params/Conv_0/*")
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]
    assert loaded.layers[-1].frozen == ["params/Conv_0/bias", "params/Conv_0/kernel"]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    # Older versions of Keras go on with the mean of the last epoch.
    model.reset_metrics()
    assert loaded.train_on_batch(X, Y) == model.train_on_batch(X, Y)
    for mine, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


def test_weights_below_weights_are_saved(tmp_path):
    model = keras.Sequential([keras.Input((4,)), FlaxLayer(nn.WeightNorm(nn.Dense(3)))])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_layer_that_was_not_built_is_saved_and_loaded(tmp_path):
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([FlaxLayer(nn.Dense(2), seed=4)]).save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert not loaded.layers[0].built
    assert loaded.predict(np.ones((2, 3), np.float32), verbose=0).shape == (2, 2)


def test_a_clone_has_the_same_settings_and_values_of_its_own():
    model = model_of(MLP())
    clone = keras.models.clone_model(model)
    assert clone.layers[-1].get_config() == model.layers[-1].get_config()
    paths = [path for path in model.layers[-1].variables_by_path if path.endswith("kernel")]
    for path in paths:
        mine, theirs = (m.layers[-1].variables_by_path[path].numpy() for m in (model, clone))
        assert mine.shape == theirs.shape
        assert not np.array_equal(mine, theirs)


@pytest.mark.parametrize("policy", [None, "bfloat16", "mixed_bfloat16"])
def test_a_policy_is_kept_where_there_is_one(policy):
    layer = FlaxLayer.from_config(FlaxLayer(nn.Dense(2), dtype=policy).get_config())
    layer(np.ones((1, 3), np.float32))
    assert str(layer.variables_by_path["params/kernel"].dtype) == ("bfloat16" if policy == "bfloat16" else "float32")
    assert layer.get_config() == FlaxLayer.from_config(layer.get_config()).get_config()


def test_tokens_and_collections_that_were_given_are_there_after_loading(tmp_path):
    class Reader(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Embed(7, 3)(inputs) * self.get_variable("scale", "by", 2.0)

    params = Reader().init(jax.random.key(0), np.zeros((1, 4), np.int32))
    inputs = keras.Input((4,), dtype="int32")
    layer = FlaxLayer(Reader(), variables={**params, "scale": {"by": np.full(3, 5, np.float32)}})
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    tokens = np.arange(8).reshape(2, 4) % 7
    np.testing.assert_array_equal(loaded.predict(tokens, verbose=0), model.predict(tokens, verbose=0))


def test_what_a_layer_was_called_with_is_kept(tmp_path):
    inputs = keras.Input((4,)), keras.Input((3,))
    model = keras.Model(inputs, FlaxLayer(Sum())(Two(*inputs)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = [np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4), np.ones((2, 3), np.float32)]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_model_that_cannot_be_saved_is_known_before_the_file_is_opened():
    @flax.struct.dataclass
    class Local:
        a: Any
        b: Any

    inputs = keras.Input((4,)), keras.Input((3,))
    check_savable(keras.Model(inputs, FlaxLayer(Sum())(Two(*inputs))))
    with pytest.raises(ConfigError, match=r"The input .*Local is made in a function"):
        check_savable(keras.Model(inputs, FlaxLayer(Sum())(Local(*inputs))))
    wrapped = keras.layers.TimeDistributed(FlaxLayer(nn.Sequential([lambda x: x])))
    with pytest.raises(ConfigError, match=r"Sequential\.layers"):
        check_savable(keras.Sequential([keras.Input((3, 4)), wrapped]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"positions": positions} for positions in (None, [0], [0, 0], [0, "1"], [1, 2])),
        *({"model": {"tuple": leaves}} for leaves in ([0, "a"], [0, 0.5], [0, {"set": [1]}])),
    ],
)
def test_a_wrong_form_is_refused(wrong):
    config = simplify(Two(1, 2))[1].get_config()
    with pytest.raises(ConfigError, match="form"):
        Form.from_config(config | wrong)


def test_a_deferred_model_of_tokens_is_loaded(tmp_path):
    model = keras.Sequential([FlaxLayer(nn.Sequential([nn.Embed(7, 3), nn.Dense(2)]))])
    model.compile("sgd", "mse")
    tokens = np.arange(8).reshape(2, 4) % 7
    model.fit(tokens, np.zeros((2, 4, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(tokens, verbose=0), model.predict(tokens, verbose=0))
    model.reset_metrics()
    assert loaded.train_on_batch(tokens, np.ones((2, 4, 2))) == model.train_on_batch(tokens, np.ones((2, 4, 2)))


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_process_finds_the_module_in_the_script_in_a_package_and_nowhere(tmp_path):
    (tmp_path / "netpackage.py").write_text(
        "from flax import linen as nn\n"
        "class Net(nn.Module):\n"
        "    units: int = 3\n"
        "    @nn.compact\n"
        "    def __call__(self, inputs):\n"
        "        return nn.Dense(self.units)(inputs)\n"
    )
    make = """
        import keras, numpy as np, kerasflax
        from kerasflax import FlaxLayer
        {define}
        model = keras.Sequential([keras.Input((4,)), FlaxLayer(Net(units=2), seed=3)])
        model.save({path!r})
        print(model.predict(np.ones((1, 4)), verbose=0).tolist())
    """
    load = """
        import keras, numpy as np, kerasflax
        {define}
        try:
            print(keras.models.load_model({path!r}).predict(np.ones((1, 4)), verbose=0).tolist())
        except kerasflax.ConfigError as error:
            print(error)
    """
    script = (tmp_path / "netpackage.py").read_text().replace("\n", "\n        ")
    for name, define in {"script": script, "package": "from netpackage import Net"}.items():
        path = str(tmp_path / f"{name}.keras")
        expected = run(make.format(define=define, path=path), PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
        found = run(load.format(define=define, path=path), PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
        assert found == expected
        missing = run(load.format(define="", path=path), PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
        assert "'Net'" in missing
        assert ("import netpackage" if name == "package" else "the code that defines it") in missing


@pytest.mark.parametrize("optimizer", ["SGD(0.1, momentum=0.9)", "Adam(0.01)"])
def test_a_new_process_makes_the_next_steps_that_the_old_one_would_have_made(optimizer, tmp_path):
    code = """
        import sys, keras, numpy as np
        sys.path.insert(0, {tests!r})
        from modules import ConvNet
        from kerasflax import FlaxLayer, freeze
        x = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
        y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
        {begin}
        model.reset_metrics()
        print(model.predict(x, verbose=0).tolist(), [model.train_on_batch(x, y) for _ in range(2)])
        print([(w.path, w.trainable, w.numpy().tobytes().hex()) for w in model.weights])
        print([w.numpy().tobytes().hex() for w in model.optimizer.variables])
    """
    path = str(tmp_path / "m.keras")
    first = (
        "model = keras.Sequential([keras.Input((5, 5, 1)), FlaxLayer(ConvNet(), name='net', seed=1)]); "
        f"freeze(model, 'net/params/Conv_0/*'); model.compile(keras.optimizers.{optimizer}, 'mse'); "
        f"model.fit(x, y, batch_size=2, epochs=2, verbose=0); model.save({path!r})"
    )
    tests = os.path.dirname(__file__)
    old = run(code.format(tests=tests, begin=first))
    assert run(code.format(tests=tests, begin=f"model = keras.models.load_model({path!r})")) == old


def test_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    train = """
        import os, sys, keras, numpy as np
        sys.path.insert(0, {tests!r})
        from modules import ConvNet
        from kerasflax import FlaxLayer
        x = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
        y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
        class Kill(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch
            def on_train_batch_end(self, batch, logs=None):
                if (self.epoch, batch) == (2, 1):
                    sys.stdout.flush()
                    os._exit(0)
        model = keras.Sequential([keras.Input((5, 5, 1)), FlaxLayer(ConvNet(), seed=1)])
        model.compile("adam", "mse")
        callbacks = [keras.callbacks.BackupAndRestore({folder!r}), keras.callbacks.ModelCheckpoint({path!r})]
        model.fit(x, y, batch_size=2, epochs=4, shuffle=False, verbose=0, callbacks=callbacks + [Kill()] * {kill})
        print([w.numpy().tobytes().hex() for w in model.weights])
        assert model.predict(x, verbose=0).tolist() == keras.models.load_model({path!r}).predict(x, verbose=0).tolist()
    """
    tests = os.path.dirname(__file__)

    def printed(folder, kill):
        return run(train.format(tests=tests, folder=str(tmp_path / folder), path=str(tmp_path / "m.keras"), kill=kill))

    assert printed("killed", kill=True) == ""
    assert printed("killed", kill=False) == printed("never killed", kill=False) != ""


# The recorded numbers come from optimized programs; tanh differs by 2e-5 without optimization.
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("v*/*.keras")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_files_of_every_version_are_read(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    with keras.saving.custom_object_scope({"Fixture": write.Fixture}):
        model = keras.models.load_model(path)
    np.testing.assert_allclose(model.predict(write.INPUTS, verbose=0), expected["predicted"], rtol=1e-5, atol=1e-6)
    assert all(name.endswith("/bias") for name in model.layers[-1].frozen)
    np.testing.assert_allclose(model.train_on_batch(write.INPUTS, write.TARGETS), expected["next_loss"], rtol=1e-5)


# Foreign files ----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "no description": None,
    "a number": 3,
    "another kind of key": {"python/object/apply": "os.system"},
    "two kinds": {"object": "flax.linen:Dense", "function": "jax.nn:relu"},
    "a module of the system": {"object": "os:system", "fields": {}},
    "a class of the system": {"object": "subprocess:Popen", "fields": {"args": ["true"]}},
    "a package not imported": {"object": "antigravity:Net", "fields": {}},
    "a submodule of one": {"object": "test.support:Net", "fields": {}},
    "a private way": {"object": "flax.linen:Dense.__init__.__globals__", "fields": {}},
    "a function as a class": {"object": "flax.linen:vmap", "fields": {}},
    "no such field": {"object": "flax.linen:Dense", "fields": {"features": 1, "evil": 2}},
    "fields that are none": {"object": "flax.linen:Dense", "fields": [1]},
    "no text": {"object": 3, "fields": {}},
    "a function that reads": {"function": "jax.numpy:load"},
    "a function that writes": {"function": "jax.numpy:save"},
    "a function that calls back": {"function": "jax.lax:map"},
    "a transformation": {"function": "flax.linen:jit"},
    "another namespace": {"function": "builtins:eval"},
    "a namespace below": {"function": "jax.numpy.linalg:inv"},
    "another factory": {"initializer": "builtins:open", "arguments": {"file": "x"}},
    "a partial of nothing": {"partial": {"tuple": []}},
    "a partial of open": {"partial": {"function": "builtins:open"}, "arguments": ["x"]},
    "a type": {"type": "builtins:type"},
    "an enum": {"enum": "flax.linen:Dense", "member": "x"},
    "an array of text": {"array": ["a"], "shape": [1], "dtype": "str"},
    "an array of objects": {"array": [1], "shape": [1], "dtype": "object"},
    "an array that is too large": {"array": [], "shape": [10**12], "dtype": "float32"},
    "an array whose sizes overflow": {"array": [], "shape": [2**62, 0], "dtype": "float32", "of": "jax"},
    "a function of a function": {"function": "jax.numpy:mask_indices"},
    "a wrong number": {"float": "__import__('os')"},
    "a set of lists": {"set": [[1]]},
    "another package's class, through Flax": {"object": "flax.training.checkpoints:ocp.CheckpointManagerOptions"},
    "another package's class, through a package": {"object": "kerasflax._serialise:np.ndarray"},
    "a parent": {"object": "flax.linen:Dense", "fields": {"parent": {"object": "flax.linen:Dense", "fields": {"features": 1}}}},
    "a shaped dtype": {"dtype": "(1000000000,)f4"},
    "nobody's": {"registered": "nobody>thing"},
}
DEEP: Any = 1
for _ in range(500):
    DEEP = [DEEP]
HOSTILE["deep"] = {"tuple": DEEP}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_an_error_and_imports_nothing(name):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"module": HOSTILE[name]}
    before = set(sys.modules)
    with pytest.raises((ConfigError, TypeError), match=r"described|module|taken|known") as caught:
        FlaxLayer.from_config(config)
    assert type(caught.value).__module__ == "kerasflax._errors"
    assert {name.partition(".")[0] for name in set(sys.modules) - before} <= {"jax", "flax"}


def test_no_program_of_a_package_is_run(tmp_path, monkeypatch):
    (tmp_path / "programpackage").mkdir()
    (tmp_path / "programpackage/__init__.py").write_text("from flax import linen as nn\nclass Net(nn.Module): pass\n")
    (tmp_path / "programpackage/more.py").write_text("from flax import linen as nn\nclass Other(nn.Module): pass\n")
    (tmp_path / "programpackage/__main__.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("programpackage")
    with pytest.raises(ConfigError, match=r"Run `import programpackage\.more` first"):
        from_config({"object": "programpackage.more:Other"}, "it")
    assert "programpackage.more" not in sys.modules
    with pytest.raises(ConfigError, match=r"not there.\nRun the code"):
        from_config({"object": "programpackage.__main__:Net"}, "it")
    importlib.import_module("programpackage.more")
    assert type(from_config({"object": "programpackage.more:Other"}, "it")).__name__ == "Other"
    assert not (tmp_path / "mark").exists()


def test_nobody_is_asked_to_import_what_is_there_or_has_no_modules():
    for name in ("os:Net", "antigravity:Net", f"{__name__}:Net"):
        with pytest.raises(ConfigError, match="does not have") as caught:
            from_config({"object": name}, "it")
        assert "import" not in str(caught.value)


def damaged(path, change):
    """Change the description of the layer in a file."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    change(config["config"]["layers"][-1])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, json.dumps(config) if name == "config.json" else data)


class Payload:
    """What a pickle may do when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def payload(path):
    return base64.b64encode(pickle.dumps(Payload(str(path)))).decode()


def lambda_that_makes(path):
    code = marshal.dumps(compile(f"__import__('os').mkdir({str(path)!r})", "file", "eval"))
    value = base64.b64encode(code).decode()
    return {"class_name": "__lambda__", "config": {"value": value}, "registered_name": "kerasflax>FlaxLayer"}


# As foreign files have run code in Keras.
ATTACKS = {
    # CVE-2025-1550: names of modules and functions in config.json.
    "a function of the system": lambda layer, mark: layer["config"].update(
        module={"object": "os:mkdir", "fields": {"path": str(mark)}}
    ),
    "a partial of one": lambda layer, mark: layer["config"].update(
        module={"partial": {"function": "os:mkdir"}, "arguments": [str(mark)]}
    ),
    "a registered function": lambda layer, mark: layer["config"].update(
        module={"registered": "tests>make_folder", "config": {"dict": {"path": str(mark)}}}
    ),
    "a registered function as a method": lambda layer, mark: layer["config"].update(
        method={"registered": "tests>make_folder", "config": {"dict": {"path": str(mark)}}}
    ),
    "an object of Keras's": lambda layer, mark: layer["config"].update(
        module={"module": "os", "class_name": "mkdir", "config": {"path": str(mark)}, "registered_name": "mkdir"}
    ),
    "a lambda of Keras's": lambda layer, mark: layer["config"].update(
        method={"class_name": "__lambda__", "config": {"value": payload(mark)}}
    ),
    # Keras looks for a lambda where its caller looks for regularizers, if a registered name leads it there.
    "a lambda as a regularizer": lambda layer, mark: layer["config"].update(regularizers={"**": lambda_that_makes(mark)}),
    "a lambda as a constraint": lambda layer, mark: layer["config"].update(constraints={"**": lambda_that_makes(mark)}),
    "a lambda as a policy": lambda layer, mark: layer["config"].update(dtype=lambda_that_makes(mark)),
    "the layer's own class": lambda layer, mark: layer.update(module="os", class_name="mkdir", registered_name="mkdir"),
    # CVE-2025-49655: a pickle in the place of a module.
    "a pickle": lambda layer, mark: layer["config"].update(module=payload(mark)),
    "a pickle as bytes": lambda layer, mark: layer["config"].update(
        module={"class_name": "__bytes__", "config": {"value": payload(mark)}}
    ),
    # CVE-2026-1462: a path in the config to something that is loaded and run.
    "a path": lambda layer, mark: layer["config"].update(filepath=str(mark)),
    "variables": lambda layer, mark: layer["config"].update(variables={"params": payload(mark)}),
}


@pytest.mark.parametrize("safe_mode", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_file_runs_code(name, safe_mode, tmp_path):
    path, mark = tmp_path / "m.keras", tmp_path / "mark"
    model_of(MLP()).save(path)
    damaged(path, lambda layer: ATTACKS[name](layer, mark))
    with pytest.raises((ConfigError, ModuleError, TypeError, ValueError)):
        keras.models.load_model(path, safe_mode=safe_mode)
    assert not mark.exists()


@pytest.mark.parametrize("version", [None, 0, 2, "1", [1], True, 1.0])
def test_another_version_is_refused(version):
    config = FlaxLayer(nn.Dense(1)).get_config() | {"format_version": version}
    with pytest.raises(ConfigError, match="version"):
        FlaxLayer.from_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frozen", {"params": 1}),
        ("frozen", [1]),
        ("given", [1]),
        ("given", {"a": [[-1], "x"]}),
        ("given", {"a": [[-1], "float32"]}),
        ("given", {"a": [[2**62, 0], "float32"]}),
        ("given", {"a": 3}),
        ("method", {"a": 1}),
        ("method", {"registered": "tests>Scale"}),
        ("autocast", "x"),
        ("name", 5),
        ("trainable", "x"),
        ("regularizer", {"**": {"class_name": "L3", "config": {}}}),
        ("constraint", {"**": {"class_name": "NonNeg", "config": 3}}),
        ("variable_dtype", {"class_name": "TFSMLayer", "config": {}}),
    ],
)
def test_other_parts_are_checked(key, value):
    part = {"regularizer": "regularizers", "constraint": "constraints", "variable_dtype": "dtype"}.get(key, key)
    with pytest.raises(ConfigError, match=key):
        FlaxLayer.from_config(FlaxLayer(nn.Dense(1)).get_config() | {part: value})


@pytest.mark.parametrize(
    "config", [{"input_shape": [1]}, {"input_shape": [-3], "input_dtype": "int32"}, {"input_dtype": ["int8"]}]
)
def test_what_a_layer_is_built_on_is_checked(config):
    with pytest.raises(ConfigError, match="The input"):
        FlaxLayer(nn.Dense(1)).build_from_config(config)


def test_the_newest_class_of_a_name_counts_and_custom_objects_come_first():
    def define(scale):
        class Net(nn.Module):
            def __call__(self, inputs):
                return inputs * scale

        return Net

    old, new = define(2), define(3)
    node = to_config(old(), "net")
    assert type(from_config(node, "net")) is new
    for custom in ({"Net": old}, {old.__qualname__: old}):
        with keras.saving.custom_object_scope(custom):
            assert type(from_config(node, "net")) is old
    with keras.saving.custom_object_scope({"Net": old}):
        assert type(from_config({"object": "elsewhere:Net"}, "net")) is old


def test_what_flax_has_transformed_twice_is_not_chosen_in_silence():
    class Repeated(nn.Dense):
        pass

    def repeated(axis):
        return nn.vmap(Repeated, in_axes=axis, out_axes=axis, variable_axes={"params": 0}, split_rngs={"params": True})

    old = repeated(1)
    node = to_config(old(3), "net")
    assert type(from_config(node, "net")) is old
    new = repeated(2)
    with pytest.warns(UserWarning, match="VmapRepeated.*2 here"):
        assert type(from_config(node, "net")) is new
    with keras.saving.custom_object_scope({"VmapRepeated": old}):
        assert type(from_config(node, "net")) is old


def test_a_keras_layer_of_the_name_is_not_taken_for_the_module():
    with keras.saving.custom_object_scope({"Holder": keras.layers.Dense}):
        assert type(again(Holder())) is Holder
        with pytest.raises(ConfigError, match="another kind"):
            from_config({"object": "elsewhere:Holder"}, "it")


def test_the_class_that_has_the_name_now_counts_whatever_it_is_derived_from():
    class Base(nn.Module):
        pass

    def define(base):
        Redefined = type("Redefined", (base,), {"__module__": __name__})
        globals()["Redefined"] = Redefined
        return Redefined

    for base in (nn.Module, Base, nn.Module, Base):
        new = define(base)
        assert type(from_config({"object": f"{__name__}:Redefined"}, "net")) is new


def test_a_registered_class_is_found_by_its_name_there_wherever_it_is_defined():
    def define(place):
        body = {"__module__": place, "get_config": lambda self: {}, "from_config": classmethod(lambda cls, config: cls())}
        return keras.saving.register_keras_serializable("tests")(type("Known", (nn.Module,), body))

    old = define("somewhere")
    node = to_config([old(), functools.partial(old)], "net")
    new = define("elsewhere")
    module, partial = from_config(node, "net")
    assert type(module) is partial.func is new


def test_a_field_is_what_it_was_when_its_default_has_become_another():
    def define(default, options, function):
        annotations = {"rate": float, "options": dict, "function": Any}
        body = {"__module__": __name__, "__annotations__": annotations, "rate": default, "function": function}
        return type("Changing", (nn.Module,), body | {"options": dataclasses.field(default_factory=lambda: options)})

    # A default that cannot be saved is left to the class.
    node = json.loads(json.dumps(to_config(define(0.5, {"a": 1}, len)(), "net")))
    assert node["fields"] == {"rate": 0.5, "options": {"dict": {"a": 1}}}
    new = define(0.1, {}, max)
    module = from_config(node, "net")
    assert (type(module), module.rate, module.options, module.function) == (new, 0.5, {"a": 1}, max)


def test_classes_of_imported_packages_are_found_if_they_hold_and_do_nothing(tmp_path):
    (tmp_path / "settingspackage.py").write_text(
        "import dataclasses, enum, os, typing\n"
        "class Kind(enum.Enum):\n"
        "    WIDE = 1\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Plain:\n"
        "    width: int\n"
        "    more: tuple = ()\n"
        "class Pair(typing.NamedTuple):\n"
        "    a: int\n"
        "@dataclasses.dataclass\n"
        "class Acts:\n"
        "    path: str\n"
        "    def __post_init__(self):\n"
        "        os.mkdir(self.path)\n"
        "@dataclasses.dataclass\n"
        "class ActsToo:\n"
        "    path: str\n"
        "    def __init__(self, path):\n"
        "        os.mkdir(path)\n"
    )
    make = """
        import json, keras
        from kerasflax import _serialise
        {}
        nodes = json.loads({!r})
        try:
            print([_serialise.from_config(node, "it") for node in nodes])
        except _serialise.ConfigError as error:
            print(error)
    """
    nodes = [
        {"object": "settingspackage:Plain", "fields": {"width": 3}},
        {"enum": "settingspackage:Kind", "member": "WIDE"},
        {"named_tuple": "settingspackage:Pair", "fields": [1]},
    ]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    found = run(make.format("import settingspackage", json.dumps(nodes)), PYTHONPATH=path)
    assert found == "[Plain(width=3, more=()), <Kind.WIDE: 1>, Pair(a=1)]\n"
    assert "import settingspackage" in run(make.format("", json.dumps(nodes)), PYTHONPATH=path)
    mark = tmp_path / "mark"
    for name in ("Acts", "ActsToo"):
        node = json.dumps([{"object": f"settingspackage:{name}", "fields": {"path": str(mark)}}])
        refused = run(make.format("import settingspackage", node), PYTHONPATH=path)
        assert f"custom_objects={{'{name}': {name}}}" in refused
        assert not mark.exists()
